"""Do two dictionaries know the same features? Pairing by activation and comparing the spaces (Lan et al. 2024,
arXiv 2410.06981).

    1. both encode the same rows; every latent of B takes the latent of A whose activations correlate best with its own
    2. one to one: of the latents of B that chose the same latent of A the best stays; weak pairs are dropped
    3. the decoder rows of the pairs are compared as two spaces: SVCCA and RSA
    4. the same for shuffled pairs says what chance gives: without it the figures mean nothing, since SVCCA rises to 1
       where there are no more pairs than dimensions

Letters: B rows, F and G latents of A and of B, P pairs, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

from schemas.errors import SpecError

CodePairs = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]
"""Gives the codes ``([B, F], [B, G])`` of both dictionaries on the same rows, anew at each call, the same each time."""

ByOrder = Callable[[torch.Tensor], float]
"""Gives the similarity with the rows of B in another order, int64 [P]."""

Similarity = Callable[[torch.Tensor, torch.Tensor], ByOrder]
"""Takes paired rows ``[P, D], [P, D']`` and does what does not depend on their order, once for all shuffles."""

TOP_TOKENS = 5


@dataclass(frozen=True)
class Pairs:
    """Latent ``first[p]`` of A goes with ``second[p]`` of B; Pearson r of their activations. All [P]."""

    first: torch.Tensor
    second: torch.Tensor
    correlation: torch.Tensor

    def __len__(self) -> int:
        return len(self.first)

    def where(self, kept_P: torch.Tensor) -> Pairs:
        """Those that a bool [P] keeps."""
        return Pairs(self.first[kept_P], self.second[kept_P], self.correlation[kept_P])


@dataclass(frozen=True)
class Compared:
    """A similarity of paired spaces beside that of shuffled pairs."""

    observed: float
    null_mean: float
    null_deviation: float
    p_value: float
    """(1 + shuffles at least as similar) / (1 + shuffles)."""

    @property
    def effect(self) -> float:
        """Deviations of the null between it and what was observed."""
        return (self.observed - self.null_mean) / max(self.null_deviation, 1e-12)


@torch.no_grad()
def best_pairs(codes: CodePairs, *, block: int = 2048) -> Pairs:
    """For each latent of B that ever varies the latent of A of greatest Pearson r; many may take the same one.

    The rows are read once for every ``block`` latents of B; memory is F * block numbers.

    Raises:
        SpecError: there are no rows.
    """
    moments = _Moments.of(codes)
    firsts, seconds, correlations = [], [], []
    for latents in torch.split(torch.arange(moments.num_second), block):
        products = torch.zeros(moments.num_first, len(latents), dtype=torch.float64)
        for first_BF, second_BG in codes():
            products += (first_BF.T.float() @ second_BG[:, latents].float()).double()
        r_FG = moments.correlations(products, latents)
        best_G, which_G = r_FG.max(dim=0)
        known_G = moments.second_deviation[latents] > 0
        firsts.append(which_G[known_G])
        seconds.append(latents[known_G])
        correlations.append(best_G[known_G])
    return Pairs(torch.cat(firsts), torch.cat(seconds), torch.cat(correlations))


def one_to_one(pairs: Pairs, *, above: float = 0.1) -> Pairs:
    """At most one pair for each latent of A, that of greatest r, and only r greater than ``above``."""
    order = torch.argsort(pairs.correlation, descending=True, stable=True)
    taken: set[int] = set()
    kept = torch.zeros(len(pairs), dtype=torch.bool)
    for place in order.tolist():
        first = int(pairs.first[place])
        if first not in taken and float(pairs.correlation[place]) > above:
            taken.add(first)
            kept[place] = True
    return pairs.where(kept)


@torch.no_grad()
def strongest_tokens(rows: Iterable[tuple[torch.Tensor, torch.Tensor]], count: int = TOP_TOKENS) -> list[list[int]]:
    """For each latent the tokens of the ``count`` rows on which it is strongest, of fewer where it is on on fewer.

    ``rows``: codes [B, F] with token ids [B].
    """
    values: torch.Tensor | None = None
    tokens = torch.empty(0, dtype=torch.int64)
    for codes_BF, ids_B in rows:
        ids_FB = ids_B.long().expand(codes_BF.shape[1], -1)
        all_values = codes_BF.T if values is None else torch.cat([values, codes_BF.T], dim=1)
        all_tokens = ids_FB if values is None else torch.cat([tokens, ids_FB], dim=1)
        values, places = all_values.topk(min(count, all_values.shape[1]), dim=1)
        tokens = all_tokens.gather(1, places)
    if values is None:
        raise SpecError("there are no rows to take tokens from")
    on = values > 0
    return [own[is_on].tolist() for own, is_on in zip(tokens, on, strict=True)]


def conceptual(
    pairs: Pairs,
    top_tokens_first: Sequence[Sequence[str]],
    top_tokens_second: Sequence[Sequence[str]],
    *,
    dull: Collection[str] = (),
) -> Pairs:
    """Pairs whose strongest tokens (five of each, by latent) have one in common, and none that is punctuation,
    white space or in ``dull``."""
    kept = []
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        ours, theirs = set(top_tokens_first[first]), set(top_tokens_second[second])
        kept.append(bool(ours & theirs) and not any(_is_dull(token, dull) for token in ours | theirs))
    return pairs.where(torch.tensor(kept, dtype=torch.bool))


def svcca(a_PD: torch.Tensor, b_PD: torch.Tensor) -> ByOrder:
    """Mean canonical correlation of the leading singular directions that hold 99 % of the variance of each (Raghu et
    al. 2017).

    Widths may differ. 1 for spaces that are rotations of each other, and for any two where P <= D.
    """
    _require_pairs(a_PD, b_PD)
    first_PR, second_PS = _leading(a_PD), _leading(b_PD)

    def by_order(order: torch.Tensor) -> float:
        return float(torch.linalg.svdvals(first_PR.T @ second_PS[order]).clamp(max=1).mean())

    return by_order


def rsa(a_PD: torch.Tensor, b_PD: torch.Tensor) -> ByOrder:
    """Spearman correlation of the two matrices of 1 - Pearson r between rows, above the diagonal (Kriegeskorte et al.
    2008)."""
    _require_pairs(a_PD, b_PD)
    first_PP, second_PP = _centred_ranks(a_PD), _centred_ranks(b_PD)
    norm = first_PP.norm() * second_PP.norm()

    def by_order(order: torch.Tensor) -> float:
        return float((first_PP * second_PP[order][:, order]).sum() / norm)

    return by_order


def similarity_of(a_PD: torch.Tensor, b_PD: torch.Tensor, similarity: Similarity) -> float:
    """Of the rows as they are paired."""
    return similarity(a_PD, b_PD)(torch.arange(len(b_PD)))


def compare(
    a_PD: torch.Tensor, b_PD: torch.Tensor, similarity: Similarity, *, num_shuffles: int = 1000, seed: int = 0
) -> Compared:
    """``similarity`` of paired rows, and of ``num_shuffles`` pairings at random."""
    by_order = similarity(a_PD, b_PD)
    observed = by_order(torch.arange(len(b_PD)))
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(b_PD), generator=generator) for _ in range(num_shuffles))
    null = torch.tensor([by_order(order) for order in orders], dtype=torch.float64)
    at_least = int((null >= observed).sum())
    return Compared(observed, float(null.mean()), float(null.std()), (1 + at_least) / (1 + num_shuffles))


