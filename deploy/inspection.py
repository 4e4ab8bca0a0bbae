"""What stores and dictionaries say of themselves, as plain data and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from deploy import show
from schemas.dictionary import DictionaryRecord
from schemas.errors import MissingError

_RECORD = "dictionary.json"
_SHARES = (0.01, 0.25, 0.5, 0.75, 0.99, 0.999)
_DEPTH = 8
"""Levels of folders that are searched for dictionaries."""
_LISTED = 5
"""Outliers and units with NaN that are shown in words; as data there are all of them."""


def store_facts(url: str) -> dict[str, Any]:
    """Size, layout, provenance and statistics of a store; a partial one says so.

    Raises:
        MissingError: there is no store.
    """
    from pipeline.store.reader import Store

    store = Store.open(url, allow_partial=True)
    record = store.record
    return {
        "url": store.url,
        "is_complete": store.manifest is not None,
        "num_rows": store.num_rows,
        "num_units": store.num_units,
        "size_bytes": store.manifest.size_bytes if store.manifest else 0,
        "layout": record.layout,
        "dtype": record.dtype,
        "lossy": record.lossy,
        "chunk_rows": record.chunk_rows,
        "shard_rows": record.shard_rows,
        "codec": record.codec,
        "fingerprint": store.fingerprint,
        "table_fingerprint": store.table_fingerprint,
        "shuffled": record.shuffled.model_dump() if record.shuffled else None,
        "model": _model_facts(record.identity.get("model", {}), record.spec.get("model", {})),
        "versions": record.versions,
        "hook_points": {name: _hook_facts(store, name, width) for name, width in store.hook_points.items()},
    }


def _model_facts(identity: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """A model that is known by its weights alone is shown by the path that the job named, or by their digest."""
    digest = str(identity.get("weights", ""))[:12]
    return {**identity, "path": identity.get("path") or spec.get("path") or (f"weights {digest}" if digest else "?")}


def _hook_facts(store: Any, name: str, width: int) -> dict[str, Any]:
    from pipeline.store.rounding import relative_error
    from pipeline.store.statistics import quantile_norm

    statistics = store.statistics.get(name)
    if statistics is None:
        return {"d_model": width}
    return {
        "d_model": width,
        "rows": statistics.count,
        "mean_norm": statistics.norm_sum / max(statistics.count, 1),
        # None of no finite row: JSON has no NaN.
        "norm_quantiles": {
            str(share): quantile_norm(statistics, share) if statistics.count else None for share in _SHARES
        },
        "num_nan": statistics.num_nan,
        "num_inf": statistics.num_inf,
        "non_finite_units": {unit: rows.model_dump() for unit, rows in store.non_finite.get(name, {}).items()},
        "outliers": [outlier.model_dump() for outlier in statistics.outliers],
        "covariance": any(name in one.hook_points and one.covariance for one in store.passes.values()),
        **({"relative_error": relative_error(statistics.rounding)} if statistics.rounding else {}),
    }


def store_lines(facts: dict[str, Any]) -> list[str]:
    """For a terminal."""
    model = facts["model"]
    shown = {
        "store": facts["url"],
        "state": "complete" if facts["is_complete"] else "partial: a collection is running or was stopped",
        "rows": f"{facts['num_rows']:,} in {facts['num_units']} units of {facts['shard_rows']:,}",
        "bytes": f"{facts['size_bytes']:,}",
        "layout": (
            f"{facts['layout']}, {facts['dtype']}, chunks of {facts['chunk_rows']:,} rows, codec {facts['codec']}"
        ),
        "model": f"{model.get('path', '?')} ({model.get('dtype', '?')})",
        "fingerprint": facts["fingerprint"],
        "token table": facts["table_fingerprint"],
        **_origin(facts["shuffled"]),
    }
    points = [
        {"hook point": name, "d_model": point["d_model"], "mean norm": f"{point.get('mean_norm', float('nan')):.3f}"}
        | {"median": _quantile(point, 0.5), "99.9 %": _quantile(point, 0.999)}
        | {"NaN rows": point.get("num_nan", "?"), "Inf rows": point.get("num_inf", "?")}
        | {"relative error": f"{point.get('relative_error', float('nan')):.2e}"}
        for name, point in facts["hook_points"].items()
    ]
    columns = ["hook point", "d_model", "mean norm", "median", "99.9 %", "NaN rows", "Inf rows"]
    table = show.table(points, [*columns, *(["relative error"] if facts["lossy"] else [])])
    notes = [line for name, point in facts["hook_points"].items() for line in _notes(name, point)]
    return [*show.pairs(shown), "", *table, *(["", *notes] if notes else [])]


def _origin(shuffled: dict[str, Any] | None) -> dict[str, str]:
    if shuffled is None:
        return {}
    return {"shuffled": f"with seed {shuffled['seed']}, from {shuffled['store_url']}"}


def _quantile(point: dict[str, Any], share: float) -> str:
    value = point.get("norm_quantiles", {}).get(str(share))
    return "?" if value is None else f"{value:.3f}"


def _notes(name: str, point: dict[str, Any]) -> Iterator[str]:
    """Where to look: the rows of greatest norm, and the units with rows that are not finite."""
    if outliers := point.get("outliers"):
        listed = ", ".join(
            f"{one['norm']:.4g} (row {one['row']}, token {one['token_id']})" for one in outliers[:_LISTED]
        )
        yield f"{name}: greatest norms {listed}"
    if units := point.get("non_finite_units"):
        shown = islice(units.items(), _LISTED)
        listed = ", ".join(f"{unit} ({one['num_nan']} NaN, {one['num_inf']} Inf)" for unit, one in shown)
        yield f"{name}: rows that are not finite in units {listed}{', ...' if len(units) > _LISTED else ''}"


def dictionary_records(path: str) -> list[dict[str, Any]]:
    """The record of the dictionary at ``path``, or of each dictionary in the folder of a train job.

    Raises:
        MissingError: there is none.
    """
    from pipeline.store.objects import Objects

    folder = Objects(path)
    places = [folder] if folder.exists(_RECORD) else _below(folder)
    if not places:
        raise MissingError(
            f"no dictionary at {path}: expected {_RECORD} there, or NAME/{_RECORD} of a train job that has finished"
        )
    return [_facts(place) for place in places]


def _below(folder: Any) -> list[Any]:
    names = [key.split("/")[0] for key in folder.list() if key.count("/") == 1 and key.endswith(f"/{_RECORD}")]
    return [folder.at(name) for name in names]


def _facts(place: Any) -> dict[str, Any]:
    record = DictionaryRecord.model_validate_json(place.read(_RECORD))
    return {"url": place.url, **record.model_dump(mode="json")}


def dictionary_rows(paths: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each dictionary at or below the paths."""
    return [_row(record) for record in all_dictionary_records(paths)]


