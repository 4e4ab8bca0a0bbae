"""``headworks store export``: arguments to a spec, progress, and what was made."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pipeline.spec_errors import explained
from schemas.errors import SpecError
from schemas.export import ExportSpec
from workers.progress import Progress, Task


def row_choice(rows: str, split: str, documents: str) -> dict[str, Any]:
    """What of ``--rows``, ``--held-out`` or ``--training``, and ``--documents`` was given, empty where nothing was.

    Raises:
        SpecError: more than one of them, or one that cannot be read.
    """
    given = [one for one in (rows, split, documents) if one]
    if len(given) > 1:
        raise SpecError("--rows, --held-out, --training and --documents each choose rows: give one of them")
    if rows:
        start, stop = _range(rows, f"--rows {rows}")
        return {"kind": "range", "start": start, "stop": stop}
    if split:
        return {"kind": "split", "split": split}
    if documents:
        return {"kind": "documents", "documents": _numbers(documents)}
    return {"kind": "all"}


def export(facts: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run an export; what it made.

    Raises:
        SpecError: the facts are no export. Everything that ``pipeline.exporting`` raises.
    """
    spec = _validated(facts)
    if spec.format == "sae-lens":
        return _to_sae_lens(spec, progress)
    from pipeline.exporting.prepare import prepare
    from pipeline.exporting.rewrite import rewrite
    from pipeline.store.rounding import relative_error

    job = prepare(spec)
    with progress.task("export", unit="rows") as task:
        manifest = rewrite(job, begin=lambda total, done: _begin(task, total, done), advance=task.advance)
    return {
        "output": spec.output,
        "format": spec.format,
        "num_rows": manifest.num_rows,
        "hook_points": manifest.hook_points,
        "size_bytes": manifest.size_bytes,
        "layout": job.record.layout,
        "dtype": job.record.dtype,
        "codec": job.record.codec,
        "is_row_aligned": job.record.table_fingerprint == job.source.table_fingerprint,
        "relative_error": {
            hook: relative_error(found.rounding) for hook, found in manifest.statistics.items() if found.rounding
        },
        "fingerprint": manifest.fingerprint,
        "table_fingerprint": job.record.table_fingerprint,
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """For a terminal."""
    from deploy import show

    if facts["format"] == "sae-lens":
        shown = {
            "dataset": facts["output"],
            "contexts": f"{facts['num_contexts']:,} of {facts['context_length']} tokens, {facts['dtype']}",
            "columns": ", ".join([*facts["hook_points"], "token_ids"]),
            "left out": f"{facts['num_rows_dropped']:,} rows of shorter contexts",
        }
        return show.pairs(shown)
    aligned = "row r is row r of the source" if facts["is_row_aligned"] else "a part, with a token table of its own"
    shown = {
        "store": facts["output"],
        "rows": f"{facts['num_rows']:,}; {aligned}",
        "bytes": f"{facts['size_bytes']:,}",
        "layout": f"{facts['layout']}, {facts['dtype']}, codec {facts['codec']}",
        "hook points": ", ".join(facts["hook_points"]),
    }
    if facts["relative_error"]:
        shown["rounded"] = ", ".join(f"{hook} {error:.2g}" for hook, error in facts["relative_error"].items())
    return show.pairs(shown)


def _to_sae_lens(spec: ExportSpec, progress: Progress) -> dict[str, Any]:
    from pipeline.exporting import sae_lens

    job = sae_lens.prepare(spec)
    with progress.task("export", unit="rows") as task:
        facts = sae_lens.write(job, begin=lambda total, done: _begin(task, total, done), advance=task.advance)
    return {"output": spec.output, **facts}


def _begin(task: Task, total: int, done: int) -> None:
    task.reach(done, total)
    task.reused = done
    task.restart_clock()


def _validated(facts: dict[str, Any]) -> ExportSpec:
    try:
        return ExportSpec.model_validate(facts)
    except ValidationError as error:
        raise SpecError("; ".join(explained(error, ExportSpec))) from error


def _numbers(text: str) -> list[int]:
    """``3,7,10:20`` -> 3, 7, 10, 11, ... 19."""
    found: list[int] = []
    for part in text.split(","):
        if ":" in part:
            found.extend(range(*_range(part, f"--documents {text}")))
        else:
            found.append(_number(part, f"--documents {text}"))
    return found


def _range(text: str, said: str) -> tuple[int, int]:
    start, colon, stop = text.partition(":")
    if not colon:
        raise SpecError(f"{said}: expected START:STOP, for example 0:65536")
    return _number(start, said), _number(stop, said)


def _number(text: str, said: str) -> int:
    if not text.strip().isdecimal():
        raise SpecError(f"{said}: {text!r} is not a number")
    return int(text)
