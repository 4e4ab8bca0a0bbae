"""What passes between the corpus readers and the packer: documents, and the pieces of files that they come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text with the name under which the table lists it."""

    name: str
    text: str
    num_replaced: int = 0
    """Bytes that did not decode and became U+FFFD."""


@dataclass(frozen=True)
class CorpusFile:
    """One file of the corpus; ``name`` is its path under the glob's fixed part, ``url`` where it lies now."""

    name: str
    url: str
    size_bytes: int
    digest: str = ""
    """``sha256:`` of the content, or what the remote store says of it; empty until somebody asks for it."""


@dataclass(frozen=True)
class Piece:
    """A half-open range of one file, in the unit of its format: bytes (text, JSON lines), row groups, or documents."""

    file: CorpusFile
    start: int
    stop: int


@dataclass(frozen=True)
class CorpusPart:
    """Consecutive pieces that are tokenised and packed together, independently of every other part."""

    index: int
    pieces: tuple[Piece, ...]
