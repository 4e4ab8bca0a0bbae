"""One dictionary in training: weights, gradients, optimiser, dead-latent counters, and the step that moves them.

A step, on every rank:
  1. the objective finds out what it must know of the global batch (``prepare``);
  2. the rank's rows, in blocks of bounded size, add gradients of sums and ``BatchTotals``;
  3. both are summed over the ranks;
  4. division by the global normaliser, what the model says of whole contexts (``end_to_end``), constraint,
     clipping, the optimiser, constraint;
  5. counters of dead latents advance by the rows of the global batch, the objective by what it keeps.

Letters: B rows of this rank, F latents, S and T widths of sources and targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training import constraint
from pipeline.training.batch import SharedRows
from pipeline.training.divergence import DivergenceWatch
from pipeline.training.end_to_end import EndToEndTerm
from pipeline.training.kernels import Kernels
from pipeline.training.objective import StepFacts
from pipeline.training.objectives import objective_of
from pipeline.training.optimiser import optimiser_of
from pipeline.training.parameters import flat_gradients, gradient
from pipeline.training.totals import BatchTotals
from pipeline.training.world import World
from schemas.optimiser import Muon
from schemas.train import DivergenceCheck

BLOCK_ELEMENTS = 2**23
"""Pre-activations that exist at one time: 32 MiB in float32, whatever the batch and the dictionary."""


class DictionaryTrainer:
    """Owns the dictionary until training ends."""

    def __init__(
        self,
        dictionary: Dictionary,
        kernels: Kernels,
        *,
        max_gradient_norm: float,
        end_to_end: EndToEndTerm | None = None,
        divergence: DivergenceCheck = DivergenceCheck(),  # noqa: B008 - frozen
    ) -> None:
        self.dictionary = dictionary
        self.num_steps = 0
        self._max_gradient_norm = max_gradient_norm
        self._objective = objective_of(dictionary, kernels)
        self._end_to_end = end_to_end
        self._gradients = flat_gradients(dictionary)
        device = dictionary.b_dec.device
        self._totals = BatchTotals(len(dictionary.b_dec), dictionary.num_latents, device)
        self.rows_since_fired = torch.zeros(dictionary.num_latents, dtype=torch.int64, device=device)
        multiples = dictionary.spec.learning_rate_multiples.items()
        self._optimiser = optimiser_of(dictionary.spec.optimiser, dict(dictionary.named_parameters()), multiples)
        self.watch = DivergenceWatch(divergence, device)

    def step(
        self,
        acts: Mapping[str, torch.Tensor] | SharedRows,
        *,
        num_rows: int,
        factor: float,
        progress: float,
        world: World,
        row_ids: npt.NDArray[np.int64] | None = None,
    ) -> dict[str, float]:
        """Take one step and return its figures, equal on all ranks; ``watch`` then says whether it has diverged.

        A step whose loss or gradient is not finite leaves the weights as they were.

        Args:
            acts: Raw activations of this rank's share, hook point -> [B, D]; B may be 0. ``SharedRows`` where several
                dictionaries take a step on them.
            num_rows: Rows of the global batch.
            factor: What the peak learning rate is multiplied by.
            progress: Share of the run that is behind, for sparsity schedules.
            world: The ranks.
            row_ids: Ids [B] of the rows in their store; dictionaries that resample dead latents need them.
        """
        dead_F = self.rows_since_fired >= self._objective.dead_after_tokens
        num_dead, error_weight = _num_dead(dead_F, world), 1.0
        if self._end_to_end is not None:
            error_weight = self._end_to_end.error_weight(self.num_steps, progress)
        facts = StepFacts(num_rows, self.num_steps, progress, dead_F, num_dead, world, row_ids, error_weight)
        self._gradients.zero_()
        self._totals.clear()
        sources = self._accumulate(acts if isinstance(acts, SharedRows) else SharedRows(acts), facts)
        world.rows.all_reduce_sum(self._gradients)
        self._totals.reduce(world)
        normaliser = self._objective.normaliser(self._totals, num_rows)
        metrics = self._measure(normaliser, facts)
        self._complete_gradients(normaliser, world)
        if self._end_to_end is not None and self._end_to_end.is_due(self.num_steps, progress):
            figures = self._end_to_end.add_gradients(self._gradients, facts)
            metrics |= {**figures, "loss": metrics["loss"] + self._end_to_end.loss(figures)}
        metrics["grad_norm"] = self._constrain_gradients(world)
        if not all(map(math.isfinite, metrics.values())):
            self.watch.note_not_finite(metrics["loss"], metrics["grad_norm"], self.num_steps)
            return metrics
        self._update(factor)
        self._objective.finish(sources, self._totals, facts, self._optimiser.clear)
        self.rows_since_fired += num_rows
        self.rows_since_fired[self._totals.fired > 0] = 0
        self.watch.observe(metrics["fvu"], self.num_steps)
        self.num_steps += 1
        return metrics

    def evaluate(self, batches: Sequence[tuple[SharedRows, int]], *, progress: float, world: World) -> dict[str, float]:
        """``loss``, ``fvu``, ``l0`` and ``dead_share`` over rows that are not trained on, equal on all ranks.

        ``batches``: this rank's share of global batches, and how many rows those have.

        The loss of training at this point of the run (``progress``), without AuxK; a dictionary that selects over a
        batch does so over each of these. ``dead_share``: latents that none of the rows turns on. Nothing that the next
        step depends on changes: gradients and totals are made anew by each step.
        """
        self._totals.clear()
        nobody = torch.zeros_like(self.rows_since_fired, dtype=torch.bool)
        for rows, size in batches:
            self._accumulate(rows, StepFacts(size, self.num_steps, progress, nobody, 0, world))
        self._totals.reduce(world)
        num_rows = sum(size for _, size in batches)
        normaliser = self._objective.normaliser(self._totals, num_rows)
        facts = StepFacts(num_rows, self.num_steps, progress, nobody, _num_dead(self._totals.fired == 0, world), world)
        figures = self._measure(normaliser, facts)
        return {name: figures[name] for name in ("loss", "fvu", "l0", "dead_share")}

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on but ``num_steps``; tensors are the live ones, not copies."""
        tensors = {"rows_since_fired": self.rows_since_fired}
        tensors |= {f"buffers.{name}": buffer for name, buffer in self.dictionary.named_buffers()}
        tensors |= {f"objective.{name}": tensor for name, tensor in self._objective.state().items()}
        tensors |= {f"divergence.{name}": tensor for name, tensor in self.watch.state().items()}
        tensors |= {f"weights.{name}": parameter.detach() for name, parameter in self.dictionary.named_parameters()}
        return tensors | self._optimiser.state()

    def restore(self, num_steps: int) -> None:
        """Set the step counts after the tensors of ``state`` were overwritten."""
        self.num_steps = num_steps
        self._optimiser.restore(num_steps)

    def _accumulate(self, rows: SharedRows, facts: StepFacts) -> Sequence[torch.Tensor]:
        """Add gradients and totals of the rank's rows; returns the scaled sources, block by block."""
        x_BS, y_BT = rows.sources(self.dictionary), rows.targets(self.dictionary)
        if facts.once:
            self._totals.add_target_moments(*rows.target_moments(self.dictionary))
        # Of the largest shard, so that ranks which hold the dictionary together have the same blocks.
        num_latents = -(-self.dictionary.spec.num_latents // facts.world.latents.size)
        block_rows = self._objective.block_rows or max(1, BLOCK_ELEMENTS // num_latents)
        sources, targets = torch.split(x_BS, block_rows), torch.split(y_BT, block_rows)
        self._objective.prepare(sources, facts)
        for index, (x_block, y_block) in enumerate(zip(sources, targets, strict=True)):
            self._objective.accumulate(index, x_block, y_block, self._totals, facts)
        return sources

    def _measure(self, normaliser: float, facts: StepFacts) -> dict[str, float]:
        totals = self._totals
        return {
            "loss": self._objective.loss_sum(totals, facts.error_weight) / normaliser,
            "fvu": float(totals.error) / totals.variance(facts.num_rows),
            "l0": float(totals.num_active) / facts.num_rows,
            "dead_share": facts.num_dead / self.dictionary.spec.num_latents,
            "aux_loss": float(totals.auxiliary) / normaliser,
        }

    def _complete_gradients(self, normaliser: float, world: World) -> None:
        """Sums to means; afterwards the ranks that hold the same latents have the same gradients."""
        self._gradients.div_(normaliser)
        self._objective.complete_gradients()
        for parameter in self.dictionary.shared_parameters():
            world.latents.all_reduce_sum(gradient(parameter))

    def _constrain_gradients(self, world: World) -> float:
        """Constraint and clipping; returns the norm before clipping."""
        self.dictionary.zero_outside_blocks(of_gradients=True)
        if self.dictionary.spec.activation.has_unit_decoder:
            constraint.make_tangential(self.dictionary)
        norm = self._gradient_norm(world)
        if 0 < self._max_gradient_norm < norm:
            self._gradients.mul_(self._max_gradient_norm / norm)
        return norm

    def _gradient_norm(self, world: World) -> float:
        """Over all latents, those of other ranks too."""
        if world.latents.size == 1:
            return float(torch.linalg.vector_norm(self._gradients))
        shared = {id(parameter) for parameter in self.dictionary.shared_parameters()}
        squares = self._gradients.new_zeros(2, dtype=torch.float64)
        for parameter in self.dictionary.parameters():
            squares[int(id(parameter) in shared)] += torch.linalg.vector_norm(gradient(parameter)).double().square()
        world.latents.all_reduce_sum(squares[:1])
        return math.sqrt(float(squares.sum()))

    def _update(self, factor: float) -> None:
        self._optimiser.step(self.dictionary.spec.learning_rate * factor)
        if isinstance(self.dictionary.spec.optimiser, Muon):
            # It mixes the entries of a matrix, and so would let connections grow that a group does not have.
            self.dictionary.zero_outside_blocks()
        if self.dictionary.spec.activation.has_unit_decoder:
            constraint.normalise(self.dictionary)


def _num_dead(dead_F: torch.Tensor, world: World) -> int:
    count = dead_F.sum()
    world.latents.all_reduce_sum(count)
    return int(count)
