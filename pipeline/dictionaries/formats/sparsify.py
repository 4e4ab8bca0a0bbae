"""sparsify (EleutherAI): ``cfg.json`` and ``sae.safetensors``; loaded by ``SparseCoder.load_from_disk(FOLDER)``.

TopK only. Its matrices are ours: encoder.weight [F, D], W_dec [F, D], W_skip [D, D]; one width D for both sides.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.dictionaries.formats.facts import Facts, field, packed, refuse, tensor, unpacked
from pipeline.dictionaries.formats.raw import RawDictionary
from pipeline.store.objects import Objects
from schemas.errors import SpecError

NAME = "sparsify"
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def files(raw: RawDictionary, facts: Facts) -> dict[str, bytes]:
    """Name -> content.

    Raises:
        SpecError: not TopK, or two widths.
    """
    if raw.kind != "topk":
        refuse(facts.name, NAME, f"it has TopK dictionaries only, this is {raw.label}")
    if raw.d_in != raw.d_out:
        refuse(facts.name, NAME, f"it has one width for source and target, these are {raw.d_in} and {raw.d_out}")
    config = {
        "activation": "topk",
        "expansion_factor": max(1, raw.num_latents // raw.d_in),
        # Decoder rows have the norm 1 in the scaled space, not in that of the activations.
        "normalize_decoder": False,
        "num_latents": raw.num_latents,
        "k": raw.k,
        "multi_topk": False,
        "skip_connection": raw.skip is not None,
        "transcode": raw.is_transcoder,
        "d_in": raw.d_in,
    }
    tensors = {"encoder.weight": raw.encoder, "encoder.bias": raw.b_enc, "W_dec": raw.decoder, "b_dec": raw.b_dec}
    if raw.skip is not None:
        tensors["W_skip"] = raw.skip
    return {CONFIG: (json.dumps(config) + "\n").encode(), WEIGHTS: packed(tensors)}


def read(folder: Objects) -> tuple[RawDictionary, Facts]:
    """What a folder holds.

    Raises:
        SpecError: an activation other than TopK.
    """
    where = f"{folder.url}/{CONFIG}"
    config: dict[str, Any] = json.loads(folder.read(CONFIG))
    if config.get("activation", "topk") != "topk":
        raise SpecError(f"{where}: the activation {config['activation']!r} is not one that can be read (topk)")
    found, at = unpacked(folder, WEIGHTS), f"{folder.url}/{WEIGHTS}"
    is_transcoder = bool(config.get("transcode", False))
    raw = RawDictionary(
        kind="topk",
        encoder=tensor(found, "encoder.weight", at),
        b_enc=tensor(found, "encoder.bias", at),
        decoder=tensor(found, "W_dec", at),
        b_dec=tensor(found, "b_dec", at),
        skip=tensor(found, "W_skip", at) if config.get("skip_connection") else None,
        is_transcoder=is_transcoder,
        centres_input=not is_transcoder,
        k=int(field(config, "k", where)),
    )
    return raw, Facts("", "", "", "")