@dataclass(frozen=True)
class _Moments:
    num_rows: int
    first_mean: torch.Tensor
    first_deviation: torch.Tensor
    second_mean: torch.Tensor
    second_deviation: torch.Tensor

    @classmethod
    def of(cls, codes: CodePairs) -> _Moments:
        num_rows = 0
        sums: list[torch.Tensor] = []
        for batch in codes():
            num_rows += len(batch[0])
            parts = [one.double().pow(power).sum(0) for one in batch for power in (1, 2)]
            sums = [total + part for total, part in zip(sums, parts, strict=True)] if sums else parts
        if not num_rows:
            raise SpecError("there are no rows to pair latents on")
        means = [total / num_rows for total in sums]
        deviations = [(means[i + 1] - means[i].square()).clamp(min=0).sqrt() for i in (0, 2)]
        return cls(num_rows, means[0], deviations[0], means[2], deviations[1])

    @property
    def num_first(self) -> int:
        return len(self.first_mean)

    @property
    def num_second(self) -> int:
        return len(self.second_mean)

    def correlations(self, products_FG: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Pearson r [F, G]; 0 for a latent that never varies."""
        covariance = products_FG / self.num_rows - self.first_mean[:, None] * self.second_mean[latents]
        deviations = self.first_deviation[:, None] * self.second_deviation[latents]
        return torch.where(deviations > 0, covariance / deviations, 0.0)


def _is_dull(token: str, dull: Collection[str]) -> bool:
    return token in dull or not any(character.isalnum() for character in token)


def _require_pairs(a_PD: torch.Tensor, b_PD: torch.Tensor) -> None:
    if len(a_PD) != len(b_PD) or len(a_PD) < 3:
        raise SpecError(f"at least three paired rows are needed, got {len(a_PD)} and {len(b_PD)}")


def _leading(rows_PD: torch.Tensor, variance: float = 0.99) -> torch.Tensor:
    """Left singular vectors [P, R] of the centred rows: an orthonormal basis of the kept directions."""
    centred = rows_PD.double() - rows_PD.double().mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    share = values.square().cumsum(0) / values.square().sum().clamp(min=1e-300)
    basis: torch.Tensor = left[:, : int((share < variance).sum()) + 1]
    return basis


def _centred_ranks(rows_PD: torch.Tensor) -> torch.Tensor:
    """Ranks of the dissimilarities of all pairs of rows less their mean, symmetric [P, P], 0 on the diagonal."""
    dissimilar_PP = 1 - torch.corrcoef(rows_PD.double())
    above, beside = torch.triu_indices(len(rows_PD), len(rows_PD), offset=1)
    ranks = _ranks(dissimilar_PP[above, beside])
    found_PP = torch.zeros_like(dissimilar_PP)
    found_PP[above, beside] = ranks - ranks.mean()
    return found_PP + found_PP.T


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks as float64; equal values share the mean of theirs."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: torch.Tensor = (last - (counts.double() - 1) / 2)[inverse] - 1
    return ranks


def is_chance(compared: Compared, *, level: float = 0.01) -> bool:
    """Whether shuffled pairs do as well, at the given level; also where the similarity is not a number."""
    return math.isnan(compared.observed) or compared.p_value >= level
