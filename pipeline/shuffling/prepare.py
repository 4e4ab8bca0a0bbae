"""What a shuffle job will do: reads the spec and the source store, decides the new store's identity and the plan.

The order is a keyed permutation of the rows, from the token table, the number of rows and the seed alone: equal
shuffles of stores of one table are row-aligned. But row r of a shuffled store is not row r of the table, so it has a
table fingerprint of its own, and nothing that is in another order can be joined with it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.order.permutation import KeyedPermutation
from pipeline.planning.sizes import LEAST_SHARE
from pipeline.planning.space import require_quota
from pipeline.shuffling.plan import MIN_SECTION_BYTES, ShufflePlan, plan_shuffle
from pipeline.shuffling.runs import Column, Runs
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.words import stored_dtype
from pipeline.store.writer import StoreWriter
from schemas.errors import HookPointError, ResourceError, SpecError, nearest
from schemas.fields import about_bytes
from schemas.fingerprint import fingerprint
from schemas.shuffle import ShuffleSpec
from schemas.store import PassRecord, Shuffled, StoreRecord

PERMUTATION = 1
"""Version of the order. Raised when a change of this code would give an equal seed another order."""

TOKEN_COLUMNS = (
    Column("row", np.dtype("<i8")),
    Column("token_id", np.dtype("<i4")),
    Column("document_id", np.dtype("<i8")),
    Column("position", np.dtype("<i4")),
    Column("held_out", np.dtype("?")),
    Column("source_row", np.dtype("<i8")),
)
"""What moves with every row besides its words; ``row`` is the source's, ``source_row`` that of the token table."""

_PACKAGES = ("headworks", "numpy", "zarr")


def words_column(hook: str) -> str:
    """Name of the column with a hook point's words."""
    return f"words/{hook}"


