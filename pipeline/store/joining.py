"""Opening a store for writing: make its metadata, or join what others made. Safe when many processes do it at once.

Every document is created put-if-absent; whoever loses the race reads the winner's and refuses to go on if it says
something else. Who owns a hook point, and which numbers of rows may meet in one store, is decided on the store's log
(``pipeline.store.log``), so that of two jobs at the same instant one comes second and sees the other. The shapes of
the arrays are those of the job that made them until the manifest is written, which sets them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.store.documents import sealed, to_bytes
from pipeline.store.layout import (
    ROOT,
    array_documents,
    group_metadata,
    pass_id,
    pass_key,
    plain_groups,
    read_document,
    read_record,
)
from pipeline.store.log import Event, StoreLog, completion, opened_passes
from pipeline.store.objects import Objects
from pipeline.store.retention import require_not_deleting
from schemas.errors import MismatchError, MissingError, SpecError
from schemas.fingerprint import fingerprint, require_equal
from schemas.store import PassOpened, PassRecord, StoreRecord

_LAYOUT_FIELDS = ("table_fingerprint", "layout", "dtype", "lossy", "chunk_rows", "shard_rows", "codec")


def join(objects: Objects, record: StoreRecord, pass_record: PassRecord, num_rows: int) -> StoreRecord:
    """Create or join the store, its pass and its arrays; the record that the store has.

    Raises:
        SpecError: the record contradicts itself, or there are no rows. MismatchError: the store has another identity,
        another pass holds one of the hook points, or ``num_rows`` does not fit the rows that the store has. Nothing of
        the pass is written then. BusyError: the store is being deleted.
    """
    _check(record, pass_record, num_rows)
    require_not_deleting(objects)
    objects.create(ROOT, to_bytes(group_metadata(record)))
    found = read_record(objects)
    where = f"the store at {objects.url}"
    remedy = "Choose another output, or the spec that made this store."
    require_equal(record.identity, found.identity, where=where, remedy=remedy)
    ours, theirs = ({name: getattr(one, name) for name in _LAYOUT_FIELDS} for one in (record, found))
    require_equal(ours, theirs, where=where, remedy=remedy)
    wanted = PassOpened(pass_record=pass_record, num_rows=num_rows)
    StoreLog(objects).append(partial(_opening, wanted, found.shard_rows, objects.url))
    # From here on the pass is the owner of its hook points; what a kill leaves undone the next one to join does.
    objects.create(pass_key(pass_id(pass_record)), to_bytes(sealed(pass_record)))
    for key in plain_groups(found):
        objects.create(key, to_bytes(group_metadata(None)))
    for hook, width in pass_record.hook_points.items():
        for key, facts in array_documents(found, hook, width, num_rows, pass_id(pass_record)).items():
            if not objects.create(key, to_bytes(facts)):
                _require_same(objects, key, facts)
    return found


def set_rows(objects: Objects, record: StoreRecord, passes: Mapping[str, PassRecord], num_rows: int) -> None:
    """Give every array of the passes this number of rows; those that have it are not written."""
    for pass_, one in passes.items():
        for hook, width in one.hook_points.items():
            for key, facts in array_documents(record, hook, width, num_rows, pass_).items():
                if read_document(objects, key) != facts:
                    objects.write(key, to_bytes(facts))


def _check(record: StoreRecord, pass_record: PassRecord, num_rows: int) -> None:
    expected = fingerprint(record.identity)
    if record.fingerprint != expected:
        raise SpecError(f"the store record has the fingerprint {record.fingerprint}, its identity {expected}")
    if not pass_record.hook_points:
        raise SpecError("a pass needs at least one hook point, got none")
    if record.shard_rows % record.chunk_rows:
        raise SpecError(f"shard_rows ({record.shard_rows}) is not a multiple of chunk_rows ({record.chunk_rows})")
    if num_rows < 1:
        raise SpecError(f"a store needs at least one row, got num_rows={num_rows}")


def _opening(wanted: PassOpened, shard_rows: int, url: str, events: Sequence[Event]) -> PassOpened | None:
    """The event that opens the pass, None where an equal one is there; decided on all events before it."""
    if wanted in events:
        return None
    _require_free(wanted.pass_record, opened_passes(events), url)
    for one in events:
        # A last unit that is short can never become a whole one, nor the other way round.
        if isinstance(one, PassOpened) and one.num_rows != wanted.num_rows:
            fewer = min(one.num_rows, wanted.num_rows)
            if fewer % shard_rows:
                raise MismatchError(
                    f"the store at {url} has {one.num_rows} rows, this job {wanted.num_rows}: the smaller number must "
                    f"be whole units of {shard_rows} rows. Choose max_tokens so, or another output."
                )
    shown = completion(events)
    if shown is None or wanted.num_rows >= shown.num_rows:
        return wanted
    if pass_id(wanted.pass_record) in shown.passes:
        return None  # a part of what is complete
    raise MismatchError(
        f"the store at {url} is complete with {shown.num_rows} rows, this job would add hook points to "
        f"{wanted.num_rows} of them. Choose max_tokens={shown.num_rows}, or another output."
    )


def _require_free(wanted: PassRecord, opened: Mapping[str, PassRecord], url: str) -> None:
    """A hook point belongs to one pass, or its objects would have two owners."""
    lines = [
        f"  {hook} in pass {owner} with batch_tokens {one.batch_tokens} (here {wanted.batch_tokens})"
        for owner, one in opened.items()
        if owner != pass_id(wanted)
        for hook in sorted({*one.hook_points} & {*wanted.hook_points})
    ]
    if lines:
        raise MismatchError(
            f"the store at {url} has hook points of this job already:\n" + "\n".join(lines) + "\n"
            "Collect only further hook points, or choose another output."
        )


def _require_same(objects: Objects, key: str, facts: dict[str, Any]) -> None:
    """The document is there with these facts, but for the number of rows."""
    found = read_document(objects, key)
    where = f"{objects.url}/{key}"
    if found is None:
        raise MissingError(f"{where} was written and is not there; check the storage")
    rows = found.get("shape") or facts["shape"]
    ours = {**facts, "shape": [rows[0], *facts["shape"][1:]]}
    require_equal(ours, found, where=where, remedy="Another job writes here: choose another output.")
