"""What a store says of itself: group attributes, ledger entries, manifest. Written as JSON, read by anybody."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from schemas.fields import Codec, Dtype, Layout, Spec

STORE_FORMAT = 1


class Quantiles(Spec):
    """A mergeable sketch of row norms: counts in fixed logarithmic bins, so that merging is exact addition."""

    counts: dict[int, int]
    """bin -> number of rows whose L2 norm lies in [2**(bin/64), 2**((bin+1)/64)); bin -10000 counts zero norms."""


class Rounding(Spec):
    """What a lossy dtype lost, summed over the finite rows before they were rounded."""

    square_error_sum: float
    """Sum over rows and channels of (stored value - value)^2."""
    square_norm_sum: float
    """Sum over rows and channels of value^2."""


class OutlierToken(Spec):
    """A row of great norm."""

    row: NonNegativeInt
    """Index in the store."""
    token_id: NonNegativeInt
    """The token there."""
    norm: float
    """L2 norm of the row as stored."""


class NonFiniteRows(Spec):
    """Rows of one unit that hold what is not a number."""

    num_nan: NonNegativeInt
    """Rows with a NaN."""
    num_inf: NonNegativeInt
    """Rows with an infinity and no NaN."""


class HookStatistics(Spec):
    """Mergeable statistics of one hook point over some rows, of finite rows only."""

    count: NonNegativeInt
    """Rows counted, the finite ones."""
    mean: list[float]
    """Per channel, [d_model], float64."""
    m2: list[float]
    """Per channel sum of squared deviations from the mean, [d_model], float64 (Chan et al. merge)."""
    norm_sum: float
    """Sum of the rows' L2 norms."""
    square_norm_sum: float
    """Sum of the rows' squared L2 norms."""
    norms: Quantiles
    """Distribution of the rows' norms."""
    num_nan: NonNegativeInt = 0
    """Rows with a NaN."""
    num_inf: NonNegativeInt = 0
    """Rows with an infinity and no NaN."""
    rounding: Rounding | None = None
    """What storing the rows lost, of a lossy store or an export that rounded; None where nothing was."""
    max_outliers: NonNegativeInt = 0
    """How many rows ``outliers`` names at most."""
    outliers: list[OutlierToken] = []
    """The rows of greatest norm, greatest first, of equal norms the lower row first."""


class ObjectReceipt(Spec):
    """One object that a unit wrote."""

    key: str
    """Path relative to the store's root."""
    size_bytes: NonNegativeInt
    """Exact length."""
    crc32c: str
    """8 hexadecimal digits. Token rows and Arrow files: CRC-32C of the whole object. Zarr shards: CRC-32C of
    their ``chunk_crc32c``, each as 4 little-endian bytes (data followed by its own CRC has one CRC whatever it is)."""
    chunk_crc32c: list[str] = []
    """CRC-32C of each chunk as stored, in order, so that a reader of one chunk need not read the others."""
    chunk_offsets: list[NonNegativeInt] = []
    """Arrow files: where each chunk, the body of a record batch, begins, so that a reader need not trust the footer."""


class LedgerEntry(Spec):
    """``ledger/PASS/UNIT.json``: written last and put-if-absent; a unit exists when this does."""

    format: Literal[1] = 1
    """Store format."""
    store_fingerprint: str
    """The store's identity."""
    pass_id: str
    """The hook points that were collected together, see ``PassRecord``."""
    unit: NonNegativeInt
    """Index of the unit: rows [unit * shard_rows, min(rows, (unit + 1) * shard_rows))."""
    start_row: NonNegativeInt
    """First row."""
    num_rows: PositiveInt
    """Rows in this unit."""
    objects: dict[str, ObjectReceipt]
    """hook point, ``tokens`` or ``comoments/HOOK`` -> the object that holds it."""
    statistics: dict[str, HookStatistics]
    """hook point -> statistics of this unit's rows."""
    worker: str
    """Who wrote it, for people."""
    attempt: NonNegativeInt
    """Which attempt at the unit this was."""
    seconds: dict[str, float] = {}
    """Time spent by stage (forward, encode, write), for people; not deterministic."""


class PassRecord(Spec):
    """``passes/PASS.json``: which hook points one collection adds. PASS = first 16 digits of its fingerprint."""

    hook_points: dict[str, int]
    """hook point -> d_model."""
    batch_tokens: PositiveInt
    """Tokens in a forward pass."""
    covariance: bool = False
    """Whether every unit has the co-moments of its channels as an object of its own."""
    outlier_tokens: NonNegativeInt = 0
    """Rows of greatest norm that the statistics name for each hook point."""
    tensor_parallel: PositiveInt = 1
    """Processes over which every matrix product was split; more than one changes low bits."""


