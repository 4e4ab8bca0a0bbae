"""A language model that explains a latent from examples and judges contexts by the explanation, in the way of delphi:
activating tokens stand between ``<<`` and ``>>``; the judge answers a list of zeros and ones for a few contexts at a
time. It gives no numbers to simulate with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.features import Pieces
from pipeline.interpretation.chat import ChatClient, Messages
from pipeline.interpretation.examples import Evidence, Example, Marked
from pipeline.interpretation.explanation import Explanation
from pipeline.interpretation.windows import Windows

_EXPLAIN = (
    "You study one feature inside a language model. You get pieces of text. In those where the feature is active, the "
    "tokens that it is active on stand between << and >>, and a list after the text gives how strongly, from 1 to 10. "
    "In the others it is silent. Say in one or two sentences what the marked tokens, or the text around them, have in "
    "common. Name words, meanings or positions, be as specific as the examples allow, and do not list the examples. "
    "End with one line: [EXPLANATION]: and your explanation."
)
_DETECT = (
    "You get the explanation of a feature inside a language model, and numbered pieces of text. Say for each whether "
    "the feature is active somewhere in it, going by the explanation alone. Answer with nothing but a list of as many "
    "ones (active) and zeros (silent) as there are pieces, such as [1, 0, 1]."
)
_FUZZ = (
    "You get the explanation of a feature inside a language model, and numbered pieces of text in which some tokens "
    "stand between << and >>. Say for each whether the marked tokens are those that the feature is active on, going by "
    "the explanation alone. Answer with nothing but a list of as many ones (right marks) and zeros (wrong marks) as "
    "there are pieces, such as [1, 0, 1]."
)
_ANSWER = re.compile(r"\[[01,\s]*\]")
_STRENGTHS = 10
"""Tokens of an example whose strengths are told."""


@dataclass(frozen=True)
class ChatJudge:
    """Asks about a few contexts at a time."""

    client: ChatClient
    text: str
    pieces: Pieces
    at_once: int

    def detect(self, examples: Sequence[Example]) -> list[bool | None]:
        """Asked of the plain texts."""
        return self._asked(_DETECT, ["".join(self.pieces(one.token_id.tolist())) for one in examples])

    def fuzz(self, marked: Sequence[Marked]) -> list[bool | None]:
        """Asked of the marked texts."""
        return self._asked(
            _FUZZ, [highlighted(self.pieces(one.example.token_id.tolist()), one.marks) for one in marked]
        )

    def simulate(self, windows: Windows) -> npt.NDArray[np.float32] | None:
        """Not asked: it would take a question for each token."""
        return None

    def _asked(self, instruction: str, texts: Sequence[str]) -> list[bool | None]:
        # Positive examples come first; a judge that noticed could answer by place.
        order = np.random.Generator(np.random.Philox(len(texts))).permutation(len(texts)).tolist()
        groups = [order[start : start + self.at_once] for start in range(0, len(order), self.at_once)]
        questions = [self._question(instruction, [texts[index] for index in group]) for group in groups]
        found: list[bool | None] = [None] * len(texts)
        for group, answer in zip(groups, self.client.ask_all(questions), strict=True):
            for index, said in zip(group, read_answer(answer, len(group)), strict=True):
                found[index] = said
        return found

    def _question(self, instruction: str, texts: Sequence[str]) -> Messages:
        listed = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))
        return [
            {"role": "system", "content": instruction},
            {"role": "user", "content": f"Explanation: {self.text}\n\n{listed}"},
        ]


class ChatTextExplainer:
    """Explains from the examples of the evidence; it is not told more than a person would be."""

    def __init__(self, client: ChatClient, pieces: Pieces, at_once: int) -> None:
        self._client = client
        self._pieces = pieces
        self._at_once = at_once

    def explain(self, evidence: Evidence) -> Explanation:
        """One question. An answer without the tag is taken as it is."""
        greatest = max((float(one.value.max()) for one in evidence.activating), default=0.0)
        shown = [self._active(one, greatest) for one in evidence.activating]
        shown += [f"Silent: {''.join(self._pieces(one.token_id.tolist()))}" for one in evidence.silent]
        answer = self._client.ask(
            [{"role": "system", "content": _EXPLAIN}, {"role": "user", "content": "\n".join(shown)}]
        )
        text = answer.rpartition("[EXPLANATION]:")[2].strip() or "no explanation"
        return Explanation(text, ChatJudge(self._client, text, self._pieces, self._at_once))

    def _active(self, example: Example, greatest: float) -> str:
        pieces = self._pieces(example.token_id.tolist())
        strongest = np.flatnonzero(example.strong)[:_STRENGTHS]
        told = [(pieces[index], max(1, round(10 * float(example.value[index]) / greatest))) for index in strongest]
        listed = ", ".join(f"{json.dumps(piece, ensure_ascii=False)}: {strength}" for piece, strength in told)
        return f"Active: {highlighted(pieces, example.strong)}\nStrengths: {listed}"


def highlighted(pieces: Sequence[str], marks: npt.NDArray[np.bool_]) -> str:
    """The text with every run of marked tokens between ``<<`` and ``>>``."""
    text, inside = "", False
    for piece, is_marked in zip(pieces, marks.tolist(), strict=True):
        if is_marked != inside:
            text += "<<" if is_marked else ">>"
            inside = is_marked
        text += piece
    return text + (">>" if inside else "")


def read_answer(text: str, number: int) -> list[bool | None]:
    """The first list of zeros and ones in an answer; None for each where there is none of that length."""
    match = _ANSWER.search(text)
    digits = re.findall(r"[01]", match[0]) if match else []
    return [digit == "1" for digit in digits] if len(digits) == number else [None] * number
