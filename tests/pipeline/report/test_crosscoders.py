"""The section on targets, from weights that are known."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pipeline.analysis.crosscoder import crosscoder_figures
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.report.crosscoders import crosscoder_sections
from pipeline.report.page import ReportData, render
from schemas.activation import TopK
from schemas.dictionary import DictionarySpec


def crosscoder(*tables: list[list[float]]) -> Dictionary:
    points = [f"step{index}/blocks.1.hook_resid_post" for index in range(len(tables))]
    spec = DictionarySpec(name="c", sources=points, num_latents=len(tables[0]), activation=TopK(k=1))
    widths = {point: len(table[0]) for point, table in zip(points, tables, strict=True)}
    dictionary = Dictionary(spec, widths, widths, dict.fromkeys(points, 1.0)).requires_grad_(False)
    dictionary.decoder.copy_(torch.cat([torch.tensor(table) for table in tables], dim=1))
    return dictionary


def test_figures_by_hand() -> None:
    found = crosscoder_figures(crosscoder([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [[0.0, 0.2], [3.0, 0.0], [0.0, 0.0]]))
    assert found is not None
    assert found["onsets"] == [1, 1]
    assert found["peaks"] == [1, 1]
    assert found["without_norm"] == 1
    assert found["trajectories"] == [[1.0, pytest.approx(0.2)], [0.0, 1.0]]
    assert found["dimensionality"] == [1.0, 2.0]
    assert found["rotation"] == [[1.0, None], [None, 1.0]]
    assert [index for index, count in enumerate(found["relative_norm"]) if count] == [6, 39]


def test_one_target_has_no_section_and_unequal_widths_no_angles() -> None:
    assert crosscoder_figures(crosscoder([[1.0], [2.0]])) is None
    found = crosscoder_figures(crosscoder([[1.0]], [[1.0, 0.0]]))
    assert found is not None
    assert "rotation" not in found
    titles = [title for title, _ in crosscoder_sections({"c": {"crosscoder": found}})[0]["charts"]]
    assert len(titles) == 6


def test_the_page_shows_the_section(make_report_data: Callable[..., ReportData]) -> None:
    data = make_report_data()
    bare = render(data)
    assert 'id="targets"' not in bare
    three = crosscoder(*[[[1.0, float(index)], [0.5, -1.0]] for index in range(3)])
    data.evaluation["dictionaries"]["sae"]["crosscoder"] = crosscoder_figures(three)
    page = render(data)
    section = page[page.index('<section id="targets"') :]
    section = section[: section.index("</section>")]
    assert section.count("<svg") == 6
    assert section.count("onset at target") == 2
    assert "step2/blocks.1.hook_resid_post" in section
    assert len(re.findall(r"<rect class=.(?:above|below)", section)) == 9


def test_the_page_shows_snapshots_and_kinds(make_report_data: Callable[..., ReportData]) -> None:
    data = make_report_data()
    assert 'id="snapshots"' not in render(data)
    steps = [{"name": f"step{n}", "step": n, "loss": 4.0 - n, "kl_unigram": 1.5, "kl_bigram": 2.5} for n in (0, 1)]
    untested = {"peak": None, "onset": None}
    tested = {"peak": {"chance": 0.8125, "p": 1.2e-5}, "onset": None}
    kinds = {"token_identity": (5, 1.5, untested), "induction": (3, 2.0, tested), "rare": (1, None, untested)}
    three = crosscoder(*[[[1.0, float(index)], [0.5, -1.0]] for index in range(3)])
    figures = crosscoder_figures(three)
    assert figures is not None
    figures["hierarchy"] = {
        "kinds": {
            name: {"count": count, "peak": mean, "onset": mean, "against_token_identity": against}
            for name, (count, mean, against) in kinds.items()
        }
    }
    data.evaluation["dictionaries"]["sae"]["crosscoder"] = figures
    found = {"tokens": 4096, "entropy_unigram": 3.25, "entropy_bigram": 1.75, "snapshots": steps}
    data = replace(data, evaluation={**data.evaluation, "snapshots": found})
    page = render(data)
    section = page[page.index('<section id="snapshots"') :]
    section = section[: section.index("</section>")]
    assert section.count("<svg") == 2
    assert "3.250 nats" in section
    assert "<td>2.500</td>" in section
    targets = page[page.index('<section id="targets"') :]
    assert "chance 0.81, p 1.2e-05" in targets
