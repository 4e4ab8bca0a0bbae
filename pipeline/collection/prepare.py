"""What a collect job has yet to compute: reads the spec, the token table and the store, if there is one.

1. The store's identity is fixed: model, token table, storage and the version of what a row means. A store at the output
   that has another identity is refused before anything is loaded.
2. Hook points that the store's passes hold are continued where they stopped; those that it lacks become one new pass.
3. A pass with nothing missing needs no model, so a job that was finished before ends here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Protocol

from pipeline.collection.passes import plan_passes
from pipeline.collection.units import Units
from pipeline.models.identity import model_identity
from pipeline.planning.sizes import LEAST_SHARE, row_bytes
from pipeline.planning.space import require_free, require_quota
from pipeline.store import layout
from pipeline.store.log import Event, StoreLog, opened_passes
from pipeline.store.objects import Objects
from pipeline.store.writer import StoreWriter
from pipeline.tokens.table import TokenTable
from schemas.collect import CollectSpec, StatisticsSpec
from schemas.errors import MismatchError, MissingError
from schemas.fields import format_bytes
from schemas.fingerprint import fingerprint, require_equal
from schemas.store import PassRecord, StoreRecord

SEMANTICS = 1
"""Version of what a stored row means. Raised when a change of this code changes the numbers of an equal spec."""

_PACKAGES = ("headworks", "torch", "transformers", "zarr")


class TableFacts(Protocol):
    """What a store says of its token table."""

    @property
    def url(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def specials(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class CollectPass:
    """Hook points that are collected together; all that a worker must know. Picklable."""

    spec: CollectSpec
    record: StoreRecord
    table_url: str
    hook_points: tuple[str, ...]
    num_rows: int
    tensor_parallel: int = 0
    """Processes over which matrix products are split, of a pass that was begun; 0: of a new one, as its workers say."""

    @property
    def num_units(self) -> int:
        """Units of the whole pass, committed or not."""
        return layout.num_units(self.num_rows, self.record.shard_rows)

    def writer(self, widths: Mapping[str, int]) -> StoreWriter:
        """Create or join the store and this pass of it; ``widths``: hook point -> D.

        Raises:
            MismatchError: the store at the output has another identity, or other widths.
        """
        chosen = {hook: widths[hook] for hook in self.hook_points}
        workers = self.spec.workers
        split = workers.processes_per_replica if workers.placement == "tensor" else 1
        pass_record = PassRecord(
            hook_points=chosen,
            batch_tokens=self.spec.batch_tokens,
            tensor_parallel=self.tensor_parallel or split,
            **self.spec.statistics.model_dump(),
        )
        return StoreWriter.open(self.spec.output, self.record, pass_record, num_rows=self.num_rows)


@dataclass(frozen=True)
class Pending:
    """A pass and the units of it that the ledger lacks."""

    of: CollectPass
    units: Units
    widths: Mapping[str, int] = field(default_factory=dict)
    """Known only of a pass that an earlier job has begun."""

    @property
    def num_rows(self) -> int:
        """Rows of the units."""
        shard_rows = self.of.record.shard_rows
        is_last_missing = self.units.last == self.of.num_units - 1 >= 0
        return len(self.units) * shard_rows - is_last_missing * (self.of.num_units * shard_rows - self.of.num_rows)


def table_url(spec: CollectSpec) -> str:
    """Where the job's token table is: as the spec says, else ``tokens`` beside the store."""
    if spec.tokens.output:
        return spec.tokens.output
    folder, slash, _ = spec.output.rstrip("/").rpartition("/")
    return f"{folder}{slash}tokens"


def prepare(spec: CollectSpec, table: TokenTable) -> list[Pending]:
    """The passes of the job in the order in which they run, with what is missing of each.

    Raises:
        MismatchError: the store at the output was made from other facts; names them.
    """
    record = store_record(spec, table)
    events = store_events(Objects(spec.output), record)
    require_same_batches(spec, opened_passes(events))
    plan = plan_passes(events, spec.hook_points, planned_rows(spec, table.num_rows))
    _require_table(spec, table, plan.num_rows)
    new = CollectPass(spec, record, table.url, plan.missing, plan.num_rows)
    passes = [_continued(new, one) for one in plan.begun]
    return [*passes, Pending(new, Units.missing(new.num_units, []))] if plan.missing else passes


def _require_table(spec: CollectSpec, table: TokenTable, num_rows: int) -> None:
    """The plan may have more rows than the job asked for, where another job has given the store more meanwhile."""
    if num_rows > table.num_rows and (written := TokenTable.open(table.url).num_rows) < num_rows:
        raise MismatchError(
            f"the store at {spec.output} has {num_rows} rows by now, the token table at {table.url} only {written}. "
            f"Choose max_tokens={num_rows}: what is there is kept."
        )


