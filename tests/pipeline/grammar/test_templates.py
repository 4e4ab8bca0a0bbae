"""The Python grammar: statements are Python where they can be, and pairs differ in what they ask for alone."""

from __future__ import annotations

import ast
import random
from typing import get_args

import pytest

from pipeline.grammar.documents import document_text
from pipeline.grammar.pieces import VARIABLES, filler
from pipeline.grammar.templates import TEMPLATES, statement, statement_pair
from schemas.errors import SpecError
from schemas.grammar import GrammarCorpus, PythonTemplates, TemplateName

CORPUS = GrammarCorpus(grammar=PythonTemplates())


def test_every_name_has_its_template() -> None:
    assert set(TEMPLATES) == set(get_args(TemplateName))


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_both_forms_parse_and_ask_for_different_tokens(name: TemplateName) -> None:
    for seed in range(20):
        first, second = statement_pair(name, str(seed))
        assert first.answer != second.answer
        assert first.prompt != second.prompt
        for form in (first, second):
            assert form.text.endswith("\n")
            text = f"if x:\n    pass\n{form.text}" if form.text.startswith(("elif", "else")) else form.text
            ast.parse(text)
        assert (first, second) == statement_pair(name, str(seed))


def test_forms_share_their_names() -> None:
    first, second = statement_pair("for_while", "4")
    x = first.prompt.removeprefix("for ")
    assert x in VARIABLES
    assert second.prompt == f"while {x}"
    assert first.rest.endswith(second.rest.removeprefix("\n"))


def test_documents_are_a_function_of_seed_and_number() -> None:
    texts = [document_text(CORPUS, index) for index in range(50)]
    assert texts == [document_text(CORPUS, index) for index in range(50)]
    assert len(set(texts)) == 50
    assert document_text(CORPUS.model_copy(update={"seed": 1}), 0) != texts[0]
    for text in texts:
        ast.parse(text)


def test_a_corpus_of_one_template_has_its_statements_only() -> None:
    corpus = GrammarCorpus(grammar=PythonTemplates(templates=["var_swap"], filler_share=0, statements_per_document=3))
    for line in document_text(corpus, 0).splitlines():
        left, right = line.split(" = ")
        assert left.split(", ") == right.split(", ")[::-1]


def test_both_forms_come_about_as_often() -> None:
    corpus = GrammarCorpus(grammar=PythonTemplates(templates=["for_while"], filler_share=0.3))
    text = "".join(document_text(corpus, index) for index in range(200))
    assert 0.4 < text.count("for ") / (text.count("for ") + text.count("while ")) < 0.6


def test_filler_lines_parse() -> None:
    rng = random.Random(0)
    ast.parse("".join(filler(rng) for _ in range(200)))


def test_statement_draws_from_the_generator_that_it_is_given() -> None:
    rng = random.Random(1)
    assert len({statement("var_if", rng, second=False).text for _ in range(30)}) > 5


def test_too_much_filler_is_refused() -> None:
    with pytest.raises(ValueError, match=r"filler_share is 0\.95"):
        PythonTemplates(filler_share=0.95)
    assert issubclass(SpecError, ValueError)
