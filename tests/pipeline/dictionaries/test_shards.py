"""A dictionary that lies on several ranks starts as the whole one does, without any rank drawing all of it at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.dictionaries import initialise
from pipeline.dictionaries.dictionary import Dictionary
from schemas.dictionary import DictionarySpec

D = 5
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "topk": {"kind": "topk", "k": 2},
    "relu_l1_unit_norm": {"kind": "relu_l1_unit_norm", "resample_at": []},
    "jumprelu": {"kind": "jumprelu", "threshold": 0.3},
}


def started(num_latents: int, activation: dict[str, Any], latents: range | None = None, **fields: Any) -> Dictionary:
    facts = {"name": "d", "sources": ["a"], "num_latents": num_latents, "activation": activation, "seed": 3, **fields}
    spec = DictionarySpec.model_validate(facts)
    widths = dict.fromkeys(spec.target_points, D)
    dictionary = Dictionary(spec, {"a": D}, widths, {"a": 1.0, **dict.fromkeys(widths, 1.0)}, latents=latents)
    initialise.fill(dictionary, dict.fromkeys(widths, torch.ones(D)))
    return dictionary


@pytest.mark.parametrize("fields", [{}, {"targets": ["b"], "skip": True}, {"tied": True}], ids=str)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_shard_starts_with_its_rows_of_the_whole(
    kind: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_latents in (7, 33, 100):
        expected = started(num_latents, ACTIVATIONS[kind], **fields).state_dict()
        # 33 rows of 5 are no multiple of the 16 numbers that torch draws together.
        monkeypatch.setattr(initialise, "_PART_ROWS", 16)
        assert all(map(torch.equal, started(num_latents, ACTIVATIONS[kind], **fields).state_dict().values(),
                       expected.values()))  # fmt: skip
        for latents in (range(num_latents // 3), range(num_latents // 3, num_latents)):
            shard = started(num_latents, ACTIVATIONS[kind], latents, **fields)
            for name, tensor in shard.state_dict().items():
                is_shared = name in {"b_dec", "skip"}
                whole = expected[name] if is_shared else expected[name][latents.start : latents.stop]
                assert torch.equal(tensor, whole), (name, num_latents, latents)
        monkeypatch.undo()
