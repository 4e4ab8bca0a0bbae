"""Optimisers behind one interface: what they remember lies in named tensors, which checkpoints keep.

    adam      exp_avg.NAME, exp_avg_sq.NAME
    muon      momentum.NAME of matrices; the two of Adam of everything else
    signum    momentum.NAME

All tensors have the shape of the weights that they belong to, so what belongs to a latent can be forgotten row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from pipeline.training.parameters import gradient
from schemas import optimiser as schema


class Optimiser(Protocol):
    """Moves the parameters that it was made for by their ``grad``."""

    def step(self, learning_rate: float) -> None:
        """One step; every weight by the rate times its own multiple."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """What it remembers, live tensors; the number of steps is not among them."""
        ...

    def restore(self, num_steps: int) -> None:
        """Go on after ``num_steps`` steps, once the tensors of ``state`` were overwritten."""
        ...

    def clear(self, parameter: nn.Parameter, rows: torch.Tensor) -> None:
        """Forget what belongs to some rows (int64 indices) of a parameter."""
        ...


def optimiser_of(
    spec: schema.Optimiser, parameters: Mapping[str, nn.Parameter], multiples: Iterable[tuple[str, float]] = ()
) -> Optimiser:
    """A new one; every parameter has its ``grad``.

    ``multiples``: of the learning rate, first part of a parameter's name and factor; 1 where there is none.
    """
    by_name = dict(multiples)
    factors = {name: by_name.get(name.partition(".")[0], 1.0) for name in parameters}
    if isinstance(spec, schema.Adam):
        return AdamOptimiser(spec, parameters, factors)
    if isinstance(spec, schema.Muon):
        return MuonOptimiser(spec, parameters, factors)
    return SignumOptimiser(spec, parameters, factors)


def num_moments(spec: schema.Optimiser, parameter: torch.Tensor) -> int:
    """Numbers that are remembered for each number of the parameter."""
    if isinstance(spec, schema.Adam):
        return 2
    return 1 if isinstance(spec, schema.Signum) or parameter.ndim == 2 else 2


class AdamOptimiser:
    """``torch.optim.Adam``, fused: one pass over the weights."""

    def __init__(self, spec: schema.Adam, parameters: Mapping[str, nn.Parameter], factors: Mapping[str, float]) -> None:
        self._parameters = dict(parameters)
        self._adam = torch.optim.Adam(
            _groups(self._parameters, factors), betas=(spec.beta1, spec.beta2), eps=spec.epsilon, fused=True
        )
        for parameter in self._parameters.values():
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, learning_rate: float) -> None:
        """See ``Optimiser``."""
        _set_rate(self._adam, learning_rate)
        self._adam.step()

    def state(self) -> dict[str, torch.Tensor]:
        """See ``Optimiser``."""
        return {
            f"{moment}.{name}": self._adam.state[parameter][moment]
            for name, parameter in self._parameters.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }

    def restore(self, num_steps: int) -> None:
        """See ``Optimiser``."""
        for moments in self._adam.state.values():
            moments["step"].fill_(num_steps)

    def clear(self, parameter: nn.Parameter, rows: torch.Tensor) -> None:
        """See ``Optimiser``."""
        for name, moment in self._adam.state[parameter].items():
            if name != "step":
                moment[rows] = 0


class MuonOptimiser:
    """``torch.optim.Muon`` of matrices, Adam of the rest.

    Every rank makes the whole matrix orthogonal: gradients are equal on all ranks, so the results are.
    """

    def __init__(self, spec: schema.Muon, parameters: Mapping[str, nn.Parameter], factors: Mapping[str, float]) -> None:
        self._matrices = {name: parameter for name, parameter in parameters.items() if parameter.ndim == 2}
        rest = {name: parameter for name, parameter in parameters.items() if parameter.ndim != 2}
        self._adam = AdamOptimiser(spec.others, rest, factors)
        self._muon = torch.optim.Muon(
            _groups(self._matrices, factors),
            lr=0.0,
            weight_decay=0.0,
            momentum=spec.momentum,
            nesterov=spec.nesterov,
            adjust_lr_fn="match_rms_adamw" if spec.rate == "match_adam" else "original",
        )
        for parameter in self._matrices.values():
            self._muon.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}

    def step(self, learning_rate: float) -> None:
        """See ``Optimiser``."""
        _set_rate(self._muon, learning_rate)
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adam.step(learning_rate)

    def state(self) -> dict[str, torch.Tensor]:
        """See ``Optimiser``."""
        moments = {
            f"momentum.{name}": self._muon.state[matrix]["momentum_buffer"] for name, matrix in self._matrices.items()
        }
        return moments | self._adam.state()

    def restore(self, num_steps: int) -> None:
        """See ``Optimiser``."""
        self._adam.restore(num_steps)

    def clear(self, parameter: nn.Parameter, rows: torch.Tensor) -> None:
        """See ``Optimiser``."""
        if parameter in self._muon.state:
            self._muon.state[parameter]["momentum_buffer"][rows] = 0
        else:
            self._adam.clear(parameter, rows)


class SignumOptimiser:
    """m = beta m + (1 - beta) g; w = w - rate * sign(m) where g is not 0.

    No library of those that this package uses has it, and it is three lines.
    """

    def __init__(
        self, spec: schema.Signum, parameters: Mapping[str, nn.Parameter], factors: Mapping[str, float]
    ) -> None:
        self._momentum = spec.momentum
        self._factors = factors
        self._parameters = dict(parameters)
        self._moments = {parameter: torch.zeros_like(parameter) for parameter in self._parameters.values()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """See ``Optimiser``."""
        for name, parameter in self._parameters.items():
            grad, moment = gradient(parameter), self._moments[parameter]
            moment.lerp_(grad, 1 - self._momentum)
            parameter.addcmul_(moment.sign(), grad != 0, value=-learning_rate * self._factors[name])

    def state(self) -> dict[str, torch.Tensor]:
        """See ``Optimiser``."""
        return {f"momentum.{name}": self._moments[parameter] for name, parameter in self._parameters.items()}

    def restore(self, num_steps: int) -> None:
        """Nothing depends on the number of steps."""

    def clear(self, parameter: nn.Parameter, rows: torch.Tensor) -> None:
        """See ``Optimiser``."""
        self._moments[parameter][rows] = 0


def _groups(parameters: Mapping[str, nn.Parameter], factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Those that share a factor together: each group is a pass of its own."""
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        found.setdefault(factors[name], []).append(parameter)
    return [{"params": members, "lr": 0.0, "factor": factor} for factor, members in found.items()]


def _set_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate * group["factor"]
