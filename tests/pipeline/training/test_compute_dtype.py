"""Products of bfloat16 operands with float32 weights, sums and gradients."""

from __future__ import annotations

import pytest
import torch
from stepping import KINDS, build, measure, rows

from pipeline.dictionaries.codes import SparseCodes
from pipeline.dictionaries.dictionary import Dictionary
from pipeline.training.compiled import CompiledKernels
from pipeline.training.kernels import TorchKernels
from pipeline.training.objectives import objective_of
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16).float()


def low(kind: str) -> Dictionary:
    return build(KINDS[kind], dtype=torch.float32, compute_dtype="bfloat16")


@pytest.mark.parametrize("kind", KINDS)
def test_pre_activations_are_products_of_rounded_operands(kind: str) -> None:
    dictionary = low(kind)
    x, _ = rows(dictionary)
    exact = dictionary.pre_activations(x)
    objective_of(dictionary, TorchKernels())
    got = dictionary.pre_activations(x)
    z, encoder, b_enc = map(rounded, (dictionary.centred(x), dictionary.encoder, dictionary.b_enc))
    torch.testing.assert_close(got, z @ encoder.T + b_enc, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, exact, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("kind", ["topk", "multi_topk", "batch_topk", "matryoshka"])
def test_both_implementations_agree(kind: str) -> None:
    found = []
    for kernels in (TorchKernels(), CompiledKernels(2)):
        dictionary = low(kind)
        x, y = rows(dictionary)
        dead = torch.arange(dictionary.num_latents) < 9
        found.append(measure(dictionary, x, y, dead=dead, kernels=kernels))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["relu_l1", "gated", "jumprelu"])
def test_gradients_are_near_those_of_float32_and_not_the_same(kind: str) -> None:
    whole = build(KINDS[kind], dtype=torch.float32)
    x, y = rows(whole)
    loss, expected, _ = measure(whole, x, y)
    low_loss, got, _ = measure(low(kind), x, y)
    assert low_loss == pytest.approx(loss, rel=2e-2)
    differs = False
    for name, gradient in expected.items():
        assert got[name].dtype == torch.float32
        assert torch.linalg.vector_norm(got[name] - gradient) <= 0.1 * torch.linalg.vector_norm(gradient), name
        differs |= not torch.equal(got[name], gradient)
    assert differs


def test_weights_keep_what_bfloat16_would_lose() -> None:
    dictionary = low("topk")
    trainer = DictionaryTrainer(dictionary, CompiledKernels(1), max_gradient_norm=1.0)
    before = dictionary.encoder.detach().clone()
    x, _ = rows(dictionary)
    trainer.step({"a": x}, num_rows=len(x), factor=1e-4, progress=0.5, world=SingleWorld())
    after = dictionary.encoder.detach()
    assert (after != before).float().mean() > 0.5
    assert (rounded(after) == rounded(before)).float().mean() > 0.9


def test_a_trained_dictionary_is_read_in_float32() -> None:
    dictionary = low("topk")
    x, _ = rows(dictionary)
    codes = dictionary.encode(x)
    assert isinstance(codes, SparseCodes)
    pre = torch.addmm(dictionary.b_enc, dictionary.centred(x), dictionary.encoder.T)
    torch.testing.assert_close(codes.values, pre.gather(1, codes.indices).relu())
