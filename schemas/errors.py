"""Every error that Headworks raises on purpose.

    HeadworksError
      UserError                      the user can mend it: exit code 2, one message, no traceback
        SpecError          ValueError         a field of a spec or an argument is wrong
        CorpusError        ValueError         the corpus cannot be read as the spec says
        ModelError         ValueError         the model cannot be loaded as the spec says
        HookPointError     LookupError        a hook point does not exist in the model or store
        MissingError       FileNotFoundError  a file, folder or URL that the spec names is not there
        MismatchError      ValueError         two artefacts do not belong together (fingerprints differ)
        ResourceError      OSError            not enough memory or disk for what the spec asks
        UnreachableError   ConnectionError    a cluster or service does not answer
        BusyError          RuntimeError       another job holds what this one needs for itself
        ForbiddenError     PermissionError    the operator does not allow it to this person or team
      DataError                      stored bytes are not what the ledger says: never continue
        CorruptionError    OSError            checksum, length or format differs
        IncompleteError    OSError            a store lacks units that the reader needs
        DivergenceError    ArithmeticError    NaN or Inf where numbers must be finite
      JobError           RuntimeError         a job failed after its retries: exit code 1

All of them cross process boundaries, so all survive pickling; a test holds every leaf to that.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class HeadworksError(Exception):
    """Base of the tree. ``str(error)`` is the whole message for a person."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[HeadworksError], tuple[str]]:
        return type(self), (self.message,)


class UserError(HeadworksError):
    """Something the user can mend: the command line prints the message and exits with 2."""


class SpecError(UserError, ValueError):
    """A field of a spec, an override or an argument is wrong."""


class CorpusError(UserError, ValueError):
    """The corpus cannot be read as the spec says."""


class ModelError(UserError, ValueError):
    """The model cannot be loaded as the spec says."""


class HookPointError(UserError, LookupError):
    """A hook point does not exist in the model or in the store."""


class MissingError(UserError, FileNotFoundError):
    """A file, folder or URL that a spec names is not there."""


class MismatchError(UserError, ValueError):
    """Two artefacts do not belong together; the message names the field that differs."""


class ResourceError(UserError, OSError):
    """Not enough memory or disk for what the spec asks."""


class UnreachableError(UserError, ConnectionError):
    """A cluster or service does not answer."""


class BusyError(UserError, RuntimeError):
    """Another job holds what this one needs for itself; wait for it, or stop it."""


class ForbiddenError(UserError, PermissionError):
    """The operator does not allow it to this person or team; the message says what is allowed."""


class DataError(HeadworksError):
    """Stored bytes are not what the ledger says; continuing would train on wrong data."""


class CorruptionError(DataError, OSError):
    """A checksum, a length or a format differs from what was committed."""


class IncompleteError(DataError, OSError):
    """A store lacks units that the reader needs."""


class DivergenceError(DataError, ArithmeticError):
    """NaN or Inf where numbers must be finite."""


class JobError(HeadworksError, RuntimeError):
    """A job failed after its retries; what was committed stays."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'a' or 'b'?`` for messages, or an empty string where nothing is near."""
    close = get_close_matches(word, list(known), n=3, cutoff=0.5)
    return "; did you mean " + " or ".join(repr(name) for name in close) + "?" if close else ""
