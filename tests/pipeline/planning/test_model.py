"""Networks without weights: the widths and the operations of the real ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import tiny_networks

from pipeline.models.forward import ActivationForward
from pipeline.models.hooks import available
from pipeline.models.load import load_model
from pipeline.planning.model import measure, sketch
from schemas.errors import HookPointError
from schemas.model import ModelSpec

L = 12


def saved(family: str, folder: Path) -> ModelSpec:
    tiny_networks.save(family, folder)
    return ModelSpec.model_validate(
        {"path": str(folder), "kind": tiny_networks.kind_of(family), "dtype": "float32", "device": "cpu"}
        | {"attention": "eager"}
    )


@pytest.mark.parametrize("family", [name for name in tiny_networks.FAMILIES if name != "granite"])
def test_a_sketch_is_the_real_network(family: str, tmp_path: Path) -> None:
    spec = saved(family, tmp_path)
    loaded = load_model(spec)
    hooks = [name for name in available(loaded.backbone) if name.startswith(("blocks.0.", "blocks.1."))]
    found = sketch(spec, hooks, L)
    forward = ActivationForward(loaded, hooks, context_length=L)
    assert found.widths == forward.widths
    with FlopCounterMode(display=False) as counter:
        forward.run(torch.zeros((1, L), dtype=torch.int64), torch.tensor([L]))
    assert found.flop_per_token == counter.get_total_flops() / L
    # Nothing behind the last hook point is counted.
    assert sketch(spec, ["blocks.0.hook_mlp_out"], L).flop_per_token < found.flop_per_token


def test_unknown_hook_points_are_named(tmp_path: Path) -> None:
    with pytest.raises(HookPointError, match=r"blocks\.9"):
        sketch(saved("llama", tmp_path), ["blocks.9.hook_resid_post"], L)


def test_modules_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWORKS_ALLOWED_IMPORTS", "torch.nn")
    spec = ModelSpec(path="python:torch.nn.Embedding", kind="module", dtype="float32", device="cpu",
                     arguments={"num_embeddings": 50, "embedding_dim": 7})  # fmt: skip
    assert sketch(spec, ["module::out"], L).widths == {"module::out": 7}


def test_a_measured_rate_is_of_this_machine(tmp_path: Path) -> None:
    rate = measure(saved("gpt2", tmp_path), ["blocks.1.hook_resid_post"], np.ones((4, L), np.int64), num_threads=1)
    assert 100 < rate < 1e8


def test_a_pattern_is_as_wide_as_the_longest_context(tmp_path: Path) -> None:
    found = sketch(saved("llama", tmp_path), ["blocks.0.attn.hook_pattern"], L, longest=20)
    assert found.widths == {"blocks.0.attn.hook_pattern": 4 * 20}
    assert found.activation == "silu"


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox_parallel"])
def test_gradients_take_the_way_back_and_what_it_needs(family: str, tmp_path: Path) -> None:
    spec = saved(family, tmp_path)
    hooks = ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre.grad", "blocks.2.mlp.hook_post.grad"]
    found, plain = sketch(spec, hooks, L), sketch(spec, ["blocks.2.hook_resid_post"], L)
    loaded = load_model(spec, with_head=True)
    forward = ActivationForward(loaded, hooks)
    assert found.widths == forward.widths
    kept: dict[int, int] = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in loaded.module.state_dict().values()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward.run(torch.zeros((1, L), dtype=torch.int64), torch.tensor([L]))
    head_flop = 2 * tiny_networks.D_MODEL * tiny_networks.VOCAB
    # Forth through all blocks and the head, and back through two blocks of three.
    assert 1.6 * plain.flop_per_token < found.flop_per_token - 2 * head_flop < 2.4 * plain.flop_per_token
    assert found.kept_bytes_per_token == pytest.approx(sum(kept.values()) / L, rel=0.25)
    assert plain.kept_bytes_per_token == 0
