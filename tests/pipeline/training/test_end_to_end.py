"""The end-to-end term on a small random model: against the whole model by hand, over ranks, resumed, refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from stepping import KINDS, build, measure, on_ranks, rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.collection.prepare import prepare, table_url
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.dictionaries import initialise
from pipeline.dictionaries.activations.batch_topk import BatchTopKActivation
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.folder import load_dictionary
from pipeline.order.eligible import EligibleRows, scan
from pipeline.store.reader import Store
from pipeline.tokens.table import build_table
from pipeline.training import engine
from pipeline.training.end_to_end import EndToEndTerm
from pipeline.training.end_to_end_model import EndToEndModels
from pipeline.training.objective import StepFacts
from pipeline.training.parameters import flat_gradients, gradient
from pipeline.training.world import SingleWorld, World
from schemas.collect import CollectSpec
from schemas.dictionary import DictionarySpec
from schemas.errors import MismatchError, SpecError
from schemas.train import TrainSpec

RESID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"
LATER = "blocks.2.hook_resid_post"
WORDS = ["<bos>", "<eos>", "[UNK]", *(f"w{number}" for number in range(30))]


def save_model(folder: Path, seed: int) -> None:
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=3, vocab_size=len(WORDS), intermediate_size=24, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another one, and a store of the first: 60 documents, 12 of them held out."""
    root = tmp_path_factory.mktemp("end_to_end")
    save_model(root / "model", 3)
    save_model(root / "other", 4)
    chance = random.Random(5)
    (root / "corpus").mkdir()
    for number in range(60):
        text = " ".join(f"w{int(chance.triangular(0, 29, 3))}" for _ in range(chance.randint(5, 40)))
        (root / "corpus" / f"{number:02}.txt").write_text(text, "utf-8")
    spec = CollectSpec.model_validate(
        {
            "model": {"path": str(root / "model"), "dtype": "float32", "device": "cpu"},
            "tokens": {
                "corpus": {"format": "text", "urls": [f"{root}/corpus/*.txt"]},
                "packing": {"context_length": 16},
                "held_out_fraction": 0.2,
                "part_size": "1KiB",
            },
            "hook_points": [RESID, MLP_IN, MLP_OUT],
            "batch_tokens": 256,
            "storage": {"dtype": "float32", "chunk_rows": 64, "shard_rows": 256},
            "output": f"{root}/store",
        }
    )
    table = build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=spec.storage.shard_rows)
    for pending in prepare(spec, table):
        collector = UnitCollector.open(pending.of)
        list(collect_units(collector, pending.units))
        collector.writer.finish()
    return root


def job(root: Path, output: Path, end_to_end: dict[str, Any], **fields: Any) -> TrainSpec:
    dictionary = {
        "name": "d", "sources": [RESID], "num_latents": 48, "learning_rate": 5e-3, "end_to_end": end_to_end,
        "activation": KINDS["topk"], **fields,
    }  # fmt: skip
    facts = {
        "store": f"{root}/store", "dictionaries": [dictionary], "batch_rows": 64, "num_tokens": 24 * 64,
        "checkpoint_every_steps": 5, "log_every_steps": 1, "trackers": [], "output": str(output),
    }  # fmt: skip
    return TrainSpec.model_validate(facts)


def prepared(spec: TrainSpec) -> tuple[Dictionary, EndToEndTerm, EligibleRows]:
    """A dictionary with lively weights, and its term."""
    store = Store.open(str(spec.store))
    wanted = spec.dictionaries[0]
    points = [*wanted.sources, *wanted.target_points]
    eligible = scan(store, points, spec.rows, "train")
    widths = dict.fromkeys(points, 16)
    dictionary = Dictionary(
        wanted, {p: widths[p] for p in wanted.sources}, {p: widths[p] for p in wanted.target_points},
        dict.fromkeys(points, 0.7),
    )  # fmt: skip
    initialise.fill(dictionary, {point: torch.full((16,), 0.1) for point in points})
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    if isinstance(dictionary.activation, BatchTopKActivation):
        dictionary.activation.threshold.fill_(0.4)
    term = EndToEndModels(spec, store, eligible, torch.device("cpu")).term(dictionary)
    assert term is not None
    return dictionary, term, eligible


def facts_of(world: World, num_steps: int = 2) -> StepFacts:
    return StepFacts(64, num_steps, 0.5, torch.zeros(48, dtype=torch.bool), 0, world)


