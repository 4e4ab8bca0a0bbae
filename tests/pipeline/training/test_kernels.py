"""Compiled loops, Triton kernels and plain torch against autograd of the same expression.

Triton's kernels run in its interpreter where there is no GPU.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from pipeline.dictionaries.codes import SparseCodes
from pipeline.training.compiled import CompiledKernels
from pipeline.training.kernels import Kernels, TorchKernels, choose

B, F, K, S, T = 37, 50, 5, 150, 9  # S is wider than a program of Triton


def triton_kernels() -> Kernels:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed; it comes with the extra dev on Linux")
    from pipeline.training.gpu_kernels import TritonKernels

    return TritonKernels()


@pytest.fixture(params=["torch", "compiled-1", "compiled-3", "triton"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    kind, _, threads = request.param.partition("-")
    if kind == "triton":
        return triton_kernels()
    return TorchKernels() if kind == "torch" else CompiledKernels(int(threads))


def problem(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    pre = draw(B, F) - 1.0  # so that some of the k largest are negative: inactive slots
    values, indices = torch.topk(pre, K, dim=1)
    return {
        "values": values.relu(),
        "indices": indices,
        "table": draw(F, T),
        "grad": draw(B, T),
        "inputs": draw(B, S),
    }


def test_decode_adds_the_rows_of_active_latents(kernels: Kernels) -> None:
    p = problem()
    codes = SparseCodes(p["values"], p["indices"])
    out = torch.ones(B, T)
    kernels.decode(codes, p["table"], out)
    torch.testing.assert_close(out, 1 + codes.dense(F) @ p["table"], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_autograd(kernels: Kernels) -> None:
    p = problem(1)
    assert (p["values"] == 0).any()
    table = p["table"].clone().requires_grad_()
    encoder = torch.randn(F, S, generator=torch.Generator().manual_seed(2)).requires_grad_()
    bias = torch.zeros(F, requires_grad=True)
    pre = p["inputs"] @ encoder.T + bias
    values, indices = torch.topk(pre - 1.5, K, dim=1)
    values = values.relu()
    ((values[:, :, None] * table[indices]).sum(1) * p["grad"]).sum().backward()

    codes = SparseCodes(values.detach(), indices)
    got = {"decoder_grad": torch.zeros(F, T), "encoder_grad": torch.zeros(F, S), "b_enc_grad": torch.zeros(F)}
    code_grad = kernels.code_gradient(codes, p["table"], p["grad"])
    kernels.add_weight_gradients(codes, code_grad, p["grad"], p["inputs"], **got)
    for name, parameter in (("decoder_grad", table), ("encoder_grad", encoder), ("b_enc_grad", bias)):
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-5, atol=1e-5)


def test_weight_gradients_add_to_what_is_there(kernels: Kernels) -> None:
    p = problem(3)
    codes = SparseCodes(p["values"], p["indices"])
    code_grad = kernels.code_gradient(codes, p["table"], p["grad"])
    once, twice = torch.zeros(F, T), torch.zeros(F, T)
    for target, repeats in ((once, 1), (twice, 2)):
        for _ in range(repeats):
            kernels.add_weight_gradients(
                codes, code_grad, p["grad"], p["inputs"],
                decoder_grad=target, encoder_grad=torch.zeros(F, S), b_enc_grad=torch.zeros(F),
            )  # fmt: skip
    torch.testing.assert_close(twice, 2 * once)


def test_no_rows_is_no_work(kernels: Kernels) -> None:
    codes = SparseCodes(torch.zeros(0, K), torch.zeros(0, K, dtype=torch.int64))
    kernels.decode(codes, torch.ones(F, T), torch.zeros(0, T))
    code_grad = kernels.code_gradient(codes, torch.ones(F, T), torch.zeros(0, T))
    total = torch.zeros(F, T)
    kernels.add_weight_gradients(
        codes, code_grad, torch.zeros(0, T), torch.zeros(0, S),
        decoder_grad=total, encoder_grad=torch.zeros(F, S), b_enc_grad=torch.zeros(F),
    )  # fmt: skip
    assert not total.any()


def test_the_largest_pre_activations(kernels: Kernels) -> None:
    p = problem(5)
    encoder, bias = torch.randn(F, S, generator=torch.Generator().manual_seed(6)), torch.linspace(-30, 5, F)
    pre = torch.addmm(bias, p["inputs"], encoder.T)
    codes = kernels.largest(p["inputs"], encoder, bias, K)
    values, latents = torch.topk(pre, K, dim=1)
    expected = SparseCodes(values.relu(), latents).dense(F)
    torch.testing.assert_close(codes.dense(F), expected, rtol=1e-4, atol=1e-4)
    assert codes.values.shape == codes.indices.shape == (B, K)
    assert kernels.largest(p["inputs"], encoder[:0], bias[:0], 0).values.shape == (B, 0)
    values, places = kernels.above(p["inputs"], encoder, bias, 4.0)
    assert torch.equal(places, (pre >= 4).flatten().nonzero().squeeze(1))
    torch.testing.assert_close(values, pre.flatten()[places], rtol=1e-4, atol=1e-4)


def test_of_tied_latents_the_lowest_are_kept(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(7)
    # Whole numbers, so that products are exact: four copies of each of six latents tie.
    inputs = torch.randint(-9, 10, (B, S), generator=generator).float()
    encoder = torch.randint(-9, 10, (6, S), generator=generator).float()
    codes = kernels.largest(inputs, encoder.repeat_interleave(4, 0), torch.full((24,), 1e5), 6)
    order = (inputs @ encoder.T).sort(dim=1, descending=True).indices
    for latents, (best, second) in zip(codes.indices, order[:, :2].tolist(), strict=True):
        assert set(latents.tolist()) == {4 * best + copy for copy in range(4)} | {4 * second, 4 * second + 1}


def test_nan_is_not_hidden(kernels: Kernels) -> None:
    codes = SparseCodes(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64))
    out = torch.zeros(1, T)
    kernels.decode(codes, torch.full((F, T), float("nan")), out)
    assert out.isnan().all()
    broken = kernels.largest(torch.full((1, S), float("nan")), torch.ones(F, S), torch.zeros(F), K)
    out = torch.zeros(1, T)
    kernels.decode(broken, torch.ones(F, T), out)
    assert out.isnan().all()


def test_the_choice_follows_device_and_dtype() -> None:
    assert isinstance(choose(torch.device("cpu"), torch.float32, 1), CompiledKernels)
    assert isinstance(choose(torch.device("cpu"), torch.float64, 1), TorchKernels)
    if importlib.util.find_spec("triton") is not None:
        assert type(choose(torch.device("cuda"), torch.float32, 1)).__name__ == "TritonKernels"
    assert isinstance(choose(torch.device("cuda"), torch.float64, 1), TorchKernels)
