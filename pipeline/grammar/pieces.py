"""What statements of the Python grammar are made of: names, words, filler lines. Few of each, so that small tokenizers
have a token for every one."""

from __future__ import annotations

import random
from collections.abc import Callable

VARIABLES = (
    "x", "y", "z", "a", "b", "c", "i", "k", "n", "v", "data", "item", "name", "node", "value", "total", "count",
    "rows", "left", "right",
)  # fmt: skip
FUNCTIONS = ("load", "save", "find", "send", "show", "make", "read", "call")
WORDS = (
    "red", "blue", "green", "north", "south", "apple", "river", "stone", "cloud", "paper", "light", "house", "table",
    "glass", "water", "wood",
)  # fmt: skip
ATTRIBUTES = ("size", "kind", "text", "path", "user", "file", "line", "page")
INDENT = "    "


def variables(rng: random.Random, count: int) -> list[str]:
    """Different ones."""
    return rng.sample(VARIABLES, count)


def digit(rng: random.Random) -> str:
    """One of 0 to 9."""
    return str(rng.randrange(10))


def filler(rng: random.Random) -> str:
    """A line, its end included, that needs no quote, bracket or colon to be closed."""
    return rng.choice(_FILLERS)(rng) + "\n"


def _number(rng: random.Random) -> str:
    return f"{rng.choice(VARIABLES)} = {digit(rng)}"


def _sum(rng: random.Random) -> str:
    x, y, z = variables(rng, 3)
    return f"{x} = {y} + {z}"


def _call(rng: random.Random) -> str:
    return f"{rng.choice(FUNCTIONS)}({rng.choice(VARIABLES)})"


def _result(rng: random.Random) -> str:
    x, y = variables(rng, 2)
    return f"{x} = {rng.choice(FUNCTIONS)}({y})"


def _comment(rng: random.Random) -> str:
    return "# " + " ".join(rng.sample(WORDS, 2))


_FILLERS: tuple[Callable[[random.Random], str], ...] = (_number, _sum, _call, _result, _comment)
