"""The token table, opened: reads parts, yields rows with global row and document ids.

``table.json`` says which parts the table has; it is written last and replaced as a whole when the table grows. Rows
once published never change: growing adds parts behind the last one.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.objects import Objects
from pipeline.store.rows import TokenRows
from pipeline.tokens.part import DOCUMENT_SCHEMA, TOKENIZER_KEY, PartReceipt, part_key
from pipeline.tokens.vocabulary import Tokenizer, restore_tokenizer
from schemas.errors import CorruptionError, IncompleteError, MissingError, SpecError

TABLE_KEY = "table.json"
IDENTITY_KEY = "identity.json"
TABLE_FORMAT = 1
_PARTS_KEPT = 3
"""Parts in memory: readers go forwards, and a range touches two parts at most now and then."""


class TokenTable:
    """A finished token table. Rows [0, ``num_rows``) are published; the parts may go further."""

    def __init__(self, objects: Objects, facts: Mapping[str, Any], num_rows: int) -> None:
        """``facts``: what ``table.json`` says. Use ``open``."""
        self._objects = objects
        self._facts = dict(facts)
        self._receipts = [PartReceipt(**receipt) for receipt in facts["parts"]]
        self._first_row = _starts(receipt.num_rows for receipt in self._receipts)
        self._first_document = _starts(receipt.num_documents for receipt in self._receipts)
        self._kept: OrderedDict[int, TokenRows] = OrderedDict()
        self._last_documents: tuple[int, Any] = (-1, None)
        self.num_rows = num_rows
        """Published rows: whole shards of the job that asked for them, or the whole corpus."""

    @classmethod
    def open(cls, url: str) -> TokenTable:
        """The table at a folder or URL.

        Raises:
            MissingError: nothing there.
            IncompleteError: a table that was begun and not finished.
            CorruptionError: ``table.json`` that is none, or of a newer format.
        """
        objects = Objects(url)
        if not objects.exists(TABLE_KEY):
            if objects.exists(IDENTITY_KEY):
                raise IncompleteError(f"the token table at {url} was begun and not finished; run its job again")
            raise MissingError(f"there is no token table at {url} (no {TABLE_KEY})")
        facts = read_facts(objects)
        return cls(objects, facts, int(facts["num_rows"]))

    def limited(self, num_rows: int) -> TokenTable:
        """The same table, published up to ``num_rows``, which may be more or less than now."""
        if num_rows > self.num_written_rows:
            raise ValueError(f"the token table at {self.url} has {self.num_written_rows} rows, {num_rows} asked for")
        return TokenTable(self._objects, self._facts, num_rows)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._objects.url

    @property
    def fingerprint(self) -> str:
        """Identity of the rows: tables of equal fingerprint agree in every row that both have."""
        return str(self._facts["fingerprint"])

    @property
    def identity(self) -> dict[str, Any]:
        """The facts under the fingerprint."""
        return dict(self._facts["identity"])

    @property
    def specials(self) -> dict[str, int]:
        """Role -> id of the tokenizer's special tokens."""
        return dict(self._facts["specials"])

    @property
    def receipts(self) -> list[PartReceipt]:
        """What each part holds, in order."""
        return list(self._receipts)

    @property
    def num_written_rows(self) -> int:
        """Rows of all parts, at least ``num_rows``: the end of the last context may lie beyond the published rows."""
        return self._first_row[-1]

    @property
    def num_documents(self) -> int:
        """Documents of all parts."""
        return self._first_document[-1]

    @property
    def counts(self) -> dict[str, int]:
        """Sums over the parts of every number in their receipts, for summaries."""
        names = [name for name in asdict(self._receipts[0]) if name.startswith("num_")] if self._receipts else []
        return {name: sum(getattr(receipt, name) for receipt in self._receipts) for name in names}

    def rows(self, start: int, stop: int) -> TokenRows:
        """Rows [start, stop), which may reach beyond ``num_rows`` up to ``num_written_rows``.

        Raises:
            CorruptionError: a part whose bytes are not those that its receipt names.
            MissingError: a part that is gone.
        """
        if not 0 <= start <= stop <= self.num_written_rows:
            raise IndexError(
                f"rows [{start}, {stop}) are not within the {self.num_written_rows} of the table {self.url}"
            )
        found: list[TokenRows] = []
        for index in self._parts_of(start, stop):
            first = self._first_row[index]
            found.append(self._part(index).slice(max(start - first, 0), stop - first))
        return TokenRows.concat(found)

    def covering(self, start: int, stop: int) -> tuple[int, int]:
        """``(first, last)``: [start, stop) widened to whole contexts, at the end beyond ``num_rows`` if need be."""
        if start >= stop:
            return start, start
        head = self.rows(start, start + 1)
        first = start - int(head.position[0])
        index = bisect_right(self._first_row, stop - 1) - 1
        end = self._first_row[index + 1]  # contexts do not go on from part to part
        begins = np.flatnonzero(self._part(index).position[stop - self._first_row[index] :] == 0)
        return first, stop + int(begins[0]) if len(begins) else end

    def documents(self) -> Any:
        """pyarrow table of all documents: document_id, name, sha256, held_out, num_tokens (of text, before packing)."""
        tables = [self._documents(index) for index in range(len(self._receipts))]
        return pa.concat_tables(tables) if tables else DOCUMENT_SCHEMA.empty_table()

    def document(self, document_id: int) -> dict[str, Any]:
        """What ``documents`` says of one; reads its part only. Raises IndexError where there is no such document."""
        if not 0 <= document_id < self.num_documents:
            raise IndexError(f"the token table at {self.url} has {self.num_documents} documents, no {document_id}")
        index = bisect_right(self._first_document, document_id) - 1
        facts: dict[str, Any] = (
            self._documents(index).slice(document_id - self._first_document[index], 1).to_pylist()[0]
        )
        return facts

    def _documents(self, index: int) -> Any:
        """The documents of one part under global ids; those of the last part stay in memory."""
        kept, found = self._last_documents
        if kept != index:
            found = self._read_documents(index)
            self._last_documents = (index, found)
        return found

    def _read_documents(self, index: int) -> Any:
        data = self._read(part_key(index, "documents.parquet"), self._receipts[index].documents_sha256)
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
        ids = table.column("document_id").to_numpy() + self._first_document[index]
        return table.set_column(0, DOCUMENT_SCHEMA.field(0), pa.array(ids, pa.int64()))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the table, from the table's own copy."""
        definition = self._objects.read(TOKENIZER_KEY)
        digest = self._facts["identity"]["tokenizer"]["sha256"]
        return restore_tokenizer(definition, self.specials, digest, where=f"{self.url}/{TOKENIZER_KEY}")

    def _parts_of(self, start: int, stop: int) -> range:
        """Indices of the parts that [start, stop) touches."""
        if start == stop:
            return range(0)
        return range(bisect_right(self._first_row, start) - 1, bisect_right(self._first_row, stop - 1))

    def _part(self, index: int) -> TokenRows:
        """A part's rows under global ids; the last few stay in memory."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        receipt = self._receipts[index]
        key = part_key(index, "rows.parquet")
        local = TokenRows.from_parquet(self._read(key, receipt.rows_sha256), where=f"{self.url}/{key}")
        rows = TokenRows(
            row=local.row + self._first_row[index],
            token_id=local.token_id,
            document_id=local.document_id + self._first_document[index],
            position=local.position,
            held_out=local.held_out,
        )
        self._kept[index] = rows
        while len(self._kept) > _PARTS_KEPT:
            self._kept.popitem(last=False)
        return rows

    def _read(self, key: str, sha256: str) -> bytes:
        data = self._objects.read(key)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptionError(
                f"{self.url}/{key} is not what was written ({len(data)} bytes, other SHA-256); "
                "make the token table again at another tokens.output, or restore the file"
            )
        return data


def read_facts(objects: Objects) -> dict[str, Any]:
    """What ``table.json`` says. Raises CorruptionError, SpecError for a newer format."""
    try:
        facts: dict[str, Any] = json.loads(objects.read(TABLE_KEY))
        newer = facts["format"] > TABLE_FORMAT
    except (ValueError, KeyError, TypeError) as exc:
        raise CorruptionError(f"{objects.url}/{TABLE_KEY} is no token table: {exc}") from exc
    if newer:
        raise SpecError(
            f"the token table at {objects.url} has format {facts['format']}, this version reads {TABLE_FORMAT}; "
            "upgrade headworks"
        )
    return facts


def write_facts(objects: Objects, facts: Mapping[str, Any], receipts: Sequence[PartReceipt], num_rows: int) -> None:
    """Publish the table: one atomic write."""
    parts = [asdict(receipt) for receipt in receipts]
    content = {**facts, "format": TABLE_FORMAT, "num_rows": num_rows, "parts": parts}
    objects.write(TABLE_KEY, json.dumps(content, indent=1).encode())


def _starts(lengths: Any) -> list[int]:
    """Running sum that begins with 0; one longer than ``lengths``."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts
