"""Documents of a generated corpus: number n is a function of the grammar, the seed and n."""

from __future__ import annotations

import random
from functools import lru_cache

from pipeline.grammar.bigram import MarkovSource
from pipeline.grammar.pieces import filler
from pipeline.grammar.templates import TEMPLATES, statement
from schemas.grammar import BigramSource, GrammarCorpus, PythonTemplates

SEMANTICS = 1
"""Raised when the same spec would give other text than before."""


def document_text(corpus: GrammarCorpus, index: int) -> str:
    """Text of one document, never empty."""
    if isinstance(corpus.grammar, PythonTemplates):
        return _python(corpus.grammar, random.Random(f"{corpus.seed}/{index}"))
    # pydantic's models do not hash while they hold lists, JSON does.
    return _source(corpus.grammar.model_dump_json(), corpus.seed).text(index)


@lru_cache(maxsize=2)
def _source(spec: str, seed: int) -> MarkovSource:
    return MarkovSource(BigramSource.model_validate_json(spec), seed)


def _python(grammar: PythonTemplates, rng: random.Random) -> str:
    names = grammar.templates or list(TEMPLATES)
    text = []
    for _ in range(grammar.statements_per_document):
        while rng.random() < grammar.filler_share:
            text.append(filler(rng))
        text.append(statement(rng.choice(names), rng, second=rng.random() < 0.5).text)
    return "".join(text)
