"""When do a language model's concepts appear? A crosscoder over the snapshots of a training, from nothing to a report.

    1. train a GPT-2 of two layers on Python's own documentation and sources, saving at log-spaced steps
    2. collect the residual stream of all snapshots over one token table, as a group of row-aligned stores
    3. train a crosscoder over them, evaluate it, write report.html
    4. print what Ge et al. 2025 (arXiv 2509.17196) look at: how near the predictions are to unigrams and bigrams, where
       latents begin and peak, how far their directions turn, and whether latents of a single token come first

The first three are jobs that go on where they stopped. A quarter of an hour on two cores that other work shared:

    python examples/concepts_over_training.py runs/concepts_over_training
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import train_checkpoints as checkpoints

import headworks
from schemas.pipeline import PipelineSpec

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
POINT = "blocks.1.hook_resid_post"


def pipeline_of(folder: Path, steps: tuple[int, ...] = STEPS, **train: Any) -> PipelineSpec:
    """The jobs behind the training of the model; ``train`` replaces fields of the train job."""
    sources = [f"step{step}/{POINT}" for step in steps]
    dictionary = {
        "name": "crosscoder",
        "sources": sources,
        "num_latents": 1024,
        "activation": {"kind": "batch_topk", "k": 16, "aux_k": 128, "dead_after_tokens": 100_000},
    }
    collect = {
        "kind": "collect",
        "name": "collect",
        "model": {"path": f"{folder}/checkpoints/step0", "dtype": "float32"},
        "snapshot_folders": f"{folder}/checkpoints/step*",
        "tokens": {
            "corpus": {"format": "text", "urls": ["{stdlib}/pydoc_data/topics.py", "{stdlib}/*.py"]},
            "packing": {"mode": "packed", "context_length": checkpoints.CONTEXT},
            "max_tokens": 131_072,
            "held_out_fraction": 0.1,
            "part_size": "256KiB",
            "output": f"{folder}/tokens",
        },
        "hook_points": [POINT],
        "storage": {"dtype": "bfloat16", "chunk_rows": 512, "shard_rows": 16_384},
        "workers": {"num_workers": 2, "cpus_per_worker": 1},
        "output": f"{folder}/group",
    }
    fields = {
        "kind": "train",
        "name": "train",
        "store": "${collect}",
        "dictionaries": [dictionary],
        "batch_rows": 1024,
        "num_epochs": 2,
        "workers": {"num_workers": 1, "cpus_per_worker": 2},
        "output": f"{folder}/dictionaries",
    }
    evaluate = {
        "kind": "evaluate",
        "name": "evaluate",
        "store": "${collect}",
        "dictionaries": "${train}",
        # All tokens are of one document, so none are held out.
        "rows": "all",
        "cross_entropy_tokens": 0,
        "snapshots": {"tokens": 4096, "rows": 32_768},
        "output": str(folder),
    }
    return PipelineSpec.model_validate(
        {"name": "concepts", "jobs": [collect, fields | train, evaluate], "output": str(folder)}
    )


def tell(folder: Path) -> None:
    """Print the figures of a finished run."""
    found = json.loads((folder / "evaluation.json").read_text())
    text, crosscoder = found["snapshots"], found["dictionaries"]["crosscoder"]["crosscoder"]
    print(
        f"entropy of the text: unigrams {text['entropy_unigram']:.2f}, bigrams {text['entropy_bigram']:.2f} nats a "
        "token"
    )
    print("snapshot    loss  KL to uni  KL to bi  mean norm  onsets  peaks  fullness  cosine to next, to last")
    last = len(text["snapshots"]) - 1
    for index, one in enumerate(text["snapshots"]):
        fullness = crosscoder["dimensionality"][index] / crosscoder["width"][index]
        cosines = (_shown(crosscoder["rotation"][index][other]) for other in (min(index + 1, last), last))
        print(
            f"{one['name']:10}{one['loss']:6.2f}{one['kl_unigram']:11.2f}{one['kl_bigram']:10.2f}"
            f"{crosscoder['mean_norm'][index]:11.3f}{crosscoder['onsets'][index]:8}{crosscoder['peaks'][index]:7}"
            f"{fullness:10.2f}{'{:>16}{:>9}'.format(*cosines)}"
        )
    hierarchy = crosscoder["hierarchy"]
    print(f"repeats of two tokens are {hierarchy['repeat_rate']:.0%} of the rows")
    for kind, figures in hierarchy["kinds"].items():
        print(f"{figures['count']} latents of kind {kind}")
        for what in ("onset", "peak"):
            against = figures["against_token_identity"][what]
            if against and kind != "token_identity":
                print(
                    f"  {what}: mean snapshot {figures[what]:.1f}, of token_identity "
                    f"{hierarchy['kinds']['token_identity'][what]:.1f}; later with chance {against['chance']:.2f}, "
                    f"p {against['p']:.1e}"
                )


def _shown(cosine: float | None) -> str:
    return "-" if cosine is None else f"{cosine:.3f}"


def main(folder: Path) -> None:
    """Everything."""
    started = time.perf_counter()
    if not (folder / "checkpoints" / f"step{STEPS[-1]}" / "tokenizer.json").exists():
        losses = checkpoints.train(folder / "checkpoints", STEPS)
        print(f"model: loss {losses[0]:.2f} to {sum(losses[-16:]) / 16:.2f}, {time.perf_counter() - started:.0f} s")
    headworks.run(pipeline_of(folder))
    tell(folder)
    print(f"{folder}/report.html, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/concepts_over_training").absolute())
