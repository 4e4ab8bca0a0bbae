"""A store group: one folder with ``group.json`` and a store below it for each snapshot of a collection.

The document only says which stores belong together, in which order; each store is whole without it. It is written when
the collection begins, so a group is complete when all of its stores are.
"""

from __future__ import annotations

import json

from pipeline.store.documents import parse, sealed, unsealed
from pipeline.store.layout import ROOT, require_known_format
from pipeline.store.objects import Objects
from schemas.errors import CorruptionError, MismatchError, MissingError
from schemas.group import GroupMember, GroupRecord
from schemas.snapshots import GROUP


def read_group(objects: Objects) -> GroupRecord | None:
    """What the group says of itself, None where there is none.

    Raises:
        MismatchError: a newer format. CorruptionError: the document was altered.
    """
    where = f"{objects.url}/{GROUP}"
    try:
        facts = parse(objects.read(GROUP), where)
    except MissingError:
        return None
    require_known_format(facts, where)
    record = unsealed(facts, GroupRecord, where)
    names = [member.name for member in record.members]
    if len({*names}) < len(names) or not names:
        raise CorruptionError(f"{where}: expected members of different names, got {names}")
    return record


def member_urls(objects: Objects, record: GroupRecord) -> dict[str, str]:
    """Name -> URL of the store, in order."""
    return {member.name: objects.at(member.store).url for member in record.members}


def join_group(objects: Objects, wanted: GroupRecord) -> GroupRecord:
    """Write ``wanted`` with the members that earlier jobs have left a store of; what the group says then.

    The wanted ones come first, in their order. Called again at the end of a job, it brings back members that another
    job, at work on the same group in the same moment, has written over.

    Raises:
        MismatchError: the group is of another token table.
    """
    found = read_group(objects)
    if found is not None and found.table_fingerprint != wanted.table_fingerprint:
        raise MismatchError(
            f"the store group at {objects.url} is of the token table {found.table_fingerprint}, this job's is "
            f"{wanted.table_fingerprint}: rows would not be aligned. Choose another output, or that group's tokens."
        )
    names = {member.name for member in wanted.members}
    kept = [] if found is None else [one for one in found.members if one.name not in names and _is_there(objects, one)]
    record = wanted.model_copy(update={"members": [*wanted.members, *kept]})
    if record != found:
        objects.write(GROUP, (json.dumps(sealed(record), indent=1) + "\n").encode())
    return record


def unfinished(objects: Objects, record: GroupRecord) -> list[str]:
    """Names of members whose store has no manifest yet."""
    return [one.name for one in record.members if not objects.at(one.store).exists("manifest.json")]


def _is_there(objects: Objects, member: GroupMember) -> bool:
    return objects.at(member.store).exists(ROOT)
