"""A task's pairs of prompts in the tokens of one model.

Letters: N prompts, twice as many as pairs; L tokens of the longest. Prompts 2i and 2i + 1 are a pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from pipeline.circuits.tasks.nonsense import nonsense
from pipeline.grammar.pieces import filler
from pipeline.grammar.templates import TEMPLATES, Statement, Template
from pipeline.tokens.tokenizer import Tokenizer
from schemas.circuit import NONSENSE, TaskSpec
from schemas.errors import SpecError

ALL: Mapping[str, Template] = MappingProxyType(dict([*TEMPLATES.items(), (NONSENSE, nonsense)]))
"""Task -> template, the control last."""

Split = Literal["search", "held_out"]


@dataclass(frozen=True)
class Pairs:
    """Prompts and, for each, the token that follows in its own text and the one that follows in its partner's."""

    token_ids: Tensor
    """int64 [N, L], padded on the right."""
    lengths: Tensor
    """int64 [N]; the prediction is made at ``lengths - 1``."""
    answers: Tensor
    """int64 [N, 2]: the first prompt's answer and the second's, the same of both prompts of a pair."""

    def __len__(self) -> int:
        return len(self.token_ids) // 2

    @property
    def signs(self) -> Tensor:
        """float32 [N]: 1 where the first answer is right, -1 where the second is."""
        return torch.tensor([1.0, -1.0], device=self.token_ids.device).repeat(len(self))

    def take(self, pairs: Tensor) -> Pairs:
        """The pairs of these numbers."""
        rows = torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten().to(self.token_ids.device)
        longest = int(self.lengths[rows].max())
        return Pairs(self.token_ids[rows, :longest], self.lengths[rows], self.answers[rows])

    def split(self, most: int) -> Iterator[Pairs]:
        """All pairs in order, at most so many at a time."""
        for start in range(0, len(self), most):
            yield self.take(torch.arange(start, min(start + most, len(self))))

    def to(self, device: torch.device) -> Pairs:
        """The same on another device."""
        return Pairs(self.token_ids.to(device), self.lengths.to(device), self.answers.to(device))


def make_pairs(task: str, tokenizer: Tokenizer, spec: TaskSpec, split: Split, answers: str = "single_token") -> Pairs:
    """The pairs of a task, on the CPU; the same seed gives the same ones.

    Raises:
        SpecError: an answer is not one token of the tokenizer (``answers``: ``single_token``), or both answers of a
            pair begin with one token; the message names the task and the tokens.
    """
    return posed(task, ALL[task], tokenizer, spec, split, answers)


def posed(
    task: str, form: Template, tokenizer: Tokenizer, spec: TaskSpec, split: Split, answers: str = "single_token"
) -> Pairs:
    """The same of any template; ``task`` is its name in messages and a part of the seed."""
    draw = Random(_seed(task, spec.seed, split))
    number = spec.pairs if split == "search" else spec.held_out_pairs
    statements = [statement for _ in range(number) for statement in _pair(form, draw, spec.context_lines)]
    begin = [tokenizer.bos_id] if spec.begin == "bos" else []
    prompts = [ids.tolist() for ids in tokenizer.encode([one.prompt for one in statements])]
    texts = [ids.tolist() for ids in tokenizer.encode([one.text for one in statements])]
    found = [
        _answer(task, tokenizer, statement, prompt, text, answers)
        for statement, prompt, text in zip(statements, prompts, texts, strict=True)
    ]
    for number, (first, second) in enumerate(zip(found[::2], found[1::2], strict=True)):
        if first == second:
            one, other = statements[2 * number].answer, statements[2 * number + 1].answer
            raise SpecError(
                f"task {task!r}: the answers {one!r} and {other!r} begin with the same token of this model's "
                f"tokenizer, {tokenizer.pieces([first])[0]!r}, so nothing tells them apart; choose other tasks"
            )
    lengths = torch.tensor([len(begin) + len(prompt) for prompt in prompts])
    token_ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in zip(token_ids, prompts, strict=True):
        row[: len(begin) + len(prompt)] = torch.tensor([*begin, *prompt])
    return Pairs(token_ids, lengths, torch.tensor(found).reshape(-1, 2).repeat_interleave(2, dim=0))


def _seed(task: str, seed: int, split: Split) -> int:
    return int.from_bytes(hashlib.sha256(f"{task}|{seed}|{split}".encode()).digest()[:8], "big")


def _pair(form: Template, draw: Random, context_lines: int) -> Iterator[Statement]:
    """Both forms with the same names and words, behind the same lines."""
    before = "".join(filler(draw) for _ in range(draw.randint(0, context_lines)))
    seed = draw.getrandbits(64)
    for second in (False, True):
        drawn = form(Random(seed), second)
        yield Statement(before + drawn.prompt, drawn.answer, drawn.rest)


def _answer(
    task: str, tokenizer: Tokenizer, statement: Statement, prompt: list[int], text: list[int], answers: str
) -> int:
    """The token that follows the prompt in the whole text, which has to cut where the prompt ends."""
    if text[: len(prompt)] != prompt or len(text) == len(prompt):
        raise SpecError(
            f"task {task!r}: the tokenizer of this model joins the end of the prompt {statement.prompt!r} with the "
            f"answer {statement.answer!r} into one token, so no next token decides; choose other tasks"
        )
    token = text[len(prompt)]
    piece = tokenizer.decode([token])
    if answers == "single_token" and piece != statement.answer:
        pieces = tokenizer.pieces(text[len(prompt) : len(prompt) + 4])
        raise SpecError(
            f"task {task!r}: the answer {statement.answer!r} after {statement.prompt!r} is not a single token of this "
            f"model's tokenizer (the text goes on with {pieces}); choose other tasks, or answers: first_token"
        )
    return token
