"""Two trained dictionaries on the same rows: do they know the same features?

1. eligible rows of the first one's store, a chunk at a time in a seeded order, until there are enough
2. both dictionaries encode them, each from its own store of the same token table
3. latents are paired by activation, see ``universality``
4. SVCCA and RSA of the pairs' decoder rows beside shuffled pairs; MMCS both ways where the spaces are the same
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.analysis.universality import Compared, best_pairs, compare, one_to_one, rsa, svcca
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


@dataclass(frozen=True)
class Side:
    """A dictionary and where its sources are stored."""

    dictionary: Dictionary
    store: AnyStore


def compare_dictionaries(
    first: Side, second: Side, *, max_rows: int = 100_000, above: float = 0.1, num_shuffles: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Figures as JSON values.

    ``rows``; ``paired``: latents of the second that have a partner in the first; ``one_to_one``: pairs that remain
    with a Pearson r greater than ``above``, each latent once; ``correlation``: their mean r; ``svcca`` and ``rsa`` of
    their decoder rows (``observed, null_mean, null_deviation, effect, p_value``), None for fewer than three pairs;
    ``mmcs``: mean of the largest cosines from first to second and back, None where targets differ; ``pairs``: the best
    (``first, second, correlation``).

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

    pairs = best_pairs(codes)
    kept = one_to_one(pairs, above=above)
    best = kept.where(_greatest(kept.correlation, MAX_COMPARED_PAIRS))
    decoders = first.dictionary.decoder[best.first].float(), second.dictionary.decoder[best.second].float()
    found: dict[str, Any] = {
        "rows": sum(len(rows) for rows in chunks),
        "paired": len(pairs),
        "one_to_one": len(kept),
        "correlation": float(kept.correlation.mean()) if len(kept) else None,
        "svcca": None,
        "rsa": None,
        "mmcs": _mmcs(first.dictionary, second.dictionary),
        "pairs": [
            {"first": int(a), "second": int(b), "correlation": float(r)}
            for a, b, r in sorted(
                zip(kept.first, kept.second, kept.correlation, strict=True), key=lambda pair: -float(pair[2])
            )[:LISTED_PAIRS]
        ],
    }
    if len(best) >= 3:
        for name, similarity in (("svcca", svcca), ("rsa", rsa)):
            found[name] = _as_json(compare(*decoders, similarity, num_shuffles=num_shuffles, seed=seed))
    return found


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
    return side.dictionary.codes_dense(side.dictionary.join_sources(acts))


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
    a, b = first.decoder.detach(), second.decoder.detach()
    return {"first_to_second": mmcs(a, b), "second_to_first": mmcs(b, a)}


def _as_json(one: Compared) -> dict[str, float]:
    return {
        "observed": one.observed,
        "null_mean": one.null_mean,
        "null_deviation": one.null_deviation,
        "effect": one.effect,
        "p_value": one.p_value,
    }
