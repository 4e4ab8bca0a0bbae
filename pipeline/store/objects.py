"""Objects under one URL: whole-object reads and writes, ranges, put-if-absent. The only door from store to storage.

Local folders are handled with the operating system's own calls (fsync, link, mmap), ``s3://`` by botocore; ``gs://``,
``memory://`` and every other URL go through fsspec. Credentials and endpoints come from the environment or the usual
files of each storage (``AWS_ENDPOINT_URL``, ``~/.aws``), never from a spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.store.any_file_system import AnyFileSystem
from pipeline.store.disk import DiskBackend
from pipeline.store.failures import missing
from schemas.errors import SpecError
from schemas.fields import require_no_credentials

Data = bytes | bytearray | memoryview
"""What is written: whole objects."""
Names = list[str]
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


class Backend(Protocol):
    """One file system below one root. Keys are relative, ``/``-separated."""

    root: str

    def read(self, key: str) -> bytes: ...

    def read_range(self, key: str, start: int, stop: int) -> bytes: ...

    def read_into(self, key: str, start: int, out: memoryview) -> int: ...

    def read_spans(self, key: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]: ...

    def write(self, key: str, data: Data) -> None: ...

    def create(self, key: str, data: Data) -> bool: ...

    def size(self, key: str) -> int | None: ...

    def sizes(self, folder: str) -> dict[str, int]: ...

    def times(self, folder: str) -> dict[str, float]: ...

    def children(self, folder: str) -> tuple[list[str], list[str]]: ...

    def delete(self, key: str) -> None: ...


def _backend(url: str) -> Backend:
    require_no_credentials(url)
    scheme = url.partition("://")[0]
    try:
        if scheme in {"s3", "s3a"}:
            from pipeline.store.s3 import S3  # botocore comes with the extra

            return S3(url)
        file_system, root = fsspec.core.url_to_fs(url)
    except ImportError as exc:
        extra = _EXTRAS.get(scheme)
        how = f"pip install 'headworks[{extra}]'" if extra else f"install what fsspec asks for ({exc})"
        raise SpecError(f"{url}: {scheme}:// needs a package that is not installed: {how}") from exc
    except ValueError as exc:
        raise SpecError(f"{url}: expected a path or a URL that fsspec opens, got one that it does not: {exc}") from exc
    if isinstance(file_system, LocalFileSystem):
        return DiskBackend(root)
    return AnyFileSystem(url, file_system, root)


def is_partial(key: str) -> bool:
    """True for the temporary file of an interrupted write: ``.NAME.RANDOM.partial``; it is never an object."""
    name = key.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".partial")


class Objects:
    """Named byte strings below ``url``. Cheap to make; nothing is touched before the first call. Picklable."""

    def __init__(self, url: str) -> None:
        self._backend = _backend(url)
        local = isinstance(self._backend, DiskBackend)
        self.url = self._backend.root if local else url.rstrip("/")
        """Absolute path or URL without a slash at the end; the same in every process."""
        self.is_local = local
        """True where objects are files that can be mapped into memory."""

    def __reduce__(self) -> tuple[type[Objects], tuple[str]]:
        return Objects, (self.url,)

    def __repr__(self) -> str:
        return f"Objects({self.url!r})"

    def read(self, key: str) -> bytes:
        """The whole object.

        Raises:
            MissingError: there is none.
        """
        return self._backend.read(_checked(key))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop); fewer where the object ends before. Raises MissingError."""
        return self._backend.read_range(_checked(key), start, stop) if stop > start else b""

    def read_into(self, key: str, start: int, out: memoryview) -> int:
        """Fill ``out``, bytes, from the object's byte ``start`` on; how many there were. Raises MissingError."""
        return self._backend.read_into(_checked(key), start, out) if len(out) else 0

    def read_spans(self, key: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """``read_range`` of each (start, stop), in order; from remote storage several at once. Raises MissingError."""
        return self._backend.read_spans(_checked(key), spans)

    def write(self, key: str, data: Data) -> None:
        """Put the whole object, atomically and durably, over whatever was there.

        Raises:
            ResourceError: the disk or quota is full; names the path.
            UnreachableError: the storage refuses or does not answer.
        """
        self._backend.write(_checked(key), data)

    def create(self, key: str, data: Data) -> bool:
        """Put the object unless there is one: True if this call made it. Of many racing calls one wins.

        Local: ``link(2)``. S3: ``If-None-Match``. GCS: ``ifGenerationMatch``. memory: a lock. Other file systems:
        fsspec's ``mode="create"``, which for most is an exists check before the write, and two writers at the same
        instant can both pass it. Where an answer is lost, the call finds out whether the object is its own.
        """
        return self._backend.create(_checked(key), data)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._backend.size(_checked(key)) is not None

    def size(self, key: str) -> int:
        """Length in bytes. Raises MissingError."""
        size_bytes = self._backend.size(_checked(key))
        if size_bytes is None:
            raise missing(self.url, key)
        return size_bytes

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """key -> length in bytes of every object whose key begins with ``prefix``, sorted by key."""
        folder = prefix.rpartition("/")[0]
        found = self._backend.sizes(folder)
        return {key: found[key] for key in sorted(found) if key.startswith(prefix) and not is_partial(key)}

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys below the root that begin with ``prefix``; interrupted writes are not among them."""
        return [*self.sizes(prefix)]

    def children(self, folder: str = "") -> tuple[Names, Names]:
        """Sorted names of the objects and of the folders directly in ``folder``; nothing where there is none. One
        listing of one level, however much lies below."""
        files, folders = self._backend.children(_checked(folder) if folder else "")
        return sorted(name for name in files if not is_partial(name)), sorted(folders)

    def partials(self, prefix: str = "") -> dict[str, int]:
        """key -> length in bytes of what interrupted writes left behind (local folders only), for a sweep."""
        found = self._backend.sizes(prefix.rpartition("/")[0])
        return {key: found[key] for key in sorted(found) if key.startswith(prefix) and is_partial(key)}

    def times(self, prefix: str = "") -> dict[str, float]:
        """key -> when it was last written, in seconds of the storage's own clock (never compare it with another one);
        temporary files of interrupted writes included, objects of storages that keep no times left out."""
        found = self._backend.times(prefix.rpartition("/")[0])
        return {key: found[key] for key in sorted(found) if key.startswith(prefix)}

    def delete(self, key: str) -> None:
        """Remove the object; none being there is no error."""
        self._backend.delete(_checked(key))

    def local_path(self, key: str) -> Path | None:
        """The object's file, or None where objects are not files. Whether it exists is not looked at."""
        return Path(self._backend.root, _checked(key)) if self.is_local else None

    def at(self, prefix: str) -> Objects:
        """The objects below ``prefix``, with keys relative to it."""
        return Objects(f"{self.url}/{_checked(prefix.strip('/'))}")


def _checked(key: str) -> str:
    """Keys never leave the root."""
    if not key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError(f"an object key is a relative path without empty, '.' or '..' parts; got {key!r}")
    return key
