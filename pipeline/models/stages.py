"""A network cut into stages: contiguous blocks in several processes, the hidden state handed on from each to the next.

Every stage calls the network's own forward, so masks, positions and rotary tables are made by the very code that makes
them in one process, and the activations are equal bit for bit:

1. Token embeddings of all but the first stage give zeros, blocks before a stage's own return what they are given: both
   cost nothing and hold no weights.
2. What enters the stage's first block is replaced by the hidden state that was received.
3. The forward is left behind the stage's last block, whose output is handed on.

That is right only where blocks need nothing from before but the hidden state. It is checked when a stage is opened, and
a network that hands on more is refused.

Shapes: B batch rows, L context length, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.models.copies import with_layers
from pipeline.models.forward import PROBE_IDS, ActivationForward, run_backbone
from pipeline.models.hooks import Blocks, HookSite, change, find_blocks, is_gradient, resolve
from pipeline.models.load import LoadedModel
from schemas.errors import HookPointError, ModelError, SpecError, UserError


class Link(Protocol):
    """What joins a stage to its neighbours while one unit is computed."""

    def receive(self) -> Tensor:
        """The next hidden state [B, L, D] of the stage before, in the order of its forwards; on any device."""

    def hand_on(self, hidden_BLD: Tensor) -> None:
        """Give the stage behind its next hidden state; waits while that one has enough to do."""


@dataclass(frozen=True)
class LoadedStage:
    """A network of which only some blocks have weights; the others are on the meta device."""

    loaded: LoadedModel
    layers: range
    """The stage's own blocks."""
    index: int
    num_stages: int
    hook_points: tuple[str, ...]
    """In the stage's own blocks."""
    outside: tuple[str, ...]
    """Outside of all blocks: the first stage has some, the last one the others; ``StageForward`` finds out which."""

    @property
    def is_last(self) -> bool:
        return self.index == self.num_stages - 1


@dataclass(frozen=True)
class Probed:
    """What a stage found out on the tokens of the probe. Picklable."""

    widths: Mapping[str, int]
    """Of the hook points of this stage and those before it."""
    padding_safe: bool
    """No point so far changes with what stands behind it."""
    hidden: Tensor | None
    """[B, L, D], for the next stage; None of the last one."""


def split_layers(sizes: Sequence[int], num_stages: int) -> list[range]:
    """Cut layers of the given sizes into contiguous stages whose largest is as small as can be; none is empty.

    Raises:
        SpecError: more stages than layers.
    """
    if num_stages > len(sizes):
        raise SpecError(
            f"workers.processes_per_replica ({num_stages}) is more than the {len(sizes)} blocks up to the last hook "
            f"point: a stage has one block at least. Choose {len(sizes)} or less"
        )
    sums = [0]
    for size in sizes:
        sums.append(sums[-1] + size)
    # best[count]: (largest stage, its borders) of the first ``count`` layers; of equals the earliest borders.
    best = {count: (sums[count], [0, count]) for count in range(1, len(sizes) + 1)}
    for stage in range(2, num_stages + 1):
        best = {count: _with_one_more(best, sums, stage, count) for count in range(stage, len(sizes) + 1)}
    borders = best[len(sizes)][1]
    return [range(start, stop) for start, stop in itertools.pairwise(borders)]


_Borders = dict[int, tuple[int, list[int]]]


def _with_one_more(best: _Borders, sums: Sequence[int], stage: int, count: int) -> tuple[int, list[int]]:
    cuts = range(stage - 1, count)
    return min((max(best[at][0], sums[count] - sums[at]), [*best[at][1], count]) for at in cuts)


@dataclass(frozen=True)
class Cut:
    """Which blocks and hook points a stage has, of a network whose weights need not be there."""

    blocks: Blocks
    layers: range
    hook_points: tuple[str, ...]
    outside: tuple[str, ...]


