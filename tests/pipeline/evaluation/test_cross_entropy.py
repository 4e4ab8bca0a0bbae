from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.folder import load_dictionary
from pipeline.evaluation.belonging import spliced_model_spec
from pipeline.evaluation.contexts import choose_contexts, read_tokens
from pipeline.evaluation.cross_entropy import CrossEntropy, context_batches, spliced_cross_entropies
from pipeline.evaluation.rows import are_eligible, eligible_rows
from pipeline.evaluation.trained import Trained
from pipeline.models.load import load_model
from pipeline.store.reader import Store
from schemas.errors import DataError

RESID = "blocks.1.hook_resid_post"


def load(flow: Any, name: str) -> Trained:
    dictionary = load_dictionary(f"{flow.dictionaries}/{name}")
    assert dictionary.record is not None
    return Trained(dictionary, dictionary.record)


def run(flow: Any, trained: Trained, *, num_tokens: int = 300, batch_tokens: int = 128) -> CrossEntropy:
    (found,) = run_all(flow, [trained], num_tokens=num_tokens, batch_tokens=batch_tokens).values()
    return found


def run_all(flow: Any, rivals: list[Trained], *, num_tokens: int, batch_tokens: int) -> dict[str, CrossEntropy]:
    trained = rivals[0]
    store = Store.open(flow.store)
    contexts = choose_contexts(store, num_rows=num_tokens, split="held_out", seed=3)
    tokens = read_tokens(store, contexts)
    assert tokens.held_out.all()
    eligible = are_eligible(eligible_rows(store, trained), tokens.row)
    batches = list(context_batches(tokens, contexts, eligible, batch_tokens=batch_tokens))
    means = {target: torch.full((width,), 0.25) for target, width in trained.record.d_target.items()}
    loaded = load_model(spliced_model_spec(store), with_head=True)
    return spliced_cross_entropies(loaded, rivals, batches, means, count=lambda _: None)


def changed(
    trained: Trained, variant: str, kept: torch.Tensor, acts: torch.Tensor, source: torch.Tensor
) -> torch.Tensor:
    """One context's target activations [1, L, D] in a variant."""
    (name,), (target,) = trained.record.d_source, trained.record.d_target
    guess = trained.dictionary.reconstruct({name: source[0][kept]})[target]
    new = acts.clone()
    new[0][kept] = {
        "clean": acts[0][kept],
        "spliced": guess,
        "mean": torch.full_like(guess, 0.25),
        "zero": torch.zeros_like(guess),
    }[variant]
    return new


def by_hand(flow: Any, trained: Trained, *, num_tokens: int = 300) -> dict[str, float]:
    """The same with nothing but transformers and hooks, one context at a time."""
    store = Store.open(flow.store)
    model = AutoModelForCausalLM.from_pretrained(flow.collect.model.path, dtype=torch.float32).eval()
    is_sae = RESID in trained.record.d_target
    place = model.model.layers[1] if is_sae else model.model.layers[1].mlp
    specials = list(store.record.specials.values())
    nats = dict.fromkeys(("clean", "spliced", "mean", "zero"), 0.0)
    count = 0
    for start, stop in choose_contexts(store, num_rows=num_tokens, split="held_out", seed=3):
        ids = torch.from_numpy(store.tokens(start, stop).token_id.astype(np.int64))
        kept = torch.tensor([at > 0 and int(one) not in specials for at, one in enumerate(ids)])
        for variant in nats:

            def hook(_: Any, args: Any, output: Any, variant: str = variant, kept: torch.Tensor = kept) -> Any:
                acts = output[0] if isinstance(output, tuple) else output
                new = changed(trained, variant, kept, acts, acts if is_sae else args[0])
                return (new, *output[1:]) if isinstance(output, tuple) else new

            handle = place.register_forward_hook(hook)
            with torch.no_grad():
                logits = model(input_ids=ids[None]).logits[0]
            handle.remove()
            nats[variant] += float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum"))
        count += len(ids) - 1
    return {variant: total / count for variant, total in nats.items()} | {"count": count}


@pytest.mark.parametrize("name", ["sae", "transcoder", "dense"])
def test_every_variant_equals_one_made_by_hand(flow: Any, name: str) -> None:
    trained = load(flow, name)
    ours, theirs = run(flow, trained), by_hand(flow, trained)
    for variant in ("clean", "spliced", "mean", "zero"):
        assert getattr(ours, variant) == pytest.approx(theirs[variant], abs=2e-5), variant
    assert ours.num_tokens == theirs["count"]
    assert ours.recovered == pytest.approx(
        (theirs["mean"] - theirs["spliced"]) / (theirs["mean"] - theirs["clean"]), abs=1e-3
    )
    assert 0 <= ours.splice_check <= 1e-5


def test_batches_do_not_change_the_result(flow: Any) -> None:
    trained = load(flow, "sae")
    one, many = run(flow, trained, batch_tokens=100_000), run(flow, trained, batch_tokens=1)
    assert one.spliced == pytest.approx(many.spliced, abs=2e-5)
    assert one.num_tokens == many.num_tokens
    assert one.num_contexts == many.num_contexts


def test_dictionaries_of_one_target_share_a_run(flow: Any) -> None:
    sae, dense = load(flow, "sae"), load(flow, "dense")
    both = run_all(flow, [sae, dense], num_tokens=300, batch_tokens=128)
    assert both == {"sae": run(flow, sae), "dense": run(flow, dense)}


class Wrong(Trained):
    """Predicts numbers from which the splice cannot come back."""

    def apply(self, acts: Any) -> Any:
        firings, predicted = super().apply(acts)
        return firings, {target: value * 1e9 for target, value in predicted.items()}


def test_a_failed_splice_check_refuses_the_figures(flow: Any) -> None:
    sae = load(flow, "sae")
    with pytest.raises(DataError, match=r"splice check of dictionary 'sae' .* nats a token, expected at most 1e-05"):
        run(flow, Wrong(sae.dictionary, sae.record))


def test_a_perfect_dictionary_recovers_everything(flow: Any) -> None:
    sae = load(flow, "sae")
    width = sae.record.d_source[RESID]
    spec = sae.record.spec.model_copy(
        update={"num_latents": 2 * width, "activation": sae.record.spec.activation.model_copy(update={"k": 2 * width})}
    )
    perfect = Dictionary(spec, {RESID: width}, {RESID: width}, {RESID: 1.0})
    eye = torch.eye(width)
    with torch.no_grad():
        perfect.encoder.copy_(torch.cat([eye, -eye]))
        perfect.decoder.copy_(torch.cat([eye, -eye]))
    found = run(flow, Trained(perfect.requires_grad_(False), sae.record.model_copy(update={"spec": spec})))
    assert found.spliced == pytest.approx(found.clean, abs=1e-5)
    assert found.recovered == pytest.approx(1, abs=1e-4)


def test_recovered_has_no_value_where_ablation_does_no_harm() -> None:
    figures = CrossEntropy(2.0, 2.1, 1.9, 3.0, num_tokens=5, num_contexts=1, splice_check=0.0)
    assert figures.recovered is None
    assert figures.recovered_zero == pytest.approx(0.9)
