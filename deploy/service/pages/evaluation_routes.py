"""Dictionaries beside what evaluations measured of them, and the evaluations' reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy import inspection
from deploy.service.answers import described, described_beside_text
from deploy.service.browse_routes import Limit, Offset, Url, places_of, require_readable, row_of, slot, storage_errors
from deploy.service.context import InService, Viewer
from deploy.service.views import DictionaryRow
from pipeline.store.objects import Objects
from schemas.errors import CorruptionError, MissingError

router = APIRouter(prefix="/api/v1", tags=["stores and dictionaries"])

_DEPTH = 8
"""Folders below a place in which evaluations are looked for, as many as for dictionaries."""
_EVALUATION = "evaluation.json"
_REPORT = "report.html"
_REPORT_HEADERS = {
    # A report has scripts of its own. Opened at this address it is a stranger to the service's pages.
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Content-Disposition": 'attachment; filename="report.html"',
    "X-Content-Type-Options": "nosniff",
}
_HTML: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class HeldOut(_View):
    """What one evaluation measured of one dictionary."""

    url: str
    """Output of the evaluate job."""
    has_report: bool
    """Whether a report is there."""
    split: str
    """Which rows it was measured on, as ``held_out``."""
    rows: int
    """How many they were."""
    fvu: float | None
    """Fraction of variance unexplained."""
    l0: float | None
    """Mean number of latents above zero."""
    dead_share: float | None
    """Share of the latents that fired on none of the rows."""
    ce_recovered: float | None
    """Cross-entropy recovered, against the mean; null where it was not measured."""


class Compared(DictionaryRow):
    """A dictionary and its evaluations."""

    weights_sha256: str
    """Of its weights; evaluations are those of the same weights, wherever they lie."""
    evaluations: list[HeldOut]
    """In order of their folders."""


class Comparison(_View):
    """Some dictionaries and their evaluations."""

    dictionaries: list[Compared]
    """Those of this page."""
    total: int
    """How many were found."""


class _Figures(BaseModel):
    """Of one dictionary in ``evaluation.json``."""

    rows: int
    fvu: float | None = None
    l0: float | None = None
    dead_share: float | None = None
    ce_recovered: float | None = None


class _Identity(BaseModel):
    dictionaries: dict[str, str]


class _Rows(BaseModel):
    split: str


class _Evaluation(BaseModel):
    identity: _Identity
    rows: _Rows
    dictionaries: dict[str, _Figures] = Field(default_factory=dict)


@router.get("/comparison", responses=described(404, 409, 502))
def comparison(service: InService, who: Viewer, url: Url = "", limit: Limit = 100, offset: Offset = 0) -> Comparison:
    """The dictionaries at or below a URL, or below all places that your team may read, each with what the evaluations
    that lie there too measured of the same weights."""
    with slot(), storage_errors():
        places = places_of(service, who, url)
        records = inspection.all_dictionary_records(places)
        measured: dict[str, list[HeldOut]] = {}
        for place in places:
            for digest, held_out in _held_out(Objects(place)):
                measured.setdefault(digest, []).append(held_out)
    shown = [_compared(record, measured) for record in records[offset : offset + limit]]
    return Comparison(dictionaries=shown, total=len(records))


@router.get(
    "/report", response_class=HTMLResponse, responses=described_beside_text(404, 409, 502) | _HTML
)  # fmt: skip
def report(service: InService, who: Viewer, url: Url) -> HTMLResponse:
    """The report of an evaluation: one page with scripts of its own, so it comes as a file to save. Never show it at
    the service's address but in a frame that is sandboxed."""
    require_readable(service, who, url)
    with slot(), storage_errors():
        folder = Objects(url)
        if not folder.exists(_REPORT):
            raise MissingError(f"no {_REPORT} at {url}: expected the output of an evaluate job that has finished")
        return HTMLResponse(folder.read(_REPORT), headers=_REPORT_HEADERS)


def _compared(record: dict[str, Any], measured: dict[str, list[HeldOut]]) -> Compared:
    digest = record["weights_sha256"]
    row = row_of(record).model_dump()
    return Compared(**row, weights_sha256=digest, evaluations=measured.get(digest, []))


def _held_out(top: Objects) -> Iterator[tuple[str, HeldOut]]:
    """``(digest of the weights, figures)`` of all evaluations at or below a folder."""
    for folder, files in _folders(top, _DEPTH):
        if _EVALUATION not in files:
            continue
        found = _read(folder)
        for name, figures in found.dictionaries.items():
            if digest := found.identity.dictionaries.get(name):
                has_report = _REPORT in files
                yield (
                    digest,
                    HeldOut(url=folder.url, has_report=has_report, split=found.rows.split, **figures.model_dump()),
                )


def _folders(folder: Objects, depth: int) -> Iterator[tuple[Objects, list[str]]]:
    files, folders = folder.children()
    yield folder, files
    # Neither a store nor a dictionary has evaluations below it.
    if depth and not {"zarr.json", "dictionary.json"} & set(files):
        for name in folders:
            yield from _folders(folder.at(name), depth - 1)


def _read(folder: Objects) -> _Evaluation:
    try:
        return _Evaluation.model_validate(json.loads(folder.read(_EVALUATION)))
    except (ValueError, ValidationError, RecursionError) as error:
        raise CorruptionError(f"{folder.url}/{_EVALUATION} is no evaluation of Headworks: {error}") from error
