"""Loading a network: reads a ``ModelSpec``, yields a module in evaluation mode and its identity.

1. The path is located and the spec checked; memory is compared with the size of the weights.
2. Transformers builds the network with its head and loads the weights; a weight that the files lack is an error, never
   a random number. GGUF files are dequantised through a cache (``gguf.py``).
3. Without ``with_head`` only the backbone is kept, and the memory of the head is freed; of a model with encoder and
   decoder the encoder.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.models.gguf import converted_folder, keep_converted, parsed_once
from pipeline.models.hooks import find_blocks
from pipeline.models.hub import resolve_commit
from pipeline.models.identity import check_spec, identity_of, model_identity, state_digest
from pipeline.models.location import ModelLocation
from pipeline.models.memory import require_memory
from pipeline.models.precision import resolve_device, resolve_dtype
from pipeline.models.quiet import quiet_loading
from schemas.errors import HeadworksError, ModelError, ResourceError
from schemas.model import ModelSpec

__all__ = ["LoadedModel", "load_model", "model_identity", "resolve_dtype"]


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to run; it never trains."""

    module: nn.Module
    """The backbone, or the backbone within its language modelling head if ``with_head`` was asked for."""
    spec: ModelSpec
    dtype: torch.dtype
    device: torch.device
    identity: dict[str, Any]
    """What ``model_identity`` says of the spec, from the same files."""
    d_model: int
    """Width of the residual stream; 0 for a ``module`` that does not say."""
    num_layers: int
    """Blocks of a known structure; 0 where there are none."""

    @property
    def backbone(self) -> nn.Module:
        """The network without its head."""
        return backbone_of(self.module, self.spec.kind)


def load_model(spec: ModelSpec, *, with_head: bool = False) -> LoadedModel:
    """Load, in evaluation mode and without gradients, onto the device of ``spec``.

    Raises:
        MissingError: the model is not there.
        ModelError: it cannot be loaded as the spec says.
        ResourceError: it does not fit into memory.
    """
    location = check_spec(spec)
    if with_head and spec.kind not in ("causal_lm", "masked_lm"):
        raise ModelError(
            f"model {spec.path!r} is of kind {spec.kind!r} and has no head; cross-entropy and gradients need causal_lm"
        )
    dtype, device = torch_dtype(spec), resolve_device(spec)
    require_memory(location, dtype, device)
    if location.kind == "python":
        module = build_module(spec, location)
        identity = identity_of(spec, location, weights=state_digest(module))
        prepare_module(module, spec)
    else:
        identity = model_identity(spec)
        module = load_pretrained(spec, location, identity, with_head=with_head)
    module = module if with_head else backbone_of(module, spec.kind)
    module = _place(module.eval().requires_grad_(False), device)
    blocks = find_blocks(module)
    return LoadedModel(
        module=module, spec=spec, dtype=dtype, device=device, identity=identity,
        d_model=int(getattr(getattr(module, "config", None), "hidden_size", 0)),
        num_layers=len(blocks.layers) if blocks else 0,
    )  # fmt: skip


def torch_dtype(spec: ModelSpec) -> torch.dtype:
    """The resolved compute precision as torch names it."""
    dtype = getattr(torch, resolve_dtype(spec))
    assert isinstance(dtype, torch.dtype)
    return dtype


def backbone_of(module: nn.Module, kind: str = "") -> nn.Module:
    """The module below the head of a transformers model, its encoder if it has a decoder besides; of kind ``vision`` of
    a model of text and images the part that sees.

    Any other module is its own backbone.
    """
    import transformers

    if not isinstance(module, transformers.PreTrainedModel):
        return module
    # DINOv3's whole model has a part with the name that its head's class has for the model.
    whole: Any = transformers.MODEL_MAPPING.get(type(module.config), None)
    is_whole = kind in ("encoder", "vision") and type(module) is whole
    backbone: Any = module if is_whole else module.base_model
    if kind == "vision":
        backbone = getattr(backbone, "vision_model", backbone)
    found: nn.Module = backbone.get_encoder() if _has_decoder_besides(backbone) else backbone
    return found


def _has_decoder_besides(model: Any) -> bool:
    """Its configuration need not say so: that of a checkpoint of T5's encoder alone does not."""
    return getattr(model.config, "is_encoder_decoder", False) or (
        hasattr(model, "encoder") and hasattr(model, "decoder")
    )


def auto_class(spec: ModelSpec) -> Any:
    """Transformers' class that builds models of the kind that the spec names; it knows our own networks too."""
    import transformers

    import pipeline.networks  # noqa: F401 - registers their configuration

    names = {"masked_lm": "AutoModelForMaskedLM", "encoder": "AutoModel", "vision": "AutoModel"}
    return getattr(transformers, names.get(spec.kind, "AutoModelForCausalLM"))


