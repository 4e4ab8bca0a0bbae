"""Hook points: turns names into places of a network, and taps or replaces the tensor at a place.

Two spellings: ``blocks.{i}.hook_*``, ``blocks.{i}.attn.hook_*`` and ``blocks.{i}.mlp.hook_*`` for known block
structures (``families.py``), and ``module:<path>:in|out`` for the first tensor that any submodule takes or returns.
Paths may be written from the backbone or from the whole model. With ``.grad`` behind it a name means the gradient of
the loss at that point: only ``ActivationForward`` computes it, and takes the ending off before it asks here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from pipeline.models.families import family_of
from pipeline.models.family import PATTERN, Family, Place, Side, points_of
from schemas.errors import HookPointError, nearest

GRADIENT = ".grad"
"""Ending of a name that means the gradient at the point before it."""

_NAMED = re.compile(r"blocks\.(\d+)\.((?:\w+\.)?hook_\w+)")
_MODULE = re.compile(r"module:(.*):(in|out)")
_RESID_MID = "hook_resid_mid"


@dataclass(frozen=True)
class Blocks:
    """The stack of equal blocks of a network."""

    path: str
    layers: nn.ModuleList | nn.Sequential
    family: Family
    has_patterns: bool
    """Whether attention forms its weights, so that they can be taken."""

    def points(self, layer: int) -> dict[str, Place]:
        """All points of one block, in the order in which a forward passes them."""
        return points_of(self.layers[layer], self.family, has_patterns=self.has_patterns)


@dataclass(frozen=True)
class HookSite:
    """One hook point in one network; the network owns the modules."""

    name: str
    module: nn.Module
    side: Side
    layer: int | None
    """Index of the block that the point lies in; None outside of the blocks."""
    stream_sum: tuple[nn.Module, nn.Module] | None = None
    """For the middle of a pre-norm block, which is no module's output alone: the block, and the module whose output is
    added to the point to give the block's output. A replacement has to reach that sum too."""
    context_length: int = 0
    """Of a pattern: columns that a destination token has for each head; contexts may be shorter, never longer."""


def find_blocks(module: nn.Module) -> Blocks | None:
    """The longest list of blocks of one known structure, or None."""
    found: Blocks | None = None
    # Only a transformers model can say that its attention is fused; any other shows its weights where it declares them.
    attention = getattr(getattr(module, "config", None), "_attn_implementation", None) or "eager"
    for path, layers in module.named_modules():
        if not isinstance(layers, nn.ModuleList | nn.Sequential) or len(layers) == 0:
            continue
        families = [family_of(layer) for layer in layers]
        family = families[0]
        if family is None or any(other is not family for other in families):
            continue
        if found is None or len(layers) > len(found.layers):
            found = Blocks(path, layers, family, has_patterns=attention == "eager")
    return found


def available(module: nn.Module) -> list[str]:
    """All ``blocks.*`` names of a network in forward order; for unknown structures all ``module:`` names."""
    blocks = find_blocks(module)
    if blocks is None:
        return _module_names(module)
    return [f"blocks.{layer}.{point}" for layer in range(len(blocks.layers)) for point in blocks.points(layer)]


def is_gradient(name: str) -> bool:
    """Whether a name means the gradient at a point."""
    return name.endswith(GRADIENT)


def is_pattern(name: str) -> bool:
    """Whether a name means the attention pattern of a block."""
    return name.endswith(f".{PATTERN}")


def resolve(module: nn.Module, names: Sequence[str], *, context_length: int = 0) -> list[HookSite]:
    """The places of ``names``, in their order. ``context_length``: the greatest length of a context, which attention
    patterns have as their width; 0 where it is not known.

    Raises:
        HookPointError: an unknown name, with the nearest known ones and the number of layers; an attention pattern of
            contexts without a greatest length, or of a network that does not form it.
    """
    blocks = find_blocks(module)
    return [_resolve_one(module, blocks, name, context_length) for name in names]


