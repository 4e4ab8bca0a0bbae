"""From a row of a store back to its text: document, position, and the words around it.

What is where: the store itself has the token ids, document ids and positions of its rows. The token table that it was
made from has the tokenizer and the names of the documents. So ids need nothing else, text needs the table (or a
function that decodes), the document's name needs the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from pipeline.store.finding import context_rows
from pipeline.store.page import corpus_of
from pipeline.store.rows import TokenRows
from pipeline.tokens.reading import TokenTable
from schemas.errors import IncompleteError, MismatchError, MissingError, SpecError

if TYPE_CHECKING:
    from pipeline.store.reader import Store

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Origin:
    """Where a row's text is."""

    row: int
    """In the store."""
    document_id: int
    position: int
    """In its context."""
    held_out: bool
    token_id: int
    before: str
    """Text of the context before the token, as far as it was asked for; other documents of the context included."""
    token: str
    after: str
    document: str
    """The document's name in the token table: a path under the corpus's folder, with a line or row where files hold
    several; empty where there is no table."""
    corpus: str
    """Format and places of the corpus, by the job that made the store."""

    def __str__(self) -> str:
        name = self.document or f"document {self.document_id}"
        return f"{self.before}[[{self.token}]]{self.after}\n({name}, position {self.position}, row {self.row})"

    def _repr_html_(self) -> str:
        name = self.document or f"document {self.document_id}"
        return (
            f"<p style='white-space:pre-wrap'>{escape(self.before)}<mark>{escape(self.token)}</mark>"
            f"{escape(self.after)}</p><p>{escape(name)}, position {self.position}, row {self.row:,}</p>"
        )


def origin_of(
    store: Store, row: int, *, around: int = 32, table: str | None = None, decode: Decode | None = None
) -> Origin:
    """``around``: tokens to show on either side. ``table``: where the token table lies now, if not where it was.
    ``decode``: token ids to text; without it the table's tokenizer.

    Raises:
        SpecError: no such row. MissingError: neither table nor ``decode``. MismatchError: another token table.
    """
    opened = open_table(store, table)
    if opened is None and decode is None:
        raise MissingError(
            f"the text of the store at {store.url} needs its token table, which is not at {store.record.table_url} any "
            "more: say where it is with table=URL, or how to decode token ids with decode=FUNCTION"
        )
    tokens = store.tokens(row, row + 1)
    context, place = _context(store, tokens, opened)
    first, last = max(0, place - around), min(len(context), place + 1 + around)
    ids = context.token_id[first:last].tolist()
    before, token, after = _pieces(decode or _decode(opened), ids, place - first)
    document_id = int(tokens.document_id[0])
    return Origin(
        row=row,
        document_id=document_id,
        position=int(tokens.position[0]),
        held_out=bool(tokens.held_out[0]),
        token_id=int(tokens.token_id[0]),
        before=before,
        token=token,
        after=after,
        document="" if opened is None else str(opened.document(document_id)["name"]),
        corpus=corpus_of(store.record.spec),
    )


def open_table(store: Store, url: str | None = None) -> TokenTable | None:
    """The token table that the store's rows come from; None where the one that the store names is gone or is another.

    Raises:
        MissingError, IncompleteError, MismatchError: there is no such table at the ``url`` that was given.
    """
    try:
        table = TokenTable.open(url or store.record.table_url)
    except (MissingError, IncompleteError):
        if url is not None:
            raise
        return None
    if table.fingerprint in _fingerprints(store):
        return table
    if url is None:
        return None  # the url in a store is a hint: another job's table lies there now
    raise MismatchError(
        f"the token table at {url} has fingerprint {table.fingerprint}, the store at {store.url} was made from "
        f"{store.table_fingerprint}: give that one"
    )


def _fingerprints(store: Store) -> set[str]:
    sources = (store.record.shuffled, store.record.exported)
    return {store.table_fingerprint, *(one.table_fingerprint for one in sources if one is not None)}


def _context(store: Store, tokens: TokenRows, table: TokenTable | None) -> tuple[TokenRows, int]:
    """The rows of the context of one row, and its place among them."""
    position = int(tokens.position[0])
    if tokens.source_row is None:
        return context_rows(store, int(tokens.row[0])), position
    if table is None:
        raise SpecError(
            f"the rows of the store at {store.url} are not in the order of their text: finding what is around a row "
            "needs the token table; say where it is with table=URL"
        )
    source = int(tokens.source_row[0])
    start, stop = table.covering(source, source + 1)
    return table.rows(start, stop), source - start


def _decode(table: TokenTable | None) -> Decode:
    if table is None:
        raise AssertionError("asked for before the table was looked for")
    return table.tokenizer().decode


def _pieces(decode: Decode, ids: list[int], place: int) -> tuple[str, str, str]:
    """Text before, of and after one token. Cut out of the whole, because some tokenizers drop the space before the
    first token that they decode; where a character is spread over several tokens each part is decoded by itself."""
    before, until, whole = decode(ids[:place]), decode(ids[: place + 1]), decode(ids)
    if until.startswith(before) and whole.startswith(until):
        return before, until[len(before) :], whole[len(until) :]
    return before, decode(ids[place : place + 1]), decode(ids[place + 1 :])
