"""Which examples are drawn, where marks go, and which thresholds and figures follow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.interpretation.chat_explainer import highlighted, read_answer
from pipeline.interpretation.examples import SILENT, dealt_out, draw, mark
from pipeline.interpretation.lookup import best_threshold, fitted
from pipeline.interpretation.scores import classified, correlation
from pipeline.interpretation.windows import Windows


def windows_of(num_windows: int, length: int, *, seed: int = 0) -> Windows:
    chance = np.random.default_rng(seed)
    rows = num_windows * length
    return Windows(
        np.arange(rows), chance.integers(0, 50, rows, dtype=np.int32), chance.random(rows) > 0.1,
        np.arange(0, rows + 1, length),
    )  # fmt: skip


def values_of(windows: Windows, share: float, *, seed: int = 1) -> np.ndarray:
    chance = np.random.default_rng(seed)
    on = (chance.random(len(windows.row)) < share) & windows.eligible
    return np.where(on, chance.random(len(on)) + 0.01, 0).astype(np.float32)


def test_examples_come_evenly_from_all_strengths() -> None:
    windows = windows_of(400, 8)
    value_T = values_of(windows, 0.05)
    activating, silent = draw(windows, value_T, number=22, quantiles=5, generator=np.random.default_rng(3))
    assert [sum(one.quantile == q for one in activating) for q in range(5)] == [5, 5, 4, 4, 4]
    peaks = np.sort(windows.greatest(value_T))[::-1]
    ranks = {float(peak): rank for rank, peak in enumerate(peaks)}
    num_on = int((peaks > 0).sum())
    for one in activating:
        assert ranks[float(one.value.max())] * 5 // num_on in (one.quantile, one.quantile - 1)
    assert len(silent) == 22
    assert all(one.quantile == SILENT and one.value.max() == 0 and one.eligible.any() for one in silent)


def test_fewer_examples_where_there_are_no_more() -> None:
    windows = windows_of(10, 8)
    value_T = np.zeros(80, dtype=np.float32)
    value_T[[3, 17]] = 1.0
    activating, silent = draw(windows, value_T, number=20, quantiles=4, generator=np.random.default_rng(0))
    assert (len(activating), len(silent)) == (2, 2)


@pytest.mark.parametrize("wrong_on", ["silent", "activating"])
def test_marks_are_right_or_wrong_and_as_many(wrong_on: str) -> None:
    windows = windows_of(300, 10)
    value_T = values_of(windows, 0.1)
    activating, silent = draw(windows, value_T, number=40, quantiles=4, generator=np.random.default_rng(0))
    marked = mark(activating, silent, wrong_on=wrong_on, generator=np.random.default_rng(1))  # type: ignore[arg-type]
    right, wrong = [one for one in marked if one.is_right], [one for one in marked if not one.is_right]
    assert len(right) == len(wrong) == 40
    for one in right:
        assert (one.example.value[one.marks] >= 0.3 * one.example.value.max()).all()
    usual = int(np.ceil(np.mean([one.marks.sum() for one in right])))
    for one in wrong:
        assert one.marks.sum() == usual
        assert (one.example.eligible[one.marks]).all()
        assert (one.example.value[one.marks] < 0.3 * max(one.example.value.max(), 1e-9)).all()
        assert one.example.is_active == (wrong_on == "activating")


def test_dealt_out_values_are_the_same_on_other_rows() -> None:
    windows = windows_of(50, 10)
    value_T = values_of(windows, 0.2)
    found = dealt_out(windows, value_T, np.random.default_rng(0))
    assert sorted(found) == sorted(value_T)
    assert not found[~windows.eligible].any()
    assert (found != value_T).any()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_the_threshold_is_the_best_of_all(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([float(score) for score, _ in pairs])
    truth = np.array([true for _, true in pairs])

    def balanced(threshold: float) -> float:
        said = scores > threshold
        shares = [(said == truth)[truth == kind].mean() for kind in (True, False) if (truth == kind).any()]
        return float(np.mean(shares))

    best = max(balanced(threshold) for threshold in [*np.arange(-3.5, 4), -np.inf, np.inf])
    assert balanced(best_threshold(scores, truth)) == pytest.approx(best)


def test_a_lookup_of_the_next_token_stays_within_its_window() -> None:
    windows = Windows(
        np.arange(6), np.array([0, 1, 2, 0, 2, 1], dtype=np.int32), np.ones(6, dtype=np.bool_), np.array([0, 3, 6])
    )
    scores = np.array([0.0, 0.0, 5.0], dtype=np.float32)
    value_T = np.array([0, 1, 0, 1, 0, 0], dtype=np.float32)  # on before a 2
    judge = fitted(scores, scores, windows, value_T, offset=1)
    assert judge.simulate(windows).tolist() == [0, 5, 0, 5, 0, 0]
    assert 0 < judge.token_threshold < 5


def test_figures_of_answers_by_hand() -> None:
    truth = [True, True, True, True, False, False]
    answers = [True, True, False, None, True, False]
    found = classified(truth, answers, [0, 0, 1, 1, -1, -1])
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (found["asked"], found["failed"]) == (6, 1)
    assert found["recall_by_quantile"] == [1.0, 0.0]
    nothing = classified([True, False], [None, None])
    assert nothing["accuracy"] is nothing["recall"] is None


def test_correlation_by_hand() -> None:
    a = np.array([1, 2, 3, 4], dtype=np.float32)
    assert correlation(a, 2 * a + 1) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, np.ones(4, dtype=np.float32)) is None
    # A mean of tenths is not quite a tenth.
    assert correlation(np.full(4, 0.1, dtype=np.float32), a) is None
    assert correlation(a[:0], a[:0]) is None


def test_marked_text_and_answers_of_a_chat() -> None:
    assert highlighted(["a", "b", "c", "d"], np.array([True, True, False, True])) == "<<ab>>c<<d>>"
    assert read_answer("I think [1, 0,1].", 3) == [True, False, True]
    assert read_answer("[1, 0]", 3) == [None] * 3
    assert read_answer("no", 2) == [None] * 2
