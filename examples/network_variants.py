"""Reads the models of network_variants.yaml: held-out loss, and how alike tokens of a context are behind each layer.

    headworks run examples/network_variants.yaml
    python examples/network_variants.py runs/network_variants                   a minute
    python examples/network_variants.py runs/network_variants --plot variants.svg

A variant is compared with the plain network seed by seed: the seed gives the order of contexts to all, and the same
first weights to what two networks have in common. A difference is called clear where no two losses of both are in the
wrong order. Writes examples/results/network_variants.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pictures
import torch
from save_result import save
from token_collapse import likeness as likeness_of_rows
from torch import Tensor

from pipeline.models.forward import ActivationForward
from pipeline.models.load import load_model
from pipeline.pretraining.contexts import read_contexts
from pipeline.tokens.reading import TokenTable
from schemas.model import ModelSpec

VARIANTS, SEEDS, LAYERS = ("plain", "pid", "laurel"), 3, 4
POINTS = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS))]
BRANCHES = [f"blocks.{layer}.hook_attn_out" for layer in range(LAYERS)]
CONTEXT, NUM_CONTEXTS = 64, 256


@dataclass(frozen=True)
class Trained:
    """One model."""

    loss: float
    """Nats a token on held-out documents."""
    curves: dict[str, list[float]]
    """Mean cosine of two tokens of a context: ``stream`` before the first layer and behind each, ``attention`` of what
    each layer's attention adds; ``untrained_stream`` and ``untrained_attention`` before the first step."""


def contexts(table: str) -> Tensor:
    """Held-out contexts of full length, [NUM_CONTEXTS, CONTEXT]."""
    held_out = read_contexts(TokenTable.open(table), 2**15).held_out
    whole = (torch.from_numpy(held_out.lengths) == CONTEXT).nonzero().squeeze(1)[:NUM_CONTEXTS]
    return torch.from_numpy(held_out.take(whole.numpy(), CONTEXT)[0])


def likeness(rows_BLD: Tensor) -> float:
    """Mean cosine of all pairs of different tokens of a context. The first token, the same in all, is left out."""
    return mean(likeness_of_rows(rows_LD) for rows_LD in rows_BLD[:, 1:])


def curves(model: Path, token_ids: Tensor) -> dict[str, list[float]]:
    """Of the stream and of the attention's outputs of a model folder."""
    forward = ActivationForward(load_model(ModelSpec(path=str(model), dtype="float32")), [*POINTS, *BRANCHES])
    lengths = torch.full((len(token_ids),), token_ids.shape[1])
    found = forward.run(token_ids, lengths)
    return {"stream": [likeness(found[one]) for one in POINTS], "attention": [likeness(found[one]) for one in BRANCHES]}


def read(folder: Path, token_ids: Tensor) -> Trained:
    """The output of one train_model job."""
    summary = json.loads((folder / "train_model.json").read_text())["summary"]
    before = curves(folder / "snapshots" / "step0", token_ids)
    return Trained(
        summary["held_out_loss"],
        curves(folder / "model", token_ids) | {f"untrained_{name}": curve for name, curve in before.items()},
    )


def compared(losses: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    """Differences to the plain network by seed, and whether they exceed the spread of the seeds."""
    differences = [one - other for one, other in zip(losses, plain, strict=True)]
    return {
        "differences": differences,
        "mean_difference": mean(differences),
        "clear": max(losses) < min(plain) or min(losses) > max(plain),
    }


def draw(found: dict[str, list[Trained]], path: Path) -> None:
    """The mean cosine behind each layer, each model a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, curve in zip(figure.subplots(1, 2, sharey=True), ("stream", "attention"), strict=True):
        for colour, (name, models) in enumerate(found.items()):
            for seed, one in enumerate(models):
                axes.plot(one.curves[curve], color=f"C{colour}", marker="o", label=name if seed == 0 else None)
        axes.set(
            title=f"mean cosine of tokens, {curve}",
            xlabel="layers before" if curve == "stream" else "layer",
            xticks=range(len(found["plain"][0].curves[curve])),
        )
    axes.legend(frameon=False)
    pictures.save(figure, path)


def result(found: dict[str, list[Trained]]) -> dict[str, Any]:
    """What is kept."""
    plain = [one.loss for one in found["plain"]]
    kept = {}
    for name, models in found.items():
        losses = [one.loss for one in models]
        kept[name] = {
            "held_out_loss": losses,
            "mean": mean(losses),
            "against_plain": compared(losses, plain) if name != "plain" else None,
            "likeness": {
                curve: [mean(values) for values in zip(*(one.curves[curve] for one in models), strict=True)]
                for curve in models[0].curves
            },
            "likeness_range": {
                curve: [
                    [min(values), max(values)] for values in zip(*(one.curves[curve] for one in models), strict=True)
                ]
                for curve in models[0].curves
            },
        }
    return {"seeds": SEEDS, "variants": kept}


def main(arguments: Sequence[str]) -> None:
    """A row for each variant."""
    root = Path(arguments[0])
    token_ids = contexts(str(root / "tokens"))
    found = {name: [read(root / f"{name}-{seed}", token_ids) for seed in range(SEEDS)] for name in VARIANTS}
    kept = result(found)
    print(f"{'':9} {'held-out loss':>22} {'mean':>7} {'to plain':>8}        mean cosine of tokens of a context")
    for name, one in kept["variants"].items():
        losses = " ".join(f"{loss:.4f}" for loss in one["held_out_loss"])
        against = one["against_plain"]
        said = "" if against is None else f"{against['mean_difference']:+.4f} {'clear' if against['clear'] else 'not'}"
        curve = " ".join(f"{value:.3f}" for value in one["likeness"]["stream"])
        print(f"{name:9} {losses} {one['mean']:7.4f} {said:14} {curve}")
        for curve_name in ("attention", "untrained_stream", "untrained_attention"):
            print(f"{curve_name:>47}  {' '.join(f'{value:.3f}' for value in one['likeness'][curve_name])}")
    print(save("network_variants", kept))
    if arguments[1:2] == ["--plot"]:
        draw(found, Path(arguments[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
