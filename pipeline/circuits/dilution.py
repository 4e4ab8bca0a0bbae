"""Context dilution: does a model that counts brackets by an average over its context lose count in long ones?

Gao et al. 2025 (arXiv 2511.13653) find that the circuit of ``bracket_counting`` averages a detector of brackets over
the context, so that numbers in the list dilute what it counts. A model that does so closes too few brackets there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch

from pipeline.circuits.network import MaskedNetwork
from pipeline.circuits.tasks.pairs import posed
from pipeline.grammar.pieces import VARIABLES, digit
from pipeline.grammar.templates import Statement, Template
from pipeline.tokens.tokenizer import Tokenizer
from schemas.circuit import TaskSpec

Inner = Callable[[list[str]], list[list[str]]]
"""Numbers -> the lists that they stand in."""


@dataclass(frozen=True)
class Answers:
    """How lists of one form are closed."""

    error: float
    """Share that is closed with the wrong number of brackets."""
    margin: float
    """Mean logit of the right answer less that of the wrong one."""
    tokens: int
    """Of the longest prompt."""


@dataclass(frozen=True)
class Diluted:
    """Lists of one number of numbers."""

    numbers: int
    """How many numbers stand in the list."""
    flat: Answers
    """Lists, to be closed with one bracket."""
    nested: Answers
    """Lists of two lists, to be closed with two brackets: the first has two numbers, the second all others, which
    distract."""
    early: Answers
    """The same with two numbers in the second list and all others in the first: diluted as much, but the last bracket
    is near. What fails on ``nested`` and not here goes by the last bracket, and not by an average over the context."""
    paired: Answers
    """Lists of lists of two numbers, the last unfinished: as many numbers, but each pair has brackets of its own, so
    nothing is diluted. What fails here as well fails because of the length."""


@torch.no_grad()
def dilution(
    network: MaskedNetwork, tokenizer: Tokenizer, numbers: Sequence[int], *, pairs: int = 64, seed: int = 0
) -> list[Diluted]:
    """Of the intact network, for each number of numbers.

    Raises:
        SpecError: the tokenizer has no single tokens for ``]`` and ``]]``.
        ModelError: a prompt is longer than the network's learned positions.
    """
    spec = TaskSpec(pairs=pairs, seed=seed)
    found = []
    for count in numbers:
        flat, nested = _answers(network, tokenizer, spec, count, _in_the_last)
        _, early = _answers(network, tokenizer, spec, count, _in_the_first)
        _, paired = _answers(network, tokenizer, spec, count, _in_pairs)
        found.append(Diluted(numbers=count, flat=flat, nested=nested, early=early, paired=paired))
    return found


def _answers(
    network: MaskedNetwork, tokenizer: Tokenizer, spec: TaskSpec, count: int, inner: Inner
) -> tuple[Answers, Answers]:
    """To flat lists, and to lists of lists."""
    batch = posed(f"bracket_counting with {count} numbers", _brackets(count, inner), tokenizer, spec, "search")
    batch = batch.to(network.device)
    towards_right = network.margins(batch) * batch.signs
    flat, nested = (
        Answers(error=float((margins <= 0).float().mean()), margin=float(margins.mean()), tokens=int(lengths.max()))
        for margins, lengths in ((towards_right[form::2], batch.lengths[form::2]) for form in (0, 1))
    )
    return flat, nested


def _brackets(numbers: int, inner: Inner) -> Template:
    """The template of ``bracket_counting`` with more numbers."""

    def form(rng: Random, second: bool) -> Statement:
        name, digits = rng.choice(VARIABLES), [digit(rng) for _ in range(numbers)]
        if second:
            return Statement(f"{name} = [[{'], ['.join(map(', '.join, inner(digits)))}", "]]", "\n")
        return Statement(f"{name} = [{', '.join(digits)}", "]", "\n")

    return form


def _in_the_last(digits: list[str]) -> list[list[str]]:
    return [digits[:2], digits[2:]]


def _in_the_first(digits: list[str]) -> list[list[str]]:
    return [digits[:-2], digits[-2:]]


def _in_pairs(digits: list[str]) -> list[list[str]]:
    return [digits[first : first + 2] for first in range(0, len(digits), 2)]
