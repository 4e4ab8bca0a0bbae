"""What an explainer is and what it gives: words for people, and a judge that knows nothing but the explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.interpretation.examples import Evidence, Example, Marked
from pipeline.interpretation.windows import Windows


class Judge(Protocol):
    """Answers by an explanation alone; it never looks at values or at what is right."""

    def detect(self, examples: Sequence[Example]) -> list[bool | None]:
        """Is the latent on somewhere in each? None: no answer."""
        ...

    def fuzz(self, marked: Sequence[Marked]) -> list[bool | None]:
        """Are the marked tokens those that the latent is on for? None: no answer."""
        ...

    def simulate(self, windows: Windows) -> npt.NDArray[np.float32] | None:
        """The value expected at every row, [T] in any unit; None where the explanation gives no numbers."""
        ...


@dataclass(frozen=True)
class Explanation:
    """Of one latent."""

    text: str
    """For people."""
    judge: Judge
    tokens: list[dict[str, Any]] = field(default_factory=list)
    """JSON: tokens that it names, strongest first."""


class Explainer(Protocol):
    """Examples in, explanation out."""

    def explain(self, evidence: Evidence) -> Explanation:
        """Of one latent."""
        ...
