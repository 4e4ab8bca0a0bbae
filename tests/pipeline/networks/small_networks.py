"""Small decoders of every option, with weights large enough that every branch matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.models.load import LoadedModel, backbone_of
from pipeline.networks import HeadworksDecoderForCausalLM, build_network
from schemas.model import ModelSpec
from schemas.network import NetworkSpec

VOCAB, D_MODEL, LAYERS, HEADS, CONTEXT = 23, 16, 3, 4, 12

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow": {"d_head": 3, "d_mlp": 20, "biases": False},
    "sparse": {"activation_fraction": 0.25, "activation_fractions": {"mlp_neuron": 0.1, "attn_out": 1.0}},
    "sink": {"attention_sink": True, "positions": "learned"},
    "bigram": {"bigram_table": True, "tied_embeddings": True},
    "laurel": {"residual": {"kind": "laurel", "form": "rw_lr", "rank": 2}},
    "looking_back": {"residual": {"kind": "laurel", "form": "rw_lr_pa", "rank": 2, "previous": 3}},
    "pid": {"attention": {"kind": "pid", "proportional": 0.6, "integral": 0.1, "derivative": 0.2}},
}


def spec_of(option: str = "plain", **changes: Any) -> NetworkSpec:
    facts = {"layers": LAYERS, "d_model": D_MODEL, "heads": HEADS, "context_length": CONTEXT}
    return NetworkSpec.model_validate(facts | OPTIONS[option] | changes)


def build(option: str = "plain", **changes: Any) -> HeadworksDecoderForCausalLM:
    network = build_network(spec_of(option, **changes), VOCAB, seed=3)
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.2)
    return network.eval().requires_grad_(False)


def loaded(network: HeadworksDecoderForCausalLM, *, with_head: bool = False, attention: str = "sdpa") -> LoadedModel:
    """As ``load_model`` returns it."""
    network.set_attn_implementation(attention)
    facts = {"path": "small", "dtype": "float32", "device": "cpu", "attention": attention}
    return LoadedModel(
        module=network if with_head else backbone_of(network), spec=ModelSpec.model_validate(facts),
        dtype=torch.float32, device=torch.device("cpu"), identity={}, d_model=D_MODEL, num_layers=LAYERS,
    )  # fmt: skip


def token_ids(batch: int = 3, context: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (batch, context), generator=torch.Generator().manual_seed(seed))
