"""SAELens, format of version 6: ``cfg.json`` and ``sae_weights.safetensors``; loaded by ``SAE.load_from_disk(FOLDER)``.

    relu                 standard, transcoder, skip_transcoder
    topk                 topk
    threshold, jumprelu  jumprelu, jumprelu_transcoder, jumprelu_skip_transcoder (a trained BatchTopK is one)
    gated                gated

Its matrices are W_enc [S, F] and W_dec [F, T]; W_skip [T, S].
"""

from __future__ import annotations

import json
from typing import Any

import torch

from pipeline.dictionaries.formats.facts import Facts, field, packed, refuse, tensor, unpacked
from pipeline.dictionaries.formats.raw import RawDictionary
from pipeline.store.objects import Objects
from schemas.errors import SpecError

NAME = "saelens"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"
"""The version whose format this is."""

_AUTOENCODERS = {"relu": "standard", "topk": "topk", "threshold": "jumprelu", "jumprelu": "jumprelu", "gated": "gated"}
_TRANSCODERS = {
    ("relu", False): "transcoder",
    ("relu", True): "skip_transcoder",
    ("threshold", False): "jumprelu_transcoder",
    ("threshold", True): "jumprelu_skip_transcoder",
    ("jumprelu", False): "jumprelu_transcoder",
    ("jumprelu", True): "jumprelu_skip_transcoder",
}
_KINDS = {
    "standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated",
    "transcoder": "relu", "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu", "jumprelu_skip_transcoder": "jumprelu",
}  # fmt: skip


def files(raw: RawDictionary, facts: Facts) -> dict[str, bytes]:
    """Name -> content.

    Raises:
        SpecError: SAELens has no such transcoder.
    """
    config: dict[str, Any] = {
        "architecture": _architecture(raw, facts.name),
        "d_in": raw.d_in,
        "d_sae": raw.num_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": raw.centres_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "sae_lens_training_version": None,
            "model_name": facts.model,
            "hook_name": facts.source,
            "hook_head_index": None,
            "trained_with": "headworks",
            "store_fingerprint": facts.store_fingerprint,
        },
    }
    if raw.kind == "topk":
        config |= {"k": raw.k, "rescale_acts_by_decoder_norm": False}
    if raw.is_transcoder:
        config |= {"d_out": raw.d_out}
        config["metadata"] |= {"hook_name_out": facts.target}
    return {CONFIG: (json.dumps(config, indent=1) + "\n").encode(), WEIGHTS: packed(_tensors(raw))}


def read(folder: Objects) -> tuple[RawDictionary, Facts]:
    """What a folder holds.

    Raises:
        SpecError: an architecture, or a normalisation of its input, that Headworks does not have.
    """
    where = f"{folder.url}/{CONFIG}"
    config = json.loads(folder.read(CONFIG))
    architecture = field(config, "architecture", where)
    if architecture not in _KINDS:
        raise SpecError(f"{where}: the architecture {architecture!r} is not one that can be read ({sorted(_KINDS)})")
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") != "none":
            raise SpecError(f"{where}: {name} is {config[name]!r}; fold it into the weights with SAELens first")
    if config.get("rescale_acts_by_decoder_norm"):
        raise SpecError(f"{where}: rescale_acts_by_decoder_norm is on; call fold_W_dec_norm of SAELens first")
    found = unpacked(folder, WEIGHTS)
    at = f"{folder.url}/{WEIGHTS}"
    kind = _KINDS[architecture]
    threshold = tensor(found, "threshold", at).clamp(min=0) if kind == "jumprelu" else None
    raw = RawDictionary(
        kind=kind,  # type: ignore[arg-type]
        encoder=tensor(found, "W_enc", at).T.contiguous(),
        b_enc=tensor(found, "b_gate" if kind == "gated" else "b_enc", at),
        decoder=tensor(found, "W_dec", at),
        b_dec=tensor(found, "b_dec", at),
        skip=tensor(found, "W_skip", at) if "skip" in architecture else None,
        is_transcoder="transcoder" in architecture,
        centres_input=bool(config.get("apply_b_dec_to_input", True)) and "transcoder" not in architecture,
        k=int(config.get("k", 0)),
        threshold=threshold,
        r_mag=tensor(found, "r_mag", at) if kind == "gated" else None,
        b_mag=tensor(found, "b_mag", at) if kind == "gated" else None,
    )
    known = config.get("metadata") or {}
    source = str(known.get("hook_name") or "")
    return raw, Facts("", str(known.get("model_name") or ""), source, str(known.get("hook_name_out") or source))


def _architecture(raw: RawDictionary, name: str) -> str:
    if not raw.is_transcoder:
        return _AUTOENCODERS[raw.kind]
    found = _TRANSCODERS.get((raw.kind, raw.skip is not None))
    if found is None:
        refuse(name, NAME, f"its transcoders are ReLU or JumpReLU ones, this is {raw.label}")
    return found


def _tensors(raw: RawDictionary) -> dict[str, torch.Tensor]:
    tensors = {"W_enc": raw.encoder.T, "W_dec": raw.decoder, "b_dec": raw.b_dec}
    if raw.kind == "gated":
        assert raw.r_mag is not None
        assert raw.b_mag is not None
        return tensors | {"b_gate": raw.b_enc, "r_mag": raw.r_mag, "b_mag": raw.b_mag}
    tensors["b_enc"] = raw.b_enc
    if raw.threshold is not None:
        tensors["threshold"] = raw.threshold
    if raw.skip is not None:
        tensors["W_skip"] = raw.skip
    return tensors
