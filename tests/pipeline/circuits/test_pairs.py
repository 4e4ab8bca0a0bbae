"""All tasks as pairs of prompts; those that a tokenizer cannot pose are refused by name."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from pipeline.circuits.tasks.pairs import ALL, make_pairs
from pipeline.grammar.templates import TEMPLATES
from pipeline.tokens.tokenizer import Tokenizer
from schemas.circuit import NONSENSE, TASKS, TaskSpec
from schemas.errors import SpecError

SPEC = TaskSpec(pairs=12, held_out_pairs=6, context_lines=2)


def test_the_tasks_are_those_of_the_table() -> None:
    assert tuple(TEMPLATES) == TASKS
    assert len(TASKS) == 20
    assert tuple(ALL) == (*TASKS, NONSENSE)


@pytest.mark.parametrize("task", ALL)
def test_every_task_can_be_posed_in_whole_pieces(task: str, tokenizer: Tokenizer) -> None:
    pairs = make_pairs(task, tokenizer, SPEC, "search")
    assert pairs.token_ids.shape[0] == 2 * SPEC.pairs
    assert (pairs.token_ids[:, 0] == tokenizer.bos_id).all()
    assert (pairs.answers[:, 0] != pairs.answers[:, 1]).all()
    assert (pairs.answers[::2] == pairs.answers[1::2]).all()
    prompts = {tuple(row[:length].tolist()) for row, length in zip(pairs.token_ids, pairs.lengths, strict=True)}
    assert len(prompts) > SPEC.pairs // 2  # drawn, not repeated
    assert not any(unknown in row for row in prompts for unknown in [tokenizer.encode(["\u00e9"])[0][0]])


def test_pairs_follow_from_the_seed_and_the_split(tokenizer: Tokenizer) -> None:
    again = [make_pairs("var_swap", tokenizer, SPEC, "search").token_ids.tolist() for _ in range(2)]
    assert again[0] == again[1]
    others = SPEC.model_copy(update={"seed": 1, "held_out_pairs": SPEC.pairs})
    assert make_pairs("var_swap", tokenizer, others, "search").token_ids.tolist() != again[0]
    others = SPEC.model_copy(update={"held_out_pairs": SPEC.pairs})
    assert make_pairs("var_swap", tokenizer, others, "held_out").token_ids.tolist() != again[0]


def byte_tokenizer() -> Tokenizer:
    """Bytes alone: only tasks whose answers have one character can be posed."""
    words = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend.to_str().encode(), {"bos": 0})


def test_an_answer_of_several_tokens_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"'single_double_quote': the answer '\"\)' after .* is not a single token"):
        make_pairs("single_double_quote", byte_tokenizer(), SPEC, "search")
    make_pairs("with_open", byte_tokenizer(), SPEC, "search")


def test_first_tokens_count_where_that_is_asked_for() -> None:
    pairs = make_pairs("single_double_quote", byte_tokenizer(), SPEC, "search", "first_token")
    assert byte_tokenizer().pieces(pairs.answers[0].tolist()) == ['"', "'"]
    with pytest.raises(SpecError, match=r"task 'bracket_counting': the answers .* begin with the same token"):
        make_pairs("bracket_counting", byte_tokenizer(), SPEC, "search", "first_token")


def test_batches_keep_pairs_together(tokenizer: Tokenizer) -> None:
    import torch

    pairs = make_pairs("for_while", tokenizer, SPEC, "search")
    batch = pairs.take(torch.tensor([3, 1]))
    assert len(batch) == 2
    assert batch.answers.tolist() == [pairs.answers[row].tolist() for row in (6, 7, 2, 3)]
    assert batch.signs.tolist() == [1, -1, 1, -1]
    assert [len(part) for part in pairs.split(5)] == [5, 5, 2]
