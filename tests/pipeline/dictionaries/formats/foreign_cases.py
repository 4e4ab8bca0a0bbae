"""Small dictionaries of every kind with random weights, scales that are not 1, and their own answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.folder import load_dictionary, save_dictionary
from schemas.dictionary import DictionaryRecord, DictionarySpec
from schemas.versions import versions

D, F, B = 6, 20, 16
RESID = "blocks.1.hook_resid_post"
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "relu": {"kind": "relu_l1"},
    "relu_centred": {"kind": "relu_l1_unit_norm"},
    "topk": {"kind": "topk", "k": 4},
    "batch_topk": {"kind": "batch_topk", "k": 4},
    "matryoshka": {"kind": "matryoshka_batch_topk", "k": 4, "prefixes": [0.25, 0.5, 1.0]},
    "jumprelu": {"kind": "jumprelu"},
    "gated": {"kind": "gated"},
}


def make(folder: Path, activation: str, seed: int = 0, **fields: Any) -> str:
    """Save a dictionary below ``folder``; its URL."""
    facts = {"name": "d", "sources": [RESID], "num_latents": F, "activation": ACTIVATIONS[activation], **fields}
    spec = DictionarySpec.model_validate(facts)
    generator = torch.Generator().manual_seed(seed)
    points = list(dict.fromkeys([*spec.sources, *spec.target_points]))
    scales = {point: 0.7 + 0.9 * index for index, point in enumerate(points)}
    dictionary = Dictionary(
        spec, dict.fromkeys(spec.sources, D), dict.fromkeys(spec.target_points, D), scales
    ).requires_grad_(False)
    for name, value in dictionary.state_dict().items():
        if name.endswith("log_threshold"):
            value.copy_(torch.rand(value.shape, generator=generator).log())
        elif name.endswith("threshold"):
            value.fill_(0.37)
        else:
            value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(D))
    dictionary.zero_outside_blocks()
    record = DictionaryRecord(
        spec=spec, d_source=dictionary.d_source, d_target=dictionary.d_target, scales=scales, store_fingerprint="s",
        table_fingerprint="t", model={"path": "planted"}, train_spec={}, steps=7, tokens=700, versions=versions(),
    )  # fmt: skip
    url = str(folder / spec.name)
    save_dictionary(url, dictionary, record)
    return url


def rows(points: list[str], seed: int = 5) -> dict[str, torch.Tensor]:
    """Raw activations, hook point -> [B, D]."""
    generator = torch.Generator().manual_seed(seed)
    return {point: torch.randn(B, D, generator=generator) * 2 for point in points}


def answers(url: str, acts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Latents [B, F] and reconstructions of the dictionary at ``url``."""
    dictionary = load_dictionary(url)
    x_BS = dictionary.join_sources(acts)
    return dictionary.codes_dense(x_BS), dictionary.reconstruct(acts)


def layered(folder: Path, activation: str, groups: str, num_layers: int = 3, **fields: Any) -> str:
    """A transcoder of several layers in one dictionary."""
    sources = [f"blocks.{layer}.hook_mlp_in" for layer in range(num_layers)]
    targets = [f"blocks.{layer}.hook_mlp_out" for layer in range(num_layers)]
    return make(
        folder, activation, sources=sources, targets=targets, groups=groups, num_latents=num_layers * F, **fields
    )
