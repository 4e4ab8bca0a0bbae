"""Loading one stage of a network: reads a ``ModelSpec``, yields a network of which only its blocks have weights.

Transformers' own loader reads the files, so that names, types and conversions of weights are those of a whole network.
It is given a class whose networks lack what belongs to other stages (blocks, the head, token embeddings of all but the
first stage); weights that the network has no place for are not read. What was taken out is put back on the meta device
afterwards, so that names and structure stay those of the whole network.

A GGUF file that was never dequantised here is loaded whole once, into the cache; a ``python:`` module is built whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pipeline.models.gguf import converted_folder
from pipeline.models.hooks import find_blocks
from pipeline.models.identity import check_spec, identity_of, model_identity, state_digest
from pipeline.models.load import (
    LoadedModel,
    backbone_of,
    build_module,
    load_pretrained,
    prepare_module,
    torch_dtype,
)
from pipeline.models.location import ModelLocation
from pipeline.models.memory import require_room
from pipeline.models.precision import resolve_device
from pipeline.models.skeleton import build_skeleton
from pipeline.models.stages import LoadedStage, cut
from schemas.errors import ModelError
from schemas.model import ModelSpec


class _Absent(nn.Module):
    """Stands in for a module: of the same shape for code that looks at weights, but without any that can be loaded."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, child in module.named_children():
            self.add_module(name, _Absent(child))
        for name, parameter in module.named_parameters(recurse=False):
            tensor = parameter.detach().to("meta")
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers has nothing to fill in
            setattr(self, name, tensor)


@dataclass
class _TakenOut:
    """Modules that were taken out of a network, to be put back without their weights."""

    places: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)

    def take(self, parent: nn.Module, name: str) -> None:
        """Put a module without weights in its place."""
        module = parent._modules[name]
        assert module is not None
        self.places.append((parent, name, module))
        parent._modules[name] = _Absent(module)

    def take_all_but(self, whole: nn.Module, layers: range) -> None:
        """Take out the blocks that are not in ``layers``, the head, and token embeddings where the first block is."""
        backbone = backbone_of(whole)
        blocks = find_blocks(backbone)
        assert blocks is not None
        if layers.start > 0:
            for path, module in list(backbone.named_modules()):
                if isinstance(module, nn.Embedding) and not path.startswith(f"{blocks.path}."):
                    above, _, name = path.rpartition(".")
                    self.take(backbone.get_submodule(above), name)
        for index in range(len(blocks.layers)):
            if index not in layers:
                self.take(blocks.layers, str(index))
        # Files may have embeddings that the head shares under the head's name only.
        is_shared = layers.start == 0 and bool(getattr(whole, "all_tied_weights_keys", {}))
        if backbone is not whole and not is_shared:
            for name, child in list(whole.named_children()):
                if all(module is not backbone for module in child.modules()):
                    self.take(whole, name)

    def put_back(self) -> None:
        """On the meta device."""
        for parent, name, module in self.places:
            parent._modules[name] = module.to("meta")


def load_stage(
    spec: ModelSpec, hook_points: Sequence[str], index: int, num_stages: int, *, context_length: int = 0
) -> LoadedStage:
    """Load stage ``index`` of ``num_stages`` onto the device of ``spec``; see ``load_model``.

    Raises:
        MissingError, ModelError, HookPointError: as ``load_model`` and ``stages.cut``.
        SpecError: more stages than blocks. ResourceError: it does not fit into memory.
    """
    location = check_spec(spec)
    if spec.kind == "vision":
        raise ModelError(f"models of images are not cut into stages ({spec.path!r}); choose workers.placement: replica")
    dtype, device = torch_dtype(spec), resolve_device(spec)
    if location.kind == "python":
        whole = build_module(spec, location)
        identity = identity_of(spec, location, weights=state_digest(whole))
        prepare_module(whole, spec)
    else:
        whole, identity = build_skeleton(spec, location), model_identity(spec)
    part = cut(backbone_of(whole), hook_points, index, num_stages, context_length=context_length)
    taken = _TakenOut()
    if location.kind == "python":
        taken.take_all_but(whole, part.layers)
    else:
        what = f"stage {index} of {num_stages} of model {spec.path}"
        require_room(_kept_numbers(whole, part.layers) * dtype.itemsize, dtype, device, what=what)
        whole = _load_part(spec, location, identity, type(whole), part.layers, taken)
    module = backbone_of(whole).requires_grad_(False).to(device)
    taken.put_back()
    loaded = LoadedModel(
        module=module.eval(), spec=spec, dtype=dtype, device=device, identity=identity,
        d_model=int(getattr(getattr(module, "config", None), "hidden_size", 0)), num_layers=len(part.blocks.layers),
    )  # fmt: skip
    return LoadedStage(loaded, part.layers, index, num_stages, part.hook_points, part.outside)


def _load_part(
    spec: ModelSpec,
    location: ModelLocation,
    identity: dict[str, Any],
    model_class: type[Any],
    layers: range,
    taken: _TakenOut,
) -> nn.Module:
    if location.kind == "gguf" and not converted_folder(identity["weights"], identity["dtype"]).exists():
        whole = load_pretrained(spec, location, identity, with_head=False)
        if not converted_folder(identity["weights"], identity["dtype"]).exists():  # a cache that cannot be written
            taken.take_all_but(whole, layers)
            return whole
        del whole
    return load_pretrained(spec, location, identity, with_head=False, loader=_part_of(model_class, layers, taken))


def _part_of(model_class: type[Any], layers: range, taken: _TakenOut) -> type[Any]:
    """A class of the same name whose networks are built without what belongs to other stages."""

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        taken.take_all_but(self, layers)
        # Weights that share their tensor with one that is not there have nothing to share with.
        here = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        ties = getattr(self, "all_tied_weights_keys", {})
        self.all_tied_weights_keys = {name: other for name, other in ties.items() if {name, other} <= here}

    return type(model_class.__name__, (model_class,), {"__init__": build, "__module__": model_class.__module__})


def _kept_numbers(whole: nn.Module, layers: range) -> int:
    """Weights of a stage."""
    taken = _TakenOut()
    taken.take_all_but(whole, layers)
    kept = sum(parameter.numel() for parameter in whole.parameters())
    taken.put_back()
    return kept
