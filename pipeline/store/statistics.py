"""Statistics of one hook point that merge exactly: measured per unit, added up into the manifest.

Mean and squared deviations follow Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances" (1979), equations 1.5: with delta = mean_b - mean_a,
    mean = mean_a + delta * n_b / n,   M2 = M2_a + M2_b + delta^2 * n_a * n_b / n.
Within a block the mean is taken first and the deviations from it after, so a large mean costs no digits.

Norms are kept as a histogram of fixed logarithmic bins, 64 to the octave: merging is addition, and a quantile is right
to half a bin, 0.55 %. The rows of greatest norm are kept by themselves, exactly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain

import numpy as np
import numpy.typing as npt

from pipeline.store.parallel import MapBlocks
from pipeline.store.rows import TokenRows
from pipeline.store.words import Words, to_float32
from schemas.fields import Dtype
from schemas.store import HookStatistics, OutlierToken, Quantiles, Rounding

Vector = npt.NDArray[np.float64]

BINS_PER_OCTAVE = 64
ZERO_BIN = -10000
QUANTILE_ERROR = 2 ** (0.5 / BINS_PER_OCTAVE) - 1
"""Largest relative error of a quantile: the middle of a bin against its edge."""
_BLOCK_ELEMENTS = 2**17
"""Float64 elements at a time, 1 MiB: they stay in the cache from one pass over them to the next."""
_GROUP = 8
"""Blocks that a thread takes at once: handing over a single one would cost as much as measuring it."""


def measure(
    words: Words,
    dtype: Dtype,
    *,
    tokens: TokenRows | None = None,
    outlier_tokens: int = 0,
    each: MapBlocks = map,
) -> HookStatistics:
    """Of words [T, D]. Rows with a NaN or an infinity are counted and left out of everything else.

    ``outlier_tokens``: how many rows of greatest norm to name, which takes their ``tokens`` [T]. ``each`` maps over
    blocks of rows, which threads may share.
    """
    moments = _Moments.of_nothing(words.shape[1])
    size = max(1, _BLOCK_ELEMENTS // words.shape[1])
    norms, is_finite, num_nan = [np.empty(0)], [np.empty(0, dtype=np.bool_)], 0
    groups = [words[start : start + _GROUP * size] for start in range(0, len(words), _GROUP * size)]
    for block in chain.from_iterable(each(partial(_measured_blocks, dtype=dtype, size=size), groups)):
        moments.add(block)
        num_nan += block.num_nan
        norms.append(block.norms)
        is_finite.append(block.is_finite)
    all_norms, all_finite = np.concatenate(norms), np.concatenate(is_finite)
    return HookStatistics(
        count=moments.count,
        mean=moments.mean.tolist(),
        m2=moments.m2.tolist(),
        norm_sum=float(all_norms.sum()),
        square_norm_sum=moments.square_sum,
        norms=Quantiles(counts=_bins(all_norms)),
        num_nan=num_nan,
        num_inf=len(all_finite) - moments.count - num_nan,
        max_outliers=outlier_tokens,
        outliers=_outliers(all_norms, tokens, all_finite, outlier_tokens),
    )


def merge(a: HookStatistics, b: HookStatistics) -> HookStatistics:
    """Of the rows of both; the channels must be the same."""
    mean, m2 = _merged_moments(a.count, np.array(a.mean), np.array(a.m2), b.count, np.array(b.mean), np.array(b.m2))
    most = max(a.max_outliers, b.max_outliers)
    return HookStatistics(
        count=a.count + b.count,
        mean=mean.tolist(),
        m2=m2.tolist(),
        norm_sum=a.norm_sum + b.norm_sum,
        square_norm_sum=a.square_norm_sum + b.square_norm_sum,
        norms=Quantiles(counts=_sorted(Counter(a.norms.counts) + Counter(b.norms.counts))),
        num_nan=a.num_nan + b.num_nan,
        num_inf=a.num_inf + b.num_inf,
        rounding=_merged_rounding(a.rounding, b.rounding),
        max_outliers=most,
        outliers=sorted([*a.outliers, *b.outliers], key=_greatest_first)[:most],
    )


def _merged_rounding(a: Rounding | None, b: Rounding | None) -> Rounding | None:
    if a is None or b is None:
        return a or b
    return Rounding(
        square_error_sum=a.square_error_sum + b.square_error_sum, square_norm_sum=a.square_norm_sum + b.square_norm_sum
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
    """The least norm that at least ``share`` (0 to 1) of the rows do not exceed; NaN of no rows.

    Right to ``QUANTILE_ERROR``, 0.55 %: the middle, on the logarithmic scale, of the bin that the true one lies in.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a quantile is asked for by a share of the rows, 0 to 1; got {share}")
    if not statistics.count:
        return math.nan
    wanted, below = max(1, math.ceil(share * statistics.count)), 0
    for place, count in sorted(statistics.norms.counts.items()):
        below += count
        if below >= wanted:
            return 0.0 if place == ZERO_BIN else 2.0 ** ((place + 0.5) / BINS_PER_OCTAVE)
    raise AssertionError("the bins hold every counted row")


