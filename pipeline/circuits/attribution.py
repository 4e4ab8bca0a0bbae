"""Gradient attribution: nodes ranked by what the loss would change by if their gates were turned a little.

The derivative of the task's loss with respect to a gate at 1 is the sum over prompts and tokens of the activation less
its mean, times the gradient there: the first-order effect of leaving the node out. Letters: M nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.circuits.calibration import task_loss
from pipeline.circuits.network import MaskedNetwork
from pipeline.circuits.tasks.pairs import Pairs

_PAIRS_AT_ONCE = 64


def attribution(network: MaskedNetwork, pairs: Pairs) -> Tensor:
    """float32 [M] on the CPU: magnitudes, averaged over the pairs before they are taken."""
    total = torch.zeros(network.nodes.number)
    for batch in pairs.split(_PAIRS_AT_ONCE):
        gates = torch.ones(network.nodes.number, device=network.device, requires_grad=True)
        loss = task_loss(network.margins(batch, gates), batch.signs) * len(batch)
        total += torch.autograd.grad(loss, [gates])[0].cpu()
    return (total / len(pairs)).abs()
