"""One part of a token table: reads its documents, writes its rows and its documents, returns a receipt.

Layout, below the table's URL (row and document ids in a part count from 0):

    parts/INDEX.rows.parquet         TokenRows
    parts/INDEX.documents.parquet    document_id, name, sha256, held_out, num_tokens
    parts/INDEX.json                 the receipt, written last: a part exists when this does

A part's bytes depend on the corpus, the tokenizer and the spec alone, so a retry writes the same bytes again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.objects import Objects
from pipeline.store.rows import TokenRows
from pipeline.tokens.corpus import read_documents
from pipeline.tokens.document import CorpusPart, Document
from pipeline.tokens.packing import Context, TokenisedDocument, pack
from pipeline.tokens.vocabulary import Tokenizer, restore_tokenizer
from schemas.corpus import Packing, TokensSpec
from schemas.errors import CorpusError, CorruptionError

TOKENIZER_KEY = "tokenizer.json"
_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 1 << 20
DOCUMENT_SCHEMA = pa.schema(
    [
        ("document_id", pa.int64()),
        ("name", pa.string()),
        ("sha256", pa.string()),
        ("held_out", pa.bool_()),
        ("num_tokens", pa.int64()),
    ]
)


@dataclass(frozen=True)
class PartReceipt:
    """What a part holds. JSON-able; the same for every attempt at the part."""

    index: int
    num_rows: int
    num_documents: int
    num_contexts: int
    num_held_out_rows: int
    num_empty_documents: int
    """Documents without a token: they have an id and no rows."""
    num_replaced_bytes: int
    """Bad bytes that became U+FFFD (``corpus.on_bad_text: replace``)."""
    num_truncated_tokens: int
    """Tokens cut off by ``packing.long_documents: truncate``."""
    rows_sha256: str
    documents_sha256: str


@dataclass(frozen=True)
class PartJob:
    """Everything that a worker needs to make one part; picklable and small."""

    table_url: str
    spec: TokensSpec
    part: CorpusPart
    specials: dict[str, int]
    tokenizer_digest: str
    single_thread: bool
    """One of many workers: tokenise on one thread, the others have the other cores."""


@dataclass
class _Tally:
    """What is learnt of the documents while they stream by."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in DOCUMENT_SCHEMA.names})
    num_replaced: int = 0


def part_key(index: int, kind: str) -> str:
    """Object key of a part; ``kind`` is ``rows.parquet``, ``documents.parquet`` or ``json``."""
    return f"parts/{index:06d}.{kind}"


def read_receipt(objects: Objects, index: int) -> PartReceipt | None:
    """The receipt of a part that exists.

    Raises:
        CorruptionError: bytes that are no receipt of this part.
    """
    key = part_key(index, "json")
    if not objects.exists(key):
        return None
    try:
        receipt = PartReceipt(**json.loads(objects.read(key)))
    except (ValueError, TypeError) as exc:
        raise CorruptionError(
            f"{objects.url}/{key} is no receipt of a part: {exc}; delete it to make the part again"
        ) from exc
    if receipt.index != index:
        raise CorruptionError(f"{objects.url}/{key} is the receipt of part {receipt.index}, expected {index}")
    return receipt


def write_part(job: PartJob) -> PartReceipt:
    """Tokenise, pack and write one part, unless it is there already.

    Raises:
        CorpusError: text that cannot be read as the spec says.
        ResourceError: the disk is full; nothing of the part exists then.
    """
    objects = Objects(job.table_url)
    done = read_receipt(objects, job.part.index)
    if done is not None:
        return done
    if job.single_thread:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = _tokenizer(job.table_url, job.tokenizer_digest, tuple(job.specials.items()))
    tally = _Tally()
    contexts = list(
        pack(_tokenise(job, tokenizer, tally), job.spec.packing, **special_ids(job.spec.packing, tokenizer))
    )
    rows = rows_of(contexts).to_parquet()
    documents = _to_parquet(tally)
    receipt = _receipt(job, contexts, tally, rows, documents)
    index = job.part.index
    objects.write(part_key(index, "rows.parquet"), rows)
    objects.write(part_key(index, "documents.parquet"), documents)
    objects.write(part_key(index, "json"), json.dumps(asdict(receipt), indent=1, sort_keys=True).encode())
    return receipt


