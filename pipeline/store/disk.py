"""Objects as files of a local folder: atomic, durable, put-if-absent.

A write goes to ``.NAME.RANDOM.partial`` beside its target, is flushed to the disk (fsync), and gets its name by
``rename`` (overwrite) or ``link`` (put-if-absent); then the folder itself is flushed, so that a power cut after the
return cannot lose the object. A process that dies in between leaves a ``.partial`` file that no reader sees.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.store.failures import translated
from schemas.errors import ResourceError, SpecError

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class DiskBackend:
    """Files below ``root``, an absolute path that need not exist before the first write."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def read(self, key: str) -> bytes:
        with translated(self.root, key):
            return self._path(key).read_bytes()

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with translated(self.root, key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def read_into(self, key: str, start: int, out: memoryview) -> int:
        filled = 0
        with translated(self.root, key), self._path(key).open("rb", buffering=0) as file:
            file.seek(start)
            while filled < len(out) and (more := file.readinto(out[filled:])):
                filled += more
        return filled

    def read_spans(self, key: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        return (self.read_range(key, start, stop) for start, stop in spans)

    def write(self, key: str, data: bytes | bytearray | memoryview) -> None:
        path = self._path(key)
        with translated(self.root, key), _partial(path, data) as partial:
            partial.replace(path)
            _flush_folder(path.parent)

    def create(self, key: str, data: bytes | bytearray | memoryview) -> bool:
        path = self._path(key)
        if path.exists():
            return False
        with translated(self.root, key), _partial(path, data) as partial:
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
            except OSError as exc:
                if exc.errno not in _NO_LINKS:
                    raise
                raise ResourceError(
                    f"{path}: this file system has no hard links ({exc.strerror}), which writing an object at most "
                    "once needs; choose an output on another disk"
                ) from exc
            _flush_folder(path.parent)
            return True

    def size(self, key: str) -> int | None:
        path = self._path(key)
        return path.stat().st_size if path.is_file() else None

    def sizes(self, folder: str) -> dict[str, int]:
        return {key: facts.st_size for key, facts in self._walk(folder)}

    def times(self, folder: str) -> dict[str, float]:
        return {key: facts.st_mtime for key, facts in self._walk(folder)}

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        with suppress(FileNotFoundError, NotADirectoryError), translated(self.root, folder):
            entries = [*os.scandir(os.path.join(self.root, folder))]
            # Links to folders are left out: they can lead in circles, and out of the root.
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            return [entry.name for entry in entries if entry.is_file()], folders
        return [], []

    def delete(self, key: str) -> None:
        with translated(self.root, key):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return Path(self.root, key)

    def _walk(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        return _walk(os.path.join(self.root, folder), f"{folder}/" if folder else "")


@contextmanager
def _partial(path: Path, data: bytes | bytearray | memoryview) -> Iterator[Path]:
    """A flushed temporary file beside ``path`` with ``data`` in it; gone afterwards unless it was renamed."""
    _make_folder(path.parent)
    partial = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(6)}.partial"
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make the folder and its parents; each new name is flushed too, or a power cut could lose the whole branch."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise SpecError(f"{folder} is a file, and a folder is to be written there: choose another output") from None
    _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """(key, facts) of every file below; files that vanish meanwhile (temporary ones) are left out."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            else:
                with suppress(FileNotFoundError):
                    yield prefix + entry.name, entry.stat()
