"""A network whose matrix products are split over the ranks of a tensor-parallel group.

Transformers splits the weights by the plan that comes with an architecture, and reads of the files only a rank's share;
its collectives are those of ``torch.distributed`` (gloo on CPU, NCCL on GPUs), whose group the caller has joined. Every
rank runs the same batches, and every point of the residual stream is whole on every rank; each rank keeps other hook
points, so that copying, encoding and writing are spread as well.

Sums are formed in another order than in one process: activations agree within ``BOUND`` of the norm of their row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from pipeline.models.forward import PROBE_IDS, ActivationForward
from pipeline.models.gguf import converted_folder
from pipeline.models.hooks import find_blocks, is_gradient
from pipeline.models.identity import check_spec, model_identity
from pipeline.models.load import LoadedModel, backbone_of, load_pretrained, torch_dtype
from pipeline.models.precision import resolve_device
from pipeline.models.skeleton import build_skeleton
from schemas.errors import HookPointError, ModelError
from schemas.model import ModelSpec

BOUND = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""By compute precision: greatest difference to one process, as a share of a row's norm. Tests hold small random
networks to it, whose worst rows differ by 1.4e-6 in float32 and 0.06 in bfloat16."""


def require_plan(spec: ModelSpec, num_ranks: int) -> None:
    """Refuse a network that cannot be split over so many ranks.

    Raises:
        ModelError: no transformers model, no plan for its architecture, or heads that do not divide.
    """
    location = check_spec(spec)
    if location.kind == "python" or spec.kind == "vision":
        raise ModelError(
            f"workers.placement: tensor splits language models of transformers by their own plans; {spec.path!r} has "
            "none. Choose stages or replica"
        )
    model: Any = build_skeleton(spec, location)
    if not getattr(model, "supports_tp_plan", False):
        raise ModelError(
            f"transformers has no plan for splitting {type(model).__name__} ({spec.path!r}); choose workers.placement: "
            "stages"
        )
    config = model.config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        number = getattr(config, name, None)
        if isinstance(number, int) and number % num_ranks:
            raise ModelError(
                f"workers.processes_per_replica ({num_ranks}) does not divide {name} ({number}) of {spec.path!r}, so "
                "it cannot be split evenly; choose a divisor, or workers.placement: stages"
            )


def load_shard(spec: ModelSpec, num_ranks: int) -> LoadedModel:
    """Load this rank's share of the weights, onto its device. The process group of ``num_ranks`` must have been joined.

    Raises:
        MissingError, ModelError: as ``load_model`` and ``require_plan``.
    """
    from transformers.distributed.configuration_utils import DistributedConfig

    require_plan(spec, num_ranks)
    location, device = check_spec(spec), resolve_device(spec)
    accelerator = torch._C._get_accelerator().type
    if accelerator != device.type:
        raise ModelError(
            f"workers.placement: tensor runs on the accelerator of the machine, which is {accelerator}; model.device "
            f"is {spec.device}: choose auto"
        )
    identity = model_identity(spec)
    if location.kind == "gguf" and not converted_folder(identity["weights"], identity["dtype"]).exists():
        load_pretrained(spec, location, identity, with_head=False)
    how = {"distributed_config": DistributedConfig(tp_size=num_ranks, tp_plan="auto")}
    loader = type(build_skeleton(spec, location))
    whole = load_pretrained(spec, location, identity, with_head=False, loader=loader, **how)
    module = backbone_of(whole).eval().requires_grad_(False)
    blocks = find_blocks(module)
    return LoadedModel(
        module=module, spec=spec, dtype=torch_dtype(spec), device=device, identity=identity,
        d_model=int(getattr(getattr(module, "config", None), "hidden_size", 0)),
        num_layers=len(blocks.layers) if blocks else 0,
    )  # fmt: skip


@dataclass(frozen=True)
class RankForward:
    """Runs the whole network together with the other ranks, and keeps this rank's hook points.

    All ranks must make the same calls in the same order.
    """

    inner: ActivationForward
    own: tuple[str, ...]

    @classmethod
    def open(
        cls, loaded: LoadedModel, hook_points: Sequence[str], rank: int, num_ranks: int, *, context_length: int = 0
    ) -> RankForward:
        """Every rank gives the same ``hook_points``, and gets every ``num_ranks``-th of them.

        Raises:
            HookPointError: as ``ActivationForward``; also a point that is split over the ranks, and gradients.
        """
        if gradients := [name for name in hook_points if is_gradient(name)]:
            raise HookPointError(
                f"hook point {gradients[0]!r}: gradients need the whole network in one process; choose "
                "workers.placement: replica, or leave it out"
            )
        inner = ActivationForward(loaded, hook_points, context_length=context_length)
        _require_whole(inner, loaded, num_ranks)
        return cls(inner, tuple(list(inner.widths)[rank::num_ranks]))

    def run(self, token_ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """As ``ActivationForward.run``, of this rank's hook points."""
        found = self.inner.run(token_ids, lengths)
        return {name: found[name] for name in self.own}


def _require_whole(forward: ActivationForward, loaded: LoadedModel, num_ranks: int) -> None:
    """Compare all hook points with those of the other ranks: what is split differs."""
    probe = torch.tensor(PROBE_IDS, device=loaded.device)
    found = forward.run(probe, torch.full((len(probe),), probe.shape[1]))
    ours = {name: tensor.float().cpu() for name, tensor in found.items()}
    gathered: list[dict[str, Tensor]] = [{} for _ in range(num_ranks)]
    torch.distributed.all_gather_object(gathered, ours)
    for name, tensor in gathered[0].items():
        for other in gathered[1:]:
            if not _alike(other[name], tensor, BOUND[loaded.dtype]):
                raise HookPointError(
                    f"hook point {name!r} is split over the processes of a tensor-parallel group and nowhere whole; "
                    "choose workers.placement: stages or replica for it"
                )


def _alike(one: Tensor, other: Tensor, bound: float) -> bool:
    return one.shape == other.shape and bool((one - other).norm() <= bound * other.norm())
