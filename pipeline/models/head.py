"""The head of a causal language model: reads what its backbone returned, yields the loss, and its gradient there.

Shapes: B batch rows, L context length, N predicted tokens, D width of the stream, V vocabulary.

Logits are made for the predicted tokens alone, a slice of rows at a time, so that memory does not grow with B * L * V.
The head runs through the model's own code, soft caps and scales included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.copies import shallow_copy
from schemas.errors import ModelError

LOGITS_BYTES = 64 << 20
"""Memory for the float32 logits of one slice."""

IGNORED = -1
"""Label of a token from which nothing is predicted."""


@dataclass(frozen=True)
class CrossEntropy:
    """Nats, summed over the predicted tokens in float64."""

    total: float
    count: int

    @property
    def mean(self) -> float:
        """Nats a token; NaN where none was predicted."""
        return self.total / self.count if self.count else float("nan")


def next_token_labels(token_ids: Tensor, lengths: Tensor, counted: Tensor | None = None) -> Tensor:
    """int64 ``[B, L]``: the token to be predicted, where the prediction is made; ``IGNORED`` elsewhere.

    ``counted`` bool ``[B, L]``: the tokens whose prediction counts. The first token of a context is predicted by none
    and never counts, nor does padding.
    """
    steps = torch.arange(token_ids.shape[1], device=token_ids.device)
    kept = (steps < lengths[:, None]) & (steps > 0)
    if counted is not None:
        kept &= counted.bool()
    return torch.where(kept, token_ids, IGNORED).roll(-1, dims=1)


class Head:
    """A causal language model around a stand-in for its backbone. Keeps the modules of ``model``'s head."""

    def __init__(self, model: Any) -> None:
        self._given = _GivenOutput()
        self._model = shallow_copy(model)
        self._model._modules[str(model.base_model_prefix)] = self._given
        self._vocab_size = int(model.config.get_text_config().vocab_size)

    def cross_entropy(self, output: Any, token_ids: Tensor, labels: Tensor) -> CrossEntropy:
        """``output`` of the backbone for ``token_ids`` int64 ``[B, L]``, which heads with a bigram table read too;
        ``labels`` int64 ``[B, L]``, negative where nothing is predicted.

        Raises:
            ModelError: the model's code is not built as a backbone followed by a head.
        """
        kept = labels >= 0
        total, count = 0.0, int(kept.sum())
        for rows, ids, targets in self._slices(output.last_hidden_state[kept], token_ids[kept], labels[kept]):
            logits = self._logits(output, rows, ids)
            total += float(functional.cross_entropy(logits.float(), targets, reduction="none").double().sum())
        return CrossEntropy(total, count)

    def gradient(self, output: Any, token_ids: Tensor, labels: Tensor) -> Tensor:
        """``[B, L, D]``: the gradient of the summed cross-entropy with respect to ``output.last_hidden_state``, zero
        where nothing is predicted. Arguments and errors as of ``cross_entropy``."""
        kept = labels >= 0
        states: Tensor = output.last_hidden_state.detach()
        found = torch.zeros_like(states)
        parts = []
        for rows, ids, targets in self._slices(states[kept], token_ids[kept], labels[kept]):
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                loss = functional.cross_entropy(self._logits(output, leaf, ids).float(), targets, reduction="sum")
            parts.append(torch.autograd.grad(loss, leaf)[0])
        if parts:
            found[kept] = torch.cat(parts)
        return found

    def divergence(self, clean: Any, spliced: Any, token_ids: Tensor, counted: Tensor) -> tuple[float, Tensor]:
        """KL(clean || spliced) of the predictions made at ``counted`` bool ``[B, L]``, in nats, summed in float64; and
        its gradient ``[B, L, D]`` with respect to ``spliced.last_hidden_state``. Raises as ``cross_entropy``."""
        states: Tensor = spliced.last_hidden_state.detach()
        found, total = torch.zeros_like(states), 0.0
        parts = []
        for rows, ids, truth in self._slices(states[counted], token_ids[counted], clean.last_hidden_state[counted]):
            with torch.no_grad():
                expected = functional.log_softmax(self._logits(clean, truth, ids).float(), dim=-1)
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                given = functional.log_softmax(self._logits(spliced, leaf, ids).float(), dim=-1)
                divergence = functional.kl_div(given, expected, log_target=True, reduction="none").sum(1)
            total += float(divergence.detach().double().sum())
            parts.append(torch.autograd.grad(divergence.sum(), leaf)[0])
        if parts:
            found[counted] = torch.cat(parts)
        return total, found

    def _logits(self, output: Any, rows: Tensor, token_ids: Tensor) -> Tensor:
        """``[N, D]``, ``[N]`` -> ``[N, V]`` by the model's own forward."""
        self._given.output = type(output)(last_hidden_state=rows[None])
        try:
            found = self._model(input_ids=token_ids[None])
        except AttributeError as error:
            raise ModelError(f"{type(self._model).__name__} is not built as a backbone and a head: {error}") from error
        finally:
            self._given.output = None
        logits: Tensor = found.logits[0]
        return logits

    def _slices(self, *parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
        size = max(1, LOGITS_BYTES // (4 * self._vocab_size))
        for start in range(0, len(parts[0]), size):
            yield tuple(part[start : start + size] for part in parts)


class _GivenOutput(nn.Module):
    """Stands in for a backbone whose output is known."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        """The known output, whatever the input."""
        return self.output
