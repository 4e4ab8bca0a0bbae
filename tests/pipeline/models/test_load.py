from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import CAUSAL, D_MODEL, LAYERS, build, save, token_ids

from pipeline.models import memory, precision
from pipeline.models.forward import ActivationForward
from pipeline.models.load import load_model, model_identity, resolve_dtype
from pipeline.models.location import ALLOWED_IMPORTS
from schemas.errors import MissingError, ModelError, ResourceError
from schemas.model import ModelSpec


def spec_of(path: Path | str, **changes: Any) -> ModelSpec:
    return ModelSpec.model_validate({"path": str(path), "dtype": "float32", "device": "cpu", **changes})


@pytest.mark.parametrize("family", CAUSAL)
def test_a_folder_gives_the_network_that_was_saved(family: str, tmp_path: Path) -> None:
    model = save(family, tmp_path)
    attention = "eager" if family == "gemma2" else "sdpa"
    found = load_model(spec_of(tmp_path, attention=attention), with_head=True)
    assert (found.d_model, found.num_layers, found.dtype) == (D_MODEL, LAYERS, torch.float32)
    assert found.identity == model_identity(found.spec)
    assert not found.module.training
    assert not any(parameter.requires_grad for parameter in found.module.parameters())
    torch.testing.assert_close(found.module(token_ids()).logits, model(token_ids()).logits)


def test_without_head_there_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save("llama", tmp_path)
    capfd.readouterr()
    found = load_model(spec_of(tmp_path))
    assert found.backbone is found.module
    assert not [name for name, _ in found.module.named_modules() if "head" in name]
    assert "%" not in capfd.readouterr().err


def test_masked_lm(tmp_path: Path) -> None:
    model = save("bert", tmp_path)
    found = load_model(spec_of(tmp_path, kind="masked_lm"))
    torch.testing.assert_close(found.module(token_ids()).last_hidden_state, model.bert(token_ids()).last_hidden_state)


