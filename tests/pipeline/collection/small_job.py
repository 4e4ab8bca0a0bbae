"""A collect job that takes a second: a random Llama of two layers, a byte tokenizer, a few kilobytes of text."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.collection.prepare import table_url
from pipeline.tokens.table import TokenTable, build_table
from schemas.collect import CollectSpec

WIDTH = 32
HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_in")


def save_model(folder: Path) -> Path:
    """A model folder: weights and tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, "<bos>", "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_corpus(folder: Path, *, num_files: int = 4) -> Path:
    """Text files of unlike lengths, the same each time."""
    source = random.Random(5)
    folder.mkdir(parents=True)
    for index in range(num_files):
        words = ("".join(source.choices("abcdefgh", k=source.randint(1, 9))) for _ in range(source.randint(15, 45)))
        (folder / f"{index}.txt").write_text(" ".join(words))
    return folder


def small_spec(model_folder: Path, corpus: Path, output: Path, /, **changes: Any) -> CollectSpec:
    """Contexts of up to 24 tokens across shards of 64 rows, so that many lie on a border."""
    facts: dict[str, Any] = {
        "model": {"path": str(model_folder), "dtype": "float32", "device": "cpu"},
        "tokens": {
            "corpus": {"format": "text", "urls": [f"{corpus}/*.txt"]},
            "packing": {"context_length": 24},
            "held_out_fraction": 0.2,
            "part_size": "1KiB",
        },
        "hook_points": list(HOOKS),
        "batch_tokens": 72,
        "storage": {"chunk_rows": 16, "shard_rows": 64},
        "workers": {"num_workers": 2},
        "output": str(output),
    }
    return CollectSpec.model_validate(merged(facts, changes))


def merged(facts: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` laid over ``facts``, mappings within mappings too."""
    both = {
        key: merged(facts[key], value) for key, value in changes.items() if isinstance(value, dict) and key in facts
    }
    return facts | changes | both


def built_table(spec: CollectSpec) -> TokenTable:
    return build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=spec.storage.shard_rows)


def digests(store: str | Path) -> dict[str, str]:
    """Path -> SHA-256 of every file below a store, except what names workers and versions: ledger and group records."""
    root = Path(store)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in ("ledger", "zarr.json")
    }
