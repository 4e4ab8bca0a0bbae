"""Writing a store's documents anew from what the others say: record, log, passes, metadata, manifest.

Each write replaces one document whole, in an order in which a kill leaves a store that can be restored again: the
record first, without which nothing else can be read, and the manifest last, because it is computed from the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.store import layout
from pipeline.store.documents import sealed, to_bytes
from pipeline.store.log import Event, log_key, opened_passes
from pipeline.store.manifests import restored_manifest
from pipeline.store.survey import Survey
from schemas.store import LogEntry, PassOpened, RowsComplete


@dataclass(frozen=True)
class Action:
    """One thing that was done, would be done, or cannot be."""

    key: str
    what: str
    is_possible: bool = True


@dataclass(frozen=True)
class Draft:
    """A document as it must be."""

    key: str
    data: bytes
    source: str
    """What it was made from, in words."""


def drafts(survey: Survey, damaged: set[str]) -> Iterator[Draft]:
    """The documents that are damaged, but for ledger and manifest, in the order in which they are to be written."""
    if layout.ROOT in damaged:
        yield Draft(layout.ROOT, to_bytes(layout.group_metadata(survey.record)), "by its own checksum")
    for number, event in _events(survey):
        if log_key(number) in damaged:
            mended = number < len(survey.events) and survey.events[number] is not None
            source = "by its own checksum or from another's place" if mended else "from the passes and the manifest"
            yield Draft(log_key(number), to_bytes(sealed(LogEntry(number=number, event=event))), source)
    for pass_, one in survey.passes.items():
        if layout.pass_key(pass_) in damaged:
            yield Draft(layout.pass_key(pass_), to_bytes(sealed(one)), "from the log")
    for key in layout.plain_groups(survey.record):
        if key in damaged:
            yield Draft(key, to_bytes(layout.group_metadata(None)), "which is the same in all stores")
    for key, data in _arrays(survey):
        if key in damaged:
            yield Draft(key, data, "from the store's record")


def _events(survey: Survey) -> Iterator[tuple[int, Event]]:
    """Every event of the log, those that are lost as far as the rest of the store implies them."""
    known = [event for event in survey.events if event is not None]
    implied = [*_implied(survey, known)]
    for number, event in enumerate(survey.events):
        yield number, event or (implied.pop(0) if implied else _overtaken(survey.events, number))
    yield from enumerate(implied, start=len(survey.events))


def _overtaken(events: Sequence[Event | None], number: int) -> Event:
    """In place of a lost event that later ones have overtaken: the completion of what was opened before it, which
    mostly comes there, or a repetition. Either has no effect any more, and keeps the numbers without gaps."""
    before = [event for event in events[:number] if event is not None]
    after = [event for event in events[number + 1 :] if event is not None]
    opened = opened_passes(before)
    planned = [event.num_rows for event in before if isinstance(event, PassOpened)]
    for later in after:
        if planned and isinstance(later, RowsComplete) and {*opened} <= {*later.passes}:
            likely = RowsComplete(num_rows=planned[-1], passes=tuple(sorted(opened)))
            if likely.num_rows <= later.num_rows and likely not in before:
                return likely
    return (before or after)[-1]


def _implied(survey: Survey, known: list[Event]) -> Iterator[Event]:
    """What no event says and the rest of the store knows."""
    shown = survey.shown
    opened = [event.pass_record for event in known if isinstance(event, PassOpened)]
    for record in survey.passes.values():
        if record not in opened:
            rows = [event.num_rows for event in known] or [survey.num_rows]
            yield PassOpened(pass_record=record, num_rows=shown.num_rows if shown else max(rows))
    if shown and not any(isinstance(event, RowsComplete) and event == shown for event in known):
        yield shown


def _arrays(survey: Survey) -> Iterator[tuple[str, bytes]]:
    shown = survey.shown
    for pass_, one in survey.passes.items():
        planned = [e.num_rows for e in survey.events if isinstance(e, PassOpened) and e.pass_record == one]
        rows = shown.num_rows if shown and pass_ in shown.passes else [*planned, survey.num_rows][0]
        for hook, width in one.hook_points.items():
            for key, facts in layout.array_documents(survey.record, hook, width, rows, pass_).items():
                yield key, to_bytes(facts)


def restore_manifest(survey: Survey, damaged: set[str], *, is_rehearsal: bool) -> Iterator[Action]:
    """Compute the manifest from log and ledger, which must be sound by now, and write it if it is another one.

    Raises:
        IncompleteError, CorruptionError: the ledger is not what the log says.
    """
    if survey.manifest is not None:
        lost = [receipt.key for receipt in survey.manifest.covariances.values() if receipt.key in damaged]
    else:  # what vouched for them is gone
        lost = [key for key in survey.sizes if key.startswith("covariances/")]
    before = None if lost or layout.MANIFEST in damaged else survey.manifest
    if is_rehearsal:
        yield from (Action(key, "would be computed from the units' co-moments") for key in lost)
        if survey.shown and (layout.MANIFEST in damaged or lost):
            yield Action(layout.MANIFEST, "would be computed from the ledger")
        return
    for key in lost:
        survey.objects.delete(key)
    manifest = restored_manifest(survey.objects, survey.record, before)
    yield from (Action(key, "computed from the units' co-moments") for key in lost)
    if manifest is None:
        return
    data = to_bytes(sealed(manifest))
    if not survey.objects.exists(layout.MANIFEST) or survey.objects.read(layout.MANIFEST) != data:
        survey.objects.write(layout.MANIFEST, data)
        yield Action(layout.MANIFEST, "computed from the ledger")
