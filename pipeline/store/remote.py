"""Objects that are reached by requests: what S3, GCS and every file system behind fsspec have in common.

A subclass says how one request is made. Here each is made again when it fails for a reason that may pass
(``retrying``), bodies are compared in length with what was asked for, large reads go in parts, several at once
(``parallel``), and put-if-absent stays exact although answers get lost. Object stores replace whole objects atomically.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pipeline.store.failures import missing
from pipeline.store.parallel import PART_BYTES, at_once, request_slot, spans_of
from pipeline.store.retrying import PassingError, Retries

Result = TypeVar("Result")


@dataclass(frozen=True)
class Piece:
    """The answer to one ranged read."""

    data: bytes
    size: int | None
    """Bytes of the whole object, None where the answer does not tell."""
    version: str = ""
    """Changes when the object is written again, empty where the answer does not tell."""


@dataclass(frozen=True)
class Facts:
    """What a storage says about an object."""

    size: int
    time_s: float | None
    """When it was last written, in seconds of the storage's own clock; None where it keeps no times."""
    mark: str | None = None
    """What ``put`` was told, None where the storage keeps no metadata or was not asked for it."""


Page = tuple[dict[str, Facts], str | None]
"""Some of a listing, key -> facts, and what to ask the next page with; None: this is the last."""


Level = tuple[list[str], list[str], str | None]
"""Some of the names in one folder: of objects, of folders, and what to ask the next page with."""


