"""Tokenizers that a job makes for itself from its corpus."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from schemas.fields import ByteSize, Spec

_BYTES = 256
_SPECIALS = 2


class BytePairs(Spec):
    """Byte-pair encoding (Sennrich et al. 2016) over UTF-8 bytes. Text is cut into words, single digits, runs of signs,
    line ends and runs of spaces first, and no token goes over a cut."""

    kind: Literal["byte_pairs"] = "byte_pairs"
    """Discriminator."""
    vocab_size: Annotated[int, Field(ge=16, le=2**20)] = 512
    """Tokens at most, the special ones included; a corpus of little variety gives fewer."""
    alphabet: Literal["bytes", "seen"] = "bytes"
    """``bytes``: all 256, so that every text can be tokenised. ``seen``: those of the sample only, for small
    vocabularies; any other becomes the unknown token."""
    min_frequency: PositiveInt = 2
    """A pair that the sample has less often is not merged."""
    sample: ByteSize = 16 * 2**20
    """Text that it is made from: the first documents of the corpus, without those held out."""

    @model_validator(mode="after")
    def _bytes_fit(self) -> Self:
        if self.alphabet == "bytes" and self.vocab_size < _BYTES + _SPECIALS:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but 256 bytes and {_SPECIALS} special tokens need "
                f"{_BYTES + _SPECIALS}: raise it, or set alphabet: seen"
            )
        return self


class WholeWords(Spec):
    """A token for each word between spaces; for generated corpora, whose words are few."""

    kind: Literal["words"] = "words"
    """Discriminator."""
    vocab_size: Annotated[int, Field(ge=4, le=2**20)] = 8192
    """Tokens at most, the special ones included: the most frequent words of the sample; others become the unknown
    token."""
    sample: ByteSize = 16 * 2**20
    """Text that it is made from: the first documents of the corpus, without those held out."""


OwnTokenizer = Annotated[BytePairs | WholeWords, Field(discriminator="kind")]
