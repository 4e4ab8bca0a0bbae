"""The TopK objective: its hand-written gradient against autograd of the loss as the paper states it."""

from __future__ import annotations

import pytest
import torch

from pipeline.dictionaries import initialise
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.compiled import CompiledKernels
from pipeline.training.kernels import Kernels, TorchKernels
from pipeline.training.parameters import flat_gradients, gradient
from pipeline.training.topk import TopKObjective
from pipeline.training.totals import BatchTotals
from schemas.dictionary import DictionarySpec, TopK

B, F, D = 64, 40, 12
COEFFICIENT = 0.5


def build(kind: str, aux_k: int = 6) -> Dictionary:
    targets = [] if kind == "sae" else ["out"]
    activation = TopK(k=4, aux_k=aux_k, aux_coefficient=COEFFICIENT, dead_after_tokens=1)
    spec = DictionarySpec(
        name="d", sources=["in"], targets=targets, num_latents=F, activation=activation, skip=kind == "skip", seed=3
    )
    d_target = {"in": D} if kind == "sae" else {"out": D + 2}
    dictionary = Dictionary(spec, {"in": D}, d_target, {"in": 1.0, "out": 1.0})
    initialise.fill(dictionary, {point: torch.full((d,), 0.3) for point, d in d_target.items()})
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        dictionary.encoder.add_(torch.randn(F, D, generator=generator), alpha=0.2)
        dictionary.b_enc.add_(torch.randn(F, generator=generator), alpha=0.5)
        if dictionary.skip is not None:
            dictionary.skip.add_(torch.randn(D + 2, D, generator=generator), alpha=0.1)
    return dictionary


def rows(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(B, D, generator=generator) + 0.3
    return x, x if kind == "sae" else torch.randn(B, D + 2, generator=generator)


def paper_loss(
    dictionary: Dictionary, x: torch.Tensor, y: torch.Tensor, dead: torch.Tensor, aux_k: int
) -> torch.Tensor:
    """Gao et al. 2024, written out: dense codes, autograd everywhere."""
    z = x - dictionary.b_dec if dictionary.centres_input else x
    pre = z @ dictionary.encoder.T + dictionary.b_enc

    def largest(scores: torch.Tensor, k: int) -> torch.Tensor:
        values, indices = scores.topk(k, dim=1)
        return torch.zeros_like(scores).scatter(1, indices, values.relu())

    y_hat = largest(pre, 4) @ dictionary.decoder + dictionary.b_dec
    if dictionary.skip is not None:
        y_hat = y_hat + x @ dictionary.skip.T
    variance = (y - y.mean(0)).square().sum()
    loss = (y - y_hat).square().sum()
    num_slots = min(aux_k, int(dead.sum()))
    if num_slots:
        missing = (y - y_hat).detach()
        r_hat = largest(pre.masked_fill(~dead, -1e9), num_slots) @ dictionary.decoder
        loss = loss + COEFFICIENT * num_slots / aux_k * (missing - r_hat).square().sum()
    return loss / variance


@pytest.mark.parametrize("kernels", [TorchKernels(), CompiledKernels(2)], ids=["torch", "compiled"])
@pytest.mark.parametrize("num_dead", [0, 3, 15])
@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip"])
def test_gradient_is_that_of_the_papers_loss(kind: str, num_dead: int, kernels: Kernels) -> None:
    dictionary, (x, y) = build(kind), rows(kind)
    dead = torch.zeros(F, dtype=torch.bool)
    dead[:num_dead] = True
    loss = paper_loss(dictionary, x, y, dead, 6)
    names, parameters = zip(*dictionary.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    # The constraint: no radial part in the decoder's gradient.
    radial = (expected["decoder"] * dictionary.decoder.detach()).sum(1, keepdim=True)
    expected["decoder"] = expected["decoder"] - radial * dictionary.decoder.detach()

    flat = flat_gradients(dictionary)
    objective = TopKObjective(dictionary, dictionary.spec.activation, kernels)  # type: ignore[arg-type]
    totals = BatchTotals(y.shape[1], F, torch.device("cpu"))
    totals.add_targets(y)
    for part in (slice(0, 20), slice(20, B)):
        objective.accumulate(x[part], y[part], dead, totals, 0.0)
    normaliser = objective.normaliser(totals, B)
    flat.div_(normaliser)
    objective.complete_gradients()

    assert objective.loss_sum(totals, 0.0) / normaliser == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in dictionary.named_parameters():
        torch.testing.assert_close(gradient(parameter), expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_totals_are_counts_of_this_batch() -> None:
    dictionary, (x, y) = build("sae"), rows("sae")
    flat_gradients(dictionary)
    objective = TopKObjective(dictionary, dictionary.spec.activation, TorchKernels())  # type: ignore[arg-type]
    totals = BatchTotals(D, F, torch.device("cpu"))
    totals.add_targets(y)
    objective.accumulate(x, y, torch.zeros(F, dtype=torch.bool), totals, 0.0)
    codes = dictionary.codes_dense(x)
    assert float(totals.num_active) == int((codes > 0).sum())
    assert totals.fired.tolist() == (codes > 0).sum(0).tolist()
    assert totals.variance(B) == pytest.approx(float((y - y.mean(0)).square().sum()), rel=1e-5)
    assert float(totals.error) == pytest.approx((dictionary(x) - y).square().sum().item(), rel=1e-5)


def test_decoder_rows_stay_on_the_unit_sphere() -> None:
    dictionary = build("sae")
    with torch.no_grad():
        dictionary.decoder.mul_(3)
    TopKObjective(dictionary, dictionary.spec.activation, TorchKernels()).project_weights()  # type: ignore[arg-type]
    torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(F))
