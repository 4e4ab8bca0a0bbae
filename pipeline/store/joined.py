"""Several stores of one token table, read as one: several models, or snapshots of one training, over the same text.

Row r of every store is token r of the table, so nothing is copied or matched: hook point ``NAME/HOOK`` is hook point
HOOK of the store NAME. Stores of other tables are refused, with the field in which the tables differ. Of stores with
different numbers of rows the rows that all have are read: a table's rows have one order, so they are its first.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store import layout
from pipeline.store.group import member_urls, read_group
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.rows import TokenRows
from pipeline.store.words import Floats, Words
from schemas.errors import (
    HeadworksError,
    HookPointError,
    IncompleteError,
    MismatchError,
    MissingError,
    SpecError,
    nearest,
)
from schemas.fields import Dtype, is_name
from schemas.fingerprint import differences, fingerprint
from schemas.store import HookStatistics, StoreRecord

_NO_PART_OF_A_TABLE = {"max_tokens", "output"}


class JoinedStore:
    """What a feed and a training need of a store, over several. Safe to use from several threads; pickling it carries
    names and URLs and opens them anew."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        """The first store named gives the order of rows and the tokens.

        Raises:
            SpecError: no store, or a name that no hook point can begin with.
            MismatchError: the stores have different token tables; names the field.
        """
        if not stores or not all(is_name(name) for name in stores):
            raise SpecError(f"expected stores under names of letters, digits, '_', '.' and '-', got {[*stores]}")
        self.stores = dict(stores)
        first = next(iter(stores.values()))
        for name, store in stores.items():
            _require_one_table(next(iter(stores)), first, name, store)
        self.num_rows = min(store.num_rows for store in stores.values())
        """Rows that all stores have."""
        self.hook_points = {
            f"{name}/{hook}": width for name, store in stores.items() for hook, width in store.hook_points.items()
        }
        """``NAME/HOOK`` -> d_model."""
        dtypes = {store.dtype for store in stores.values()}
        self._mixed = len(dtypes) > 1
        self.dtype: Dtype = "float32" if self._mixed else dtypes.pop()
        """That of all stores; float32 where they have different ones, whose rows are then read as values."""
        self.record = _record(self.stores, self.dtype)
        """The first store's, with the identities of all."""

    @classmethod
    def open(cls, urls: Mapping[str, str] | Sequence[str], *, allow_partial: bool = False) -> JoinedStore:
        """Stores by name; of a list each has the last part of its URL for a name. ``allow_partial``: as ``Store.open``.

        Raises: as the constructor and ``Store.open``. SpecError: two stores of a list have one name.
        """
        named = dict(urls) if isinstance(urls, Mapping) else {_name_of(url): url for url in urls}
        if len(named) < len(urls):
            raise SpecError(f"two of these stores have the same last part, give them names ({{'a': URL}}): {[*urls]}")
        return cls({name: Store.open(url, allow_partial=allow_partial) for name, url in named.items()})

    def __reduce__(self) -> tuple[object, tuple[dict[str, str], bool]]:
        is_partial = any(store.manifest is None for store in self.stores.values())
        return _reopen, ({name: store.url for name, store in self.stores.items()}, is_partial)

    @property
    def url(self) -> str:
        """All URLs, for messages."""
        return ", ".join(f"{name}: {store.url}" for name, store in self.stores.items())

    @property
    def objects(self) -> Objects:
        """Of the store that is slowest to reach: whether reads should overlap."""
        places = [store.objects for store in self.stores.values()]
        return next((place for place in places if not place.is_local), places[0])

    @property
    def first(self) -> Store:
        """The store that gives the tokens."""
        return next(iter(self.stores.values()))

    @property
    def num_units(self) -> int:
        """Units of the first store that hold common rows."""
        return layout.num_units(self.num_rows, self.record.shard_rows)

    @property
    def fingerprint(self) -> str:
        """Of names and stores: what the order of rows and a training depend on."""
        return self.record.fingerprint

    @property
    def table_fingerprint(self) -> str:
        """The one token table."""
        return self.record.table_fingerprint

    @property
    def statistics(self) -> dict[str, HookStatistics]:
        """``NAME/HOOK`` -> statistics of all rows of that store, also of those that another store lacks."""
        return {f"{name}/{hook}": one for name, store in self.stores.items() for hook, one in store.statistics.items()}

    def read_rows(self, hook: str, start: int, stop: int) -> Words:
        """As ``Store.read_rows``; float32 values where the stores have different dtypes."""
        store, inner = self._of(hook)
        self._require_rows(start, stop)
        return store.read_values(inner, start, stop) if self._mixed else store.read_rows(inner, start, stop)

    def read_values(self, hook: str, start: int, stop: int) -> Floats:
        """As ``Store.read_values``."""
        store, inner = self._of(hook)
        self._require_rows(start, stop)
        return store.read_values(inner, start, stop)

    def gather_values(self, hook: str, rows: npt.NDArray[np.int64]) -> Floats:
        """As ``Store.gather_values``."""
        store, inner = self._of(hook)
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows):
            self._require_rows(int(rows.min()), int(rows.max()) + 1)
        return store.gather_values(inner, rows)

    def tokens(self, start: int = 0, stop: int | None = None) -> TokenRows:
        """Token rows [start, stop), the same of every store; all common rows by default."""
        stop = self.num_rows if stop is None else stop
        self._require_rows(start, stop)
        return self.first.tokens(start, stop)

    def _of(self, hook: str) -> tuple[Store, str]:
        if hook not in self.hook_points:
            raise HookPointError(
                f"{self.url} have no hook point {hook!r}{nearest(hook, self.hook_points)} "
                f"They have: {', '.join(self.hook_points)}"
            )
        name, _, inner = hook.partition("/")
        return self.stores[name], inner

    def _require_rows(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_rows:
            raise SpecError(f"rows [{start}, {stop}) are not within the {self.num_rows} rows that {self.url} all have")

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(store.url)}</td><td>{store.num_rows:,}</td>"
            f"<td>{html.escape(', '.join(store.hook_points))}</td></tr>"
            for name, store in self.stores.items()
        )
        return (
            f"<p>{self.num_rows:,} rows that all have, token table {self.table_fingerprint[:16]}</p>"
            f"<table><tr><th>name</th><th>store</th><th>rows</th><th>hook points</th></tr>{rows}</table>"
        )


