"""The section on dictionaries of several targets: where latents begin, peak and turn, and how full each space is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from pipeline.report.charts import NUM_COLOURS, Series, histogram_chart, line_chart
from pipeline.report.heat import square_chart
from pipeline.report.snapshots import kinds_table

_WIDTH, _HEIGHT = 420, 230


def crosscoder_sections(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each dictionary that has several targets: its name, colour, targets and captioned charts."""
    return [
        {
            "name": name,
            "colour": number % NUM_COLOURS,
            "targets": one["crosscoder"]["targets"],
            "note": _note(one["crosscoder"]),
            "charts": _charts(one["crosscoder"], number % NUM_COLOURS),
            "kinds": kinds_table(one["crosscoder"].get("hierarchy")),
        }
        for number, (name, one) in enumerate(figures.items())
        if one.get("crosscoder")
    ]


def _note(found: Mapping[str, Any]) -> str:
    gone = found["without_norm"]
    return f"{gone:,} latents have no decoder direction at any of them." if gone else ""


def _charts(found: Mapping[str, Any], colour: int) -> list[tuple[str, Markup]]:
    num_targets = len(found["targets"])
    steps = [float(index + 1) for index in range(num_targets)]
    fullness = [100 * used / width for used, width in zip(found["dimensionality"], found["width"], strict=True)]
    charts = [
        ("Mean decoder norm", _line("decoder norm", colour, steps, found["mean_norm"])),
        (
            "Decoder norm by onset, share of the greatest, mean over latents",
            line_chart(_by_onset(found, steps), title="decoder norm by onset", x_label="target"),
        ),
        ("Feature dimensionality, % of the width", _line("share of the space", colour, steps, fullness)),
        ("Latents by onset: first norm above half of the greatest", _bars("onsets", colour, found["onsets"])),
        ("Latents by peak: greatest norm", _bars("peaks", colour, found["peaks"])),
    ]
    if found.get("rotation"):
        title = "Mean cosine between a latent\u2019s directions at two targets"
        charts.append((title, square_chart(found["rotation"], found["targets"], title=title)))
    if found.get("relative_norm"):
        counts = [float(count) for count in found["relative_norm"]]
        edges = [index / len(counts) for index in range(len(counts) + 1)]
        title = "Latents by the second target\u2019s share of both norms: 0 and 1 exclusive, 0.5 shared"
        series = [Series(title, colour, [], counts)]
        chart = histogram_chart(edges, series, title=title, x_label="share", width=_WIDTH, height=_HEIGHT)
        charts.append((title, chart))
    return charts


def _by_onset(found: Mapping[str, Any], steps: list[float]) -> list[Series]:
    """A line for each onset; of many the most frequent ones, as many as there are colours."""
    lines = {index: line for index, line in enumerate(found["trajectories"]) if line is not None}
    frequent = sorted(sorted(lines, key=lambda index: -found["onsets"][index])[:NUM_COLOURS])
    return [
        Series(f"onset at target {index + 1}: {found['onsets'][index]:,} latents", number, steps, lines[index])
        for number, index in enumerate(frequent)
    ]


def _line(label: str, colour: int, x: list[float], y: list[float]) -> Markup:
    return line_chart([Series(label, colour, x, y)], title=label, x_label="target")


def _bars(label: str, colour: int, counts: list[int]) -> Markup:
    edges = [index + 0.5 for index in range(len(counts) + 1)]
    series = [Series(label, colour, [], [float(count) for count in counts])]
    return histogram_chart(edges, series, title=label, x_label="target", width=_WIDTH, height=_HEIGHT)