def build_module(spec: ModelSpec, location: ModelLocation) -> nn.Module:
    """Call an allowed ``python:`` callable with the arguments of the spec.

    Raises:
        ModelError: it cannot be imported, it fails, or it returns no ``torch.nn.Module``.
    """
    module_name, _, attribute = location.path.rpartition(".")
    try:
        build = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"model path {spec.path!r} cannot be imported: {error}") from error
    try:
        module = build(**spec.arguments)
    except HeadworksError:
        raise
    except Exception as error:  # whatever the user's code raises, the message names that code
        raise ModelError(
            f"{spec.path!r} called with {spec.arguments} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{spec.path!r} returned {type(module).__name__}, expected a torch.nn.Module")
    return module


def prepare_module(module: nn.Module, spec: ModelSpec) -> None:
    """Give a module that a ``python:`` path built the attention and the precision of the spec.

    Raises:
        ModelError: the module is not of the kind that the spec names.
    """
    _require_kind(module, spec)
    _convert_state(module, torch_dtype(spec))


def _require_kind(module: nn.Module, spec: ModelSpec) -> None:
    """A language model has to be one of transformers', and then runs with the attention that the spec names."""
    from transformers import PreTrainedModel

    if spec.kind == "module":
        return
    if not isinstance(module, PreTrainedModel):
        if spec.kind == "vision":
            return
        raise ModelError(
            f"{spec.path!r} returned {type(module).__name__}, which is no transformers model; its kind is 'module'"
        )
    try:
        module.set_attn_implementation(spec.attention)
    except (ValueError, ImportError) as error:
        raise ModelError(f"{type(module).__name__} {_attention_remedy(spec, error)}") from error


def _attention_remedy(spec: ModelSpec, error: Exception) -> str:
    """What failed, and the way out where the attention implementation is to blame."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    remedy = "; try model.attention: eager" if "attention" in first_line and spec.attention != "eager" else ""
    return f"with {spec.attention} attention: {type(error).__name__}: {first_line}{remedy}"


def _convert_state(module: nn.Module, dtype: torch.dtype) -> None:
    """Parameters and saved buffers to ``dtype``; tables that are computed and not saved, as of rotary positions, keep
    the precision that their author gave them, as transformers does on loading."""
    state = {**dict(module.named_parameters()), **module.state_dict(keep_vars=True)}
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def load_pretrained(
    spec: ModelSpec,
    location: ModelLocation,
    identity: dict[str, Any],
    *,
    with_head: bool,
    loader: Any = None,
    **how: Any,
) -> nn.Module:
    """The whole network with its head, from the Hub, a folder, or a GGUF file through the cache.

    ``loader``: the class that loads, with ``how`` as further arguments, in place of the one for the spec's kind; it may
    load a part, so a GGUF file must have been converted for it.
    """
    call = partial(_from_pretrained, spec, loader or auto_class(spec), how, with_head=with_head)
    if location.kind == "hub":
        return call(location.path, revision=identity["revision"] or resolve_commit(location.path, spec.revision))
    if location.kind == "folder":
        return call(location.path)
    folder = converted_folder(identity["weights"], identity["dtype"])
    if folder.exists():
        return call(str(folder))
    assert loader is None
    with parsed_once():
        model = call(location.path, gguf_file=location.file)
    keep_converted(model, folder)
    return model


def _from_pretrained(
    spec: ModelSpec, loader: Any, how: dict[str, Any], path: str, *, with_head: bool, **where: str
) -> nn.Module:
    """Transformers' loader, with its errors said in our words and missing weights refused."""
    from safetensors import SafetensorError

    said = str(Path(path, where["gguf_file"])) if "gguf_file" in where else path
    try:
        with quiet_loading():
            model, report = loader.from_pretrained(
                path,
                dtype=torch_dtype(spec),
                attn_implementation=spec.attention,
                output_loading_info=True,
                **where,
                **how,
            )
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"model {said} does not fit into memory: {error}") from error
    except (
        OSError,
        ValueError,
        LookupError,
        RuntimeError,
        ImportError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise ModelError(f"model {said} cannot be loaded as {spec.kind} {_attention_remedy(spec, error)}") from error
    _refuse_missing(model, report, said, spec, with_head=with_head)
    assert isinstance(model, nn.Module)
    return model


def _refuse_missing(model: Any, report: dict[str, Any], said: str, spec: ModelSpec, *, with_head: bool) -> None:
    """Transformers fills absent weights with random numbers and a warning; a store of those would be worthless."""
    is_bare = spec.kind in ("encoder", "vision")
    prefix = "" if is_bare else f"{model.base_model_prefix}."
    # What such a checkpoint may lack, because nothing of it is ever run.
    unused = ("pooler.",) if is_bare else ()
    if is_bare and _has_decoder_besides(model):
        unused = (*unused, "decoder.")
    needed = [key for key in report["missing_keys"] if not key.startswith(unused)]
    missing = sorted(key for key in needed if with_head or key.startswith(prefix))
    mismatched = sorted(str(key[0]) for key in report.get("mismatched_keys", ()))
    for what, names in (("lacks", missing), ("has another shape for", mismatched)):
        if names:
            raise ModelError(
                f"model {said} {what} {len(names)} of the weights that {type(model).__name__} needs: "
                f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            )


def _place(module: nn.Module, device: torch.device) -> nn.Module:
    try:
        return module.to(device)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"the network does not fit into the memory of {device}: {error}") from error
