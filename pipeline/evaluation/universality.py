"""The dictionaries of an evaluation compared with each other, see ``pipeline.analysis.compare``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from pipeline.analysis.compare import Side, compare_dictionaries
from pipeline.evaluation import belonging
from pipeline.evaluation.counting import Counter
from pipeline.evaluation.trained import Trained
from pipeline.store.joined import AnyStore
from schemas.errors import SpecError, nearest
from schemas.evaluate import EvaluateSpec, UniversalitySpec

UNIVERSALITY_DEFINITIONS = {
    "Universality": "Every latent of the second dictionary goes with the latent of the first whose activations "
    "correlate best with its own; each latent once, weak pairs left out. Of the pairs' decoder rows: SVCCA, the mean "
    "canonical correlation of the directions that hold 99 % of the variance, and RSA, the Spearman correlation of the "
    "dissimilarities between rows. Effect: how many deviations of shuffled pairs it lies above their mean. Concepts: "
    "the pairs whose five strongest tokens are words or numbers, at least one the same.",
}


def require_pairs(dictionaries: Sequence[Trained], spec: EvaluateSpec) -> None:
    """Refuse names that no dictionary has, and a folder with one dictionary.

    Raises:
        SpecError: naming them.
    """
    if spec.universality is None:
        return
    names = [trained.name for trained in dictionaries]
    for name in (name for pair in spec.universality.pairs for name in pair):
        if name not in names:
            raise SpecError(
                f"universality.pairs names {name!r}, which {spec.dictionaries} does not have{nearest(name, names)} "
                f"It has: {names}"
            )
    if not _pairs(dictionaries, spec.universality):
        raise SpecError(
            f"universality compares dictionaries with each other, and {spec.dictionaries} has {names} alone; leave it "
            "out"
        )


def universality_figures(
    store: AnyStore, dictionaries: Sequence[Trained], asked: UniversalitySpec, *, seed: int, count: Counter
) -> list[dict[str, Any]]:
    """JSON: for each pair the names ``first, second``, and what ``compare_dictionaries`` says."""
    pieces = belonging.tokenizer_of(store).pieces
    pairs = _pairs(dictionaries, asked)
    count.begin("universality", len(pairs) * min(asked.rows, store.num_rows))
    found = []
    for first, second in pairs:
        figures = compare_dictionaries(
            Side(first.dictionary, store),
            Side(second.dictionary, store),
            max_rows=asked.rows,
            above=asked.above,
            num_shuffles=asked.shuffles,
            seed=seed,
            pieces=pieces,
        )
        found.append({"first": first.name, "second": second.name, **figures})
        count(figures["rows"])
    count.end()
    return found


def _pairs(dictionaries: Sequence[Trained], asked: UniversalitySpec) -> list[tuple[Trained, Trained]]:
    by_name = {trained.name: trained for trained in dictionaries}
    return [(by_name[a], by_name[b]) for a, b in asked.pairs or combinations(by_name, 2)]
