"""What an export will write: reads the spec and the source store, decides the new store's identity and passes.

An export whose rows are the first of its source keeps the token table: row r means token r in both, and whatever can be
joined with the one can be joined with the other. Any other part has a table fingerprint of its own, made from that of
the table and the choice of rows, so that equal parts of several stores of one table are row-aligned with each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pydantic import ValidationError

from pipeline.exporting import selection
from pipeline.exporting.conversion import is_exact, require_consent, value_dtype
from pipeline.exporting.selection import RowSelection, select
from pipeline.spec_errors import explained
from pipeline.store.reader import Store
from pipeline.store.writer import StoreWriter
from schemas.collect import Storage
from schemas.errors import HookPointError, SpecError, nearest
from schemas.export import ExportSpec
from schemas.fields import LOSSY, Codec, Dtype
from schemas.fingerprint import fingerprint
from schemas.store import Exported, PassRecord, StoreRecord

SEMANTICS = 1
"""Raised when an equal export would give other numbers than before."""

_PACKAGES = ("headworks", "numpy", "zarr")


@dataclass(frozen=True)
class ExportJob:
    """An export to a store, ready to run."""

    spec: ExportSpec
    source: Store
    rows: RowSelection
    record: StoreRecord
    passes: tuple[PassRecord, ...]
    """The source's passes, with the chosen hook points only."""

    def writers(self) -> list[StoreWriter]:
        """Create or join the new store, a pass for each of the source's.

        Raises:
            MismatchError: the store at the output was made from other facts.
        """
        return [
            StoreWriter.open(self.spec.output, self.record, one, num_rows=self.rows.num_rows) for one in self.passes
        ]


def prepare(spec: ExportSpec) -> ExportJob:
    """Raises: MissingError, IncompleteError (of the source), HookPointError, SpecError (rows that are not there,
    precision that would be lost without consent, a layout that cannot have the codec)."""
    source = Store.open(spec.store)
    storage = _storage(spec, source.record)
    require_consent(source.record, storage.dtype, lossy=spec.lossy)
    passes = _chosen(source, spec)
    rows = select(source, spec.rows)
    return ExportJob(spec, source, rows, _record(source, spec, storage), passes)


def chosen_hooks(source: Store, spec: ExportSpec) -> list[str]:
    """The hook points to export. Raises HookPointError."""
    for hook in spec.hook_points:
        if hook not in source.hook_points:
            raise HookPointError(
                f"the store at {source.url} has no hook point {hook!r}{nearest(hook, source.hook_points)} "
                f"It has: {', '.join(sorted(source.hook_points))}"
            )
    return list(spec.hook_points or source.hook_points)


def _storage(spec: ExportSpec, source: StoreRecord) -> Storage:
    layout = source.layout if spec.layout == "same" else spec.layout
    dtype: Dtype = source.dtype if spec.dtype == "same" else spec.dtype
    codec: Codec = source.codec if spec.codec == "same" else spec.codec
    if spec.codec == "same" and (layout == "arrow" or (codec == "bf16" and dtype != "bfloat16")):
        codec = "none"
    try:
        return Storage(
            layout=layout,
            dtype=dtype,
            lossy=dtype in LOSSY,
            chunk_rows=source.chunk_rows,
            shard_rows=source.shard_rows,
            codec=codec,
        )
    except ValidationError as error:
        raise SpecError("; ".join(explained(error, Storage))) from error


def _chosen(source: Store, spec: ExportSpec) -> tuple[PassRecord, ...]:
    """Hook points keep the passes that they have, because a pass says how they were collected."""
    wanted = {*chosen_hooks(source, spec)}
    chosen = []
    for one in source.passes.values():
        points = {hook: width for hook, width in one.hook_points.items() if hook in wanted}
        if points:
            chosen.append(one.model_copy(update={"hook_points": points}))
    return tuple(chosen)


def _record(source: Store, spec: ExportSpec, storage: Storage) -> StoreRecord:
    before = source.record
    choice = selection.facts(spec.rows)
    layout = storage.model_dump(mode="json")
    exported: dict[str, Any] = {"store": source.fingerprint, "rows": choice, "semantics": SEMANTICS}
    identity = {**before.identity, "storage": layout, "exported": exported}
    table = before.table_fingerprint
    if not selection.is_aligned(spec.rows):
        table = fingerprint({"table": table, "rows": choice, "semantics": SEMANTICS})
    values, origin = value_dtype(before), before.exported or before.shuffled
    return before.model_copy(
        update={
            **storage.model_dump(),
            "fingerprint": fingerprint(identity),
            "identity": identity,
            "table_fingerprint": table,
            "versions": {**before.versions, **{package: version(package) for package in _PACKAGES}},
            "exported": Exported(
                store_fingerprint=source.fingerprint,
                store_url=source.url,
                table_fingerprint=origin.table_fingerprint if origin else before.table_fingerprint,
                value_dtype=values if is_exact(values, storage.dtype) else _lossless(storage.dtype),
                spec=spec.model_dump(mode="json"),
            ),
        }
    )


def _lossless(dtype: Dtype) -> Dtype:
    return "float32" if dtype in LOSSY else dtype
