"""The block structures that hook names are known for: which child carries which point of the residual stream.

Names are TransformerLens'. Two meanings differ from it on purpose: ``hook_mlp_in`` is what the MLP module really gets,
after its norm, and every ``*_out`` is what is really added to the stream, after a norm behind the branch (Gemma 2).

Pre-norm blocks (GPT-2, GPT-NeoX, Llama, Qwen, Mistral, Gemma):

    resid_mid = resid_pre + attn_out,  resid_post = resid_mid + mlp_out,  resid_pre of the next block = resid_post

Parallel blocks (GPT-NeoX with ``use_parallel_residual``): resid_post = resid_pre + attn_out + mlp_out, no resid_mid.

Post-norm blocks (BERT) normalise the stream itself, so the sums are before their norm, as TransformerLens has them:

    resid_mid = resid_pre + attn_out         mlp_in = LayerNorm(resid_mid)
    resid_post = mlp_in + mlp_out            normalized_resid_post = LayerNorm(resid_post) = resid_pre of the next block
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

Side = Literal["in", "out"]
Place = tuple[str, Side]
"""Child module of the block (empty: the block itself) and the side of it."""


@dataclass(frozen=True)
class Family:
    """One block structure, recognised by the child modules that it must have."""

    name: str
    children: frozenset[str]
    points: dict[str, Place]
    """In the order in which a forward passes them."""
    sums: tuple[tuple[str, ...], ...]
    """Each first name is the sum of the others; checked on a real forward before anything is collected."""


def _pre_norm(attn_out: str, resid_mid: str, mlp_out: str) -> dict[str, Place]:
    return {
        "hook_resid_pre": ("", "in"),
        "hook_attn_out": (attn_out, "out"),
        "hook_resid_mid": (resid_mid, "in"),
        "hook_mlp_in": ("mlp", "in"),
        "hook_mlp_out": (mlp_out, "out"),
        "hook_resid_post": ("", "out"),
    }


_SEQUENTIAL = (
    ("hook_resid_mid", "hook_resid_pre", "hook_attn_out"),
    ("hook_resid_post", "hook_resid_mid", "hook_mlp_out"),
)
_PARALLEL = (("hook_resid_post", "hook_resid_pre", "hook_attn_out", "hook_mlp_out"),)

_GPT2 = Family("GPT-2", frozenset({"ln_1", "attn", "ln_2", "mlp"}), _pre_norm("attn", "ln_2", "mlp"), _SEQUENTIAL)
_NEOX = Family(
    "GPT-NeoX",
    frozenset({"input_layernorm", "attention", "post_attention_layernorm", "mlp"}),
    _pre_norm("attention", "post_attention_layernorm", "mlp"),
    _SEQUENTIAL,
)
_NEOX_PARALLEL = Family(
    "GPT-NeoX with parallel residual",
    _NEOX.children,
    {name: place for name, place in _NEOX.points.items() if name != "hook_resid_mid"},
    _PARALLEL,
)
_GEMMA2 = Family(
    "Gemma 2",
    frozenset(
        {"input_layernorm", "self_attn", "post_attention_layernorm", "pre_feedforward_layernorm", "mlp",
         "post_feedforward_layernorm"}
    ),
    _pre_norm("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    _SEQUENTIAL,
)  # fmt: skip
_LLAMA = Family(
    "Llama",
    frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}),
    _pre_norm("self_attn", "post_attention_layernorm", "mlp"),
    _SEQUENTIAL,
)
_BERT = Family(
    "BERT",
    frozenset(
        {"attention.self", "attention.output.dense", "attention.output.LayerNorm", "intermediate", "output.dense",
         "output.LayerNorm"}
    ),
    {
        "hook_resid_pre": ("", "in"),
        "hook_attn_out": ("attention.output.dense", "out"),
        "hook_resid_mid": ("attention.output.LayerNorm", "in"),
        "hook_mlp_in": ("intermediate", "in"),
        "hook_mlp_out": ("output.dense", "out"),
        "hook_resid_post": ("output.LayerNorm", "in"),
        "hook_normalized_resid_post": ("", "out"),
    },
    (("hook_resid_mid", "hook_resid_pre", "hook_attn_out"), ("hook_resid_post", "hook_mlp_in", "hook_mlp_out")),
)  # fmt: skip

# Gemma 2 has all children of Llama and more, so it is asked first.
_FAMILIES = (_GEMMA2, _LLAMA, _NEOX, _GPT2, _BERT)


def family_of(block: nn.Module) -> Family | None:
    """The structure of one block, or None where it is not known."""
    present = {name for name, _ in block.named_modules()}
    found = next((family for family in _FAMILIES if family.children <= present), None)
    if found is not None and getattr(block, "use_parallel_residual", False):
        return _NEOX_PARALLEL if found is _NEOX else None
    return found