def median_norm(statistics: HookStatistics) -> float:
    """The median L2 norm, right to 0.55 %."""
    return quantile_norm(statistics, 0.5)


def standard_deviation(statistics: HookStatistics) -> Vector:
    """[D] population standard deviation of each channel; NaN of no rows."""
    return np.sqrt(np.array(statistics.m2) / (statistics.count or math.nan))


def finite_rows(words: Words, dtype: Dtype) -> tuple[Vector, npt.NDArray[np.bool_]]:
    """The rows of words [T, D] without NaN or infinity as new float64 [n, D], and which they are, [T]."""
    # Numpy would warn of signalling NaNs, which are counted like the quiet ones.
    with np.errstate(invalid="ignore"):
        values = to_float32(words, dtype).astype(np.float64)
        # A product of finite float32 is finite in float64, so the sum of squares tells all.
        is_finite = np.isfinite(np.einsum("td,td->t", values, values))
    return (values if is_finite.all() else values[is_finite]), is_finite


@dataclass(frozen=True)
class _Block:
    """What one block of rows [T, D] adds, n of them finite."""

    count: int
    """n."""
    mean: Vector
    m2: Vector
    square_sum: float
    norms: Vector
    """[n]."""
    is_finite: npt.NDArray[np.bool_]
    """[T]."""
    num_nan: int


def _measured_blocks(words: Words, dtype: Dtype, size: int) -> list[_Block]:
    """Of each ``size`` rows."""
    return [_measured_block(words[start : start + size], dtype) for start in range(0, len(words), size)]


def _measured_block(words: Words, dtype: Dtype) -> _Block:
    values, is_finite = finite_rows(words, dtype)
    squares = np.einsum("td,td->t", values, values)
    num_nan = 0
    if len(values) < len(words):
        num_nan = int(np.isnan(to_float32(words[~is_finite], dtype)).any(axis=1).sum())
    mean = values.mean(axis=0) if len(values) else np.zeros(words.shape[1])
    values -= mean
    m2 = np.einsum("td,td->d", values, values)
    return _Block(len(values), mean, m2, float(squares.sum()), np.sqrt(squares), is_finite, num_nan)


@dataclass
class _Moments:
    """Count, mean and squared deviations of the blocks so far."""

    count: int
    mean: Vector
    m2: Vector
    square_sum: float

    @classmethod
    def of_nothing(cls, width: int) -> _Moments:
        return cls(0, np.zeros(width), np.zeros(width), 0.0)

    def add(self, block: _Block) -> None:
        """The rows that follow."""
        if not block.count:
            return
        self.mean, self.m2 = _merged_moments(self.count, self.mean, self.m2, block.count, block.mean, block.m2)
        self.count += block.count
        self.square_sum += block.square_sum


def _merged_moments(
    count_a: int, mean_a: Vector, m2_a: Vector, count_b: int, mean_b: Vector, m2_b: Vector
) -> tuple[Vector, Vector]:
    delta = mean_b - mean_a
    share = count_b / (count_a + count_b) if count_b else 0.0
    return mean_a + delta * share, m2_a + m2_b + delta * delta * (count_a * share)


def _outliers(
    norms: Vector, tokens: TokenRows | None, is_finite: npt.NDArray[np.bool_], outlier_tokens: int
) -> list[OutlierToken]:
    """The rows of greatest norm; of equal ones the first."""
    if tokens is None or not outlier_tokens:
        return []
    rows, token_ids = tokens.row[is_finite], tokens.token_id[is_finite]
    chosen = np.lexsort((rows, -norms))[:outlier_tokens].tolist()
    return [OutlierToken(row=int(rows[i]), token_id=int(token_ids[i]), norm=float(norms[i])) for i in chosen]


def _greatest_first(outlier: OutlierToken) -> tuple[float, int]:
    return -outlier.norm, outlier.row


def _bins(norms: Vector) -> dict[int, int]:
    places = np.full(len(norms), ZERO_BIN)
    positive = norms > 0
    places[positive] = np.floor(np.log2(norms[positive]) * BINS_PER_OCTAVE).astype(np.int64)
    found, counts = np.unique(places, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _sorted(counts: Counter[int]) -> dict[int, int]:
    return {place: counts[place] for place in sorted(counts)}
