"""Running a dictionary over windows: how often each latent is on, and the values of chosen latents.

T rows, F latents, N firings of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from pipeline.evaluation.reconstruction import Firings
from pipeline.evaluation.trained import Trained
from pipeline.interpretation.windows import Windows
from pipeline.store.joined import AnyStore

Count = Callable[[int], None]
"""Called with the number of rows that were just done."""


class LatentValues:
    """What chosen latents did on the rows of windows."""

    def __init__(self, num_rows: int, latents: npt.NDArray[np.int64], num_latents: int) -> None:
        self._num_rows = num_rows
        self._slot_of = np.full(num_latents, -1, dtype=np.int64)
        self._slot_of[latents] = np.arange(len(latents))
        self._found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []

    def add(self, places: npt.NDArray[np.int64], firings: Firings) -> None:
        """Count a batch; ``places`` [B]: its rows as indices into the windows' rows."""
        slot = self._slot_of[firings.latent.cpu().numpy()]
        wanted = slot >= 0
        row, value = firings.row.cpu().numpy()[wanted], firings.value.cpu().numpy()[wanted]
        self._found.append((slot[wanted], places[row], value))

    def of(self, latent: int) -> npt.NDArray[np.float32]:
        """[T], zeros where it is off."""
        value_T = np.zeros(self._num_rows, dtype=np.float32)
        for slot, place, value in self._found:
            own = slot == self._slot_of[latent]
            value_T[place[own]] = value[own]
        return value_T


def count_fired(store: AnyStore, trained: Trained, windows: Windows, count: Count) -> npt.NDArray[np.int64]:
    """Rows on which each latent is on, [F]."""
    fired_F = np.zeros(trained.dictionary.num_latents, dtype=np.int64)
    for places, firings in _encoded(store, trained, windows):
        fired_F += np.bincount(firings.latent.cpu().numpy(), minlength=len(fired_F))
        count(len(places))
    return fired_F


def read_values(
    store: AnyStore, trained: Trained, windows: Windows, latents: npt.NDArray[np.int64], count: Count
) -> LatentValues:
    """Values of the chosen latents on all rows of the windows."""
    values = LatentValues(len(windows.row), latents, trained.dictionary.num_latents)
    for places, firings in _encoded(store, trained, windows):
        values.add(places, firings)
        count(len(places))
    return values


@torch.no_grad()
def _encoded(store: AnyStore, trained: Trained, windows: Windows) -> Iterator[tuple[npt.NDArray[np.int64], Firings]]:
    places = np.flatnonzero(windows.eligible)
    for start in range(0, len(places), trained.batch_rows):
        part = places[start : start + trained.batch_rows]
        rows = windows.row[part]
        acts = {hook: torch.from_numpy(store.gather_values(hook, rows)) for hook in trained.record.d_source}
        yield part, trained.encode(acts)