def block_sites(module: nn.Module, layer: int) -> tuple[Family, list[HookSite]]:
    """The points of one block that its structure relates by sums, and that structure; ``layer`` must exist."""
    blocks = find_blocks(module)
    assert blocks is not None
    summed = {point for one in blocks.family.sums for point in one}
    return blocks.family, [_named_site(blocks, layer, point) for point in blocks.points(layer) if point in summed]


def _resolve_one(module: nn.Module, blocks: Blocks | None, name: str, context_length: int) -> HookSite:
    if is_gradient(name):
        raise HookPointError(f"hook point {name!r} is a gradient: only whole models give it, and none is replaced")
    if match := _MODULE.fullmatch(name):
        return _module_site(module, blocks, name, match[1], "in" if match[2] == "in" else "out")
    match = _NAMED.fullmatch(name)
    if blocks is None:
        raise HookPointError(
            f"hook point {name!r}: the blocks of {type(module).__name__} have no known structure, so only "
            f"module:<path>:in|out works here; some are {', '.join(_module_names(module)[:4])}"
        )
    if match and int(match[1]) < len(blocks.layers):
        layer, point = int(match[1]), match[2]
        if point == PATTERN:
            _require_pattern(blocks, layer, name, context_length)
        if point in blocks.points(layer):
            return _named_site(blocks, layer, point, context_length)
    raise HookPointError(_unknown(module, blocks, name, match))


def _require_pattern(blocks: Blocks, layer: int, name: str, context_length: int) -> None:
    block = blocks.layers[layer]
    if PATTERN in points_of(block, blocks.family) and not blocks.has_patterns:
        raise HookPointError(
            f"hook point {name!r}: attention patterns need model.attention: eager; fused attention never forms them"
        )
    if PATTERN in blocks.points(layer) and not context_length:
        raise HookPointError(
            f"hook point {name!r} has a column for each head and each token of the context, so it needs contexts of a "
            "greatest length; here there is none"
        )


def _named_site(blocks: Blocks, layer: int, point: str, context_length: int = 0) -> HookSite:
    block = blocks.layers[layer]
    path, side = blocks.points(layer)[point]
    stream_sum = None
    after = next((others for total, *others in blocks.family.sums if _RESID_MID in others), None)
    if point == _RESID_MID and after is not None:
        branch = next(other for other in after if other != _RESID_MID)
        stream_sum = (block, block.get_submodule(blocks.family.points[branch][0]))
    return HookSite(f"blocks.{layer}.{point}", block.get_submodule(path), side, layer, stream_sum, context_length)


def _unknown(module: nn.Module, blocks: Blocks, name: str, match: re.Match[str] | None) -> str:
    count = len(blocks.layers)
    extent = f"the model has {count} layers (blocks.0 to blocks.{count - 1}), of the structure of {blocks.family.name}"
    if match and match[2] == _RESID_MID and _RESID_MID not in blocks.family.points and int(match[1]) < count:
        return (
            f"hook point {name!r} does not exist: attention and MLP of a {blocks.family.name} block both read "
            "hook_resid_pre and are added to it at once, so the stream has no value between them; "
            "use hook_resid_pre, hook_resid_post, hook_attn_out or hook_mlp_out"
        )
    known = available(module)
    layer = int(match[1]) if match and int(match[1]) < count else 0
    prefix = f"blocks.{layer}."
    points = ", ".join(one.removeprefix(prefix) for one in known if one.startswith(prefix))
    return f"hook point {name!r} does not exist; {extent}{nearest(name, known)}. Points of a block: {points}"


def _module_site(module: nn.Module, blocks: Blocks | None, name: str, path: str, side: Side) -> HookSite:
    prefix = str(getattr(module, "base_model_prefix", ""))
    modules = dict(module.named_modules())
    for candidate in (path, path.removeprefix(f"{prefix}."), f"{prefix}.{path}"):
        if candidate in modules:
            return HookSite(name, modules[candidate], side, _layer_of(blocks, candidate))
    known = [f"module:{known}:{side}" for known in modules if known]
    raise HookPointError(f"hook point {name!r}: the model has no module {path!r}{nearest(name, known)}")


