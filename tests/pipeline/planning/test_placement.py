"""Where replicas go, by the memory that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.planning import placement
from pipeline.planning.placement import ACTIVATIONS_SHARE, Node, place
from schemas.collect import CollectSpec
from schemas.errors import ModelError, ResourceError

LAYERS, WIDTH, VOCAB = 4, 16, 40
PROCESS_BYTES = 1000


@pytest.fixture(autouse=True)
def _small_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the weights of the tiny networks matter beside them."""
    monkeypatch.setattr(placement, "PROCESS_BYTES", PROCESS_BYTES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama, which has a plan for splitting it, and a GPT-2, which has none."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("models")
    llama = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(root / "llama")
    gpt2 = GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64)
    GPT2LMHeadModel(gpt2).save_pretrained(root / "gpt2")
    return {"llama": root / "llama", "gpt2": root / "gpt2"}


def spec_of(folder: Path, **workers: Any) -> CollectSpec:
    facts = {
        "model": {"path": str(folder), "dtype": "float32"},
        "tokens": {"corpus": {"format": "text", "urls": ["*.txt"]}},
        "hook_points": ["blocks.0.hook_resid_post"],
        "workers": workers,
        "output": "store",
    }
    return CollectSpec.model_validate(facts)


def room_for(folder: Path, share: float) -> int:
    """Memory that takes so much of the model's weights."""
    weights = (folder / "model.safetensors").stat().st_size
    return PROCESS_BYTES + int(weights * share * (1 + ACTIVATIONS_SHARE))


def placed(spec: CollectSpec, *nodes: Node, **begun: int) -> tuple[str, int]:
    found = place(spec, nodes, **begun)
    applied = found.applied(spec.workers)
    assert (applied.placement, applied.processes_per_replica) == (
        found.placement, 0 if found.placement == "replica" else found.processes,
    )  # fmt: skip
    return found.placement, found.processes


def test_a_model_that_fits_is_whole(folders: dict[str, Path]) -> None:
    assert placed(spec_of(folders["llama"]), Node(room_for(folders["llama"], 1.1))) == ("replica", 1)
    gpu = Node(0, num_gpus=2, gpu_bytes=room_for(folders["llama"], 1.1))
    assert placed(spec_of(folders["llama"], gpus_per_worker=1), gpu) == ("replica", 1)


def test_on_nodes_that_are_too_small_it_is_cut_into_stages(folders: dict[str, Path]) -> None:
    node = Node(room_for(folders["llama"], 0.6))
    assert placed(spec_of(folders["llama"]), node, node) == ("stages", 2)
    found = place(spec_of(folders["llama"]), [node, node])
    assert found.words().startswith("placement: stages of 2 processes: as few as fit (weights of ")
    with pytest.raises(ResourceError, match="fits neither whole nor in any number of stages"):
        place(spec_of(folders["llama"]), [node])


def test_on_gpus_of_one_node_it_is_split(folders: dict[str, Path]) -> None:
    gpus = Node(0, num_gpus=4, gpu_bytes=room_for(folders["llama"], 0.6))
    assert placed(spec_of(folders["llama"], gpus_per_worker=1), gpus) == ("tensor", 2)
    small = Node(0, num_gpus=4, gpu_bytes=room_for(folders["llama"], 0.4))
    assert placed(spec_of(folders["llama"], gpus_per_worker=1), small) == ("tensor", 4), "heads do not divide by 3"


def test_where_splitting_is_not_possible_gpus_take_stages(folders: dict[str, Path]) -> None:
    gpus = Node(0, num_gpus=4, gpu_bytes=room_for(folders["gpt2"], 0.6))
    assert placed(spec_of(folders["gpt2"], gpus_per_worker=1), gpus) == ("stages", 2)
    one = Node(0, num_gpus=1, gpu_bytes=room_for(folders["llama"], 0.6))
    assert placed(spec_of(folders["llama"], gpus_per_worker=1), one, one) == ("stages", 2)
    with pytest.raises(ModelError, match="no plan for splitting GPT2LMHeadModel"):
        place(spec_of(folders["gpt2"], gpus_per_worker=1, placement="tensor"), [gpus])


def test_what_the_job_says_is_done(folders: dict[str, Path]) -> None:
    tiny = Node(1)
    assert placed(spec_of(folders["llama"], placement="replica"), tiny) == ("replica", 1)
    spec = spec_of(folders["llama"], placement="stages", processes_per_replica=3)
    assert placed(spec, tiny) == ("stages", 3)
    assert placed(spec_of(folders["llama"], placement="stages"), Node(1 << 40)) == ("stages", 2)
    assert placed(spec_of(folders["llama"], placement="tensor"), Node(1 << 40)) == ("tensor", 2)


def test_a_pass_goes_on_as_it_was_begun(folders: dict[str, Path]) -> None:
    gpus = Node(0, num_gpus=4, gpu_bytes=room_for(folders["llama"], 0.6))
    spec = spec_of(folders["llama"], gpus_per_worker=1)
    assert placed(spec, gpus, tensor_parallel=4) == ("tensor", 4)
    assert placed(spec, gpus, tensor_parallel=1) == ("stages", 2), "whole matrix products"


def test_a_small_model_is_whole_where_memory_is_short_for_everything(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "PROCESS_BYTES", 1 << 30)
    assert placed(spec_of(folders["llama"]), Node(1 << 29)) == ("replica", 1)


def test_what_is_not_known_is_whole(folders: dict[str, Path]) -> None:
    assert placed(spec_of(folders["llama"])) == ("replica", 1)
    assert placed(spec_of(folders["llama"], gpus_per_worker=1), Node(1 << 40)) == ("replica", 1)
