"""Where an evaluation's numbers come from, for the page: facts in a table, specs in full."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from pipeline.evaluation.belonging import collect_spec, model_facts
from pipeline.evaluation.figures import excluded_text
from pipeline.evaluation.trained import Trained
from pipeline.store.joined import AnyStore, JoinedStore, first_of
from schemas.corpus import Corpus, HuggingFaceCorpus
from schemas.evaluate import EvaluateSpec
from schemas.fields import Spec
from schemas.grammar import GrammarCorpus


def facts(spec: EvaluateSpec, store: AnyStore, dictionaries: Sequence[Trained]) -> list[tuple[str, str]]:
    """Label and value of each fact."""
    collect = collect_spec(store)
    model, corpus = first_of(store).record.identity["model"], collect.tokens.corpus
    where = _where(corpus)
    first = dictionaries[0]
    rows = [
        ("Job", spec.name),
        ("Model", str(model_facts(store)["path"])),
        ("Model weights", _weights(store)),
        ("Precision of collection", f"{model.get('dtype', collect.model.dtype)}, stored as {store.dtype}"),
        ("Corpus", f"{corpus.format}: {where}"),
        ("Contexts", f"{collect.tokens.packing.mode}, {collect.tokens.packing.context_length} tokens"),
        ("Held-out share of documents", f"{collect.tokens.held_out_fraction:g}"),
        ("Store", f"{store.url}, {store.num_rows:,} rows"),
        ("Store fingerprint", store.fingerprint),
        ("Token table fingerprint", store.table_fingerprint),
        ("Dictionaries", spec.dictionaries),
        ("Rows left out of training", excluded_text(first.train_spec.rows)),
    ]
    rows += [(f"Weights of {trained.name}", trained.record.weights_sha256) for trained in dictionaries]
    versions = {**store.record.versions, **first.record.versions}
    rows.append(("Versions", ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))))
    return rows


def _weights(store: AnyStore) -> str:
    if isinstance(store, JoinedStore):
        return ", ".join(f"{name}: {_weights(one)}" for name, one in store.stores.items())
    model = store.record.identity["model"]
    return str(model.get("weights") or model.get("revision") or "\u2013")


def documents(spec: EvaluateSpec, store: AnyStore, dictionaries: Sequence[Trained]) -> list[tuple[str, str]]:
    """Label and text of the specs that led here."""
    trained = {trained.train_spec.name: trained.train_spec for trained in dictionaries}
    return [
        ("Collect spec", _yaml(collect_spec(store))),
        *((f"Train spec {name}", _yaml(one)) for name, one in trained.items()),
        ("Evaluate spec", _yaml(spec)),
    ]


def _yaml(spec: Spec) -> str:
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _where(corpus: Corpus) -> str:
    if isinstance(corpus, GrammarCorpus):
        return f"{corpus.grammar.kind}, seed {corpus.seed}"
    return corpus.path if isinstance(corpus, HuggingFaceCorpus) else ", ".join(corpus.urls)
