"""A tiny Llama written as a GGUF file, read back through the cache."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_networks import LAYERS, build, token_ids

from pipeline.models import gguf as cached
from pipeline.models.load import load_model, model_identity
from schemas.errors import ModelError
from schemas.model import ModelSpec

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def rotated(weight: Any, heads: int) -> Any:
    """llama.cpp pairs neighbouring rotary dimensions, transformers the two halves."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model: Any, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(float(model.config.rms_norm_eps))
    writer.add_rope_freq_base(float(model.config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(40)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(40)])
    for name, tensor in model.state_dict().items():
        short = name.removeprefix("model.").removesuffix(".weight")
        array = tensor.numpy().astype(np.float32)
        if short.startswith("layers."):
            _, index, inner = short.split(".", 2)
            array = rotated(array, 4) if "q_proj" in inner else rotated(array, 2) if "k_proj" in inner else array
            short = f"blk.{index}.{NAMES[inner]}"
        else:
            short = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[short]
        writer.add_tensor(f"{short}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(build("llama"), path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cached.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def spec_of(path: Path, dtype: str = "float32") -> ModelSpec:
    return ModelSpec.model_validate({"path": str(path), "dtype": dtype, "device": "cpu"})


def test_a_gguf_file_is_the_network_it_was_made_from(
    file: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = build("llama")(token_ids()).logits
    first = load_model(spec_of(file), with_head=True)
    torch.testing.assert_close(first.module(token_ids()).logits, expected, rtol=1e-4, atol=1e-4)
    assert "%" not in capfd.readouterr().err
    (kept,) = (cache / "dequantised").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["config.json", "model.safetensors"]
    again = load_model(spec_of(file), with_head=True)
    ours, theirs = again.module.state_dict(), first.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(again.module(token_ids()).logits, first.module(token_ids()).logits)
    assert again.identity == first.identity == model_identity(spec_of(file))
    assert str(file.parent) not in str(again.identity)


def test_the_second_load_reads_the_cache_and_each_dtype_has_its_own(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(spec_of(file))
    load_model(spec_of(file, "bfloat16"))
    assert len(list((cache / "dequantised").iterdir())) == 2
    monkeypatch.setattr(gguf, "GGUFReader", None)
    assert load_model(spec_of(file, "bfloat16")).dtype == torch.bfloat16


def test_a_cache_that_cannot_be_written_costs_no_result(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv(cached.CACHE, str(tmp_path / "occupied"))
    with caplog.at_level(logging.WARNING):
        assert load_model(spec_of(file)).num_layers == LAYERS
    assert cached.CACHE in caplog.text


def test_the_first_of_two_conversions_wins(file: Path, cache: Path) -> None:
    model = load_model(spec_of(file), with_head=True).module
    (kept,) = (cache / "dequantised").iterdir()
    before = (kept / "model.safetensors").stat().st_ino
    cached.keep_converted(model, kept)
    assert (kept / "model.safetensors").stat().st_ino == before
    assert [path.name for path in (cache / "dequantised").iterdir()] == [kept.name]


def test_a_cut_or_strange_file_is_refused(file: Path, tmp_path: Path, cache: Path) -> None:
    for name, content in {"cut.gguf": file.read_bytes()[:3000], "head.gguf": b"GGUF" + b"\xff" * 40}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{name} cannot be loaded"):
            load_model(spec_of(tmp_path / name))


def test_the_reader_is_as_it_was_afterwards() -> None:
    original = gguf.GGUFReader
    with cached.parsed_once():
        assert gguf.GGUFReader is not original
    assert gguf.GGUFReader is original
