"""Statistics of one hook point that merge exactly: measured per unit, added up into the manifest.

Mean and squared deviations follow Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances" (1979), equations 1.5: with delta = mean_b - mean_a,
    mean = mean_a + delta * n_b / n,   M2 = M2_a + M2_b + delta^2 * n_a * n_b / n.
Norms are kept as a histogram of fixed logarithmic bins, 16 to the octave, so quantiles merge by addition and are right
to 2.2 % (half a bin).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import reduce

import numpy as np
import numpy.typing as npt

from pipeline.store.words import Words, to_float32
from schemas.fields import Dtype
from schemas.store import HookStatistics, Quantiles

Vector = npt.NDArray[np.float64]

BINS_PER_OCTAVE = 16
ZERO_BIN = -10000
_BLOCK_ROWS = 1024


def measure(words: Words, dtype: Dtype) -> HookStatistics:
    """Of words [T, D]. Rows with a NaN or an infinity are counted and left out of everything else."""
    blocks = (words[start : start + _BLOCK_ROWS] for start in range(0, len(words), _BLOCK_ROWS))
    return merge_all((_measure_block(block, dtype) for block in blocks), width=words.shape[1])


def merge(a: HookStatistics, b: HookStatistics) -> HookStatistics:
    """Of the rows of both; the channels must be the same."""
    count = a.count + b.count
    mean_a, mean_b = np.array(a.mean), np.array(b.mean)
    delta = mean_b - mean_a
    share = b.count / count if count else 0.0
    mean = mean_a + delta * share
    m2 = np.array(a.m2) + np.array(b.m2) + delta * delta * (a.count * share)
    return HookStatistics(
        count=count,
        mean=mean.tolist(),
        m2=m2.tolist(),
        norm_sum=a.norm_sum + b.norm_sum,
        square_norm_sum=a.square_norm_sum + b.square_norm_sum,
        norms=Quantiles(counts=_sorted(Counter(a.norms.counts) + Counter(b.norms.counts))),
        num_nan=a.num_nan + b.num_nan,
        num_inf=a.num_inf + b.num_inf,
    )


def merge_all(parts: Iterable[HookStatistics], *, width: int) -> HookStatistics:
    """Merged from left to right, so that equal parts in equal order give equal bits. No parts: no rows, D = width."""
    return reduce(merge, parts, nothing(width))


def nothing(width: int) -> HookStatistics:
    """Of no rows with D = width."""
    zeros = [0.0] * width
    return HookStatistics(count=0, mean=zeros, m2=zeros, norm_sum=0.0, square_norm_sum=0.0, norms=Quantiles(counts={}))


def mean_norm(statistics: HookStatistics) -> float:
    """Mean L2 norm of the rows; NaN of no rows."""
    return statistics.norm_sum / statistics.count if statistics.count else math.nan


def rms_norm(statistics: HookStatistics) -> float:
    """Root of the mean squared L2 norm; NaN of no rows."""
    return math.sqrt(statistics.square_norm_sum / statistics.count) if statistics.count else math.nan


def quantile_norm(statistics: HookStatistics, share: float) -> float:
    """The norm below which ``share`` (0 to 1) of the rows lie, geometrically within its bin; NaN of no rows."""
    if not statistics.count:
        return math.nan
    wanted, below = share * statistics.count, 0
    for place, count in sorted(statistics.norms.counts.items()):
        if below + count >= wanted and count:
            inside = (wanted - below) / count
            return 0.0 if place == ZERO_BIN else 2.0 ** ((place + inside) / BINS_PER_OCTAVE)
        below += count
    raise AssertionError("the bins hold every counted row")


def median_norm(statistics: HookStatistics) -> float:
    """The median L2 norm, right to 2.2 %."""
    return quantile_norm(statistics, 0.5)


def standard_deviation(statistics: HookStatistics) -> Vector:
    """[D] population standard deviation of each channel; NaN of no rows."""
    return np.sqrt(np.array(statistics.m2) / (statistics.count or math.nan))


def _measure_block(words: Words, dtype: Dtype) -> HookStatistics:
    values = to_float32(words, dtype).astype(np.float64)
    is_nan = np.isnan(values).any(axis=1)
    is_inf = np.isinf(values).any(axis=1) & ~is_nan
    if is_nan.any() or is_inf.any():
        values = values[~(is_nan | is_inf)]
    if not len(values):
        empty = nothing(words.shape[1])
        return empty.model_copy(update={"num_nan": int(is_nan.sum()), "num_inf": int(is_inf.sum())})
    squares = np.einsum("td,td->t", values, values)
    norms = np.sqrt(squares)
    mean = values.mean(axis=0)
    values -= mean
    return HookStatistics(
        count=len(values),
        mean=mean.tolist(),
        m2=np.einsum("td,td->d", values, values).tolist(),
        norm_sum=float(norms.sum()),
        square_norm_sum=float(squares.sum()),
        norms=Quantiles(counts=_bins(norms)),
        num_nan=int(is_nan.sum()),
        num_inf=int(is_inf.sum()),
    )


def _bins(norms: Vector) -> dict[int, int]:
    places = np.full(len(norms), ZERO_BIN)
    positive = norms > 0
    places[positive] = np.floor(np.log2(norms[positive]) * BINS_PER_OCTAVE).astype(np.int64)
    return _sorted(Counter(places.tolist()))


def _sorted(counts: Counter[int]) -> dict[int, int]:
    return {place: counts[place] for place in sorted(counts)}
