"""Networks that are built here, from text to rows: nodes behind their AbsTopK, patterns, gradients, every variant."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_job import built_table, small_spec
from torch.nn import functional
from transformers import AutoTokenizer

from pipeline.collection.prepare import prepare
from pipeline.collection.spot_check import spot_check
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.networks import HeadworksDecoderForCausalLM, build_network
from pipeline.planning.jobs import plan
from pipeline.store.reader import Store
from schemas.collect import CollectSpec
from schemas.network import NetworkSpec
from schemas.plan import PlanAssumptions

LENGTH, HEADS, WIDTH, VOCAB = 24, 4, 16, 258
HOOKS = ["blocks.0.hook_attn_in", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_v", "blocks.1.hook_resid_pre.grad",
         "blocks.1.mlp.hook_post", "blocks.1.hook_resid_post"]  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "sparse": {"activation_fraction": 0.25, "bigram_table": True, "attention_sink": True, "positions": "learned"},
    "steered": {"attention": {"kind": "pid"}, "residual": {"kind": "laurel", "form": "rw_lr_pa"}},
}


def saved(option: str, tokenizer: Path, folder: Path) -> HeadworksDecoderForCausalLM:
    facts = {"layers": 2, "d_model": WIDTH, "heads": HEADS, "context_length": LENGTH}
    network = build_network(NetworkSpec.model_validate(facts | OPTIONS[option]), VOCAB, seed=0)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.2)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return network.eval()


def spec_of(folder: Path, corpus: Path) -> CollectSpec:
    return small_spec(
        folder / "model", corpus, folder / "store", hook_points=HOOKS, model={"attention": "eager"},
        storage={"dtype": "float32", "codec": "sparse"}, tokens={"held_out_fraction": 0.0},
    )  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_stored_rows_are_those_of_each_context_alone(option: str, model: Path, corpus: Path, tmp_path: Path) -> None:
    network = saved(option, model, tmp_path / "model")
    spec = spec_of(tmp_path, corpus)
    (job,) = plan(spec, PlanAssumptions()).jobs
    for one in prepare(spec, built_table(spec)):
        collector = UnitCollector.open(one.of)
        for _ in collect_units(collector, one.units):
            pass
        collector.writer.finish()
    store = Store.open(spec.output)
    assert job.store is not None
    assert ("neurons behind gelu are hardly ever exactly zero" in " ".join(job.notes)) == (option == "steered")
    widths = [WIDTH, HEADS * LENGTH, WIDTH, WIDTH, 4 * WIDTH, WIDTH]
    assert job.store.hook_points == dict(zip(HOOKS, widths, strict=True))
    rows = {hook: store.read_values(hook, 0, store.num_rows) for hook in HOOKS}
    kept = {0: WIDTH, 2: WIDTH, 4: 4 * WIDTH} if option == "steered" else {0: 4, 2: 4, 4: 16}
    for index, count in kept.items():
        assert set((rows[HOOKS[index]] != 0).sum(1).tolist()) == {count}
    ids = torch.from_numpy(store.tokens().token_id.astype(np.int64))
    starts = [*np.flatnonzero(store.tokens().position == 0), store.num_rows]
    first, second = network.model.blocks
    found: dict[str, torch.Tensor] = {}
    second.mlp.neuron.register_forward_hook(lambda _, __, output: found.update(neurons=output))
    first.attn_in.register_forward_hook(lambda _, __, output: found.update(read=output))
    second.register_forward_pre_hook(lambda _, args: found.update(stream=args[0]) or args[0].retain_grad())
    second.register_forward_hook(lambda _, __, output: found.update(out=output))
    network.set_attn_implementation("eager")
    second.attn.register_forward_hook(lambda _, __, output: found.update(pattern=output[1]))
    for start, stop in list(pairwise(starts))[:5]:
        logits = network(ids[None, start:stop]).logits[0]
        functional.cross_entropy(logits[:-1], ids[start + 1 : stop], reduction="sum").backward()
        here = {hook: rows[hook][start:stop] for hook in HOOKS}
        close = {"rtol": 1e-3, "atol": 1e-5}
        np.testing.assert_allclose(here[HOOKS[0]], found["read"][0].detach().numpy(), **close)
        np.testing.assert_allclose(here[HOOKS[4]], found["neurons"][0].detach().numpy(), **close)
        np.testing.assert_allclose(here[HOOKS[5]], found["out"][0].detach().numpy(), **close)
        assert found["stream"].grad is not None
        np.testing.assert_allclose(here[HOOKS[3]], found["stream"].grad[0].numpy(), rtol=1e-3, atol=1e-4)
        pattern = here[HOOKS[1]].reshape(-1, HEADS, LENGTH)[:, :, : stop - start]
        np.testing.assert_allclose(pattern, found["pattern"][0].detach().transpose(0, 1).numpy(), **close)
    assert all(one.is_low_bits for one in spot_check(spec.output, 2))
