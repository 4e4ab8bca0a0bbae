"""A tiny real tokenizer, trained here, and small corpora."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = ["def read(path): return open(path).read()", "the quick brown fox jumps over the lazy dog", "import this"]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of about 300 tokens, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>", "<tool>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    config |= {"pad_token": "<pad>", "extra_special_tokens": ["<tool>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """Forty small text files of different length, some in a folder below."""
    folder = tmp_path / "corpus"
    (folder / "below").mkdir(parents=True)
    for index in range(40):
        path = folder / ("below" if index % 3 == 0 else "") / f"{index:02d}.txt"
        path.write_text(f"document {index}: " + " ".join(TEXT[(index + i) % 3] for i in range(index % 7 + 1)))
    return folder
