"""What the runs of sparsity_ablations.yaml say, as one table and examples/results/sparsity_ablations.json.

    headworks run examples/sparsity_ablations.yaml && python examples/sparsity_ablations.py

*Cut off*: a neuron that reads nothing or is read by nothing, since its row of W_up or its column of W_down has only
zeros; a channel of a head for which that is so of W_q or W_k, which always count together, or of W_v or W_o; a token
that has no weight of the unembedding.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from save_result import save
from torch import Tensor


def cut_off(weights: dict[str, Tensor]) -> dict[str, float]:
    """Shares of the neurons and of the heads' channels of all layers, and of the tokens."""
    neurons, channels = [], []
    for name, matrix in weights.items():
        if name.endswith("mlp.up_proj.weight"):
            down = weights[name.replace("up_proj", "down_proj")]
            neurons.append(_empty(matrix, 1) | _empty(down, 0))
        if name.endswith("attn.q_proj.weight"):
            query, key, value, out = (weights[name.replace("q_proj", f"{kind}_proj")] for kind in "qkvo")
            channels += [_empty(query, 1) | _empty(key, 1), _empty(value, 1) | _empty(out, 0)]
    return {
        "neurons_cut_off": float(torch.cat(neurons).float().mean()),
        "channels_cut_off": float(torch.cat(channels).float().mean()),
        "tokens_cut_off": float(_empty(weights["lm_head.weight"], 1).float().mean()),
    }


def _empty(weights: Tensor, axis: int) -> Tensor:
    return (weights == 0).all(dim=axis)


def figures(folder: Path) -> dict[str, Any]:
    """Of one training."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "train_model.json").read_text())["summary"]
    identity = json.loads((folder / "identity.json").read_text())
    norms = [line["gradient_norm"] for line in lines if "gradient_norm" in line]
    size = summary["parameters"] ** 0.5
    return {
        "steps": summary["steps"],
        "tokens": summary["tokens"],
        "seed": identity["seed"],
        "held_out_loss": summary["held_out_loss"],
        "held_out_losses": {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line},
        "gradient_rms": {"median": statistics.median(norms) / size, "max": max(norms) / size},
        "highest_rate": max(line["learning_rate"] for line in lines),
        "nonzero_share": summary.get("nonzero_share", 1.0),
        **cut_off(load_file(folder / "model" / "model.safetensors")),
        "seconds": summary["seconds"],
    }


def main(runs: Path) -> None:
    """Read all trainings in the folder; print and keep."""
    names = [path.parent.name for path in sorted(runs.glob("*/train_model.json"))]
    found = {name: figures(runs / name) for name in sorted(names, key=lambda name: (name != "recipe", name))}
    print(f"{'':16} held-out loss  neurons cut off  channels cut off  tokens cut off  gradient RMS, median and highest")
    for name, each in found.items():
        rms = each["gradient_rms"]
        print(
            f"{name:16} {each['held_out_loss']:13.3f} {each['neurons_cut_off']:16.1%} {each['channels_cut_off']:17.1%}"
            f" {each['tokens_cut_off']:15.1%}  {rms['median']:.4f}, {rms['max']:.4f}"
        )
    print(save("sparsity_ablations", {"runs": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sparsity_ablations"))
