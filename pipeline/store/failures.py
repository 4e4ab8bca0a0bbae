"""Storage failures in the words of the project's error tree: translated once, at the door."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import HeadworksError, MissingError, ResourceError, UnreachableError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


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
