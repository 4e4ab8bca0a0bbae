"""Reads the runs of concepts.yaml, with the warm-up of the learning rate and without: what was learnt when.

    make study-concepts                                                     both runs, and this
    python examples/concepts.py runs/concepts runs/concepts_control --plot docs/pictures/concepts.svg

Writes examples/results/concepts.json, a part for each folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pictures
from save_result import save

from pipeline.grammar.bigram import MarkovSource
from schemas.grammar import BigramSource

Figures = dict[str, Any]


def read(folder: Path) -> Figures:
    """The figures of one run, from what its jobs wrote; of a model alone what its training says."""
    model = json.loads((folder / "model" / "identity.json").read_text())
    lines = map(json.loads, (folder / "model" / "metrics.jsonl").read_text().splitlines())
    found = {
        "warmup_steps": model["schedule"]["warmup_fraction"] * model["steps"],
        "held_out_loss": {line["step"]: line["held_out_loss"] for line in lines if line["step"] in model["snapshots"]},
    }
    if not (folder / "evaluation.json").exists():
        return found
    return found | evaluated(json.loads((folder / "evaluation.json").read_text()), model["tokens"]["corpus"])


def evaluated(evaluation: Figures, corpus: Figures) -> Figures:
    """Of the evaluate job, and what is known of the corpus that the model was trained on."""
    (dictionary,) = evaluation["dictionaries"].values()
    phases, crosscoder = evaluation["snapshots"], dictionary["crosscoder"]
    source = MarkovSource(BigramSource.model_validate(corpus["grammar"]), corpus["seed"]).entropies()
    return {
        "entropy": {"unigram": phases["entropy_unigram"], "bigram": phases["entropy_bigram"]},
        "exact_entropy": {"unigram": source.unigram, "bigram": source.bigram, "source": source.source},
        "reached": reached(phases),
        "snapshots": [
            {name: one[name] for name in ("step", "loss", "kl_unigram", "kl_bigram")} for one in phases["snapshots"]
        ],
        "crosscoder": {name: dictionary[name] for name in ("num_latents", "fvu", "l0", "dead_share")}
        | {name: crosscoder[name] for name in ("peaks", "onsets", "mean_norm", "dimensionality")}
        | {"cosines": cosines(crosscoder["rotation"]), "repeat_rate": crosscoder["hierarchy"]["repeat_rate"]},
        "kinds": crosscoder["hierarchy"]["kinds"],
    }


def reached(phases: Figures) -> Figures:
    """Steps of the snapshots at which either KL is least, and of the first whose loss is below either entropy; None
    where none is."""
    snapshots = phases["snapshots"]

    def least(name: str) -> int:
        return int(min(snapshots, key=lambda one: one[name])["step"])

    def below(entropy: float) -> int | None:
        return next((one["step"] for one in snapshots if one["loss"] < entropy), None)

    return {
        "kl_unigram_least": least("kl_unigram"),
        "kl_bigram_least": least("kl_bigram"),
        "loss_below_unigram": below(phases["entropy_unigram"]),
        "loss_below_bigram": below(phases["entropy_bigram"]),
    }


def cosines(rotation: list[list[float | None]]) -> Figures:
    """Mean cosines of latents' directions: of neighbouring snapshots, and of each with the last."""
    return {
        "neighbours": [rotation[index][index + 1] for index in range(len(rotation) - 1)],
        "with_last": rotation[-1],
    }


def draw(runs: dict[str, Figures], path: Path) -> None:
    """Held-out loss of all runs; of the first both KL, cosines of neighbouring snapshots, and where latents peak."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for (name, one), style in zip(runs.items(), ("-", "--"), strict=False):
        left.plot(*zip(*one["held_out_loss"].items(), strict=True), style, color="C0", label=f"loss, {name}")
    first = next(iter(runs.values()))
    steps = [each["step"] for each in first["snapshots"]]
    for colour, what in enumerate(("kl_unigram", "kl_bigram"), start=1):
        left.plot(steps, [each[what] for each in first["snapshots"]], color=f"C{colour}", label=what.replace("_", " "))
    for what in ("unigram", "bigram"):
        left.axhline(first["entropy"][what], color="grey", lw=0.8, ls=":")
        left.annotate(f"H {what}", (steps[-1], first["entropy"][what]), fontsize="small", ha="right", va="bottom")
    middle.plot(steps[1:], first["crosscoder"]["cosines"]["neighbours"], "o-", color="C3", ms=3)
    right.plot(steps, first["crosscoder"]["peaks"], "o-", color="C4", ms=3)
    left.set_ylabel("nats a token")
    left.legend(fontsize="small")
    middle.set_ylabel("mean cosine with the snapshot before")
    right.set_ylabel("latents whose norm is greatest here")
    for axes in (left, middle, right):
        axes.set_xscale("symlog", linthresh=4)
        axes.set_xlim(0, steps[-1])
        axes.set_xlabel("step")
    pictures.save(figure, path)


def main() -> None:
    """Read, save, draw."""
    folders, _, plot = " ".join(sys.argv[1:]).partition(" --plot ")
    runs = {Path(folder).name: read(Path(folder)) for folder in folders.split()}
    print(save("concepts", runs))
    if plot:
        draw(runs, Path(plot))


if __name__ == "__main__":
    main()
