"""A network without its weights, on torch's meta device: reads a ``ModelSpec``, takes no memory to speak of."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.models.gguf import converted_folder
from pipeline.models.identity import model_identity
from pipeline.models.load import auto_class, build_module, torch_dtype
from pipeline.models.location import ModelLocation
from pipeline.models.quiet import quiet_loading
from schemas.errors import HeadworksError, ModelError
from schemas.model import ModelSpec


def build_skeleton(spec: ModelSpec, location: ModelLocation) -> nn.Module:
    """The network with its head, in evaluation mode. A ``python:`` module alone is built with its weights first.

    Raises:
        ModelError: it cannot be built from its configuration.
    """
    if location.kind == "python":
        return build_module(spec, location).eval().requires_grad_(False).to("meta")
    from transformers import AutoConfig

    auto = auto_class(spec)
    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(**config_place(spec, location))
            with torch.device("meta"):
                model = auto.from_config(config, dtype=torch_dtype(spec), attn_implementation=spec.attention)
    except HeadworksError:
        raise
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(f"model {spec.path!r} cannot be built from its configuration: {first_line}") from error
    built: nn.Module = model.eval().requires_grad_(False)
    return built


def config_place(spec: ModelSpec, location: ModelLocation) -> dict[str, Any]:
    """Arguments for ``AutoConfig``; of a GGUF file from its conversion where there is one, since parsing takes long."""
    if location.kind == "hub":
        return {"pretrained_model_name_or_path": location.path, "revision": spec.revision}
    if location.kind == "folder":
        return {"pretrained_model_name_or_path": location.path}
    identity = model_identity(spec)
    folder = converted_folder(identity["weights"], identity["dtype"])
    if folder.exists():
        return {"pretrained_model_name_or_path": str(folder)}
    return {"pretrained_model_name_or_path": location.path, "gguf_file": location.file}
