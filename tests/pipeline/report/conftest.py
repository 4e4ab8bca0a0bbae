"""A small hand-made evaluation, as ``evaluate`` gives it, for the tests of the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.report.page import ReportData

HOSTILE = " <script>alert(1)</script><img src=x onerror=alert(2)>&\u2028"
"""Corpus text that must stay text."""


def figures(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "sparse autoencoder",
        "sources": ["blocks.1.hook_resid_post"],
        "targets": ["blocks.1.hook_resid_post"],
        "num_latents": 64,
        "activation": "TopK, k = 4",
        "trained_rows": 5000,
        "trained_steps": 50,
        "rows": 1000,
        "excluded": "special tokens; position 0",
        "fvu": 0.1432,
        "fvu_of_target": {"blocks.1.hook_resid_post": 0.1432},
        "l0": 4.0,
        "dead_share": 0.25,
        "dead_latents": 16,
        "density_histogram": {"log10_edges": [-3.0, -2.0, -1.0, 0.0], "counts": [10, 30, 8]},
        "ce_clean": 2.0,
        "ce_spliced": 2.5,
        "ce_mean": 7.0,
        "ce_zero": 12.0,
        "ce_recovered": 0.9,
        "ce_recovered_zero": 0.95,
        "ce_tokens": 500,
        "ce_contexts": 4,
        "splice_check": 2e-7,
        **changes,
    }


def feature(latent: int, *, density: float, peak: float, word: str) -> dict[str, Any]:
    tokens = ["def", " f", "(", word, ")", ":\n", "\t"]
    values = [0.0, 0.1 * peak, 0.0, peak, 0.0, 0.0, 0.3 * peak]
    context = {
        "top": 3,
        "tokens": tokens,
        "values": values,
        "document": 3,
        "position": 17,
        "row": 1234,
        "held_out": False,
    }
    weaker = {**context, "values": [value / 2 for value in values], "held_out": True}
    return {
        "latent": latent,
        "fired": 9,
        "density": density,
        "found": 12,
        "max": peak,
        "histogram": [8, 3, 0, 1],
        "tokens": [{"text": word, "mean": peak / 2, "active": 6, "occurrences": 9}],
        "contexts": [context, weaker],
    }


def metrics(names: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "tokens": 100 * step,
            "learning_rate": 1e-3,
            "tokens_per_s": 1e4,
            "dictionaries": {name: {"loss": 1 / step, "fvu": 1 / step, "l0": 4.0, "dead_share": 0.0} for name in names},
        }
        for step in range(1, 30)
    ]


def report_data(**changes: Any) -> ReportData:
    dictionaries = {"sae": figures(), "transcoder": figures(kind="transcoder", targets=["blocks.1.hook_mlp_out"])}
    features = {
        "sae": [
            feature(7, density=-2.0, peak=5.0, word=" apple"),
            feature(21, density=-1.0, peak=3.0, word=" pear"),
            feature(3, density=-3.0, peak=9.0, word=HOSTILE)
            | {"explanation": HOSTILE, "scores": [["detection", "0.91"]]},
        ],
        "transcoder": [feature(5, density=-1.5, peak=2.0, word=" plum")],
    }
    fields: dict[str, Any] = {
        "title": "fruit: evaluate",
        "evaluation": {
            "model": {"path": "models/tiny"},
            "rows": {"text": "Measured on held-out documents."},
            "definitions": {"FVU": "sum of squared errors over sum of squared deviations"},
            "dictionaries": dictionaries,
        },
        "metrics": metrics(list(dictionaries)),
        "features": features,
        "num_searched_rows": 4096,
        "provenance": [("Store fingerprint", "ab" * 32), ("Corpus", HOSTILE)],
        "documents": [("Train spec", "kind: train\n</script>\n")],
    }
    return ReportData(**{**fields, **changes})


@pytest.fixture
def hostile() -> str:
    return HOSTILE


@pytest.fixture
def make_report_data() -> Callable[..., ReportData]:
    return report_data