def special_ids(packing: Packing, tokenizer: Tokenizer) -> dict[str, int]:
    """``bos_id`` and ``eos_id`` for the packer; -1 for one that the packing does not ask for.

    Raises:
        SpecError: the tokenizer lacks one that it asks for.
    """
    separator = packing.separator if packing.mode == "packed" else "none"
    bos = packing.begin_context == "bos" or "bos" in separator.split("_")
    eos = "eos" in separator.split("_")
    return {"bos_id": tokenizer.bos_id if bos else -1, "eos_id": tokenizer.eos_id if eos else -1}


def is_held_out(text_sha256: str, *, seed: int, fraction: float) -> bool:
    """Whether SHA-256 of seed and text digest, modulo 2**32, is below ``fraction * 2**32``: equal texts are never
    on both sides, in whichever file they are."""
    digest = hashlib.sha256(f"{seed}:{text_sha256}".encode()).digest()
    return int.from_bytes(digest[-4:], "big") < fraction * 2**32


@lru_cache(maxsize=2)
def _tokenizer(table_url: str, digest: str, specials: tuple[tuple[str, int], ...]) -> Tokenizer:
    """The table's own copy: a GGUF file would cost every worker seconds."""
    definition = Objects(table_url).read(TOKENIZER_KEY)
    return restore_tokenizer(definition, dict(specials), digest, where=f"{table_url}/{TOKENIZER_KEY}")


def _tokenise(job: PartJob, tokenizer: Tokenizer, tally: _Tally) -> Iterator[TokenisedDocument]:
    """Documents with ids counting from 0; fills the tally."""
    for batch in _batches(read_documents(job.spec, job.part)):
        digests = [text_sha256(document) for document in batch]  # first: it finds text that cannot be tokenised
        encoded = tokenizer.encode([document.text for document in batch])
        for document, sha256, token_id in zip(batch, digests, encoded, strict=True):
            held_out = is_held_out(sha256, seed=job.spec.seed, fraction=job.spec.held_out_fraction)
            document_id = len(tally.columns["document_id"])
            row = (document_id, document.name, sha256, held_out, len(token_id))
            for name, value in zip(DOCUMENT_SCHEMA.names, row, strict=True):
                tally.columns[name].append(value)
            tally.num_replaced += document.num_replaced
            yield TokenisedDocument(document_id, token_id, held_out)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Batches for the tokenizer, bounded in documents and in characters."""
    batch: list[Document] = []
    length = 0
    for document in documents:
        batch.append(document)
        length += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or length >= _BATCH_CHARACTERS:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def text_sha256(document: Document) -> str:
    """Of the document's text. Raises CorpusError where it cannot be written as UTF-8."""
    try:
        return hashlib.sha256(document.text.encode("utf-8")).hexdigest()
    except UnicodeEncodeError as exc:
        raise CorpusError(
            f"document {document.name} holds half of a surrogate pair (U+{ord(document.text[exc.start]):04X}) at "
            f"character {exc.start}, which is no text; repair the corpus"
        ) from exc


def rows_of(contexts: list[Context]) -> TokenRows:
    """One after the other, numbered from 0."""
    if not contexts:
        return TokenRows.empty()
    lengths = [len(context.token_id) for context in contexts]
    return TokenRows(
        row=np.arange(sum(lengths)),
        token_id=np.concatenate([context.token_id for context in contexts]),
        document_id=np.concatenate([context.document_id for context in contexts]),
        position=np.concatenate([context.position for context in contexts]),
        held_out=np.repeat(np.array([context.held_out for context in contexts], np.bool_), lengths),
    )


def _to_parquet(tally: _Tally) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table(tally.columns, schema=DOCUMENT_SCHEMA)
    pq.write_table(table, sink, compression="zstd", compression_level=1, store_schema=False)
    return bytes(sink.getvalue())


def _receipt(job: PartJob, contexts: list[Context], tally: _Tally, rows: bytes, documents: bytes) -> PartReceipt:
    num_tokens: list[int] = tally.columns["num_tokens"]
    packing = job.spec.packing
    cut = packing.mode == "document" and packing.long_documents == "truncate"
    room = packing.context_length - (packing.begin_context == "bos")
    return PartReceipt(
        index=job.part.index,
        num_rows=sum(len(context.token_id) for context in contexts),
        num_documents=len(num_tokens),
        num_contexts=len(contexts),
        num_held_out_rows=sum(len(context.token_id) for context in contexts if context.held_out),
        num_empty_documents=sum(count == 0 for count in num_tokens),
        num_replaced_bytes=tally.num_replaced,
        num_truncated_tokens=sum(max(0, count - room) for count in num_tokens) if cut else 0,
        rows_sha256=hashlib.sha256(rows).hexdigest(),
        documents_sha256=hashlib.sha256(documents).hexdigest(),
    )
