"""Gradients at hook points: reads contexts, yields the gradient of the loss at each point, a row for each token.

The loss is the cross-entropy of every next token of a context, in nats, summed over the context: so a row says what the
activation of its token does to the prediction of all tokens behind it. Contexts of a batch do not meet, so each has its
own loss, whatever it is batched with.

1. The forward runs to its end with the tensors at the points set to be differentiated; weights are not. Everything
   behind the first point is kept for the way back, which is why memory grows with the depth of the network.
2. The head's part of the way back is done in slices of rows (``head.py``), the backbone's in one step.

On CUDA the fused kernels of attention add up on their way back in an order that changes from run to run, so there
attention is computed step by step: slower, and the same bytes each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.models.head import Head, next_token_labels
from pipeline.models.hooks import GRADIENT, HookSite, is_gradient
from pipeline.models.load import LoadedModel
from pipeline.models.tapping import capture
from schemas.errors import HookPointError, ModelError

LOSS = "next-token cross-entropy, summed over the context"


def needs_head(hook_points: Sequence[str]) -> bool:
    """Whether the model must be loaded with its head."""
    return any(is_gradient(name) for name in hook_points)


class GradientTaker:
    """Forward and backward for the points whose gradient is wanted.

    Raises:
        ModelError: the model is no causal language model, was loaded without its head, or has attention whose
            gradients differ from run to run.
        HookPointError: the gradient of an attention pattern, which is a copy of what the network used.
    """

    def __init__(self, loaded: LoadedModel, sites: Sequence[HookSite], names: Sequence[str]) -> None:
        """``sites`` are all points that are wanted; ``names`` those whose gradient is, without the ending."""
        if loaded.spec.kind != "causal_lm" or loaded.module is loaded.backbone:
            raise ModelError(
                f"gradients are of the {LOSS}, so they need a causal_lm with its head; {loaded.spec.path!r} is of kind "
                f"{loaded.spec.kind!r}" + (", loaded without its head" if loaded.spec.kind == "causal_lm" else "")
            )
        if loaded.spec.attention == "flash_attention_2":
            raise ModelError(
                "gradients through flash_attention_2 are added up in an order that changes from run to run; choose "
                "model.attention: sdpa or eager"
            )
        if patterns := [site.name for site in sites if site.name in names and site.side == "pattern"]:
            raise HookPointError(f"hook point {patterns[0] + GRADIENT!r}: an attention pattern has no gradient here")
        self._sites = list(sites)
        self._names = list(names)
        self._head = Head(loaded.module)

    def run(
        self, run_network: Callable[[], Any], token_ids: Tensor, lengths: Tensor, *, copied: set[str]
    ) -> tuple[dict[str, Tensor], set[str]]:
        """As ``capture``, with ``NAME.grad`` besides.

        ``token_ids`` int64 ``[B, L]`` and ``lengths`` int64 ``[B]`` lie on the model's device.
        """
        outputs: list[Any] = []
        try:
            with torch.enable_grad(), in_fixed_order(token_ids.device):
                captured, mutated = capture(
                    lambda: outputs.append(run_network()),
                    self._sites,
                    copied=copied,
                    differentiated=frozenset(self._names),
                )
        except RuntimeError as error:
            if "in-place operation" not in str(error):
                raise
            points = ", ".join(f"{name}{GRADIENT}" for name in self._names)
            raise HookPointError(
                f"one of {points}: the network overwrites the activation there in place, so it has no gradient; "
                "choose a point before or behind it"
            ) from error
        found = {name: tensor.detach() for name, tensor in captured.items()}
        if mutated or not outputs:
            return found, mutated
        wanted = [name for name in self._names if name in captured]
        at_head = self._head.gradient(outputs[0], token_ids, next_token_labels(token_ids, lengths))
        taken = torch.autograd.grad(
            outputs[0].last_hidden_state, [captured[name] for name in wanted], at_head, materialize_grads=True
        )
        return found | {f"{name}{GRADIENT}": tensor for name, tensor in zip(wanted, taken, strict=True)}, mutated


def in_fixed_order(device: torch.device) -> AbstractContextManager[Any]:
    """Attention whose gradients are the same bytes each time."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()
