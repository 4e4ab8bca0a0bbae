"""Exporting to the dataset of cached activations that SAELens reads: a folder for ``datasets.load_from_disk``.

One row of the dataset is one context: a column for each hook point, named like it, with the activations [L, D], and
``token_ids`` [L]. SAELens wants all contexts to be of one length L and of consecutive tokens.

    headworks.json              what the dataset was made from; written first, put-if-absent
    data-00000-of-000NN.arrow   Arrow streams of up to 128 MiB of contexts, each written at once
    dataset_info.json           the columns
    cache_activations_runner_cfg.json   how SAELens would have been asked for it
    state.json                  the list of files; written last, and without it nothing loads

A killed export goes on with the files that are not there. The columns are written with the names that ``datasets``
gives its types, so that package is needed for reading only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.exporting import selection
from pipeline.exporting.conversion import narrowed, require_consent
from pipeline.exporting.prepare import chosen_hooks
from pipeline.exporting.sae_lens_config import CONFIG, runner_config
from pipeline.exporting.selection import Rows, RowSelection, select
from pipeline.planning.space import require_free
from pipeline.store.documents import parse, to_bytes
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from schemas.errors import SpecError
from schemas.export import ExportSpec
from schemas.fields import Dtype
from schemas.fingerprint import fingerprint, require_equal

FACTS, INFO, STATE = "headworks.json", "dataset_info.json", "state.json"
FILE_BYTES = 2**27
"""Activations in one file; the export holds it twice. The reader's own limit is 2 GiB."""
_BATCH_BYTES = 2**24
_SCAN_ROWS = 2**18
_ARRAY_2D = "datasets.features.features.Array2DExtensionType"


@dataclass(frozen=True)
class Contexts:
    """Whole contexts of one length among the selected rows."""

    length: int
    """L."""
    starts: Rows
    """[C] first row of each, counted in the selection."""
    num_rows_dropped: int
    """Rows of shorter contexts."""


@dataclass(frozen=True)
class CachedActivations:
    """A dataset to write."""

    spec: ExportSpec
    source: Store
    rows: RowSelection
    hook_points: dict[str, int]
    dtype: Dtype
    contexts: Contexts

    @property
    def context_bytes(self) -> int:
        """Activations of one context."""
        return self.contexts.length * sum(self.hook_points.values()) * (2 if self.dtype == "float16" else 4)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Contexts [first, end) of each file."""
        count = max(1, FILE_BYTES // self.context_bytes)
        edges = [*range(0, len(self.contexts.starts), count), len(self.contexts.starts)]
        return [*pairwise(edges)]

    @property
    def facts(self) -> dict[str, Any]:
        """What decides every byte."""
        return {
            "format": "sae-lens",
            "store": self.source.fingerprint,
            "table": self.source.table_fingerprint,
            "model": self.source.record.identity.get("model"),
            "rows": {**selection.facts(self.spec.rows), "num_rows": self.rows.num_rows},
            "hook_points": self.hook_points,
            "dtype": self.dtype,
            "context_length": self.contexts.length,
            "num_contexts": len(self.contexts.starts),
            "num_rows_dropped": self.contexts.num_rows_dropped,
            "contexts_per_file": self.bounds[0][1],
        }


def prepare(spec: ExportSpec) -> CachedActivations:
    """Find the contexts: reads the tokens of all selected rows.

    Raises:
        SpecError: contexts of unlike lengths without ``short_contexts: drop``, or parts of contexts only; precision
        that would be lost without consent. HookPointError, MissingError, IncompleteError.
    """
    source = Store.open(spec.store)
    dtype: Dtype = "float32" if spec.dtype == "same" else spec.dtype
    require_consent(source.record, dtype, lossy=spec.lossy)
    hooks = {hook: source.hook_points[hook] for hook in chosen_hooks(source, spec)}
    rows = select(source, spec.rows)
    contexts = find_contexts(source, rows, drop_short=spec.short_contexts == "drop")
    return CachedActivations(spec, source, rows, hooks, dtype, contexts)


def find_contexts(source: Store, rows: RowSelection, *, drop_short: bool) -> Contexts:
    """Raises: SpecError."""
    starts, lengths = _runs(source, rows)
    if not len(starts):
        raise SpecError(
            f"no row of the export begins a context of the store at {source.url}; format sae-lens holds whole contexts"
        )
    length = int(lengths.max())
    whole = lengths == length
    dropped = rows.num_rows - int(whole.sum()) * length
    if dropped and not drop_short:
        raise SpecError(
            f"format sae-lens holds contexts of one length only, without padding. {int(whole.sum()):,} contexts have "
            f"{length} tokens, but {dropped:,} of {rows.num_rows:,} rows are in {int((~whole).sum()):,} shorter ones "
            "or in parts of contexts (ends of corpus parts, or documents of packing mode `document`). Leave those rows "
            "out with --drop-short-contexts, or collect with packing mode `packed`."
        )
    return Contexts(length, starts[whole], dropped)


def write(
    job: CachedActivations, *, begin: Callable[[int, int], None], advance: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write what is missing; what ``headworks.json`` says.

    ``begin`` is told how many rows there will be and how many are there already, ``advance`` rows and bytes of a file.

    Raises:
        MismatchError: the output holds another dataset. CorruptionError: of the source. ResourceError: disk full.
    """
    output = Objects(job.spec.output)
    facts = job.facts
    if not output.create(FACTS, to_bytes(facts)):
        found = parse(output.read(FACTS), f"{output.url}/{FACTS}")
        require_equal(facts, found, where=f"the dataset at {output.url}", remedy="Choose another output.")
    bounds = job.bounds
    keys = [f"data-{index:05d}-of-{len(bounds):05d}.arrow" for index in range(len(bounds))]
    there = output.sizes()
    length = job.contexts.length
    done = sum(end - first for key, (first, end) in zip(keys, bounds, strict=True) if key in there)
    missing = sum(end - first for key, (first, end) in zip(keys, bounds, strict=True) if key not in there)
    require_free(output, missing * job.context_bytes, f"{missing:,} contexts")
    begin(len(job.contexts.starts) * length, done * length)
    for key, (first, end) in zip(keys, bounds, strict=True):
        if key not in there:
            data = _encoded(job, first, end)
            output.write(key, data)
            advance((end - first) * length, len(data))
    info = {"citation": "", "description": "", "features": _features(job), "homepage": "", "license": ""}
    output.write(INFO, _json(info))
    output.write(CONFIG, _json(_config(job)))
    output.write(STATE, _json(_state(facts, keys)))
    return facts