def cut(
    backbone: nn.Module, hook_points: Sequence[str], index: int, num_stages: int, *, context_length: int = 0
) -> Cut:
    """The part of stage ``index`` of ``num_stages``; every stage comes to the same cuts.

    Blocks behind the last hook point belong to nobody. Stages are balanced by the size of their blocks, not by memory:
    the slowest one sets the pace.

    Raises:
        ModelError: no blocks of a known structure. HookPointError. SpecError: more stages than blocks.
    """
    blocks = find_blocks(backbone)
    if blocks is None:
        raise ModelError(
            f"{type(backbone).__name__} has no list of blocks of a known structure, so it cannot be cut into stages; "
            "choose workers.placement: replica"
        )
    if blocks.family.carries:
        raise ModelError(
            f"blocks of {type(backbone).__name__} hand on more than the hidden state, so it cannot be cut into stages; "
            "choose workers.placement: replica"
        )
    if gradients := [name for name in hook_points if is_gradient(name)]:
        raise HookPointError(
            f"hook point {gradients[0]!r}: gradients need the whole network in one process; choose workers.placement: "
            "replica, or leave it out"
        )
    sites = resolve(backbone, list(dict.fromkeys(hook_points)), context_length=context_length)
    inside = {site.name: site.layer for site in sites if site.layer is not None}
    num_layers = len(blocks.layers) if len(inside) < len(sites) else max(inside.values()) + 1
    sizes = [sum(each.numel() for each in layer.parameters()) for layer in list(blocks.layers)[:num_layers]]
    layers = split_layers(sizes, num_stages)[index]
    return Cut(
        blocks,
        layers,
        tuple(name for name, layer in inside.items() if layer in layers),
        tuple(site.name for site in sites if site.layer is None),
    )


class StageForward:
    """One stage, ready to run. Keeps ``stage``'s layers.

    Raises:
        HookPointError, ModelError: as ``ActivationForward``; also where blocks need more than the hidden state.
    """

    def __init__(self, stage: LoadedStage, before: Probed | None, *, context_length: int = 0) -> None:
        """``before``: what the stage before found; None of the first one."""
        assert (before is None) == (stage.index == 0)
        self._stage = stage
        self._device = stage.loaded.device
        self._incoming: Tensor | None = None
        backbone = stage.loaded.backbone
        blocks = find_blocks(backbone)
        assert blocks is not None
        try:
            if before is not None:
                _bypass(stage, backbone, blocks)
                change(blocks.layers[stage.layers.start], "in", self._received)
                self._set(before.hidden)
            self._open(backbone, blocks, before, context_length)
        except UserError:
            raise
        except Exception as error:  # whatever the network's code says of blocks that are not there
            raise ModelError(
                f"{type(backbone).__name__} cannot be cut into stages: block {stage.layers.start} does not run on a "
                f"hidden state alone ({type(error).__name__}: {error}); choose workers.placement: replica or tensor"
            ) from error

    def _open(self, backbone: nn.Module, blocks: Blocks, before: Probed | None, context_length: int) -> None:
        stage, widths = self._stage, dict(before.widths) if before else {}
        names = [*stage.hook_points, *self._outside(backbone, blocks, widths)]
        self._handed = "" if stage.is_last else f"module:{blocks.path}.{stage.layers.stop - 1}:out"
        # Only a hook point outside of the blocks can leave the last stage without any.
        points = [*names, self._handed] if self._handed else names
        self._inner = ActivationForward(stage.loaded, points, context_length=context_length) if points else None
        self._wanted = tuple(names)
        self.widths: dict[str, int] = {name: self._inner.widths[name] for name in names} if self._inner else {}
        """Width D of each hook point of this stage."""
        hidden = None
        if self._inner and self._handed:
            probe = torch.tensor(PROBE_IDS, device=self._device)
            hidden = self._inner.run(probe, torch.full((len(probe),), probe.shape[1]))[self._handed].cpu()
        safe = (before is None or before.padding_safe) and (self._inner is None or self._inner.padding_safe)
        self.probed = Probed({**widths, **self.widths}, safe, hidden)

    def settle(self, last: Probed) -> None:
        """Do with padding what all stages together call for; ``last``: what the last stage found.

        Raises:
            ModelError: a module that looks ahead and takes no mask.
        """
        if not last.padding_safe and self._stage.loaded.spec.kind == "module":
            raise ModelError(
                f"{self._stage.loaded.spec.path!r} takes no mask and its rows change with what stands behind them, so "
                "it cannot be cut into stages; choose workers.placement: replica"
            )
        if self._inner is not None:
            self._inner.padding_safe = last.padding_safe

    def run(self, token_ids: Tensor, lengths: Tensor, link: Link) -> dict[str, Tensor]:
        """As ``ActivationForward.run``, of this stage's hook points; receives and hands on by ``link``."""
        if self._stage.index > 0:
            self._set(link.receive())
        if self._inner is None:
            return {}
        found = self._inner.run(token_ids, lengths)
        if self._handed:
            link.hand_on(found[self._handed])
        return {name: found[name] for name in self._wanted}

    def _set(self, hidden_BLD: Tensor | None) -> None:
        assert hidden_BLD is not None
        self._incoming = hidden_BLD.to(self._device)

    def _received(self, _: Tensor) -> Tensor:
        # A copy: a forward that has to be run again must find it as it came, whatever a block writes into it.
        assert self._incoming is not None
        return self._incoming.clone()

    def _outside(self, backbone: nn.Module, blocks: Blocks, claimed: Mapping[str, int]) -> list[str]:
        """Of the points outside of the blocks those that are this stage's: in front of all blocks, or behind them."""
        stage = self._stage
        if not stage.outside or not (stage.index == 0 or stage.is_last):
            return []
        if stage.index > 0:
            return [name for name in stage.outside if name not in claimed]
        sites = resolve(backbone, stage.outside)
        reached = _reached_before(lambda: _run_probe(stage.loaded, backbone), blocks.layers[0], sites)
        return [name for name in stage.outside if stage.is_last or name in reached]


