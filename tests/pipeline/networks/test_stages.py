"""Our decoders cut into stages: several processes, the bits of one."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
from small_networks import LAYERS, build, token_ids
from torch import Tensor

from pipeline.models.forward import ActivationForward
from pipeline.models.hooks import available
from pipeline.models.load import load_model
from pipeline.models.stages import StageForward
from pipeline.models.stages_load import load_stage
from schemas.model import ModelSpec


class Chain:
    """A link to the stage behind, in one process."""

    def __init__(self) -> None:
        self.states: deque[Tensor] = deque()

    def receive(self) -> Tensor:
        return self.states.popleft()

    def hand_on(self, hidden_BLD: Tensor) -> None:
        self.states.append(hidden_BLD)


@pytest.mark.parametrize("option", ["sparse", "sink", "bigram", "laurel"])
def test_stages_give_the_bits_of_one_process(option: str, tmp_path: Path) -> None:
    network = build(option)
    network.save_pretrained(tmp_path)
    spec = ModelSpec.model_validate({"path": str(tmp_path), "dtype": "float32", "device": "cpu"})
    names, ids, lengths = available(network), token_ids(), torch.tensor([9, 5, 1])
    expected = ActivationForward(load_model(spec), names).run(ids, lengths)
    before, found, chain = None, {}, Chain()
    for index in range(LAYERS):
        stage = load_stage(spec, names, index, LAYERS)
        assert stage.layers == range(index, index + 1)
        forward = StageForward(stage, before)
        before = forward.probed
        forward.settle(before)
        found |= forward.run(ids, lengths, chain)
    assert list(found) == names
    for name in names:
        assert torch.equal(found[name], expected[name]), name
