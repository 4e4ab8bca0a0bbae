"""The module: shapes, scales, what TopK keeps, and what the folder gives back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.dictionaries import initialise
from pipeline.dictionaries.codes import SparseCodes
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.folder import load_dictionary, save_dictionary
from schemas.activation import ReluL1, TopK
from schemas.dictionary import DictionaryRecord, DictionarySpec
from schemas.errors import CorruptionError, HookPointError, MissingError, SpecError

WIDTHS = {"a": 6, "b": 4, "c": 5}
SCALES = {"a": 2.0, "b": 0.5, "c": 4.0}


def build(sources: list[str], targets: list[str] | None = None, **fields: object) -> Dictionary:
    spec = DictionarySpec.model_validate(
        {
            "name": "d",
            "sources": sources,
            "targets": targets or [],
            "num_latents": 30,
            "activation": TopK(k=3),
            **fields,
        }
    )
    dictionary = Dictionary(
        spec, {p: WIDTHS[p] for p in spec.sources}, {p: WIDTHS[p] for p in spec.target_points}, SCALES
    )
    initialise.fill(dictionary, {point: torch.linspace(0, 1, WIDTHS[point]) for point in spec.target_points})
    return dictionary.requires_grad_(False)


def acts(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {point: torch.randn(8, d, generator=generator).bfloat16() for point, d in WIDTHS.items()}


def test_autoencoder_by_hand() -> None:
    dictionary, x = build(["a"]), acts()["a"].float() * 2
    z = x - dictionary.b_dec
    pre = z @ dictionary.encoder.T + dictionary.b_enc
    kept = pre >= pre.topk(3, dim=1).values[:, -1:]
    expected = (pre.relu() * kept) @ dictionary.decoder + dictionary.b_dec
    torch.testing.assert_close(dictionary(x), expected)
    torch.testing.assert_close(dictionary.reconstruct(acts())["a"], expected / 2)


def test_transcoder_does_not_centre_its_input_and_adds_its_skip() -> None:
    dictionary = build(["a"], ["c"], skip=True)
    assert dictionary.skip is not None
    dictionary.skip.fill_(0.1)
    x = dictionary.join_sources(acts())
    expected = dictionary.codes_dense(x) @ dictionary.decoder + dictionary.b_dec + x @ dictionary.skip.T
    torch.testing.assert_close(dictionary(x), expected)
    torch.testing.assert_close(dictionary.pre_activations(x), x @ dictionary.encoder.T)
    with pytest.raises(SpecError, match="needs the sources"):
        dictionary.decode(dictionary.encode(x))


def test_several_points_lie_side_by_side_each_with_its_scale() -> None:
    dictionary, raw = build(["a", "b"]), acts()
    x = dictionary.join_sources(raw)
    torch.testing.assert_close(x, torch.cat([raw["a"].float() * 2, raw["b"].float() / 2], dim=1))
    back = dictionary.split_targets(x)
    torch.testing.assert_close(back["a"], raw["a"].float())
    torch.testing.assert_close(back["b"], raw["b"].float())


def test_sparse_codes_have_at_most_k_and_match_the_dense() -> None:
    dictionary = build(["a"])
    x = dictionary.join_sources(acts())
    codes = dictionary.encode(x)
    assert isinstance(codes, SparseCodes)
    assert codes.values.shape == (8, 3)
    assert (codes.values >= 0).all()
    torch.testing.assert_close(codes.dense(30), dictionary.codes_dense(x))
    torch.testing.assert_close(dictionary.decode(codes), dictionary.decode(dictionary.codes_dense(x)))


def test_relu_codes_are_dense() -> None:
    dictionary = build(["a"], activation=ReluL1())
    x = dictionary.join_sources(acts())
    torch.testing.assert_close(dictionary.encode(x), (x @ dictionary.encoder.T).relu())


def test_start_depends_on_the_seed_alone() -> None:
    one, same, other = build(["a"]), build(["a"]), build(["a"], seed=1)
    assert torch.equal(one.encoder, same.encoder)
    assert not torch.equal(one.encoder, other.encoder)
    torch.testing.assert_close(one.decoder.norm(dim=1), torch.ones(30))
    torch.testing.assert_close(one.b_dec, torch.linspace(0, 1, 6) * 2)


def test_missing_hook_point_is_named() -> None:
    with pytest.raises(HookPointError, match="needs hook point 'b'"):
        build(["a", "b"]).reconstruct({"a": torch.zeros(1, 6)})


def test_widths_must_be_those_of_the_spec() -> None:
    spec = DictionarySpec(name="d", sources=["a"], num_latents=4, activation=TopK(k=2))
    with pytest.raises(SpecError, match="sources of the spec"):
        Dictionary(spec, {"b": 3}, {"a": 3}, SCALES)


def record_of(dictionary: Dictionary) -> DictionaryRecord:
    return DictionaryRecord(
        spec=dictionary.spec, d_source=dictionary.d_source, d_target=dictionary.d_target, scales=dictionary.scales,
        store_fingerprint="s", table_fingerprint="t", model={"path": "m"}, train_spec={}, steps=1, tokens=2,
        metrics={"fvu": 0.5}, versions={"torch": torch.__version__},
    )  # fmt: skip


def test_folder_gives_back_the_dictionary(tmp_path: Path) -> None:
    dictionary = build(["a"], ["c"], skip=True)
    url = str(tmp_path / "d")
    written = save_dictionary(url, dictionary, record_of(dictionary))
    loaded = load_dictionary(url)
    assert loaded.record == written
    assert loaded.scales == dictionary.scales
    torch.testing.assert_close(loaded.reconstruct(acts())["c"], dictionary.reconstruct(acts())["c"], rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_folder_refuses_swapped_weights_and_absence(tmp_path: Path) -> None:
    url = str(tmp_path / "d")
    with pytest.raises(MissingError, match=r"no dictionary at"):
        load_dictionary(url)
    save_dictionary(url, build(["a"]), record_of(build(["a"])))
    weights = tmp_path / "d" / "dictionary.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(CorruptionError, match="SHA-256"):
        load_dictionary(url)
