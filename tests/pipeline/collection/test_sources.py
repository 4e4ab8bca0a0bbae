"""Heads, patterns, neurons, gradients and encoders from text to rows, through the store and back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_job import built_table, digests, small_spec
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, LlamaForCausalLM, OPTConfig, T5Config, T5Model

from pipeline.collection.prepare import prepare
from pipeline.collection.spot_check import spot_check
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.models.load import load_model
from pipeline.planning.jobs import plan
from pipeline.store.reader import Store
from pipeline.tokens.tokenizer import load_tokenizer
from schemas.collect import CollectSpec
from schemas.errors import ModelError
from schemas.model import ModelSpec
from schemas.plan import PlanAssumptions

LENGTH, HEADS = 24, 2
HOOKS = ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_z", "blocks.1.hook_resid_pre.grad", "blocks.1.mlp.hook_post"]


def collected(spec: CollectSpec) -> Store:
    for one in prepare(spec, built_table(spec)):
        collector = UnitCollector.open(one.of)
        for _ in collect_units(collector, one.units):
            pass
        collector.writer.finish()
    return Store.open(spec.output)


def contexts(store: Store) -> list[tuple[int, int]]:
    return list(pairwise([*np.flatnonzero(store.tokens().position == 0), store.num_rows]))


@pytest.fixture(scope="module")
def sources(model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> CollectSpec:
    folder = tmp_path_factory.mktemp("sources")
    wanted = {"hook_points": HOOKS, "storage": {"dtype": "float32", "codec": "sparse"}, "model": {"attention": "eager"}}
    spec = small_spec(model, corpus, folder / "store", **wanted)
    collected(spec)
    return spec


def test_stored_gradients_and_patterns_are_those_of_each_context_alone(model: Path, sources: CollectSpec) -> None:
    store = Store.open(sources.output)
    network = LlamaForCausalLM.from_pretrained(model, attn_implementation="eager")
    ids = torch.from_numpy(store.tokens().token_id.astype(np.int64))
    pattern = store.read_values(HOOKS[0], 0, store.num_rows).reshape(-1, HEADS, LENGTH)
    gradient = store.read_values(HOOKS[2], 0, store.num_rows)
    lengths = set()
    for start, stop in contexts(store):
        # The inputs of a block are the gradients' leaves: a plain hook on the real model adds zeros there.
        added: list[torch.Tensor] = []

        def add(_: object, args: tuple[torch.Tensor, ...], added: list[torch.Tensor] = added) -> tuple[torch.Tensor]:
            added.append(torch.zeros_like(args[0]).requires_grad_())
            return (args[0] + added[0], *args[1:])

        handle = network.model.layers[1].register_forward_pre_hook(add)
        found = network(ids[None, start:stop], output_attentions=True)
        handle.remove()
        loss = functional.cross_entropy(found.logits[0, :-1], ids[start + 1 : stop], reduction="sum")
        (expected,) = torch.autograd.grad(loss, added)
        np.testing.assert_allclose(gradient[start:stop], expected[0].numpy(), rtol=1e-3, atol=1e-6)
        length = stop - start
        lengths.add(length)
        theirs = found.attentions[0][0].transpose(0, 1).detach().numpy()
        np.testing.assert_allclose(pattern[start:stop, :, :length], theirs, rtol=1e-4, atol=1e-6)
        assert not pattern[start:stop, :, length:].any()
    assert len(lengths) > 1


def test_they_are_computed_again_alike(sources: CollectSpec, model: Path, corpus: Path, tmp_path: Path) -> None:
    assert all(one.is_low_bits for one in spot_check(sources.output, 3))
    again = sources.model_copy(update={"output": str(tmp_path / "a" / "store")})
    twice = sources.model_copy(update={"output": str(tmp_path / "b" / "store")})
    collected(again), collected(twice)
    assert digests(again.output) == digests(twice.output)


def test_a_plan_says_what_they_take(sources: CollectSpec, tmp_path: Path) -> None:
    spec = sources.model_copy(update={"output": str(tmp_path / "store")})
    (job,) = plan(spec, PlanAssumptions()).jobs
    assert job.store is not None
    assert job.store.hook_points == dict(zip(HOOKS, [HEADS * LENGTH, 32, 32, 48], strict=True))
    notes = " ".join(job.notes)
    assert "attention patterns (1 of attn.hook_pattern) take 192 B a token: a column for each of 2 heads" in notes
    assert "gradients (1 hook points) are of the next-token cross-entropy" in notes
    assert "neurons behind silu are hardly ever exactly zero" in notes
    plain = spec.model_copy(update={"hook_points": [HOOKS[1]]})
    (without,) = plan(plain, PlanAssumptions()).jobs
    assert not any(word in note for note in without.notes for word in ("patterns", "gradients", "neurons"))


def test_neurons_behind_a_relu_shrink(model: Path, corpus: Path, tmp_path: Path) -> None:
    """T5's encoder, whose MLP is not gated."""
    config = T5Config(d_model=16, num_layers=2, vocab_size=258, d_kv=8, d_ff=64, num_heads=2, pad_token_id=0)
    torch.manual_seed(0)
    network = T5Model(config).eval()
    network.save_pretrained(tmp_path / "t5")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "t5")
    hooks = ["blocks.0.hook_resid_mid", "blocks.1.mlp.hook_post"]
    stores = {}
    for codec in ("none", "sparse"):
        spec = small_spec(tmp_path / "t5", corpus, tmp_path / codec / "store", hook_points=hooks,
                          model={"kind": "encoder"}, storage={"codec": codec, "dtype": "float32"})  # fmt: skip
        stores[codec] = collected(spec)
    (job,) = plan(spec.model_copy(update={"storage": spec.storage.model_copy(update={"codec": "none"}),
                                          "output": str(tmp_path / "x")}), PlanAssumptions()).jobs  # fmt: skip
    assert any("behind relu are mostly exact zeros" in note for note in job.notes)
    neurons = {codec: store.read_rows(hooks[1], 0, store.num_rows) for codec, store in stores.items()}
    np.testing.assert_array_equal(neurons["none"], neurons["sparse"])
    zeros = float((neurons["none"] == 0).mean())
    assert 0.3 < zeros < 0.7
    sizes = {}
    for codec in stores:
        objects = (tmp_path / codec / "store" / "activations" / hooks[1]).rglob("c/*/*")
        sizes[codec] = sum(one.stat().st_size for one in objects)
    assert sizes["sparse"] / sizes["none"] == pytest.approx(1 - zeros + 1 / 32, abs=0.05)
    # The stream of the encoder, each context alone.
    store = stores["none"]
    ids = torch.from_numpy(store.tokens().token_id.astype(np.int64))
    rows = store.read_values(hooks[0], 0, store.num_rows)
    for start, stop in contexts(store)[:6]:
        with torch.no_grad():
            embedded = network.shared(ids[None, start:stop])
            mid = network.encoder.block[0].layer[0](embedded)[0][0]
        np.testing.assert_allclose(rows[start:stop], mid.numpy(), rtol=1e-4, atol=1e-5)


