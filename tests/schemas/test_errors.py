"""The error tree: every class crosses process boundaries whole, keeps its standard meaning, and is in the drawing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest

from schemas import errors
from schemas.errors import HeadworksError, UserError, nearest


def tree(root: type[HeadworksError] = HeadworksError) -> Iterator[type[HeadworksError]]:
    yield root
    for branch in root.__subclasses__():
        yield from tree(branch)


@pytest.mark.parametrize("error", list(tree()), ids=lambda error: error.__name__)
def test_every_error_survives_pickling(error: type[HeadworksError]) -> None:
    raised = error("shard 3 of /data: expected 5, got 4\nTry again.")
    for back in (pickle.loads(pickle.dumps(raised)), copy.copy(raised)):
        assert type(back) is error
        assert str(back) == str(raised)
        assert back.message == raised.message


@pytest.mark.parametrize("error", list(tree()), ids=lambda error: error.__name__)
def test_every_error_is_documented(error: type[HeadworksError]) -> None:
    assert errors.__doc__ is not None
    assert error.__name__ in errors.__doc__


def test_leaves_keep_their_standard_meaning() -> None:
    leaves = [error for error in tree() if not error.__subclasses__()]
    for leaf in leaves:
        standard = [base for base in leaf.__mro__ if base.__module__ == "builtins"]
        assert standard[0] is not Exception, f"{leaf.__name__} has no standard meaning"
    with pytest.raises(FileNotFoundError, match="gone"):
        raise errors.MissingError("gone")
    assert not issubclass(errors.CorruptionError, UserError)


def test_nearest() -> None:
    assert nearest("num_latent", ["num_latents", "name"]) == "; did you mean 'num_latents'?"
    assert nearest("xyz", ["name"]) == ""
