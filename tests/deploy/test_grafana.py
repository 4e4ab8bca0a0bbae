"""The dashboard file: what Grafana demands of one, and no expression about a metric that nobody records."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from workers.metrics import PREFIX, Series, all_series

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "headworks.json"
# Prometheus's functions and words that stand in expressions beside metrics and labels.
WORDS = {"sum", "max", "by", "rate", "increase", "histogram_quantile"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return found


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def exported() -> dict[str, Series]:
    return {name: series for series in all_series().values() for name in series.exported_names}


def test_every_metric_of_an_expression_is_recorded_with_the_labels_that_it_uses(dashboard: dict[str, Any]) -> None:
    known = exported()
    for expression in expressions(dashboard):
        bare = re.sub(r'"[^"]*"|\$\w+|\[[^\]]*\]', "", expression)
        words = set(re.findall(r"[A-Za-z_]\w*", bare)) - WORDS
        named = {word for word in words if word.startswith(PREFIX)}
        assert named, expression
        assert named <= set(known), f"nobody records {named - set(known)}"
        labels = words - named - {"le"}
        for name in named:
            assert labels <= set(known[name].tags), f"{name} has no {labels - set(known[name].tags)}: {expression}"
        assert expression.count("(") == expression.count(")")


def test_every_metric_is_on_a_panel(dashboard: dict[str, Any]) -> None:
    shown = " ".join(expressions(dashboard))
    hidden = [series.name for series in all_series().values() if not any(n in shown for n in series.exported_names)]
    assert hidden == []


def test_it_is_a_dashboard_that_grafana_loads(dashboard: dict[str, Any]) -> None:
    """As its JSON model says: numbered panels on a grid of 24 columns that do not overlap, targets with own letters."""
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["uid"]
    assert dashboard["title"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["type"] for panel in panels} <= {"row", "timeseries"}
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in panels:
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(letters)) == len(letters)
        assert panel["type"] == "row" or panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    used = set(re.findall(r"\$\{?(\w+)", FILE.read_text("utf-8"))) - {"__all"}
    assert used == variables


def test_names_are_those_that_prometheus_takes() -> None:
    for name, series in all_series().items():
        assert re.fullmatch(r"headworks_[a-z0-9_]+", name)
        assert not name.endswith(("_total", "_bucket", "_sum", "_count"))
        assert not {"job", "instance", "le"} & set(series.tags)
        assert series.kind != "histogram" or list(series.boundaries) == sorted(set(series.boundaries))
