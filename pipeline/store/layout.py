"""Where everything lies in a store, in either layout, and the metadata documents that describe its arrays.

``zarr``: each hook point is a Zarr v3 array, and so are the scales of a lossy store; any Zarr v3 reader opens them.
``arrow``: each unit of a hook point is an Arrow file; ``array.json`` says how many rows there are in all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.store.documents import parse, sealed, unsealed
from pipeline.store.objects import Objects
from pipeline.store.shard import Geometry
from pipeline.store.words import stored_dtype
from schemas.errors import CorruptionError, MismatchError, MissingError
from schemas.fingerprint import fingerprint
from schemas.snapshots import GROUP
from schemas.store import STORE_FORMAT, PassRecord, StoreRecord

ROOT = "zarr.json"
MANIFEST = "manifest.json"
TOKENS = "tokens"
"""The name that a ledger entry gives to the object of the unit's token rows."""

_ZARR_TYPES = {
    "bfloat16": "uint16",
    "float16": "float16",
    "float32": "float32",
    "int8": "int8",
    "float8_e4m3": "uint8",
}
_SCALE = np.dtype("<f4")


def pass_id(record: PassRecord) -> str:
    """The first 16 digits of the pass's fingerprint."""
    return fingerprint(record.model_dump(mode="json"))[:16]


def pass_key(pass_: str) -> str:
    return f"passes/{pass_}.json"


def array_key(record: StoreRecord, hook: str) -> str:
    """The document that gives a hook point its shape and its pass."""
    return f"activations/{hook}/{'zarr' if record.layout == 'zarr' else 'array'}.json"


def scales_name(hook: str) -> str:
    """The name that a ledger entry gives to the object of the scales, of a lossy store in layout ``zarr``."""
    return f"scales/{hook}"


def unit_keys(record: StoreRecord, hook: str, unit: int) -> dict[str, str]:
    """Name in the ledger entry -> key of each object that holds the hook point's rows of a unit.

    Zarr's own keys are those of chunk (unit, 0) of the array and chunk (unit) of the scales.
    """
    if record.layout == "arrow":
        return {hook: f"activations/{hook}/{unit}.arrow"}
    keys = {hook: f"activations/{hook}/c/{unit}/0"}
    return keys | {scales_name(hook): f"scales/{hook}/c/{unit}"} if record.lossy else keys


def tokens_key(unit: int) -> str:
    return f"tokens/{unit:08d}.parquet"


def ledger_folder(pass_: str) -> str:
    return f"ledger/{pass_}/"


def ledger_key(pass_: str, unit: int) -> str:
    return f"{ledger_folder(pass_)}{unit:08d}.json"


def unit_of_ledger_key(key: str) -> int:
    """Raises CorruptionError for a key that ``ledger_key`` never makes."""
    name = key.rpartition("/")[2]
    digits = name.removesuffix(".json")
    if not (name.endswith(".json") and digits.isdecimal() and len(digits) >= 8):
        raise CorruptionError(f"{key}: expected a ledger entry UNIT.json, got another name")
    return int(digits)


