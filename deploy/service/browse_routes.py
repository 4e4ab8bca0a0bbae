"""What there is and what would be: stores, dictionaries, evaluations, plans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Annotated, Any

from fastapi import APIRouter, Query

from deploy import inspection
from deploy.service.access import Principal
from deploy.service.answers import described, plain
from deploy.service.context import InService, Service, Submitter, Viewer
from deploy.service.places import read_place
from deploy.service.policy import require_no_code
from deploy.service.spec_places import require_absolute
from deploy.service.views import CheckView, DictionaryPage, DictionaryRow, PlanRequest, StorePage, check_view
from pipeline.store.catalogue import find_stores
from pipeline.store.objects import Objects
from schemas.errors import BusyError, CorruptionError, MissingError, SpecError, UnreachableError
from schemas.plan import Plan

router = APIRouter(prefix="/api/v1", tags=["stores and dictionaries"])

Url = Annotated[str, Query(max_length=2048, description="Absolute path or URL below a place that your team may read.")]
Words = Annotated[str, Query(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=10**9)]

_EVALUATION = "evaluation.json"
_slots = BoundedSemaphore(4)
"""Of plans and searches at a time, so that they leave threads for everything else."""


@router.post("/plan", tags=["jobs"], responses=described(404, 409, 502))
def plan(body: PlanRequest, service: InService, who: Submitter) -> Plan:
    """What a job will make, take and cost, seen from the service's machine; nothing is written."""
    require_absolute(body.spec)
    service.check(body.spec, who)
    require_no_code(body.spec)
    from pipeline.planning import jobs

    with slot(), storage_errors():
        return jobs.plan(body.spec, body.assumptions)


@router.get("/stores", responses=described(404, 409, 502))
def stores(
    service: InService, who: Viewer, url: Url = "", model: Words = "", corpus: Words = "", hook_point: Words = "",
    fingerprint: Words = "", limit: Limit = 100, offset: Offset = 0,
) -> StorePage:  # fmt: skip
    """The stores at or below a URL, without one below all places that your team may read."""
    with slot(), storage_errors():
        found = [
            entry
            for place in places_of(service, who, url)
            for entry in find_stores(
                [place], model=model, corpus=corpus, hook_point=hook_point, fingerprint=fingerprint
            )
        ]
    shown = found[offset : offset + limit]
    urls = [entry.url for entry in shown]
    readers = service.store_facts.num_readers([*urls, *(entry.group for entry in shown if entry.group)])
    return StorePage(
        stores=shown,
        readers={
            entry.url: count for entry in shown if (count := readers.get(entry.url, 0) + readers.get(entry.group, 0))
        },
        checks={url: check_view(check) for url, check in service.store_facts.checks(urls).items()},
        total=len(found),
    )


@router.post("/store/check", responses=described(404, 409, 502))
def check(service: InService, who: Submitter, url: Url) -> CheckView:
    """Compare the lengths of all objects of a store with its ledger, and remember how that went. No data is read: for
    every byte there is `headworks store verify`."""
    require_readable(service, who, url)
    with slot(), storage_errors():
        return check_view(service.store_facts.check(url, who.name))


@router.get("/store", responses=described(404, 409, 502))
def store(service: InService, who: Viewer, url: Url) -> dict[str, Any]:
    """Size, layout, provenance and statistics of one store."""
    require_readable(service, who, url)
    with slot(), storage_errors():
        facts: dict[str, Any] = plain(inspection.store_facts(url))
    return facts


@router.get("/dictionaries", responses=described(404, 409, 502))
def dictionaries(
    service: InService, who: Viewer, url: Url = "", limit: Limit = 100, offset: Offset = 0
) -> DictionaryPage:
    """The trained dictionaries at or below a URL, without one below all places that your team may read."""
    with slot(), storage_errors():
        found = [row_of(record) for record in inspection.all_dictionary_records(places_of(service, who, url))]
    return DictionaryPage(dictionaries=found[offset : offset + limit], total=len(found))


@router.get("/dictionary", responses=described(404, 409, 502))
def dictionary(service: InService, who: Viewer, url: Url) -> list[dict[str, Any]]:
    """The whole record of a dictionary, or of each in the folder of a train job: spec, provenance, metrics."""
    require_readable(service, who, url)
    with slot(), storage_errors():
        return inspection.dictionary_records(url)


@router.get("/evaluation", responses=described(404, 409, 502))
def evaluation(service: InService, who: Viewer, url: Url) -> dict[str, Any]:
    """The figures of an evaluation: what ``evaluation.json`` in the output of an evaluate job holds."""
    require_readable(service, who, url)
    with slot(), storage_errors():
        folder = Objects(url)
        if not folder.exists(_EVALUATION):
            raise MissingError(f"no {_EVALUATION} at {url}: expected the output of an evaluate job that has finished")
        try:
            found: dict[str, Any] = json.loads(folder.read(_EVALUATION))
        except ValueError as error:
            raise CorruptionError(f"{url}/{_EVALUATION} is not JSON: {error}") from error
    return found


def places_of(service: Service, who: Principal, url: str) -> list[str]:
    """The URL, checked, or all places that the team may read and that are there."""
    if url:
        require_readable(service, who, url)
        return [url]
    if service.policy is None:
        raise SpecError("url: required, since this service has no policy that names places; give a folder or URL")
    return [place for place in service.policy.readable(who) if any(Objects(place).children())]


def require_readable(service: Service, who: Principal, url: str) -> None:
    if service.policy is not None:
        service.policy.require_readable(url, who)
        return
    try:
        read_place(url)
    except ValueError as error:
        raise SpecError(f"url: {url!r} {error}") from error


@contextmanager
def slot(slots: BoundedSemaphore = _slots, wait_s: float = 30.0) -> Iterator[None]:
    if not slots.acquire(timeout=wait_s):
        raise BusyError("the service is busy with others' questions of this kind; try again in a moment")
    try:
        yield
    finally:
        slots.release()


@contextmanager
def storage_errors() -> Iterator[None]:
    """What storage says that is none of our errors: no permission, a file where a folder is expected."""
    from schemas.errors import HeadworksError

    try:
        yield
    except HeadworksError:
        raise
    except OSError as error:
        raise UnreachableError(f"the storage does not give it: {error}") from error


def row_of(record: dict[str, Any]) -> DictionaryRow:
    spec = record["spec"]
    return DictionaryRow(
        url=record["url"], name=spec["name"], sources=record["d_source"], targets=record["d_target"],
        num_latents=spec["num_latents"], activation=spec["activation"]["kind"], steps=record["steps"],
        rows=record["tokens"], metrics=record["metrics"],
    )  # fmt: skip
