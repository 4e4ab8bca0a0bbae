"""Context dilution: does a model that counts brackets by an average over its context lose count in long ones?

Gao et al. 2025 (arXiv 2511.13653) find that the circuit of ``bracket_counting`` averages a detector of brackets over
the context, so that numbers in the list dilute what it counts. A model that does so closes too few brackets there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

from pipeline.circuits.network import MaskedNetwork
from pipeline.circuits.tasks.pairs import posed
from pipeline.grammar.pieces import VARIABLES, digit
from pipeline.grammar.templates import Statement, Template
from pipeline.tokens.tokenizer import Tokenizer
from schemas.circuit import TaskSpec


@dataclass(frozen=True)
class Diluted:
    """Errors at one length of the list."""

    numbers: int
    """How many numbers stand in the list, of which all but two distract."""
    tokens: int
    """Of the longest prompt."""
    flat_error: float
    """Share of lists that are closed with two brackets."""
    nested_error: float
    """Share of lists of lists that are closed with one: under-counted."""


@torch.no_grad()
def dilution(
    network: MaskedNetwork, tokenizer: Tokenizer, numbers: Sequence[int], *, pairs: int = 64, seed: int = 0
) -> list[Diluted]:
    """Of the intact network, for each number of numbers.

    Raises:
        SpecError: the tokenizer has no single tokens for ``]`` and ``]]``.
    """
    found = []
    for count in numbers:
        spec = TaskSpec(pairs=pairs, seed=seed)
        batch = posed(f"bracket_counting with {count} numbers", _brackets(count), tokenizer, spec, "search")
        batch = batch.to(network.device)
        is_flat = network.margins(batch) > 0
        found.append(
            Diluted(
                numbers=count,
                tokens=int(batch.lengths.max()),
                flat_error=1 - float(is_flat[::2].float().mean()),
                nested_error=float(is_flat[1::2].float().mean()),
            )
        )
    return found


def _brackets(numbers: int) -> Template:
    """The template of ``bracket_counting`` with a first list of two numbers and all others in the last."""

    def form(rng: Random, second: bool) -> Statement:
        name, digits = rng.choice(VARIABLES), [digit(rng) for _ in range(numbers)]
        if second:
            return Statement(f"{name} = [[{', '.join(digits[:2])}], [{', '.join(digits[2:])}", "]]", "\n")
        return Statement(f"{name} = [{', '.join(digits)}", "]", "\n")

    return form
