"""Which stores there are and how long they are kept, as plain data and in words."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploy import show
from schemas.errors import SpecError
from schemas.fields import about_bytes, parse_bytes, parse_duration
from schemas.retention import Retention

if TYPE_CHECKING:
    from pipeline.store.catalogue import StoreEntry
    from pipeline.store.pruning import Pruning

_COLUMNS = (
    "url", "state", "model", "corpus", "table", "hook points", "rows", "dtype", "layout", "size", "created", "kept",
    "fingerprint",
)  # fmt: skip
_MOST_POINTS = 3
_SHORT = 12


def found(urls: Sequence[str], *, model: str, corpus: str, hook_point: str, fingerprint: str) -> list[StoreEntry]:
    """The stores below the URLs that match; see ``pipeline.store.catalogue.find_stores``."""
    from pipeline.store.catalogue import find_stores

    return [*find_stores(urls, model=model, corpus=corpus, hook_point=hook_point, fingerprint=fingerprint)]


def entry_facts(entry: StoreEntry) -> dict[str, Any]:
    """Everything that is known of a store."""
    facts = dataclasses.asdict(entry)
    return facts | {"retention": entry.retention.model_dump(mode="json")}


def entry_lines(entries: Sequence[StoreEntry]) -> list[str]:
    """A table, and under it what is wrong with what could not be read."""
    if not entries:
        return ["no stores"]
    stores = [entry for entry in entries if entry.is_store]
    lines = show.table([_row(entry) for entry in stores], _COLUMNS) if stores else []
    for group in dict.fromkeys(entry.group for entry in stores if entry.group):
        lines.append(_group_line(group, {entry.url for entry in stores if entry.state == "complete"}))
    for entry in entries:
        if not entry.is_store:
            lines += [f"{entry.url}: {entry.state}: {entry.problem}"]
    return lines


def _group_line(url: str, complete: set[str]) -> str:
    """What belongs together, and what of it is not among the complete stores that are listed."""
    from pipeline.store.group import member_urls, read_group
    from pipeline.store.objects import Objects

    objects = Objects(url)
    record = read_group(objects)
    if record is None:
        return f"{url}: no group any more"
    missing = [name for name, place in member_urls(objects, record).items() if place not in complete]
    names = ", ".join(f"{one.name}{'' if one.step is None else f' (step {one.step:,})'}" for one in record.members)
    lacks = f"; not complete, or not listed: {', '.join(missing)}" if missing else ""
    return f"{url}: a group of {len(record.members)} stores of one token table: {names}{lacks}"


def _row(entry: StoreEntry) -> dict[str, str]:
    points = [*entry.hook_points]
    more = f", and {len(points) - _MOST_POINTS} more" if len(points) > _MOST_POINTS else ""
    return {
        "url": entry.url,
        "state": f"{entry.state}{', in use' if entry.in_use_by else ''}",
        "model": entry.model or "-",
        "corpus": entry.corpus or "-",
        "table": entry.table_fingerprint[:_SHORT],
        "hook points": ", ".join(points[:_MOST_POINTS]) + more or "-",
        "rows": f"{entry.num_rows:,}",
        "dtype": entry.dtype,
        "layout": f"{entry.layout}, {entry.codec}" if entry.layout else "",
        "size": about_bytes(entry.size_bytes) if entry.size_bytes is not None else "?",
        "created": _day(entry.created_s),
        "kept": _kept(entry.retention),
        "fingerprint": entry.fingerprint[:_SHORT],
    }


def _day(time_s: float | None) -> str:
    return "?" if time_s is None else time.strftime("%Y-%m-%d", time.gmtime(time_s))


def _kept(retention: Retention) -> str:
    if retention.is_pinned:
        return "pinned"
    return f"until {_day(retention.expires)}" if retention.expires else "-"


def pinned(url: str, *, is_pinned: bool) -> Retention:
    """Pin or unpin; what the store says then."""
    from pipeline.store.retention import pin

    return pin(url, is_pinned=is_pinned)


def expiring(url: str, after: str) -> Retention:
    """Set or clear the expiry; what the store says then. Raises SpecError."""
    from pipeline.store.retention import expire

    return expire(url, after_s=None if after == "never" else _parsed("--after", parse_duration, after))


def say(url: str, retention: Retention, *, as_json: bool) -> None:
    """What a store's retention is now."""
    facts = retention.model_dump(mode="json")
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(retention.expires)) if retention.expires else "never"
    pinned_ = "pinned, never pruned" if retention.is_pinned else "not pinned"
    show.emit({"url": url, **facts}, [f"{url}: {pinned_}; expires: {until}"], as_json=as_json)


def pruned(urls: Sequence[str], *, quota: str, is_rehearsal: bool, grace_s: float) -> Pruning:
    """Carry out, or rehearse, a pruning. Raises SpecError."""
    from pipeline.store.pruning import prune

    quota_bytes = _parsed("--quota", parse_bytes, quota) if quota else None
    return prune(urls, quota_bytes=quota_bytes, is_rehearsal=is_rehearsal, grace_s=grace_s)


def pruning_facts(done: Pruning) -> dict[str, Any]:
    return dataclasses.asdict(done)


def pruning_lines(done: Pruning, *, is_rehearsal: bool) -> list[str]:
    """One line for each store, and what is left."""
    words = {"deleted": "would delete" if is_rehearsal else "deleted", "kept": "keeps", "skipped": "leaves"}
    lines = [
        f"{words[one.action]} {one.url}" + (f" ({about_bytes(one.size_bytes)})" if one.size_bytes else "")
        + f": {one.reason}"
        for one in done.stores
    ]  # fmt: skip
    if not done.is_within_quota:
        lines.append(f"{about_bytes(done.remaining_bytes)} are left, more than the quota: nothing else may go")
    return lines or ["no stores"]


def _parsed(option: str, parse: Any, text: str) -> int:
    try:
        return int(parse(text))
    except ValueError as error:
        raise SpecError(f"{option} {text}: {error}") from error
