"""Verifying, repairing and sweeping a store, as plain data and in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import logs
from schemas.fields import about_bytes

if TYPE_CHECKING:
    from pipeline.collection.recomputing import Difference
    from pipeline.collection.repair import Repair
    from pipeline.store.sweep import Sweep
    from pipeline.store.verification import Inspection, Progress


@dataclass(frozen=True)
class Checked:
    """A verification as plain data and in words."""

    facts: dict[str, Any]
    lines: list[str]
    is_sound: bool


def checked(url: str, *, is_deep: bool, recompute: int, seed: int, tokens: str, model: str, device: str) -> Checked:
    """One store against its ledger, and ``recompute`` units of it against its model. Raises as ``verification``."""
    found = verification(url, is_deep=is_deep)
    differences = (
        spot_check(url, recompute, seed=seed, tokens=tokens, model=model, device=device)
        if recompute and not found.problems
        else []
    )
    facts = verification_facts(url, found, differences, is_deep=is_deep)
    is_sound = not found.problems and all(one.is_low_bits for one in differences)
    return Checked(facts, verification_lines(facts, differences), is_sound)


def verification(url: str, *, is_deep: bool) -> Inspection:
    """Compare a store with its ledger, with a display of what is read. Raises as ``inspect``."""
    from pipeline.store.objects import Objects
    from pipeline.store.verification import inspect

    with _shown("verify", unit="B") as progress:
        return inspect(Objects(url), is_deep=is_deep, progress=progress)


def spot_check(url: str, num_units: int, *, seed: int, tokens: str, model: str, device: str) -> list[Difference]:
    """Compute some units again and compare. Raises as ``pipeline.collection.spot_check``."""
    from pipeline.collection import spot_check as checking

    with _shown("recompute", unit="units") as progress:
        options = {"tokens": tokens, "model": model, "device": device}
        return [*checking.spot_check(url, num_units, seed=seed, progress=progress, **options)]


def repaired(url: str, *, is_rehearsal: bool, tokens: str, model: str, device: str) -> Repair:
    """Repair a store, with a display of what is read first. Raises as ``pipeline.collection.repair``."""
    from pipeline.collection.repair import Places, repair

    with _shown("verify", unit="B") as progress:
        places = Places(tokens=tokens, model=model, device=device)
        return repair(url, places=places, is_rehearsal=is_rehearsal, progress=progress)


def swept(url: str, *, is_rehearsal: bool, grace_s: float) -> Sweep:
    """Delete what no ledger entry names. Raises as ``pipeline.store.sweep``."""
    from pipeline.store.sweep import sweep

    return sweep(url, grace_s=grace_s, is_rehearsal=is_rehearsal)


def verification_facts(url: str, found: Inspection, differences: list[Difference], *, is_deep: bool) -> dict[str, Any]:
    """For machines."""
    return {
        "url": url,
        "is_deep": is_deep,
        "is_complete": found.survey.shown is not None,
        "objects": found.num_objects,
        "bytes": found.size_bytes,
        "problems": [str(problem) for problem in found.problems],
        "recomputed": [
            {
                "unit": one.unit,
                "hook_point": one.hook_point,
                "rows": one.num_rows,
                "equal_rows": one.num_equal,
                "greatest_relative_difference": one.greatest,
                "within_low_bits": one.is_low_bits,
            }
            for one in differences
        ],
    }


def verification_lines(facts: dict[str, Any], differences: list[Difference]) -> list[str]:
    """For a terminal."""
    how = "every byte is as committed" if facts["is_deep"] else "every length is as committed; no data was read"
    state = "" if facts["is_complete"] else "; not complete: a collection is running or was stopped"
    sound = f"{facts['url']}: no problems in {facts['objects']:,} objects, {about_bytes(facts['bytes'])}: {how}{state}"
    problems = facts["problems"]
    lines = [*problems, f"{facts['url']}: {len(problems)} problems; `headworks store repair` mends what can be mended"]
    return [*(lines if problems else [sound]), *map(str, differences)]


def repair_facts(url: str, done: Repair, *, is_rehearsal: bool) -> dict[str, Any]:
    """For machines."""
    return {
        "url": url,
        "dry_run": is_rehearsal,
        "problems": [str(problem) for problem in done.problems],
        "actions": [{"key": one.key, "what": one.what, "possible": one.is_possible} for one in done.actions],
        "remaining": [str(problem) for problem in done.remaining],
    }


def repair_lines(facts: dict[str, Any]) -> list[str]:
    """For a terminal."""
    if not facts["problems"]:
        return [f"{facts['url']}: no problems, nothing to repair"]
    lines = [f"{'' if one['possible'] else 'NOT REPAIRED: '}{one['key']}: {one['what']}" for one in facts["actions"]]
    left = len(facts["remaining"])
    end = "would be left" if facts["dry_run"] else "left"
    return [*lines, f"{facts['url']}: {len(facts['problems'])} problems, {left} {end}"]


def sweep_facts(url: str, done: Sweep, *, is_rehearsal: bool) -> dict[str, Any]:
    """For machines."""
    from pipeline.store.leases import described

    return {
        "url": url,
        "dry_run": is_rehearsal,
        "swept": [{"key": one.key, "kind": one.kind, "bytes": one.size_bytes} for one in done.swept],
        "bytes": sum(one.size_bytes for one in done.swept),
        "kept_for_now": [
            {"key": one.key, "kind": one.kind, "bytes": one.size_bytes} for one in done.leftovers if one.is_young
        ],
        "in_use_by": [described(lease) for lease in done.in_use_by],
    }


def sweep_lines(facts: dict[str, Any]) -> list[str]:
    """For a terminal."""
    verb = "would be deleted" if facts["dry_run"] else "deleted"
    lines = [f"{one['key']}: {one['kind']}, {about_bytes(one['bytes'])}" for one in facts["swept"]]
    lines += [f"{one['key']}: {one['kind']}, kept: younger than the grace age" for one in facts["kept_for_now"]]
    lines += [f"in use by {lease}: a real sweep would refuse" for lease in facts["in_use_by"]]
    total = f"{len(facts['swept'])} objects, {about_bytes(facts['bytes'])} {verb}"
    return [*lines, f"{facts['url']}: {total if facts['swept'] else 'nothing to sweep'}"]


@contextmanager
def _shown(name: str, *, unit: str) -> Iterator[Progress]:
    from workers.progress import Progress as Display

    with Display(logs.progress_stream()).task(name, unit=unit) as task:
        yield task.reach