def test_a_masked_models_rows_do_not_see_padding(model: Path, corpus: Path, tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=2, vocab_size=258, intermediate_size=24,
                        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    network = BertForMaskedLM(config).eval()
    network.save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "bert")
    hook = "blocks.1.hook_normalized_resid_post"
    for kind in ("masked_lm", "encoder"):  # the checkpoint has no pooler, which an encoder would have
        spec = small_spec(tmp_path / "bert", corpus, tmp_path / kind / "store", hook_points=[hook],
                          tokens={"packing": {"mode": "document", "long_documents": "split"}},
                          model={"kind": kind}, storage={"dtype": "float32"})  # fmt: skip
        store = collected(spec)
        ids, rows = store.tokens().token_id.astype(np.int64), store.read_values(hook, 0, store.num_rows)
        spans = contexts(store)
        assert len({stop - start for start, stop in spans}) > 2
        for start, stop in spans:
            with torch.no_grad():
                alone = network.bert(torch.from_numpy(ids[None, start:stop])).last_hidden_state[0]
            np.testing.assert_allclose(rows[start:stop], alone.numpy(), rtol=1e-4, atol=1e-5)


def test_an_encoder_that_lacks_weights_is_refused(model: Path, corpus: Path, tmp_path: Path) -> None:
    OPTConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40, ffn_dim=24, num_attention_heads=2,
              word_embed_proj_dim=16).save_pretrained(tmp_path)  # fmt: skip
    save_file({"decoder.embed_tokens.weight": torch.zeros(40, 16)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks \d+ of the weights"):
        load_model(ModelSpec(path=str(tmp_path), kind="encoder", dtype="float32", device="cpu"))
    with pytest.raises(ModelError, match="has no head"):
        load_model(ModelSpec(path=str(model), kind="encoder", dtype="float32", device="cpu"), with_head=True)
    assert load_tokenizer(str(model)).vocab_size == 258
