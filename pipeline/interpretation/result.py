"""What an interpretation writes: figures as JSON, explanations as a Parquet table."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.interpretation.scores import HEADLINE
from pipeline.interpretation.subject import Interpreted

DEFINITIONS = {
    "Detection": "From the explanation alone: is the latent on somewhere in a piece of text? Asked of pieces in which "
    "it is, drawn evenly from all strengths, and of as many in which it is not. The explainer has seen none of them.",
    "Fuzzing": "From the explanation alone: are the marked tokens those that the latent is on for? Right marks are on "
    "tokens with at least 30 % of the greatest value in the piece; wrong ones at random, as many on average.",
    "Accuracy": "Mean of the share of right answers where the right one is yes and that where it is no; chance: 0.5.",
    "Simulation": "Correlation of the values that the explanation leads one to expect with the true ones, over tokens.",
    "Control: dealt out": "The explanation of the same values dealt out to rows at random, which explains nothing.",
    "Control: another latent": "The explanation of another latent of the dictionary, on the contexts of this one.",
}

_KINDS = ("detection", "fuzzing")
_PLACES = ("top_and_random", "random")


def dictionary_figures(found: Sequence[Interpreted], *, left_out: int) -> dict[str, Any]:
    """One dictionary's entry. ``mean``, ``controls``: of figures that a latent has; None where none has."""
    return {
        "num_explained": len(found),
        "num_left_out": left_out,
        "mean": _means([one.scores for one in found]),
        "controls": {
            name: _means([one.controls[name] for one in found if name in one.controls])
            for name in sorted({name for one in found for name in one.controls})
        },
        "latents": [
            {
                "latent": one.latent,
                "fired": one.fired,
                "explanation": one.explanation.text,
                "tokens": one.explanation.tokens,
                "scores": one.scores,
                "controls": one.controls,
            }
            for one in found
        ],
    }


def explanations_table(found: Sequence[Interpreted]) -> bytes:
    """Parquet, a row for each latent: its number, rows it is on, explanation, tokens (JSON), and each score."""
    columns: dict[str, pa.Array] = {
        "latent": pa.array([one.latent for one in found], pa.int64()),
        "fired": pa.array([one.fired for one in found], pa.int64()),
        "explanation": pa.array([one.explanation.text for one in found], pa.string()),
        "tokens": pa.array([json.dumps(one.explanation.tokens, ensure_ascii=False) for one in found], pa.string()),
    }
    for kind in _KINDS:
        for name in HEADLINE:
            values = [one.scores[kind][name] for one in found]
            columns[f"{kind}_{name}"] = pa.array(values, pa.float64())
    for place in _PLACES:
        values = [(one.scores["simulation"] or {}).get(place) for one in found]
        columns[f"simulation_{place}"] = pa.array(values, pa.float64())
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target, compression="zstd")
    return target.getvalue()


def _means(scores: Sequence[Any]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {
        kind: {name: _mean(one[kind][name] for one in scores) for name in HEADLINE} for kind in _KINDS
    }
    found["simulation"] = {place: _mean((one["simulation"] or {}).get(place) for one in scores) for place in _PLACES}
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
