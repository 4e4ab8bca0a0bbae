"""No token lost or doubled, whatever the packing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens.packing import Context, TokenisedDocument, pack
from schemas.corpus import Packing
from schemas.errors import SpecError

BOS, EOS = 1, 2
MARKS = {"none": [], "bos": [BOS], "eos": [EOS], "eos_bos": [EOS, BOS]}

packings = st.builds(
    Packing,
    mode=st.sampled_from(["packed", "document"]),
    context_length=st.integers(2, 12),
    separator=st.sampled_from(["none", "bos", "eos", "eos_bos"]),
    begin_context=st.sampled_from(["none", "bos"]),
    long_documents=st.sampled_from(["truncate", "split"]),
)


@st.composite
def documents(draw: st.DrawFn) -> list[TokenisedDocument]:
    """Every text token has its own id, from 10 on, so that a lost or doubled one shows."""
    lengths = draw(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=12))
    made, first = [], 10
    for document_id, (length, held_out) in enumerate(lengths):
        made.append(TokenisedDocument(document_id, np.arange(first, first + length, dtype=np.int32), held_out))
        first += length
    return made


def packed(given_documents: list[TokenisedDocument], packing: Packing) -> list[Context]:
    return list(pack(given_documents, packing, bos_id=BOS, eos_id=EOS))


@settings(max_examples=150, deadline=None)
@given(documents(), packings)
def test_contexts_hold_the_rules(given_documents: list[TokenisedDocument], packing: Packing) -> None:
    owner = {int(t): d.document_id for d in given_documents for t in d.token_id}
    held_out = {d.document_id: d.held_out for d in given_documents}
    for context in packed(given_documents, packing):
        assert 1 <= len(context.token_id) <= packing.context_length
        assert context.position.tolist() == list(range(len(context.token_id)))
        assert (np.diff(context.document_id) >= 0).all()
        assert {held_out[int(d)] for d in context.document_id} == {context.held_out}
        text = context.token_id >= 10
        assert text.any()
        assert [owner[int(t)] for t in context.token_id[text]] == context.document_id[text].tolist()
        if packing.begin_context == "bos":
            assert context.token_id[0] == BOS
            assert context.document_id[0] == context.document_id[1]
            assert text[1]
        else:
            assert text[0]
        if packing.mode == "document":
            assert len(set(context.document_id.tolist())) == 1
            assert text[1:].all()


@settings(max_examples=150, deadline=None)
@given(documents(), packings)
def test_no_token_is_lost_or_doubled(given_documents: list[TokenisedDocument], packing: Packing) -> None:
    contexts = packed(given_documents, packing)
    room = packing.context_length - (packing.begin_context == "bos")
    truncate = packing.mode == "document" and packing.long_documents == "truncate"
    for held_out in (False, True):
        tokens = [t for c in contexts if c.held_out == held_out for t in c.token_id.tolist() if t >= 10]
        expected = [d.token_id[:room] if truncate else d.token_id for d in given_documents if d.held_out == held_out]
        assert tokens == [t for token_id in expected for t in token_id.tolist()]


@settings(max_examples=100, deadline=None)
@given(documents(), packings.filter(lambda packing: packing.mode == "packed"))
def test_separators_stand_between_documents_of_a_context(
    given_documents: list[TokenisedDocument], packing: Packing
) -> None:
    separator = MARKS[packing.separator]
    for context in packed(given_documents, packing):
        begin = 1 if packing.begin_context == "bos" else 0
        tokens, owners = context.token_id[begin:].tolist(), context.document_id[begin:].tolist()
        text = [i for i, token in enumerate(tokens) if token >= 10]
        for here, there in pairwise(text):
            between = tokens[here + 1 : there]
            assert between == (separator if owners[here] != owners[there] else [])
            assert all(owners[i] == owners[there] for i in range(here + 1, there))
        trailing = tokens[text[-1] + 1 :]
        assert trailing == separator[: len(trailing)]
        assert not trailing or len(context.token_id) == packing.context_length


@settings(max_examples=100, deadline=None)
@given(documents(), packings.filter(lambda packing: packing.mode == "packed"))
def test_packed_contexts_are_full_but_the_last(given_documents: list[TokenisedDocument], packing: Packing) -> None:
    contexts = packed(given_documents, packing)
    for held_out in (False, True):
        lengths = [len(c.token_id) for c in contexts if c.held_out == held_out]
        assert all(length == packing.context_length for length in lengths[:-1])


def test_a_packed_example_by_hand() -> None:
    made = [
        TokenisedDocument(i, np.array(ids, np.int32), False) for i, ids in enumerate([[10, 11], [12], [13, 14, 15]])
    ]
    contexts = packed(made, Packing(context_length=6))
    assert [c.token_id.tolist() for c in contexts] == [[BOS, 10, 11, EOS, 12, EOS], [BOS, 13, 14, 15]]
    assert [c.document_id.tolist() for c in contexts] == [[0, 0, 0, 1, 1, 2], [2, 2, 2, 2]]


def test_no_room_for_text_beside_bos() -> None:
    with pytest.raises(SpecError, match="no room for text beside BOS"):
        packed([], Packing(context_length=1))
    assert packed([], Packing(context_length=1, begin_context="none")) == []
