"""Where a model is: reads ``ModelSpec.path``, yields a folder, a GGUF file, a Hub name or an import path.

Nothing is opened or imported here, so the tokenizer and the network agree on one reading of the path at no cost.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schemas.errors import MissingError, ModelError, nearest

ALLOWED_IMPORTS = "HEADWORKS_ALLOWED_IMPORTS"
"""Environment variable: comma-separated dotted names; each allows itself and everything below it."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?", re.ASCII)
_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class ModelLocation:
    """``path`` is a Hub name, an absolute folder or an import path; ``file`` the GGUF file in it, else empty."""

    kind: Literal["hub", "folder", "gguf", "python"]
    path: str
    file: str = ""


def locate(path: str) -> ModelLocation:
    """Read one of the path forms of ``ModelSpec.path``.

    Raises:
        MissingError: a local path or an installed package that is not there.
        ModelError: a path of no known form, a file that is no GGUF, an import that the operator does not allow.
    """
    if path.startswith("python:"):
        return _locate_import(path.removeprefix("python:"))
    if path.startswith("package:"):
        return _locate_local(_package_path(path), said=path)
    local = Path(path).expanduser()
    if local.exists():
        return _locate_local(local, said=path)
    if "://" in path:
        raise ModelError(f"models are read from a local folder, a GGUF file or the Hugging Face Hub, not from {path!r}")
    if _HUB_NAME.fullmatch(path) and not path.lower().endswith(".gguf"):
        return ModelLocation("hub", path)
    raise MissingError(f"model path {path!r} is not there (looked at {local.absolute()}){_neighbour(local)}")


def _locate_local(local: Path, *, said: str) -> ModelLocation:
    local = Path(os.path.abspath(local))
    if local.is_dir():
        if (local / "model" / "config.json").exists() and not (local / "config.json").exists():
            raise MissingError(
                f"{said!r} is the output of a train_model job and no model itself; its model is "
                f"{said.rstrip('/')}/model"
            )
        return ModelLocation("folder", str(local))
    if not local.exists():
        raise MissingError(f"model path {said!r} is not there (looked at {local}){_neighbour(local)}")
    with local.open("rb") as stream:
        magic = stream.read(len(_GGUF_MAGIC))
    if magic != _GGUF_MAGIC:
        raise ModelError(
            f"model file {said!r} is not a GGUF file: it begins with {magic!r}, expected {_GGUF_MAGIC!r}; "
            "name a GGUF file, or the folder that holds config.json and the weights"
        )
    return ModelLocation("gguf", str(local.parent), local.name)


def _package_path(said: str) -> Path:
    """The file inside an installed package, found without importing the package."""
    package, _, inside = said.removeprefix("package:").partition("/")
    if not package or not inside or {"", ".."} & set(inside.split("/")):
        raise ModelError(f"model path {said!r} should be package:PACKAGE/FILE.gguf, a file below the package's folder")
    # Only the top-level name goes to find_spec: for a dotted one it would import the parents.
    top, *below = package.split(".")
    spec = importlib.util.find_spec(top)
    roots = list(spec.submodule_search_locations or []) if spec else []
    if not roots:
        raise MissingError(f"model path {said!r}: no installed package {top!r}; install it or name the file's folder")
    found = [Path(root, *below, inside) for root in roots]
    return next((path for path in found if path.exists()), found[0])


def _neighbour(path: Path) -> str:
    """A suggestion among the files beside a path that is not there."""
    try:
        return nearest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
    except OSError:
        return "; its folder is not there either"


def _locate_import(dotted: str) -> ModelLocation:
    """The import law of ``python:`` paths; nothing is imported yet."""
    module, _, _attribute = dotted.rpartition(".")
    if not module or not all(part.isidentifier() for part in dotted.split(".")):
        raise ModelError(f"model path 'python:{dotted}' should be python:module.attribute")
    listed = [name.strip() for name in os.environ.get(ALLOWED_IMPORTS, "").split(",") if name.strip()]
    if not any(dotted == name or dotted.startswith(f"{name}.") for name in listed):
        raise ModelError(
            f"model path 'python:{dotted}' is not allowed here: {ALLOWED_IMPORTS} lists "
            f"{', '.join(listed) or 'nothing'}; the operator adds {module!r} to it if its code may run"
        )
    return ModelLocation("python", dotted)
