"""Requests to whatever fsspec opens: ``gs://``, ``memory://``, ``abfs://`` and the rest."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.store.failures import passing, status, translated
from pipeline.store.remote import Facts, Level, Page, Piece, RemoteBackend, require_length
from pipeline.store.retrying import retry_after_s
from schemas.errors import UnreachableError

_MEMORY = threading.Lock()
"""Makes put-if-absent atomic in ``memory://``, which lives in one process anyway."""
_MARK = "headworks-put"
_CLIENTS = {"aiohttp", "gcsfs", "google", "azure", "adlfs", "requests", "paramiko"}
"""Packages whose plain exceptions ("no credentials", "cannot connect") mean: the storage is out of reach."""


class AnyFileSystem(RemoteBackend):
    """Objects below a path of an fsspec file system. Never trusts fsspec's listing cache."""

    def __init__(self, url: str, file_system: AbstractFileSystem, root: str) -> None:
        root = root.rstrip("/")
        super().__init__(
            str(file_system.unstrip_protocol(root)), root, "the storage's address, the network and the credentials"
        )
        self._opened = (os.getpid(), file_system)
        self._opened_url = url
        self.marks = "gs" in file_system.protocol
        self._asynchronous = bool(file_system.async_impl)

    def reason(self, exc: Exception) -> str | None:
        return passing(exc)

    def asked_s(self, exc: Exception) -> float:
        headers = getattr(exc, "headers", None)  # aiohttp's answers keep them
        return retry_after_s(headers.get("Retry-After")) if isinstance(headers, Mapping) else 0.0

    @contextmanager
    def errors(self, key: str) -> Iterator[None]:
        with translated(self.url, key):
            try:
                yield
            except OSError:
                raise
            except Exception as exc:
                if type(exc).__module__.partition(".")[0] not in _CLIENTS:
                    raise
                raise UnreachableError(f"{self.where(key)}: {exc}; check {self.retries.hint}") from exc

    def piece(self, key: str, start: int, stop: int) -> Piece:
        try:
            data = bytes(self._fs.cat_file(self._path(key), start=start, end=stop, **self._limit(stop - start)))
        except Exception as exc:
            # Some refuse a range that begins after the end; files give nothing. Both mean "no bytes".
            if status(exc) != 416:
                raise
            data = b""
        if len(data) == stop - start:
            return Piece(data, None)
        facts = self.facts(key)
        if facts is None:
            raise FileNotFoundError(key)
        require_length(data, start, stop, facts.size)
        return Piece(data, facts.size)

    def put(self, key: str, data: bytes | bytearray | memoryview, *, mark: str, if_absent: bool) -> bool:
        options: dict[str, Any] = self._limit(len(data))
        if self.marks:
            options["metadata"] = {_MARK: mark}
        if if_absent:
            options["mode"] = "create"
        try:
            # memory:// keeps the very object that it is given, so that must be one that cannot change.
            with _MEMORY if isinstance(self._fs, MemoryFileSystem) else nullcontext():
                self._fs.pipe_file(self._path(key), bytes(data), **options)
        except FileExistsError:
            return False
        return True

    def facts(self, key: str) -> Facts | None:
        self._fs.invalidate_cache()
        try:
            found = self._fs.info(self._path(key), **self._limit())
        except FileNotFoundError:
            return None
        return _facts(found) if found["type"] == "file" else None

    def page(self, folder: str, after: str | None) -> Page:
        self._fs.invalidate_cache()
        path = f"{self.root}/{folder}" if folder else self.root
        found: dict[str, dict[str, Any]] = self._fs.find(path, detail=True, **self._limit(2**30))
        inside = len(self.root) + 1
        return {name[inside:]: _facts(facts) for name, facts in found.items() if name != path}, None

    def level(self, folder: str, after: str | None) -> Level:
        self._fs.invalidate_cache()
        path = f"{self.root}/{folder}" if folder else self.root
        found: list[dict[str, Any]] = self._fs.ls(path, detail=True, **self._limit(2**30))
        names = [(str(one["name"]).rstrip("/").rpartition("/")[2], one["type"]) for one in found]
        return [name for name, kind in names if kind == "file"], [n for n, kind in names if kind == "directory"], None

    def remove(self, key: str) -> None:
        self._fs.rm_file(self._path(key), **self._limit())

    @property
    def _fs(self) -> AbstractFileSystem:
        """Its event loop does not survive a fork: a child process opens its own."""
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), fsspec.core.url_to_fs(self._opened_url)[0])
        return self._opened[1]

    def _limit(self, num_bytes: int = 0) -> dict[str, float]:
        """Seconds after which a request counts as lost: a minute, and more for bodies at less than 1 MB/s."""
        return {"timeout": 60 + num_bytes / 1e6} if self._asynchronous else {}

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"


def _facts(found: dict[str, Any]) -> Facts:
    return Facts(int(found["size"]), _modified(found), (found.get("metadata") or {}).get(_MARK))


def _modified(facts: dict[str, Any]) -> float | None:
    """Each file system names the time of the last write in its own way: gcsfs, adlfs, memory, sftp, others."""
    for name in ("LastModified", "updated", "last_modified", "mtime", "modified", "created"):
        found = facts.get(name)
        if isinstance(found, str):
            found = datetime.fromisoformat(found)
        if isinstance(found, datetime):
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if isinstance(found, int | float):
            return float(found)
    return None
