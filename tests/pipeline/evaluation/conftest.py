"""A whole small flow, made once: corpus, a tiny language model that has learned it, store, trained dictionaries."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.collection.prepare import prepare, table_url
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.tokens.table import build_table
from pipeline.training.engine import train
from pipeline.training.world import SingleWorld
from schemas.collect import CollectSpec
from schemas.train import TrainSpec

SUBJECTS = ["cat", "dog", "bird", "fish"]
VERBS = ["sees", "hears", "eats"]
PLACES = ["here", "there", "outside"]
WORDS = ["<bos>", "<eos>", *SUBJECTS, *VERBS, *PLACES, "the", "a", "and", "<script>", ".", "[UNK]"]
RESID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"


@dataclass(frozen=True)
class Flow:
    """Where everything is."""

    root: Path
    collect: CollectSpec
    train: TrainSpec

    @property
    def store(self) -> str:
        return self.collect.output

    @property
    def dictionaries(self) -> str:
        return self.train.output


def sentence(chance: random.Random) -> str:
    subject, verb = chance.choice(SUBJECTS), chance.choice(VERBS)
    # What follows depends on what came before, so that ablating a layer costs something.
    place = PLACES[(SUBJECTS.index(subject) + VERBS.index(verb)) % len(PLACES)]
    return f"the {subject} {verb} a {chance.choice(SUBJECTS)} {place} ."


def write_corpus(folder: Path) -> None:
    chance = random.Random(5)
    folder.mkdir()
    for number in range(120):
        sentences = [sentence(chance) for _ in range(chance.randint(2, 12))]
        (folder / f"{number:03}.txt").write_text(" ".join(sentences), "utf-8")


def write_tokenizer(folder: Path) -> Any:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    fast.save_pretrained(folder)
    return tokenizer


def write_model(folder: Path, corpus: Path) -> None:
    """Three blocks, trained for a second or two."""
    tokenizer = write_tokenizer(folder)
    config = LlamaConfig(
        hidden_size=24, num_hidden_layers=3, vocab_size=len(WORDS), intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = LlamaForCausalLM(config)
        stream = [1]
        for path in sorted(corpus.iterdir()):
            stream += [*tokenizer.encode(path.read_text("utf-8")).ids, 1]
        data = torch.tensor(stream)
        adam = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(80):
            starts = torch.randint(0, len(data) - 33, (32,))
            batch = torch.stack([data[start : start + 32] for start in starts.tolist()])
            adam.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            adam.step()
    model.save_pretrained(folder)


def collected(root: Path) -> CollectSpec:
    spec = CollectSpec.model_validate(
        {
            "model": {"path": str(root / "model"), "dtype": "float32", "device": "cpu"},
            "tokens": {
                "corpus": {"format": "text", "urls": [f"{root}/corpus/*.txt"]},
                "packing": {"context_length": 32},
                "held_out_fraction": 0.25,
                "part_size": "1KiB",
            },
            "hook_points": [RESID, MLP_IN, MLP_OUT],
            "batch_tokens": 512,
            "storage": {"dtype": "float32", "chunk_rows": 128, "shard_rows": 512},
            "output": f"{root}/store",
        }
    )
    collect_into(spec)
    return spec


def collect_into(spec: CollectSpec) -> None:
    table = build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=spec.storage.shard_rows)
    for pending in prepare(spec, table):
        collector = UnitCollector.open(pending.of)
        list(collect_units(collector, pending.units))
        collector.writer.finish()


def trained(root: Path, store: str) -> TrainSpec:
    spec = TrainSpec.model_validate(
        {
            "store": store,
            "dictionaries": [
                {"name": "sae", "sources": [RESID], "num_latents": 96, "activation": {"kind": "topk", "k": 8}},
                {
                    "name": "transcoder",
                    "sources": [MLP_IN],
                    "targets": [MLP_OUT],
                    "num_latents": 96,
                    "activation": {"kind": "topk", "k": 8},
                },
                {
                    "name": "dense",
                    "sources": [RESID],
                    "num_latents": 48,
                    "activation": {"kind": "relu_l1", "l1_coefficient": 0.5},
                },
            ],
            "batch_rows": 256,
            "num_tokens": 16_000,
            "checkpoint_every_steps": 0,
            "trackers": [],
            "output": f"{root}/dictionaries",
        }
    )  # fmt: skip
    train(spec, SingleWorld())
    return spec


@pytest.fixture(scope="session")
def collect_here() -> Callable[[CollectSpec], None]:
    """A whole collect job in this process."""
    return collect_into


@pytest.fixture(scope="session")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    root = tmp_path_factory.mktemp("flow")
    write_corpus(root / "corpus")
    write_model(root / "model", root / "corpus")
    collect = collected(root)
    return Flow(root, collect, trained(root, collect.output))


@pytest.fixture(scope="session")
def rounded_store(flow: Flow) -> str:
    """The same rows again, 8 bits a number."""
    facts = flow.collect.model_dump(mode="json")
    facts["storage"] |= {"layout": "arrow", "dtype": "int8", "lossy": True}
    spec = CollectSpec.model_validate(facts | {"output": f"{flow.root}/rounded"})
    collect_into(spec)
    return spec.output
