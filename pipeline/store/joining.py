"""Opening a store for writing: make its metadata, or join what others made. Safe when many processes do it at once.

Every document is created put-if-absent; whoever loses the race reads the winner's and refuses to go on if it says
something else. The number of rows is in the arrays' shapes. It may change afterwards, between jobs, at a unit
boundary: the shapes are then written anew, while a complete store's manifest keeps the old number for its readers
until the next manifest replaces it.
"""

from __future__ import annotations

from typing import Any

from pipeline.store.documents import sealed, to_bytes
from pipeline.store.layout import (
    ACTIVATIONS,
    ROOT,
    array_key,
    array_metadata,
    group_metadata,
    pass_id,
    pass_key,
    read_array,
    read_passes,
    read_record,
)
from pipeline.store.manifests import read_manifest
from pipeline.store.objects import Objects
from schemas.errors import MismatchError, MissingError, SpecError
from schemas.fingerprint import fingerprint, require_equal
from schemas.store import PassRecord, StoreRecord

_LAYOUT_FIELDS = ("table_fingerprint", "dtype", "chunk_rows", "shard_rows", "codec")


def join(objects: Objects, record: StoreRecord, pass_record: PassRecord, num_rows: int) -> StoreRecord:
    """Create or join the store, its pass and its arrays; the record that the store has.

    Raises:
        SpecError: the record contradicts itself, or there are no rows. MismatchError: the store has another identity,
        another pass holds one of the hook points, or ``num_rows`` does not fit the rows that the store has.
    """
    _check(record, pass_record, num_rows)
    objects.create(ROOT, to_bytes(group_metadata(record)))
    found = read_record(objects)
    where = f"the store at {objects.url}"
    remedy = "Choose another output, or the spec that made this store."
    require_equal(record.identity, found.identity, where=where, remedy=remedy)
    ours, theirs = ({name: getattr(one, name) for name in _LAYOUT_FIELDS} for one in (record, found))
    require_equal(ours, theirs, where=where, remedy=remedy)
    objects.create(ACTIVATIONS, to_bytes(group_metadata(None)))
    arrays = _arrays(objects, pass_record)
    _require_free(objects, pass_record, arrays)
    rows = _fit_rows(objects, found, pass_record, arrays, num_rows)
    _create_arrays(objects, found, pass_record, rows)
    # Last, so that a pass that lost the race for a hook point leaves no record of itself.
    objects.create(pass_key(pass_id(pass_record)), to_bytes(sealed(pass_record)))
    return found


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


def _arrays(objects: Objects, pass_record: PassRecord) -> dict[str, dict[str, Any]]:
    """hook point -> metadata of every array that exists."""
    hooks = {*pass_record.hook_points}.union(*(one.hook_points for one in read_passes(objects).values()))
    found = {hook: read_array(objects, hook) for hook in sorted(hooks)}
    return {hook: facts for hook, facts in found.items() if facts is not None}


def _require_free(objects: Objects, pass_record: PassRecord, arrays: dict[str, dict[str, Any]]) -> None:
    """A hook point belongs to one pass, or its objects would have two owners."""
    ours = pass_id(pass_record)
    taken = {hook: arrays[hook]["attributes"].get("pass_id") for hook in pass_record.hook_points if hook in arrays}
    others = {hook: owner for hook, owner in taken.items() if owner != ours}
    if others:
        known = read_passes(objects)
        lines = [
            f"  {hook} in pass {owner}"
            + (
                f" with batch_tokens {known[owner].batch_tokens} (here {pass_record.batch_tokens})"
                if owner in known
                else ""
            )
            for hook, owner in sorted(others.items())
        ]
        raise MismatchError(
            f"the store at {objects.url} has hook points of this job already:\n" + "\n".join(lines) + "\n"
            "Collect only further hook points, or choose another output."
        )


def _fit_rows(
    objects: Objects, record: StoreRecord, pass_record: PassRecord, arrays: dict[str, dict[str, Any]], num_rows: int
) -> int:
    """Where the store has another number of rows, change all shapes or refuse; the number that it has then."""
    current = max((facts["shape"][0] for facts in arrays.values()), default=num_rows)
    if current != num_rows and not _may_resize(objects, record, pass_record, current, num_rows):
        return int(current)
    for hook, facts in arrays.items():
        if facts["shape"][0] != num_rows:
            objects.write(array_key(hook), to_bytes({**facts, "shape": [num_rows, facts["shape"][1]]}))
    return num_rows


def _create_arrays(objects: Objects, record: StoreRecord, pass_record: PassRecord, num_rows: int) -> None:
    for hook, width in pass_record.hook_points.items():
        facts = array_metadata(record, hook, width, num_rows, pass_id(pass_record))
        if not objects.create(array_key(hook), to_bytes(facts)):
            _require_same(objects, hook, facts)


def _may_resize(objects: Objects, record: StoreRecord, pass_record: PassRecord, current: int, wanted: int) -> bool:
    """True: set all shapes to ``wanted``. False: the store is complete with more rows, which stay as they are."""
    if min(current, wanted) % record.shard_rows:
        raise MismatchError(
            f"the store at {objects.url} has {current} rows, this job {wanted}: the smaller number must be whole units "
            f"of {record.shard_rows} rows. Choose max_tokens so, or another output."
        )
    try:
        manifest = read_manifest(objects, record)
    except MissingError:
        return True
    if wanted >= manifest.num_rows:
        return True
    if pass_id(pass_record) not in manifest.passes:
        raise MismatchError(
            f"the store at {objects.url} is complete with {manifest.num_rows} rows, this job would add hook points to "
            f"{wanted} of them. Choose max_tokens={manifest.num_rows}, or another output."
        )
    return False


def _require_same(objects: Objects, hook: str, facts: dict[str, Any]) -> None:
    found = read_array(objects, hook)
    if found is None:
        raise MissingError(f"{objects.url}/{array_key(hook)} was written and is not there; check the storage")
    require_equal(
        facts, found, where=f"{objects.url}/{array_key(hook)}", remedy="Another job writes here: choose another output."
    )