def test_computed_tables_keep_their_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary frequencies in bfloat16 would turn far positions by visible angles."""
    save("llama", tmp_path)
    monkeypatch.setenv(ALLOWED_IMPORTS, "tiny_networks.build")
    called = spec_of("python:tiny_networks.build", dtype="bfloat16", arguments={"family": "llama"})
    for spec in (spec_of(tmp_path, dtype="bfloat16"), called):
        module = load_model(spec).module
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        assert module.rotary_emb.inv_freq.dtype == torch.float32  # type: ignore[union-attr]


def test_identity_follows_bytes_and_settings_not_paths(tmp_path: Path) -> None:
    save("llama", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = model_identity(spec_of(tmp_path / "a"))
    assert model_identity(spec_of(tmp_path / "b", device="auto", revision="other")) == first
    assert model_identity(spec_of(tmp_path / "a", dtype="bfloat16")) != first
    assert model_identity(spec_of(tmp_path / "a", attention="eager")) != first
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps({**config, "transformers_version": "9", "dtype": "float16"}))
    assert model_identity(spec_of(tmp_path / "b")) == first
    (tmp_path / "b" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert model_identity(spec_of(tmp_path / "b")) != first
    save("llama", tmp_path / "b", tie_word_embeddings=True)
    assert model_identity(spec_of(tmp_path / "b"))["weights"] != first["weights"]
    json.dumps(first)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    save("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.pkl")
    with pytest.raises(
        ModelError, match=r"looked for model\*\.safetensors and pytorch_model\*\.bin, found config\.json"
    ):
        load_model(spec_of(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"for the GGUF file name .*m\.gguf"):
        model_identity(spec_of(tmp_path))


def test_a_folder_without_config_or_with_a_broken_one(tmp_path: Path) -> None:
    save("llama", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        load_model(spec_of(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(spec_of(tmp_path))


def test_missing_weights_are_never_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_model(spec_of(tmp_path))
    with pytest.raises(ModelError, match=r"lacks 1 of the weights .*lm_head\.weight"):
        load_model(spec_of(tmp_path), with_head=True)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 .*layers\.1\.mlp\.up_proj"):
        load_model(spec_of(tmp_path))


def test_truncated_weights(tmp_path: Path) -> None:
    save("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors are not whole"):
        load_model(spec_of(tmp_path))


def test_an_attention_that_the_model_lacks_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("gemma2", tmp_path)
    with pytest.raises(ModelError, match=r"try model\.attention: eager"):
        load_model(spec_of(tmp_path))
    monkeypatch.setenv(ALLOWED_IMPORTS, "tiny_networks")
    with pytest.raises(ModelError, match=r"try model\.attention: eager"):
        load_model(spec_of("python:tiny_networks.build", arguments={"family": "gemma2"}))


def test_more_weights_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save("llama", tmp_path)
    spec = spec_of(tmp_path)
    from pipeline.models.location import locate

    count = sum(parameter.numel() for parameter in model.parameters())
    assert memory.weights_bytes(locate(str(tmp_path)), torch.bfloat16) == 2 * count
    free = namedtuple("free", "available")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: free(4 * count - 1))
    with pytest.raises(ResourceError, match=r"needs about .* of memory as float32"):
        load_model(spec)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: free(4 * count))
    load_model(spec)


def test_a_python_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_IMPORTS, "tiny_networks")
    spec = spec_of("python:tiny_networks.Doubler", kind="module", arguments={"width": 4})
    found = load_model(spec)
    assert found.identity == model_identity(spec)
    assert found.identity["weights"]
    assert (found.num_layers, found.d_model) == (0, 0)
    assert (
        model_identity(spec_of("python:tiny_networks.Doubler", kind="module"))["weights"] != found.identity["weights"]
    )
    forward = ActivationForward(found, ["module:linear:in"])
    assert forward.run(token_ids(), torch.full((3,), 9))["module:linear:in"].shape == (3, 9, 4)
    with pytest.raises(ModelError, match="has no head"):
        load_model(spec, with_head=True)


@pytest.mark.parametrize(("path", "changes", "message"), [
    ("python:tiny_networks.refuses", {"kind": "module"}, "RuntimeError: no weights today"),
    ("python:tiny_networks.text", {"kind": "module"}, "returned str, expected a torch.nn.Module"),
    ("python:tiny_networks.absent", {"kind": "module"}, "cannot be imported"),
    ("python:tiny_networks_absent.x", {"kind": "module"}, "cannot be imported"),
    ("python:tiny_networks.Doubler", {}, "no transformers model"),
    ("python:tiny_networks.Doubler", {"kind": "module", "arguments": {"depth": 1}}, "TypeError"),
])  # fmt: skip
def test_bad_python_modules(path: str, changes: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_IMPORTS, "tiny_networks,tiny_networks_absent")
    with pytest.raises(ModelError, match=message):
        load_model(spec_of(path, **changes))


def test_a_spec_that_contradicts_itself(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="arguments are for python: paths only"):
        load_model(spec_of(tmp_path, arguments={"a": 1}))
    with pytest.raises(ModelError, match="needs a python: path"):
        load_model(spec_of(tmp_path, kind="module"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what is not there")
def test_devices() -> None:
    assert precision.resolve_device(spec_of("gpt2", device="auto")) == torch.device("cpu")
    with pytest.raises(ModelError, match="no CUDA device"):
        precision.resolve_device(spec_of("gpt2", device="cuda"))
    with pytest.raises(ModelError, match="unknown"):
        precision.resolve_device(spec_of("gpt2", device="abacus"))


@pytest.mark.parametrize(("flags", "expected"), [
    ({"avx2", "avx512f"}, "float32"), ({"avx512_bf16"}, "bfloat16"), ({"amx_bf16"}, "bfloat16"), (set(), "float32"),
])  # fmt: skip
def test_native_precision(flags: set[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_processor_flags", lambda: frozenset(flags))
    assert resolve_dtype(spec_of("gpt2", dtype="native")) == expected
    assert resolve_dtype(spec_of("gpt2", dtype="float16")) == "float16"


def test_the_processor_names_some_of_its_units() -> None:
    assert precision._processor_flags() & {"sse2", "asimd", "rvv"}


def test_a_hub_model_from_the_offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "models--org--tiny"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    save("llama", root / "snapshots" / commit)
    found = load_model(spec_of("org/tiny"))
    assert found.identity == model_identity(spec_of("org/tiny")) == model_identity(spec_of("org/tiny", revision=commit))
    assert {**found.identity, "source": "hub", "path": "org/tiny", "revision": commit} == found.identity
    with pytest.raises(MissingError, match=r"'org/absent' is no folder here and not in the local Hub cache"):
        load_model(spec_of("org/absent"))


def test_a_missing_model() -> None:
    with pytest.raises(MissingError):
        load_model(spec_of("/no/such/folder"))


def test_tiny_networks_are_random_and_fixed() -> None:
    assert torch.equal(build("llama").lm_head.weight, build("llama").lm_head.weight)
