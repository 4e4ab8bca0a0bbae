"""The rows of a batch as dictionaries see them: joined and scaled once for all that read or write the same points."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pipeline.dictionaries.dictionary import Dictionary

Moments = tuple[torch.Tensor, torch.Tensor]


class SharedRows:
    """Raw activations of one batch, hook point -> [B, D]. What is joined is kept until the batch is let go of.

    Dictionaries of one job scale a hook point alike, so two that name the same points share one tensor, which nobody
    may change.
    """

    def __init__(self, acts: Mapping[str, torch.Tensor]) -> None:
        self._acts = acts
        self._joined: dict[tuple[object, ...], torch.Tensor] = {}
        self._moments: dict[tuple[object, ...], Moments] = {}

    def sources(self, dictionary: Dictionary) -> torch.Tensor:
        """Scaled x [B, S]."""
        return self._get(_key(dictionary, dictionary.d_source), dictionary.join_sources)

    def targets(self, dictionary: Dictionary) -> torch.Tensor:
        """Scaled y [B, T]; of an autoencoder the tensor of ``sources``."""
        return self._get(_key(dictionary, dictionary.d_target), dictionary.join_targets)

    def target_moments(self, dictionary: Dictionary) -> Moments:
        """Sum over rows of y, float64 [T], and of its squared norm, float64 []."""
        key = _key(dictionary, dictionary.d_target)
        if key not in self._moments:
            y_BT = self.targets(dictionary)
            square = torch.linalg.vecdot(y_BT, y_BT).sum(dtype=torch.float64)
            self._moments[key] = (y_BT.sum(0, dtype=torch.float64), square)
        return self._moments[key]

    def _get(self, key: tuple[object, ...], join: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]) -> torch.Tensor:
        if key not in self._joined:
            self._joined[key] = join(self._acts)
        return self._joined[key]


def _key(dictionary: Dictionary, widths: Mapping[str, int]) -> tuple[object, ...]:
    return (tuple((point, dictionary.scales[point]) for point in widths), dictionary.b_dec.dtype)
