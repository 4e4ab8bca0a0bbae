"""Parquet: reads a range of row groups by record batches, yields a document for each row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.tokens.document import CorpusFile, Document, Piece
from pipeline.tokens.files import open_file
from schemas.corpus import ParquetCorpus
from schemas.errors import CorpusError

_BATCH_ROWS = 256
"""Rows decoded at once: long documents make a row heavy, and a row group can have a million."""


def row_group_sizes(corpus: ParquetCorpus, file: CorpusFile) -> list[int]:
    """Uncompressed bytes of the text column in each row group, from the file's footer alone."""
    with _open_parquet(corpus, file) as parquet:
        metadata = parquet.metadata
        column = [metadata.schema.column(i).path.split(".")[0] for i in range(metadata.num_columns)].index(
            corpus.text_field
        )
        return [
            metadata.row_group(group).column(column).total_uncompressed_size for group in range(metadata.num_row_groups)
        ]


def row_group_rows(corpus: ParquetCorpus, file: CorpusFile) -> list[int]:
    """Documents in each row group, from the file's footer alone."""
    with _open_parquet(corpus, file) as parquet:
        return [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]


def read_parquet(corpus: ParquetCorpus, piece: Piece) -> Iterator[Document]:
    """Documents named ``FILE@ROW`` by the row in the file; a null is a document without text.

    Raises:
        CorpusError: the file is no Parquet, or has no string column of the name.
    """
    with _open_parquet(corpus, piece.file) as parquet:
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(piece.start))
        batches = parquet.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=list(range(piece.start, piece.stop)), columns=[corpus.text_field]
        )
        for batch in batches:
            for text in batch.column(0).to_pylist():
                yield Document(f"{piece.file.name}@{row}", text or "")
                row += 1


@contextmanager
def _open_parquet(corpus: ParquetCorpus, file: CorpusFile) -> Iterator[Any]:
    with open_file(file) as stream:
        try:
            parquet = pq.ParquetFile(stream)
            _require_text(corpus, file, parquet.schema_arrow)
            yield parquet
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as exc:
            if isinstance(exc, CorpusError):
                raise
            raise CorpusError(f"corpus file {file.url} cannot be read as Parquet: {exc}") from exc


def _require_text(corpus: ParquetCorpus, file: CorpusFile, schema: Any) -> None:
    names = list(schema.names)
    if corpus.text_field not in names:
        raise CorpusError(
            f"corpus file {file.url} has no column {corpus.text_field!r}; its columns are {names}; "
            "name the one that holds the text in corpus.text_field"
        )
    kind = schema.field(corpus.text_field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise CorpusError(f"corpus file {file.url}: column {corpus.text_field!r} is {kind}, expected string")
