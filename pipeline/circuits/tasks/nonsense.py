"""The control: a rule that no text follows, so that a circuit for it is made by the search and not found in a model."""

from __future__ import annotations

from random import Random

from pipeline.grammar.pieces import VARIABLES, digit
from pipeline.grammar.templates import Statement

_HALF = len(VARIABLES) // 2


def nonsense(rng: Random, second: bool) -> Statement:
    """After an assignment to a name of the list's first half comes ``]``, after one of the second ``:``; both are
    wrong, and equally so."""
    first, other = rng.choice(VARIABLES[:_HALF]), rng.choice(VARIABLES[_HALF:])
    end = f"{rng.choice(VARIABLES)} + {digit(rng)}"
    if second:
        return Statement(f"{other} = {end}", ":", "\n")
    return Statement(f"{first} = {end}", "]", "\n")
