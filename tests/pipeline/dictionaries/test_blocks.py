"""Groups of latents: one group of all is no group at all, and blocks are a cross-layer transcoder written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dictionaries import initialise
from pipeline.dictionaries.codes import SparseCodes
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.folder import load_dictionary, save_dictionary
from schemas.dictionary import DictionaryRecord, DictionarySpec

WIDTHS = {"in0": 5, "in1": 4, "in2": 3, "out0": 6, "out1": 2, "out2": 4}
SOURCES, TARGETS = ["in0", "in1", "in2"], ["out0", "out1", "out2"]
SCALES = {point: 1.0 + index / 4 for index, point in enumerate(WIDTHS)}
H = 8


def build(**fields: Any) -> Dictionary:
    facts: dict[str, Any] = {
        "name": "d", "sources": SOURCES, "targets": TARGETS, "num_latents": 3 * H, "activation": {"kind": "relu_l1"},
    }  # fmt: skip
    spec = DictionarySpec.model_validate(facts | fields)
    dictionary = Dictionary(
        spec, {p: WIDTHS[p] for p in spec.sources}, {p: WIDTHS[p] for p in spec.target_points}, SCALES,
        dtype=torch.float64,
    )  # fmt: skip
    initialise.fill(dictionary, {point: torch.zeros(WIDTHS[point]) for point in spec.target_points})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for bias in (dictionary.b_enc, dictionary.b_dec):
            bias.copy_(torch.randn(bias.shape, generator=generator, dtype=torch.float64))
    return dictionary.requires_grad_(False)


def acts(num_rows: int = 10) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {point: torch.randn(num_rows, d, generator=generator, dtype=torch.float64) for point, d in WIDTHS.items()}


class HandWrittenClt:
    """Ameisen et al. 2025: L encoders, a decoder from each layer to itself and every later one, lists of matrices."""

    def __init__(self, dictionary: Dictionary) -> None:
        encoders = dictionary.encoder.split([5, 4, 3], dim=1)
        decoders = dictionary.decoder.split([6, 2, 4], dim=1)
        self.w_enc = [encoders[layer][layer * H : (layer + 1) * H] for layer in range(3)]
        self.b_enc = dictionary.b_enc.split(H)
        self.w_dec = {(i, j): decoders[j][i * H : (i + 1) * H] for i in range(3) for j in range(i, 3)}
        self.b_dec = dictionary.b_dec.split([6, 2, 4])

    def __call__(self, raw: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        codes = [
            torch.relu(raw[f"in{layer}"] * SCALES[f"in{layer}"] @ self.w_enc[layer].T + self.b_enc[layer])
            for layer in range(3)
        ]
        return {
            f"out{j}": (sum(codes[i] @ self.w_dec[i, j] for i in range(j + 1)) + self.b_dec[j]) / SCALES[f"out{j}"]
            for j in range(3)
        }


def test_a_cross_layer_transcoder_is_the_one_written_by_hand() -> None:
    dictionary = build(groups="cross_layer")
    expected = HandWrittenClt(dictionary)(acts())
    for point, predicted in dictionary.reconstruct(acts()).items():
        torch.testing.assert_close(predicted, expected[point], rtol=1e-12, atol=1e-12)
    # Nothing else is there: blocks before the diagonal are zero in the decoder, off the diagonal in the encoder.
    assert int((dictionary.encoder != 0).sum()) == H * (5 + 4 + 3)
    assert int((dictionary.decoder != 0).sum()) == H * (12 + 6 + 4)


def test_a_layer_acts_on_no_earlier_one() -> None:
    dictionary, raw = build(groups="cross_layer"), acts()
    before = dictionary.reconstruct(raw)
    after = dictionary.reconstruct(raw | {"in1": raw["in1"] + 1})
    assert torch.equal(after["out0"], before["out0"])
    assert not torch.equal(after["out1"], before["out1"])
    assert not torch.equal(after["out2"], before["out2"])


def test_per_layer_groups_are_separate_transcoders() -> None:
    dictionary, raw = build(groups="per_layer"), acts()
    for layer in range(3):
        part = slice(layer * H, (layer + 1) * H)
        alone = build(sources=[f"in{layer}"], targets=[f"out{layer}"], num_latents=H)
        alone.encoder.copy_(dictionary.encoder.split([5, 4, 3], dim=1)[layer][part])
        alone.decoder.copy_(dictionary.decoder.split([6, 2, 4], dim=1)[layer][part])
        alone.b_enc.copy_(dictionary.b_enc[part])
        alone.b_dec.copy_(dictionary.b_dec.split([6, 2, 4])[layer])
        expected = alone.reconstruct(raw)[f"out{layer}"]
        torch.testing.assert_close(dictionary.reconstruct(raw)[f"out{layer}"], expected, rtol=1e-12, atol=1e-12)


def test_groups_of_ones_own_skip_what_lies_between() -> None:
    """The first group reads and writes the outer of three points, the second all of them."""
    points = ["in0", "in1", "in2"]
    groups = [
        {"num_latents": 4, "sources": ["in0", "in2"], "targets": ["in2", "in0"]},
        {"num_latents": 6, "sources": points, "targets": points},
    ]
    dictionary = build(targets=[], num_latents=10, groups=groups, activation={"kind": "topk", "k": 3})
    assert not dictionary.encoder[:4, 5:9].any()
    assert not dictionary.decoder[:4, 5:9].any()
    assert dictionary.encoder[:4].any(0).sum() == 8
    assert dictionary.encoder[4:].all()
    x = dictionary.join_sources(acts())
    expected = (x - dictionary.b_dec) @ dictionary.encoder.T + dictionary.b_enc
    torch.testing.assert_close(dictionary.pre_activations(x), expected)
    codes = dictionary.encode(x)
    assert isinstance(codes, SparseCodes)
    torch.testing.assert_close(dictionary.decode(codes.dense(10)), dictionary.decode(codes))


@pytest.mark.parametrize("kind", ["relu_l1", "topk"])
def test_one_source_is_the_autoencoder(kind: str) -> None:
    """All topologies of one point are one dictionary, to the bit."""
    activation = {"kind": "topk", "k": 2} if kind == "topk" else {"kind": kind}
    common = {"sources": ["in0"], "targets": [], "num_latents": H, "activation": activation}
    plain = build(**common)
    own = [{"num_latents": H, "sources": ["in0"], "targets": ["in0"]}]
    for groups in ("per_layer", "cross_layer", own):
        other = build(**common, groups=groups)
        assert torch.equal(other.encoder, plain.encoder)
        assert torch.equal(other.reconstruct(acts())["in0"], plain.reconstruct(acts())["in0"])
    halves = [{"num_latents": H // 2, "sources": ["in0"], "targets": ["in0"]}] * 2
    assert torch.equal(build(**common, groups=halves).reconstruct(acts())["in0"], plain.reconstruct(acts())["in0"])


def test_a_skip_joins_what_a_group_joins() -> None:
    dictionary = build(groups="cross_layer", skip=True)
    assert dictionary.skip is not None
    dictionary.skip.fill_(1.0)
    dictionary.zero_outside_blocks()
    rows, columns = [0, 6, 8, 12], [0, 5, 9, 12]
    for target in range(3):
        for source in range(3):
            block = dictionary.skip[rows[target] : rows[target + 1], columns[source] : columns[source + 1]]
            assert bool(block.all() if source <= target else not block.any())


@pytest.mark.parametrize(
    "fields",
    [
        {"groups": "cross_layer", "skip": True},
        {"targets": [], "tied": True},
        {"targets": [], "tied": True, "groups": "per_layer"},
        {"activation": {"kind": "jumprelu"}},
        {"activation": {"kind": "gated"}},
        {"activation": {"kind": "batch_topk", "k": 2}},
        {"activation": {"kind": "matryoshka_batch_topk", "k": 2}},
    ],
    ids=str,
)
def test_folders_give_back_every_kind(fields: dict[str, Any], tmp_path: Path) -> None:
    dictionary = build(**fields).float()
    for name, tensor in dictionary.state_dict().items():
        if name.startswith("activation."):
            tensor.copy_(torch.linspace(-1, 0.2, tensor.numel()).view(tensor.shape))
    record = DictionaryRecord(
        spec=dictionary.spec, d_source=dictionary.d_source, d_target=dictionary.d_target, scales=dictionary.scales,
        store_fingerprint="s", table_fingerprint="t", model={}, train_spec={}, steps=1, tokens=2, versions={},
    )  # fmt: skip
    save_dictionary(str(tmp_path), dictionary, record)
    loaded = load_dictionary(str(tmp_path))
    assert (loaded.encoder is loaded.decoder) == dictionary.spec.tied
    raw = {point: values.float() for point, values in acts().items()}
    for point, predicted in dictionary.reconstruct(raw).items():
        assert torch.equal(loaded.reconstruct(raw)[point], predicted)
