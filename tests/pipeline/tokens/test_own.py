"""Tokenizers made from a corpus, and token tables of generated corpora."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.grammar.bigram import MarkovSource
from pipeline.grammar.documents import document_text
from pipeline.grammar.templates import TEMPLATES, statement_pair
from pipeline.planning.tokens import estimate
from pipeline.tokens.corpus import list_parts, read_documents, survey
from pipeline.tokens.own import make_tokenizer, save_tokenizer
from pipeline.tokens.part import is_held_out, text_sha256
from pipeline.tokens.table import build_table
from pipeline.tokens.tokenizer import load_tokenizer
from schemas.corpus import TokensSpec
from schemas.errors import CorpusError, MismatchError
from schemas.grammar import BigramSource
from schemas.model import ModelSpec
from schemas.tokenizer import BytePairs, OwnTokenizer, WholeWords


def tokens_of(kind: str, **changes: Any) -> TokensSpec:
    corpus = {"format": "grammar", "grammar": {"kind": kind}, "num_documents": 300, "documents_per_part": 128}
    return TokensSpec.model_validate({"corpus": corpus, "part_size": 1000, **changes})


def saved(tokens: TokensSpec, spec: OwnTokenizer, folder: Path) -> Path:
    save_tokenizer(make_tokenizer(spec, tokens, survey(tokens)), folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("spec", [BytePairs(vocab_size=300), BytePairs(vocab_size=128, alphabet="seen")])
def test_byte_pairs_give_text_back(tmp_path: Path, spec: BytePairs) -> None:
    tokens = tokens_of("python_templates")
    tokenizer = load_tokenizer(str(saved(tokens, spec, tmp_path / "own")))
    assert tokenizer.vocab_size <= spec.vocab_size
    assert tokenizer.specials["bos"] == 0
    assert tokenizer.specials["eos"] == 1
    texts = [document_text(tokens.corpus, index) for index in range(20)]  # type: ignore[arg-type]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(ids) == text
    if spec.alphabet == "bytes":
        assert tokenizer.decode(tokenizer.encode(["Ünïcode €"])[0]) == "Ünïcode €"
    else:
        assert tokenizer.specials["unk"] in tokenizer.encode(["€"])[0]


@pytest.mark.slow
def test_the_same_corpus_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    tokens = tokens_of("python_templates")
    spec = BytePairs(vocab_size=300)
    ours = digests(saved(tokens, spec, tmp_path / "a"))
    code = (
        "import sys; from pathlib import Path; from pipeline.tokens.own import *; "
        "from pipeline.tokens.corpus import survey; from schemas.tokenizer import BytePairs; "
        "tokens = TokensSpec.model_validate_json(sys.argv[1]); "
        "save_tokenizer(make_tokenizer(BytePairs(vocab_size=300), tokens, survey(tokens)), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, tokens.model_dump_json(), str(tmp_path / "b")]
    root = Path(__file__).parents[3]
    subprocess.run(command, check=True, cwd=root, env={"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"})
    assert digests(tmp_path / "b") == ours


def test_answers_of_the_templates_are_single_tokens(tmp_path: Path) -> None:
    tokens = tokens_of("python_templates", corpus=tokens_of("python_templates").corpus.model_copy(
        update={"num_documents": 2000}))  # fmt: skip
    tokenizer = load_tokenizer(str(saved(tokens, BytePairs(vocab_size=512), tmp_path / "own")))
    for name in TEMPLATES:
        for form in statement_pair(name, "0"):
            prompt, both = tokenizer.encode([form.prompt, form.prompt + form.answer])
            assert both[: len(prompt)].tolist() == prompt.tolist(), (name, form)
            assert len(both) == len(prompt) + 1, (name, form)


def test_words_are_tokens_and_held_out_ones_are_not_seen(tmp_path: Path) -> None:
    tokens = tokens_of("bigram", held_out_fraction=0.5)
    folder = saved(tokens, WholeWords(), tmp_path / "own")
    tokenizer = load_tokenizer(str(folder))
    documents = [one for part in list_parts(tokens) for one in read_documents(tokens, part)]
    assert len(documents) == 300
    train = [one for one in documents if not is_held_out(text_sha256(one), seed=0, fraction=0.5)]
    assert 100 < len(train) < 200
    seen = {word for one in train for word in one.text.split()}
    assert tokenizer.vocab_size == len(seen) + 3
    ids = tokenizer.encode([train[0].text])[0]
    assert len(ids) == 63
    assert tokenizer.decode(ids) == train[0].text
    assert tokenizer.encode(["never seen"])[0].tolist() == [tokenizer.specials["unk"]] * 2


def test_vocab_size_keeps_the_most_frequent_words(tmp_path: Path) -> None:
    tokens = tokens_of("bigram")
    tokenizer = load_tokenizer(str(saved(tokens, WholeWords(vocab_size=8), tmp_path / "own")))
    source = MarkovSource(BigramSource(), 0)
    top = [source.words[index] for index in np.argsort(-source.unigram)[:2]]
    assert tokenizer.vocab_size == 8
    assert tokenizer.specials["unk"] not in tokenizer.encode([" ".join(top)])[0]


def test_a_table_of_generated_text_holds_the_documents(tmp_path: Path) -> None:
    packing = {"mode": "document", "context_length": 64}
    tokens = tokens_of("bigram", packing=packing)
    folder = saved(tokens, WholeWords(), tmp_path / "own")
    model = ModelSpec(path=str(folder))
    table = build_table(tokens, model, url=str(tmp_path / "tokens"), shard_rows=1)
    assert table.num_rows == 300 * 64
    assert table.num_documents == 300
    rows = table.rows(64 * 200, 64 * 201)
    document = table.document(int(rows.document_id[0]))
    index = int(document["name"].removeprefix("bigram@"))
    assert table.tokenizer().decode(rows.token_id[1:]) == document_text(tokens.corpus, index)  # type: ignore[arg-type]
    guess = estimate(tokens, model)
    assert guess.num_rows == pytest.approx(table.num_rows)
    other = tokens.model_copy(update={"corpus": tokens.corpus.model_copy(update={"seed": 1})})
    with pytest.raises(MismatchError, match=r"corpus\.content_sha256"):
        build_table(other, model, url=str(tmp_path / "tokens"), shard_rows=1)


def test_a_corpus_without_text_makes_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("held out")
    corpus = {"format": "text", "urls": [str(tmp_path / "a.txt")]}
    tokens = TokensSpec.model_validate({"corpus": corpus, "held_out_fraction": 0.9999})
    with pytest.raises(CorpusError, match="not held out"):
        make_tokenizer(BytePairs(), tokens, survey(tokens))


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="256 bytes and 2 special tokens need 258"):
        BytePairs(vocab_size=256)
