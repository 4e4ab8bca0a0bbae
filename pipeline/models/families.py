"""The block structures that hook names are known for: which child carries which point of the residual stream.

Names are TransformerLens'. Two meanings differ from it on purpose: ``hook_mlp_in`` is what the MLP module really gets,
after its norm, and every ``*_out`` is what is really added to the stream, after a norm or a scale behind the branch
(Gemma 2, DINOv2).

Pre-norm blocks (GPT-2, GPT-NeoX, Llama, Qwen, Mistral, Gemma, ModernBERT, T5, ViT, CLIP, DINOv2, timm):

    resid_mid = resid_pre + attn_out,  resid_post = resid_mid + mlp_out,  resid_pre of the next block = resid_post

Parallel blocks (GPT-NeoX with ``use_parallel_residual``): resid_post = resid_pre + attn_out + mlp_out, no resid_mid.

Post-norm blocks (BERT) normalise the stream itself, so the sums are before their norm, as TransformerLens has them:

    resid_mid = resid_pre + attn_out         mlp_in = LayerNorm(resid_mid)
    resid_post = mlp_in + mlp_out            normalized_resid_post = LayerNorm(resid_post) = resid_pre of the next block

A block of any other structure declares it itself, see docs/models.md.
"""

from __future__ import annotations

from torch import nn

from pipeline.models.family import DECLARED, Family, Place, Side
from schemas.errors import ModelError

__all__ = ["Family", "Place", "Side", "family_of"]

_SEQUENTIAL = (
    ("hook_resid_mid", "hook_resid_pre", "hook_attn_out"),
    ("hook_resid_post", "hook_resid_mid", "hook_mlp_out"),
)
_PARALLEL = (("hook_resid_post", "hook_resid_pre", "hook_attn_out", "hook_mlp_out"),)


def _pre_norm(
    name: str, children: set[str], *, attention: str, norm: str, mlp: str, attn_out: str = "", mlp_out: str = ""
) -> Family:
    """``norm``: the one before the MLP; ``attn_out``, ``mlp_out``: where a branch does not end with its module."""
    points: dict[str, Place] = {
        "hook_resid_pre": ("", "in"),
        "hook_attn_out": (attn_out or attention, "out"),
        "hook_resid_mid": (norm, "in"),
        "hook_mlp_in": (mlp, "in"),
        "hook_mlp_out": (mlp_out or mlp, "out"),
        "hook_resid_post": ("", "out"),
    }
    needed = frozenset({*children, attention, norm, mlp, *filter(None, (attn_out, mlp_out))})
    return Family(name, points, _SEQUENTIAL, needed, attention, mlp)


_GPT2 = _pre_norm("GPT-2", {"ln_1"}, attention="attn", norm="ln_2", mlp="mlp")
_NEOX = _pre_norm("GPT-NeoX", {"input_layernorm"}, attention="attention", norm="post_attention_layernorm", mlp="mlp")
_NEOX_PARALLEL = Family(
    "GPT-NeoX with parallel residual",
    {name: place for name, place in _NEOX.points.items() if name != "hook_resid_mid"},
    _PARALLEL,
    _NEOX.children,
    "attention",
    "mlp",
)
_GEMMA2 = _pre_norm(
    "Gemma 2",
    {"input_layernorm"},
    attention="self_attn",
    attn_out="post_attention_layernorm",
    norm="pre_feedforward_layernorm",
    mlp="mlp",
    mlp_out="post_feedforward_layernorm",
)
_LLAMA = _pre_norm("Llama", {"input_layernorm"}, attention="self_attn", norm="post_attention_layernorm", mlp="mlp")
_MODERNBERT = _pre_norm("ModernBERT", {"attn_norm"}, attention="attn", norm="mlp_norm", mlp="mlp")
_T5 = _pre_norm(
    "T5 encoder",
    {"layer.0.layer_norm"},
    attention="layer.0.SelfAttention",
    norm="layer.1.layer_norm",
    mlp="layer.1.DenseReluDense",
)
_VIT = _pre_norm("ViT", {"layernorm_before"}, attention="attention", norm="layernorm_after", mlp="mlp")
_CLIP = _pre_norm("CLIP", {"layer_norm1"}, attention="self_attn", norm="layer_norm2", mlp="mlp")
_DINO = _pre_norm(
    "DINOv2",
    {"norm1"},
    attention="attention",
    attn_out="layer_scale1",
    norm="norm2",
    mlp="mlp",
    mlp_out="layer_scale2",
)
_TIMM = _pre_norm("timm", {"norm1"}, attention="attn", attn_out="ls1", norm="norm2", mlp="mlp", mlp_out="ls2")
_BERT = Family(
    "BERT",
    {
        "hook_resid_pre": ("", "in"),
        "attn.hook_q": ("attention.self.query", "out"),
        "attn.hook_k": ("attention.self.key", "out"),
        "attn.hook_v": ("attention.self.value", "out"),
        "attn.hook_pattern": ("attention.self", "pattern"),
        "attn.hook_z": ("attention.output.dense", "in"),
        "hook_attn_out": ("attention.output.dense", "out"),
        "hook_resid_mid": ("attention.output.LayerNorm", "in"),
        "hook_mlp_in": ("intermediate", "in"),
        "mlp.hook_pre": ("intermediate.dense", "out"),
        "mlp.hook_post": ("output.dense", "in"),
        "hook_mlp_out": ("output.dense", "out"),
        "hook_resid_post": ("output.LayerNorm", "in"),
        "hook_normalized_resid_post": ("", "out"),
    },
    (("hook_resid_mid", "hook_resid_pre", "hook_attn_out"), ("hook_resid_post", "hook_mlp_in", "hook_mlp_out")),
    frozenset(
        {"attention.self.query", "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",
         "output.dense", "output.LayerNorm"}
    ),
)  # fmt: skip

# Gemma 2 has all children of Llama and more, so it is asked first.
_FAMILIES = (_GEMMA2, _LLAMA, _NEOX, _GPT2, _BERT, _MODERNBERT, _T5, _VIT, _CLIP, _DINO, _TIMM)


def family_of(block: nn.Module) -> Family | None:
    """The structure of one block, or None where it is not known.

    Raises:
        ModelError: the block declares something else than a ``Family``, or a place in a child that it has not.
    """
    present = {name for name, _ in block.named_modules()}
    declared = getattr(block, DECLARED, None)
    if declared is not None:
        _require_family(block, declared, present)
        assert isinstance(declared, Family)
        return declared
    found = next((family for family in _FAMILIES if family.children <= present), None)
    if found is not None and getattr(block, "use_parallel_residual", False):
        return _NEOX_PARALLEL if found is _NEOX else None
    return found


def _require_family(block: nn.Module, declared: object, present: set[str]) -> None:
    where = f"{type(block).__name__}.{DECLARED}"
    if not isinstance(declared, Family):
        raise ModelError(f"{where} is {type(declared).__name__}, expected a headworks.Family")
    paths = {path for path, _ in declared.points.values()} | {*filter(None, (declared.attention, declared.mlp))}
    if lost := sorted(paths - present):
        raise ModelError(f"{where} names child modules that the block has not: {lost}; it has {sorted(present)[1:]}")
    summed = {point for one in declared.sums for point in one}
    if lost := sorted(summed - {*declared.points}):
        raise ModelError(f"{where} has sums of points that it does not name: {lost}; it has {[*declared.points]}")