class _LeftError(Exception):
    """Leaves a forward from which nothing more is wanted."""


def _leave(*_: Any) -> None:
    raise _LeftError


@torch.no_grad()
def _run_probe(loaded: LoadedModel, network: nn.Module) -> None:
    token_ids = torch.tensor(PROBE_IDS, device=loaded.device)
    with suppress(_LeftError):
        run_backbone(network, token_ids, None, takes_mask=loaded.spec.kind != "module")


def _reached_before(run: Callable[[], None], first: nn.Module, sites: Sequence[HookSite]) -> set[str]:
    """Names of the sites that a forward passes before the first block."""
    reached: set[str] = set()
    with ExitStack() as stack:
        for site in sites:
            stack.callback(change(site.module, site.side, lambda _, name=site.name: reached.add(name)).remove)  # type: ignore[misc]
        stack.callback(first.register_forward_pre_hook(_leave).remove)
        run()
    return reached


def _bypass(stage: LoadedStage, backbone: nn.Module, blocks: Blocks) -> None:
    """Let everything in front of the stage's own blocks run without weights.

    Raises:
        ModelError: a block gives more than the hidden state, or is given more that depends on the embeddings.
    """
    filling = torch.zeros((), dtype=stage.loaded.dtype, device=stage.loaded.device)
    for path, module in backbone.named_modules():
        if isinstance(module, nn.Embedding) and not path.startswith(f"{blocks.path}."):
            width = module.embedding_dim
            _set_forward(module, lambda ids, *_, width=width, **__: filling.expand(*ids.shape, width))
    first = blocks.layers[stage.layers.start]
    wrap = _wrapper(_output_of(stage, first, with_layers(backbone, blocks.path, [first])), backbone)
    for layer in list(blocks.layers)[: stage.layers.start]:
        _set_forward(layer, lambda *args, **kwargs: wrap(_first([*args, *kwargs.values()])))
    given = _given_to(stage, first, backbone)
    filling.fill_(1.0)
    other = _given_to(stage, first, backbone)
    filling.zero_()
    if len(given) != len(other) or not all(map(torch.equal, given, other)):
        raise ModelError(
            f"{type(backbone).__name__} gives its blocks more of the token embeddings than the hidden state, so it "
            "cannot be cut into stages; choose workers.placement: replica or tensor"
        )


def _set_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = forward


def _output_of(stage: LoadedStage, layer: nn.Module, network: nn.Module) -> Any:
    """What a block returns in a forward of ``network``."""
    found: list[Any] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output)
        raise _LeftError

    handle = layer.register_forward_hook(keep)
    try:
        _run_probe(stage.loaded, network)
    finally:
        handle.remove()
    return found[0]


def _wrapper(output: Any, backbone: nn.Module) -> Callable[[Tensor], Any]:
    if isinstance(output, Tensor):
        return lambda hidden: hidden
    values = list(output.values()) if isinstance(output, dict) else list(output)
    if not isinstance(values[0], Tensor) or any(value is not None for value in values[1:]):
        raise ModelError(
            f"blocks of {type(backbone).__name__} hand on more than the hidden state, so it cannot be cut into stages; "
            "choose workers.placement: replica or tensor"
        )
    if isinstance(output, dict):
        return lambda hidden: type(output)(**{next(iter(output)): hidden})
    return lambda hidden: type(output)([hidden, *values[1:]])


def _given_to(stage: LoadedStage, layer: nn.Module, network: nn.Module) -> list[Tensor]:
    """The tensors that a forward gives to a block, without the hidden state."""
    given: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.extend(_tensors([*args, *kwargs.values()])[1:])
        raise _LeftError

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        _run_probe(stage.loaded, network)
    finally:
        handle.remove()
    return given


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.clone()]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for each in value for tensor in _tensors(each)] if isinstance(value, list | tuple) else []


def _first(values: Sequence[Any]) -> Tensor:
    return next(value for value in values if isinstance(value, Tensor))
