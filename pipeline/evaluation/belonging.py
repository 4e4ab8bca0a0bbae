"""Whether a store, a model and dictionaries belong together, and which model and tokenizer a store came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from pipeline.evaluation.trained import Trained
from pipeline.store.arriving import FeedStore
from pipeline.store.joined import AnyStore, JoinedStore, first_of
from pipeline.tokens.table import TokenTable, load_spec_tokenizer
from pipeline.tokens.tokenizer import Tokenizer
from schemas.collect import CollectSpec
from schemas.errors import HookPointError, IncompleteError, MismatchError, MissingError, SpecError, nearest
from schemas.evaluate import EvaluateSpec
from schemas.fingerprint import require_equal
from schemas.model import ModelSpec


def require(store: AnyStore, dictionaries: Sequence[Trained], spec: EvaluateSpec) -> None:
    """Refuse what does not fit, before anything long runs.

    Raises:
        HookPointError, MismatchError, SpecError: as ``require_same_model``.
        MismatchError: for held-out rows, another token table.
        SpecError: cross-entropy was asked for of a model without a language modelling head.
    """
    require_same_model(store, dictionaries)
    for trained in dictionaries:
        if spec.rows == "held_out":
            require_equal(
                {"table_fingerprint": store.table_fingerprint},
                {"table_fingerprint": trained.record.table_fingerprint},
                where=f"dictionary {trained.name!r}",
                remedy="Only in a store of its own token table are the held-out documents known to be new to it. Set "
                "rows: all to evaluate it on other text.",
            )
    if isinstance(store, JoinedStore):
        return
    kind = model_spec(store).kind
    if spec.cross_entropy_tokens and kind != "causal_lm":
        raise SpecError(
            f"cross_entropy_tokens is {spec.cross_entropy_tokens}, but the model of {store.url} is of kind {kind!r}; "
            "cross-entropy needs causal_lm: set cross_entropy_tokens: 0"
        )


def require_same_model(store: AnyStore, dictionaries: Sequence[Trained]) -> None:
    """Refuse dictionaries of another model, and a store without whole contexts.

    Raises:
        HookPointError: the store lacks a hook point of a dictionary.
        MismatchError: another model or another width.
        SpecError: the store's rows are not in the order of their text.
    """
    origin = store.record.shuffled or store.record.exported
    if origin is not None and store.tokens(0, 1).source_row is not None:
        raise SpecError(
            f"the rows of the store at {store.url} are not in the order of their text, and whole contexts are needed "
            f"here: use the store that it was made from, {origin.store_url}"
        )
    for trained in dictionaries:
        _require_points(store, trained)
        require_equal(
            {"model": store.record.identity["model"]},
            {"model": trained.record.model},
            where=f"dictionary {trained.name!r}",
            remedy="Evaluate on a store of the model that it was trained on.",
        )


def _require_points(store: AnyStore, trained: Trained) -> None:
    for point, width in {**trained.record.d_source, **trained.record.d_target}.items():
        if point not in store.hook_points:
            raise HookPointError(
                f"dictionary {trained.name!r} needs hook point {point!r}, which {store.url} does not have"
                f"{nearest(point, store.hook_points)}; it has {sorted(store.hook_points)}"
            )
        if store.hook_points[point] != width:
            raise MismatchError(
                f"dictionary {trained.name!r} expects width {width} at {point}, {store.url} has "
                f"{store.hook_points[point]}: it was trained on another model"
            )


def require_model(store: FeedStore, identity: Mapping[str, Any]) -> None:
    """Refuse a model other than the store's; it may compute in another precision.

    Raises:
        MismatchError: naming what differs, most often the weights.
    """
    wanted = store.record.identity["model"]
    require_equal(
        {key: value for key, value in identity.items() if key != "dtype"},
        {key: value for key, value in wanted.items() if key != "dtype"},
        where=f"the store {store.url}",
        remedy="The files of the model have changed since the store was made: bring them back, or collect again.",
    )


def collect_spec(store: AnyStore) -> CollectSpec:
    """The job that made the store, of several the first."""
    return CollectSpec.model_validate(first_of(store).record.spec)


def model_spec(store: AnyStore) -> ModelSpec:
    """The model that the store was collected from, of several the first."""
    return collect_spec(store).model


def model_facts(store: AnyStore) -> dict[str, Any]:
    """Identity and path of the model; of several the paths by name, and each identity."""
    identity = store.record.identity["model"]
    if not isinstance(store, JoinedStore):
        return {**identity, "path": model_spec(store).path}
    paths = ", ".join(f"{name}: {model_spec(one).path}" for name, one in store.stores.items())
    return {"path": paths, "models": identity}


def spliced_model_spec(store: AnyStore) -> ModelSpec:
    """The same weights in float32, in which the splice check can see an error; a Hub model at the store's commit."""
    spec = model_spec(store)
    commit = first_of(store).record.identity["model"].get("revision") or spec.revision
    return spec.model_copy(update={"dtype": "float32", "revision": commit})


def tokenizer_of(store: AnyStore) -> Tokenizer:
    """The tokenizer that made the rows: the token table's copy, or the model's own where the table has gone."""
    try:
        table = TokenTable.open(store.record.table_url)
        if table.fingerprint == store.table_fingerprint:
            return table.tokenizer()
    except (MissingError, IncompleteError):
        pass  # the url is a hint: nothing, or another job's table, lies there now
    return load_spec_tokenizer(collect_spec(store).tokens, spliced_model_spec(store))


def version() -> str:
    """Version of headworks; a source tree that is not installed has none."""
    try:
        return metadata.version("headworks")
    except metadata.PackageNotFoundError:
        return ""
