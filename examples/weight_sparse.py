"""Do weight-sparse networks have smaller circuits? The figures of a dense and a weight-sparse decoder, side by side.

    headworks run examples/weight_sparse.yaml      trains both, searches the circuits of six tasks in each
    python examples/weight_sparse.py               prints the comparison
    python examples/weight_sparse.py --save        and keeps it in examples/results, with a drawing of a circuit

Fails where the held-out losses of the two differ by more than two percent: circuits of a worse model say nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from save_result import save

from pipeline.circuits.comparison import compare
from pipeline.report.graph import circuit_picture

RUNS = Path("runs/weight_sparse")
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "weight_sparse.svg"
MODELS = ("dense", "sparse")
MOST_DIFFERENT = 0.02
"""Share by which the held-out losses may differ."""


def main(arguments: Sequence[str]) -> None:
    """Print the comparison; with ``--save`` keep it."""
    models = {name: _read(f"{name}/train_model.json")["summary"] for name in MODELS}
    losses = [models[name]["held_out_loss"] for name in MODELS]
    circuits = {name: _read(f"{name}_circuits/circuits.json") for name in MODELS}
    compared = compare(circuits, "dense")
    _print(models, compared)
    if "--save" in arguments:
        parts = {"models": {name: _of_model(one) for name, one in models.items()}, "circuits": compared}
        print(save("weight_sparse", parts))
        _draw(compared, circuits["sparse"]["tasks"])
    if max(losses) > (1 + MOST_DIFFERENT) * min(losses):
        sys.exit(f"the held-out losses, {losses[0]:.4f} and {losses[1]:.4f}, are more than two percent apart")


def _read(file: str) -> Any:
    return json.loads((RUNS / file).read_text())


def _of_model(summary: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("parameters", "nonzero", "steps", "tokens", "loss", "held_out_loss", "seconds")
    return {key: summary[key] for key in keys if key in summary}


def _print(models: Mapping[str, Mapping[str, Any]], compared: Mapping[str, Any]) -> None:
    for name, one in models.items():
        print(f"{name}: {one['parameters']:,} weights, {one['tokens']:,} tokens, held out {one['held_out_loss']:.4f}")
    print(f"{'':20}" + "".join(f"{name:>8} nodes {'edges':>8} {'without':>8}" for name in MODELS))
    for task, found in compared["tasks"].items():
        print(f"{task:20}" + "".join(_cells(found[name]) for name in MODELS))
    means = compared["means"]
    print(f"{'geometric mean':20}" + "".join(_cells({"status": "found", **means[name]}) for name in MODELS))
    ratio = compared["ratios"]["sparse"]
    if ratio is not None:
        of = f"{ratio['least']:.1f} to {ratio['greatest']:.1f} over {len(compared['common'])} tasks"
        print(f"edges, dense by sparse: {ratio['edges']:.2f} ({of}); left out: {compared['left_out'] or 'none'}")


def _cells(one: Mapping[str, Any]) -> str:
    if one["status"] != "found":
        return f"{one['status']:>14} {'':8} {'':8}"
    without = f"{one['loss_without']:8.3f}" if "loss_without" in one else f"{'':8}"
    return f"{one['nodes']:14.0f} {one['edges']:8.0f} {without}"


def _draw(compared: Mapping[str, Any], sparse: Mapping[str, Any]) -> None:
    """The smallest circuit of the sparse network."""
    if not compared["common"]:
        return
    task = min(compared["common"], key=lambda name: sparse[name]["edges_at_target"])
    found = _read(f"sparse_circuits/searches/{task}.{sparse[task]['search']}.json")
    PICTURE.write_text(circuit_picture(found["circuit"], title=f"circuit of {task} in the sparse network") + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
