"""Leases: how jobs that write to a store and jobs that delete from it keep out of each other's way.

Every job that writes puts ``leases/JOB.json`` and renews it from a thread of its own until it ends. Sweep and repair do
the same, exclusively. Each first puts its lease and then looks at the others', so that of two which begin at the same
instant at least one sees the other: an exclusive one gives way, a sharing one waits.

A lease of a process that died is void when it has not been renewed for ``duration_s``. Its age is the difference of two
modification times of the storage (its own and that of the lease which asks), so that no clock of any machine matters.
Where the storage keeps no times, ``expires`` is compared with the clock here and given the same duration once more.
"""

from __future__ import annotations

import getpass
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pipeline.store.documents import parse, sealed, to_bytes, unsealed
from pipeline.store.objects import Objects
from schemas.errors import BusyError, DataError, HeadworksError, MissingError
from schemas.lease import Lease

FOLDER = "leases/"
DURATION_S = 600.0
"""Ten renewals may fail before anybody takes the job for dead."""
_RENEWALS = 10
_WAIT_S = 1.0
_TRIES = 5

_log = logging.getLogger(__name__)


def lease_key(job: str) -> str:
    return f"{FOLDER}{job}.json"


@contextmanager
def held(objects: Objects, name: str, *, is_exclusive: bool = False, duration_s: float = DURATION_S) -> Iterator[Lease]:
    """Hold a lease on the store while the block runs. ``name``: what runs, as others will read it.

    A sharing lease waits until no exclusive one is live.

    Raises:
        BusyError: an exclusive lease is asked for while any other is live; says whose.
    """
    lease = _new(name, is_exclusive=is_exclusive, duration_s=duration_s)
    key = lease_key(lease.job)
    _put(objects, lease)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(objects, lease, ended), name=f"lease-{lease.job}", daemon=True)
    renewal.start()
    try:
        if is_exclusive:
            _require_alone(objects, lease)
        else:
            _wait_for_exclusive(objects, lease)
        yield lease
    finally:
        ended.set()
        renewal.join()
        with suppress(HeadworksError, OSError):
            # Left where the storage does not answer: it ends by itself.
            objects.delete(key)
            _remove_empty_folders(objects)


def live_leases(objects: Objects, *, asking: Lease | None = None) -> list[Lease]:
    """The leases of others that have not ended, by job; ``asking`` is a lease that the caller has just put or renewed.

    Without one the clock here is compared with the storage's times, which is enough to tell people.
    """
    times = objects.times(FOLDER)
    now_s = times.get(lease_key(asking.job)) if asking else None
    if now_s is None:
        now_s = time.time()
    found = (_read(objects, key) for key in objects.list(FOLDER) if not asking or key != lease_key(asking.job))
    return [lease for lease in found if lease and _is_live(lease, times.get(lease_key(lease.job)), now_s)]


def stale_leases(objects: Objects, asking: Lease | None = None) -> list[str]:
    """Keys of leases that have ended without being removed."""
    live = {lease_key(lease.job) for lease in [*live_leases(objects, asking=asking), *([asking] if asking else [])]}
    return [key for key in objects.list(FOLDER) if key not in live]


def described(lease: Lease) -> str:
    """For a message."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(lease.started))
    return f"{lease.job} of {lease.owner}, since {since}"


def this_process() -> str:
    """USER@HOST and process number: who asks, for people."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"user {os.getuid()}"  # containers run as numbers without names
    return f"{user}@{socket.gethostname()}, process {os.getpid()}"


def _new(name: str, *, is_exclusive: bool, duration_s: float) -> Lease:
    now_s = time.time()
    return Lease(
        job=f"{name}-{secrets.token_hex(6)}",
        owner=this_process(),
        is_exclusive=is_exclusive,
        started=now_s,
        expires=now_s + duration_s,
        duration_s=duration_s,
    )


def _put(objects: Objects, lease: Lease) -> None:
    """Once more where the end of another job's lease has just removed the folder under this one's hands."""
    for last in range(_TRIES):
        try:
            objects.write(lease_key(lease.job), to_bytes(sealed(lease)))
            break
        except MissingError:
            if last == _TRIES - 1:
                raise


def _remove_empty_folders(objects: Objects) -> None:
    """A job that was refused leaves no trace on a disk; one that wrote anything leaves a folder that is not empty."""
    if (folder := objects.local_path(FOLDER.rstrip("/"))) is not None:
        folder.rmdir()
        folder.parent.rmdir()


def _renew(objects: Objects, lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(lease.duration_s / _RENEWALS):
        renewed = lease.model_copy(update={"expires": time.time() + lease.duration_s})
        try:
            objects.write(lease_key(lease.job), to_bytes(sealed(renewed)))
        except (HeadworksError, OSError) as exc:
            _log.warning("store.lease_not_renewed store=%s job=%s: %s", objects.url, lease.job, exc)


def _require_alone(objects: Objects, lease: Lease) -> None:
    if others := live_leases(objects, asking=lease):
        longest_s = max(other.duration_s for other in others)
        raise BusyError(
            f"the store at {objects.url} is in use:\n" + "\n".join(f"  {described(other)}" for other in others) + "\n"
            f"Wait until it has ended; that of a job that was killed ends {longest_s:.0f} s after its last renewal."
        )


def _wait_for_exclusive(
    objects: Objects, lease: Lease, sleep: Callable[[float], None] = time.sleep, said: bool = False
) -> None:
    """Our own lease is there meanwhile, so nobody else can get the store for himself."""
    while others := [other for other in live_leases(objects, asking=lease) if other.is_exclusive]:
        if not said:
            _log.warning("the store at %s is held by %s: waiting", objects.url, described(others[0]))
            said = True
        sleep(_WAIT_S)
        # Renewed, because its modification time is what "now" means to the storage.
        objects.write(lease_key(lease.job), to_bytes(sealed(lease)))


def _read(objects: Objects, key: str) -> Lease | None:
    """None of a lease that was removed meanwhile; one that cannot be read counts as somebody's until it is old."""
    where = f"{objects.url}/{key}"
    try:
        return unsealed(parse(objects.read(key), where), Lease, where)
    except MissingError:
        return None
    except DataError:
        job = key.removeprefix(FOLDER).removesuffix(".json")
        return Lease(job=job, owner="unknown (the lease cannot be read)", is_exclusive=True, started=0.0, expires=0.0,
                     duration_s=DURATION_S)  # fmt: skip


def _is_live(lease: Lease, modified_s: float | None, now_s: float) -> bool:
    if modified_s is not None:
        return now_s - modified_s < lease.duration_s
    return now_s < lease.expires + lease.duration_s
