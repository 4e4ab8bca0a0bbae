"""Attention and MLP as reads of one associative memory: which noun does a pronoun mean?

    mem(q, K, V) = softmax(q K^T / temperature) V

A layer adds to each row a read of a fixed memory, a read of the rows before it, and a read of the memory with keys and
values swapped. The memory holds a few relations: "she/it" leads to "Masha" and to "porridge", "tasty" to "porridge",
"hungry" to "Masha". After "Masha eats porridge because she/it is ..." the pronoun is asked again, and its row is
compared with the words.

    python examples/associative_memory.py             the two sentences, and how rare settings are that get both right

The published logits of this example cannot be reproduced: embeddings, width, temperatures, normalisation, and which
vector is compared with the words are not said. What is shown here is a setting that we looked for, and only the order
of the two nouns: the equations are tested by themselves, and these numbers say nothing about trained networks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.networks.associative import AssociativeNetwork, relation_network

WORDS = ("МАША", "ЕСТ", "КАШУ", "ПОТОМУ", "ЧТО", "ОНА", "ВКУСНАЯ", "ГОЛОДНАЯ")
RELATIONS = {
    "ОНА": ["МАША", "КАШУ"],
    "ВКУСНАЯ": ["КАШУ"],
    "ГОЛОДНАЯ": ["МАША"],
    "МАША": ["ЕСТ"],
    "ЕСТ": ["КАШУ"],
    "ПОТОМУ": ["ЧТО"],
}
SENTENCES = ("МАША ЕСТ КАШУ ПОТОМУ ЧТО ОНА ВКУСНАЯ ОНА", "МАША ЕСТ КАШУ ПОТОМУ ЧТО ОНА ГОЛОДНАЯ ОНА")
MASHA, PORRIDGE = WORDS.index("МАША"), WORDS.index("КАШУ")
GRID = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def network(*, temperatures: Sequence[float] = (0.2, 0.2, 0.2), cosine: bool = True) -> AssociativeNetwork:
    """Orthonormal embeddings, three layers; by default the setting that was found."""
    return relation_network(WORDS, RELATIONS, layers=3, temperatures=temperatures, cosine=cosine)


@torch.no_grad()
def logits(one: AssociativeNetwork) -> Tensor:
    """[2, words]: the last row of each sentence, compared with the embeddings."""
    ids = torch.tensor([[WORDS.index(word) for word in sentence.split()] for sentence in SENTENCES])
    found: Tensor = one(ids)[:, -1] @ one.embed.weight.T
    return found


def margins(found: Tensor) -> tuple[float, float]:
    """By how much porridge leads in the first sentence, and Masha in the second."""
    return float(found[0, PORRIDGE] - found[0, MASHA]), float(found[1, MASHA] - found[1, PORRIDGE])


def both_right(*, cosine: bool) -> tuple[int, int]:
    """Settings of three temperatures of a grid in which both nouns lead all words, and how many there are."""
    settings = list(itertools.product(GRID, repeat=3))
    tops = [logits(network(temperatures=one, cosine=cosine)).argmax(1).tolist() for one in settings]
    return sum(top == [PORRIDGE, MASHA] for top in tops), len(settings)


def main() -> None:
    """The logits of the two sentences, and the share of settings that get both right."""
    found = logits(network())
    print(" ".join(f"{word:>9}" for word in WORDS))
    for row in found.tolist():
        print(" ".join(f"{value:9.2f}" for value in row))
    print("leads: КАШУ {:.2f} in the first, МАША {:.2f} in the second".format(*margins(found)))
    for cosine in (True, False):
        right, count = both_right(cosine=cosine)
        print(f"{'cosine' if cosine else 'dot product'}: {right} of {count} settings get both right")


if __name__ == "__main__":
    main()
