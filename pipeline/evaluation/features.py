"""What a person needs to judge a feature: its strongest contexts, its tokens, its activation values.

    1. choose latents, spread over the densities that were measured        choose_latents
    2. encode the searched rows, keep what the chosen latents did          FeatureSearch.add
    3. for each: strongest contexts, tokens by mean activation, histogram  FeatureSearch.features

T rows searched, F latents, N firings of chosen latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.reconstruction import Firings
from schemas.evaluate import ReportSpec

Pieces = Callable[[list[int]], list[str]]
"""Token ids -> what to print for each."""

TOP_TOKENS = 8
HISTOGRAM_BINS = 24
WELL_FIRED = (16, 8, 4, 2, 1)
"""A latent that fired less often has hardly a top context; the first bound that leaves enough latents is used."""


@dataclass(frozen=True)
class SearchedRows:
    """The rows searched for contexts: whole contexts, one after the other."""

    row: npt.NDArray[np.int64]
    """[T] row in the store."""
    context: npt.NDArray[np.int64]
    """[T] which of the searched contexts; not decreasing."""
    token_id: npt.NDArray[np.int32]
    """[T]."""
    document_id: npt.NDArray[np.int64]
    """[T]."""
    position: npt.NDArray[np.int32]
    """[T] place in the context."""
    held_out: npt.NDArray[np.bool_]
    """[T]."""
    eligible: npt.NDArray[np.bool_]
    """[T] rows that the dictionary is applied to."""

    def __len__(self) -> int:
        return len(self.row)


def choose_latents(fired: npt.NDArray[np.int64], num_features: int) -> npt.NDArray[np.int64]:
    """Latents at evenly spaced ranks of density among those that fired often enough, rarest first."""
    for bound in WELL_FIRED:
        alive = np.flatnonzero(fired >= bound)
        if len(alive) >= num_features:
            break
    ranked = alive[np.argsort(fired[alive], kind="stable")]
    places = np.linspace(0, len(ranked) - 1, min(num_features, len(ranked))).round().astype(np.int64)
    return ranked[places]


class FeatureSearch:
    """Collects the firings of chosen latents over ``rows``; ``features`` turns them into plain data for the page."""

    def __init__(
        self,
        latents: npt.NDArray[np.int64],
        fired: npt.NDArray[np.int64],
        num_rows: int,
        rows: SearchedRows,
        spec: ReportSpec,
    ) -> None:
        """``fired`` [F] of ``num_rows`` evaluation rows is where the densities come from."""
        self._latents = latents
        self._fired = fired
        self._num_rows = num_rows
        self._slot_of = np.full(len(fired), -1, dtype=np.int32)
        self._slot_of[latents] = np.arange(len(latents))
        self._rows = rows
        self._spec = spec
        self._slots = [np.empty(0, dtype=np.int32)]
        self._places = [np.empty(0, dtype=np.int64)]
        self._values = [np.empty(0, dtype=np.float32)]

    def add(self, places: npt.NDArray[np.int64], firings: Firings) -> None:
        """Count a batch; ``places`` [B] are the batch's rows as indices into the searched rows, in rising order."""
        slot = self._slot_of[firings.latent.cpu().numpy()]
        wanted = slot >= 0
        self._slots.append(slot[wanted])
        self._places.append(places[firings.row.cpu().numpy()[wanted]])
        self._values.append(firings.value.cpu().numpy()[wanted])

    def features(self, pieces: Pieces) -> list[dict[str, Any]]:
        """Each chosen latent that fired on the searched rows, rarest first."""
        slot, place = np.concatenate(self._slots), np.concatenate(self._places)
        value = np.concatenate(self._values)
        order = np.lexsort((place, slot))
        bounds = np.searchsorted(slot[order], np.arange(len(self._latents) + 1))
        vocabulary = Vocabulary(self._rows)
        found = []
        for index, latent in enumerate(self._latents):
            own = order[bounds[index] : bounds[index + 1]]
            if len(own):
                found.append(self._feature(int(latent), place[own], value[own], vocabulary, pieces))
        return found

    def _feature(
        self,
        latent: int,
        place: npt.NDArray[np.int64],
        value: npt.NDArray[np.float32],
        vocabulary: Vocabulary,
        pieces: Pieces,
    ) -> dict[str, Any]:
        counts, _ = np.histogram(value, bins=HISTOGRAM_BINS, range=(0, float(value.max())))
        return {
            "latent": latent,
            "fired": int(self._fired[latent]),
            "density": _round(float(np.log10(self._fired[latent] / self._num_rows))),
            "found": len(place),
            "max": _round(float(value.max())),
            "histogram": counts.tolist(),
            "tokens": vocabulary.strongest(place, value, pieces),
            "contexts": [self._context(top, place, value, pieces) for top in self._top_places(place, value)],
        }

    def _window(self, top: int) -> tuple[int, int]:
        """Bounds of the tokens shown: two thirds before the strongest one, within its context."""
        context = self._rows.context
        first, last = np.searchsorted(context, [context[top], context[top] + 1])
        start = max(int(first), top - 2 * self._spec.context_tokens // 3)
        stop = min(int(last), start + self._spec.context_tokens)
        return max(int(first), stop - self._spec.context_tokens), stop

    def _top_places(self, place: npt.NDArray[np.int64], value: npt.NDArray[np.float32]) -> list[int]:
        """Where the strongest contexts peak, strongest first: one of a context, no text twice."""
        chosen: list[int] = []
        contexts: set[int] = set()
        texts: set[bytes] = set()
        for top in place[np.argsort(-value, kind="stable")].tolist():
            start, stop = self._window(top)
            text = self._rows.token_id[start:stop].tobytes()
            context = int(self._rows.context[top])
            if context in contexts or text in texts:
                continue
            contexts.add(context)
            texts.add(text)
            chosen.append(top)
            if len(chosen) == self._spec.contexts_per_feature:
                break
        return chosen

    def _context(
        self, top: int, place: npt.NDArray[np.int64], value: npt.NDArray[np.float32], pieces: Pieces
    ) -> dict[str, Any]:
        start, stop = self._window(top)
        shown = np.zeros(stop - start, dtype=np.float32)
        inside = slice(*np.searchsorted(place, [start, stop]))
        shown[place[inside] - start] = value[inside]
        return {
            "top": top - start,
            "tokens": pieces(self._rows.token_id[start:stop].tolist()),
            "values": [_round(one) for one in shown.tolist()],
            "document": int(self._rows.document_id[top]),
            "position": int(self._rows.position[top]),
            "row": int(self._rows.row[top]),
            "held_out": bool(self._rows.held_out[top]),
        }


class Vocabulary:
    """The distinct tokens of the searched rows, and how often each is there."""

    def __init__(self, rows: SearchedRows) -> None:
        self._ids, inverse = np.unique(rows.token_id, return_inverse=True)
        self._of_place = inverse.reshape(-1)
        self._occurrences = np.bincount(self._of_place[rows.eligible], minlength=len(self._ids))

    def strongest(
        self, place: npt.NDArray[np.int64], value: npt.NDArray[np.float32], pieces: Pieces
    ) -> list[dict[str, Any]]:
        """Tokens by mean activation over all their occurrences, zeros included.

        Tokens seen once are left out where any other is there: their mean is one lucky value.
        """
        token = self._of_place[place]
        total = np.bincount(token, weights=value, minlength=len(self._ids))
        active = np.bincount(token, minlength=len(self._ids))
        mean = total / np.maximum(self._occurrences, 1)
        repeated = np.where(self._occurrences > 1, mean, 0.0)
        ranked = repeated if repeated.any() else mean
        best = [int(index) for index in np.argsort(-ranked, kind="stable")[:TOP_TOKENS] if ranked[index] > 0]
        texts = pieces([int(self._ids[index]) for index in best])
        return [
            {
                "text": text,
                "mean": _round(float(mean[index])),
                "active": int(active[index]),
                "occurrences": int(self._occurrences[index]),
            }
            for index, text in zip(best, texts, strict=True)
        ]


def _round(value: float) -> float:
    """Four digits: enough to read, and a page of them stays small."""
    return float(f"{value:.4g}")