def by_hand(spec: TrainSpec, dictionary: Dictionary, term: EndToEndTerm, eligible: EligibleRows) -> torch.Tensor:
    """Nats a token over the contexts of step 2: the whole model, a hook, probabilities."""
    store = Store.open(str(spec.store))
    model = LlamaForCausalLM.from_pretrained(Path(str(spec.store)).parent / "model")
    kept = {int(row) for chunk in range(len(eligible.counts)) for row in eligible.rows_of(chunk)}
    block = model.model.layers[1]
    module = block if term._target == RESID else block.mlp
    before: list[torch.Tensor] = []
    handles = [block.mlp.register_forward_pre_hook(lambda _, args: before.append(args[0]))]
    nats, count = torch.zeros(()), 0
    for start, stop in term._order.at(2):
        tokens = store.tokens(start, stop)
        assert not tokens.held_out.any()
        assert tokens.position.tolist() == list(range(stop - start))
        ids = torch.from_numpy(tokens.token_id.astype(np.int64))[None]
        places = torch.tensor([row in kept for row in range(start, stop)])
        with torch.no_grad():
            truth = torch.softmax(model(ids).logits[0].double(), -1)

        def change(_: object, __: object, output: torch.Tensor, places: torch.Tensor = places) -> torch.Tensor:
            source = output[0] if dictionary.d_source.keys() == {RESID} else before[-1][0]
            made = dictionary.reconstruct({next(iter(dictionary.d_source)): source})[term._target]
            return torch.where(places[:, None], made, output[0])[None]

        handle = module.register_forward_hook(change)
        given = torch.softmax(model(ids).logits[0].double(), -1)
        handle.remove()
        nats = nats + (truth * (truth.log() - given.log())).sum()
        count += stop - start
    for one in handles:
        one.remove()
    return nats / count


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "relu_l1", "gated", "jumprelu", "p_anneal"])
@pytest.mark.parametrize("points", [{"sources": [RESID]}, {"sources": [MLP_IN], "targets": [MLP_OUT], "skip": True}])
def test_divergence_and_gradients_are_those_by_hand(
    root: Path, tmp_path: Path, kind: str, points: dict[str, Any]
) -> None:
    spec = job(root, tmp_path, {"kl_coefficient": 0.7, "contexts": 6}, activation=KINDS[kind], **points)
    dictionary, term, eligible = prepared(spec)
    expected = by_hand(spec, dictionary, term, eligible)
    parameters = dict(dictionary.named_parameters())
    found = torch.autograd.grad(0.7 * expected, list(parameters.values()), allow_unused=True)

    flat = flat_gradients(dictionary)
    flat.fill_(0.25)
    figures = term.add_gradients(flat, facts_of(SingleWorld()))
    assert figures["kl"] == pytest.approx(expected.item(), rel=1e-4)
    assert figures["kl"] > 1e-3
    assert term.loss(figures) == pytest.approx(0.7 * expected.item(), rel=1e-4)
    for (name, parameter), grad in zip(parameters.items(), found, strict=True):
        ours = gradient(parameter) - 0.25
        if name == "activation.log_threshold":  # straight-through: autograd of the plain function has none
            assert float(ours.abs().max()) > 1e-5
        else:
            torch.testing.assert_close(ours, torch.zeros_like(ours) if grad is None else grad, rtol=1e-3, atol=2e-6)


