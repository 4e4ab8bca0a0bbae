"""What a network is like, without its weights: built on torch's meta device, run on shapes alone.

The forward is the one that collection runs, cut off behind the last wanted hook point, so widths and floating-point
operations are those of the real job. Letters: B contexts, L tokens of each, D width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.forward import ActivationForward, cut_after
from pipeline.models.gradients import needs_head
from pipeline.models.hooks import GRADIENT, HookSite, is_gradient, resolve
from pipeline.models.identity import check_spec
from pipeline.models.load import backbone_of, load_model, torch_dtype
from pipeline.models.skeleton import build_skeleton
from pipeline.models.tapping import capture
from schemas.errors import HeadworksError, ModelError
from schemas.model import ModelSpec

_WARM_UP, _LEAST_S, _MOST_BATCHES = 1, 2.0, 32


@dataclass(frozen=True)
class Sketch:
    """What a forward gives and takes."""

    widths: dict[str, int]
    """hook point -> D."""
    flop_per_token: float
    """Multiplications and additions of matrix products and attention, up to the last hook point; with gradients of the
    whole model, and of the way back."""
    kept_bytes_per_token: float = 0.0
    """What gradients need of a forward until the way back, the weights apart."""
    activation: str = ""
    """The MLP's activation function by transformers' name; empty where the configuration does not say."""


def sketch(
    spec: ModelSpec, hook_points: Sequence[str], context_length: int, *, longest: int = 0, image_size: int = 0
) -> Sketch:
    """Widths and operations for contexts of ``context_length`` tokens, of which the longest has ``longest`` (0: all are
    as long); of a model of kind ``vision`` for an image of ``image_size`` pixels on a side.

    Neither reads nor allocates the weights of a known architecture.

    Raises:
        HookPointError: an unknown hook point. MissingError, ModelError: as ``load_model``; also a network that cannot
        run without its weights.
    """
    location = check_spec(spec)
    module = build_skeleton(spec, location)
    names = list(dict.fromkeys(hook_points))
    backbone = backbone_of(module, spec.kind)
    points = list(dict.fromkeys(name.removesuffix(GRADIENT) for name in names))
    sites = resolve(backbone, points, context_length=max(longest, context_length))
    gradients = [name.removesuffix(GRADIENT) for name in names if is_gradient(name)]
    network, kept = (module, _Kept(module)) if gradients else (cut_after(backbone, sites), None)
    with FlopCounterMode(display=False) as counter:
        inputs = _inputs(spec, context_length, image_size)
        found = _captured(network, sites, spec, inputs, gradients, kept)
    lost = [site.name for site in sites if site.name not in found]
    if lost:
        raise ModelError(f"model {spec.path!r}: the hook points {lost} are never reached by its forward")
    return Sketch(
        widths={name: int(found[name.removesuffix(GRADIENT)].shape[-1]) for name in names},
        flop_per_token=counter.get_total_flops() / context_length,
        kept_bytes_per_token=kept.num_bytes / context_length if kept is not None else 0.0,
        activation=_activation(getattr(backbone, "config", None)),
    )


class _Kept:
    """Counts the memory of the tensors that a forward keeps for the way back, each once."""

    def __init__(self, network: nn.Module) -> None:
        weights = [*network.parameters(), *network.buffers()]
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}
        self._storages: dict[int, int] = {}

    @property
    def num_bytes(self) -> int:
        return sum(self._storages.values())

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:  # transposed weights are kept too, at no cost
            self._storages[storage._cdata] = storage.nbytes()
        return tensor


def _activation(config: Any) -> str:
    for name in ("hidden_act", "hidden_activation", "activation_function", "dense_act_fn"):
        if isinstance(found := getattr(config, name, None), str):
            return found
    return ""


def measure(
    spec: ModelSpec, hook_points: Sequence[str], token_ids: NDArray[np.int64], *, num_threads: int, image_size: int = 0
) -> float:
    """Tokens per second of one replica on this machine: the real network on batches [B, L] of ``token_ids``, L being
    the greatest length of a context.

    Raises:
        HeadworksError: as ``load_model`` and ``ActivationForward``.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        loaded = load_model(spec, with_head=needs_head(hook_points))
        forward = ActivationForward(loaded, hook_points, context_length=token_ids.shape[1], image_size=image_size)
        batch = torch.from_numpy(token_ids)
        lengths = torch.full((len(batch),), batch.shape[1])
        if image_size:
            batch = torch.zeros((len(batch), 3, image_size, image_size))
        for _ in range(_WARM_UP):
            _finished(forward.run(batch, lengths))
        started, runs = time.perf_counter(), 0
        while runs < _MOST_BATCHES and (runs == 0 or time.perf_counter() - started < _LEAST_S):
            _finished(forward.run(batch, lengths))
            runs += 1
        return runs * token_ids.size / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)


def _finished(found: dict[str, torch.Tensor]) -> None:
    """Wait for a GPU, which runs behind."""
    for tensor in found.values():
        if tensor.device.type == "cuda":
            torch.cuda.synchronize(tensor.device)


def _inputs(spec: ModelSpec, context_length: int, image_size: int) -> dict[str, Any]:
    """What a forward of one context takes, without values."""
    if spec.kind == "vision":
        return {"pixels": torch.zeros((1, 3, image_size, image_size), dtype=torch_dtype(spec), device="meta")}
    token_ids = torch.zeros((1, context_length), dtype=torch.int64, device="meta")
    if spec.kind == "module":
        return {"token_ids": token_ids}
    # A mask of four dimensions is used as it is: to make one, transformers would look into the others' values.
    mask = torch.zeros((1, 1, context_length, context_length), dtype=torch_dtype(spec), device="meta")
    return {"input_ids": token_ids, "attention_mask": mask, "position_ids": token_ids, "use_cache": False}


def _captured(
    network: nn.Module,
    sites: Sequence[HookSite],
    spec: ModelSpec,
    inputs: dict[str, Any],
    gradients: Sequence[str],
    kept: _Kept | None,
) -> dict[str, torch.Tensor]:
    """With ``gradients`` through the whole model and back, and what it keeps for that counted by ``kept``."""

    def run() -> object:
        return network(**inputs) if spec.kind not in ("module", "vision") else network(*inputs.values())

    outputs: list[Any] = []
    try:
        if kept is None:
            with torch.no_grad():
                return capture(run, sites, copied=set())[0]
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
            found, _ = capture(lambda: outputs.append(run()), sites, copied=set(), differentiated=frozenset(gradients))
            total = outputs[0].logits.sum()
        total.backward()  # to the points: nothing before them is differentiated
        return found
    except HeadworksError:
        raise
    except Exception as error:  # whatever the architecture's code says of tensors without values
        raise ModelError(
            f"model {spec.path!r} cannot be run without its weights ({type(error).__name__}: "
            f"{(str(error).strip().splitlines() or [''])[0]}); headworks plan needs that"
        ) from error
