from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from pipeline.report.page import ReportData, embedded_json, render

Make = Callable[..., ReportData]


class Outline(HTMLParser):
    """Elements, their attributes and the text outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def embedded(page: str) -> dict[str, list[dict[str, object]]]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    found: dict[str, list[dict[str, object]]] = json.loads(match[1])
    return found


def test_the_page_says_what_was_measured(make_report_data: Make) -> None:
    outline = Outline(render(make_report_data()))
    for text in ("fruit: evaluate", "0.143", "90.0", "25.0", "models/tiny", "ab" * 32, "2.5000", "special tokens"):
        assert text in outline.text, text
    assert outline.tags.count("svg") == 4 + 2


def test_scores_of_explanations_stand_beside_those_of_the_controls(make_report_data: Make) -> None:
    def scores(value: float) -> dict[str, dict[str, float | None]]:
        classified: dict[str, float | None] = {"accuracy": value}
        return {"detection": classified, "fuzzing": classified, "simulation": {"top_and_random": None}}

    data = make_report_data()
    figures = data.evaluation["dictionaries"]["sae"]
    figures["interpretation"] = {
        "explainer": "tokens", "num_explained": 3, "mean": scores(0.875), "controls": {"dealt_out": scores(0.5)},
    }  # fmt: skip
    page = render(data)
    assert "3 by tokens" in page
    assert "0.88; dealt out 0.50" in page


def test_text_of_the_corpus_stays_text(make_report_data: Make, hostile: str) -> None:
    page = render(make_report_data())
    outline = Outline(page)
    assert outline.tags.count("script") == 2
    assert "img" not in outline.tags
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    assert hostile.replace("\u2028", "") in outline.text.replace("\u2028", "")
    last = embedded(page)["dictionaries"][0]["features"][-1]  # type: ignore[index]
    assert last["contexts"][0]["tokens"][3] == hostile


@pytest.mark.parametrize("value", ["</script>", "<!--<script>", "&lt;", "\u2028\u2029", "\ud7ff\ufffd\x00"])
def test_embedded_json_survives_anything(value: str) -> None:
    text = embedded_json({"a": value})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"a": value}


def test_nothing_is_fetched(make_report_data: Make) -> None:
    page = render(make_report_data())
    assert not re.search(r"""(?:src|href)="(?!#|data:)""", page)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)", page)
    assert "default-src 'none'" in page


def test_features_keep_their_order_and_the_page_its_bytes(make_report_data: Make) -> None:
    page = render(make_report_data())
    assert page == render(make_report_data())
    assert [one["name"] for one in embedded(page)["dictionaries"]] == ["sae", "transcoder"]


def test_a_page_without_cross_entropy_curves_or_features(make_report_data: Make) -> None:
    data = make_report_data(metrics=[], features={"sae": [], "transcoder": []})
    unmeasured = {key: None for key in data.evaluation["dictionaries"]["sae"] if key.startswith("ce_")}
    for figures in data.evaluation["dictionaries"].values():
        figures |= {**unmeasured, "splice_check": None}
    page = render(data)
    outline = Outline(page)
    assert "not measured" in outline.text
    assert 'id="training"' not in page
