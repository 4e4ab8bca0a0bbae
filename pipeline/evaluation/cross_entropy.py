"""Cross-entropy of the model with a dictionary in its place: what the reconstruction is worth to the model itself.

    L_clean    the model as it is
    L_splice   the targets replaced by what the dictionary predicts from the sources of the same forward
    L_mean     the targets replaced by their mean                       (mean ablation)
    L_zero     the targets replaced by zero                             (zero ablation)
    recovered  (L_ablation - L_splice) / (L_ablation - L_clean)

Positions that training left out keep their true activations in every variant. All tokens but the first of each context
are predicted and count. The splice check replaces x by x_hat + (x - x_hat), which must change nothing: it runs the
dictionary, the placing and the tail of the network, so an error in any of them shows.

B contexts, L context length, D width at a hook point, n positions that are replaced.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.evaluation.contexts import Bounds
from pipeline.evaluation.trained import Trained
from pipeline.models.load import LoadedModel
from pipeline.models.splice import SplicedBatch, SplicedForward
from pipeline.store.rows import TokenRows
from schemas.errors import DataError

BATCH_TOKENS = 1024
"""Tokens (padding included) in a forward; each keeps its activations at all hook points while its variants run."""
LARGEST_CHANGE = 1e-5
"""Nats a token that the splice check may change, in float32."""
_CLEAN, _MEAN, _ZERO = ":clean", ":mean", ":zero"
"""Variants beside the dictionaries, whose names never hold a colon."""


@dataclass(frozen=True)
class CrossEntropy:
    """Nats a token, of the four variants."""

    clean: float
    spliced: float
    mean: float
    zero: float
    num_tokens: int
    """Predicted tokens."""
    num_contexts: int
    splice_check: float
    """Nats a token by which x_hat + (x - x_hat) differs from x."""

    @property
    def recovered(self) -> float | None:
        """Against mean ablation; None where that ablation does not raise the loss."""
        return _recovered(self.mean, self.spliced, self.clean)

    @property
    def recovered_zero(self) -> float | None:
        """Against zero ablation; None where that ablation does not raise the loss."""
        return _recovered(self.zero, self.spliced, self.clean)


@dataclass(frozen=True)
class ContextBatch:
    """Contexts of similar length, padded on the right with token 0."""

    token_ids: Tensor
    """int64 [B, L]."""
    lengths: Tensor
    """int64 [B]."""
    eligible: Tensor
    """bool [B, L], false at padding: positions that are replaced."""

    @property
    def inside(self) -> Tensor:
        """bool [B, L], false at padding."""
        steps = torch.arange(self.token_ids.shape[1])
        return steps < self.lengths[:, None]


def context_batches(
    tokens: TokenRows, contexts: Sequence[Bounds], eligible: npt.NDArray[np.bool_], *, batch_tokens: int = BATCH_TOKENS
) -> Iterator[ContextBatch]:
    """Batches of contexts, longest first; ``tokens`` and ``eligible`` hold the contexts' rows one after the other."""
    lengths = np.array([stop - start for start, stop in contexts], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        width = int(lengths[order[first]])
        part = order[first : first + max(1, batch_tokens // width)]
        token_ids = torch.zeros((len(part), width), dtype=torch.int64)
        kept = torch.zeros((len(part), width), dtype=torch.bool)
        for line, context in enumerate(part):
            rows = slice(offsets[context], offsets[context + 1])
            token_ids[line, : lengths[context]] = torch.from_numpy(tokens.token_id[rows].astype(np.int64))
            kept[line, : lengths[context]] = torch.from_numpy(eligible[rows])
        yield ContextBatch(token_ids, torch.from_numpy(lengths[part]), kept)
        first += len(part)


class _Sums:
    """Nats by variant over the batches so far; the spliced variant of a dictionary goes by its name."""

    def __init__(self) -> None:
        self.nats: defaultdict[str, float] = defaultdict(float)
        self.num_tokens = 0
        self.num_contexts = 0

    def figures(self, name: str, change: float) -> CrossEntropy:
        """Of one dictionary."""
        clean, spliced, mean, zero = (self.nats[key] / self.num_tokens for key in (_CLEAN, name, _MEAN, _ZERO))
        return CrossEntropy(clean, spliced, mean, zero, self.num_tokens, self.num_contexts, change)


@torch.no_grad()
def spliced_cross_entropies(
    loaded: LoadedModel,
    rivals: Sequence[Trained],
    batches: Sequence[ContextBatch],
    means: Mapping[str, Tensor],
    *,
    count: Callable[[int], None],
) -> dict[str, CrossEntropy]:
    """Run every variant of every batch; dictionaries of one set of targets share all variants but their own.

    ``loaded`` has its head; ``means``: target hook point -> mean activation [D]. ``count`` is told the tokens done.

    Raises:
        DataError: the splice check fails.
        HookPointError, ModelError: see ``SplicedForward``.
    """
    targets = list(rivals[0].record.d_target)
    sources = list(dict.fromkeys(source for trained in rivals for source in trained.record.d_source))
    forward = SplicedForward(loaded, targets, sources=sources)
    ablations = {
        _MEAN: {target: means[target].to(loaded.device) for target in targets},
        _ZERO: {target: torch.zeros(()) for target in targets},
    }
    sums, changes = _Sums(), dict.fromkeys((trained.name for trained in rivals), 0.0)
    for index, batch in enumerate(batches):
        run = forward.begin(batch.token_ids, batch.lengths, batch.inside)
        eligible = batch.eligible.to(loaded.device)
        for variant, values in ablations.items():
            sums.nats[variant] += run.loss(_placed(run, eligible, values)).total
        for trained in rivals:
            predicted = _predict(trained, run, eligible)
            # One batch is enough: a mistake in placing or dtype shows in any.
            if index == 0:
                changes[trained.name] = _splice_check(trained, run, eligible, predicted)
            sums.nats[trained.name] += run.loss(_placed(run, eligible, predicted)).total
            count(int(batch.lengths.sum()))
        sums.nats[_CLEAN] += run.clean.total
        sums.num_tokens += run.clean.count
        sums.num_contexts += len(batch.lengths)
    return {name: sums.figures(name, change) for name, change in changes.items()}


def _predict(trained: Trained, run: SplicedBatch, eligible: Tensor) -> dict[str, Tensor]:
    """target hook point -> [n, D] at the eligible positions."""
    sources = {source: run.activations[source][eligible].float() for source in trained.record.d_source}
    return trained.apply(sources)[1]


def _placed(run: SplicedBatch, eligible: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """target hook point -> [B, L, D]: ``values`` (broadcast to [n, D]) where eligible, else the truth."""
    placed = {}
    for target, value in values.items():
        acts = run.activations[target].clone()
        acts[eligible] = value.to(acts).expand(int(eligible.sum()), acts.shape[-1])
        placed[target] = acts
    return placed


def _splice_check(trained: Trained, run: SplicedBatch, eligible: Tensor, predicted: Mapping[str, Tensor]) -> float:
    """Nats a token by which the loss changes when the prediction's own error is added back to it."""
    mended = {}
    for target, value in predicted.items():
        truth = run.activations[target][eligible]
        guess = value.to(truth)
        mended[target] = guess + (truth - guess)
    spliced = run.loss(_placed(run, eligible, mended))
    change = abs(spliced.total - run.clean.total) / max(1, run.clean.count)
    if not change <= LARGEST_CHANGE:
        raise DataError(
            f"splice check of dictionary {trained.name!r} at {sorted(predicted)}: replacing x by x_hat + (x - x_hat) "
            f"changed the cross-entropy by {change:.2e} nats a token, expected at most {LARGEST_CHANGE:.0e}; the hook "
            "point is not where the network reads its activations, so no spliced figure can be trusted"
        )
    return change


def _recovered(ablated: float, spliced: float, clean: float) -> float | None:
    return (ablated - spliced) / (ablated - clean) if ablated > clean else None
