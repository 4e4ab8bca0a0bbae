"""A store of embeddings, and a dictionary whose latents are on for one letter each: what they mean is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from small_job import built_table, save_corpus, save_model, small_spec

from pipeline.collection.prepare import prepare
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.folder import save_dictionary
from pipeline.store.reader import Store
from schemas.activation import ReluL1
from schemas.dictionary import DictionaryRecord, DictionarySpec
from schemas.train import TrainSpec

EMBEDDING = "blocks.0.hook_resid_pre"
LETTERS = "abcdefgh "
ALWAYS, NEVER = len(LETTERS), len(LETTERS) + 1
"""Latents that are on everywhere and nowhere."""


@dataclass(frozen=True)
class Planted:
    store: str
    dictionaries: str


def plant(root: Path) -> Planted:
    """Everything, below a folder."""
    model = save_model(root / "model")
    spec = small_spec(
        model, save_corpus(root / "corpus", num_files=40), root / "store",
        hook_points=[EMBEDDING], tokens={"packing": {"context_length": 24}}, storage={"shard_rows": 1024},
    )  # fmt: skip
    for pending in prepare(spec, built_table(spec)):
        collector = UnitCollector.open(pending.of)
        list(collect_units(collector, pending.units))
        collector.writer.finish()
    _save_letters(root, Store.open(spec.output))
    return Planted(spec.output, f"{root}/dictionaries")


def _save_letters(root: Path, store: Store) -> None:
    tokens = store.tokens(0, store.num_rows)
    pieces = sorted(set(tokens.token_id.tolist()))
    acts = torch.from_numpy(store.read_values(EMBEDDING, 0, store.num_rows))
    # A byte tokenizer: letters by their code, the space as its sign.
    from pipeline.evaluation.belonging import tokenizer_of

    texts = tokenizer_of(store).pieces(pieces)
    spec = DictionarySpec(name="letters", sources=[EMBEDDING], num_latents=NEVER + 1, activation=ReluL1())
    dictionary = Dictionary(spec, {EMBEDDING: acts.shape[1]}, {EMBEDDING: acts.shape[1]}, {EMBEDDING: 1.0})
    with torch.no_grad():
        dictionary.encoder.zero_()
        dictionary.decoder.zero_()
        dictionary.b_enc.fill_(-0.8)
        dictionary.b_enc[ALWAYS] = 1.0
        for latent, letter in enumerate(LETTERS):
            row = acts[tokens.token_id == pieces[texts.index(letter)]][0]
            dictionary.encoder[latent] = row / row.square().sum()
            dictionary.decoder[latent] = row
    train = TrainSpec.model_validate(
        {"store": store.url, "dictionaries": [spec.model_dump()], "output": f"{root}/dictionaries"}
    )
    record = DictionaryRecord(
        spec=spec, d_source={EMBEDDING: acts.shape[1]}, d_target={EMBEDDING: acts.shape[1]}, scales={EMBEDDING: 1.0},
        store_fingerprint=store.fingerprint, table_fingerprint=store.table_fingerprint,
        model=store.record.identity["model"], train_spec=train.model_dump(mode="json"), steps=0, tokens=0, versions={},
    )  # fmt: skip
    save_dictionary(f"{root}/dictionaries/letters", dictionary, record)
