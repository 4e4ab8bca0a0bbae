"""Generated corpora: no file is read, the text of a document follows from its number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pipeline.grammar.documents import SEMANTICS, document_text
from pipeline.tokens.document import CorpusFile, Document, Piece
from schemas.fingerprint import canonical_json
from schemas.grammar import GrammarCorpus


def generated_file(corpus: GrammarCorpus) -> CorpusFile:
    """The whole corpus as one file, which is nowhere; its digest is that of what decides its text."""
    facts = {"semantics": SEMANTICS, "grammar": corpus.grammar.model_dump(mode="json"), "seed": corpus.seed}
    return CorpusFile("grammar", "", 0, f"sha256:{hashlib.sha256(canonical_json(facts)).hexdigest()}")


def generated_ranges(corpus: GrammarCorpus) -> Iterator[tuple[int, int]]:
    """Ranges of ``documents_per_part`` documents."""
    step = corpus.documents_per_part
    yield from ((start, min(start + step, corpus.num_documents)) for start in range(0, corpus.num_documents, step))


def read_generated(corpus: GrammarCorpus, piece: Piece) -> Iterator[Document]:
    """Documents named ``KIND@NUMBER``."""
    for index in range(piece.start, piece.stop):
        yield Document(f"{corpus.grammar.kind}@{index}", document_text(corpus, index))
