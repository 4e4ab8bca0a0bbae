"""What nodes that are left out are fixed at: their means over the rows of an activation store."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.circuits.nodes import Nodes
from pipeline.evaluation.belonging import tokenizer_of
from pipeline.models.identity import model_identity
from pipeline.store.reader import Store
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from schemas.circuit import CircuitSpec
from schemas.errors import DataError, HookPointError, MismatchError, nearest
from schemas.fingerprint import require_equal


def read_means(store: Store, nodes: Nodes) -> Tensor:
    """float32 [M], from the store's statistics: no row is read.

    Raises:
        HookPointError: the store lacks a location of the network.
        MismatchError: a location has another width.
        DataError: a location has no finite row.
    """
    parts = []
    for place in nodes.places:
        if place.hook not in store.hook_points:
            raise HookPointError(
                f"the means of {place.hook} are needed, and the store at {store.url} does not have it"
                f"{nearest(place.hook, store.hook_points)}. Collect all eight locations of all "
                f"{nodes.spec.layers} layers, or set ablation: zero"
            )
        found = store.statistics[place.hook]
        if len(found.mean) != place.width:
            raise MismatchError(
                f"{place.hook} has {len(found.mean)} channels in the store at {store.url}, the network has "
                f"{place.width}: it is of another model"
            )
        if found.count == 0:
            raise DataError(f"the store at {store.url} has no finite row of {place.hook}, so it has no mean")
        parts.append(torch.tensor(found.mean, dtype=torch.float64))
    return torch.cat(parts).float()


def open_store(spec: CircuitSpec, tokenizer: Tokenizer) -> Store:
    """The store of the job, once it is known to be of its model and tokenizer.

    Raises:
        MissingError, IncompleteError: there is no store, or not all of it.
        MismatchError: its rows are of another model, or of another tokenizer.
    """
    assert spec.store is not None
    store = Store.open(spec.store)
    theirs: dict[str, Any] = store.record.identity["model"]
    require_equal(
        # Circuits are searched in float32, whatever precision the store was collected in.
        {key: value for key, value in model_identity(spec.model).items() if key not in ("dtype", "attention")},
        {key: value for key, value in theirs.items() if key not in ("dtype", "attention")},
        where=f"the store at {store.url}",
        remedy="Means are of the network that nodes are left out of: collect a store of this model.",
    )
    digest = tokenizer_of(store).digest
    if digest != tokenizer.digest:
        raise MismatchError(
            f"the rows of the store at {store.url} are of a tokenizer with digest {digest[:12]}, that of model "
            f"{spec.model.path!r} has {tokenizer.digest[:12]}: their means are over other tokens. Collect with "
            "tokens.tokenizer: model"
        )
    return store


def model_tokenizer(spec: CircuitSpec) -> Tokenizer:
    """The model's own."""
    return load_tokenizer(spec.model.path, spec.model.revision)
