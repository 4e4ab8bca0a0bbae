"""One step of each optimiser by hand; resume, ranks, masks and forgetting for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stepping
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.training import engine, memory
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.kernels import TorchKernels
from pipeline.training.optimiser import Optimiser, optimiser_of
from pipeline.training.parameters import flat_gradients
from pipeline.training.trainer import DictionaryTrainer
from pipeline.training.world import SingleWorld, World
from schemas.dictionary import DictionarySpec
from schemas.optimiser import Adam, Muon, Signum
from schemas.train import TrainSpec

MakeSpec = Callable[..., TrainSpec]
OPTIMISERS: dict[str, dict[str, Any]] = {
    "adam": {"kind": "adam"}, "muon": {"kind": "muon"}, "signum": {"kind": "signum"},
}  # fmt: skip
RATES = {"adam": 5e-3, "muon": 5e-3, "signum": 2e-3}


class Weights(nn.Module):
    """A matrix and a bias with gradients."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(12, 4, generator=generator))
        self.bias = nn.Parameter(torch.randn(12, generator=generator))
        flat_gradients(self)

    def set_gradients(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for parameter in (self.matrix, self.bias):
            assert parameter.grad is not None
            parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))
        assert self.matrix.grad is not None
        assert self.bias.grad is not None
        return self.matrix.grad.clone(), self.bias.grad.clone()