def _layer_of(blocks: Blocks | None, path: str) -> int | None:
    if blocks is None or not path.startswith(f"{blocks.path}."):
        return None
    return int(path.removeprefix(f"{blocks.path}.").partition(".")[0])


def _module_names(module: nn.Module) -> list[str]:
    return [f"module:{path}:{side}" for path, _ in module.named_modules() if path for side in ("in", "out")]


def tap(site: HookSite, keep: Callable[[Tensor], None]) -> RemovableHandle:
    """Call ``keep`` with the very tensor at the site (no copy), each time the forward passes it.

    Of an attention pattern ``[B, heads, L, L]`` it gets a copy ``[B, L, heads * context_length]``, zeros where a
    context is shorter.
    """
    if site.side == "pattern":
        return site.module.register_forward_hook(lambda _, __, output: keep(_pattern_rows(site, output)))
    return change(site.module, site.side, keep)


def _pattern_rows(site: HookSite, output: Any) -> Tensor:
    values = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else (output,)
    found = [value for value in values if isinstance(value, Tensor) and value.ndim == 4]
    if not found:
        raise HookPointError(
            f"hook point {site.name!r}: {type(site.module).__name__} returns no attention pattern; choose other points"
        )
    pattern = found[-1].transpose(1, 2)
    missing = site.context_length - pattern.shape[3]
    assert missing >= 0, f"a context of {pattern.shape[3]} tokens, {site.context_length} at most were announced"
    return functional.pad(pattern, (0, missing)).flatten(2)


def substitute(site: HookSite, new: Callable[[Tensor], Tensor]) -> list[RemovableHandle]:
    """Let the forward go on with ``new(tensor)`` in the place of the tensor; the caller removes the handles.

    Raises:
        HookPointError: an attention pattern, which is known only after it was used.
    """
    if site.side == "pattern":
        raise HookPointError(f"hook point {site.name!r}: an attention pattern can be collected, but not replaced")
    if site.stream_sum is None:
        return [change(site.module, site.side, new)]
    block, branch = site.stream_sum
    kept: dict[str, Tensor] = {}

    def replace_middle(tensor: Tensor) -> Tensor:
        kept["middle"] = new(tensor)
        return kept["middle"]

    def keep_branch(tensor: Tensor) -> None:
        kept["branch"] = tensor

    return [
        change(site.module, site.side, replace_middle),
        change(branch, "out", keep_branch),
        # Addition of two terms commutes exactly: an unchanged middle gives the block's own output, bit for bit.
        change(block, "out", lambda _: kept.pop("middle") + kept.pop("branch")),
    ]


def change(module: nn.Module, side: Side, new: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Hook one side of a module; ``new`` returns the tensor to go on with, or None to leave it."""
    if side == "in":

        def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            changed = _with_first([*args, *kwargs.values()], new)
            if changed is None:
                return None
            return tuple(changed[: len(args)]), dict(zip(kwargs, changed[len(args) :], strict=True))

        return module.register_forward_pre_hook(on_input, with_kwargs=True)

    def on_output(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return new(output)
        if isinstance(output, dict):  # transformers' output classes are dictionaries too
            changed = _with_first(list(output.values()), new)
            return None if changed is None else type(output)(**dict(zip(output, changed, strict=True)))
        changed = _with_first(list(output), new) if isinstance(output, list | tuple) else None
        return None if changed is None else type(output)(changed)

    return module.register_forward_hook(on_output)


def _with_first(values: list[Any], new: Callable[[Tensor], Tensor | None]) -> list[Any] | None:
    """``values`` with the first tensor among them changed; None where it stays."""
    for index, value in enumerate(values):
        if isinstance(value, Tensor):
            tensor = new(value)
            return None if tensor is None else [*values[:index], tensor, *values[index + 1 :]]
    return None