def num_units(num_rows: int, shard_rows: int) -> int:
    return -(-num_rows // shard_rows)


def unit_rows(unit: int, num_rows: int, shard_rows: int) -> tuple[int, int]:
    """Rows [start, stop) of a unit; the last one may be short."""
    return unit * shard_rows, min(num_rows, (unit + 1) * shard_rows)


def geometry(record: StoreRecord, width: int) -> Geometry:
    """What the bytes of a shard with D = width mean."""
    return Geometry(record.chunk_rows, record.shard_rows, width, stored_dtype(record.dtype), record.codec)


def scale_geometry(record: StoreRecord) -> Geometry:
    """The same of a shard of scales, one float32 for each row."""
    return Geometry(record.chunk_rows, record.shard_rows, 1, _SCALE, record.codec)


def plain_groups(record: StoreRecord) -> list[str]:
    """Keys of the Zarr groups without attributes."""
    if record.layout == "arrow":
        return []
    return ["activations/zarr.json", *(["scales/zarr.json"] if record.lossy else [])]


def group_metadata(record: StoreRecord | None) -> dict[str, Any]:
    """Of the root (with its record) or of a plain group."""
    attributes = {"headworks": sealed(record)} if record else {}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def array_documents(record: StoreRecord, hook: str, width: int, num_rows: int, pass_: str) -> dict[str, dict[str, Any]]:
    """Key -> document of each array that a hook point with D = width has; the first is ``array_key``."""
    if record.layout == "arrow":
        facts = {"shape": [num_rows, width], "chunk_rows": record.chunk_rows, "shard_rows": record.shard_rows}
        return {array_key(record, hook): {**facts, "attributes": attributes(record, hook, pass_)}}
    documents = {array_key(record, hook): array_metadata(record, hook, width, num_rows, pass_)}
    if record.lossy:
        shape, shard, chunk = [num_rows], [record.shard_rows], [record.chunk_rows]
        facts = _zarr_array(record, shape, shard, chunk, _SCALE, "float32", {"hook_point": hook, "pass_id": pass_})
        documents[f"scales/{hook}/zarr.json"] = facts
    return documents


def attributes(record: StoreRecord, hook: str, pass_: str) -> dict[str, str]:
    """What an array, or an Arrow file, says of itself."""
    return {"logical_dtype": record.dtype, "hook_point": hook, "pass_id": pass_}


def array_metadata(record: StoreRecord, hook: str, width: int, num_rows: int, pass_: str) -> dict[str, Any]:
    """Zarr v3 metadata of one hook point's array [num_rows, width]."""
    shape, shard, chunk = [num_rows, width], [record.shard_rows, width], [record.chunk_rows, width]
    stored, zarr_type = stored_dtype(record.dtype), _ZARR_TYPES[record.dtype]
    return _zarr_array(record, shape, shard, chunk, stored, zarr_type, attributes(record, hook, pass_))


def _zarr_array(
    record: StoreRecord,
    shape: list[int],
    shard: list[int],
    chunk: list[int],
    dtype: np.dtype[Any],
    zarr_type: str,
    named: dict[str, str],
) -> dict[str, Any]:
    """Core codecs only, unless the store's codec is this package's own."""
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    # Words of one byte have no order: Zarr leaves the configuration out.
    inner: list[dict[str, Any]] = [little if dtype.itemsize > 1 else {"name": "bytes"}]
    if record.codec in ("bf16", "sparse"):
        inner = [{"name": f"headworks.{record.codec}"}]
    if record.codec == "zstd":
        blosc = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "blocksize": 0}
        inner.append({"name": "blosc", "configuration": {**blosc, "typesize": dtype.itemsize}})
    sharding = {
        "chunk_shape": chunk,
        "codecs": [*inner, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": zarr_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": named,
    }


def read_record(objects: Objects) -> StoreRecord:
    """The record in the root group.

    Raises:
        MissingError: no store here. MismatchError: a Zarr group of another program, or a newer format.
        CorruptionError: the record was altered.
    """
    where = f"{objects.url}/{ROOT}"
    try:
        data = objects.read(ROOT)
    except MissingError as exc:
        what = f"{ROOT} is not there"
        if objects.exists(GROUP):
            what = f"it is a group of stores, name one of the folders that its {GROUP} lists"
        raise MissingError(f"there is no activation store at {objects.url}: {what}") from exc
    group = parse(data, where)
    if (group.get("zarr_format"), group.get("node_type")) != (3, "group"):
        raise CorruptionError(f"{where}: expected the metadata of a Zarr v3 group, got {sorted(group)}")
    attributes = group.get("attributes")
    facts = attributes.get("headworks") if isinstance(attributes, dict) else None
    if not isinstance(facts, dict):
        raise MismatchError(f"{where} is a Zarr group that Headworks did not make: it has no attribute 'headworks'")
    require_known_format(facts, where)
    record = unsealed(facts, StoreRecord, where)
    expected = fingerprint(record.identity)
    if record.fingerprint != expected:
        raise CorruptionError(f"{where}: expected the fingerprint {expected} of its identity, got {record.fingerprint}")
    return record


def require_known_format(facts: dict[str, Any], where: str) -> None:
    """Refuse documents of a later format before their unknown fields are judged."""
    found = facts.get("format")
    if isinstance(found, int) and found > STORE_FORMAT:
        raise MismatchError(
            f"{where} has store format {found}, this version of Headworks reads up to {STORE_FORMAT}: upgrade Headworks"
        )


def read_pass(objects: Objects, pass_: str) -> PassRecord:
    """Raises MissingError, CorruptionError (altered, or under another pass's name)."""
    where = f"{objects.url}/{pass_key(pass_)}"
    record = unsealed(parse(objects.read(pass_key(pass_)), where), PassRecord, where)
    if pass_id(record) != pass_:
        raise CorruptionError(f"{where}: expected the pass {pass_}, got {pass_id(record)}")
    return record


def read_passes(objects: Objects) -> dict[str, PassRecord]:
    """pass id -> record of every pass that was ever opened for writing, complete or not."""
    ids = [key.removeprefix("passes/").removesuffix(".json") for key in objects.list("passes/")]
    return {pass_: read_pass(objects, pass_) for pass_ in ids}


def read_array(objects: Objects, record: StoreRecord, hook: str) -> dict[str, Any] | None:
    """The document ``array_key`` of a hook point, or None where there is none.

    Raises:
        CorruptionError: it has no shape of two numbers, or no attributes.
    """
    facts = read_document(objects, array_key(record, hook))
    if facts is None:
        return None
    where = f"{objects.url}/{array_key(record, hook)}"
    shape = facts.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(size, int) for size in shape)):
        raise CorruptionError(f"{where}: expected a shape of two numbers, got {shape!r}")
    if not isinstance(facts.get("attributes"), dict):
        raise CorruptionError(f"{where}: expected attributes, got {facts.get('attributes')!r}")
    return facts


def read_document(objects: Objects, key: str) -> dict[str, Any] | None:
    """Any JSON object of the store, or None where there is none. Raises CorruptionError."""
    try:
        return parse(objects.read(key), f"{objects.url}/{key}")
    except MissingError:
        return None
