"""Unigram and bigram frequencies of a corpus and their entropies, counted from token rows as they stream by.

    H_uni = -sum_b p(b) log p(b)
    H_bi  = -sum_a p(a) sum_b p(b|a) log p(b|a)

Counted are predicted tokens: all but the first of a context, with the token before each in the same context. These are
the frequencies as they are, without smoothing: KL(frequencies || prediction) and both entropies need none, since what
never occurs has weight 0. The entropies are those of this very text; of a small text with many tokens H_bi is far below
that of the source. Memory goes with the number of distinct pairs.

V vocabulary, P distinct pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.store.rows import TokenRows
from schemas.errors import SpecError


@dataclass(frozen=True)
class Ngrams:
    """Counts."""

    unigram: npt.NDArray[np.float64]
    """[V] occurrences as a predicted token."""
    before: npt.NDArray[np.int64]
    """[P] first token of a pair; ascending."""
    after: npt.NDArray[np.int64]
    """[P] second token; ascending within each first."""
    count: npt.NDArray[np.float64]
    """[P]."""

    @staticmethod
    def of(parts: Iterable[TokenRows], vocab_size: int) -> Ngrams:
        """Count consecutive rows, part after part.

        Raises:
            SpecError: nothing is predicted in them.
        """
        unigram = np.zeros(vocab_size)
        keys, counts = np.empty(0, dtype=np.int64), np.empty(0)
        last = -1
        for part in parts:
            ids = part.token_id.astype(np.int64)
            previous = np.concatenate([[last], ids[:-1]])
            predicted = (part.position > 0) & (previous >= 0)
            unigram += np.bincount(ids[predicted], minlength=vocab_size)
            own, own_counts = np.unique(previous[predicted] * vocab_size + ids[predicted], return_counts=True)
            keys, inverse = np.unique(np.concatenate([keys, own]), return_inverse=True)
            weights = np.concatenate([counts, own_counts])
            counts = np.bincount(inverse, weights=weights, minlength=len(keys)).astype(np.float64)
            last = int(ids[-1]) if len(ids) else last
        if not len(keys):
            raise SpecError("the rows have no context of two tokens, so there are no frequencies to compare with")
        return Ngrams(unigram, keys // vocab_size, keys % vocab_size, counts)

    @property
    def entropies(self) -> tuple[float, float]:
        """``(H_uni, H_bi)`` in nats a token."""
        joint = self.count / self.count.sum()
        starts = np.flatnonzero(np.diff(self.before, prepend=-1))
        of_first = np.repeat(np.add.reduceat(joint, starts), np.diff(np.append(starts, len(joint))))
        p = self.unigram[self.unigram > 0] / self.unigram.sum()
        return float(-(p * np.log(p)).sum()), float(-(joint * np.log(joint / of_first)).sum())

    def following(self, token: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Tokens that came after this one, and their shares; empty where none did."""
        first, stop = np.searchsorted(self.before, [token, token + 1])
        counts = self.count[first:stop]
        return self.after[first:stop], counts / max(float(counts.sum()), 1.0)
