"""A tokenizer made from a corpus: reads a sample of its documents, writes the files that transformers loads.

The same corpus and spec give the same bytes: nothing depends on the number of threads or on the order in which a hash
map is walked.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from pipeline.tokens.corpus import CorpusSurvey, iter_parts, read_documents
from pipeline.tokens.linear import close_stream
from pipeline.tokens.part import is_held_out, text_sha256
from pipeline.tokens.tokenizer import ROLES, Tokenizer
from schemas.corpus import TokensSpec
from schemas.errors import CorpusError
from schemas.tokenizer import BytePairs, OwnTokenizer, WholeWords

BOS, EOS, UNKNOWN = "<|bos|>", "<|eos|>", "<|unknown|>"
_SPECIALS = {"bos": BOS, "eos": EOS, "unk": UNKNOWN}

# A line end, a run of spaces, a word with the space before it, a digit, a run of signs, other white space.
_PIECES = r"\n| {2,}| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def make_tokenizer(spec: OwnTokenizer, tokens: TokensSpec, surveyed: CorpusSurvey) -> Tokenizer:
    """One made from the first documents of the corpus that are not held out.

    Raises:
        CorpusError: there is no text to make it from, or a document that is none.
    """
    texts = sample(tokens, surveyed, spec.sample)
    first = next(texts, None)
    if first is None:
        raise CorpusError("the corpus has no text that is not held out, so no tokenizer can be made from it")
    texts = chain([first], texts)
    made = _byte_pairs(spec, texts) if isinstance(spec, BytePairs) else _words(spec, texts)
    ids = {role: made.token_to_id(text) for role, text in _SPECIALS.items()}
    return Tokenizer(made.to_str().encode("utf-8"), {role: id_ for role, id_ in ids.items() if id_ is not None})


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """``tokenizer.json`` and ``tokenizer_config.json`` in a new folder, all of it or nothing; one that is there stays.

    The files are those of transformers' ``PreTrainedTokenizerFast``.
    """
    from transformers import PreTrainedTokenizerFast  # seconds

    if folder.exists():
        return
    library = tokenizers.Tokenizer.from_str(tokenizer.definition.decode("utf-8"))
    named = {role: str(library.id_to_token(id_)) for role, id_ in tokenizer.specials.items()}
    roles = {f"{role}_token": named.pop(role) for role in ROLES if role in named}
    fast: Any = PreTrainedTokenizerFast
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    beside.mkdir(parents=True)
    try:
        fast(tokenizer_object=library, **roles, extra_special_tokens=sorted(named.values())).save_pretrained(beside)
        _rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _rename(beside: Path, folder: Path) -> None:
    try:
        beside.rename(folder)
    except OSError:
        # Another process was first, with the same files.
        if not folder.exists():
            raise


def sample(tokens: TokensSpec, surveyed: CorpusSurvey, size_bytes: int) -> Iterator[str]:
    """Texts in the order of the table until there are that many bytes, held-out documents left out."""
    left = size_bytes
    for part in iter_parts(tokens, surveyed):
        for document in read_documents(tokens, part):
            if is_held_out(text_sha256(document), seed=tokens.seed, fraction=tokens.held_out_fraction):
                continue
            if document.text:
                yield document.text
            left -= len(document.text.encode("utf-8"))
            if left <= 0:
                close_stream()
                return
    close_stream()


def _byte_pairs(spec: BytePairs, texts: Iterator[str]) -> tokenizers.Tokenizer:
    is_whole = spec.alphabet == "bytes"
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=None if is_whole else UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        min_frequency=spec.min_frequency,
        special_tokens=[BOS, EOS] if is_whole else [BOS, EOS, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if is_whole else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def _words(spec: WholeWords, texts: Iterator[str]) -> tokenizers.Tokenizer:
    """Ids by frequency, then by the text: the library's own trainer leaves ties to a hash map."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in text.split():
            counts[word] = counts.get(word, 0) + 1
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    specials = [BOS, EOS, UNKNOWN]
    known = [*specials, *ranked[: spec.vocab_size - len(specials)]]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(known)}, UNKNOWN))
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer
