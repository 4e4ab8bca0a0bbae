"""Sets of units as ranges: a plan of ten million units is a few numbers, and what is committed of them a few more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Units:
    """Distinct units, ascending. Equal sets are equal."""

    ranges: tuple[range, ...]
    """Ascending, of step 1, none empty, none touching the next."""

    @classmethod
    def missing(cls, num_units: int, committed: Iterable[int]) -> Units:
        """Units below ``num_units`` that are not committed. ``committed`` is read once, in any order."""
        # Ledgers list their units in order, which a stable sort finds out in one pass.
        have = np.sort(np.fromiter(committed, dtype=np.int64), kind="stable")
        have = have[have < num_units]
        # Between two neighbours that are no neighbours in number lies a gap; a unit that is named twice makes none.
        starts = np.concatenate([[0], have + 1])
        stops = np.concatenate([have, [num_units]])
        gaps = starts < stops
        pairs = zip(starts[gaps].tolist(), stops[gaps].tolist(), strict=True)
        return cls(tuple(range(start, stop) for start, stop in pairs))

    def __len__(self) -> int:
        return sum(len(one) for one in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for one in self.ranges:
            yield from one

    def __contains__(self, unit: int) -> bool:
        return any(unit in one for one in self.ranges)

    @property
    def last(self) -> int:
        """The greatest; -1 of none."""
        return self.ranges[-1][-1] if self.ranges else -1
