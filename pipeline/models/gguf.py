"""GGUF files: dequantised once into plain safetensors weights under the cache folder, then loaded in a second.

Reading a GGUF file takes transformers most of its time for parsing the vocabulary and mapping tensor names, and every
replica would pay for it. The cache key is the digest of the file, the dtype and the transformers version, so another
file or another converter never finds an old conversion. A conversion is written under a temporary name and renamed:
replicas that convert at the same moment do the same work and the first one wins.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from schemas.fingerprint import fingerprint

CACHE = "HEADWORKS_CACHE"
"""Environment variable: the cache folder, instead of ``~/.cache/headworks``."""

_LOG = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where derived files live that may be deleted at any time."""
    return Path(os.environ.get(CACHE) or "~/.cache/headworks").expanduser()


def converted_folder(weights_sha256: str, dtype: str) -> Path:
    """Where the conversion of a GGUF file is, or will be."""
    import transformers

    key = fingerprint({"weights": weights_sha256, "dtype": dtype, "transformers": transformers.__version__})
    return cache_folder() / "dequantised" / key[:40]


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Let the GGUF reader answer a repeated question from memory within the block.

    Transformers parses the whole file for the config and again for the weights, and builds the same table of tensor
    names anew for every submodule: half of its time. Both are pure functions of their arguments.
    """
    import gguf

    original: dict[str, Any] = {"GGUFReader": gguf.GGUFReader, "get_tensor_name_map": gguf.get_tensor_name_map}
    try:
        for name, function in original.items():
            setattr(gguf, name, lru_cache(maxsize=None)(function))
        yield
    finally:
        for name, function in original.items():
            setattr(gguf, name, function)


def keep_converted(model: Any, folder: Path) -> None:
    """Save a dequantised ``PreTrainedModel`` as ``folder``, atomically.

    A cache that cannot be written costs time and no result, so that is logged, not raised.
    """
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name[:12]}-", dir=folder.parent))
        _save(model, partial)
        _sync(partial)
        partial.rename(folder)
    except OSError as error:
        if not folder.exists():  # else another replica was first
            _LOG.warning(
                "the dequantised weights were not kept in %s: %s; set %s to another folder", folder, error, CACHE
            )
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _save(model: Any, folder: Path) -> None:
    """As ``save_pretrained`` would, which refuses every model that came from a GGUF file, dequantised or not."""
    from safetensors.torch import save_model

    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    """Bytes on disk before the name: a crash must not leave a named folder of empty files."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
