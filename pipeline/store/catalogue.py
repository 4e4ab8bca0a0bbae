"""The catalogue: every store below some URLs, found by listing folders and reading a few documents of each.

There is no index to keep true: a store is known by its ``zarr.json``, wherever it was copied to. Nothing below a
store, a token table or another program's Zarr group is listed, so the cost grows with the number of folders above
them, not with what they hold. What cannot be read is named among the rest and stops nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from pipeline.store import layout
from pipeline.store.leases import described, live_leases
from pipeline.store.ledger import in_order
from pipeline.store.log import StoreLog, log_key, opened_passes, planned_rows
from pipeline.store.manifests import read_manifest
from pipeline.store.objects import Objects
from pipeline.store.retention import DELETING, read_deletion, read_last_use, read_retention
from schemas.errors import HeadworksError, MismatchError, MissingError, SpecError
from schemas.retention import Retention
from schemas.snapshots import GROUP
from schemas.store import StoreRecord

MAX_DEPTH = 8
"""Folders below a URL in which stores are looked for."""
MAX_FOLDERS = 20_000
"""Folders that are listed for one URL; more of them means that the URL is too far above the stores."""

State = Literal["complete", "partial", "deleting", "damaged", "foreign"]

_TABLE = {"identity.json", "tokenizer.json"}
"""What a token table always has; its parts are many and no stores."""


@dataclass(frozen=True)
class StoreEntry:
    """What the catalogue knows of one store."""

    url: str
    state: State
    """``partial``: no manifest yet. ``deleting``: a deletion is under way or was killed. ``damaged``: a document cannot
    be read. ``foreign``: a Zarr group of another program."""
    problem: str = ""
    """What is wrong with a damaged or foreign one."""
    model: str = ""
    """Path or Hub name of the network, and the beginning of what identifies its weights."""
    corpus: str = ""
    """Where the text came from."""
    table_fingerprint: str = ""
    """Stores of one are row-aligned."""
    hook_points: dict[str, int] = field(default_factory=dict)
    """hook point -> d_model; of a partial store those that are being collected."""
    num_rows: int = 0
    """Of a partial store the rows that are planned."""
    dtype: str = ""
    layout: str = ""
    codec: str = ""
    size_bytes: int | None = None
    """None of a partial store: nobody has added it up."""
    created_s: float | None = None
    """When the first job opened it, by the storage's clock; None where the storage keeps no times."""
    last_used_s: float | None = None
    """When a job last said that it read it."""
    fingerprint: str = ""
    retention: Retention = field(default_factory=Retention)
    in_use_by: list[str] = field(default_factory=list)
    """Jobs that hold a lease."""
    group: str = ""
    """URL of the store group that it is in, empty of a store by itself."""

    @property
    def is_store(self) -> bool:
        """Known to be a store, in whatever state."""
        return self.state in ("complete", "partial", "deleting")


def find_stores(
    urls: Iterable[str], *, model: str = "", corpus: str = "", hook_point: str = "", fingerprint: str = "",
    max_depth: int = MAX_DEPTH,
) -> Iterator[StoreEntry]:  # fmt: skip
    """Every store at or below the URLs, in order of folders, each once; what cannot be read is among them.

    ``model`` and ``corpus`` are part of the name (any case) or the beginning of the digest; ``hook_point`` is a name or
    a pattern (``blocks.*.hook_resid_post``); ``fingerprint`` is the beginning of the store's. Damaged and foreign
    groups pass every filter, since what they hold is not known.

    Raises:
        MissingError: nothing is at a URL. SpecError: more than ``MAX_FOLDERS`` folders are below one.
    """
    seen: set[str] = set()
    for url in urls:
        for entry in _below(Objects(url), max_depth):
            if entry.url not in seen and _matches(entry, model, corpus, hook_point, fingerprint):
                seen.add(entry.url)
                yield entry


def entry_of(objects: Objects) -> StoreEntry:
    """What the documents of the store at hand say; raises nothing that they can be the cause of."""
    try:
        return _foreign_array(objects) or _entry(objects)
    except (MismatchError, MissingError) as error:
        return StoreEntry(objects.url, "foreign", problem=str(error))
    except HeadworksError as error:
        return StoreEntry(objects.url, "damaged", problem=str(error))


