"""An autoencoder and a sparse autoencoder small enough to be computed by hand, with every number shown.

All weights and inputs are whole numbers, so forward values and gradients are exact in floating point.

    python examples/by_hand.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# --- the autoencoder: 4 features -> 3 -> 2 -> 3 -> 4, four samples (columns) ---

SAMPLES = [[1, 2, 0, 3], [2, 0, 1, 1], [0, 1, 3, 2], [3, 1, 1, 0]]
AUTOENCODER = (
    ([[1, 0, -1, 1], [0, 1, 1, 0], [1, -1, 0, 1]], [0, -1, 1]),
    ([[1, -1, 0], [0, 1, 1]], [1, 0]),
    ([[1, 0], [-1, 1], [0, 1]], [0, 1, -2]),
    ([[0, 1, 0], [1, 0, -1], [0, 0, 1], [1, -1, 1]], [0, 2, 0, -1]),
)
"""(weights [out, in], bias [out]) of each layer; ReLU follows all of them, the last one too."""

# --- the sparse autoencoder: 3 channels -> 6 latents -> 3, five tokens (columns) ---

TOKENS = [[1, 2, 0, 1, 3], [0, 1, 2, 1, 0], [2, 0, 1, 0, 1]]
ENCODER = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, -1, -1], [-1, 1, 1], [1, 1, -2]]
ENCODER_BIAS = [-1, -1, -1, 0, -1, -2]
DECODER = [[3, 0, 0, 1, 0, 2], [4, 1, 0, 2, 0, 1], [0, 0, 1, 2, 5, 2]]
DECODER_BIAS = [0, 1, -1]


@dataclass(frozen=True)
class Autoencoded:
    """Everything between X and the gradients of the autoencoder; columns are samples."""

    layers: list[torch.Tensor]
    """H1 [3, 4], Z [2, 4], H2 [3, 4], Y [4, 4]."""
    loss: float
    """Sum of (Y - X)^2: summed, not averaged."""
    output_gradient: torch.Tensor
    """dL/dY = 2 (Y - X), [4, 4]."""
    weight_gradients: list[torch.Tensor]
    """dL/dW of each layer, in the shape of its weights."""


def autoencode() -> Autoencoded:
    """Run the autoencoder; the gradients are autograd's."""
    inputs = current = whole(SAMPLES)
    parameters = [whole(weights).requires_grad_() for weights, _ in AUTOENCODER]
    layers: list[torch.Tensor] = []
    for weights, (_, bias) in zip(parameters, AUTOENCODER, strict=True):
        current = torch.relu(weights @ current + whole([bias]).T)
        layers.append(current)
    loss = (current - inputs).square().sum()
    output_gradient, *weight_gradients = torch.autograd.grad(loss, [current, *parameters])
    return Autoencoded([layer.detach() for layer in layers], float(loss.detach()), output_gradient, weight_gradients)


@dataclass(frozen=True)
class SparselyCoded:
    """Everything between X and the two losses of the sparse autoencoder; columns are tokens."""

    codes: torch.Tensor
    """F = ReLU(W_e X + b_e), [6, 5]."""
    reconstruction: torch.Tensor
    """X' = W_d F + b_d, [3, 5]."""
    decoder_norms: torch.Tensor
    """n_i = norm of column i of W_d, [6]."""
    l1: float
    """Sum of |F|: the penalty is on the codes, not on the weights."""
    l1_gradient: torch.Tensor
    """dL1/dF = 1 where F > 0, else 0, [6, 5]; descent goes by its negative."""
    error_gradient: torch.Tensor
    """d sum (X' - X)^2 / dX' = 2 (X' - X), [3, 5]."""
    weighted_l1: tuple[float, float]
    """Sum of f_i n_i before and after one step of gradient descent on it alone, by W_e and b_e."""


def code_sparsely(step_size: float = 1 / 64) -> SparselyCoded:
    """Run the sparse autoencoder and take one step on the penalty weighted by decoder norms."""
    inputs = whole(TOKENS)
    encoder, bias = whole(ENCODER).requires_grad_(), whole([ENCODER_BIAS]).T.requires_grad_()
    norms = torch.linalg.vector_norm(whole(DECODER), dim=0)
    codes = torch.relu(encoder @ inputs + bias)
    reconstruction = whole(DECODER) @ codes + whole([DECODER_BIAS]).T
    (l1_gradient,) = torch.autograd.grad(codes.abs().sum(), codes, retain_graph=True)
    (error_gradient,) = torch.autograd.grad((reconstruction - inputs).square().sum(), reconstruction, retain_graph=True)
    before = (codes.T @ norms).sum()
    steps = torch.autograd.grad(before, (encoder, bias))
    moved = torch.relu((encoder - step_size * steps[0]) @ inputs + bias - step_size * steps[1])
    after = float((moved.T @ norms).sum().detach())
    return SparselyCoded(
        codes.detach(),
        reconstruction.detach(),
        norms,
        float(codes.detach().abs().sum()),
        l1_gradient,
        error_gradient,
        (float(before.detach()), after),
    )


def whole(numbers: list[list[int]]) -> torch.Tensor:
    """Whole numbers as float32, which holds them exactly."""
    return torch.tensor(numbers, dtype=torch.float32)


def show(name: str, matrix: torch.Tensor) -> None:
    """A matrix row by row."""
    rows = "\n".join("   " + " ".join(f"{value:6g}" for value in row) for row in matrix.tolist())
    print(f"{name}\n{rows}")


def main() -> None:
    """Print both exercises."""
    run = autoencode()
    print("Autoencoder 4-3-2-3-4, four samples in columns")
    show("X", whole(SAMPLES))
    for name, layer in zip(("H1", "Z", "H2", "Y"), run.layers, strict=True):
        show(name, layer)
    show("dL/dY = 2 (Y - X)", run.output_gradient)
    for index, gradient in enumerate(run.weight_gradients, start=1):
        show(f"dL/dW{index}", gradient)
    print(f"L = {run.loss:g}\n")

    coded = code_sparsely()
    print("Sparse autoencoder 3-6-3, five tokens in columns")
    show("X", whole(TOKENS))
    show("F", coded.codes)
    show("X'", coded.reconstruction)
    show("decoder norms", coded.decoder_norms[None])
    show("dL1/dF", coded.l1_gradient)
    show("2 (X' - X)", coded.error_gradient)
    print(f"zeros in F: {int((coded.codes == 0).sum())} of 30; L1 = {coded.l1:g}")
    print("sum of f_i n_i: {:.3f}, after one step on it: {:.3f}".format(*coded.weighted_l1))


if __name__ == "__main__":
    main()
