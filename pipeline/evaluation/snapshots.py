"""Snapshots of a training in an evaluation: how each predicts, and which latents of a crosscoder come when.

1. count unigrams and bigrams of the store's tokens                          analysis.ngrams
2. run each snapshot's model over a few contexts: loss, KL to both           analysis.phases
3. run the crosscoder over rows: what each latent fires on, and since when   analysis.hierarchy
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from pipeline.analysis import trajectories
from pipeline.analysis.hierarchy import FiringSums, hierarchy_figures, repeats
from pipeline.analysis.ngrams import Ngrams
from pipeline.analysis.phases import phase_of
from pipeline.evaluation import belonging
from pipeline.evaluation.contexts import choose_contexts, read_tokens
from pipeline.evaluation.counting import Counter
from pipeline.evaluation.rows import are_eligible
from pipeline.evaluation.trained import Trained
from pipeline.models.load import load_model
from pipeline.order.eligible import EligibleRows
from pipeline.store.joined import AnyStore, JoinedStore
from pipeline.store.reader import Store
from pipeline.store.rows import TokenRows
from schemas.errors import SpecError
from schemas.evaluate import EvaluateSpec, SnapshotsSpec
from schemas.snapshots import SnapshotSpec


def require_snapshots(store: AnyStore, spec: EvaluateSpec) -> None:
    """Refuse a store that is not of several models with a head.

    Raises:
        SpecError: naming the store.
    """
    if spec.snapshots is None:
        return
    if not isinstance(store, JoinedStore):
        raise SpecError(
            f"snapshots compares models, and {store.url} is of one; evaluate on a group of stores, or leave snapshots "
            "out"
        )
    kinds = {name: belonging.model_spec(one).kind for name, one in store.stores.items()}
    if others := {name: kind for name, kind in kinds.items() if kind != "causal_lm"}:
        raise SpecError(f"snapshots needs models of kind causal_lm, whose predictions it compares; got {others}")


def snapshot_figures(store: JoinedStore, asked: SnapshotsSpec, *, seed: int, count: Counter) -> dict[str, Any]:
    """JSON: entropies of the text, and for each snapshot, in the order of the group, loss and KL in nats a token."""
    count.begin("n-grams", store.num_rows)
    ngrams = Ngrams.of(_counted(store, count), 1 + _greatest_token(store))
    count.end()
    contexts = choose_contexts(store, num_rows=asked.tokens, split="all", seed=seed)
    tokens = read_tokens(store, contexts)
    edges = np.cumsum([stop - start for start, stop in contexts])[:-1]
    texts = np.split(tokens.token_id, edges)
    count.begin("snapshots", len(store.stores) * len(tokens))
    found = []
    for name, one in store.stores.items():
        loaded = load_model(belonging.spliced_model_spec(one), with_head=True)
        belonging.require_model(one, loaded.identity)
        phase = phase_of(loaded, texts, ngrams)
        found.append(
            {
                "name": name,
                "step": _step(name, one),
                "loss": phase.loss,
                "kl_unigram": phase.to_unigram,
                "kl_bigram": phase.to_bigram,
            }
        )
        count(len(tokens))
    count.end()
    unigram, bigram = ngrams.entropies
    return {"tokens": len(tokens), "entropy_unigram": unigram, "entropy_bigram": bigram, "snapshots": found}


@torch.no_grad()
def latent_kinds(
    store: AnyStore, trained: Trained, eligible: EligibleRows, asked: SnapshotsSpec, *, seed: int, count: Counter
) -> dict[str, Any] | None:
    """``hierarchy_figures`` of a crosscoder; None of a dictionary of one target."""
    parts = trajectories.decoder_parts(trained.dictionary)
    if len(parts) < 2:
        return None
    contexts = choose_contexts(store, num_rows=asked.rows, split="all", seed=seed)
    tokens = read_tokens(store, contexts)
    ids = tokens.token_id.astype(np.int64)
    context = np.repeat(np.arange(len(contexts)), [stop - start for start, stop in contexts])
    previous = np.concatenate([[0], ids[:-1]])
    repeated = repeats(ids, context, asked.repeat_tokens)
    sums = FiringSums(trained.dictionary.num_latents, 1 + int(ids.max()))
    places = np.flatnonzero(are_eligible(eligible, tokens.row) & (tokens.position > 0))
    count.begin(f"kinds of latents of {trained.name}", len(places))
    for start in range(0, len(places), trained.batch_rows):
        part = places[start : start + trained.batch_rows]
        rows = tokens.row[part]
        acts = {hook: torch.from_numpy(store.gather_values(hook, rows)) for hook in trained.record.d_source}
        firings = trained.encode(acts)
        sums.add(
            firings.latent.cpu().numpy(),
            firings.value.cpu().numpy(),
            firings.row.cpu().numpy(),
            token=ids[part],
            previous=previous[part],
            repeats=repeated[part],
        )
        count(len(part))
    count.end()
    norms_FH = trajectories.norms(parts).cpu()
    return hierarchy_figures(sums.shares(), trajectories.peak_index(norms_FH), trajectories.onset(norms_FH))


def with_kinds(figures: dict[str, Any], kinds: Mapping[str, Any] | None) -> dict[str, Any]:
    """A dictionary's figures with what its latents fire on."""
    return figures if kinds is None else figures | {"crosscoder": figures["crosscoder"] | {"hierarchy": kinds}}


def _units(store: AnyStore) -> Iterator[TokenRows]:
    shard_rows = store.record.shard_rows
    for start in range(0, store.num_rows, shard_rows):
        yield store.tokens(start, min(start + shard_rows, store.num_rows))


def _counted(store: AnyStore, count: Counter) -> Iterator[TokenRows]:
    for tokens in _units(store):
        yield tokens
        count(len(tokens))


def _greatest_token(store: AnyStore) -> int:
    return max(int(tokens.token_id.max()) for tokens in _units(store))


def _step(name: str, store: Store) -> int | None:
    model = belonging.model_spec(store)
    return SnapshotSpec(path=model.path, revision=model.revision).step_as(name)