AnyStore = Store | JoinedStore
"""What rows are read from."""


def first_of(store: AnyStore) -> Store:
    """The store itself, or the one of several that gives the tokens: its record tells how they were made."""
    return store.first if isinstance(store, JoinedStore) else store


def open_any(
    source: str | Mapping[str, str] | Sequence[str],
    points: Iterable[str] | None = None,
    *,
    allow_partial: bool = False,
) -> AnyStore:
    """The store at a URL, several as one, or the group at a URL: of that only the members of which ``points`` name
    something, if given, so that what others have or lack changes nothing.

    ``allow_partial``: as ``Store.open``; of a group those stores that have been begun.

    Raises: as ``Store.open`` and ``JoinedStore.open``. IncompleteError: a group whose collection has not ended.
    """
    if not isinstance(source, str):
        return JoinedStore.open(source, allow_partial=allow_partial)
    try:
        return Store.open(source, allow_partial=allow_partial)
    except MissingError:
        if (urls := group_urls(source)) is None:
            raise
    if allow_partial:
        chosen = {name: url for name, url in urls.items() if Objects(url).exists(layout.ROOT)}
    else:
        wanted = {point.partition("/")[0] for point in points} if points is not None else {*urls}
        chosen = {name: url for name, url in urls.items() if name in wanted}
    try:
        # Where nothing is chosen all are opened: the caller says what is missing and what there is.
        return JoinedStore.open(chosen or urls, allow_partial=allow_partial)
    except (MissingError, IncompleteError) as error:
        raise IncompleteError(
            f"the store group at {source} is not complete: {error}. Run its collect job again, which goes on where it "
            "stopped"
        ) from error


def group_urls(url: str) -> dict[str, str] | None:
    """Name -> URL of each store of the group at ``url``, in order; None where there is no group."""
    objects = Objects(url)
    record = read_group(objects)
    return None if record is None else member_urls(objects, record)


def store_urls(source: str | Mapping[str, str]) -> list[str]:
    """Every single store that ``open_any`` reads."""
    if not isinstance(source, str):
        return [*source.values()]
    members = None if Objects(source).exists(layout.ROOT) else group_urls(source)
    return [source] if members is None else [*members.values()]


def _reopen(urls: dict[str, str], allow_partial: bool) -> JoinedStore:
    return JoinedStore.open(urls, allow_partial=allow_partial)


def _name_of(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def _record(stores: Mapping[str, Store], dtype: Dtype) -> StoreRecord:
    identity = {
        "stores": {name: store.fingerprint for name, store in stores.items()},
        "model": {name: store.record.identity.get("model", {}) for name, store in stores.items()},
    }
    facts = {
        "identity": identity,
        "fingerprint": fingerprint(identity),
        "dtype": dtype,
        "lossy": all(store.record.lossy for store in stores.values()),
        "spec": {},
    }
    return next(iter(stores.values())).record.model_copy(update=facts)


def _require_one_table(first_name: str, first: Store, name: str, store: Store) -> None:
    if store.table_fingerprint == first.table_fingerprint:
        return
    lines = [
        f"  {field}: {first_name} has {ours!r}, {name} has {theirs!r}"
        for field, ours, theirs in differences(*_table_facts(first.record, store.record))
    ]
    lines = lines or ["  the text of the corpus, or the tokenizer, has changed between the two"]
    raise MismatchError(
        f"{first_name} ({first.url}) and {name} ({store.url}) are of different token tables, so row r of one is not "
        "row r of the other:\n" + "\n".join(lines[:8]) + "\nCollect one of them over the other's table (tokens.output)."
    )


def _table_facts(one: StoreRecord, other: StoreRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """The identities of both tables where they still lie, else what both specs said of them."""
    found = _identity_of_table(one), _identity_of_table(other)
    if found[0] and found[1]:
        return found[0], found[1]
    return _spec_of_table(one), _spec_of_table(other)


def _identity_of_table(record: StoreRecord) -> dict[str, Any] | None:
    """None where nothing, or by now another table, lies at the URL."""
    try:
        facts = json.loads(Objects(record.table_url).read("identity.json"))
    except (HeadworksError, OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and fingerprint(facts) == record.table_fingerprint else None


def _spec_of_table(record: StoreRecord) -> dict[str, Any]:
    tokens = {key: value for key, value in record.spec.get("tokens", {}).items() if key not in _NO_PART_OF_A_TABLE}
    facts: dict[str, Any] = {"tokens": tokens}
    if tokens.get("tokenizer") == "model":
        facts["model"] = {"path": record.spec.get("model", {}).get("path")}
    return facts
