"""TopK, BatchTopK and Matryoshka BatchTopK: gradients by hand against autograd of the losses as papers state them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stepping import autograd_of, build, measure, rows

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training import constraint
from pipeline.training.compiled import CompiledKernels
from pipeline.training.kernels import Kernels, TorchKernels

F, K = 40, 4
AUX = {"aux_k": 6, "aux_coefficient": 0.5, "dead_after_tokens": 1}
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "topk": {"kind": "topk", "k": K, **AUX},
    "multi": {"kind": "topk", "k": K, "multi_k": 9, "multi_coefficient": 0.25, **AUX},
    "batch": {"kind": "batch_topk", "k": K, **AUX},
    "matryoshka": {"kind": "matryoshka_batch_topk", "k": K, "prefixes": [0.2, 0.5, 1.0], **AUX},
}
SHAPES: dict[str, dict[str, Any]] = {
    "sae": {},
    "tied": {"tied": True},
    "transcoder": {"targets": ["b"]},
    "skip": {"targets": ["b"], "skip": True},
    "crosscoder": {"sources": ["a", "b"]},
}
LAYERS: dict[str, Any] = {"sources": ["a", "b"], "targets": ["c", "d"], "groups": "cross_layer", "skip": True}


def kept_by(kind: str, pre: torch.Tensor) -> torch.Tensor:
    """Codes as the papers write them: positive values among the largest of the row or of the batch."""
    positive = pre.relu()
    if kind in ("topk", "multi"):
        return positive * (pre >= pre.topk(K, dim=1).values[:, -1:])
    return positive * (positive >= positive.flatten().topk(K * len(pre)).values[-1])


def paper_loss(kind: str, dictionary: Dictionary, x: torch.Tensor, y: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    z = x - dictionary.b_dec if dictionary.centres_input else x
    pre = z @ dictionary.encoder.T + dictionary.b_enc
    codes = kept_by(kind, pre)
    offset = dictionary.b_dec
    if dictionary.skip is not None:
        offset = offset + x @ dictionary.skip.T
    ends = [8, 20, F] if kind == "matryoshka" else [F]
    errors = [y - offset - codes[:, :end] @ dictionary.decoder[:end] for end in ends]
    loss = sum(error.square().sum() for error in errors) / len(ends)
    if kind == "multi":
        more = pre.relu() * (pre >= pre.topk(9, dim=1).values[:, -1:])
        loss = loss + 0.25 * (y - offset - more @ dictionary.decoder).square().sum()
    num_slots = min(6, int(dead.sum()))
    if num_slots:
        scores = pre.masked_fill(~dead, -1e9)
        revived = scores.relu() * (scores >= scores.topk(num_slots, dim=1).values[:, -1:])
        missing = errors[-1].detach() - revived @ dictionary.decoder
        loss = loss + 0.5 * num_slots / 6 * missing.square().sum()
    return loss / (y - y.mean(0)).square().sum()


def require_paper(kind: str, shape: dict[str, Any], num_dead: int, kernels: Kernels, dtype: torch.dtype) -> None:
    dictionary = build(ACTIVATIONS[kind], dtype=dtype, **shape)
    x, y = rows(dictionary)
    dead = torch.zeros(F, dtype=torch.bool)
    dead[:num_dead] = True
    loss = paper_loss(kind, dictionary, x, y, dead)
    expected = autograd_of(dictionary, loss)
    for name, parameter in dictionary.named_parameters():
        parameter.grad = expected[name]
    # ``test_blocks`` has this one written out.
    dictionary.zero_outside_blocks(of_gradients=True)
    measured, gradients, totals = measure(dictionary, x, y, dead=dead, kernels=kernels)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9}[dtype]
    assert measured == pytest.approx(loss.item(), rel=tolerance)
    for name, grad in gradients.items():
        torch.testing.assert_close(grad, expected[name], rtol=tolerance, atol=tolerance / 10, msg=name)
    pre = dictionary.pre_activations(x)
    codes = kept_by(kind, pre)
    assert float(totals.num_active) == int((codes > 0).sum())
    assert totals.fired.tolist() == (codes > 0).sum(0).tolist()


@pytest.mark.parametrize("num_dead", [0, 3, 15])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gradient_is_that_of_the_papers_loss(kind: str, shape: str, num_dead: int) -> None:
    require_paper(kind, SHAPES[shape], num_dead, TorchKernels(), torch.float64)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_compiled_kernels_give_the_same(kind: str) -> None:
    for shape in ({}, {"tied": True}, SHAPES["skip"]):
        require_paper(kind, shape, 3, CompiledKernels(2), torch.float32)


@pytest.mark.parametrize("kind", ["topk", "multi", "batch"])
def test_groups_of_latents_learn_in_their_blocks_only(kind: str) -> None:
    require_paper(kind, LAYERS, 3, TorchKernels(), torch.float64)


def test_decoder_rows_stay_on_the_unit_sphere() -> None:
    dictionary = build(ACTIVATIONS["topk"])
    x, y = rows(dictionary)
    measure(dictionary, x, y)
    constraint.make_tangential(dictionary)
    assert dictionary.decoder.grad is not None
    radial = (dictionary.decoder.grad * dictionary.decoder).sum(1)
    torch.testing.assert_close(radial, torch.zeros_like(radial), atol=1e-12, rtol=0)
    with torch.no_grad():
        dictionary.decoder.mul_(3)
    constraint.normalise(dictionary)
    torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(F, dtype=torch.float64))