def all_dictionary_records(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The record of each dictionary at or below the paths; folders are listed down to dictionaries."""
    from pipeline.store.objects import Objects

    return [_facts(place) for path in paths for place in _all_below(Objects(path), _DEPTH)]


def _all_below(folder: Any, depth: int) -> Iterator[Any]:
    files, folders = folder.children()
    if _RECORD in files:
        yield folder
    elif depth and "zarr.json" not in files:  # a store has no dictionaries below it
        for name in folders:
            yield from _all_below(folder.at(name), depth - 1)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    spec = record["spec"]
    return {
        "dictionary": record["url"],
        "source": ", ".join(record["d_source"]),
        "target": ", ".join(record["d_target"]),
        "latents": spec["num_latents"],
        "activation": spec["activation"]["kind"],
        "rows": record["tokens"],
        "fvu": round(record["metrics"]["fvu"], 4) if "fvu" in record["metrics"] else None,
    }


def dictionary_lines(records: list[dict[str, Any]]) -> list[str]:
    """For a terminal."""
    lines: list[str] = []
    for record in records:
        spec = record["spec"]
        shown = {
            "dictionary": record["url"],
            "sources": _points(record["d_source"]),
            "targets": _points(record["d_target"]),
            "latents": f"{spec['num_latents']:,}, {_activation(spec['activation'])}{', skip' if spec['skip'] else ''}",
            "trained": f"{record['steps']:,} steps, {record['tokens']:,} rows",
            "metrics": ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items()),
            "model": record["model"].get("path", "?"),
            "store": record["store_fingerprint"],
            "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        }
        lines += [*show.pairs(shown), ""]
    return lines[:-1]


def _points(widths: dict[str, int]) -> str:
    return ", ".join(f"{name} [{width}]" for name, width in widths.items())


def _activation(activation: dict[str, Any]) -> str:
    return f"{activation['kind']} k={activation['k']}" if "k" in activation else str(activation["kind"])


def _similarity_lines(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{name + ':':11} {one['observed']:.3f}; shuffled pairs {one['null_mean']:.3f} "
        f"(deviation {one['null_deviation']:.3f}), p = {one['p_value']:.3g}"
        for name in ("svcca", "rsa")
        if (one := found[name])
    ]


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    """What ``pipeline.analysis.compare`` found, for people."""
    correlation = found["correlation"]
    lines = [
        f"rows:       {found['rows']:,}",
        f"paired:     {found['paired']:,} latents of the second; one to one {found['one_to_one']:,}"
        + (f", mean correlation {correlation:.3f}" if correlation is not None else ""),
    ]
    lines += _similarity_lines(found)
    if concepts := found["concepts"]:
        mean = concepts["correlation"]
        lines.append(
            f"concepts:   {concepts['one_to_one']:,} of these pairs"
            + (f", mean correlation {mean:.3f}" if mean else "")
        )
        lines += [f"  {line}" for line in _similarity_lines(concepts)]
    if one := found["mmcs"]:
        lines.append(f"MMCS:       {one['first_to_second']:.3f} there, {one['second_to_first']:.3f} back")
    pairs = [f"{pair['first']} ~ {pair['second']} ({pair['correlation']:.3f})" for pair in found["pairs"][:8]]
    return [*lines, *([f"best pairs: {', '.join(pairs)}"] if pairs else [])]
