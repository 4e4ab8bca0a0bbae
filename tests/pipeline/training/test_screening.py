"""The largest pre-activations, screened in fixed point, against the whole product."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dictionaries.codes import SparseCodes
from pipeline.training import fixed_point
from pipeline.training.fixed_point import NORM_LIMIT, PANEL, is_supported
from pipeline.training.screening import Screen

pytestmark = pytest.mark.skipif(not is_supported(), reason="this processor lacks AVX2, plain torch is used instead")


def one_by_one(work: Callable[[int], Any], count: int) -> list[Any]:
    return [work(index) for index in range(count)]


def side_by_side(work: Callable[[int], Any], count: int) -> list[Any]:
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(work, range(count)))


def problem(num_rows: int, num_latents: int, width: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num_rows, width, generator=generator)
    z[:, 0] *= 50  # a massive channel, as residual streams have
    encoder = torch.randn(num_latents, width, generator=generator) * torch.rand(num_latents, 1, generator=generator)
    return z, encoder, torch.randn(num_latents, generator=generator)


def require_largest(codes: SparseCodes, z: torch.Tensor, encoder: torch.Tensor, b_enc: torch.Tensor) -> None:
    pre = torch.addmm(b_enc.double(), z.double(), encoder.double().T)
    expected = torch.topk(pre, codes.values.shape[1], dim=1).values.relu()
    found = codes.values.double().sort(dim=1, descending=True).values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    active = codes.values > 0
    exact = pre.gather(1, codes.indices)[active]
    torch.testing.assert_close(codes.values.double()[active], exact, rtol=1e-4, atol=1e-4)
    for latents, on in zip(codes.indices, active, strict=True):
        assert len(set(latents[on].tolist())) == on.sum()


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(0, 120), num_latents=st.integers(1, 700), width=st.integers(1, 70), share=st.floats(0, 1),
    seed=st.integers(0, 2**20),
)  # fmt: skip
def test_the_largest_are_those_of_the_whole_product(
    num_rows: int, num_latents: int, width: int, share: float, seed: int
) -> None:
    given = problem(num_rows, num_latents, width, seed)
    codes = Screen(one_by_one).largest(*given, max(1, round(share * num_latents)))
    require_largest(codes, *given)


def test_of_tied_latents_the_lowest_are_kept() -> None:
    z, encoder, _ = problem(7, 10, 12)
    copies, k = 90, 40  # more copies than a row has room for candidates
    codes = Screen(one_by_one).largest(z, encoder.repeat_interleave(copies, 0), torch.full((10 * copies,), 1000.0), k)
    best = (z @ encoder.T).argmax(1)
    for latents, expected in zip(codes.indices, best, strict=True):
        assert latents.tolist() == list(range(expected * copies, expected * copies + k))


def test_rows_of_zeros_and_latents_below_zero_give_no_code() -> None:
    z, encoder, b_enc = problem(7, 100, 12)
    z[3] = 0
    codes = Screen(one_by_one).largest(z, encoder, -b_enc.abs(), 5)
    assert not codes.values[3].any()
    require_largest(codes, z, encoder, -b_enc.abs())
    assert not Screen(one_by_one).largest(z, encoder, torch.full((100,), -1e6), 5).values.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    z, encoder, b_enc = problem(7, 100, 12)
    z[3, 5] = bad
    codes = Screen(one_by_one).largest(z, encoder, b_enc, 5)
    assert codes.values[3].isnan().all()
    assert codes.values[[0, 1, 2, 4, 5, 6]].isfinite().all()
    for broken in (1, 2):
        given = problem(7, 100, 12)
        given[broken].view(-1)[7] = bad
        assert Screen(one_by_one).largest(*given, 5).values.isnan().all()


def test_what_lies_above_a_bound() -> None:
    z, encoder, b_enc = problem(200, 300, 40)
    pre = torch.addmm(b_enc, z, encoder.T).reshape(-1)
    for least in (1e-30, 5.0, 1e9):
        values, places = Screen(side_by_side).above(z, encoder, b_enc, least)
        torch.testing.assert_close(values, pre[places], rtol=1e-4, atol=1e-4)
        assert (places.diff() > 0).all()
        missing = torch.ones_like(pre, dtype=torch.bool)
        missing[places] = False
        assert (pre[missing] < least + 1e-4).all()
        assert (values >= least).all()
    assert len(Screen(side_by_side).above(z[:0], encoder, b_enc, 1.0)[0]) == 0


def test_results_do_not_depend_on_threads_or_on_other_rows() -> None:
    z, encoder, b_enc = problem(250, 500, 33)
    whole = Screen(one_by_one).largest(z, encoder, b_enc, 20)
    threaded = Screen(side_by_side).largest(z, encoder, b_enc, 20)
    alone = Screen(one_by_one).largest(z[101:102].clone(), encoder, b_enc, 20)
    assert torch.equal(whole.values, threaded.values)
    assert torch.equal(whole.indices, threaded.indices)
    assert torch.equal(whole.values[101:102], alone.values)
    assert torch.equal(whole.indices[101:102], alone.indices)


def test_memory_is_kept_between_calls_of_other_shapes() -> None:
    screen = Screen(one_by_one)
    for shape in ((100, 400, 33), (7, 20, 3), (100, 400, 33), (300, 900, 70)):
        given = problem(*shape)
        require_largest(screen.largest(*given, 10), *given)


def test_sums_of_words_cannot_overflow() -> None:
    """Rows at the limit, all in one channel or spread evenly, against themselves: the largest sums that there are."""
    for width in (1, 2, 4096):
        rows = np.ones((PANEL, width), np.float32)
        words = np.empty((PANEL, width + width % 2), np.int16)
        units, norms, losses = (np.empty(PANEL, np.float32) for _ in range(3))
        fixed_point.write_words(rows, words, units, norms, losses, 0, PANEL)
        square = (words.astype(np.int64) ** 2).sum(1)
        assert (square < 2**31).all()
        assert (np.abs(words * units[:, None] - np.pad(rows, ((0, 0), (0, width % 2)))) <= 0.51 * units[:, None]).all()
        if width > 2:
            assert (square > 0.9 * NORM_LIMIT**2).all()
