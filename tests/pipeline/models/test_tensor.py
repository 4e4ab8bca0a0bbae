"""Networks split over two ranks on gloo: near one process, a share of the weights each, every hook point once."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from tiny_networks import LAYERS, save, token_ids

from pipeline.models.forward import ActivationForward
from pipeline.models.load import load_model
from pipeline.models.tensor import BOUND, RankForward, load_shard, require_plan
from schemas.errors import HookPointError, ModelError
from schemas.model import ModelSpec

FAMILIES = ["llama", "gemma2", "neox_parallel", "neox_sequential", "qwen3"]
POINTS = [
    f"blocks.{layer}.{point}"
    for layer in range(LAYERS)
    for point in ("hook_resid_pre", "hook_attn_out", "hook_mlp_in", "hook_mlp_out", "hook_resid_post")
]


def spec_of(folder: Path, family: str, dtype: str) -> ModelSpec:
    attention = "eager" if family == "gemma2" else "sdpa"
    return ModelSpec.model_validate({"path": str(folder), "dtype": dtype, "device": "cpu", "attention": attention})


def check_rank(rank: int, port: int, specs: Sequence[ModelSpec]) -> None:
    """In a process of its own; raises where something is wrong."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for spec in specs:
        loaded = load_shard(spec, 2)
        forward = RankForward.open(loaded, POINTS, rank, 2)
        assert list(forward.own) == POINTS[rank::2]
        ids, lengths = token_ids(4, 9, seed=3), torch.tensor([9, 9, 5, 2])
        found = forward.run(ids, lengths)
        whole = load_model(spec)
        expected = ActivationForward(whole, POINTS).run(ids, lengths)
        for name, acts_BLD in found.items():
            for ours, theirs, length in zip(acts_BLD, expected[name], lengths.tolist(), strict=True):
                error = (ours[:length].float() - theirs[:length].float()).norm(dim=-1)
                assert bool((error <= BOUND[loaded.dtype] * theirs[:length].float().norm(dim=-1)).all()), (spec, name)
        assert held(loaded.module) < 0.6 * held(whole.module), "half of all but embeddings and norms"
        neurons = "dense_h_to_4h" if "neox" in spec.path else "up_proj"
        with pytest.raises(HookPointError, match="is split over the processes"):
            RankForward.open(loaded, [f"module:layers.0.mlp.{neurons}:out"], rank, 2)
    torch.distributed.destroy_process_group()


def held(module: torch.nn.Module) -> int:
    local: Any = [getattr(parameter, "_local_tensor", parameter) for parameter in module.parameters()]
    return sum(tensor.numel() for tensor in local)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_ranks_agree_with_one_process(tmp_path: Path) -> None:
    specs = []
    for family in FAMILIES:
        save(family, tmp_path / family)
        specs += [spec_of(tmp_path / family, family, dtype) for dtype in ("float32", "bfloat16")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(check_rank, (port, specs), nprocs=2)


def test_what_cannot_be_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("gpt2", tmp_path / "gpt2")
    with pytest.raises(ModelError, match="no plan for splitting GPT2LMHeadModel"):
        require_plan(spec_of(tmp_path / "gpt2", "gpt2", "float32"), 2)
    save("llama", tmp_path / "llama")
    require_plan(spec_of(tmp_path / "llama", "llama", "float32"), 2)
    with pytest.raises(ModelError, match=r"\(4\) does not divide num_key_value_heads \(2\)"):
        require_plan(spec_of(tmp_path / "llama", "llama", "float32"), 4)
    monkeypatch.setenv("HEADWORKS_ALLOWED_IMPORTS", "tiny_networks")
    with pytest.raises(ModelError, match="splits language models of transformers by their own plans"):
        require_plan(ModelSpec.model_validate({"path": "python:tiny_networks.Doubler", "kind": "module"}), 2)
