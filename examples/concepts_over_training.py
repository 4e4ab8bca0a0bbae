"""When do a language model's concepts appear? A crosscoder over the snapshots of a training, from nothing to a report.

    1. train a GPT-2 of two layers on Python's own documentation and sources, saving at log-spaced steps
    2. collect the residual stream of all snapshots over one token table, as a group of row-aligned stores
    3. train a crosscoder over them, evaluate it, write report.html
    4. print what Ge et al. 2025 (arXiv 2509.17196) look at: how near the predictions are to unigrams and bigrams, where
       latents begin and peak, how far their directions turn, and whether latents of a single token come first

The first three are jobs that go on where they stopped. Twelve minutes on two cores that other work shared:

    python examples/concepts_over_training.py runs/concepts
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import train_checkpoints as checkpoints
from transformers import GPT2LMHeadModel

import headworks
from pipeline.analysis import trajectories
from pipeline.analysis.hierarchy import later, repeats
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.store.joined import JoinedStore
from schemas.pipeline import PipelineSpec

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
POINT = "blocks.1.hook_resid_post"
_ROWS = 32_768
"""Rows of the store in which the latents' tokens are looked at."""
_ONE_TOKEN, _MANY_TOKENS, _ON_REPEATS = 0.9, 0.5, 0.8


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
        "cross_entropy_tokens": 0,
        "output": str(folder),
    }
    return PipelineSpec.model_validate(
        {"name": "concepts", "jobs": [collect, fields | train, evaluate], "output": str(folder)}
    )


@dataclass(frozen=True)
class Phase:
    """How a snapshot predicts its own training text, in nats a token."""

    loss: float
    to_unigram: float
    """KL(unigram frequencies || prediction)."""
    to_bigram: float
    """KL(bigram frequencies || prediction)."""


@torch.no_grad()
def phases(folder: Path, steps: tuple[int, ...] = STEPS, *, num_contexts: int = 64) -> tuple[float, float, list[Phase]]:
    """Entropies of the text under its unigram and bigram frequencies, and a phase for each snapshot."""
    documents = checkpoints.texts()
    tokenizer = checkpoints.make_tokenizer(documents)
    ids = torch.tensor(tokenizer("\n".join(documents))["input_ids"])
    size = len(tokenizer)
    pairs_VV = torch.bincount(ids[:-1] * size + ids[1:], minlength=size * size).view(size, size).double()
    bigram_VV = pairs_VV / pairs_VV.sum(1, keepdim=True).clamp(min=1)
    unigram_V = torch.bincount(ids, minlength=size).double() / len(ids)
    entropy_V = -torch.xlogy(bigram_VV, bigram_VV).sum(1)
    starts = torch.randint(len(ids) - checkpoints.CONTEXT, (num_contexts,), generator=torch.Generator().manual_seed(1))
    rows = torch.stack([ids[start : start + checkpoints.CONTEXT] for start in starts.tolist()])
    before, after = rows[:, :-1].flatten(), rows[:, 1:].flatten()
    found = []
    for step in steps:
        model = GPT2LMHeadModel.from_pretrained(folder / "checkpoints" / f"step{step}").eval()
        predicted = torch.log_softmax(model(rows[:, :-1]).logits.flatten(0, 1).double(), dim=-1)
        near_uni = torch.xlogy(unigram_V, unigram_V).sum() - (predicted @ unigram_V).mean()
        near_bi = -entropy_V[before].mean() - (predicted * bigram_VV[before]).sum(1).mean()
        loss = -predicted[torch.arange(len(after)), after].mean()
        found.append(Phase(float(loss), float(near_uni), float(near_bi)))
    entropy = -float(torch.xlogy(unigram_V, unigram_V).sum())
    return entropy, float((entropy_V * unigram_V).sum()), found


@dataclass(frozen=True)
class Firing:
    """Of each latent [F], what it is on for; NaN of one that never is."""

    purity: torch.Tensor
    """Share of its activation on its most frequent token."""
    on_repeats: torch.Tensor
    """Share of its activation where the last two tokens came together earlier in the context."""
    base_rate: float
    """Share of all rows that are such repeats."""


