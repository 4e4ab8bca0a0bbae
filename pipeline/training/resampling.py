"""Dead latents start again at rows that are reconstructed badly (Bricken et al. 2023, Towards Monosemanticity).

At each share of the run that the spec names, with the rows of that step's global batch:
  1. a row gets a probability in proportion to its loss to the power ``exponent`` (2 in the paper);
  2. for every dead latent a row is drawn, without replacement; of more dead latents than rows the rest wait;
  3. the latent's decoder row becomes the drawn row less b_dec, at norm 1;
  4. its encoder row the same direction at 0.2 times the mean norm of the encoder rows of latents that are not dead; its
     encoder bias 0; the optimiser forgets all three.

The paper takes the losses of 819,200 rows, ours are those of one batch: there is nothing to keep from step to step.
Drawing without replacement in proportion to w is taking the smallest E / w, E exponential; E is a function of seed,
step and row id, so the choice does not depend on which rank has the row.

Letters: B rows of this rank, F latents, N drawn rows, S width of the sources.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.objective import ClearMoments, StepFacts
from pipeline.training.selection import kth_largest
from pipeline.training.world import World
from schemas.activation import ReluL1UnitNorm

ENCODER_SHARE = 0.2


class Resampler:
    """Counts the resamplings that are behind; everything else follows from the step."""

    def __init__(self, dictionary: Dictionary, activation: ReluL1UnitNorm) -> None:
        self.dead_after_tokens = activation.dead_after_tokens
        self._dictionary = dictionary
        self._activation = activation
        self._done = torch.zeros((), dtype=torch.int64, device=dictionary.b_dec.device)

    def is_due(self, facts: StepFacts) -> bool:
        """It is time."""
        return self._num_due(facts) > int(self._done)

    def resample(
        self,
        x_BS: torch.Tensor,
        loss_B: torch.Tensor,
        dead_F: torch.Tensor,
        facts: StepFacts,
        clear_moments: ClearMoments,
    ) -> None:
        """Restart the dead latents; every rank calls it with its rows, its part of their losses and its latents."""
        self._done.fill_(self._num_due(facts))
        latents = facts.world.latents
        latents.all_reduce_sum(loss_B)
        dead = dead_F.nonzero().squeeze(1)
        counts = latents.all_gather(torch.tensor(len(dead), device=dead.device))
        priority_B = self._priority(loss_B, facts)
        drawn_NS = draw_rows(x_BS, priority_B, min(int(counts.sum()), facts.num_rows), facts.world.rows)
        mine_NS = drawn_NS[int(counts[: latents.rank].sum()) :][: len(dead)]
        self._restart(dead[: len(mine_NS)], mine_NS, self._encoder_norm(dead_F, latents), clear_moments)

    def state(self) -> dict[str, torch.Tensor]:
        """See ``objective.Objective``."""
        return {"num_resamplings": self._done}

    def _num_due(self, facts: StepFacts) -> int:
        return sum(share <= facts.progress for share in self._activation.resample_at)

    def _priority(self, loss_B: torch.Tensor, facts: StepFacts) -> torch.Tensor:
        """w / E, positive float32 [B]: the largest are drawn."""
        assert facts.row_ids is not None, "resampling needs the ids of the rows"
        seed = np.random.SeedSequence([self._dictionary.spec.seed, facts.num_steps]).generate_state(1, np.uint64)[0]
        uniform_B = _uniform(facts.row_ids, seed)
        exponential_B = torch.from_numpy(-np.log1p(-uniform_B)).to(loss_B.device)
        weight_B = loss_B.double().clamp(min=1e-12) ** self._activation.resample_exponent
        return (weight_B / exponential_B).float().clamp(min=torch.finfo(torch.float32).tiny)

    def _encoder_norm(self, dead_F: torch.Tensor, latents: World) -> float:
        """Mean norm of the encoder rows of latents that are not dead; 1 where all are."""
        norms = torch.linalg.vector_norm(self._dictionary.encoder[~dead_F], dim=1)
        total = torch.stack([norms.sum(dtype=torch.float64), (~dead_F).sum().double()])
        latents.all_reduce_sum(total)
        return float(total[0] / total[1]) if total[1] else 1.0

    def _restart(
        self, latents: torch.Tensor, drawn_NS: torch.Tensor, alive_norm: float, clear_moments: ClearMoments
    ) -> None:
        if len(latents) == 0:
            return
        dictionary = self._dictionary
        direction_NS = torch.nn.functional.normalize(dictionary.centred(drawn_NS), dim=1)
        norm = ENCODER_SHARE * alive_norm
        dictionary.decoder[latents] = direction_NS
        if not dictionary.spec.tied:
            dictionary.encoder[latents] = direction_NS * norm
        dictionary.b_enc[latents] = 0
        for parameter in (dictionary.encoder, dictionary.decoder, dictionary.b_enc):
            clear_moments(parameter, latents)


def draw_rows(x_BS: torch.Tensor, priority_B: torch.Tensor, num_drawn: int, world: World) -> torch.Tensor:
    """[N, S], the rows of largest priority among all ranks', in falling order of it; equal on all ranks."""
    if num_drawn == 0:
        return x_BS[:0]
    least, _ = kth_largest(priority_B, num_drawn, world)
    mine = (priority_B >= least).nonzero().squeeze(1)
    counts = torch.zeros(world.size, dtype=torch.int64, device=x_BS.device)
    counts[world.rank] = len(mine)
    world.all_reduce_sum(counts)
    first, total = int(counts[: world.rank].sum()), int(counts.sum())
    # Each rank fills its own places; the sum over ranks is the list, since all others add zeros.
    rows_NS = x_BS.new_zeros(total, x_BS.shape[1])
    keys_N = priority_B.new_zeros(total)
    rows_NS[first : first + len(mine)] = x_BS[mine]
    keys_N[first : first + len(mine)] = priority_B[mine]
    world.all_reduce_sum(rows_NS)
    world.all_reduce_sum(keys_N)
    return rows_NS[torch.argsort(keys_N, descending=True, stable=True)][:num_drawn]


def _uniform(row_ids: npt.NDArray[np.int64], seed: np.uint64) -> npt.NDArray[np.float64]:
    """One number in (0, 1) for each row id: the finaliser of splitmix64 (Steele et al. 2014) over id and seed."""
    words = row_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + seed
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
