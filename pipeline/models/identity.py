"""Which network a store was collected from: the facts that decide every number that it computes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.hub import resolve_commit
from pipeline.models.location import ModelLocation, locate
from pipeline.models.precision import resolve_dtype
from pipeline.models.weights import config_digest, file_digest, files_digest, weight_files
from schemas.errors import ModelError
from schemas.model import ModelSpec

if TYPE_CHECKING:
    from torch import nn


def model_identity(spec: ModelSpec) -> dict[str, Any]:
    """Facts for a fingerprint, without building the network (a ``python:`` module alone is built to digest it).

    ``source``, ``path``, ``kind``, ``revision``, ``weights``, ``config``, ``dtype`` (resolved), ``attention``,
    ``arguments``. ``path`` is a Hub name or import path and empty for local files, which their digests identify
    wherever they lie. A Hub model is identified by its commit, without reading its weights.

    Raises:
        MissingError: the model is not there.
        ModelError: the folder holds no weights, or the spec contradicts itself.
    """
    location = check_spec(spec)
    if location.kind == "python":
        from pipeline.models.load import build_module

        return identity_of(spec, location, weights=state_digest(build_module(spec, location)))
    if location.kind == "hub":
        return identity_of(spec, location, revision=resolve_commit(location.path, spec.revision))
    if location.kind == "gguf":
        return identity_of(spec, location, weights=file_digest(Path(location.path, location.file)))
    folder = Path(location.path)
    return identity_of(spec, location, weights=files_digest(weight_files(folder)), config=config_digest(folder))


def identity_of(
    spec: ModelSpec, location: ModelLocation, *, weights: str = "", revision: str = "", config: str = ""
) -> dict[str, Any]:
    """The identity from its parts."""
    named = location.kind in ("hub", "python")
    return {
        "source": location.kind,
        "path": location.path if named else "",
        "kind": spec.kind,
        "revision": revision,
        "weights": weights,
        "config": config,
        "dtype": resolve_dtype(spec),
        "attention": spec.attention,
        # Through JSON: an identity that was stored and read again must equal a fresh one.
        "arguments": json.loads(json.dumps(spec.arguments)),
    }


def check_spec(spec: ModelSpec) -> ModelLocation:
    """Where the model is, once the fields of the spec agree with each other.

    Raises:
        ModelError: ``arguments`` without a ``python:`` path, or ``kind: module`` without one.
    """
    location = locate(spec.path)
    if location.kind != "python" and spec.arguments:
        raise ModelError(f"model.arguments are for python: paths only; {spec.path!r} takes none")
    if location.kind != "python" and spec.kind == "module":
        raise ModelError(
            f"model.kind 'module' needs a python: path; {spec.path!r} is causal_lm, masked_lm, encoder or vision"
        )
    return location


def state_digest(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a module's state, in the order of the names."""
    import torch  # seconds, and only for a module that is built to be digested

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        words = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{words.dtype}|{tuple(words.shape)}|".encode())
        digest.update(words.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
