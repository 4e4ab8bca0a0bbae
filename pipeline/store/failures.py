"""Storage failures in the words of the project's error tree: translated once, at the door."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import HeadworksError, MissingError, ResourceError, UnreachableError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}

_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_PASSING_NAMES = {"ClientError", "ServerDisconnectedError", "ChecksumError", "IncompleteRead", "ServiceRequestError"}
"""Of aiohttp, gcsfs, http.client and azure.core, told by name: none of them need be installed."""


def status(exc: BaseException) -> int | None:
    """The HTTP status that aiohttp keeps as ``status``, azure.core as ``status_code``, gcsfs as ``code``."""
    for name in ("status", "status_code", "code"):
        value = getattr(exc, name, None)
        if isinstance(value, int | str) and str(value).isdigit():
            return int(value)
    return None


def passing(exc: Exception) -> str | None:
    """What to call a failure of a file system that may pass by itself; None of one that will not."""
    code = status(exc)
    if code is not None:
        return f"status {code}" if code in _PASSING_STATUS else None
    if isinstance(exc, TimeoutError):
        return "timeout"
    if isinstance(exc, ConnectionError):
        return "connection lost"
    if _PASSING_NAMES & {kind.__name__ for kind in type(exc).__mro__}:
        return type(exc).__name__
    return None


def missing(root: str, key: str) -> MissingError:
    """There is no such object."""
    return MissingError(f"{root}/{key} is not there; check the path, or whether the job that makes it has finished")


@contextmanager
def translated(root: str, key: str) -> Iterator[None]:
    """Turn what a file system raises inside the block into an error of the tree that names ``root/key``.

    Raises:
        MissingError: no such object. ResourceError: disk or quota full. UnreachableError: refused or no answer.
        OSError: anything else, unchanged.
    """
    try:
        yield
    except HeadworksError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
        raise missing(root, key) from exc
    except (PermissionError, ConnectionError, TimeoutError) as exc:
        raise UnreachableError(f"{root}/{key}: {exc}; check permissions, credentials and the endpoint") from exc
    except OSError as exc:
        if exc.errno in _FULL:
            raise ResourceError(
                f"{root}/{key} cannot be written: {exc.strerror}. Free space or choose another output; what was "
                "committed stays, and the same job continues from there"
            ) from exc
        if exc.errno in _REFUSED:
            raise UnreachableError(f"{root}/{key}: {exc}; check permissions of the folder") from exc
        raise
