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
    corpus = model["tokens"]["corpus"]
    source = MarkovSource(BigramSource.model_validate(corpus["grammar"]), corpus["seed"]).entropies()
    exact = {"unigram": source.unigram, "bigram": source.bigram, "source": source.source}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    phases = reached(evaluation["snapshots"], found["held_out_loss"], exact)
    return found | {"exact_entropy": exact, "reached": phases} | evaluated(evaluation)


def evaluated(evaluation: Figures) -> Figures:
    """Of the evaluate job; entropies are those of the store's text."""
    (dictionary,) = evaluation["dictionaries"].values()
    phases, crosscoder = evaluation["snapshots"], dictionary["crosscoder"]
    return {
        "entropy": {"unigram": phases["entropy_unigram"], "bigram": phases["entropy_bigram"]},
        "snapshots": [
            {name: one[name] for name in ("step", "loss", "kl_unigram", "kl_bigram")} for one in phases["snapshots"]
        ],
        "crosscoder": {name: dictionary[name] for name in ("num_latents", "fvu", "l0", "dead_share")}
        | {name: crosscoder[name] for name in ("peaks", "onsets", "mean_norm", "dimensionality")}
        | {"cosines": cosines(crosscoder["rotation"]), "repeat_rate": crosscoder["hierarchy"]["repeat_rate"]},
        "kinds": crosscoder["hierarchy"]["kinds"],
    }


def reached(phases: Figures, held_out_loss: dict[int, float], exact: Figures) -> Figures:
    """Steps of the snapshots at which either KL is least, and of the first whose held-out loss is below either exact
    entropy of the model's own text; None where none is."""

    def least(name: str) -> int:
        return int(min(phases["snapshots"], key=lambda one: one[name])["step"])

    def below(entropy: float) -> int | None:
        return next((step for step, loss in held_out_loss.items() if loss < entropy), None)

    return {
        "kl_unigram_least": least("kl_unigram"),
        "kl_bigram_least": least("kl_bigram"),
        "loss_below_unigram": below(exact["unigram"]),
        "loss_below_bigram": below(exact["bigram"]),
    }


def cosines(rotation: list[list[float | None]]) -> Figures:
    """Mean cosines of latents' directions: of neighbouring snapshots, and of each with the last."""
    return {
        "neighbours": [rotation[index][index + 1] for index in range(len(rotation) - 1)],
        "with_last": rotation[-1],
    }


def draw(runs: dict[str, Figures], path: Path) -> None:
    """Held-out loss and both KL, cosines of neighbouring snapshots, and where latents peak; a line style for a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for (name, one), style in zip(runs.items(), ("-", "--"), strict=False):
        left.plot(*zip(*one["held_out_loss"].items(), strict=True), style, color="C0", label=f"loss, {name}")
        steps = [each["step"] for each in one["snapshots"]]
        for colour, what in enumerate(("kl_unigram", "kl_bigram"), start=1):
            label = what.replace("_", " ") if style == "-" else None
            left.plot(steps, [each[what] for each in one["snapshots"]], style, color=f"C{colour}", label=label)
        middle.plot(steps[1:], one["crosscoder"]["cosines"]["neighbours"], style, color="C3", marker="o", ms=3)
        right.plot(steps, one["crosscoder"]["peaks"], style, color="C4", marker="o", ms=3)
    for what in ("unigram", "bigram"):
        entropy = one["exact_entropy"][what]
        left.axhline(entropy, color="grey", lw=0.8, ls=":")
        left.annotate(f"H {what}", (steps[-1], entropy), fontsize="small", ha="right", va="bottom")
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