class RemoteBackend(ABC):
    """Objects below ``root``. ``url`` names it in messages; ``hint`` is what to look at when nothing answers."""

    marks: bool
    """True where ``put`` can keep a mark with the object."""

    def __init__(self, url: str, root: str, hint: str) -> None:
        self.root = root
        self.url = url.rstrip("/")
        self.retries = Retries(self.reason, hint, self.asked_s)

    @abstractmethod
    def reason(self, exc: Exception) -> str | None:
        """What to call a failure that may pass by itself; None of one that will not."""

    @abstractmethod
    def asked_s(self, exc: Exception) -> float:
        """How long the storage asks to be left alone, by a failure that may pass; 0 where it does not say."""

    @abstractmethod
    def errors(self, key: str) -> AbstractContextManager[None]:
        """Translates what requests raise into errors of the tree."""

    @abstractmethod
    def piece(self, key: str, start: int, stop: int) -> Piece:
        """Bytes [start, stop), fewer only where the object ends before."""

    @abstractmethod
    def put(self, key: str, data: bytes | bytearray | memoryview, *, mark: str, if_absent: bool) -> bool:
        """Write the whole object; False: nothing was written, because there is one."""

    @abstractmethod
    def facts(self, key: str) -> Facts | None:
        """None: there is no such object."""

    @abstractmethod
    def page(self, folder: str, after: str | None) -> Page:
        """Objects below ``folder`` (the root if empty), from the page that ``after`` names."""

    @abstractmethod
    def level(self, folder: str, after: str | None) -> Level:
        """Names directly in ``folder``, from the page that ``after`` names."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Delete the object; none being there may be an error or not."""

    def read(self, key: str) -> bytes:
        return self.retries.run(self.where(key), lambda: self._read(key))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        if stop - start <= PART_BYTES:
            return self._piece(key, start, stop).data
        out = memoryview(bytearray(stop - start))
        return bytes(out[: self.read_into(key, start, out)])

    def read_into(self, key: str, start: int, out: memoryview) -> int:
        return self.retries.run(self.where(key), lambda: self._read_into(key, start, out))

    def read_spans(self, key: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        if len(spans) < 2 or any(stop - start > PART_BYTES for start, stop in spans):
            return (self.read_range(key, start, stop) for start, stop in spans)
        return at_once(lambda span: self._piece(key, *span).data, spans)

    def write(self, key: str, data: bytes | bytearray | memoryview) -> None:
        self._put(key, data, mark=secrets.token_hex(16), if_absent=False)

    def create(self, key: str, data: bytes | bytearray | memoryview) -> bool:
        return self._put(key, data, mark=secrets.token_hex(16), if_absent=True)

    def size(self, key: str) -> int | None:
        facts = self.request(key, lambda: self.facts(key))
        return facts.size if facts else None

    def sizes(self, folder: str) -> dict[str, int]:
        return {key: facts.size for key, facts in self._listed(folder)}

    def times(self, folder: str) -> dict[str, float]:
        return {key: facts.time_s for key, facts in self._listed(folder) if facts.time_s is not None}

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        files: list[str] = []
        folders: list[str] = []
        after: str | None = None
        while True:
            try:
                more, deeper, after = self.request(folder, partial(self.level, folder, after))
            except FileNotFoundError:
                return [], []
            files += more
            folders += deeper
            if after is None:
                return files, folders

    def delete(self, key: str) -> None:
        try:
            self.request(key, lambda: self.remove(key))
        except FileNotFoundError:
            return

    def where(self, key: str) -> str:
        """For messages."""
        return f"{self.url}/{key}" if key else self.url

    def request(self, key: str, action: Callable[[], Result]) -> Result:
        """One request and its retries, its errors translated. A place among the requests at once is held only while
        the request is under way."""

        def attempt() -> Result:
            with request_slot():
                return action()

        with self.errors(key):
            return self.retries.run(self.where(key), attempt)

    def _put(self, key: str, data: bytes | bytearray | memoryview, *, mark: str, if_absent: bool) -> bool:
        uncertain = False

        def attempt() -> bool:
            nonlocal uncertain
            try:
                return self.put(key, data, mark=mark, if_absent=if_absent)
            except Exception:
                uncertain = True
                raise

        made = self.request(key, attempt)
        return made or self.request(key, lambda: self.is_ours(key, data, mark, uncertain=uncertain))

    def is_ours(self, key: str, data: bytes | bytearray | memoryview, mark: str, *, uncertain: bool) -> bool:
        """Whether what is there was put by this call, by a try whose answer was lost: ours (``uncertain``), or one that
        a client library made again behind our back. Told by the mark where there are marks, else by the bytes."""
        if self.marks:
            facts = self.facts(key)
            return facts is not None and facts.mark == mark
        return uncertain and self.piece(key, 0, len(data) + 1).data == data

    def _piece(self, key: str, start: int, stop: int) -> Piece:
        return self.request(key, lambda: self.piece(key, start, stop))

    def _read(self, key: str) -> bytes:
        first = self._piece(key, 0, PART_BYTES)
        size = self.size(key) if first.size is None else first.size
        if size is None:
            raise missing(self.url, key)
        if size <= len(first.data):
            return first.data
        out = bytearray(size)
        out[: len(first.data)] = first.data
        rest = memoryview(out)[len(first.data) :]
        if self._read_into(key, len(first.data), rest, first.version) < len(rest):
            raise PassingError("replaced while read", f"it became shorter than {size} bytes")
        return bytes(out)

    def _read_into(self, key: str, start: int, out: memoryview, version: str = "") -> int:
        def fill(span: tuple[int, int]) -> tuple[int, str]:
            piece = self._piece(key, start + span[0], start + span[1])
            out[span[0] : span[0] + len(piece.data)] = piece.data
            return len(piece.data), piece.version

        spans = spans_of(0, len(out), PART_BYTES)
        filled = [*at_once(fill, spans)] if len(spans) > 1 else [fill(span) for span in spans]
        if len({one for _, one in filled} | ({version} if version else set())) > 1:
            raise PassingError("replaced while read", "its parts are of different versions")
        return sum(length for length, _ in filled)

    def _listed(self, folder: str) -> Iterator[tuple[str, Facts]]:
        after: str | None = None
        while True:
            try:
                found, after = self.request(folder, partial(self.page, folder, after))
            except FileNotFoundError:
                return
            yield from found.items()
            if after is None:
                return


def require_length(data: bytes, start: int, stop: int, size: int) -> None:
    """Compare a body with the range that was asked for, of an object of ``size`` bytes.

    Raises:
        PassingError: it is shorter or longer.
    """
    expected = max(0, min(stop, size) - start)
    if len(data) != expected:
        raise PassingError("body cut short", f"bytes [{start}, {stop}) of {size}: expected {expected}, got {len(data)}")