def planned_rows(spec: CollectSpec, table_rows: int) -> int:
    """Rows of the store: the table's, up to the first shard boundary at or after ``max_tokens``.

    A table that an earlier job made longer than this one asks for is used in part.
    """
    if not spec.tokens.max_tokens:
        return table_rows
    shard_rows = spec.storage.shard_rows
    return min(table_rows, -(-spec.tokens.max_tokens // shard_rows) * shard_rows)


def store_record(spec: CollectSpec, table: TableFacts) -> StoreRecord:
    """What the store says of itself. Digests the model's weights, but does not load them."""
    identity: dict[str, Any] = {
        "model": model_identity(spec.model),
        "table": table.fingerprint,
        "storage": spec.storage.model_dump(mode="json"),
        "semantics": SEMANTICS,
    }
    return StoreRecord(
        fingerprint=fingerprint(identity),
        identity=identity,
        table_fingerprint=table.fingerprint,
        layout=spec.storage.layout,
        dtype=spec.storage.dtype,
        lossy=spec.storage.lossy,
        chunk_rows=spec.storage.chunk_rows,
        shard_rows=spec.storage.shard_rows,
        codec=spec.storage.codec,
        table_url=table.url,
        specials=table.specials,
        spec=spec.model_dump(mode="json"),
        versions={package: version(package) for package in _PACKAGES},
    )


def require_space(one: CollectPass, widths: Mapping[str, int], num_rows: int) -> None:
    """Refuse to begin what cannot end: compare the bytes of ``num_rows`` rows with the free space of a local disk, and
    what the store will take with the spec's quota.

    Raises:
        ResourceError: naming both and the folder.
    """
    storage = one.spec.storage
    row_size = sum(row_bytes(storage, widths[hook]) for hook in one.hook_points)
    needed = int(num_rows * row_size * LEAST_SHARE[storage.codec])
    what = f"{num_rows:,} rows of {format_bytes(row_size)} each ({len(one.hook_points)} hook points, {storage.dtype})"
    objects = Objects(one.spec.output)
    require_quota(objects, needed, one.spec.retention.quota, what)
    require_free(objects, needed, what)


def store_events(objects: Objects, record: StoreRecord) -> list[Event]:
    """The log of the store at the output, empty where there is none yet. Raises MismatchError for another store."""
    try:
        theirs = layout.read_record(objects)
    except MissingError:
        # A store that has lost its record still has its log: joining it writes the record anew.
        return StoreLog(objects).read()
    require_equal(
        record.identity,
        theirs.identity,
        where=f"the store at {objects.url}",
        remedy="Choose another output, or the spec that made this store.",
    )
    return StoreLog(objects).read()


def require_same_batches(spec: CollectSpec, found: Mapping[str, PassRecord]) -> None:
    """A hook point that is there was collected with some batch size, which can change low bits, and some statistics."""
    for one in found.values():
        if shared := {*one.hook_points} & {*spec.hook_points}:
            statistics = StatisticsSpec(covariance=one.covariance, outlier_tokens=one.outlier_tokens).model_dump()
            require_equal(
                {"batch_tokens": spec.batch_tokens, "statistics": spec.statistics.model_dump()},
                {"batch_tokens": one.batch_tokens, "statistics": statistics},
                where=f"{sorted(shared)} in the store at {spec.output}",
                remedy=f"Set batch_tokens to {one.batch_tokens}, statistics to {statistics}, or choose another output.",
            )
            _require_same_split(spec, one, sorted(shared))


def _require_same_split(spec: CollectSpec, one: PassRecord, hook_points: list[str]) -> None:
    """Matrix products that are split over another number of processes have other low bits."""
    workers, split = spec.workers, one.tensor_parallel
    if workers.placement == "auto":
        return
    asked = workers.processes_per_replica if workers.placement == "tensor" else 1
    if (asked or split) != split or (workers.placement == "tensor") != (split > 1):
        said = "tensor" if split > 1 else "replica or stages"
        raise MismatchError(
            f"{hook_points} in the store at {spec.output} were collected with tensor_parallel: {split}, which decides "
            f"low bits; this job asks for workers.placement: {workers.placement}, of {asked or 'some'} processes. "
            f"Choose placement {said}{f' and processes_per_replica {split}' if split > 1 else ''}, or another output."
        )


def _continued(new: CollectPass, record: PassRecord) -> Pending:
    """The pass that an earlier job has begun, with all of its hook points: they are written together, as they were."""
    as_begun = {
        "batch_tokens": record.batch_tokens,
        "statistics": StatisticsSpec(covariance=record.covariance, outlier_tokens=record.outlier_tokens),
    }
    spec, hook_points = new.spec.model_copy(update=as_begun), tuple(record.hook_points)
    one = replace(new, spec=spec, hook_points=hook_points, tensor_parallel=record.tensor_parallel)
    committed = one.writer(record.hook_points).committed_units()
    return Pending(one, Units.missing(one.num_units, committed), dict(record.hook_points))
