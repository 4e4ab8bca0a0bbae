"""A job that cannot fit is refused with figures, before anything is allocated."""

from __future__ import annotations

import pytest
import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training import memory
from schemas.dictionary import DictionarySpec
from schemas.errors import ResourceError


def spec(num_latents: int, **fields: object) -> DictionarySpec:
    return DictionarySpec.model_validate({"name": "wide", "sources": ["in"], "num_latents": num_latents, **fields})


@pytest.mark.parametrize("fields", [{}, {"targets": ["out"]}, {"targets": ["out"], "skip": True}])
def test_estimate_counts_every_weight(fields: dict[str, object]) -> None:
    wanted = spec(50, **fields)
    widths = {"in": 7, "out": 9}
    dictionary = Dictionary(wanted, {"in": 7}, {p: widths[p] for p in wanted.target_points}, dict.fromkeys(widths, 1.0))
    assert memory.num_weights(wanted, widths) == sum(p.numel() for p in dictionary.parameters())


def test_a_rank_needs_the_memory_of_its_shard() -> None:
    wanted, widths = spec(51, targets=["out"], skip=True), {"in": 7, "out": 9}
    shard = Dictionary(wanted, {"in": 7}, {"out": 9}, dict.fromkeys(widths, 1.0), latents=range(13))
    expected = 16 * sum(parameter.numel() for parameter in shard.parameters())
    assert memory.required_bytes([wanted], widths, 4) == expected
    memory.require_memory([wanted], widths, available=4 * expected, ranks_per_node=4, latent_shards=4)
    with pytest.raises(ResourceError, match="a rank with gradient and optimiser"):
        memory.require_memory([wanted], widths, available=4 * expected - 1, ranks_per_node=4, latent_shards=4)


def test_refusal_names_the_figures() -> None:
    with pytest.raises(
        ResourceError, match=r"34\.36 GiB.*2 ranks.*1\.00 GiB(.|\n)*wide: 1,000,000 latents.*17\.18 GiB"
    ):
        memory.require_memory([spec(10**6)], {"in": 576}, available=2**30, ranks_per_node=2)


def test_what_fits_passes() -> None:
    memory.require_memory([spec(100)], {"in": 8}, available=memory.available_bytes(torch.device("cpu")))
