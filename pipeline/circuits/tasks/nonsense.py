"""The control: a rule that no text follows, so that a circuit for it is made by the search and not found in a model."""

from __future__ import annotations

from random import Random

from pipeline.tokens.python_templates import NAMES, Pair, Snippet

_HALF = len(NAMES) // 2


def nonsense(draw: Random) -> Pair:
    """After an assignment to a name of the alphabet's first half comes ``]``, after one of the second ``:``; both are
    wrong, and equally so."""
    first, second = draw.choice(NAMES[:_HALF]), draw.choice(NAMES[_HALF:])
    other, number = draw.choice(NAMES), draw.randrange(10)
    return (
        Snippet(f"{first} = {other} + {number}", "]", "\n"),
        Snippet(f"{second} = {other} + {number}", ":", "\n"),
    )
