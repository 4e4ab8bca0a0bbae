"""Which rows an epoch is made of, against the rule written row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.order.eligible import EligibleRows, scan
from pipeline.order.keys import Split
from pipeline.store.reader import Store
from pipeline.store.words import to_float32
from schemas.errors import DivergenceError
from schemas.train import RowFilter

KEEP_ALL = RowFilter(exclude_specials=False, exclude_positions=[])


def rows_of(eligible: EligibleRows) -> list[int]:
    return np.concatenate([eligible.rows_of(chunk) for chunk in range(len(eligible.counts))]).tolist()


def by_hand(facts: Any, rows: RowFilter, split: Split) -> list[int]:
    tokens = facts.tokens
    return [
        r
        for r in range(len(tokens))
        if (split == "all" or tokens.held_out[r] == (split == "held_out"))
        and not (rows.exclude_specials and tokens.token_id[r] in (0, 3))
        and tokens.position[r] not in rows.exclude_positions
    ]


@pytest.mark.parametrize("split", ["train", "held_out", "all"])
@pytest.mark.parametrize(
    "rows",
    [RowFilter(), KEEP_ALL, RowFilter(exclude_specials=False), RowFilter(exclude_positions=[1, 7, 99])],
    ids=["default", "all", "specials", "positions"],
)
def test_split_specials_and_positions(counted: Any, store: Store, rows: RowFilter, split: Split) -> None:
    eligible = scan(store, ["resid"], rows, split)
    assert rows_of(eligible) == by_hand(counted, rows, split)
    assert eligible.num_rows == len(rows_of(eligible))


def test_the_rate_of_same_context_pairs(counted: Any, store: Store) -> None:
    eligible = scan(store, ["resid"], RowFilter(), "train")
    contexts = np.array(rows_of(eligible)) // 12
    same = contexts[:, None] == contexts[None, :]
    pairs = len(contexts) * (len(contexts) - 1)
    assert eligible.same_context_rate == pytest.approx((same.sum() - len(contexts)) / pairs, rel=1e-12)


def test_norm_outliers_of_any_hook_point_go(write_store: Callable[..., Any]) -> None:
    facts = write_store(spoil={17: 60.0, 100: 50.0})
    store = facts.open()
    norms = np.linalg.norm(to_float32(facts.words["mlp_out"], "bfloat16").astype(np.float64), axis=1)
    limit = 10 * np.median(norms)
    assert np.flatnonzero(norms > limit).tolist() == [17, 100]
    rows = RowFilter(exclude_specials=False, exclude_positions=[], max_norm_multiple=10)
    assert rows_of(scan(store, ["mlp_out"], rows, "all")) == [r for r in range(400) if r not in (17, 100)]
    assert len(rows_of(scan(store, ["mlp_out"], KEEP_ALL, "all"))) == 400
    both = rows_of(scan(store, ["resid", "mlp_out"], rows, "all"))
    assert 17 not in both
    assert 100 not in both


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_are_refused(write_store: Callable[..., Any], value: float) -> None:
    store = write_store(spoil={50: value}).open()
    with pytest.raises(DivergenceError, match=r"row 50 of .* at mlp_out: expected finite"):
        scan(store, ["mlp_out"], RowFilter(), "train")
    assert 50 in rows_of(scan(store, ["resid"], RowFilter(), "train"))
    filtered = rows_of(scan(store, ["mlp_out"], RowFilter(max_norm_multiple=100), "train"))
    assert 50 not in filtered
    assert len(filtered) > 250


def test_rows_that_are_left_out_anyway_need_not_be_finite(write_store: Callable[..., Any]) -> None:
    store = write_store(spoil={24: float("inf")}).open()  # position 0
    assert 24 not in rows_of(scan(store, ["mlp_out"], RowFilter(), "train"))


def test_a_huge_finite_row_is_finite(write_store: Callable[..., Any]) -> None:
    store = write_store(spoil={50: 3e38, 62: float("inf")}).open()
    with pytest.raises(DivergenceError, match="row 62 "):
        scan(store, ["mlp_out"], RowFilter(), "train")