@torch.no_grad()
def firing(dictionary: Dictionary, store: JoinedStore, *, num_rows: int = _ROWS) -> Firing:
    """Run the crosscoder over the first rows of the store."""
    num_rows = min(num_rows, store.num_rows)
    tokens = store.tokens(0, num_rows)
    ids = torch.from_numpy(tokens.token_id.astype("int64"))
    is_repeat = torch.from_numpy(repeats(tokens.token_id, tokens.context, 2))
    mass_FV = torch.zeros(dictionary.num_latents, int(ids.max()) + 1, dtype=torch.float64)
    repeated_F = torch.zeros(dictionary.num_latents, dtype=torch.float64)
    for start in range(0, num_rows, 4096):
        part = slice(start, min(start + 4096, num_rows))
        acts = {hook: torch.from_numpy(store.read_values(hook, part.start, part.stop)) for hook in dictionary.d_source}
        # The first position has its own, huge activations; training left it out.
        codes_BF = dictionary.codes_dense(dictionary.join_sources(acts)).double()
        codes_BF *= torch.from_numpy(tokens.position[part] > 0)[:, None]
        mass_FV.T.index_add_(0, ids[part], codes_BF)
        repeated_F += codes_BF[is_repeat[part]].sum(0)
    total_F = mass_FV.sum(1)
    return Firing(mass_FV.amax(1) / total_F, repeated_F / total_F, float(is_repeat.double().mean()))


def tell(folder: Path, steps: tuple[int, ...] = STEPS) -> None:
    """Print the figures of a finished run."""
    unigram, bigram, found = phases(folder, steps)
    print(f"entropy of the text: unigrams {unigram:.2f}, bigrams {bigram:.2f} nats a token")
    dictionary = headworks.load_dictionary(f"{folder}/dictionaries/crosscoder")
    parts = trajectories.decoder_parts(dictionary)
    norms_FH = trajectories.norms(parts)
    peak_F, onset_F = trajectories.peak_index(norms_FH), trajectories.onset(norms_FH)
    rotation_HH = trajectories.mean_rotation(parts)
    print("snapshot    loss  KL to uni  KL to bi  mean norm  onsets  peaks  fullness  cosine to next, to last")
    for index, (step, phase, part_FD) in enumerate(zip(steps, found, parts.values(), strict=True)):
        onsets, peaks = int((onset_F == index).sum()), int((peak_F == index).sum())
        fullness = float(trajectories.dimensionalities(part_FD).sum()) / part_FD.shape[1]
        following = float(rotation_HH[index, min(index + 1, len(steps) - 1)])
        print(
            f"step{step:<6}{phase.loss:6.2f}{phase.to_unigram:11.2f}{phase.to_bigram:10.2f}"
            f"{float(norms_FH[:, index].mean()):11.3f}{onsets:8}{peaks:7}{fullness:10.2f}{following:16.3f}"
            f"{float(rotation_HH[index, -1]):9.3f}"
        )
    store = headworks.open_store(f"{folder}/group")
    assert isinstance(store, JoinedStore)
    on = firing(dictionary, store)
    one_token = on.purity > _ONE_TOKEN
    groups = {
        "many tokens": on.purity < _MANY_TOKENS,
        "repeats": (on.purity < _MANY_TOKENS) & (on.on_repeats > _ON_REPEATS),
    }
    print(f"{int(one_token.sum())} latents have {_ONE_TOKEN:.0%} of their activation on one token")
    print(f"repeats of two tokens are {on.base_rate:.0%} of the rows")
    for name, chosen in groups.items():
        if not chosen.any() or not one_token.any():
            print(f"no latents of {name} to compare them with")
            continue
        for what, index_F in (("onset", onset_F), ("peak", peak_F)):
            chance, p = later(index_F[one_token], index_F[chosen])
            print(
                f"{what} of {int(chosen.sum())} latents of {name}: mean snapshot {_mean(index_F[chosen]):.1f}, of one "
                f"token {_mean(index_F[one_token]):.1f}; later with chance {chance:.2f}, p {p:.1e}"
            )


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean()) + 1


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
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/concepts").absolute())
