"""A dictionary on disk: ``dictionary.safetensors`` and, written last, ``dictionary.json``.

The JSON commits the folder: it carries the SHA-256 of the weights, so a folder whose writer died between the two
objects, or whose weights were swapped, is refused instead of being read as something else.
"""

from __future__ import annotations

import hashlib
import json

import safetensors.torch
import torch
from pydantic import ValidationError

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.store.objects import Objects
from schemas.dictionary import DictionaryRecord
from schemas.errors import CorruptionError, MissingError

WEIGHTS = "dictionary.safetensors"
RECORD = "dictionary.json"


def save_dictionary(url: str, dictionary: Dictionary, record: DictionaryRecord) -> DictionaryRecord:
    """Write the folder at ``url``, replacing one that is there; returns the record as written, with its digest."""
    # Cloned: a tied encoder is the decoder itself, and the format takes no two names for one memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in dictionary.state_dict().items()}
    weights = safetensors.torch.save(tensors)
    record = record.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    folder = Objects(url)
    folder.write(WEIGHTS, weights)
    folder.write(RECORD, (json.dumps(record.model_dump(mode="json"), indent=1) + "\n").encode())
    return record


def read_record(url: str) -> DictionaryRecord:
    """``dictionary.json`` of a folder.

    Raises:
        MissingError: no dictionary there.
        CorruptionError: it is not a record of this format.
    """
    folder = Objects(url)
    if not folder.exists(RECORD):
        raise MissingError(f"no dictionary at {url}: {RECORD} is not there; give the folder that training wrote")
    try:
        return DictionaryRecord.model_validate_json(folder.read(RECORD))
    except ValidationError as error:
        raise CorruptionError(f"{url}/{RECORD} is not a dictionary record of format 1: {error}") from error


def load_dictionary(url: str, *, device: torch.device | str = "cpu") -> Dictionary:
    """The trained dictionary, float32, without gradients, with its ``record``.

    Raises:
        MissingError: no dictionary there.
        CorruptionError: the weights are not those that the record names.
    """
    record = read_record(url)
    weights = Objects(url).read(WEIGHTS)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != record.weights_sha256:
        raise CorruptionError(
            f"{url}/{WEIGHTS} has SHA-256 {digest}, {RECORD} expects {record.weights_sha256}: train it again"
        )
    dictionary = Dictionary(record.spec, record.d_source, record.d_target, record.scales, device=device)
    dictionary.load_state_dict(safetensors.torch.load(weights))
    dictionary.record = record
    return dictionary.requires_grad_(False).eval()
