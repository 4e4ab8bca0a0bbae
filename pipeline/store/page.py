"""What a notebook shows of a store: one block of HTML, everything escaped, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from pipeline.store import layout
from pipeline.store.statistics import mean_norm
from pipeline.store.words import stored_dtype
from schemas.fields import about_bytes

if TYPE_CHECKING:
    from pipeline.store.reader import Store

_CELL = "text-align:left;padding:2px 12px 2px 0"


def page(store: Store) -> str:
    """Hook points, rows, precision, layout, size, and where the rows come from."""
    return (
        f"<div><p><b>Activation store</b> <code>{escape(store.url)}</code></p>"
        f"{_table(((name, escape(value)) for name, value in _facts(store)), None)}"
        f"{_table(_hook_points(store), ('hook point', 'd_model', 'size', 'mean norm', 'NaN or infinite'))}</div>"
    )


def line(store: Store) -> str:
    """The same in one line of text."""
    hooks = ", ".join(f"{hook} [{width}]" for hook, width in store.hook_points.items()) or "no hook point"
    state = "" if store.manifest else ", not complete"
    return f"<Store {store.url}: {store.num_rows:,} rows, {store.dtype}, {store.record.layout}{state}; {hooks}>"


def _facts(store: Store) -> Iterable[tuple[str, str]]:
    record = store.record
    yield "rows", f"{store.num_rows:,} in {store.num_units:,} units of {record.shard_rows:,}"
    codec = "" if record.codec == "none" else f", codec {record.codec}"
    yield "stored as", f"{store.dtype}{' (lossy)' if record.lossy else ''}, layout {record.layout}{codec}"
    yield "size", about_bytes(store.manifest.size_bytes) if store.manifest else "not complete"
    yield "collection begun", _when(store)
    yield "model", _model(record.identity.get("model"))
    yield "corpus", corpus_of(record.spec)
    yield "token table", f"{store.table_fingerprint[:16]} at {record.table_url}"
    for kind, source in (("shuffled from", record.shuffled), ("exported from", record.exported)):
        if source is not None:
            yield kind, f"{source.store_fingerprint[:16]} at {source.store_url}"
    yield "versions", ", ".join(f"{package} {version}" for package, version in sorted(record.versions.items()))
    yield "fingerprint", store.fingerprint[:16]


def _when(store: Store) -> str:
    """By the records of the passes, which are written first: few objects, so that one small listing tells."""
    times = store.objects.times("passes/")
    known = [times[key] for key in map(layout.pass_key, store.passes) if key in times]
    return f"{datetime.fromtimestamp(min(known), UTC):%Y-%m-%d %H:%M} UTC" if known else "unknown"


def _model(facts: Any) -> str:
    """Its name and revision, or what kind of file it was; the weights' digest tells it from any other."""
    if not isinstance(facts, dict):
        return str(facts or "unknown")
    name = str(facts.get("path") or facts.get("source") or "unknown")
    extra = [f"{key} {str(facts[key])[:23]}" for key in ("revision", "weights", "dtype") if facts.get(key)]
    return ", ".join([name, *extra])


def corpus_of(spec: dict[str, Any]) -> str:
    """Where the text came from, by the job that made the store."""
    tokens = spec.get("tokens")
    corpus = tokens.get("corpus") if isinstance(tokens, dict) else None
    if not isinstance(corpus, dict):
        return "unknown"
    places = corpus.get("urls") or [corpus.get("path", "")]
    return f"{corpus.get('format', 'unknown')}: {', '.join(map(str, places))}"


def _hook_points(store: Store) -> Iterable[tuple[str, ...]]:
    row_bytes = stored_dtype(store.dtype).itemsize
    for hook, width in store.hook_points.items():
        statistics = store.statistics[hook]
        bad = statistics.num_nan + statistics.num_inf
        size = about_bytes(width * row_bytes * store.num_rows)
        norm = f"{mean_norm(statistics):.4g}" if statistics.count else "-"
        yield f"<code>{escape(hook)}</code>", f"{width:,}", size, norm, f"{bad:,}"


def _table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] | None) -> str:
    """``rows`` are HTML already."""
    top = "" if head is None else _row(head, "th")
    return f"<table style='margin:0 0 8px 0'>{top}{''.join(_row(row, 'td') for row in rows)}</table>"


def _row(cells: tuple[str, ...], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag} style={_CELL!r}>{cell}</{tag}>' for cell in cells)}</tr>"