def _below(root: Objects, max_depth: int) -> Iterator[StoreEntry]:
    """Level by level, so that the folders of one level are listed side by side where the storage is remote."""
    level, num_listed, found_any = [""], 0, False
    groups: set[str] = set()
    for depth in range(max_depth + 1):
        num_listed += len(level)
        if num_listed > MAX_FOLDERS:
            raise SpecError(f"more than {MAX_FOLDERS} folders are below {root.url}: give URLs nearer to the stores")
        following: list[str] = []
        stores: list[str] = []
        for folder, (files, folders) in zip(level, in_order(root, root.children, level), strict=True):
            found_any = found_any or bool(files or folders)
            if GROUP in files:
                groups.add(folder)
            if {layout.ROOT, DELETING} & {*files}:
                stores.append(folder)
            elif not {*files} >= _TABLE:
                following += [f"{folder}/{name}".lstrip("/") for name in folders if not name.startswith(".")]
        if depth == 0 and not found_any:
            raise MissingError(f"there is nothing at {root.url}; check the path")
        entries = in_order(root, entry_of, [root.at(folder) if folder else root for folder in stores])
        for folder, entry in zip(stores, entries, strict=True):
            above = folder.rpartition("/")[0]
            is_member = bool(folder) and above in groups
            yield replace(entry, group=root.at(above).url if above else root.url) if is_member else entry
        level = following


def _foreign_array(objects: Objects) -> StoreEntry | None:
    """A Zarr array at the root, which a store never has; None of anything else."""
    facts = layout.read_document(objects, layout.ROOT) or {}
    if facts.get("node_type") != "array":
        return None
    return StoreEntry(objects.url, "foreign", problem="a Zarr array of another program, expected the group of a store")


def _entry(objects: Objects) -> StoreEntry:
    if (deletion := read_deletion(objects)) is not None:
        return StoreEntry(objects.url, "deleting", problem=deletion.reason, fingerprint=deletion.fingerprint)
    record = layout.read_record(objects)
    events = StoreLog(objects).read()
    last_use = read_last_use(objects)
    try:
        manifest = read_manifest(objects, record)
    except MissingError:
        manifest = None
    hooks = {hook: width for one in opened_passes(events).values() for hook, width in one.hook_points.items()}
    return StoreEntry(
        url=objects.url,
        state="complete" if manifest else "partial",
        model=_model_name(record),
        corpus=_corpus_name(record),
        table_fingerprint=record.table_fingerprint,
        hook_points=manifest.hook_points if manifest else hooks,
        num_rows=manifest.num_rows if manifest else planned_rows(events),
        dtype=record.dtype,
        layout=record.layout,
        codec=record.codec,
        size_bytes=manifest.size_bytes if manifest else None,
        created_s=objects.times(log_key(0)).get(log_key(0)),
        last_used_s=last_use.time if last_use else None,
        fingerprint=record.fingerprint,
        retention=read_retention(objects),
        in_use_by=[described(lease) for lease in live_leases(objects)],
    )


def _model_name(record: StoreRecord) -> str:
    """``path@digits``: the path that the job named, and what identifies the weights wherever they lie."""
    model = record.identity.get("model")
    facts = model if isinstance(model, dict) else {"path": str(model or "")}
    named = record.spec.get("model", {}).get("path") or facts.get("path", "")
    digest = str(facts.get("weights") or facts.get("revision") or "")
    return str(named) + (f"@{digest[:12]}" if digest else "")


def _corpus_name(record: StoreRecord) -> str:
    corpus = record.spec.get("tokens", {}).get("corpus", {})
    if corpus.get("path"):
        return ":".join(str(corpus[part]) for part in ("path", "config", "split") if corpus.get(part))
    if corpus.get("grammar"):
        return f"{corpus['grammar']['kind']}, seed {corpus['seed']}"
    return ", ".join(map(str, corpus.get("urls", [])))


def _matches(entry: StoreEntry, model: str, corpus: str, hook_point: str, fingerprint: str) -> bool:
    if entry.state in ("damaged", "foreign"):
        return True
    return (
        model.lower() in entry.model.lower()
        and (corpus.lower() in entry.corpus.lower() or entry.table_fingerprint.startswith(corpus.lower()))
        and (not hook_point or any(fnmatchcase(hook, hook_point) for hook in entry.hook_points))
        and entry.fingerprint.startswith(fingerprint.lower())
    )
