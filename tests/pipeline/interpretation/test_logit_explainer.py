"""The way of a decoder row through the last norm, for norms of every kind."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import D_MODEL, build, loaded

from pipeline.interpretation.logit_explainer import last_norm, through_norm


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "gemma2"])
def test_rows_go_through_the_norm_as_the_model_has_it(family: str) -> None:
    """But for the length, which the linear part keeps: LayerNorm centres, and Gemma's gain is 1 + weight."""
    network = build(family)
    norm = last_norm(loaded(network, with_head=True), D_MODEL)
    assert norm is not None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(D_MODEL, generator=generator))
        rows_FD = torch.randn(5, D_MODEL, generator=generator)
        without_bias = norm(rows_FD) - norm(-rows_FD)
    cosines = torch.nn.functional.cosine_similarity(through_norm(rows_FD, norm), without_bias)
    torch.testing.assert_close(cosines, torch.ones(5))
    assert torch.equal(through_norm(rows_FD, None), rows_FD)
