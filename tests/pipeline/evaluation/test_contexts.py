from __future__ import annotations

import numpy as np

from pipeline.evaluation.contexts import context_bounds


def test_contexts_begin_at_position_0() -> None:
    position = np.array([0, 1, 2, 0, 1, 0, 1, 2], dtype=np.int32)
    assert context_bounds(position, 10, ends=True) == [(10, 13), (13, 15), (15, 18)]


def test_a_context_that_may_go_on_is_left_out() -> None:
    position = np.array([5, 6, 0, 1, 0, 1], dtype=np.int32)
    assert context_bounds(position, 0, ends=False) == [(2, 4)]
    assert context_bounds(position[:2], 0, ends=True) == []
