from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from pipeline.report.charts import MAX_POINTS, Series, histogram_chart, line_chart
from pipeline.report.curves import read_metrics, training_curves
from schemas.errors import CorruptionError


def points_of(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def lines_of(svg: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg)
    return [points_of(path.attrib["d"]) for path in root.iter("path") if path.attrib["class"] == "line"]


def test_a_line_goes_where_its_values_are() -> None:
    svg = line_chart([Series("a", 0, [0, 50, 100], [0, 1, 2])], title="t", x_label="rows")
    ((first, middle, last),) = lines_of(svg)
    assert first[0] < middle[0] < last[0]
    assert first[1] > middle[1] > last[1]
    assert middle[0] == pytest.approx((first[0] + last[0]) / 2, abs=0.2)
    assert middle[1] == pytest.approx((first[1] + last[1]) / 2, abs=0.2)


def test_labels_are_escaped_and_the_chart_names_itself() -> None:
    svg = line_chart([Series("<b>&", 1, [1, 2], [1, 2])], title='"<i>', x_label="<u>")
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == '"<i>'
    assert "<b>&" in [title.text for title in root.iter("title")]
    assert root.find(".//text[@class='label']").text == "<u>"  # type: ignore[union-attr]


def test_a_long_run_is_thinned_but_keeps_its_last_point() -> None:
    xs = list(range(10_001))
    (points,) = lines_of(line_chart([Series("a", 0, xs, [float(x) for x in xs])], title="t", x_label="x"))
    assert len(points) <= MAX_POINTS + 1
    (ends,) = lines_of(line_chart([Series("a", 0, [0, 10_000], [0, 10_000])], title="t", x_label="x"))
    assert points[-1] == ends[-1]


def test_nothing_to_draw_gives_no_chart_and_one_point_gives_one() -> None:
    assert line_chart([Series("a", 0, [], [])], title="t", x_label="x") == ""
    assert line_chart([Series("a", 0, [1], [0.0])], title="t", x_label="x", log_y=True) == ""
    assert len(lines_of(line_chart([Series("a", 0, [0], [0.0])], title="t", x_label="x"))) == 1


def test_a_histogram_has_two_corners_for_each_bin() -> None:
    svg = histogram_chart([-2, -1, 0], [Series("a", 0, [], [3, 1])], title="t", x_label="x", width=400, height=200)
    ((_, left, right, *_),) = lines_of(svg)
    assert left[1] == right[1] < 164
    assert len(lines_of(svg)[0]) == 6
    empty = histogram_chart([-2, -1, 0], [Series("a", 0, [], [0, 0])], title="t", x_label="x", width=400, height=200)
    assert len(lines_of(empty)) == 1


def test_curves_of_metrics_jsonl() -> None:
    records = read_metrics(
        b'{"tokens": 10, "learning_rate": 0.1, "dictionaries": {"a": {"fvu": 0.5, "l0": 3}}}\n'
        b'{"tokens": 20, "learning_rate": 0.2, "dictionaries": {"a": {"fvu": 0.4, "l0": 3}}}\n',
        "m",
    )
    curves = training_curves(records, ["a", "b"])
    assert [curve.title.split(" (")[0].split(",")[0] for curve in curves] == [
        "Fraction of variance unexplained",
        "Active latents of a row",
        "Learning rate",
    ]
    with pytest.raises(CorruptionError, match=r"metrics.jsonl, line 2: expected a JSON object, got 'nonsense'"):
        read_metrics(b"{}\nnonsense\n", "metrics.jsonl")
