"""A square of numbers as an inline SVG of shaded cells."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

_LEFT, _TOP, _SIDE = 46, 12, 240
_MOST_LABELS = 8


def square_chart(values: Sequence[Sequence[float | None]], labels: Sequence[str], *, title: str) -> Markup:
    """Rows and columns are the same things, named by ``labels``; a value of 1 or -1 is opaque, None is left empty."""
    size = len(values)
    cell = _SIDE / size
    cells = [
        _cell(value, _LEFT + column * cell, _TOP + row * cell, cell, f"{labels[row]}, {labels[column]}")
        for row, line in enumerate(values)
        for column, value in enumerate(line)
        if value is not None
    ]
    stride = -(-size // _MOST_LABELS)
    ticks = [_ticks(index, (index + 0.5) * cell) for index in range(0, size, stride)]
    return Markup(
        '<svg class="chart heat" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{cells}'
        '<g class="axes">{ticks}</g></svg>'
    ).format(
        width=_LEFT + _SIDE + 14,
        height=_TOP + _SIDE + 30,
        title=title,
        cells=Markup("").join(cells),
        ticks=Markup("").join(ticks),
    )


def _cell(value: float, x: float, y: float, side: float, name: str) -> Markup:
    return Markup(
        '<rect class="{sign}" x="{x}" y="{y}" width="{side}" height="{side}" fill-opacity="{strength}">'
        "<title>{name}: {value}</title></rect>"
    ).format(
        sign="below" if value < 0 else "above",
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        side=f"{side:.1f}",
        strength=f"{min(abs(value), 1):.3f}",
        name=name,
        value=f"{value:.3f}",
    )


def _ticks(index: int, middle: float) -> Markup:
    return Markup(
        '<text x="{left}" y="{y}" text-anchor="end">{number}</text>'
        '<text x="{x}" y="{bottom}" text-anchor="middle">{number}</text>'
    ).format(
        left=_LEFT - 7,
        y=f"{_TOP + middle + 3.5:.1f}",
        x=f"{_LEFT + middle:.1f}",
        bottom=_TOP + _SIDE + 16,
        number=index + 1,
    )