class Shuffled(Spec):
    """Where the rows of a shuffled store come from."""

    store_fingerprint: str
    """Identity of the store that was shuffled."""
    store_url: str
    """Where it was; a hint."""
    table_fingerprint: str
    """Its token table, or that of the store which it is an export of: ``source_row`` of the token rows is a row of
    that."""
    seed: NonNegativeInt
    """Seed of the order."""


class Exported(Spec):
    """Where the rows of an exported store come from."""

    store_fingerprint: str
    """Identity of the store that was exported."""
    store_url: str
    """Where it was; a hint."""
    table_fingerprint: str
    """Its token table. Where the record's own is another, the export has a part of the rows, and ``source_row`` of the
    token rows is a row of this one."""
    value_dtype: Dtype
    """The least lossless precision that holds every value: what can be exported to it loses nothing."""
    spec: dict[str, Any]
    """The export that made the store; the record's own ``spec`` is still that of the collection."""


class StoreRecord(Spec):
    """Attributes ``headworks`` of the root group's ``zarr.json``."""

    format: Literal[1] = 1
    """Store format; a reader refuses a newer one."""
    fingerprint: str
    """SHA-256 of ``identity``."""
    identity: dict[str, Any]
    """What decides the bytes: model, token table, storage. Hook points are named by the passes."""
    table_fingerprint: str
    """The token table whose rows these are; stores of equal table fingerprint are row-aligned."""
    layout: Layout = "zarr"
    """How the objects are encoded."""
    dtype: Dtype
    """Stored precision."""
    lossy: bool = False
    """Rows are rounded coarsely and have a scale each: ``dtype`` is int8 or float8_e4m3."""
    chunk_rows: PositiveInt
    """Rows in a chunk."""
    shard_rows: PositiveInt
    """Rows in a shard, that is in a unit."""
    codec: Codec
    """Codec of the chunks."""
    table_url: str
    """Where the token table was when the store was made; a hint, the store has its own copy of the tokens."""
    specials: dict[str, int]
    """Special tokens by role (``bos``, ``eos``, ``pad``, ...) -> token id, so that readers can leave them out."""
    spec: dict[str, Any]
    """The job spec that made the store, to recompute any unit."""
    versions: dict[str, str]
    """Versions of headworks, torch, transformers, zarr."""
    shuffled: Shuffled | None = None
    """None where the rows are in the order of a token table: contexts are whole, neighbours belong together."""
    exported: Exported | None = None
    """None of a store that was collected or shuffled."""


class Manifest(Spec):
    """``manifest.json``: written when every planned unit of every pass exists."""

    format: Literal[1] = 1
    """Store format."""
    fingerprint: str
    """The store's identity."""
    num_rows: NonNegativeInt
    """Rows of every array."""
    num_units: NonNegativeInt
    """Units of every pass."""
    passes: list[str]
    """Pass ids that are complete."""
    hook_points: dict[str, int]
    """hook point -> d_model."""
    size_bytes: NonNegativeInt
    """Bytes of all objects that the ledger names."""
    ledger_digest: str
    """SHA-256 over pass, unit and the objects' keys, sizes and checksums, in order."""
    statistics: dict[str, HookStatistics]
    """hook point -> statistics of all rows."""
    non_finite: dict[str, dict[int, NonFiniteRows]] = {}
    """hook point -> unit -> its rows with NaN or infinity; only units that have any, only hook points with such."""
    covariances: dict[str, ObjectReceipt] = {}
    """hook point -> the object with its covariance over all rows; only of passes with ``covariance``."""


class PassOpened(Spec):
    """An event of the store's log: a job collects these hook points over so many rows. The first to name one owns
    it."""

    event: Literal["pass_opened"] = "pass_opened"
    """Discriminator."""
    pass_record: PassRecord
    """The hook points."""
    num_rows: PositiveInt
    """Rows that the job plans."""


class RowsComplete(Spec):
    """An event of the store's log: the store shows these passes over so many rows. The last one counts."""

    event: Literal["rows_complete"] = "rows_complete"
    """Discriminator."""
    num_rows: PositiveInt
    """Rows of every array that the manifest names."""
    passes: tuple[str, ...]
    """Pass ids that are complete over them, ascending."""


class LogEntry(Spec):
    """``log/NUMBER8.json``: an event of the store's log, and its place in it."""

    number: NonNegativeInt
    """As in the key."""
    event: Annotated[PassOpened | RowsComplete, Field(discriminator="event")]
    """What happened."""
