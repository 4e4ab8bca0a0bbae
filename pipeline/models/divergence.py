"""What a replacement does to a language model, and the gradient of that: KL(model || model with the replacement).

Shapes: B batch rows, L context length, D width at a hook point.

1. A clean forward, without gradients, gives the activations, what the block before the target returned, and the last
   hidden states.
2. The replacement is made of those activations, with its graph; the blocks from the target on run again, with theirs.
3. The head's part of the way back is done in slices of rows (``head.py``), the rest of it in one step. The weights of
   the model get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.gradients import in_fixed_order
from pipeline.models.load import LoadedModel
from pipeline.models.splice import SplicedForward
from schemas.errors import HookPointError, ModelError

Replace = Callable[[Mapping[str, Tensor]], Tensor]
"""Clean activations ``[B, L, D]`` by hook point -> what takes the target's place, ``[B, L, D]``, differentiable."""


@dataclass(frozen=True)
class Divergence:
    """Sums over the tokens of a batch."""

    nats: float
    """KL of the predictions of the next token."""
    downstream: float
    """||a^ - a||^2 / ||a||^2 at the hook points behind the target, averaged over those."""


class DivergenceForward:
    """A causal language model with one hook point that can be replaced. Keeps ``loaded``'s layers.

    Raises:
        ModelError, HookPointError: see ``SplicedForward``.
        ModelError: attention whose gradients differ from run to run.
    """

    def __init__(
        self, loaded: LoadedModel, target: str, *, sources: Sequence[str] = (), downstream: Sequence[str] = ()
    ) -> None:
        """``sources`` are what a replacement is made of, ``downstream`` hook points behind the target."""
        if loaded.spec.attention == "flash_attention_2":
            raise ModelError(
                "gradients through flash_attention_2 are added up in an order that changes from run to run; choose "
                "attention: sdpa or eager for the model of an end-to-end loss"
            )
        self._target = target
        self._downstream = list(downstream)
        self._device = loaded.device
        self._forward = SplicedForward(loaded, target, sources=[*sources, *downstream])

    def backward(
        self, token_ids: Tensor, lengths: Tensor, replace: Replace, *, weight: float, downstream_weight: float = 0.0
    ) -> Divergence:
        """Add the gradients of ``weight * nats + downstream_weight * downstream`` to what the replacement depends on.

        ``token_ids`` int64 ``[B, L]`` padded on the right, ``lengths`` int64 ``[B]``. All tokens of a context count:
        each predicts one more.

        Raises:
            HookPointError: a downstream hook point that the target does not reach.
        """
        ids, lengths = token_ids.to(self._device), lengths.to(self._device)
        counted = torch.arange(ids.shape[1], device=self._device) < lengths[:, None]
        with torch.no_grad():
            clean, activations, before = self._forward._run_clean(ids)
        passed: dict[str, Tensor] = {}
        with torch.enable_grad(), in_fixed_order(self._device):
            replacement = replace(activations)
            # Cloned: a later layer may write into the network's own tensor.
            watch = {name: _keeper(passed, name) for name in self._downstream}
            spliced = self._forward._run_spliced(ids, before, {self._target: replacement}, watch)
            nats, at_head = self._forward._head.divergence(clean, spliced, ids, counted)
            losses, gradients = [spliced.last_hidden_state], [at_head * weight]
            downstream = self._relative_error(passed, activations, counted)
            if downstream is not None:
                losses.append(downstream)
                gradients.append(torch.full_like(downstream, downstream_weight))
            if replacement.requires_grad:
                torch.autograd.backward(losses, gradients)
        return Divergence(nats, 0.0 if downstream is None else float(downstream.detach()))

    def _relative_error(
        self, passed: Mapping[str, Tensor], truth: Mapping[str, Tensor], counted: Tensor
    ) -> Tensor | None:
        if not self._downstream:
            return None
        total = torch.zeros((), device=self._device)
        for name in self._downstream:
            if not passed[name].requires_grad:
                raise HookPointError(
                    f"hook point {name!r} is not behind {self._target!r}, which therefore cannot change it"
                )
            wanted = truth[name][counted].float()
            error = (passed[name][counted].float() - wanted).square().sum(1)
            total = total + (error / wanted.square().sum(1)).sum()
        return total / len(self._downstream)


def _keeper(passed: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    return lambda tensor: passed.__setitem__(name, tensor.clone())
