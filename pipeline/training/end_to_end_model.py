"""The model of end-to-end terms: loaded once for all dictionaries of a job that want the same one."""

from __future__ import annotations

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.evaluation.belonging import require_model
from pipeline.models.load import LoadedModel, load_model
from pipeline.order.eligible import EligibleRows
from pipeline.order.keys import OrderKey
from pipeline.order.whole import ContextOrder
from pipeline.store.arriving import FeedStore
from pipeline.store.joined import JoinedStore
from pipeline.training.end_to_end import EndToEndTerm
from schemas.collect import CollectSpec
from schemas.end_to_end import EndToEnd
from schemas.errors import SpecError
from schemas.model import ModelSpec
from schemas.train import TrainSpec


class EndToEndModels:
    """Makes the terms of a job's dictionaries."""

    def __init__(self, spec: TrainSpec, store: FeedStore, eligible: EligibleRows, device: torch.device) -> None:
        self._store = store
        self._eligible = eligible
        self._device = device
        # That of the rows, whatever the feed: a run that began live goes on from the store with the same contexts.
        self._key = OrderKey(store.fingerprint, spec.rows, "train", spec.order)
        self._loaded: dict[str, LoadedModel] = {}

    def term(self, dictionary: Dictionary) -> EndToEndTerm | None:
        """None for a dictionary without such a loss.

        Raises:
            SpecError: a store of several models, of a model without a head, or without whole contexts; a dictionary
                whose latents lie on several ranks.
            MismatchError: the model is not the one that the store was collected from.
            ModelError, MissingError, ResourceError: see ``load_model``.
        """
        spec = dictionary.spec.end_to_end
        if spec is None:
            return None
        if dictionary.num_latents < dictionary.spec.num_latents:
            raise SpecError(
                f"dictionary {dictionary.spec.name!r}: end_to_end needs the whole dictionary on each rank, here ranks "
                f"share its latents and this one has {dictionary.num_latents:,} of {dictionary.spec.num_latents:,}"
            )
        self._require_contexts(dictionary.spec.name)
        loaded = self._load(dictionary.spec.name, spec)
        order = ContextOrder(self._eligible, self._key, num_rows=self._store.num_rows, contexts_per_step=spec.contexts)
        return EndToEndTerm(spec, dictionary, loaded, self._store, self._eligible, order)

    def _require_contexts(self, name: str) -> None:
        if isinstance(self._store, JoinedStore):
            raise SpecError(
                f"dictionary {name!r}: end_to_end runs one model, and these stores are of several: {self._store.url}"
            )
        if self._eligible.contexts is None:
            raise SpecError(
                f"dictionary {name!r}: end_to_end needs whole contexts, and the rows of {self._store.url} are in "
                "another order than their text's; train on the store that it was made from, which an order of mode "
                "shuffled mixes while it is read"
            )

    def _load(self, name: str, spec: EndToEnd) -> LoadedModel:
        model = (spec.model or self._model_of_store()).model_copy(update={"device": str(self._device)})
        if model.kind != "causal_lm":
            raise SpecError(
                f"dictionary {name!r}: end_to_end needs a causal_lm; {model.path!r} is of kind {model.kind!r}"
            )
        key = model.model_dump_json()
        if key not in self._loaded:
            loaded = load_model(model, with_head=True)
            require_model(self._store, loaded.identity)
            self._loaded[key] = loaded
        return self._loaded[key]

    def _model_of_store(self) -> ModelSpec:
        """A Hub model at the store's commit."""
        record = self._store.record
        model = CollectSpec.model_validate(record.spec).model
        return model.model_copy(update={"revision": record.identity["model"].get("revision") or model.revision})
