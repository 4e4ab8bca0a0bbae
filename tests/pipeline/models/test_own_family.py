"""A new model family: what docs/models.md says of it, on a made-up architecture of less than 50 lines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from headworks import Family
from pipeline.models.forward import ActivationForward
from pipeline.models.hooks import available, find_blocks, resolve
from pipeline.models.load import load_model
from schemas.errors import HookPointError, ModelError
from schemas.model import ModelSpec

HERE = Path(__file__).parent


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("HEADWORKS_ALLOWED_IMPORTS", "own_family")
    return ModelSpec(path="python:own_family.build", kind="module", dtype="float32", device="cpu")


def test_the_whole_architecture_takes_less_than_50_lines() -> None:
    lines = (HERE / "own_family.py").read_text("utf-8").splitlines()
    assert len(lines) < 50
    declared = [line.strip() for line in lines[lines.index("    hook_family = Family(") :][:4]]
    said = (HERE.parents[2] / "docs" / "models.md").read_text("utf-8").splitlines()
    shown = [line.partition("#")[0].strip() for line in said[said.index("    hook_family = Family(") :][:4]]
    assert shown == declared  # docs/models.md shows this family


def test_its_points_have_names(spec: ModelSpec) -> None:
    loaded = load_model(spec)
    assert loaded.num_layers == 2
    points = ["hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "hook_attn_out",
              "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post"]  # fmt: skip
    assert available(loaded.module) == [f"blocks.{layer}.{point}" for layer in range(2) for point in points]
    with pytest.raises(HookPointError, match="a made-up block both read"):
        resolve(loaded.module, ["blocks.0.hook_resid_mid"])


def test_its_activations_are_its_own(spec: ModelSpec) -> None:
    loaded = load_model(spec)
    names = available(loaded.module)
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
    found = ActivationForward(loaded, names).run(ids, torch.tensor([5, 3]))
    whole = loaded.module(ids)
    torch.testing.assert_close(found["blocks.1.hook_resid_post"], whole)
    fed = loaded.module[1][1].feed.fc2(found["blocks.1.mlp.hook_post"])  # type: ignore[index]
    torch.testing.assert_close(fed.tanh(), found["blocks.1.hook_mlp_out"])
    assert torch.equal(found["blocks.0.hook_resid_post"], found["blocks.1.hook_resid_pre"])
    assert bool((found["blocks.1.mlp.hook_post"] == 0).any())


def test_a_block_that_does_not_add_up_is_found_out(spec: ModelSpec) -> None:
    loaded = load_model(spec)
    loaded.module[1][0].gate = nn.Identity()  # type: ignore[index]
    ActivationForward(loaded, ["blocks.0.hook_resid_post"])
    right = type(loaded.module[1][0]).hook_family  # type: ignore[index]
    loaded.module[1][0].hook_family = loaded.module[1][1].hook_family = Family(  # type: ignore[index]
        "wrong", right.points, (("hook_resid_post", "hook_resid_pre", "hook_mlp_out"),)
    )
    with pytest.raises(HookPointError, match="built like wrong, but its hook_resid_post is not"):
        ActivationForward(loaded, ["blocks.0.hook_resid_post"])


def test_a_declaration_that_names_what_is_not_there_is_refused(spec: ModelSpec) -> None:
    block = load_model(spec).module[1][0]  # type: ignore[index]
    for declared, said in (
        (Family("a", {"hook_mlp_out": ("feeed", "out")}, ()), r"child modules that the block has not: \['feeed'\]"),
        (Family("a", {}, (("hook_resid_post", "hook_resid_pre"),)), "sums of points that it does not name"),
        ("Llama", "expected a headworks.Family"),
    ):
        block.hook_family = declared
        with pytest.raises(ModelError, match=said):
            find_blocks(nn.Sequential(block))
