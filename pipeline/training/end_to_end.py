"""The end-to-end term of a loss: KL(model || model with the dictionary in its place), over whole contexts.

    Braun et al. 2024, arXiv 2405.12241, equations 2 and 3; as a fine-tuning Karvonen 2025, arXiv 2503.17272

A step's contexts are a function of the seed and the step; rank r of N runs every N-th of them from the r-th on. They
are drawn besides the rows of the step, which stay as well mixed as they are without the term. Rows that training leaves
out (special tokens, first positions) keep their true activations, as in an evaluation. The gradient goes through the
frozen model into the dictionary, where autograd computes it whatever the kind.

Letters: B rows, F latents, S width of the sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch

from pipeline.dictionaries.activations.function import ActivationFunction
from pipeline.dictionaries.activations.jumprelu import JumpReluActivation, jumprelu
from pipeline.dictionaries.codes import SparseCodes
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.evaluation.cross_entropy import BATCH_TOKENS, context_batches
from pipeline.evaluation.rows import are_eligible
from pipeline.models.divergence import DivergenceForward
from pipeline.models.load import LoadedModel
from pipeline.order.eligible import EligibleRows
from pipeline.order.whole import Bounds, ContextOrder
from pipeline.store.arriving import FeedStore
from pipeline.store.rows import TokenRows
from pipeline.training.objective import StepFacts
from schemas.activation import BatchTopK, JumpRelu, MatryoshkaBatchTopK, TopK
from schemas.end_to_end import EndToEnd


class EndToEndTerm:
    """Of one dictionary."""

    def __init__(
        self,
        spec: EndToEnd,
        dictionary: Dictionary,
        loaded: LoadedModel,
        store: FeedStore,
        eligible: EligibleRows,
        order: ContextOrder,
    ) -> None:
        """``loaded`` has its head; ``order`` gives ``spec.contexts`` contexts a step.

        Raises:
            ModelError, HookPointError: see ``DivergenceForward``.
        """
        self.spec = spec
        self._dictionary = dictionary
        self._store = store
        self._eligible = eligible
        self._order = order
        (self._target,) = dictionary.d_target
        self._forward = DivergenceForward(
            loaded, self._target, sources=[*dictionary.d_source], downstream=spec.downstream
        )
        # Before its first step such a dictionary has no threshold, and all its latents would be on.
        self._waits = isinstance(dictionary.spec.activation, BatchTopK | MatryoshkaBatchTopK)

    def is_due(self, num_steps: int, progress: float) -> bool:
        """Whether the term counts in the step after ``num_steps``."""
        return progress >= self.spec.start and (num_steps > 0 or not self._waits)

    def error_weight(self, num_steps: int, progress: float) -> float:
        """Of the dictionary's own squared error in that step."""
        return self.spec.squared_error_coefficient if self.is_due(num_steps, progress) else 1.0

    def add_gradients(self, gradients: torch.Tensor, facts: StepFacts) -> dict[str, float]:
        """Add the term's gradients to ``gradients``, which the parameters' own are views of and which every rank has
        the same of; afterwards every rank has the same again. Returns figures, equal on all ranks: ``kl`` in nats a
        token and, where asked for, ``downstream_error``.
        """
        contexts = self._order.at(facts.num_steps)
        num_tokens = sum(stop - start for start, stop in contexts)
        if facts.world.rank:
            gradients.zero_()
        sums = torch.zeros(2, dtype=torch.float64, device=gradients.device)
        self._accumulate(contexts[facts.world.rank :: facts.world.size], num_tokens, sums)
        facts.world.all_reduce_sum(gradients)
        facts.world.all_reduce_sum(sums)
        nats, downstream = (sums / num_tokens).tolist()
        return {"kl": nats} | ({"downstream_error": downstream} if self.spec.downstream else {})

    def loss(self, figures: Mapping[str, float]) -> float:
        """What the term adds to the loss."""
        downstream = figures.get("downstream_error", 0.0)
        return self.spec.kl_coefficient * figures["kl"] + self.spec.downstream_coefficient * downstream

    def _accumulate(self, contexts: list[Bounds], num_tokens: int, sums: torch.Tensor) -> None:
        if not contexts:
            return
        tokens = TokenRows.concat([self._store.tokens(*bounds) for bounds in contexts])
        eligible = are_eligible(self._eligible, tokens.row)
        for batch in context_batches(tokens, contexts, eligible, batch_tokens=BATCH_TOKENS):
            found = self._forward.backward(
                batch.token_ids,
                batch.lengths,
                lambda acts, places=batch.eligible: self._replaced(acts, places),  # type: ignore[misc]
                weight=self.spec.kl_coefficient / num_tokens,
                downstream_weight=self.spec.downstream_coefficient / num_tokens,
            )
            sums += torch.tensor([found.nats, found.downstream], dtype=torch.float64, device=sums.device)

    def _replaced(self, acts: Mapping[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
        """The target [contexts, length, D] with the dictionary's reconstruction at ``places``."""
        truth = acts[self._target]
        places = places.to(truth.device)
        x_BS = self._dictionary.join_sources({point: acts[point][places] for point in self._dictionary.d_source})
        codes = differentiable_codes(self._dictionary, x_BS)
        made = self._dictionary.split_targets(self._dictionary.decode(codes, x_BS))[self._target]
        return truth.index_put((places,), made.to(truth))


def differentiable_codes(dictionary: Dictionary, x_BS: torch.Tensor) -> SparseCodes | torch.Tensor:
    """The codes of an evaluation, with the gradients of training: straight-through ones for JumpReLU's thresholds."""
    activation = dictionary.spec.activation
    pre_BF = dictionary.pre_activations(x_BS)
    if isinstance(activation, JumpRelu):
        assert isinstance(dictionary.activation, JumpReluActivation)
        return jumprelu(pre_BF, dictionary.activation.threshold, activation.bandwidth)
    function = cast(ActivationFunction, dictionary.activation)
    if not isinstance(activation, TopK):
        return function.encode(pre_BF, dictionary.b_enc)
    # Which are the largest has no gradient, and what selects them need not know of gradients.
    found = function.encode(pre_BF.detach(), dictionary.b_enc.detach())
    assert isinstance(found, SparseCodes)
    return SparseCodes(pre_BF.gather(1, found.indices) * (found.values > 0), found.indices)
