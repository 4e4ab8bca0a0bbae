"""The files of a local model folder, and digests of files: reads a folder, yields what decides the weights."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from schemas.errors import ModelError
from schemas.fingerprint import fingerprint

_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
_BLOCK_BYTES = 1 << 22
# Written anew by whoever saved the folder last; they change no number.
_VOLATILE_FIELDS = frozenset({"transformers_version", "_name_or_path", "dtype", "torch_dtype", "_commit_hash"})


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers would load, by name; safetensors go before pickled tensors.

    Raises:
        ModelError: no weights or no ``config.json`` in ``folder``.
    """
    for pattern in _PATTERNS:
        found = sorted(folder.glob(pattern))
        if found:
            read_config(folder)
            return found
    held = sorted(entry.name for entry in folder.iterdir())
    gguf = next((name for name in held if name.lower().endswith(".gguf")), None)
    remedy = f"; for the GGUF file name {folder / gguf}" if gguf else ""
    raise ModelError(
        f"model folder {folder} holds no weights: looked for {' and '.join(_PATTERNS)}, "
        f"found {', '.join(held[:8]) or 'nothing'}{', ...' if len(held) > 8 else ''}{remedy}"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder.

    Raises:
        ModelError: it is absent or no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"model folder {folder} has weights but no config.json") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds {type(config).__name__}, expected a JSON object")
    return config


def config_digest(folder: Path) -> str:
    """Digest of ``config.json`` less the fields that change no number."""
    return fingerprint({name: value for name, value in read_config(folder).items() if name not in _VOLATILE_FIELDS})


def files_digest(files: list[Path]) -> str:
    """SHA-256 over names, lengths and bytes of the files in the order of their names; files are streamed."""
    return fingerprint({path.name: [path.stat().st_size, file_digest(path)] for path in files})


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; hashed once per process as long as size and modification time stay."""
    state = path.stat()
    return _file_digest(os.fspath(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _file_digest(path: str, _size_bytes: int, _mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
