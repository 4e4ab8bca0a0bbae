"""Cross-entropy with activations replaced: reads contexts, yields the loss of the network around a replacement.

Shapes: B batch rows, L context length, D width at a hook point, N predicted tokens, V vocabulary.

1. A clean forward keeps the activations at the hook points, and what the block before the first of them returned.
2. For each replacement the network runs again with that block's output put in place of everything before it: only the
   blocks from the first hook point on compute. All do where blocks hand on more than the stream.
3. The head gives the loss of the predicted tokens (``head.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.copies import shallow_copy, with_layers
from pipeline.models.forward import run_backbone
from pipeline.models.head import CrossEntropy, Head, next_token_labels
from pipeline.models.hooks import find_blocks, resolve, substitute, tap
from pipeline.models.load import LoadedModel
from schemas.errors import HookPointError, ModelError


class SplicedForward:
    """A causal language model in which hook points can be replaced. Keeps ``loaded``'s layers.

    Raises:
        ModelError: the model was loaded without its head, is no causal language model, or its code is not built as a
            backbone followed by a head.
        HookPointError: an unknown hook point, or one outside of the blocks.
    """

    def __init__(self, loaded: LoadedModel, hook_points: str | Sequence[str], *, sources: Sequence[str] = ()) -> None:
        """``hook_points`` are those to be replaced; ``sources`` are only read, as a transcoder's input is."""
        names = [hook_points] if isinstance(hook_points, str) else list(hook_points)
        assert names, "at least one hook point"
        if loaded.spec.kind != "causal_lm" or loaded.module is loaded.backbone:
            raise ModelError(
                f"cross-entropy needs a causal_lm with its head; {loaded.spec.path!r} is of kind {loaded.spec.kind!r}"
                + (", loaded without its head" if loaded.spec.kind == "causal_lm" else "")
            )
        self._device = loaded.device
        self._backbone = loaded.backbone
        self._targets = dict.fromkeys(names)
        self._sites = {site.name: site for site in resolve(loaded.backbone, list(dict.fromkeys([*names, *sources])))}
        outside = [site.name for site in self._sites.values() if site.layer is None]
        blocks = find_blocks(loaded.backbone)
        if blocks is None or outside:
            raise HookPointError(f"hook point {outside[0]!r} is outside of the blocks and cannot be spliced")
        self._layers, self._layers_path = list(blocks.layers), blocks.path
        first = min(self._sites[name].layer or 0 for name in self._targets)
        self._first_layer = 0 if blocks.family.carries else first
        """Blocks before this one are not computed again."""
        self._head = Head(loaded.module)

    def begin(self, token_ids: Tensor, lengths: Tensor, mask: Tensor) -> SplicedBatch:
        """Run a batch clean, once, and keep what its variants need.

        ``token_ids`` int64 ``[B, L]`` padded on the right, ``lengths`` int64 ``[B]``, ``mask`` bool ``[B, L]``: the
        tokens whose prediction counts. The first token of a context is predicted by none and never counts, nor does
        padding.
        """
        return SplicedBatch(self, token_ids.to(self._device), lengths.to(self._device), mask.to(self._device))

    def loss(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        replace: Callable[[Tensor, Mapping[str, Tensor]], Tensor] | None,
        mask: Tensor,
    ) -> CrossEntropy:
        """One variant of one batch, for a single hook point: ``replace(target, all clean activations by name)``.

        None gives the clean loss. For several variants of a batch use ``begin``.
        """
        batch = self.begin(token_ids, lengths, mask)
        if replace is None:
            return batch.clean
        (name,) = self._targets
        return batch.loss({name: replace(batch.activations[name], batch.activations)})

    def _run_clean(self, token_ids: Tensor) -> tuple[Any, dict[str, Tensor], Any]:
        """The backbone's output, activations, and the output of the block before the first hook point."""
        before: list[Any] = []
        captured: dict[str, Tensor] = {}

        def keep_as(name: str) -> Callable[[Tensor], None]:
            # Cloned: a later layer may write into the network's own tensor.
            return lambda tensor: captured.__setitem__(name, captured.get(name, tensor.clone()))

        with ExitStack() as stack:
            for name, site in self._sites.items():
                stack.callback(tap(site, keep_as(name)).remove)
            if self._first_layer > 0:
                layer = self._layers[self._first_layer - 1]
                handle = layer.register_forward_hook(lambda _, __, output: before.append(output))
                stack.callback(handle.remove)
            final = run_backbone(self._backbone, token_ids, None, takes_mask=True)
        return final, captured, before[0] if before else None

    def _run_spliced(
        self,
        token_ids: Tensor,
        before: Any,
        replacements: Mapping[str, Tensor],
        watch: Mapping[str, Callable[[Tensor], None]] = MappingProxyType({}),
    ) -> Any:
        """The backbone's output with the given tensors in the places of the network's own. ``watch`` is called with
        what passes some other hook points then."""
        unknown = [name for name in replacements if name not in self._targets]
        assert not unknown, f"{unknown} are not among the hook points to be replaced"
        layers = [
            _returning(layer, before) if index < self._first_layer else layer
            for index, layer in enumerate(self._layers)
        ]
        with ExitStack() as stack:
            for name, tensor in replacements.items():
                for handle in substitute(self._sites[name], _giving(name, tensor)):
                    stack.callback(handle.remove)
            for name, keep in watch.items():
                stack.callback(tap(self._sites[name], keep).remove)
            resumed = with_layers(self._backbone, self._layers_path, layers)
            return run_backbone(resumed, token_ids, None, takes_mask=True)


class SplicedBatch:
    """One batch of contexts and its clean forward."""

    @torch.no_grad()
    def __init__(self, forward: SplicedForward, token_ids: Tensor, lengths: Tensor, mask: Tensor) -> None:
        assert token_ids.shape == mask.shape
        assert lengths.shape == token_ids.shape[:1]
        self._forward = forward
        self._token_ids = token_ids
        self._labels = next_token_labels(token_ids, lengths, mask)
        final, self.activations, self._before = forward._run_clean(token_ids)
        """Clean activations ``[B, L, D]`` at all hook points and sources, in the model's dtype."""
        self.clean = forward._head.cross_entropy(final, token_ids, self._labels)
        """The loss with nothing replaced."""

    @torch.no_grad()
    def loss(self, replacements: Mapping[str, Tensor]) -> CrossEntropy:
        """The loss with the activations at some of the hook points replaced by ``[B, L, D]`` tensors.

        They are converted to the dtype of the network. Rows behind a context's length change nothing.
        """
        final = self._forward._run_spliced(self._token_ids, self._before, replacements)
        return self._forward._head.cross_entropy(final, self._token_ids, self._labels)

    def self_check(self) -> float:
        """Nats by which the summed loss changes when each activation is replaced by itself; 0.0 where all is well."""
        unchanged = self.loss({name: self.activations[name] for name in self._forward._targets})
        return abs(unchanged.total - self.clean.total)


def _returning(layer: nn.Module, output: Any) -> nn.Module:
    """A shallow copy of a block, with all its attributes, that returns ``output`` without computing."""
    twin = shallow_copy(layer)
    twin.forward = lambda *_, **__: output
    return twin


def _giving(name: str, tensor: Tensor) -> Callable[[Tensor], Tensor]:
    def give(own: Tensor) -> Tensor:
        assert tensor.shape == own.shape, f"{name}: replacement {tuple(tensor.shape)}, activation {tuple(own.shape)}"
        return tensor.to(device=own.device, dtype=own.dtype)

    return give
