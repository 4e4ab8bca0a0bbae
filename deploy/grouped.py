"""What can be asked of a store group: what it is, and whether each of its stores is as committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy import inspection, show
from deploy.integrity import Checked
from schemas.errors import MissingError
from schemas.fields import about_bytes
from schemas.group import GroupRecord


def find_group(url: str) -> GroupRecord | None:
    """The group at a URL, None where there is a store or nothing. Raises as ``read_group``."""
    from pipeline.store import layout
    from pipeline.store.group import read_group
    from pipeline.store.objects import Objects

    objects = Objects(url)
    return None if objects.exists(layout.ROOT) else read_group(objects)


def group_facts(url: str, record: GroupRecord) -> dict[str, Any]:
    """The group and, by name, what ``store info`` says of each store; None of one that was not begun."""
    return {
        "url": url,
        "table_fingerprint": record.table_fingerprint,
        "pattern": record.pattern,
        "steps": {member.name: member.step for member in record.members},
        "models": {member.name: member.model.path for member in record.members},
        "stores": {member.name: _store_facts(f"{url.rstrip('/')}/{member.store}") for member in record.members},
    }


def _store_facts(url: str) -> dict[str, Any] | None:
    try:
        return inspection.store_facts(url)
    except MissingError:
        return None


def group_lines(facts: dict[str, Any]) -> list[str]:
    """For a terminal."""
    stores = {name: store for name, store in facts["stores"].items() if store is not None}
    shown = {
        "group": facts["url"],
        "stores": f"{len(facts['stores'])} of one token table",
        "bytes": about_bytes(sum(store["size_bytes"] for store in stores.values())),
        "token table": facts["table_fingerprint"],
        **({"pattern": facts["pattern"]} if facts["pattern"] else {}),
    }
    rows = [_row(name, facts) for name in facts["stores"]]
    points = [
        f"{name}/{hook} [{point['d_model']}], mean norm {point.get('mean_norm', float('nan')):.3f}"
        for name, store in stores.items()
        for hook, point in store["hook_points"].items()
    ]
    return [*show.pairs(shown), "", *show.table(rows, ("name", "step", "state", "rows", "bytes", "model")), "", *points]


def _row(name: str, facts: dict[str, Any]) -> dict[str, str]:
    store, step = facts["stores"][name], facts["steps"][name]
    state = "not begun" if store is None else "complete" if store["is_complete"] else "partial"
    return {
        "name": name,
        "step": "?" if step is None else f"{step:,}",
        "state": state,
        "rows": f"{store['num_rows']:,}" if store else "",
        "bytes": about_bytes(store["size_bytes"]) if store else "",
        "model": facts["models"][name],
    }


def checked(url: str, record: GroupRecord, check: Callable[[str], Checked]) -> Checked:
    """``check`` of each store, and whether they are all there and of the group's token table."""
    from pipeline.store.reader import Store

    facts: dict[str, Any] = {}
    lines: list[str] = []
    is_sound = True
    for member in record.members:
        place = f"{url.rstrip('/')}/{member.store}"
        try:
            table = Store.open(place, allow_partial=True).table_fingerprint
        except MissingError:
            found = Checked({"url": place, "problems": [f"{place}: expected a store, got none"]}, [], is_sound=False)
        else:
            found = check(place)
            if table != record.table_fingerprint:
                problem = f"{place}: expected the token table {record.table_fingerprint}, got {table}"
                problems = [*found.facts["problems"], problem]
                found = Checked(found.facts | {"problems": problems}, [*found.lines, problem], is_sound=False)
        facts[member.name] = found.facts
        lines += found.lines or found.facts["problems"]
        is_sound = is_sound and found.is_sound
    return Checked({"url": url, "stores": facts}, lines, is_sound)
