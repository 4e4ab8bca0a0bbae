"""The two sentences: the order of the nouns alone, in a setting that was looked for."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "associative_memory.py"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_the_pronoun_is_the_noun_that_its_adjective_means(example: SimpleNamespace) -> None:
    found = example.logits(example.network())
    assert found.argmax(1).tolist() == [example.PORRIDGE, example.MASHA]
    assert min(example.margins(found)) > 0.1


def test_without_the_adjectives_relations_the_sentences_say_the_same(example: SimpleNamespace) -> None:
    relations = {word: leads for word, leads in example.RELATIONS.items() if word not in ("ВКУСНАЯ", "ГОЛОДНАЯ")}
    network = example.relation_network(example.WORDS, relations, layers=3, temperatures=(0.2,) * 3, cosine=True)
    first, second = example.logits(network)[:, [example.MASHA, example.PORRIDGE]].diff(dim=1).sign().flatten().tolist()
    assert first == second
