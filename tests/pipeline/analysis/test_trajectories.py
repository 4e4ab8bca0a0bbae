"""Peaks, onsets, angles and dimensionalities of weights that are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.analysis import trajectories
from pipeline.dictionaries.dictionary import Dictionary
from schemas.activation import TopK
from schemas.dictionary import DictionarySpec
from schemas.errors import SpecError


def parts_of(*tables: list[list[float]]) -> dict[str, torch.Tensor]:
    return {f"snapshot{k}": torch.tensor(table) for k, table in enumerate(tables)}


def test_parts_are_the_decoder_by_target() -> None:
    spec = DictionarySpec(name="d", sources=["a", "b"], num_latents=4, activation=TopK(k=2))
    dictionary = Dictionary(spec, {"a": 2, "b": 3}, {"a": 2, "b": 3}, {"a": 1.0, "b": 2.0})
    dictionary.decoder.data.copy_(torch.arange(20.0).view(4, 5))
    parts = trajectories.decoder_parts(dictionary)
    assert list(parts) == ["a", "b"]
    assert parts["b"].tolist() == [[2, 3, 4], [7, 8, 9], [12, 13, 14], [17, 18, 19]]


def test_peak_and_onset_by_hand() -> None:
    norms_FH = torch.tensor(
        [
            [0.0, 0.2, 1.0, 0.9],  # rises at 2
            [1.0, 0.995, 1.001, 1.0],  # flat: the earliest within 1 %
            [0.4, 0.6, 0.7, 1.0],  # onset before the peak
            [0.0, 0.0, 0.0, 0.0],  # never lived
        ]
    )
    assert trajectories.peak_index(norms_FH).tolist() == [2, 0, 3, -1]
    assert trajectories.onset(norms_FH).tolist() == [2, 0, 1, -1]
    assert trajectories.peak_index(norms_FH, tolerance=0.0).tolist() == [2, 2, 3, -1]


def test_rotation_by_hand() -> None:
    parts = parts_of([[1.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [3.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]])
    cos = trajectories.rotation(parts)
    half = math.sqrt(0.5)
    torch.testing.assert_close(cos[0], torch.tensor([[1, 0, half], [0, 1, half], [half, half, 1]]))
    # Without a direction at the first snapshot all its cosines are 0, that with itself too.
    torch.testing.assert_close(cos[1], torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    torch.testing.assert_close(trajectories.rotation(parts, torch.tensor([1]))[0], cos[1])


def test_the_mean_rotation_leaves_out_who_does_not_live() -> None:
    parts = parts_of([[1.0, 0.0], [0.01, 0.0]], [[0.0, 1.0], [1.0, 0.0]])
    mean = trajectories.mean_rotation(parts, block=1)
    torch.testing.assert_close(mean, torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    gone = parts_of([[0.0, 0.0]], [[0.0, 1.0]])
    assert trajectories.mean_rotation(gone)[0, 1].isnan()


def test_directions_of_different_widths_are_refused() -> None:
    with pytest.raises(SpecError, match=r"one width; got .*'b': 3"):
        trajectories.rotation({"a": torch.ones(1, 2), "b": torch.ones(1, 3)})


def test_relative_norms_tell_exclusive_from_shared() -> None:
    norms_FH = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0], [0.0, 0.0]])
    found = trajectories.relative_norm(norms_FH, 0, 1)
    assert found[:3].tolist() == [0.0, 0.5, 1.0]
    assert found[3].isnan()


def test_dimensionality_by_hand() -> None:
    orthogonal = torch.eye(5) * torch.arange(1.0, 6)[:, None]
    torch.testing.assert_close(trajectories.dimensionalities(orthogonal), torch.ones(5, dtype=torch.float64))
    antipodal = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(
        trajectories.dimensionalities(antipodal), torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    )
    angles = torch.arange(5) * 2 * math.pi / 5
    pentagon = torch.stack([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(trajectories.dimensionalities(pentagon), torch.full((5,), 0.4, dtype=torch.float64))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31), st.floats(-3, 3))
def test_dimensionalities_never_exceed_the_width(num_rows: int, width: int, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = (spread * torch.randn(num_rows, 1, generator=generator)).exp()
    rows_FD = torch.randn(num_rows, width, generator=generator) * scales
    assert float(trajectories.dimensionalities(rows_FD).sum()) <= width * (1 + 1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_figures_of_weights_on_a_gpu() -> None:
    parts = {f"snapshot{k}": torch.randn(6, 4, generator=torch.Generator().manual_seed(k)) for k in range(3)}
    there = {name: part.cuda() for name, part in parts.items()}
    for figure in (trajectories.mean_rotation, lambda parts: trajectories.mean_trajectories(trajectories.norms(parts))):
        torch.testing.assert_close(figure(there).cpu(), figure(parts), equal_nan=True)


def test_trajectories_are_averaged_by_onset() -> None:
    norms = torch.tensor([[2.0, 1.0, 0.0], [4.0, 4.0, 4.0], [0.1, 0.2, 1.0], [0.0, 0.0, 0.0]])
    found = trajectories.mean_trajectories(norms)
    torch.testing.assert_close(found[0], torch.tensor([1.0, 0.75, 0.5], dtype=torch.float64))
    assert found[1].isnan().all()
    torch.testing.assert_close(found[2], torch.tensor([0.1, 0.2, 1.0], dtype=torch.float64))
