"""A checkpoint exists when its JSON does, and only whole ones are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoints, Progress
from schemas.errors import CorruptionError


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"d": {"weights": torch.full((3,), value), "rows_since_fired": torch.arange(3)}}


def read(checkpoints: Checkpoints, step: int) -> dict[str, torch.Tensor]:
    return dict(checkpoints.read_state(step, "d"))


def write(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        states = ((name, tensors.items()) for name, tensors in state(step).items())
        checkpoints.write(Progress(step, step * 10, 1, 2, {"d": {"fvu": 0.5}}), {"seed": 1}, states)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.steps() == []
    write(checkpoints, 5)
    progress, identity = checkpoints.read_record(5)
    assert progress == Progress(5, 50, 1, 2, {"d": {"fvu": 0.5}})
    assert identity == {"seed": 1}
    saved = read(checkpoints, 5)
    assert torch.equal(saved["weights"], torch.full((3,), 5.0))
    assert saved["rows_since_fired"].dtype == torch.int64


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    write(checkpoints, 1, 2, 3)
    assert checkpoints.steps() == [2, 3]


def test_one_without_its_json_does_not_exist_and_is_swept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    write(checkpoints, 1)
    torn = tmp_path / "checkpoints" / "000000009"
    torn.mkdir()
    (torn / "d.safetensors").write_bytes(b"half")
    assert checkpoints.steps() == [1]
    write(checkpoints, 2)
    assert not list(torn.glob("*"))


def test_altered_tensors_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    write(checkpoints, 1)
    path = tmp_path / "checkpoints" / "000000001" / "d.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptionError, match="resume from the checkpoint before it"):
        read(checkpoints, 1)


def test_a_large_state_lies_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PART_BYTES", 12)
    checkpoints = Checkpoints(str(tmp_path))
    write(checkpoints, 1)
    folder = tmp_path / "checkpoints" / "000000001"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")) == [
        "d.safetensors", "d/1.safetensors",
    ]  # fmt: skip
    assert {name: tensor.tolist() for name, tensor in read(checkpoints, 1).items()} == {
        "weights": [1.0] * 3, "rows_since_fired": [0, 1, 2],
    }  # fmt: skip
    (folder / "d" / "1.safetensors").write_bytes(b"damaged")
    with pytest.raises(CorruptionError, match=r"d/1\.safetensors has SHA-256"):
        read(checkpoints, 1)
    write(checkpoints, 2, 3)
    assert not list(folder.rglob("*.safetensors"))
