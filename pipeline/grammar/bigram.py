"""A Markov source of words whose entropies are known.

    V words; pi [V] stationary distribution; P [V, V] transitions, rows sum to 1

Every document begins with a word of pi and goes on by P, so that each of its words is distributed as pi. A document
that repeats ends with a copy of ``repeat_words`` words from earlier in it. The copied words are distributed as pi, too,
and their pairs as those of the chain; only where the copy begins is there another pair, of two words that were some
way apart, whose distribution follows from powers of P.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from schemas.grammar import BigramSource

Floats = NDArray[np.float64]

_ANYWHERE = 0.02
"""Share of every row of P that is spread over all words by their weights: all words can be reached from all."""
_CONSONANTS = "bdfgklmnprstvzjw"
_VOWELS = "aeiou"


@dataclass(frozen=True)
class Entropies:
    """In nats a word. A model that knows no more than the name says cannot have a lower loss."""

    unigram: float
    """Of a word by itself."""
    bigram: float
    """Of a word given the one before it, over all pairs of the documents."""
    source: float
    """Of a word given the document so far, whether it ends with a repetition, and of what: less than any model can
    reach, close to it for long documents."""


class MarkovSource:
    """Draws documents; states what is true of them."""

    def __init__(self, spec: BigramSource, seed: int) -> None:
        """``seed``: of the transitions, and of all documents."""
        self._spec, self._seed = spec, seed
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed])))
        weights = np.arange(1, spec.num_words + 1, dtype=np.float64) ** -spec.zipf_exponent
        weights /= weights.sum()
        alpha = spec.concentration * spec.num_words * weights
        drawn = rng.dirichlet(np.maximum(alpha, 1e-3), size=spec.num_words)
        self.transitions: Floats = (1 - _ANYWHERE) * drawn + _ANYWHERE * weights
        """P [V, V]."""
        self.transitions /= self.transitions.sum(axis=1, keepdims=True)
        self.unigram: Floats = _stationary(self.transitions)
        """pi [V]."""
        self.words = tuple(word_text(index) for index in range(spec.num_words))
        """Text of each."""
        self._first = [*accumulate(self.unigram.tolist())]
        self._next = [[*accumulate(row)] for row in self.transitions.tolist()]

    def indices(self, document: int) -> list[int]:
        """Words of a document, as numbers."""
        spec = self._spec
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, 1, document])))
        draws = rng.random(spec.words_per_document + 2).tolist()
        repeats = draws.pop() < spec.repeat_share
        at = draws.pop()
        if repeats:
            draws = draws[: spec.words_per_document - spec.repeat_words]
        found: list[int] = []
        for draw in draws:
            sums = self._next[found[-1]] if found else self._first
            # The last sum may be a little below 1.
            found.append(min(bisect_right(sums, draw), spec.num_words - 1))
        if repeats:
            start = int(at * _num_starts(spec))
            found += found[start : start + spec.repeat_words]
        return found

    def text(self, document: int) -> str:
        """Words with a space between them."""
        return " ".join(self.words[index] for index in self.indices(document))

    def pairs(self) -> Floats:
        """[V, V], sum 1: how often word b follows word a in documents, over all neighbours."""
        spec = self._spec
        chain = self.unigram[:, None] * self.transitions
        if not spec.repeat_share:
            return chain
        share = spec.repeat_share / (spec.words_per_document - 1)
        return (1 - share) * chain + share * self._joints()

    def entropies(self) -> Entropies:
        """Exact, from pi and P."""
        spec, pairs = self._spec, self.pairs()
        before = pairs.sum(axis=1)
        rate = _entropy(self.unigram[:, None] * self.transitions) - _entropy(self.unigram)
        fresh = spec.words_per_document - spec.repeat_share * spec.repeat_words
        source = (_entropy(self.unigram) + (fresh - 1) * rate) / spec.words_per_document
        return Entropies(_entropy(self.unigram), _entropy(pairs) - _entropy(before), source)

    def _joints(self) -> Floats:
        """[V, V]: the last word before a copy, and the first of it, which came that far before: the mean over the
        places of the stretch."""
        spec = self._spec
        fresh = spec.words_per_document - spec.repeat_words
        # b first, then after (fresh - 1 - start) steps a.
        steps = [fresh - 1 - start for start in range(_num_starts(spec))]
        power = np.linalg.matrix_power(self.transitions, min(steps))
        total = np.zeros_like(power)
        for _ in steps:
            total += power
            power = power @ self.transitions
        return np.asarray((self.unigram[:, None] * total / len(steps)).T)


def _num_starts(spec: BigramSource) -> int:
    """Places at which the stretch may begin: it ends where the copy begins, at the latest."""
    return spec.words_per_document - 2 * spec.repeat_words + 1


def _stationary(transitions: Floats) -> Floats:
    """Of an ergodic chain: one of the equations pi P = pi follows from the others, and gives way to sum(pi) = 1."""
    equations = transitions.T - np.eye(len(transitions))
    equations[-1] = 1
    found = np.linalg.solve(equations, np.eye(len(transitions))[-1])
    return np.asarray(found / found.sum())


def _entropy(probabilities: Floats) -> float:
    held = probabilities[probabilities > 0]
    return float(-(held * np.log(held)).sum())


def word_text(index: int) -> str:
    """Two syllables; the first 6400 are different."""
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    return syllables[index // len(syllables)] + syllables[index % len(syllables)]
