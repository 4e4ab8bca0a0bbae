"""Dictionaries whose sparsity is a penalty: each loss and its gradients against the equation, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from stepping import autograd_of, build, measure, rows

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.relu_l1 import ReluL1Terms
from schemas.activation import ReluL1

B = 64


def decoder_norms(dictionary: Dictionary) -> torch.Tensor:
    widths = list(dictionary.d_target.values())
    return torch.stack([part.square().sum(1).sqrt() for part in dictionary.decoder.split(widths, dim=1)], dim=1)


def forward(dictionary: Dictionary, x: torch.Tensor) -> torch.Tensor:
    z = x - dictionary.b_dec if dictionary.centres_input else x
    return z @ dictionary.encoder.T + dictionary.b_enc


def error(dictionary: Dictionary, codes: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y_hat = codes @ dictionary.decoder + dictionary.b_dec
    if dictionary.skip is not None:
        y_hat = y_hat + x @ dictionary.skip.T
    return (y - y_hat).square().sum()


def relu_l1(d: Dictionary, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    f = forward(d, x).relu()
    return error(d, f, x, y) + 0.5 * (f * decoder_norms(d).sum(1)).sum()


def relu_l1_concatenated(d: Dictionary, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    f = forward(d, x).relu()
    return error(d, f, x, y) + 0.5 * (f * d.decoder.norm(dim=1)).sum()


def unit_norm(d: Dictionary, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    f = forward(d, x).relu()
    return error(d, f, x, y) + 0.5 * f.sum()


def tanh(d: Dictionary, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    f = forward(d, x).relu()
    return error(d, f, x, y) + 0.5 * (4 * f[:, :, None] * decoder_norms(d)).tanh().sum()


def tanh_quad(d: Dictionary, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As the reference code has it: p is a mean over rows and targets together, the loss a mean over targets."""
    f = forward(d, x).relu()
    p = (4 * f[:, :, None] * decoder_norms(d)).tanh().mean((0, 2))
    num_targets = len(d.d_target)
    mean_error = error(d, f, x, y) / len(x) / num_targets
    return (mean_error + 0.5 * (p * (1 + p / 0.1)).sum()) * num_targets * len(x)