def _runs(source: Store, rows: RowSelection) -> tuple[Rows, Rows]:
    """First rows (in the selection) and lengths of all runs of one context's rows, from its first on."""
    found: list[Rows] = []
    last = (-1, -1)
    for first in range(0, rows.num_rows, _SCAN_ROWS):
        chosen = rows.rows(first, min(first + _SCAN_ROWS, rows.num_rows))
        tokens = source.tokens(int(chosen[0]), int(chosen[-1]) + 1)
        place = chosen - chosen[0]
        context, position = tokens.context[place], tokens.position[place].astype(np.int64)
        goes_on = (np.diff(context, prepend=last[0]) == 0) & (np.diff(position, prepend=last[1]) == 1)
        breaks = np.flatnonzero(~goes_on)
        found.append(np.stack([first + breaks, position[breaks]]))
        last = int(context[-1]), int(position[-1])
    starts, positions = np.concatenate(found, axis=1)
    lengths = np.diff(starts, append=rows.num_rows)
    return starts[positions == 0], lengths[positions == 0]


def _encoded(job: CachedActivations, first: int, end: int) -> bytes:
    """An Arrow stream of contexts [first, end)."""
    schema = _schema(job)
    sink = pa.BufferOutputStream()
    batch = max(1, _BATCH_BYTES // job.context_bytes)
    with pa.ipc.new_stream(sink, schema) as stream:
        for start in range(first, end, batch):
            stream.write_batch(_batch(job, schema, start, min(start + batch, end)))
            job.source.release()
    return bytes(sink.getvalue())


def _batch(job: CachedActivations, schema: Any, first: int, end: int) -> Any:
    length = job.contexts.length
    starts = job.contexts.starts[first:end]
    rows = np.concatenate([job.rows.rows(int(start), int(start) + length) for start in starts])
    low, high = int(rows[0]), int(rows[-1]) + 1
    columns = []
    for hook, width in job.hook_points.items():
        values = narrowed(job.source.gather_values(hook, rows), job.dtype)
        columns.append(_nested(values.reshape(-1), width, length, len(starts)))
    token_ids = pa.array(job.source.tokens(low, high).token_id[rows - low])
    columns.append(pa.FixedSizeListArray.from_arrays(token_ids, length))
    return pa.record_batch(columns, schema=schema)


def _nested(values: Any, width: int, length: int, count: int) -> Any:
    """[count, length, width] as lists of lists, which is how ``datasets`` stores arrays of two dimensions."""
    inner = pa.ListArray.from_arrays(pa.array(np.arange(count * length + 1, dtype=np.int32) * width), pa.array(values))
    return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * length), inner)


def _schema(job: CachedActivations) -> Any:
    length = job.contexts.length
    values = pa.list_(pa.list_(pa.float16() if job.dtype == "float16" else pa.float32()))
    fields = [
        pa.field(
            hook,
            values,
            metadata={
                "ARROW:extension:name": _ARRAY_2D,
                "ARROW:extension:metadata": json.dumps([[length, width], job.dtype]),
            },
        )
        for hook, width in job.hook_points.items()
    ]
    fields.append(pa.field("token_ids", pa.list_(pa.int32(), length)))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": _features(job)}})})


def _features(job: CachedActivations) -> dict[str, Any]:
    length = job.contexts.length
    columns: dict[str, Any] = {
        hook: {"shape": [length, width], "dtype": job.dtype, "_type": "Array2D"}
        for hook, width in job.hook_points.items()
    }
    columns["token_ids"] = {"feature": {"dtype": "int32", "_type": "Value"}, "length": length, "_type": "List"}
    return columns


def _config(job: CachedActivations) -> dict[str, Any]:
    return runner_config(
        job.source.record,
        job.hook_points,
        dtype=job.dtype,
        context_length=job.contexts.length,
        num_contexts=len(job.contexts.starts),
        file_bytes=FILE_BYTES,
        output=job.spec.output,
    )


def _state(facts: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    return {
        "_data_files": [{"filename": key} for key in keys],
        "_fingerprint": fingerprint(facts)[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
