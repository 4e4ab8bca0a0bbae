"""The snippets of docs/reading.md run, in order, over a real store of a real token table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from pipeline.tokens.table import build_table
from schemas.corpus import TokensSpec
from schemas.fingerprint import fingerprint
from schemas.model import ModelSpec
from schemas.store import PassRecord, StoreRecord

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"
HOOK, WIDTH = "blocks.9.hook_resid_post", 16


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def write_tokenizer(folder: Path) -> None:
    """Bytes are tokens."""
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({letter: id_ for id_, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_store(folder: Path) -> None:
    for number in range(9):
        path = folder / "corpus" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"This is text number {number}. " * (number + 5))
    write_tokenizer(folder / "tokenizer")
    spec = TokensSpec.model_validate({
        "corpus": {"format": "text", "urls": [f"{folder}/corpus/*.txt"]}, "tokenizer": str(folder / "tokenizer"),
        "packing": {"context_length": 128}, "output": "unused",
    })  # fmt: skip
    model = ModelSpec.model_validate({"path": "unused"})
    table = build_table(spec, model, url=str(folder / "tokens"), shard_rows=512)
    identity = {"table": table.fingerprint}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint=table.fingerprint, dtype="bfloat16",
        chunk_rows=64, shard_rows=512, codec="none", table_url=table.url, specials=table.specials,
        spec={"tokens": spec.model_dump(mode="json")}, versions={"headworks": "0"},
    )  # fmt: skip
    values = np.random.default_rng(0).standard_normal((table.num_rows, WIDTH), dtype=np.float32)
    words, passes = to_words(values, "bfloat16"), PassRecord(hook_points={HOOK: WIDTH}, batch_tokens=128)
    writer = StoreWriter.open(str(folder / "store"), record, passes, num_rows=table.num_rows)
    for unit in range(writer.num_units):
        start, stop = writer.unit_rows(unit)
        own = {HOOK: words[start:stop]}
        writer.write_unit(unit, own, table.rows(start, stop), worker="test", attempt=0, seconds={})
    writer.finish()


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert len(snippets()) == 6
    for snippet in snippets():
        exec(compile(snippet, str(PAGE), "exec"), names)
    store, origin = names["store"], names["origin"]
    assert len(store) > 1000
    assert "text number" in origin.before + origin.token + origin.after
    assert re.fullmatch(r"\d\.txt", origin.document)
    assert np.unique(names["document"].document_id).tolist() == [3]
    assert names["context"].row.tolist() == list(range(256, 384))
    assert set(store.tokens().token_id[names["rows"]]) == {names["tokens"].token_id[10]}
    assert names["table"].num_rows == len(store)
    assert names["state"]["epoch"] == 2
