"""Money and break-even: pure functions of counts and the user's prices."""

from __future__ import annotations

import math

from schemas.plan import Prices, ReusePlan

_GB = 1e9


def requests(count: float, price_thousand: float | None) -> float | None:
    """What so many requests cost, None without a price."""
    return None if price_thousand is None else count / 1000 * price_thousand


def reading(prices: Prices, *, size_bytes: float, gets: float) -> float | None:
    """Requests and egress of reading so much."""
    asked = requests(gets, prices.get_thousand)
    if asked is None or prices.egress_gb is None:
        return None
    return asked + size_bytes / _GB * prices.egress_gb


def keeping(prices: Prices, *, size_bytes: float, months: float) -> float | None:
    """Storage for so long."""
    return None if prices.storage_gb_month is None else size_bytes / _GB * prices.storage_gb_month * months


def computing(prices: Prices, device_hours: float) -> float | None:
    """Devices for so long."""
    return None if prices.device_hour is None else device_hours * prices.device_hour


def reuse(*, collect: float | None, write: float | None, keep: float | None, read: float | None) -> ReusePlan | None:
    """The comparison, None where one of its parts is not known.

    After n passes over the rows a store has cost collect + write + keep + n * read, computing them anew n * collect.
    """
    if collect is None or write is None or keep is None or read is None:
        return None
    saved = collect - read
    reads = math.ceil((collect + write + keep) / saved - 1e-9) if saved > 0 else None
    if reads is not None and not math.isfinite(reads):
        reads = None
    return ReusePlan(
        collect=collect, write=write, keep=keep, read=read, break_even_reads=None if reads is None else max(1, reads)
    )


def total(*parts: float | None) -> float | None:
    """The sum, None where a part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
