"""One self-contained ``report.html``: figures, curves, densities, features, provenance. Nothing is fetched.

Text of the corpus reaches the page as JSON in a script element, in which ``<``, ``>`` and ``&`` are escaped, and
becomes text nodes only; everything else goes through the template's escaping.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.charts import NUM_COLOURS, Series, histogram_chart
from pipeline.report.crosscoders import crosscoder_sections
from pipeline.report.curves import training_curves
from pipeline.report.snapshots import snapshot_section
from pipeline.report.universality import universality_table

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class ReportData:
    """What a page shows."""

    title: str
    evaluation: Mapping[str, Any]
    """What ``evaluate`` returns."""
    metrics: Sequence[Mapping[str, Any]]
    """Records of ``metrics.jsonl``."""
    features: Mapping[str, Sequence[Mapping[str, Any]]]
    """dictionary -> features, see ``pipeline.evaluation.features``."""
    num_searched_rows: int
    """Rows searched for top contexts."""
    provenance: Sequence[tuple[str, str]]
    """Label and value of each fact."""
    documents: Sequence[tuple[str, str]] = ()
    """Label and text of longer things: specs."""


def render(data: ReportData) -> str:
    """The page."""
    figures: Mapping[str, Mapping[str, Any]] = data.evaluation["dictionaries"]
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    source = environment.loader
    assert source is not None
    return environment.get_template("report.html.j2").render(
        title=data.title,
        lede=_lede(figures, data.evaluation),
        style=Markup(source.get_source(environment, "report.css")[0]),  # noqa: S704 - our own file
        script=Markup(source.get_source(environment, "report.js")[0]),  # noqa: S704 - our own file
        cards=[_card(name, one, number) for number, (name, one) in enumerate(figures.items())],
        definitions=list(data.evaluation["definitions"].items()),
        curves=training_curves(data.metrics, list(figures)),
        densities=_densities(figures),
        crosscoders=crosscoder_sections(figures),
        snapshots=snapshot_section(data.evaluation.get("snapshots")),
        universality=universality_table(data.evaluation.get("universality")),
        never=[f"{name}: {_share(one['dead_share'])} of latents never fired." for name, one in figures.items()],
        features_note=_features_note(data),
        provenance=data.provenance,
        documents=data.documents,
        data=Markup(embedded_json(_feature_data(data))),  # noqa: S704 - escaped by embedded_json
    )


def embedded_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "".join(_ESCAPES.get(character, character) for character in text)


def _feature_data(data: ReportData) -> dict[str, Any]:
    return {"dictionaries": [{"name": name, "features": list(found)} for name, found in data.features.items()]}


def _lede(figures: Mapping[str, Mapping[str, Any]], evaluation: Mapping[str, Any]) -> str:
    noun = "dictionary" if len(figures) == 1 else "dictionaries"
    return f"{len(figures)} sparse {noun} on {evaluation['model']['path']}. {evaluation['rows']['text']}"


def _features_note(data: ReportData) -> str:
    return (
        f"Features spread over the range of densities, with their strongest contexts among {data.num_searched_rows:,} "
        "rows. Each line is centred on the token that activates the feature most; the warmer a token, the stronger "
        "its activation, in the dictionary's own units. One line to a context, no text twice."
    )


def _densities(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Markup]:
    """One chart, for wide and for narrow windows.

    Its bins are those of the dictionary that was measured on most rows; all end at 0 and are equally wide.
    """
    longest = max((one["density_histogram"]["log10_edges"] for one in figures.values()), key=len)
    series = []
    for colour, (name, one) in enumerate(figures.items()):
        counts = one["density_histogram"]["counts"]
        missing = len(longest) - 1 - len(counts)
        series.append(Series(name, colour, [], [0.0] * missing + [float(count) for count in counts]))
    sizes = {"wide": (860, 260, 8), "narrow": (420, 230, 4)}
    return {
        name: histogram_chart(
            longest,
            series,
            title="Latents by density",
            x_label="log10 share of rows",
            width=width,
            height=height,
            num_ticks=ticks,
        )
        for name, (width, height, ticks) in sizes.items()
    }


def _card(name: str, figures: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {
        "name": name,
        "colour": number % NUM_COLOURS,
        "what": _what(figures),
        "headline": _headline(figures),
        "details": _details(figures),
    }


def _what(figures: Mapping[str, Any]) -> str:
    sources, targets = ", ".join(figures["sources"]), ", ".join(figures["targets"])
    place = sources if sources == targets else f"{sources} \u2192 {targets}"
    return f"{figures['kind']} \u00b7 {place} \u00b7 {figures['num_latents']:,} latents \u00b7 {figures['activation']}"


def _headline(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    recovered = figures["ce_recovered"]
    return [
        _item("FVU", _decimal(figures["fvu"]), f"of the variance is not reconstructed, on {figures['rows']:,} rows"),
        _item("Cross-entropy recovered", _share(recovered), _means_recovered(recovered)),
        _item("L0", f"{figures['l0']:.1f}", "latents are active in a row, on average"),
        _item(
            "Dead share",
            _share(figures["dead_share"]),
            f"{figures['dead_latents']:,} latents fired on none of these rows",
        ),
    ]


def _means_recovered(recovered: float | None) -> str:
    if recovered is None:
        return "not measured, or ablation does not raise the loss"
    if recovered < 0:
        return "worse than mean ablation: the model fares better without this layer than with the prediction"
    return "of the loss between mean ablation and the intact model comes back when it is spliced in"


def _item(label: str, value: str, means: str) -> dict[str, str]:
    return {"label": label, "value": value, "means": means}


def _details(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(f"FVU of {target}", _decimal(value)) for target, value in figures["fvu_of_target"].items()]
    rows.append(("Trained on", f"{figures['trained_rows']:,} rows, {figures['trained_steps']:,} steps"))
    if figures["ce_clean"] is not None:
        rows += [
            ("Cross-entropy, intact", f"{figures['ce_clean']:.4f} nats a token"),
            ("\u2026 spliced", f"{figures['ce_spliced']:.4f}"),
            ("\u2026 mean ablation", f"{figures['ce_mean']:.4f}"),
            ("\u2026 zero ablation", f"{figures['ce_zero']:.4f}"),
            ("Recovered against zero ablation", _share(figures["ce_recovered_zero"])),
            ("Tokens predicted", f"{figures['ce_tokens']:,} in {figures['ce_contexts']:,} held-out contexts"),
            ("Splice check", f"{figures['splice_check']:.1e} nats"),
        ]
    rows.append(("Rows left out", figures["excluded"]))
    return rows + _interpretation(figures.get("interpretation"))


def _interpretation(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Mean scores of explanations, and of those that must fail."""
    if not found:
        return []
    rows = [("Explained latents", f"{found['num_explained']:,} by {found['explainer']}")]
    for kind, figure in (("detection", "accuracy"), ("fuzzing", "accuracy"), ("simulation", "top_and_random")):
        controls = [
            f"{name.replace('_', ' ')} {_two(scores[kind][figure])}" for name, scores in found["controls"].items()
        ]
        value = _two(found["mean"][kind][figure])
        rows.append((f"\u2026 {kind}, mean", f"{value}; {', '.join(controls)}" if controls else value))
    return rows


def _two(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.2f}".replace("-", "\u2212")


def _decimal(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "\u2013" if value is None else f"{100 * value:.1f}\u202f%".replace("-", "\u2212")
