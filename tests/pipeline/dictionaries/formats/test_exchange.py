"""Dictionaries for other libraries: exact keys, shapes and dtypes; what comes back computes the same; refusals."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from foreign_cases import ACTIVATIONS, RESID, D, F, answers, layered, make, rows

from pipeline.dictionaries.formats.exchange import export, import_from
from schemas.errors import CorruptionError, MissingError, SpecError

OUT = "blocks.1.hook_mlp_out"
Export = Callable[..., Path]


@pytest.fixture
def exported(tmp_path: Path) -> Export:
    """Exports a dictionary of the activation, below a folder of its own."""

    def run(activation: str, format_name: Any, **fields: Any) -> Path:
        url = make(tmp_path, activation, **fields)
        export(url, str(tmp_path / "out"), format_name)
        return tmp_path / "out"

    return run


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


ALWAYS = {"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,)}
SAELENS = {
    "relu": ("standard", {"b_enc": (F,)}, False),
    "relu_centred": ("standard", {"b_enc": (F,)}, True),
    "topk": ("topk", {"b_enc": (F,)}, True),
    "batch_topk": ("jumprelu", {"b_enc": (F,), "threshold": (F,)}, True),
    "matryoshka": ("jumprelu", {"b_enc": (F,), "threshold": (F,)}, True),
    "jumprelu": ("jumprelu", {"b_enc": (F,), "threshold": (F,)}, False),
    "gated": ("gated", {"b_gate": (F,), "b_mag": (F,), "r_mag": (F,)}, True),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saelens_keys(exported: Export, activation: str) -> None:
    folder = exported(activation, "saelens")
    architecture, more, centres = SAELENS[activation]
    tensors = safetensors.torch.load_file(folder / "sae_weights.safetensors")
    assert shapes(tensors) == ALWAYS | more
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    config = json.loads((folder / "cfg.json").read_text())
    wanted = {"architecture": architecture, "d_in": D, "d_sae": F, "apply_b_dec_to_input": centres, "dtype": "float32"}
    assert {name: config[name] for name in wanted} == wanted
    assert (config["metadata"]["model_name"], config["metadata"]["hook_name"]) == ("planted", RESID)
    assert ("k" in config) == (activation == "topk")


DICTIONARY_LEARNING = {
    "relu": ("AutoEncoderNew", {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}),
    "relu_centred": ("AutoEncoderNew", {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}),
    "topk": ("AutoEncoderTopK", {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k", "threshold"}),
    "batch_topk": ("BatchTopKSAE", {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k", "threshold"}),
    "matryoshka": ("MatryoshkaBatchTopKSAE", {"W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes"}),
    "jumprelu": ("JumpReluAutoEncoder", {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}),
    "gated": (
        "GatedAutoEncoder",
        {"decoder_bias", "encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight"},
    ),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dictionary_learning_keys(exported: Export, activation: str) -> None:
    folder = exported(activation, "dictionary_learning")
    class_name, keys = DICTIONARY_LEARNING[activation]
    tensors = torch.load(io.BytesIO((folder / "ae.pt").read_bytes()), weights_only=True)
    assert set(tensors) == keys
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    assert (trainer["dict_class"], trainer["layer"], trainer["lm_name"]) == (class_name, 1, "planted")
    for name, shape in {"encoder.weight": (F, D), "decoder.weight": (D, F), "W_enc": (D, F), "W_dec": (F, D)}.items():
        assert name not in tensors or tuple(tensors[name].shape) == shape
    if activation == "matryoshka":
        assert tensors["group_sizes"].tolist() == [5, 5, 10]


def test_sparsify_keys(exported: Export, tmp_path: Path) -> None:
    folder = exported("topk", "sparsify", targets=[OUT], skip=True)
    tensors = safetensors.torch.load_file(folder / "sae.safetensors")
    wanted = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,), "W_skip": (D, D)}
    assert shapes(tensors) == wanted
    config = json.loads((folder / "cfg.json").read_text())
    assert (config["k"], config["num_latents"], config["d_in"]) == (4, F, D)
    assert config["transcode"] is config["skip_connection"] is True


def test_circuit_tracer_keys_of_a_set(tmp_path: Path) -> None:
    """Out of a train job with a transcoder for each layer, which need not be named in their order."""
    for layer, name in enumerate("cab"):
        make(
            tmp_path / "job", "jumprelu", seed=layer, name=name, sources=[f"blocks.{layer}.hook_mlp_in"],
            targets=[f"blocks.{layer}.hook_mlp_out"], skip=True,
        )  # fmt: skip
    export(str(tmp_path / "job"), str(tmp_path / "out"), "circuit_tracer")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.yaml", *(f"layer_{layer}.safetensors" for layer in range(3))}
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert config == {
        "model_name": "planted", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out", "scan": "job",
    }  # fmt: skip
    tensors = safetensors.torch.load_file(tmp_path / "out/layer_2.safetensors")
    assert shapes(tensors) == {
        "W_enc": (F, D), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "W_skip": (D, D),
        "activation_function.threshold": (F,),
    }  # fmt: skip


def test_circuit_tracer_keys_of_a_cross_layer_transcoder(tmp_path: Path) -> None:
    export(layered(tmp_path, "batch_topk", "cross_layer"), str(tmp_path / "out"), "circuit_tracer")
    for layer in range(3):
        encoder = safetensors.torch.load_file(tmp_path / f"out/W_enc_{layer}.safetensors")
        decoder = safetensors.torch.load_file(tmp_path / f"out/W_dec_{layer}.safetensors")
        wanted = {"W_enc": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
        assert shapes(encoder) == {f"{name}_{layer}": shape for name, shape in wanted.items()}
        assert shapes(decoder) == {f"W_dec_{layer}": (F, 3 - layer, D)}
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["model_kind"] == "cross_layer_transcoder"


CASES = [
    *[("saelens", activation, {}) for activation in ACTIVATIONS],
    *[("dictionary_learning", activation, {}) for activation in ACTIVATIONS],
    ("sparsify", "topk", {}),
    ("sparsify", "topk", {"targets": [OUT], "skip": True}),
    ("saelens", "relu", {"targets": [OUT]}),
    ("saelens", "relu", {"targets": [OUT], "skip": True}),
    ("saelens", "jumprelu", {"targets": [OUT]}),
    ("saelens", "batch_topk", {"targets": [OUT], "skip": True}),
    ("saelens", "topk", {"tied": True}),
]


@pytest.mark.parametrize(("format_name", "activation", "fields"), CASES)
def test_what_comes_back_computes_the_same(
    tmp_path: Path, format_name: Any, activation: str, fields: dict[str, Any]
) -> None:
    url, out, back = make(tmp_path, activation, **fields), str(tmp_path / "out"), str(tmp_path / "back")
    export(url, out, format_name)
    named = {"source": RESID, "target": fields.get("targets", [""])[0]} if format_name == "sparsify" else {}
    record = import_from(out, back, format_name, name="back", **named)
    assert record.spec.sources == [RESID]
    assert record.spec.is_transcoder == ("targets" in fields)
    acts = rows([RESID])
    (codes, values), (codes_back, values_back) = answers(url, acts), answers(back, acts)
    assert 0 < (codes > 0).double().mean() < 1
    torch.testing.assert_close(codes_back, codes, rtol=1e-5, atol=1e-5)
    for point, value in values.items():
        torch.testing.assert_close(values_back[point], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", ["per_layer", "cross_layer"])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batch_topk"])
def test_transcoders_of_all_layers_come_back(tmp_path: Path, groups: str, activation: str) -> None:
    url, out, back = layered(tmp_path, activation, groups), str(tmp_path / "out"), str(tmp_path / "back")
    export(url, out, "circuit_tracer")
    record = import_from(out, back, "circuit_tracer", name="back")
    assert record.spec.groups == groups
    acts = rows(record.spec.sources)
    (codes, values), (codes_back, values_back) = answers(url, acts), answers(back, acts)
    torch.testing.assert_close(codes_back, codes, rtol=1e-5, atol=1e-5)
    assert list(values_back) == list(values)
    for point, value in values.items():
        torch.testing.assert_close(values_back[point], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("format_name", "activation", "fields", "reason"),
    [
        ("sparsify", "relu", {}, "TopK dictionaries only"),
        ("saelens", "topk", {"targets": [OUT]}, "ReLU or JumpReLU"),
        ("saelens", "gated", {"targets": [OUT]}, "ReLU or JumpReLU"),
        ("dictionary_learning", "relu", {"targets": [OUT]}, "no transcoders"),
        ("saelens", "relu", {"sources": [RESID, OUT]}, "2 sources and 2 targets"),
        ("circuit_tracer", "relu", {}, "every layer from 0 on"),
        ("circuit_tracer", "relu", {"sources": ["blocks.0.hook_mlp_in"]}, "wants transcoders"),
        ("circuit_tracer", "relu", {"sources": ["module:mlp:in"], "targets": ["module:mlp:out"]}, r"blocks\.LAYER"),
        ("circuit_tracer", "topk", {"sources": ["blocks.0.hook_mlp_in"], "targets": ["blocks.0.hook_mlp_out"]}, "TopK"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(
    tmp_path: Path, format_name: Any, activation: str, fields: dict[str, Any], reason: str
) -> None:
    url = make(tmp_path, activation, **fields)
    with pytest.raises(SpecError, match=reason):
        export(url, str(tmp_path / "out"), format_name)
    assert not (tmp_path / "out").exists()


def test_a_cross_layer_skip_is_refused(tmp_path: Path) -> None:
    url = layered(tmp_path, "relu", "cross_layer", skip=True)
    with pytest.raises(SpecError, match="no skip"):
        export(url, str(tmp_path / "out"), "circuit_tracer")


def test_outputs_are_not_written_over_and_what_is_no_dictionary_is_said(tmp_path: Path) -> None:
    url = make(tmp_path, "relu")
    export(url, str(tmp_path / "out"), "saelens")
    with pytest.raises(SpecError, match="not empty"):
        export(url, str(tmp_path / "out"), "saelens")
    with pytest.raises(MissingError):
        export(str(tmp_path / "nothing"), str(tmp_path / "other"), "saelens")
    with pytest.raises(MissingError):
        import_from(url, str(tmp_path / "other"), "saelens", name="x")
    (tmp_path / "out/sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CorruptionError, match="sae_weights"):
        import_from(str(tmp_path / "out"), str(tmp_path / "other"), "saelens", name="x")


def test_an_import_needs_to_know_its_hook_point(tmp_path: Path) -> None:
    export(make(tmp_path, "topk"), str(tmp_path / "out"), "sparsify")
    with pytest.raises(SpecError, match="--source"):
        import_from(str(tmp_path / "out"), str(tmp_path / "back"), "sparsify", name="x")
