"""Forwards that stop early: reads token ids, yields the activations at hook points.

Shapes: B batch rows, L context length, D width at a hook point.

1. Blocks behind the last wanted one are cut off a shallow copy of the backbone; the loaded network stays whole.
2. A probe of a few tokens finds the widths, checks the residual sums that the names promise, finds points that the
   network overwrites in place, and whether padding could change the rows before it.
3. ``run`` taps the points and leaves the forward by an exception as soon as the last one is reached; what comes behind
   it in its block, the final norm and the head never run. Where gradients are wanted, all of them run, and back
   (``gradients.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.copies import with_layers
from pipeline.models.gradients import GradientTaker, needs_head
from pipeline.models.hooks import GRADIENT, HookSite, block_sites, find_blocks, is_gradient, resolve
from pipeline.models.load import LoadedModel
from pipeline.models.tapping import capture
from schemas.errors import HookPointError, ModelError

__all__ = ["ActivationForward", "capture", "cut_after", "needs_head", "run_backbone"]

PROBE_IDS = ((0, 0), (0, 1))
"""Contexts that a network is tried on: they begin alike and end unlike."""
_LOOKS_AHEAD = ("masked_lm", "encoder")
# Above the rounding of matrix products of another batch shape, far below what another token does to a row.
_SAME_RELATIVE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


class ActivationForward:
    """Runs a network up to the last wanted hook point. Keeps ``loaded``'s layers, not ``loaded`` itself.

    Raises:
        HookPointError: an unknown hook point; one that gives no ``[B, L, D]`` tensor; a block that does not add up as
            its structure says; a gradient at a point that the network overwrites in place.
        ModelError: the network gives NaN or Inf on the probe; gradients of a model that was loaded without its head.
    """

    def __init__(
        self, loaded: LoadedModel, hook_points: Sequence[str], *, context_length: int = 0, image_size: int = 0
    ) -> None:
        """``context_length``: no context will be longer; attention patterns need it, as their width. A model with hook
        points that ``needs_head`` must have been loaded with its head. ``image_size``: pixels on a side of what a model
        of kind ``vision`` takes; all its contexts have ``context_length`` rows."""
        assert hook_points, "at least one hook point"
        self._names = list(dict.fromkeys(hook_points))
        points = dict.fromkeys(name.removesuffix(GRADIENT) for name in self._names)
        self._sites = resolve(loaded.backbone, list(points), context_length=context_length)
        gradients = [name.removesuffix(GRADIENT) for name in self._names if is_gradient(name)]
        self._taker = GradientTaker(loaded, self._sites, gradients) if gradients else None
        self._network = loaded.backbone if gradients else cut_after(loaded.backbone, self._sites)
        self._device = loaded.device
        self._takes_mask = loaded.spec.kind not in ("module", "vision")
        self._image_rows = context_length if loaded.spec.kind == "vision" else 0
        self._dtype = loaded.dtype
        self._probe_inputs = torch.tensor(PROBE_IDS, device=self._device)
        if self._image_rows:
            shape = (len(PROBE_IDS), 3, image_size, image_size)
            self._probe_inputs = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float32).view(shape)
            self._probe_inputs = self._probe_inputs.to(self._device, self._dtype)
        self._mutated: set[str] = set()
        self._tolerance = _SAME_RELATIVE[loaded.dtype]
        probe = self._probe()
        self.widths: dict[str, int] = {name: probe[name].shape[2] for name in self._names}
        """Width D of each hook point, in the order asked for."""
        self.padding_safe = loaded.spec.kind == "vision" or (
            loaded.spec.kind not in _LOOKS_AHEAD
            and all(self._causal(tensor) for name, tensor in probe.items() if not is_gradient(name))
        )
        """Rows do not change with what stands behind them, so padding needs no mask."""
        _check_sums(self._network, self._sites, self._run_network, self._probe_inputs, self._tolerance)

    @property
    def device(self) -> torch.device:
        """Where the network is, and its activations."""
        return self._device

    @property
    def network(self) -> nn.Module:
        """What runs: the backbone up to the last wanted block."""
        return self._network

    @torch.no_grad()
    def run(self, token_ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Activations ``[B, L, D]`` at each hook point, on the model's device and in its dtype; the caller owns them.

        ``token_ids`` int64 ``[B, L]`` padded on the right with any token, ``lengths`` int64 ``[B]``. Rows behind a
        context's length hold nothing of use. A model of kind ``vision`` takes pixels ``[B, 3, size, size]`` in their
        place, and gives a row for each special token and patch.
        """
        if self._image_rows:
            found = self._captured(token_ids.to(self._device, self._dtype), None, lengths)
            return {name: found[name] for name in self._names}
        assert token_ids.ndim == 2
        assert lengths.shape == token_ids.shape[:1]
        token_ids = token_ids.to(self._device)
        if self.padding_safe or bool((lengths == token_ids.shape[1]).all()):
            found = self._captured(token_ids, None, lengths)
        elif self._takes_mask:
            steps = torch.arange(token_ids.shape[1], device=self._device)
            found = self._captured(token_ids, (steps < lengths.to(self._device)[:, None]).long(), lengths)
        else:
            found = self._by_length(token_ids, lengths)
        return {name: found[name] for name in self._names}

    def _by_length(self, token_ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """A module that takes no mask and looks ahead sees only contexts of one length at a time, unpadded."""
        batch, context = token_ids.shape
        whole: dict[str, Tensor] = {}
        for length in sorted(set(lengths.tolist())):
            rows = (lengths == length).nonzero().squeeze(1).to(self._device)
            for name, tensor in self._captured(token_ids[rows, :length], None, lengths[rows.cpu()]).items():
                if name not in whole:
                    whole[name] = tensor.new_zeros((batch, context, tensor.shape[2]))
                whole[name][rows, :length] = tensor
        return whole

    def _captured(self, token_ids: Tensor, mask: Tensor | None, lengths: Tensor) -> dict[str, Tensor]:
        """One forward; a second one with copies if the network wrote into a captured tensor after it was taken."""
        captured, mutated = self._capture(token_ids, mask, lengths)
        if mutated:
            self._mutated |= mutated
            captured, mutated = self._capture(token_ids, mask, lengths)
            if mutated:
                name = min(mutated) + GRADIENT
                raise HookPointError(f"hook point {name!r}: the network overwrites the activation there in place")
        return captured

    def _capture(self, token_ids: Tensor, mask: Tensor | None, lengths: Tensor) -> tuple[dict[str, Tensor], set[str]]:
        def run() -> Any:
            return self._run_network(token_ids, mask)

        if self._taker is not None:
            return self._taker.run(run, token_ids, lengths.to(self._device), copied=self._mutated)
        return capture(run, self._sites, copied=self._mutated)

    def _run_network(self, token_ids: Tensor, mask: Tensor | None) -> object:
        return run_backbone(self._network, token_ids, mask, takes_mask=self._takes_mask)

    @torch.no_grad()
    def _probe(self) -> dict[str, Tensor]:
        inputs = self._probe_inputs
        num_rows = self._image_rows or inputs.shape[1]
        captured = self._captured(inputs, None, torch.full((len(inputs),), num_rows))
        for name in self._names:
            shape = tuple(captured[name].shape) if name in captured else None
            if shape is None:
                raise HookPointError(f"hook point {name!r} is never reached by the forward of the model")
            if self._image_rows and len(shape) == 3 and shape[1] != num_rows:
                raise HookPointError(
                    f"hook point {name!r} gives {shape[1]} rows for an image, the token table has {num_rows}: say in "
                    "tokens.corpus which special_tokens come before the patches, and the model's size and patch_size"
                )
            if len(shape) != 3 or shape[:2] != (len(inputs), num_rows) or not captured[name].is_floating_point():
                raise HookPointError(
                    f"hook point {name!r} gives a tensor of shape {list(shape)} for inputs of shape "
                    f"{list(inputs.shape)}; activations are collected as [batch, context, width]"
                )
        return captured

    def _causal(self, tensor: Tensor) -> bool:
        """Both probes begin alike and end unlike: are the first rows alike?"""
        return _close(tensor[1, 0], tensor[0, 0], self._tolerance)


def run_backbone(network: nn.Module, token_ids: Tensor, mask: Tensor | None, *, takes_mask: bool) -> object:
    """Call a network; a plain module gets the token ids alone. ``mask`` int64 ``[B, L]``, None for all ones.

    All ones are said rather than left out: transformers drops such a mask itself and takes the fast attention path, and
    does not warn of padding where a context happens to begin or end with the padding token.
    """
    if not takes_mask:
        return network(token_ids)
    mask = torch.ones_like(token_ids) if mask is None else mask
    return network(input_ids=token_ids, attention_mask=mask, use_cache=False)


def cut_after(backbone: nn.Module, sites: Sequence[HookSite]) -> nn.Module:
    """The backbone without the blocks behind the last site; itself where a site lies outside of the blocks.

    Only the modules on the way to the list of blocks are copied, shallowly; all weights are shared.
    """
    blocks = find_blocks(backbone)
    wanted = [site.layer for site in sites if site.layer is not None]
    if blocks is None or len(wanted) < len(sites):
        return backbone
    return with_layers(backbone, blocks.path, list(blocks.layers)[: max(wanted) + 1])


@torch.no_grad()
def _check_sums(
    network: nn.Module,
    sites: Sequence[HookSite],
    run_network: Callable[[Tensor, Tensor | None], object],
    inputs: Tensor,
    tolerance: float,
) -> None:
    """Hold every block that a ``blocks.*`` name points into to the sums of its family.

    A structure is recognised by the names of its children; a block that has the names but scales its branches, say,
    would give activations that are not what the hook names mean.
    """
    named = sorted({site.layer for site in sites if site.layer is not None and site.name.startswith("blocks.")})
    for layer in named:
        family, all_sites = block_sites(network, layer)
        captured, _ = capture(lambda: run_network(inputs, None), all_sites, copied={site.name for site in all_sites})
        points = {name.rpartition(".")[2]: tensor for name, tensor in captured.items()}
        if not all(bool(tensor.isfinite().all()) for tensor in points.values()):
            raise ModelError(
                f"block {layer} of {type(network).__name__} gives NaN or Inf in {next(iter(points.values())).dtype}; "
                "choose another model.dtype (bfloat16 has the range of float32) or look for damaged weights"
            )
        for total, *terms in family.sums:
            if not _close(sum(points[term].float() for term in terms), points[total], tolerance):  # type: ignore[arg-type]
                raise HookPointError(
                    f"block {layer} of {type(network).__name__} is built like {family.name}, but its {total} is not "
                    f"{' + '.join(terms)}, so hook names would mislead; use module:<path>:in|out"
                )


def _close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    difference = (ours.float() - theirs.float()).norm()
    return bool(difference <= tolerance * theirs.float().norm())
