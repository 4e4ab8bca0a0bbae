"""Packing: reads tokenised documents, yields contexts, the sequences that the model sees.

``packed``: the documents of one split (training or held out) are joined with the separator between them and cut at
every full context. A separator stands only between two documents of the same context: what of it would begin a
context is dropped, so that every context has a token of text. The two splits are packed side by side; contexts come
in the order in which they fill, what is left at the end training first.

``document``: each context holds one document; a longer one is truncated or goes on in further contexts.

Documents without tokens leave no trace. Nothing else is lost or doubled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.corpus import Packing
from schemas.errors import SpecError

_SEPARATORS = {"none": (), "bos": ("bos",), "eos": ("eos",), "eos_bos": ("eos", "bos")}


@dataclass(frozen=True)
class TokenisedDocument:
    """``document_id`` counts from 0 in the part; ``token_id`` int32 [T], without special tokens."""

    document_id: int
    token_id: NDArray[np.int32]
    held_out: bool


@dataclass(frozen=True)
class Context:
    """``token_id`` int32 [T]; ``document_id`` int64 [T], for a special token that of the document it precedes;
    ``position`` int32 [T], 0..T-1."""

    token_id: NDArray[np.int32]
    document_id: NDArray[np.int64]
    position: NDArray[np.int32]
    held_out: bool


def pack(documents: Iterable[TokenisedDocument], packing: Packing, *, bos_id: int, eos_id: int) -> Iterator[Context]:
    """Contexts of at most ``context_length`` tokens, each wholly held out or wholly training.

    Raises:
        SpecError: a context length with no room for text beside BOS.
    """
    begin = [bos_id] if packing.begin_context == "bos" else []
    if packing.context_length <= len(begin):
        raise SpecError(
            f"packing.context_length {packing.context_length} has no room for text beside BOS; "
            "set it to at least 2 or packing.begin_context to none"
        )
    if packing.mode == "document":
        yield from _one_document_each(documents, packing, begin)
        return
    special_ids = {"bos": bos_id, "eos": eos_id}
    separator = [special_ids[role] for role in _SEPARATORS[packing.separator]]
    splits = {held_out: _Joined(packing.context_length, begin, separator, held_out) for held_out in (False, True)}
    for document in documents:
        yield from splits[document.held_out].join(document)
    for held_out in (False, True):
        yield from splits[held_out].finish()


def _one_document_each(documents: Iterable[TokenisedDocument], packing: Packing, begin: list[int]) -> Iterator[Context]:
    room = packing.context_length - len(begin)
    for document in documents:
        length = len(document.token_id)
        stop = min(length, room) if packing.long_documents == "truncate" else length
        for start in range(0, stop, room):
            yield _context([(document.document_id, begin), _run(document, start, min(start + room, stop))], document)


@dataclass
class _Joined:
    """One split's open context: runs of tokens with the document that each belongs to."""

    context_length: int
    begin: list[int]
    separator: list[int]
    held_out: bool
    runs: list[tuple[int, NDArray[np.int32] | list[int]]] = field(default_factory=list)
    length: int = 0

    def join(self, document: TokenisedDocument) -> Iterator[Context]:
        """Add a document, yielding every context that it fills."""
        if len(document.token_id) == 0:
            return
        for token_id in self.separator if self.runs else []:
            # Empty again: the context ended within the separator, and what is left of it would begin the next.
            if self.runs:
                yield from self._add(document.document_id, [token_id])
        start = 0
        while start < len(document.token_id):
            if not self.runs and self.begin:
                yield from self._add(document.document_id, self.begin)
            stop = start + self.context_length - self.length
            document_id, run = _run(document, start, stop)
            start += len(run)
            yield from self._add(document_id, run)

    def finish(self) -> Iterator[Context]:
        """The context that the last document left open, if any."""
        if self.runs:
            yield self._close()

    def _add(self, document_id: int, run: NDArray[np.int32] | list[int]) -> Iterator[Context]:
        self.runs.append((document_id, run))
        self.length += len(run)
        if self.length == self.context_length:
            yield self._close()

    def _close(self) -> Context:
        context = _join_runs(self.runs, self.held_out)
        self.runs, self.length = [], 0
        return context


def _run(document: TokenisedDocument, start: int, stop: int) -> tuple[int, NDArray[np.int32]]:
    return document.document_id, document.token_id[start:stop]


def _context(runs: list[tuple[int, NDArray[np.int32] | list[int]]], document: TokenisedDocument) -> Context:
    return _join_runs([run for run in runs if len(run[1])], document.held_out)


def _join_runs(runs: list[tuple[int, NDArray[np.int32] | list[int]]], held_out: bool) -> Context:
    token_id = np.concatenate([np.asarray(run, np.int32) for _, run in runs])
    document_id = np.repeat(np.array([owner for owner, _ in runs], np.int64), [len(run) for _, run in runs])
    return Context(token_id, document_id, np.arange(len(token_id), dtype=np.int32), held_out)
