"""Model folders: what ``AutoModelForCausalLM.from_pretrained`` loads, tokenizer files included, whole or not there."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from pipeline.models.quiet import quiet_loading

_BESIDE = ".writing-"


def save_model(network: Any, tokenizer: Path, folder: Path) -> None:
    """Write ``folder``, atomically; one that is there stays, since the same step has the same weights.

    ``tokenizer``: the folder whose files are copied.
    """
    if folder.exists():
        return
    beside = folder.with_name(f"{_BESIDE}{folder.name}-{uuid.uuid4().hex}")
    beside.mkdir(parents=True)
    with quiet_loading():
        network.save_pretrained(beside)
    for file in tokenizer.iterdir():
        shutil.copy(file, beside / file.name)
    for file in beside.iterdir():
        _sync(file)
    _sync(beside)
    beside.rename(folder)
    _sync(folder.parent)


def sweep(*folders: Path) -> None:
    """Remove what interrupted writes have left in the folders; nobody may be writing there."""
    for folder in folders:
        for left in folder.glob(f"{_BESIDE}*"):
            shutil.rmtree(left)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