def test_two_steps_of_adam_by_hand() -> None:
    weights = Weights()
    optimiser = optimiser_of(Adam(beta1=0.8, beta2=0.9, epsilon=1e-3), dict(weights.named_parameters()))
    expected, mean, square = weights.bias.detach().clone(), torch.zeros(12), torch.zeros(12)
    for step, rate in enumerate((0.1, 0.05), 1):
        _, grad = weights.set_gradients(step)
        optimiser.step(rate)
        mean, square = 0.8 * mean + 0.2 * grad, 0.9 * square + 0.1 * grad**2
        expected -= rate * (mean / (1 - 0.8**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-3)
    torch.testing.assert_close(weights.bias.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("rate", "factor"), [("match_adam", 0.2 * 12**0.5), ("original", 3**0.5)])
def test_a_step_of_muon_moves_every_direction_alike(nesterov: bool, rate: Any, factor: float) -> None:
    weights = Weights()
    spec = Muon(momentum=0.9, nesterov=nesterov, rate=rate)
    optimiser = optimiser_of(spec, dict(weights.named_parameters()))
    matrix, bias = weights.matrix.detach().clone(), weights.bias.detach().clone()
    grad, bias_grad = weights.set_gradients(1)
    optimiser.step(0.1)
    # One step from nothing: the mean of gradients is a multiple of the gradient, looked ahead or not.
    moved = (matrix - weights.matrix.detach()) / (0.1 * factor)
    u, _, v = torch.linalg.svd(grad, full_matrices=False)
    singular = torch.linalg.svdvals(moved)
    assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3
    core = u.T @ moved @ v.T
    torch.testing.assert_close(core, torch.diag(core.diagonal()), rtol=0, atol=0.03)
    # A bias is Adam's: the first step is the rate, whatever the gradient.
    torch.testing.assert_close(weights.bias.detach(), bias - 0.1 * bias_grad.sign(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(optimiser.state()["momentum.matrix"], 0.1 * grad)


def test_two_steps_of_signum_by_hand() -> None:
    weights = Weights()
    optimiser = optimiser_of(Signum(momentum=0.5), dict(weights.named_parameters()))
    expected = weights.matrix.detach().clone()
    first, _ = weights.set_gradients(1)
    optimiser.step(0.1)
    expected -= 0.1 * first.sign()
    second, _ = weights.set_gradients(2)
    assert weights.matrix.grad is not None
    weights.matrix.grad[3] = 0
    second[3] = 0
    optimiser.step(0.01)
    step = 0.01 * (0.25 * first + 0.5 * second).sign()
    step[3] = 0
    torch.testing.assert_close(weights.matrix.detach(), expected - step)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_what_belongs_to_a_latent_is_forgotten_and_nothing_else(kind: str) -> None:
    weights = Weights()
    spec = DictionarySpec.model_validate(
        {"name": "d", "sources": ["a"], "num_latents": 40, "optimiser": OPTIMISERS[kind]}
    )
    optimiser: Optimiser = optimiser_of(spec.optimiser, dict(weights.named_parameters()))
    weights.set_gradients(1)
    optimiser.step(0.1)
    before = {name: tensor.clone() for name, tensor in optimiser.state().items()}
    rows = torch.tensor([2, 5])
    for parameter in (weights.matrix, weights.bias):
        optimiser.clear(parameter, rows)
    for name, tensor in optimiser.state().items():
        assert float(tensor[rows].abs().sum()) == 0
        kept = torch.ones(12, dtype=torch.bool)
        kept[rows] = False
        assert torch.equal(tensor[kept], before[name][kept])
        assert float(before[name][rows].abs().sum()) > 0


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_weight_moves_by_its_own_multiple_of_the_rate(kind: str) -> None:
    spec = DictionarySpec.model_validate(
        {"name": "d", "sources": ["a"], "num_latents": 40, "optimiser": OPTIMISERS[kind]}
    )
    plain, scaled = Weights(), Weights()
    start = plain.matrix.detach().clone()
    for weights, multiples in ((plain, ()), (scaled, [("matrix", 0.25)])):
        optimiser = optimiser_of(spec.optimiser, dict(weights.named_parameters()), multiples)
        for step, rate in enumerate((0.1, 0.05), 1):
            weights.set_gradients(step)
            optimiser.step(rate)
    torch.testing.assert_close(scaled.matrix - start, 0.25 * (plain.matrix - start))
    assert torch.equal(scaled.bias, plain.bias)


def test_multiples_name_weights_that_exist() -> None:
    facts = {"name": "d", "sources": ["a"], "num_latents": 40}
    with pytest.raises(ValidationError, match="encodre"):
        DictionarySpec.model_validate({**facts, "learning_rate_multiples": {"encodre": 0.5}})
    with pytest.raises(ValidationError, match="tied has one matrix"):
        DictionarySpec.model_validate({**facts, "tied": True, "learning_rate_multiples": {"decoder": 0.5}})


def sweep(kind: str) -> list[dict[str, Any]]:
    topk = {"kind": "topk", "k": 3, "aux_k": 8, "dead_after_tokens": 300}
    common = {
        "num_latents": 48, "optimiser": OPTIMISERS[kind], "learning_rate": RATES[kind],
        "learning_rate_multiples": {"encoder": 0.8, "activation": 2},
    }  # fmt: skip
    return [
        {"name": "sae", "sources": ["resid"], "activation": topk, **common},
        {
            "name": "layers",
            "sources": ["resid", "mlp_in"],
            "groups": "cross_layer",
            "activation": {"kind": "jumprelu", "penalty": {"kind": "tanh", "coefficient": 0.5}},
            **common,
        },
        {"name": "bricken", "sources": ["resid"], "activation": stepping.KINDS["relu_l1_unit_norm"], **common},
    ]


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_learns_and_resumes_bit_by_bit(make_spec: MakeSpec, kind: str) -> None:
    whole = make_spec("whole", dictionaries=sweep(kind), num_epochs=3)
    records: list[dict[str, Any]] = []
    summary = engine.train(whole, SingleWorld(), report=records.append)
    for name, metrics in summary["dictionaries"].items():
        assert metrics["fvu"] < 0.85 * records[0]["dictionaries"][name]["fvu"], name

    class Killed(BaseException):
        pass

    def report(record: dict[str, Any]) -> None:
        if record["step"] >= 30:
            raise Killed

    killed = make_spec("killed", dictionaries=sweep(kind), num_epochs=3)
    with pytest.raises(Killed):
        engine.train(killed, SingleWorld(), report=report)
    engine.train(killed, SingleWorld())
    for name in summary["dictionaries"]:
        ours, theirs = (Path(spec.output) / name / "dictionary.safetensors" for spec in (killed, whole))
        assert ours.read_bytes() == theirs.read_bytes()
    state = dict(Checkpoints(whole.output).read_state(summary["steps"], "layers"))
    moment = "exp_avg.encoder" if kind == "adam" else "momentum.encoder"
    assert float(state[moment].abs().sum()) > 0
    # The first half of the latents reads the first source alone.
    assert float(state["weights.encoder"][:24, 16:].abs().max()) == 0
    assert float(state["weights.encoder"][:24, :16].abs().max()) > 0


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_ranks_take_the_step_of_one(kind: str) -> None:
    def train(world: World) -> dict[str, torch.Tensor]:
        facts = {"optimiser": OPTIMISERS[kind], "learning_rate_multiples": {"encoder": 0.5, "b_dec": 0.1}}
        dictionary = stepping.build(stepping.KINDS["topk"], learning_rate=RATES[kind], **facts)
        trainer = DictionaryTrainer(dictionary, TorchKernels(), max_gradient_norm=1.0)
        for step in range(4):
            x, _ = stepping.rows(dictionary, seed=step)
            part = stepping.shares(len(x), world.size)[world.rank]
            trainer.step({"a": x[part]}, num_rows=len(x), factor=1.0, progress=0.1, world=world)
        return {name: tensor.clone() for name, tensor in trainer.state().items()}

    alone = train(SingleWorld())
    for size in (2, 4):
        ranks = stepping.on_ranks(size, train)
        for name, tensor in alone.items():
            assert all(torch.equal(rank[name], ranks[0][name]) for rank in ranks)
            torch.testing.assert_close(ranks[0][name], tensor, rtol=1e-4, atol=1e-6, msg=f"{kind} {size} {name}")


def test_memory_counts_what_each_optimiser_remembers() -> None:
    def required(optimiser: dict[str, Any]) -> int:
        facts = {"name": "d", "sources": ["in"], "num_latents": 100, "optimiser": optimiser}
        return memory.required_bytes([DictionarySpec.model_validate(facts)], {"in": 8})

    matrices, biases = 2 * 100 * 8, 100 + 8
    assert required(OPTIMISERS["adam"]) == 16 * (matrices + biases)
    assert required(OPTIMISERS["muon"]) == 12 * matrices + 16 * biases
    assert required(OPTIMISERS["signum"]) == 12 * (matrices + biases)
