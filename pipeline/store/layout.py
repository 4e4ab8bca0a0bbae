"""Where everything lies in a store, and the Zarr metadata that lets any Zarr v3 reader open its arrays."""

from __future__ import annotations

from typing import Any

from pipeline.store.documents import parse, sealed, unsealed
from pipeline.store.objects import Objects
from pipeline.store.shard import Geometry
from pipeline.store.words import stored_dtype
from schemas.errors import CorruptionError, MismatchError, MissingError
from schemas.fingerprint import fingerprint
from schemas.store import STORE_FORMAT, PassRecord, StoreRecord

ROOT = "zarr.json"
ACTIVATIONS = "activations/zarr.json"
MANIFEST = "manifest.json"
TOKENS = "tokens"
"""The name that a ledger entry gives to the object of the unit's token rows."""

_ZARR_TYPES = {"bfloat16": "uint16", "float16": "float16", "float32": "float32"}


def pass_id(record: PassRecord) -> str:
    """The first 16 digits of the pass's fingerprint."""
    return fingerprint(record.model_dump(mode="json"))[:16]


def pass_key(pass_: str) -> str:
    return f"passes/{pass_}.json"


def array_key(hook: str) -> str:
    return f"activations/{hook}/zarr.json"


def shard_key(hook: str, unit: int) -> str:
    """Zarr's own key of the shard: chunk (unit, 0) in the default key encoding."""
    return f"activations/{hook}/c/{unit}/0"


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


def group_metadata(record: StoreRecord | None) -> dict[str, Any]:
    """Of the root (with its record) or of the plain group ``activations``."""
    attributes = {"headworks": sealed(record)} if record else {}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def array_metadata(record: StoreRecord, hook: str, width: int, num_rows: int, pass_: str) -> dict[str, Any]:
    """Zarr v3 metadata of one hook point's array [num_rows, width]: core codecs only."""
    inner: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if record.codec == "zstd":
        blosc = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "blocksize": 0}
        inner.append({"name": "blosc", "configuration": {**blosc, "typesize": stored_dtype(record.dtype).itemsize}})
    sharding = {
        "chunk_shape": [record.chunk_rows, width],
        "codecs": [*inner, {"name": "crc32c"}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [num_rows, width],
        "data_type": _ZARR_TYPES[record.dtype],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [record.shard_rows, width]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {"logical_dtype": record.dtype, "hook_point": hook, "pass_id": pass_},
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
        raise MissingError(f"there is no activation store at {objects.url}: {ROOT} is not there") from exc
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


def read_array(objects: Objects, hook: str) -> dict[str, Any] | None:
    """Metadata of the hook point's array, or None where there is none.

    Raises:
        CorruptionError: it has no shape of two numbers, or no attributes.
    """
    try:
        data = objects.read(array_key(hook))
    except MissingError:
        return None
    where = f"{objects.url}/{array_key(hook)}"
    facts = parse(data, where)
    shape = facts.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(size, int) for size in shape)):
        raise CorruptionError(f"{where}: expected a shape of two numbers, got {shape!r}")
    if not isinstance(facts.get("attributes"), dict):
        raise CorruptionError(f"{where}: expected attributes, got {facts.get('attributes')!r}")
    return facts