def gated(d: Dictionary, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = x - d.b_dec if d.centres_input else x
    gate = z @ d.encoder.T + d.b_enc
    magnitude = d.activation.r_mag.exp() * (z @ d.encoder.T) + d.activation.b_mag
    f = (gate > 0) * magnitude.relu()
    frozen = gate.relu() @ d.decoder.detach() + d.b_dec.detach()
    if d.skip is not None:
        frozen = frozen + x @ d.skip.detach().T
    return error(d, f, x, y) + 0.5 * gate.relu().sum() + (y - frozen).square().sum()


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "relu_l1": ({"kind": "relu_l1", "l1_coefficient": 0.5}, relu_l1),
    "concatenated": (
        {"kind": "relu_l1", "l1_coefficient": 0.5, "decoder_norms": "concatenated"}, relu_l1_concatenated,
    ),
    "unit_norm": ({"kind": "relu_l1_unit_norm", "l1_coefficient": 0.5, "resample_at": []}, unit_norm),
    "tanh": ({"kind": "relu_tanh", "penalty": {"kind": "tanh", "coefficient": 0.5}}, tanh),
    "tanh_quad": (
        {"kind": "relu_tanh", "penalty": {"kind": "tanh_quad", "coefficient": 0.5, "frequency": 0.1}}, tanh_quad,
    ),
    "gated": ({"kind": "gated", "l1_coefficient": 0.5}, gated),
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "sae": {},
    "tied": {"tied": True},
    "skip": {"targets": ["b"], "skip": True},
    "crosscoder": {"sources": ["a", "b", "c"]},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_equation(case: str, shape: str) -> None:
    activation, equation = CASES[case]
    dictionary = build(activation, **SHAPES[shape])
    x, y = rows(dictionary)
    expected = equation(dictionary, x, y) / B
    measured, gradients, totals = measure(dictionary, x, y)
    assert measured == pytest.approx(expected.item(), rel=1e-9)
    for name, grad in autograd_of(dictionary, expected).items():
        torch.testing.assert_close(gradients[name], grad, rtol=1e-9, atol=1e-12, msg=name)
    codes = dictionary.codes_dense(x)
    assert float(totals.num_active) == int((codes > 0).sum())
    assert totals.fired.tolist() == (codes > 0).sum(0).tolist()


WINDOW = 0.5


def straight_through(
    dictionary: Dictionary, x: torch.Tensor, y: torch.Tensor, penalty: str
) -> tuple[float, dict[str, torch.Tensor]]:
    """JumpReLU by the papers' pseudo-derivatives, without autograd through the step: loss and gradients."""
    theta = dictionary.activation.log_threshold.exp().detach()
    pre = forward(dictionary, x)
    on = (pre > theta).double().detach()
    near = ((pre - theta).abs() < WINDOW / 2).double().detach()
    # The codes as a function of pre alone: the threshold is put in through its own derivative below.
    f = pre * on
    norms = decoder_norms(dictionary).sum(1)
    loss = error(dictionary, f, x, y) + 1e-3 * ((theta - pre).relu() * norms).sum()
    if penalty == "tanh":
        loss = loss + 0.5 * (4 * f * decoder_norms(dictionary)[:, 0]).tanh().sum()
    slope_f = torch.autograd.grad(loss, f, retain_graph=True)[0]
    expected = autograd_of(dictionary, loss)
    by_theta = (slope_f * -(theta / WINDOW) * near).sum(0) + 1e-3 * ((theta > pre) * norms).sum(0)
    total = loss.item()
    if penalty == "l0":
        by_theta = by_theta - 0.5 / WINDOW * near.sum(0)
        total += 0.5 * float(on.sum())
    expected["activation.log_threshold"] = by_theta * theta
    return total / B, {name: grad / B for name, grad in expected.items()}


@pytest.mark.parametrize("shape", ["sae", "tied", "skip"])
@pytest.mark.parametrize("penalty", ["l0", "tanh"])
def test_jumprelu_is_the_papers_straight_through_step(penalty: str, shape: str) -> None:
    activation = {
        "kind": "jumprelu", "threshold": 0.3, "bandwidth": WINDOW, "pre_activation_coefficient": 1e-3,
        "penalty": {"kind": penalty, "coefficient": 0.5},
    }  # fmt: skip
    dictionary = build(activation, **SHAPES[shape])
    x, y = rows(dictionary)
    loss, expected = straight_through(dictionary, x, y, penalty)
    measured, gradients, _ = measure(dictionary, x, y)
    assert measured == pytest.approx(loss, rel=1e-9)
    assert gradients["activation.log_threshold"].abs().min() > 0
    for name, grad in expected.items():
        torch.testing.assert_close(gradients[name], grad, rtol=1e-9, atol=1e-12, msg=name)


def test_by_hand() -> None:
    """Two channels, three latents: small enough for paper."""
    spec_of = {"kind": "relu_l1", "l1_coefficient": 2.0}
    dictionary = build(spec_of, num_latents=3)
    small = Dictionary(dictionary.spec, {"a": 2}, {"a": 2}, {"a": 1.0}, dtype=torch.float64)
    with torch.no_grad():
        small.encoder.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        small.decoder.copy_(torch.tensor([[0.5, 0.0], [0.0, 2.0], [1.0, 1.0]]))
        small.b_dec.copy_(torch.tensor([0.0, 1.0]))
    x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    # f = (2, 1, 0); x^ = (1, 3); error = 1 + 4; penalty = 2 * 0.5 + 1 * 2
    loss, gradients, _ = measure(small, x, x)
    assert loss == pytest.approx(5 + 2 * 3)
    # g = 2 (x^ - x) = (-2, 4); df_0 = <g, (.5, 0)> + 2 * .5 = 0; df_1 = <g, (0, 2)> + 2 * 2 = 12
    assert gradients["b_enc"].tolist() == [0.0, 12.0, 0.0]
    assert gradients["encoder"].tolist() == [[0.0, 0.0], [24.0, 12.0], [0.0, 0.0]]
    # 2 * g + 2 * 2 * (1, 0) and 1 * g + 2 * 1 * (0, 1)
    assert gradients["decoder"].tolist() == [[0.0, 8.0], [-2.0, 6.0], [0.0, 0.0]]
    assert gradients["b_dec"].tolist() == [-2.0, 4.0]


def test_weighted_loss_is_invariant_under_the_scale_of_a_latent() -> None:
    factor = torch.logspace(-1, 1, 40, dtype=torch.float64)[:, None]
    for activation, _ in (CASES["relu_l1"], CASES["tanh"], CASES["tanh_quad"]):
        dictionary = build(activation, sources=["a", "b"])
        x, y = rows(dictionary)
        before = measure(dictionary, x, y)[0]
        with torch.no_grad():
            dictionary.encoder.mul_(factor)
            dictionary.b_enc.mul_(factor[:, 0])
            dictionary.decoder.div_(factor)
        assert measure(dictionary, x, y)[0] == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("case", ["relu_l1", "unit_norm", "tanh", "tanh_quad", "gated"])
def test_penalty_rises_linearly(case: str) -> None:
    activation = dict(CASES[case][0])
    if "penalty" in activation:
        activation["penalty"] = activation["penalty"] | {"warmup_fraction": 0.5}
    else:
        activation["l1_warmup_fraction"] = 0.5
    dictionary = build(activation)
    x, y = rows(dictionary)
    start, middle, end, after = (measure(dictionary, x, y, progress=progress)[0] for progress in (0, 0.25, 0.5, 1))
    assert middle - start == pytest.approx((end - start) / 2, rel=1e-9)
    assert after == end


def test_start_is_that_of_the_april_2024_update() -> None:
    spec = build({"kind": "relu_l1"}).spec
    assert isinstance(spec.activation, ReluL1)
    dictionary = Dictionary(spec, {"a": 6}, {"a": 6}, {"a": 1.0})
    from pipeline.dictionaries import initialise

    initialise.fill(dictionary, {"a": torch.ones(6)})
    torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.full((40,), 0.1))
    torch.testing.assert_close(dictionary.encoder, dictionary.decoder)
    assert not dictionary.b_dec.any()
    assert ReluL1Terms(dictionary, spec.activation).state() == {}
    assert math.isclose(spec.activation.l1_coefficient, 5.0)
