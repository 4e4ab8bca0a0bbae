"""What a dictionary may be asked for: defaults, groups spelled out, and combinations that make no sense refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.activation import JumpRelu, MatryoshkaBatchTopK, ReluL1UnitNorm, TopK
from schemas.dictionary import DictionarySpec
from schemas.penalty import Tanh

LAYERS: dict[str, Any] = {"sources": ["in0", "in1", "in2"], "targets": ["out0", "out1", "out2"], "num_latents": 12}


def spec_of(**fields: Any) -> DictionarySpec:
    activation = {"kind": "topk", "k": 2}
    return DictionarySpec.model_validate(
        {"name": "d", "sources": ["a"], "num_latents": 12, "activation": activation} | fields
    )


def test_defaults_are_those_of_the_papers() -> None:
    assert DictionarySpec(name="d", sources=["a"], num_latents=64).activation == TopK(k=32, multi_k=0)
    groups = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32]
    assert MatryoshkaBatchTopK().prefixes == [sum(groups[: end + 1]) for end in range(5)]
    assert ReluL1UnitNorm().resample_exponent == 2
    assert JumpRelu().penalty == Tanh(coefficient=20, scale=4)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("one", [(12, ["in0", "in1", "in2"], ["out0", "out1", "out2"])]),
        ("per_layer", [(4, ["in0"], ["out0"]), (4, ["in1"], ["out1"]), (4, ["in2"], ["out2"])]),
        (
            "cross_layer",
            [(4, ["in0"], ["out0", "out1", "out2"]), (4, ["in1"], ["out1", "out2"]), (4, ["in2"], ["out2"])],
        ),
    ],
)
def test_groups_are_spelled_out(groups: str, expected: list[tuple[int, list[str], list[str]]]) -> None:
    found = spec_of(**LAYERS, groups=groups).latent_groups
    assert [(group.num_latents, group.sources, group.targets) for group in found] == expected


GROUP = {"num_latents": 12, "sources": ["a"], "targets": ["a"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": {"kind": "topk", "k": 13}}, r"activation.k \(13\) is larger than num_latents \(12\)"),
        ({"activation": {"kind": "topk", "k": 2, "multi_k": 13}}, r"activation.multi_k \(13\) is larger"),
        ({"activation": {"kind": "topk", "k": 4, "multi_k": 4}}, r"multi_k \(4\) must be larger than k \(4\)"),
        ({"activation": {"kind": "batch_topk", "k": 13}}, r"activation.k \(13\) is larger"),
        ({"activation": {"kind": "matryoshka_batch_topk", "k": 2, "prefixes": [0.5]}}, "prefixes must ascend to 1.0"),
        ({"activation": {"kind": "matryoshka_batch_topk", "k": 2, "prefixes": [0.5, 0.2, 1]}}, "prefixes must ascend"),
        (
            {**LAYERS, "groups": "cross_layer", "activation": {"kind": "matryoshka_batch_topk", "k": 2}},
            "needs groups: one",
        ),
        ({"activation": {"kind": "relu_tanh", "penalty": {"kind": "l0"}}}, "tanh_quad"),
        ({"activation": {"kind": "jumprelu", "gate": "per_target"}}, r"two targets or more with groups: one; .* has 1"),
        ({**LAYERS, "groups": "cross_layer", "activation": {"kind": "jumprelu", "gate": "per_target"}}, ", and groups"),
        ({"activation": {"kind": "jumprelu", "gate": "per_target", "penalty": {"kind": "l0"}}}, "tanh or tanh_quad"),
        (
            {
                "activation": {
                    "kind": "jumprelu", "gate": "per_target",
                    "penalty": {"kind": "tanh", "decoder_norms": "concatenated"},
                },
            },
            "decoder_norms: per_target",
        ),
        ({"activation": {"kind": "relu_l1_unit_norm"}, "targets": ["b"]}, r"set activation.resample_at: \[\]"),
        ({"skip": True}, "skip needs targets other than the sources"),
        ({"tied": True, "targets": ["b"]}, "tied needs targets that are the sources"),
        ({"tied": True, "sources": ["a", "b"], "groups": "cross_layer"}, "tied needs latents that write what they"),
        ({"sources": ["a", "a"]}, "sources names a hook point twice"),
        ({**LAYERS, "targets": ["out0"], "groups": "cross_layer"}, "there are 3 sources and 1 targets"),
        ({**LAYERS, "num_latents": 10, "groups": "per_layer"}, "10 is no multiple of 3"),
        ({"groups": [GROUP, GROUP]}, "the groups have 24 latents together, num_latents is 12"),
        ({"groups": [{**GROUP, "sources": ["b"]}]}, r"the groups' sources are \['b'\], the dictionary's are \['a'\]"),
        ({"sources": ["a", "b"], "groups": [GROUP]}, r"the groups' sources are \['a'\]"),
        (
            {
                "sources": ["a", "b"], "tied": True,
                "groups": [{**GROUP, "sources": ["a", "b"], "targets": ["a", "b"]}, {**GROUP, "targets": ["b"]}],
                "num_latents": 24,
            },
            "tied needs groups that write what they read",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec_of(**fields)
