"""Corpora that are generated from a seed, so that what is true of their text is known."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from schemas.fields import Spec

Share = Annotated[float, Field(ge=0, le=1)]

TemplateName = Literal[
    "single_double_quote", "final_kwarg", "set_or_string", "set_or_string_fixedvarname", "class_init", "with_as",
    "bracket_brace", "with_open", "bracket_counting", "for_while", "else_elif", "fstring_brace", "if_ternary",
    "var_swap", "indent_for", "lambda_func", "if_equals", "enumerate_range", "var_if", "while_return_true",
]  # fmt: skip
"""The binary tasks of Gao et al. 2025 (arXiv 2511.13653, table 1); the templates are our own."""


class PythonTemplates(Spec):
    """Lines that look like simple Python: statements of the templates, in both of their forms, between filler lines."""

    kind: Literal["python_templates"] = "python_templates"
    """Discriminator."""
    templates: list[TemplateName] = []
    """Which statements there are; empty: all."""
    statements_per_document: PositiveInt = 8
    """Statements of a document, each of a template that is drawn anew; a statement has one line or a few."""
    filler_share: Share = 0.3
    """Probability of a filler line before each statement, drawn again after each filler line."""

    @model_validator(mode="after")
    def _filler_ends(self) -> Self:
        if self.filler_share > 0.9:
            raise ValueError(f"filler_share is {self.filler_share:g}, at most 0.9: filler would hardly end")
        if len(set(self.templates)) != len(self.templates):
            raise ValueError(f"templates names one template twice: {self.templates}")
        return self


class BigramSource(Spec):
    """A Markov chain over words that begins in its stationary distribution, in some documents with a stretch that comes
    a second time. Which words follow which is drawn once from the seed. The entropies are known exactly:
    ``pipeline.grammar.bigram.MarkovSource.entropies``."""

    kind: Literal["bigram"] = "bigram"
    """Discriminator."""
    num_words: Annotated[int, Field(ge=2, le=2048)] = 64
    """Different words. With ``tokenizer: {kind: words}`` a word is a token."""
    words_per_document: Annotated[int, Field(ge=2, le=4096)] = 63
    """Length of every document; with a BOS token a context of one more holds it."""
    concentration: PositiveFloat = 0.1
    """Of the symmetric Dirichlet distribution that each row of the transition matrix is drawn from, times the common
    words' weights: small, and few words follow a word."""
    zipf_exponent: Annotated[float, Field(ge=0, le=4)] = 1.0
    """Weight of the r-th word among followers, 1 / r ** zipf_exponent; 0: all alike."""
    repeat_share: Share = 0.5
    """Share of documents that end with a repetition of a stretch from earlier in them."""
    repeat_words: PositiveInt = 16
    """Length of the stretch; its place is drawn for each document."""

    @model_validator(mode="after")
    def _repetition_fits(self) -> Self:
        if self.repeat_share and 2 * self.repeat_words > self.words_per_document:
            raise ValueError(
                f"a stretch of repeat_words ({self.repeat_words}) and its repetition do not fit into "
                f"words_per_document ({self.words_per_document})"
            )
        return self


class GrammarCorpus(Spec):
    """Text that is generated: document n is a function of the grammar, the seed and n."""

    format: Literal["grammar"] = "grammar"
    """Discriminator."""
    grammar: Annotated[PythonTemplates | BigramSource, Field(discriminator="kind")]
    """What the text is like."""
    num_documents: PositiveInt = 10_000
    """Documents of the corpus."""
    seed: NonNegativeInt = 0
    """Of the grammar's own draws and of the documents."""
    documents_per_part: PositiveInt = 4096
    """Documents in one independently packed part of the token table."""
