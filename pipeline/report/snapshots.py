"""The section on snapshots of a training: how each predicts, beside what unigrams and bigrams of the text can reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.report.charts import NEUTRAL, Series, line_chart

_KINDS = {
    "token_identity": "token identity", "previous_token": "previous token", "induction": "induction", "other": "other",
    "rare": "rare",
}  # fmt: skip


@dataclass(frozen=True)
class SnapshotSection:
    """Charts with captions, and a table."""

    note: str
    charts: list[tuple[str, Markup]]
    header: list[str]
    rows: list[list[str]]


def snapshot_section(found: Mapping[str, Any] | None) -> SnapshotSection | None:
    """None where snapshots were not compared. Charts count snapshots from 1, as those of the targets do."""
    if not found:
        return None
    snapshots = found["snapshots"]
    x = [float(index + 1) for index in range(len(snapshots))]
    unigram, bigram = found["entropy_unigram"], found["entropy_bigram"]
    loss = [
        Series("loss", 0, x, [one["loss"] for one in snapshots]),
        Series("entropy of unigrams", NEUTRAL, x, [unigram] * len(x)),
        Series("entropy of bigrams", NEUTRAL, x, [bigram] * len(x)),
    ]
    near = [
        Series("KL to unigrams", 0, x, [one["kl_unigram"] for one in snapshots]),
        Series("KL to bigrams", 1, x, [one["kl_bigram"] for one in snapshots]),
    ]
    return SnapshotSection(
        note=(
            f"On {found['tokens']:,} tokens. A model that knows nothing but how frequent tokens are can reach "
            f"{unigram:.3f} nats a token on this text, one that knows pairs {bigram:.3f} (the level lines)."
        ),
        charts=[
            ("Loss, and the entropies of unigrams and bigrams, nats a token", _lines(loss, "loss")),
            ("KL of unigrams (first colour) and bigrams (second) to the prediction", _lines(near, "KL")),
        ],
        header=["snapshot", "step", "loss", "KL to unigrams", "KL to bigrams"],
        rows=[
            [
                one["name"],
                "\u2013" if one["step"] is None else f"{one['step']:,}",
                *(f"{one[key]:.3f}" for key in ("loss", "kl_unigram", "kl_bigram")),
            ]
            for one in snapshots
        ],
    )


def kinds_table(found: Mapping[str, Any] | None) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: kinds of latents, how many, mean snapshot of onset and of peak, and the tests of each."""
    if not found:
        return None
    header = ["kind of latents", "latents", "mean onset", "mean peak", "begins later", "peaks later"]
    rows = [
        [
            _KINDS[name],
            f"{one['count']:,}",
            *(_one_digit(one[key]) for key in ("onset", "peak")),
            *(
                "" if name == "token_identity" else _test(one["against_token_identity"][key])
                for key in ("onset", "peak")
            ),
        ]
        for name, one in found["kinds"].items()
    ]
    return header, rows


def _lines(series: list[Series], title: str) -> Markup:
    return line_chart(series, title=title, x_label="snapshot")


def _one_digit(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.1f}"


def _test(found: Mapping[str, float] | None) -> str:
    return "\u2013" if found is None else f"chance {found['chance']:.2f}, p {found['p']:.1e}"
