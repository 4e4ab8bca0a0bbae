"""One latent under study: what its explainer sees, what it is scored on, and the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.interpretation import scores
from pipeline.interpretation.examples import Evidence, Example, Marked, dealt_out, draw, mark
from pipeline.interpretation.explanation import Explanation, Judge
from pipeline.interpretation.windows import Windows
from schemas.interpret import InterpretSpec

ValuedWindows = tuple[Windows, npt.NDArray[np.float32]]
"""Windows, and the latent's value on each of their rows."""

_EXPLAINING, _SCORING, _MARKING, _DEALING, _SIMULATING = range(5)


@dataclass(frozen=True)
class Subject:
    """Examples of one latent from both halves."""

    latent: int
    fired: int
    """Rows of the explaining half on which it is on."""
    evidence: Evidence
    examples: Sequence[Example]
    """Of the scoring half, activating ones first."""
    marked: Sequence[Marked]
    scoring: ValuedWindows
    spec: InterpretSpec

    @staticmethod
    def drawn(
        latent: int, fired: int, explaining: ValuedWindows, scoring: ValuedWindows, spec: InterpretSpec
    ) -> Subject | None:
        """None where the latent is on, or off, in fewer than ``spec.min_examples`` windows of either half."""
        for windows, value_T in (explaining, scoring):
            num_on = int((windows.greatest(value_T) > 0).sum())
            if num_on < spec.min_examples or len(windows) - num_on < spec.min_examples:
                return None
        evidence = _evidence(latent, explaining, spec, _generator(spec, latent, _EXPLAINING))
        activating, silent = draw(
            *scoring,
            number=spec.scored_examples,
            quantiles=spec.quantiles,
            generator=_generator(spec, latent, _SCORING),
        )
        marked = mark(activating, silent, wrong_on=spec.fuzzing, generator=_generator(spec, latent, _MARKING))
        return Subject(latent, fired, evidence, [*activating, *silent], marked, scoring, spec)

    def by_chance(self) -> Evidence:
        """The same latent with its values on other rows, so that there is nothing to explain."""
        generator = _generator(self.spec, self.latent, _DEALING)
        value_T = dealt_out(self.evidence.windows, self.evidence.value, generator)
        return _evidence(self.latent, (self.evidence.windows, value_T), self.spec, generator)

    def scored(self, judge: Judge) -> dict[str, Any]:
        """All scores of an explanation, this latent's own or another."""
        generator = _generator(self.spec, self.latent, _SIMULATING)
        number = self.spec.scored_examples
        return {
            "detection": scores.detection(judge, self.examples),
            "fuzzing": scores.fuzzing(judge, self.marked),
            "simulation": scores.simulation(judge, *self.scoring, number=number, generator=generator),
        }


@dataclass(frozen=True)
class Interpreted:
    """A latent with its explanation and what it scores."""

    latent: int
    fired: int
    explanation: Explanation
    scores: Mapping[str, Any]
    controls: Mapping[str, Mapping[str, Any]]


def _evidence(latent: int, explaining: ValuedWindows, spec: InterpretSpec, generator: np.random.Generator) -> Evidence:
    activating, silent = draw(
        *explaining, number=spec.explained_examples, quantiles=spec.quantiles, generator=generator
    )
    return Evidence(latent, *explaining, activating, silent)


def _generator(spec: InterpretSpec, latent: int, purpose: int) -> np.random.Generator:
    """A stream of its own for each choice, so that none depends on which latents are explained besides."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([spec.seed, 2, latent, purpose])))
