"""All gradients of a dictionary in one flat tensor: one collective, one division, one norm."""

from __future__ import annotations

import torch
from torch import nn

_ALIGNMENT = 16  # floats, one cache line: no parameter's gradient begins in the middle of a vector


def flat_gradients(module: nn.Module) -> torch.Tensor:
    """A zeroed vector that the ``grad`` of every parameter is a view of; autograd adds to such views in place."""
    parameters = list(module.parameters())
    sizes = [-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in parameters]
    flat = parameters[0].detach().new_zeros(sum(sizes))
    for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
        parameter.grad = part[: parameter.numel()].view_as(parameter)
    return flat


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    """The view that ``flat_gradients`` made."""
    assert parameter.grad is not None
    return parameter.grad