def test_two_ranks_add_what_one_adds(root: Path, tmp_path: Path) -> None:
    spec = job(root, tmp_path, {"contexts": 5, "downstream": [LATER]})

    def work(world: World) -> tuple[torch.Tensor, dict[str, float]]:
        dictionary, term, _ = prepared(spec)
        flat = flat_gradients(dictionary)
        flat.fill_(0.25)
        return flat, term.add_gradients(flat, facts_of(world))

    ((alone, figures),) = on_ranks(1, work)
    for flat, others in on_ranks(2, work):
        torch.testing.assert_close(flat, alone, rtol=1e-4, atol=1e-6)
        assert others == pytest.approx(figures, rel=1e-5)
    assert figures["downstream_error"] > 0


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_run_learns_resumes_bit_by_bit_and_is_the_same_on_two_ranks(root: Path, tmp_path: Path) -> None:
    end_to_end = {"contexts": 4, "start": 0.25, "kl_coefficient": 3.0, "squared_error_coefficient": 0.5}

    def lines(spec: TrainSpec) -> list[dict[str, float]]:
        text = (Path(spec.output) / "metrics.jsonl").read_text("utf-8")
        return [json.loads(line)["dictionaries"]["d"] for line in text.splitlines()]

    whole = job(root, tmp_path / "whole", end_to_end)
    engine.train(whole, SingleWorld())
    found = lines(whole)
    assert ["kl" in line for line in found] == [step / len(found) >= 0.25 for step in range(len(found))]
    assert sum(line["kl"] for line in found[-4:]) < 0.8 * sum(line["kl"] for line in found[7:11])

    killed = job(root, tmp_path / "killed", end_to_end)

    def die(record: dict[str, Any]) -> None:
        if record["step"] == 13:
            raise Killed

    with pytest.raises(Killed):
        engine.train(killed, SingleWorld(), report=die)
    engine.train(killed, SingleWorld())
    weights = [Path(spec.output, "d", "dictionary.safetensors").read_bytes() for spec in (whole, killed)]
    assert weights[0] == weights[1]
    assert lines(killed) == found

    shared = job(root, tmp_path / "shared", end_to_end)
    on_ranks(2, lambda world: engine.train(shared, world))
    ours, theirs = (load_dictionary(f"{spec.output}/d") for spec in (shared, whole))
    torch.testing.assert_close(ours.decoder, theirs.decoder, rtol=1e-2, atol=2e-3)
    for line, expected in zip(lines(shared), found, strict=True):
        assert line == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_the_divergence_beats_the_squared_error_at_its_own_game(root: Path, tmp_path: Path) -> None:
    """The same steps from the same start, with and without it, judged on contexts of other steps."""

    def nats(name: str, **end_to_end: Any) -> float:
        spec = job(root, tmp_path / name, {"contexts": 8, **end_to_end})
        engine.train(spec, SingleWorld())
        made = load_dictionary(f"{spec.output}/d")
        _, term, _ = prepared(spec)
        term._dictionary = made
        flat = flat_gradients(made)
        return sum(term.add_gradients(flat, facts_of(SingleWorld(), step))["kl"] for step in (100, 101, 102))

    plain = nats("plain", start=0.99)
    assert nats("both", kl_coefficient=3.0) < 0.9 * plain


@pytest.mark.parametrize("kind", ["topk", "multi_topk", "matryoshka", "relu_l1", "gated", "jumprelu"])
def test_the_weight_of_the_squared_error(kind: str) -> None:
    """The loss is linear in it, and without it the decoder of a TopK dictionary gets nothing."""
    dictionary = build(KINDS[kind])
    x, y = rows(dictionary)
    found = {weight: measure(dictionary, x, y, error_weight=weight) for weight in (0.0, 0.5, 1.0)}
    losses = {weight: loss for weight, (loss, _, _) in found.items()}
    assert losses[0.5] == pytest.approx((losses[0.0] + losses[1.0]) / 2)
    assert losses[0.0] < losses[1.0]
    for name, grad in found[0.5][1].items():
        torch.testing.assert_close(grad, (found[0.0][1][name] + found[1.0][1][name]) / 2)
    if "topk" in kind or kind == "matryoshka":
        assert losses[0.0] == 0
        assert not any(grad.any() for grad in found[0.0][1].values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": [RESID, MLP_OUT]}, "one target; this one has 2"),
        ({"sources": [f"a/{RESID}"]}, "of a joined store"),
        ({"end_to_end": {"downstream": [LATER, LATER]}}, "names a hook point twice"),
        ({"end_to_end": {"downstream": [RESID]}}, "or the target blocks.1"),
    ],
)
def test_what_cannot_be_is_refused_in_the_spec(fields: dict[str, Any], message: str) -> None:
    facts = {"name": "d", "sources": [RESID], "num_latents": 48, "end_to_end": {}, **fields}
    with pytest.raises(ValidationError, match=message):
        DictionarySpec.model_validate(facts)


def test_another_model_is_refused(root: Path, tmp_path: Path) -> None:
    other = {"path": str(root / "other"), "dtype": "float32"}
    with pytest.raises(MismatchError, match="weights"):
        engine.train(job(root, tmp_path, {"model": other}), SingleWorld())
    with pytest.raises(SpecError, match="needs a causal_lm"):
        engine.train(job(root, tmp_path, {"model": {**other, "kind": "encoder"}}), SingleWorld())
    same = {"path": str(root / "model"), "dtype": "bfloat16"}
    spec = job(root, tmp_path, {"model": same, "start": 0.9, "contexts": 2})
    assert engine.train(spec, SingleWorld())["dictionaries"]["d"]["kl"] > 0


def test_ranks_that_share_a_dictionary_are_refused(root: Path, tmp_path: Path) -> None:
    spec = job(root, tmp_path, {})
    store = Store.open(str(spec.store))
    eligible = scan(store, [RESID], spec.rows, "train")
    half = Dictionary(spec.dictionaries[0], {RESID: 16}, {RESID: 16}, {RESID: 1.0}, latents=range(24))
    with pytest.raises(SpecError, match="this one has 24 of 48"):
        EndToEndModels(spec, store, eligible, torch.device("cpu")).term(half)
