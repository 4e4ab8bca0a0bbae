"""A spot check: some units of a store computed again and held against what is stored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from pipeline.collection.recomputing import Difference, Recomputer, collect_spec
from pipeline.collection.store_tokens import StoreTokens, open_table
from pipeline.collection.unit import RowSource
from pipeline.store import layout
from pipeline.store.ledger import Ledger
from pipeline.store.objects import Objects
from pipeline.store.survey import Survey
from schemas.errors import CorruptionError, MissingError
from schemas.store import LedgerEntry, ObjectReceipt


def spot_check(
    url: str,
    num_units: int,
    *,
    seed: int = 0,
    tokens: str = "",
    model: str = "",
    device: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Difference]:
    """Compute ``num_units`` units again, drawn by ``seed`` from all that are committed, and compare each hook point.

    ``tokens``, ``model``: where the token table and the model are now, if not where they were; without the table the
    store's own token rows serve, and units whose contexts go on behind the last row are not drawn. ``progress`` gets
    units done and to do.

    Raises:
        MismatchError: another model, or a store that no collection made. MissingError: the model is gone, or no unit is
        left to draw. CorruptionError: an object of a drawn unit is damaged; ``repair`` mends it.
    """
    objects = Objects(url)
    survey = Survey.of(objects)
    record, num_rows = survey.record, survey.num_rows
    spec = collect_spec(record, model=model, device=device)
    rows, last = _rows(survey, tokens)
    drawn = _drawn(survey, num_units, seed, last)
    for done, (pass_, units) in enumerate(drawn):
        recomputer = Recomputer.open(record, survey.passes[pass_], rows, num_rows=num_rows, spec=spec)
        for unit in units:
            yield from recomputer.compare(objects, _entry(survey, pass_, unit))
            if progress is not None:
                progress(sum(len(each) for _, each in drawn[:done]) + units.index(unit) + 1, num_units)


def _drawn(survey: Survey, num_units: int, seed: int, last: int) -> list[tuple[str, list[int]]]:
    """Units by pass, both ascending."""
    known = [(pass_, unit) for pass_ in sorted(survey.passes) for unit in survey.units(pass_) if unit < last]
    if not known:
        raise MissingError(f"the store at {survey.objects.url} has no unit that could be computed again")
    chosen = random.Random(seed).sample(known, min(num_units, len(known)))
    passes = sorted({pass_ for pass_, _ in chosen})
    return [(pass_, sorted(unit for each, unit in chosen if each == pass_)) for pass_ in passes]


def _entry(survey: Survey, pass_: str, unit: int) -> LedgerEntry:
    entry = Ledger(survey.objects, pass_, survey.record.fingerprint).read(unit)
    if entry is None:
        key = layout.ledger_key(pass_, unit)
        raise CorruptionError(f"{survey.objects.url}/{key}: expected a ledger entry, got no object")
    return entry


def _rows(survey: Survey, tokens: str) -> tuple[RowSource, int]:
    """The token rows, and the first unit that cannot be computed from them."""
    num_rows, shard_rows = survey.num_rows, survey.record.shard_rows
    table, _ = open_table(survey.record, num_rows=num_rows, url=tokens)
    if table is not None:
        return table, layout.num_units(num_rows, shard_rows)

    def receipt(unit: int) -> ObjectReceipt | None:
        pass_ = next((each for each in sorted(survey.passes) if unit in survey.units(each)), "")
        return _entry(survey, pass_, unit).objects.get(layout.TOKENS) if pass_ else None

    own = StoreTokens(survey.objects, receipt, shard_rows=shard_rows, num_rows=num_rows)
    last = layout.num_units(num_rows, shard_rows)
    while last and own.covering(*layout.unit_rows(last - 1, num_rows, shard_rows))[1] == num_rows:
        last -= 1
    return own, last
