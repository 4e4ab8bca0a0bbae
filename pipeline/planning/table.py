"""The rows of a token table that may not exist yet: counted where it does, estimated where it does not."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from pipeline.collection.prepare import planned_rows, table_url
from pipeline.planning.tokens import TokenEstimate, estimate
from pipeline.store.objects import Objects
from pipeline.store.rows import TokenRows
from pipeline.tokens.reading import IDENTITY_KEY, TABLE_KEY, TokenTable, read_facts
from pipeline.tokens.table import table_identity
from schemas.collect import CollectSpec
from schemas.errors import SpecError
from schemas.fingerprint import fingerprint, require_equal
from schemas.plan import Count

_SAMPLE_ROWS = 2**20


@dataclass(frozen=True)
class PlannedTable:
    """Facts of the token table that a collect job reads or makes."""

    url: str
    rows: Count
    sample: TokenRows
    """Some of its rows, or rows like them."""
    specials: dict[str, int]
    fingerprint: str = field(default="")
    """Empty where nothing of the corpus was digested, because there is no table yet."""

    @property
    def mean_context(self) -> int:
        """Mean tokens of a context."""
        return max(1, round(len(self.sample) / max(1, int((self.sample.position == 0).sum()))))


def planned_table(spec: CollectSpec, *, digested: bool) -> PlannedTable:
    """``digested``: the corpus's identity is wanted, whether or not there is a table.

    Raises:
        MismatchError: the table was made from other facts. CorpusError, MissingError: as making it would.
        SpecError: neither the spec nor the corpus says how much text there is.
    """
    url = table_url(spec)
    objects = Objects(url)
    is_there = objects.exists(IDENTITY_KEY)
    identity = table_identity(spec.tokens, spec.model) if is_there or digested else None
    if is_there and identity is not None:
        remedy = "Write to another folder (tokens.output), or remove this token table and make it again."
        theirs = json.loads(objects.read(IDENTITY_KEY))
        require_equal(identity, theirs, where=f"the token table at {objects.url}", remedy=remedy)
    print_ = fingerprint(identity) if identity is not None else ""
    if is_there and objects.exists(TABLE_KEY):
        table = TokenTable.open(url)
        rows = _rows_of(spec, table, is_whole=bool(read_facts(objects)["whole_corpus"]))
        if rows is not None:
            sample = table.rows(0, min(_SAMPLE_ROWS, table.num_rows))
            return PlannedTable(url, Count(value=rows, basis="exact"), sample, table.specials, print_)
    guess = estimate(spec.tokens, spec.model)
    return PlannedTable(url, _estimated(spec, guess), guess.sample, guess.specials, print_)


def _rows_of(spec: CollectSpec, table: TokenTable, *, is_whole: bool) -> int | None:
    """Rows of the store, None where the table is not long enough yet."""
    written = table.num_written_rows
    return planned_rows(spec, written) if is_whole or planned_rows(spec, 2**62) <= written else None


def _estimated(spec: CollectSpec, guess: TokenEstimate) -> Count:
    wanted = planned_rows(spec, 2**62) if spec.tokens.max_tokens else math.inf
    if guess.at_least >= wanted:
        return Count(value=int(wanted), basis="exact")
    if math.isinf(guess.num_rows) and math.isinf(wanted):
        raise SpecError(
            f"{spec.name}: the dataset {getattr(spec.tokens.corpus, 'path', '')} does not say how long it is, so that "
            "its tokens cannot be counted without reading it through; set tokens.max_tokens"
        )
    error = 0.0 if math.isnan(guess.relative_error) else guess.relative_error
    return Count(value=int(min(guess.num_rows, wanted)), basis="estimated", standard_error=error)
