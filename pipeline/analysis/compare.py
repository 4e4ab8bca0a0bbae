"""Two trained dictionaries on the same rows: do they know the same features?

1. eligible rows of the first one's store, a chunk at a time in a seeded order, until there are enough
2. both dictionaries encode them, each from its own store of the same token table
3. latents are paired by activation, see ``universality``
4. where tokens can be printed, pairs that stand for no concept are left out as well
5. SVCCA and RSA of the pairs' decoder rows beside shuffled pairs; MMCS both ways where the spaces are the same
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.analysis.universality import (
    Compared,
    Pairs,
    best_pairs,
    compare,
    conceptual,
    one_to_one,
    rsa,
    strongest_tokens,
    svcca,
)
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.similarity import mmcs
from pipeline.order.eligible import scan
from pipeline.store.joined import AnyStore
from schemas.errors import HookPointError, MismatchError, SpecError, nearest
from schemas.train import RowFilter

BLOCK_ROWS = 2048
LISTED_PAIRS = 100
MAX_COMPARED_PAIRS = 2000
"""RSA takes pairs * pairs numbers for every shuffle; of more pairs, those of greatest correlation are compared."""


Pieces = Callable[[list[int]], list[str]]
"""Token ids -> the text of each."""


@dataclass(frozen=True)
class Side:
    """A dictionary and where its sources are stored."""

    dictionary: Dictionary
    store: AnyStore


def compare_dictionaries(
    first: Side,
    second: Side,
    *,
    max_rows: int = 100_000,
    above: float = 0.1,
    num_shuffles: int = 200,
    seed: int = 0,
    pieces: Pieces | None = None,
) -> dict[str, Any]:
    """Figures as JSON values.

    ``rows``; ``paired``: latents of the second that have a partner in the first; ``one_to_one``: pairs that remain
    with a Pearson r greater than ``above``, each latent once; ``correlation``: their mean r; ``svcca`` and ``rsa`` of
    their decoder rows (``observed, null_mean, null_deviation, effect, p_value``), None for fewer than three pairs;
    ``concepts``: ``one_to_one, correlation, svcca, rsa`` of those pairs alone whose strongest tokens are words or
    numbers and have one in common, None without ``pieces``; ``mmcs``: mean of the largest cosines from first to second
    and back, None where targets differ; ``pairs``: the best (``first, second, correlation``).

    Raises:
        MismatchError: the stores are of different token tables.
        HookPointError: a store lacks a source.
        SpecError: no rows are eligible.
    """
    if first.store.table_fingerprint != second.store.table_fingerprint:
        raise MismatchError(
            f"{first.store.url} and {second.store.url} are of different token tables: row r of one is not row r of "
            "the other. Collect one of the models over the other's table (tokens.output)."
        )
    for side in (first, second):
        _require_sources(side)
    chunks = _chosen_rows(first, second, max_rows=max_rows, seed=seed)

    def codes() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in chunks:
            yield _codes(first, rows), _codes(second, rows)

    def similarities(pairs: Pairs) -> dict[str, Any]:
        return _similarities(first, second, pairs, num_shuffles=num_shuffles, seed=seed)

    pairs = best_pairs(codes)
    kept = one_to_one(pairs, above=above)
    concepts = None
    if pieces is not None:
        texts = [_strongest_texts(side, chunks, pieces) for side in (first, second)]
        meant = conceptual(kept, *texts)
        concepts = {"one_to_one": len(meant), **similarities(meant)}
    best = kept.where(_greatest(kept.correlation, LISTED_PAIRS))
    return {
        "rows": sum(len(rows) for rows in chunks),
        "paired": len(pairs),
        "one_to_one": len(kept),
        **similarities(kept),
        "concepts": concepts,
        "mmcs": _mmcs(first.dictionary, second.dictionary),
        "pairs": [
            {"first": int(a), "second": int(b), "correlation": float(r)}
            for a, b, r in sorted(
                zip(best.first, best.second, best.correlation, strict=True), key=lambda pair: -float(pair[2])
            )
        ],
    }


def _similarities(first: Side, second: Side, pairs: Pairs, *, num_shuffles: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"correlation": float(pairs.correlation.mean()) if len(pairs) else None}
    best = pairs.where(_greatest(pairs.correlation, MAX_COMPARED_PAIRS))
    first_PD, second_PD = _directions(first, best.first), _directions(second, best.second)
    for name, similarity in (("svcca", svcca), ("rsa", rsa)):
        found[name] = None
        if len(best) >= 3:
            found[name] = _as_json(compare(first_PD, second_PD, similarity, num_shuffles=num_shuffles, seed=seed))
    return found


def _directions(side: Side, latents: torch.Tensor) -> torch.Tensor:
    return side.dictionary.decoder.detach().cpu()[latents].float()


def _strongest_texts(side: Side, chunks: list[npt.NDArray[np.int64]], pieces: Pieces) -> list[list[str]]:
    """For each latent the texts of its strongest tokens."""

    def coded() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in chunks:
            lowest = int(rows.min())
            ids = side.store.tokens(lowest, int(rows.max()) + 1).token_id
            yield _codes(side, rows), torch.from_numpy(ids[rows - lowest])

    return [pieces(tokens) for tokens in strongest_tokens(coded())]


def _chosen_rows(first: Side, second: Side, *, max_rows: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Row ids in blocks: without special tokens and first positions, which every dictionary knows."""
    eligible = scan(first.store, list(first.dictionary.d_source), RowFilter(), "all")
    shared = min(first.store.num_rows, second.store.num_rows)
    blocks: list[npt.NDArray[np.int64]] = []
    left = max_rows
    for chunk in np.random.default_rng(seed).permutation(len(eligible.counts)):
        rows = eligible.rows_of(int(chunk))
        rows = rows[rows < shared][:left]
        left -= len(rows)
        blocks += [rows[at : at + BLOCK_ROWS] for at in range(0, len(rows), BLOCK_ROWS)]
        if left == 0:
            break
    if not blocks:
        raise SpecError(f"{first.store.url} and {second.store.url} share no rows but special tokens")
    return blocks


@torch.no_grad()
def _codes(side: Side, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    points = side.dictionary.d_source
    acts = {point: torch.from_numpy(side.store.gather_values(point, rows)) for point in points}
    return side.dictionary.codes_dense(side.dictionary.join_sources(acts)).cpu()


def _require_sources(side: Side) -> None:
    for point in side.dictionary.d_source:
        if point not in side.store.hook_points:
            raise HookPointError(
                f"dictionary {side.dictionary.spec.name!r} reads {point!r}, which the store at {side.store.url} does "
                f"not have{nearest(point, side.store.hook_points)} It has: {sorted(side.store.hook_points)}"
            )


def _greatest(values: torch.Tensor, count: int) -> torch.Tensor:
    kept = torch.zeros(len(values), dtype=torch.bool)
    kept[torch.argsort(values, descending=True, stable=True)[:count]] = True
    return kept


def _mmcs(first: Dictionary, second: Dictionary) -> dict[str, float] | None:
    if first.d_target != second.d_target:
        return None
    a, b = first.decoder.detach().cpu(), second.decoder.detach().cpu()
    return {"first_to_second": mmcs(a, b), "second_to_first": mmcs(b, a)}


def _as_json(one: Compared) -> dict[str, float]:
    return {
        "observed": one.observed,
        "null_mean": one.null_mean,
        "null_deviation": one.null_deviation,
        "effect": one.effect,
        "p_value": one.p_value,
    }
