"""How long a store is kept: its pin, its expiry, and who read it last.

Three documents beside the manifest, none of which a reader of the store needs:

- ``retention.json``, written by people and by the job that made the store;
- ``last_use.json``, replaced by each train and evaluate job that opens the store, if it may write there;
- ``deleting.json``, there while the store is being deleted (``pipeline.store.deletion``).

Expiry compares the clock here with that of whoever set it: it is meant in hours and days.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from pipeline.store.documents import Record, parse, sealed, to_bytes, unsealed
from pipeline.store.layout import read_record, require_known_format
from pipeline.store.leases import this_process
from pipeline.store.objects import Objects
from schemas.errors import BusyError, HeadworksError, MissingError
from schemas.retention import Deletion, LastUse, Retention, RetentionSpec

RETENTION = "retention.json"
LAST_USE = "last_use.json"
DELETING = "deleting.json"

_log = logging.getLogger(__name__)


def read_retention(objects: Objects) -> Retention:
    """What was asked for the store, the defaults where nothing was. Raises CorruptionError."""
    return _read(objects, RETENTION, Retention) or Retention()


def read_last_use(objects: Objects) -> LastUse | None:
    """The last job that read the store and could say so. Raises CorruptionError."""
    return _read(objects, LAST_USE, LastUse)


def read_deletion(objects: Objects) -> Deletion | None:
    """The deletion that is under way, or was. Raises CorruptionError."""
    return _read(objects, DELETING, Deletion)


def require_not_deleting(objects: Objects) -> None:
    """Raises BusyError where the store is being deleted."""
    if deletion := read_deletion(objects):
        raise BusyError(
            f"the store at {objects.url} is being deleted ({deletion.reason}) by {deletion.owner}, or was when that "
            f"process died. Finish it with `headworks store prune {objects.url}`, or choose another output."
        )


def pin(url: str, *, is_pinned: bool) -> Retention:
    """Keep the store from being deleted, or no longer; what it says then.

    Raises:
        MissingError: there is no store. BusyError: it is being deleted.
    """
    return _change(Objects(url), lambda found: found.model_copy(update={"is_pinned": is_pinned}))


def expire(url: str, *, after_s: float | None) -> Retention:
    """Let the store be deleted ``after_s`` seconds from now, None: never by age; what it says then.

    Raises: as ``pin``.
    """
    expires = 0.0 if after_s is None else time.time() + after_s
    return _change(Objects(url), lambda found: found.model_copy(update={"expires": expires}))


def keep_as_wished(objects: Objects, wish: RetentionSpec) -> None:
    """What the spec of the job that completed the store says, unless the store says something already."""
    if wish.ttl or wish.pin:
        expires = time.time() + wish.ttl if wish.ttl else 0.0
        retention = Retention(is_pinned=wish.pin, expires=expires, set_by=this_process())
        objects.create(RETENTION, to_bytes(sealed(retention)))


def note_use(url: str, job: str) -> None:
    """Say in the store that a job reads it, so that stores in use are not the first to be pruned. Where that cannot
    be written nothing happens: a store may be open to reading only."""
    objects = Objects(url)
    use = LastUse(job=job, owner=this_process(), time=time.time())
    try:
        objects.write(LAST_USE, to_bytes(sealed(use)))
    except (HeadworksError, OSError) as error:
        _log.info("store.use_not_noted store=%s reason=%s", objects.url, error)


@contextmanager
def noted_use(urls: Iterable[str], job: str, *, every_s: float = 3600.0) -> Iterator[None]:
    """``note_use`` of all stores now and every so often while the block runs."""
    ended, places = threading.Event(), [*urls]

    def note() -> None:
        for url in places:
            note_use(url, job)

    def note_on() -> None:
        while not ended.wait(every_s):
            note()

    note()
    thread = threading.Thread(target=note_on, name=f"use-{job}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _change(objects: Objects, change: Callable[[Retention], Retention]) -> Retention:
    _require_store(objects)
    while True:
        wanted = change(read_retention(objects)).model_copy(update={"set_by": this_process()})
        objects.write(RETENTION, to_bytes(sealed(wanted)))
        # Written first and looked at then, as the deletion does the other way round: one of the two sees the other.
        try:
            _require_store(objects)
        except MissingError:
            objects.delete(RETENTION)  # a whole deletion lay between
            raise
        found = read_retention(objects)
        # Two people at once: whoever was written over writes again what it is about.
        if change(found) == found:
            return found


def _require_store(objects: Objects) -> None:
    require_not_deleting(objects)
    read_record(objects)


def _read(objects: Objects, key: str, kind: type[Record]) -> Record | None:
    with suppress(MissingError):
        where = f"{objects.url}/{key}"
        facts = parse(objects.read(key), where)
        require_known_format(facts, where)
        return unsealed(facts, kind, where)
    return None
