"""Charts as small inline SVG: axes, ticks, labels; colours come from the page's style (light and dark).

A chart has no legend of its own: series are numbered, and the page shows one legend for all charts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipeline.report.scales import Axis, linear_axis, log_axis, short_number

MAX_POINTS = 240
"""More would not be seen at the width of a chart."""
NUM_COLOURS = 8
"""Colours of the style sheet; after these they repeat."""
NEUTRAL = -1
"""Colour of a line that belongs to no series of the legend."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 36


@dataclass(frozen=True)
class Series:
    """One line or one outline."""

    label: str
    colour: int
    """Number of the series in the page's legend, or ``NEUTRAL``."""
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Frame:
    """The plotting area of a chart, in pixels of its view box."""

    x: Axis
    y: Axis
    width: int
    height: int

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        return (
            self.x.place(x, _LEFT, self.width - _RIGHT),
            self.y.place(y, self.height - _BOTTOM, _TOP),
        )


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, log_y: bool = False, width: int = 420, height: int = 230
) -> Markup:
    """Lines over a common x. ``log_y`` needs values above zero; others are left out."""
    drawn = [_thin(one, above_zero=log_y) for one in series]
    drawn = [one for one in drawn if len(one.x)]
    if not drawn:
        return Markup("")
    values = [value for one in drawn for value in one.y]
    y_axis = log_axis(min(values), max(values)) if log_y else linear_axis(min(0.0, *values), max(values))
    x_axis = linear_axis(0.0, max(one.x[-1] for one in drawn))
    x_axis = Axis(x_axis.low, max(one.x[-1] for one in drawn) or 1.0, x_axis.ticks)
    frame = Frame(x_axis, y_axis, width, height)
    return _svg(frame, title, x_label, Markup("").join(_line(frame, one) for one in drawn))


def histogram_chart(
    edges: Sequence[float],
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    width: int,
    height: int,
    num_ticks: int = 8,
) -> Markup:
    """Overlaid histograms on common ``edges``; each series holds one count a bin in ``y``."""
    peak = max((count for one in series for count in one.y), default=0)
    frame = Frame(linear_axis(edges[0], edges[-1], num_ticks=num_ticks), linear_axis(0.0, max(peak, 1)), width, height)
    return _svg(frame, title, x_label, Markup("").join(_steps(frame, edges, one) for one in series))


def _thin(series: Series, *, above_zero: bool) -> Series:
    kept = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y > 0 or not above_zero]
    stride = -(-len(kept) // MAX_POINTS) or 1
    # The last point is the one that people look for.
    thinned = kept[::stride] + ([kept[-1]] if kept and (len(kept) - 1) % stride else [])
    return Series(series.label, series.colour, [x for x, _ in thinned], [y for _, y in thinned])


def _style(series: Series) -> str:
    return "neutral" if series.colour == NEUTRAL else f"s{series.colour % NUM_COLOURS}"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _line(frame: Frame, series: Series) -> Markup:
    points = [frame.at(x, y) for x, y in zip(series.x, series.y, strict=True)]
    x, y = points[-1]
    return Markup(
        '<g class="series {style}"><title>{label}</title><path class="line" d="{path}"/>'
        '<circle class="end" cx="{x}" cy="{y}" r="2.6"/></g>'
    ).format(style=_style(series), label=series.label, path=_path(points), x=f"{x:.1f}", y=f"{y:.1f}")


def _steps(frame: Frame, edges: Sequence[float], series: Series) -> Markup:
    base = frame.at(edges[0], 0)[1]
    points = [(frame.at(edges[0], 0)[0], base)]
    for left, right, count in zip(edges, edges[1:], series.y, strict=False):
        points += [frame.at(left, count), frame.at(right, count)]
    points.append((frame.at(edges[-1], 0)[0], base))
    return Markup(
        '<g class="series {style}"><title>{label}</title><path class="area" d="{path}Z"/>'
        '<path class="line" d="{path}"/></g>'
    ).format(style=_style(series), label=series.label, path=_path(points))


def _svg(frame: Frame, title: str, x_label: str, marks: Markup) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        '<g class="axes">{axes}</g>{marks}</svg>'
    ).format(width=frame.width, height=frame.height, title=title, axes=_axes(frame, x_label), marks=marks)


def _axes(frame: Frame, x_label: str) -> Markup:
    bottom, right = frame.height - _BOTTOM, frame.width - _RIGHT
    parts = []
    for tick in frame.y.ticks:
        y = frame.at(0, tick)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{escape(short_number(tick))}</text>')
    for tick in frame.x.ticks:
        if not frame.x.low <= tick <= frame.x.high:
            continue
        x = frame.at(tick, 0)[0]
        parts.append(f'<path class="tick" d="M{x:.1f} {bottom}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(short_number(tick))}</text>')
    parts.append(f'<path class="base" d="M{_LEFT} {bottom}H{right}"/>')
    parts.append(f'<text class="label" x="{right}" y="{frame.height - 4}" text-anchor="end">{escape(x_label)}</text>')
    return Markup("".join(parts))  # noqa: S704 - numbers, and the label is escaped
