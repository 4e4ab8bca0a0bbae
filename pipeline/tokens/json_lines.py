"""JSON lines, plain or compressed: reads a byte range of the (decompressed) text, yields a document for each line.

A line belongs to the range that its first byte lies in, so any cut of a file gives each line exactly once.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import zstandard

from pipeline.tokens.document import CorpusFile, Document, Piece
from pipeline.tokens.files import open_file
from pipeline.tokens.linear import read_range
from schemas.corpus import JsonLinesCorpus
from schemas.errors import CorpusError

_BLOCK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def json_lines_size(file: CorpusFile) -> int:
    """Bytes of text in the file; a compressed one is decompressed once, block by block, to count them."""
    if not is_compressed(file):
        return file.size_bytes
    with _open_lines(file) as stream:
        size_bytes = 0
        while block := stream.read(_BLOCK_BYTES):
            size_bytes += len(block)
    return size_bytes


def expansion(file: CorpusFile, num_bytes: int) -> float:
    """Bytes of text for each byte of the file, judged by about its first ``num_bytes`` of text."""
    if not is_compressed(file):
        return 1.0
    with open_file(file) as raw, _decompressed(file, raw) as stream:
        # Below the buffer, which would read far ahead of what it gives.
        source: Any = getattr(stream, "raw", stream)
        size_bytes = 0
        while size_bytes < num_bytes and (block := source.read(_BLOCK_BYTES)):
            size_bytes += len(block)
        return size_bytes / max(raw.tell(), 1)


def read_json_lines(corpus: JsonLinesCorpus, piece: Piece) -> Iterator[Document]:
    """Documents named ``FILE@BYTE`` by the byte where their line begins; blank lines are passed over.

    ``null`` in the text field is a document without text.

    Raises:
        CorpusError: a line that is no JSON object with the text field, or text that is not UTF-8.
    """
    for offset, line in _lines(piece):
        if line.strip():
            text = _text_of(corpus, piece.file, offset, line)
            yield Document(f"{piece.file.name}@{offset}", text)


def _lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """``(byte offset, line)`` for each line that begins in the piece."""
    if is_compressed(piece.file):
        key = f"{piece.file.url}#{piece.file.digest}"
        yield from read_range(key, piece.start, piece.stop, lambda: _lines_from(piece.file, 0))
        return
    for offset, line in _lines_from(piece.file, piece.start):
        if offset >= piece.stop:
            return
        yield offset, line


def _lines_from(file: CorpusFile, start: int) -> Iterator[tuple[int, bytes]]:
    """Lines from the first that begins at or after ``start``."""
    with _open_lines(file) as stream:
        offset = start
        if start:
            # One byte back: if it ends a line, the line at start is ours; else the rest of that line is not.
            stream.seek(start - 1)
            offset = start - 1 + len(stream.readline())
        while line := stream.readline():
            yield offset, line
            offset += len(line)


def is_compressed(file: CorpusFile) -> bool:
    """By the ending of its name."""
    return file.name.endswith((".gz", ".zst"))


@contextmanager
def _open_lines(file: CorpusFile) -> Iterator[IO[bytes]]:
    with open_file(file) as raw, _decompressed(file, raw) as stream:
        yield stream


@contextmanager
def _decompressed(file: CorpusFile, raw: IO[bytes]) -> Iterator[IO[bytes]]:
    try:
        if file.name.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                yield io.BufferedReader(stream, _BLOCK_BYTES)
        elif file.name.endswith(".zst"):
            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as frames:
                yield io.BufferedReader(frames, _BLOCK_BYTES)
        else:
            yield raw
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as exc:
        raise CorpusError(f"corpus file {file.url} does not decompress ({exc}); it is damaged or cut short") from exc


def _text_of(corpus: JsonLinesCorpus, file: CorpusFile, offset: int, line: bytes) -> str:
    if offset == 0:
        line = line.removeprefix(_BYTE_ORDER_MARK)
    try:
        record: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as exc:
        where = _where(file, offset)
        raise CorpusError(f"{where} is not UTF-8: byte {offset + exc.start} of the text ({exc.reason})") from exc
    except ValueError as exc:
        raise CorpusError(f"{_where(file, offset)} is not JSON: {exc}") from exc
    if not isinstance(record, dict):
        raise CorpusError(f"{_where(file, offset)} is a JSON {type(record).__name__}, expected an object")
    if corpus.text_field not in record:
        raise CorpusError(
            f"{_where(file, offset)} has no field {corpus.text_field!r}; its fields are {sorted(record)}; "
            "name the one that holds the text in corpus.text_field"
        )
    text = record[corpus.text_field]
    if text is not None and not isinstance(text, str):
        raise CorpusError(
            f"{_where(file, offset)}: field {corpus.text_field!r} is {type(text).__name__}, expected text"
        )
    return text or ""


def _where(file: CorpusFile, offset: int) -> str:
    """File and line for a message; lines are counted only now that somebody needs the number."""
    with _open_lines(file) as stream:
        before, left = 0, offset
        while left and (block := stream.read(min(left, _BLOCK_BYTES))):
            before += block.count(b"\n")
            left -= len(block)
    return f"corpus file {file.url}, line {before + 1}"
