"""A gate for each target: the loss and its gradients against the equations, and what the gates make of the codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stepping import autograd_of, build, measure, rows

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.kernels import TorchKernels
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld

B, WINDOW = 64, 0.5
SHAPES: dict[str, dict[str, Any]] = {
    "crosscoder": {"sources": ["a", "b", "c"]},
    "tied": {"sources": ["a", "b"], "tied": True},
    "skip": {"sources": ["a"], "targets": ["b", "c"], "skip": True},
}


def activation_of(kind: str = "tanh_quad", **fields: Any) -> dict[str, Any]:
    penalty = {"kind": kind, "coefficient": 0.5} | ({"frequency": 0.1} if kind == "tanh_quad" else {})
    facts = {"kind": "jumprelu", "gate": "per_target", "threshold": 0.1, "bandwidth": WINDOW, "penalty": penalty}
    return facts | {"pre_activation_coefficient": 1e-3, **fields}


def by_hand(
    dictionary: Dictionary, x: torch.Tensor, y: torch.Tensor, kind: str
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients as the paper's code has them: u = z n, f = JumpReLU(u) / n, target by target; the
    pseudo-derivative of the thresholds put in by hand."""
    theta_FH = dictionary.activation.log_threshold.exp().detach()
    z_BF = x @ dictionary.encoder.T + dictionary.b_enc
    parts = dictionary.decoder.split(list(dictionary.d_target.values()), dim=1)
    norms = [part.square().sum(1).sqrt() for part in parts]
    codes, near, made = [], [], []
    for index, (part, norm) in enumerate(zip(parts, norms, strict=True)):
        u_BF = z_BF * norm
        on_BF = (u_BF > theta_FH[:, index]).double().detach()
        codes.append(u_BF * on_BF / norm)
        near.append(((u_BF - theta_FH[:, index]).abs() < WINDOW / 2).double().detach())
        made.append(codes[-1] @ part)
    y_hat = torch.cat(made, dim=1) + dictionary.b_dec
    if dictionary.skip is not None:
        y_hat = y_hat + x @ dictionary.skip.T
    on = torch.stack([(4 * code * norm).tanh() for code, norm in zip(codes, norms, strict=True)])
    penalty = 0.5 * on.sum()
    if kind == "tanh_quad":
        # A mean over rows and targets together; their loss is a mean over targets, ours a sum.
        p_F = on.mean((0, 1))
        penalty = 0.5 * (p_F * (1 + p_F / 0.1)).sum() * len(parts) * B
    missing = sum((theta_FH[:, index] - z_BF * norm).relu().sum() for index, norm in enumerate(norms))
    loss = (y - y_hat).square().sum() + penalty + 1e-3 * missing
    slopes = torch.autograd.grad(loss, codes, retain_graph=True)
    expected = autograd_of(dictionary, loss)
    by_theta = [
        (slope * near[index] / norms[index]).sum(0) * -theta_FH[:, index] / WINDOW
        + 1e-3 * (theta_FH[:, index] > z_BF * norms[index]).sum(0)
        for index, slope in enumerate(slopes)
    ]
    expected["activation.log_threshold"] = torch.stack(by_theta, dim=1).detach() * theta_FH
    return loss.item() / B, {name: grad / B for name, grad in expected.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["tanh", "tanh_quad"])
def test_loss_and_gradient_are_those_of_the_papers_code(kind: str, shape: str) -> None:
    dictionary = build(activation_of(kind), **SHAPES[shape])
    x, y = rows(dictionary)
    loss, expected = by_hand(dictionary, x, y, kind)
    measured, gradients, totals = measure(dictionary, x, y)
    assert measured == pytest.approx(loss, rel=1e-9)
    assert gradients["activation.log_threshold"].abs().min() > 0
    for name, grad in expected.items():
        torch.testing.assert_close(gradients[name], grad, rtol=1e-8, atol=1e-10, msg=name)
    codes = dictionary.codes_dense(x)
    assert float(totals.num_active) == int((codes > 0).sum())
    assert totals.fired.tolist() == (codes > 0).sum(0).tolist()


def test_a_latent_is_on_at_some_targets_and_off_at_others() -> None:
    dictionary = build(activation_of(threshold=0.3), **SHAPES["crosscoder"])
    x, _ = rows(dictionary)
    pre = dictionary.pre_activations(x)
    norms, theta = dictionary.decoder_norms(), dictionary.activation.log_threshold.exp()
    parts = dictionary.decoder.split(list(dictionary.d_target.values()), dim=1)
    gates = [pre * norms[:, index] > theta[:, index] for index in range(3)]
    expected = torch.cat([(pre * gate) @ part for gate, part in zip(gates, parts, strict=True)], dim=1)
    torch.testing.assert_close(dictionary(x), expected + dictionary.b_dec, rtol=1e-9, atol=1e-12)
    is_open = torch.stack(gates)
    torch.testing.assert_close(dictionary.encode(x), pre * is_open.any(0))
    assert (is_open.any(0) & ~is_open.all(0)).any()


def test_with_one_gate_for_all_it_is_the_shared_latent() -> None:
    """Equal norms and equal thresholds at all targets: what JumpReLU with a threshold for each latent gives."""
    gated = build(activation_of(threshold=0.3), sources=["a", "b"])
    shared = build({**activation_of(threshold=0.3), "gate": "shared"}, sources=["a", "b"])
    with torch.no_grad():
        for part in gated.decoder.split(list(gated.d_target.values()), dim=1):
            part.div_(part.norm(dim=1, keepdim=True))
        gated.activation.log_threshold.copy_(shared.activation.log_threshold[:, None].expand(-1, 2))
        shared.load_state_dict(
            {**gated.state_dict(), "activation.log_threshold": shared.activation.log_threshold.detach()}
        )
    x, _ = rows(gated)
    torch.testing.assert_close(gated(x), shared(x), rtol=1e-9, atol=1e-12)
    assert shared.encode(x).count_nonzero() > 0


def test_a_target_that_a_latent_does_not_write_stays_shut_and_finite() -> None:
    dictionary = build(activation_of(), **SHAPES["crosscoder"])
    with torch.no_grad():
        dictionary.decoder[:5] = 0
        dictionary.decoder[5, : dictionary.d_target["a"]] = 0
    x, y = rows(dictionary)
    loss, gradients, _ = measure(dictionary, x, y)
    assert loss > 0
    assert all(grad.isfinite().all() for grad in gradients.values())
    codes = dictionary.codes_dense(x)
    assert not codes[:, :5].any()
    assert codes[:, 5].any()


def test_steps_lower_the_loss_and_move_every_threshold() -> None:
    dictionary = build(activation_of(), sources=["a", "b"], dtype=torch.float32)
    before = dictionary.activation.log_threshold.detach().clone()
    trainer = DictionaryTrainer(dictionary, TorchKernels(), max_gradient_norm=1.0)
    generator = torch.Generator().manual_seed(0)
    acts = {point: torch.randn(128, width, generator=generator) for point, width in dictionary.d_source.items()}
    losses = [
        trainer.step(acts, num_rows=128, factor=1.0, progress=1.0, world=SingleWorld())["loss"] for _ in range(30)
    ]
    assert losses[-1] < 0.9 * losses[0]
    assert (dictionary.activation.log_threshold != before).all()
