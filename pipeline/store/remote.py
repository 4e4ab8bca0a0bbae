"""Objects behind fsspec: S3, GCS, memory and whatever else it opens. Object stores replace whole objects atomically."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.store.failures import translated
from schemas.errors import UnreachableError

_MEMORY = threading.Lock()
"""Makes put-if-absent atomic in ``memory://``, which lives in one process anyway."""
_CONFLICT_TRIES = 6


class RemoteBackend:
    """Objects below ``root`` (bucket/path) of an fsspec file system. Never trusts fsspec's listing cache."""

    def __init__(self, file_system: AbstractFileSystem, root: str) -> None:
        self.root = root.rstrip("/")
        self._fs = file_system
        self._url = str(file_system.unstrip_protocol(self.root))

    def read(self, key: str) -> bytes:
        with self._errors(key):
            return bytes(self._fs.cat_file(self._path(key)))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        try:
            with self._errors(key):
                return bytes(self._fs.cat_file(self._path(key), start=start, end=stop))
        except OSError as exc:
            # Object stores refuse a range that begins after the end; files give nothing. Both mean "no bytes".
            if _code(exc) in {"InvalidRange", "416", "RequestedRangeNotSatisfiable"}:
                return b""
            raise

    def write(self, key: str, data: bytes | bytearray) -> None:
        with self._errors(key):
            self._fs.pipe_file(self._path(key), self._owned(data))

    def create(self, key: str, data: bytes | bytearray) -> bool:
        for last in range(_CONFLICT_TRIES):
            try:
                with self._errors(key):
                    return self._create(key, data)
            except OSError as exc:
                code = _code(exc)
                if code in {"PreconditionFailed", "412"}:
                    return False
                # S3 answers 409 while another put-if-absent of the key is under way: who wins is not known yet.
                if code not in {"ConditionalRequestConflict", "409"} or last == _CONFLICT_TRIES - 1:
                    raise
                time.sleep(0.05 * 2**last)
        raise AssertionError("the loop returns or raises")

    def size(self, key: str) -> int | None:
        self._fs.invalidate_cache()
        try:
            with self._errors(key):
                facts = self._fs.info(self._path(key))
        except FileNotFoundError:
            return None
        return int(facts["size"]) if facts["type"] == "file" else None

    def sizes(self, folder: str) -> dict[str, int]:
        return {key: int(facts["size"]) for key, facts in self._found(folder).items()}

    def times(self, folder: str) -> dict[str, float]:
        times = {key: _modified(facts) for key, facts in self._found(folder).items()}
        return {key: time_s for key, time_s in times.items() if time_s is not None}

    def delete(self, key: str) -> None:
        try:
            with self._errors(key):
                self._fs.rm_file(self._path(key))
        except FileNotFoundError:
            return

    def _create(self, key: str, data: bytes | bytearray) -> bool:
        path = self._path(key)
        try:
            if isinstance(self._fs, MemoryFileSystem):
                with _MEMORY:
                    self._fs.pipe_file(path, self._owned(data), mode="create")
            else:
                self._fs.pipe_file(path, self._owned(data), mode="create")
        except FileExistsError:
            return False
        return True

    def _found(self, folder: str) -> dict[str, dict[str, Any]]:
        """key -> fsspec's facts of every object below ``folder``."""
        self._fs.invalidate_cache()
        path = f"{self.root}/{folder}" if folder else self.root
        try:
            with self._errors(folder):
                found: dict[str, dict[str, Any]] = self._fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        inside = len(self.root) + 1
        return {name[inside:]: facts for name, facts in found.items() if name != path}

    def _owned(self, data: bytes | bytearray) -> bytes | bytearray:
        """memory:// keeps the very object that it is given, so it must be one that cannot change."""
        return bytes(data) if isinstance(self._fs, MemoryFileSystem) else data

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        with translated(self._url, key):
            try:
                yield
            except OSError:
                raise
            except Exception as exc:
                # botocore's and aiohttp's "no credentials", "cannot connect", "cannot resolve" are plain Exceptions.
                if type(exc).__module__.partition(".")[0] not in {"botocore", "aiobotocore", "aiohttp"}:
                    raise
                raise UnreachableError(
                    f"{self._url}/{key}: {exc}; check the endpoint (AWS_ENDPOINT_URL) and the credentials"
                ) from exc


def _modified(facts: dict[str, Any]) -> float | None:
    """Each file system names the time of the last write in its own way: s3fs, gcsfs, adlfs, memory, sftp, others."""
    for name in ("LastModified", "updated", "last_modified", "mtime", "modified", "created"):
        found = facts.get(name)
        if isinstance(found, str):
            found = datetime.fromisoformat(found)
        if isinstance(found, datetime):
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if isinstance(found, int | float):
            return float(found)
    return None


def _code(exc: BaseException) -> str:
    """The storage's own error code, which fsspec keeps as the cause: botocore's ``response['Error']['Code']``."""
    response = getattr(exc.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
