"""Axes of a chart: where the ticks are and how their numbers read."""

from __future__ import annotations

import math
from dataclasses import dataclass

_SUFFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Axis:
    """A range of values laid over a range of pixels."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float, start: float, stop: float) -> float:
        """The pixel of a value where ``low`` lies at ``start`` and ``high`` at ``stop``; outside values are clamped."""
        low, high, at = (math.log10(x) if self.log else x for x in (self.low, self.high, max(value, self.floor)))
        share = min(1.0, max(0.0, (at - low) / (high - low)))
        return start + share * (stop - start)

    @property
    def floor(self) -> float:
        """The least value that can be placed."""
        return self.low if self.log else -math.inf


def linear_axis(low: float, high: float, *, num_ticks: int = 5) -> Axis:
    """Ticks at 1, 2 or 5 times a power of ten, the range widened to whole ticks."""
    if high - low < 1e-200:
        # Next to nothing is as good as nothing: powers of ten end at 1e-308.
        high = low + (abs(low) if abs(low) > 1e-200 else 1.0)
    raw = (high - low) / num_ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(low: float, high: float) -> Axis:
    """Ticks at 1, 2 and 5 of each decade that is touched; only decades where there are more than two."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fine = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    below = max((tick for tick in fine if tick <= low * 1.0001), default=10.0**first)
    above = min((tick for tick in fine if tick >= high * 0.9999), default=10.0**last)
    if above <= below:
        above = below * 10
    inside = [tick for tick in fine if below <= tick <= above]
    if len(inside) > 7:
        inside = [tick for tick in inside if abs(math.log10(tick) - round(math.log10(tick))) < 1e-9]
    return Axis(below, above, tuple(inside), log=True)


def short_number(value: float) -> str:
    """1500000 -> ``1.5M``, 0.05 -> ``0.05``, 0.0001 -> ``1e-4``; with the true minus sign."""
    return _short(value).replace("-", "\u2212")


def _short(value: float) -> str:
    if value == 0:
        return "0"
    for size, suffix in _SUFFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}"