@dataclass(frozen=True)
class ShuffleJob:
    """All that a worker must know. Picklable."""

    spec: ShuffleSpec
    record: StoreRecord
    passes: tuple[PassRecord, ...]
    """The source's passes, with the chosen hook points only."""
    plan: ShufflePlan
    scratch: str
    """Where the rows between two passes of this very plan are."""

    @property
    def num_rows(self) -> int:
        return self.plan.num_rows

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of every block of rows."""
        dtype = stored_dtype(self.record.dtype)
        hooks = {hook: width for one in self.passes for hook, width in one.hook_points.items()}
        return *TOKEN_COLUMNS, *(Column(words_column(hook), dtype, (width,)) for hook, width in hooks.items())

    @property
    def permutation(self) -> KeyedPermutation:
        """Source row -> row of the shuffled store."""
        return KeyedPermutation(self.num_rows, int(self.record.table_fingerprint[:32], 16))

    @property
    def runs(self) -> Runs:
        return Runs(Objects(self.scratch), self.columns)

    def writers(self) -> list[StoreWriter]:
        """Create or join the new store, a pass for each of the source's.

        Raises:
            MismatchError: the store at the output has another identity.
        """
        opened = (StoreWriter.open(self.spec.output, self.record, one, num_rows=self.num_rows) for one in self.passes)
        return [*opened]


def prepare(spec: ShuffleSpec, *, min_section_bytes: int = MIN_SECTION_BYTES) -> ShuffleJob:
    """Raises: SpecError (a store that cannot be shuffled), HookPointError, MissingError, IncompleteError, ResourceError
    (too little memory for one unit)."""
    source = Store.open(spec.store)
    _require_fit(source)
    passes = _chosen(source, spec)
    record = _record(source, spec)
    num_words = sum(width for one in passes for width in one.hook_points.values())
    row_bytes = num_words * stored_dtype(source.dtype).itemsize + sum(column.row_bytes for column in TOKEN_COLUMNS)
    plan = plan_shuffle(
        source.num_rows, row_bytes, record.shard_rows, spec.workers.memory, min_section_bytes=min_section_bytes
    )
    facts = {
        "identity": record.identity,
        "passes": [one.model_dump(mode="json") for one in passes],
        "plan": [plan.bucket_units, plan.slab_rows, plan.fan_out],
    }
    scratch = (spec.scratch or f"{spec.output.rstrip('/')}.scratch").rstrip("/")
    return ShuffleJob(spec, record, passes, plan, f"{scratch}/{fingerprint(facts)[:16]}")


def require_space(job: ShuffleJob) -> None:
    """Refuse to begin what cannot end: compare what is yet to be written with the free space of local disks.

    Runs of a pass are deleted when the next pass is through, so those of two passes exist at once at most.

    Raises:
        ResourceError: naming both and the folder.
    """
    whole = job.num_rows * job.runs.row_bytes
    _require_quota(job, whole)
    wanted: dict[int, tuple[Path, int]] = {}
    for url, copies in ((job.spec.output, 1), (job.scratch, min(job.plan.num_scatters, 2))):
        objects = Objects(url)
        if not objects.is_local:
            continue
        folder = next(path for path in (Path(objects.url), *Path(objects.url).parents) if path.exists())
        device = folder.stat().st_dev
        needed = max(0, copies * whole - sum(objects.sizes().values()))
        wanted[device] = folder, needed + (wanted[device][1] if device in wanted else 0)
    for folder, needed in wanted.values():
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ResourceError(
                f"shuffling {job.num_rows:,} rows of {job.runs.row_bytes:,} bytes needs {about_bytes(needed)} on the "
                f"disk of {folder}, which has {about_bytes(free)} free. Shuffle fewer hook points, or put scratch "
                "elsewhere."
            )


def _require_quota(job: ShuffleJob, whole: int) -> None:
    """What units that are there take counts as what they will."""
    objects, codec = Objects(job.spec.output), job.record.codec
    needed = max(0, int(whole * LEAST_SHARE[codec]) - sum(objects.sizes().values()))
    require_quota(objects, needed, job.spec.retention.quota, f"{job.num_rows:,} rows")


def _require_fit(source: Store) -> None:
    if source.record.shuffled is not None:
        raise SpecError(
            f"the store at {source.url} is shuffled already, from {source.record.shuffled.store_url}: shuffle that one"
        )
    if source.record.lossy:
        raise SpecError(
            f"the store at {source.url} is lossy ({source.dtype}): rounding it once more would lose more. Shuffle the "
            "lossless store, then export the result to that dtype."
        )


def _chosen(source: Store, spec: ShuffleSpec) -> tuple[PassRecord, ...]:
    """Hook points keep the passes that they have, because a pass says how they were collected."""
    for hook in spec.hook_points:
        if hook not in source.hook_points:
            raise HookPointError(
                f"{spec.name}: the store at {source.url} has no hook point {hook!r}{nearest(hook, source.hook_points)} "
                f"It has: {', '.join(sorted(source.hook_points))}"
            )
    wanted = {*(spec.hook_points or source.hook_points)}
    chosen = []
    for one in source.passes.values():
        points = {hook: width for hook, width in sorted(one.hook_points.items()) if hook in wanted}
        if points:
            # No order changes a covariance: the source's is that of the shuffled store too.
            chosen.append(one.model_copy(update={"hook_points": points, "covariance": False}))
    return tuple(chosen)


def _record(source: Store, spec: ShuffleSpec) -> StoreRecord:
    order: dict[str, Any] = {"seed": spec.seed, "num_rows": source.num_rows, "permutation": PERMUTATION}
    identity = {**source.record.identity, "shuffled": {**order, "store": source.fingerprint}}
    return source.record.model_copy(
        update={
            "fingerprint": fingerprint(identity),
            "identity": identity,
            "table_fingerprint": fingerprint({**order, "table": source.table_fingerprint}),
            "spec": spec.model_dump(mode="json"),
            "versions": {**source.record.versions, **{package: version(package) for package in _PACKAGES}},
            "shuffled": Shuffled(
                store_fingerprint=source.fingerprint,
                store_url=source.url,
                # Of an export of some rows the table is the one that they were chosen from.
                table_fingerprint=(source.record.exported or source).table_fingerprint,
                seed=spec.seed,
            ),
        }
    )
