"""dictionary_learning (Marks et al.): ``ae.pt`` and ``config.json``; ``utils.load_dictionary(FOLDER, "cpu")`` loads it.

    relu       AutoEncoderNew: AutoEncoder would rescale the latents as it loads them
    topk       AutoEncoderTopK
    threshold  BatchTopKSAE, MatryoshkaBatchTopKSAE; their ``encode`` uses the threshold
    jumprelu   JumpReluAutoEncoder
    gated      GatedAutoEncoder

``ae.pt`` is a file of ``torch.save``; it holds tensors only and is read with ``weights_only``.
"""

from __future__ import annotations

import io
import json
from typing import Any

import torch

from pipeline.dictionaries.formats.facts import Facts, field, refuse, tensor
from pipeline.dictionaries.formats.raw import RawDictionary
from pipeline.store.objects import Objects
from schemas.errors import CorruptionError, SpecError

NAME = "dictionary_learning"
CONFIG, WEIGHTS = "config.json", "ae.pt"

# Our kind -> whether their class takes the bias off its input.
_CENTRES = {"relu": False, "topk": True, "threshold": True, "jumprelu": False, "gated": True}
_TRAINERS = {
    "AutoEncoderNew": "StandardTrainerAprilUpdate",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
    "GatedAutoEncoder": "GatedSAETrainer",
}


def files(raw: RawDictionary, facts: Facts) -> dict[str, bytes]:
    """Name -> content.

    Raises:
        SpecError: a transcoder.
    """
    if raw.is_transcoder:
        refuse(facts.name, NAME, "it has no transcoders")
    if raw.kind == "threshold" and raw.k < 1:
        refuse(facts.name, NAME, "its BatchTopK needs k, which is not known")
    raw = raw.centred(_CENTRES[raw.kind])
    class_name, tensors = _written(raw)
    trainer = {
        "dict_class": class_name,
        "trainer_class": _TRAINERS[class_name],
        "activation_dim": raw.d_in,
        "dict_size": raw.num_latents,
        "k": raw.k or None,
        "layer": _layer(facts.source),
        "lm_name": facts.model,
        "submodule_name": facts.source,
        "lr": facts.learning_rate,
        "steps": facts.steps,
        "seed": facts.seed,
        "wandb_name": facts.name,
        "device": "cpu",
    }
    buffer = io.BytesIO()
    torch.save({name: value.contiguous().clone() for name, value in tensors.items()}, buffer)
    config = (json.dumps({"trainer": trainer, "buffer": {}}, indent=1) + "\n").encode()
    return {CONFIG: config, WEIGHTS: buffer.getvalue()}


def read(folder: Objects) -> tuple[RawDictionary, Facts]:
    """What a folder holds.

    Raises:
        SpecError: a class that Headworks does not have.
    """
    where = f"{folder.url}/{CONFIG}"
    trainer = field(json.loads(folder.read(CONFIG)), "trainer", where)
    class_name = field(trainer, "dict_class", where)
    at = f"{folder.url}/{WEIGHTS}"
    try:
        found = torch.load(io.BytesIO(folder.read(WEIGHTS)), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError) as error:
        raise CorruptionError(f"{at} is no file of tensors: {error}") from error
    raw = _read(class_name, found, at, int(trainer.get("k") or 0))
    if raw is None:
        raise SpecError(f"{where}: the class {class_name!r} is not one that can be read (AutoEncoder, {[*_TRAINERS]})")
    point = str(trainer.get("submodule_name") or "")
    return raw, Facts("", str(trainer.get("lm_name") or ""), point, point)


def _written(raw: RawDictionary) -> tuple[str, dict[str, torch.Tensor]]:
    """Name of the class and its state."""
    linear = {"encoder.weight": raw.encoder, "encoder.bias": raw.b_enc, "decoder.weight": raw.decoder.T}
    named = {"W_enc": raw.encoder.T, "b_enc": raw.b_enc, "W_dec": raw.decoder, "b_dec": raw.b_dec}
    match raw.kind:
        case "relu":
            return "AutoEncoderNew", linear | {"decoder.bias": raw.b_dec}
        case "jumprelu":
            return "JumpReluAutoEncoder", named | {"threshold": _there(raw.threshold)}
        case "gated":
            return "GatedAutoEncoder", {
                "decoder_bias": raw.b_dec,
                "encoder.weight": raw.encoder,
                "r_mag": _there(raw.r_mag),
                "gate_bias": raw.b_enc,
                "mag_bias": _there(raw.b_mag),
                "decoder.weight": raw.decoder.T,
            }
    numbers = {"k": torch.tensor(raw.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
    if raw.kind == "topk":
        return "AutoEncoderTopK", linear | numbers | {"b_dec": raw.b_dec}
    numbers["threshold"] = _there(raw.threshold)[0]
    if raw.group_sizes:
        return "MatryoshkaBatchTopKSAE", named | numbers | {"group_sizes": torch.tensor(raw.group_sizes)}
    return "BatchTopKSAE", linear | numbers | {"b_dec": raw.b_dec}


def _read(class_name: str, found: dict[str, torch.Tensor], at: str, k: int) -> RawDictionary | None:
    def get(name: str) -> torch.Tensor:
        return tensor(found, name, at)

    if class_name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        encoder, b_enc, decoder, b_dec = get("W_enc").T.contiguous(), get("b_enc"), get("W_dec"), get("b_dec")
    elif class_name in ("AutoEncoder", *_TRAINERS):
        bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
        encoder, decoder = get("encoder.weight"), get("decoder.weight").T.contiguous()
        b_enc = get("gate_bias" if class_name == "GatedAutoEncoder" else "encoder.bias")
        b_dec = get(bias.get(class_name, "b_dec"))
    else:
        return None
    parts: dict[str, Any] = {"kind": "relu"}
    match class_name:
        case "AutoEncoderTopK":
            parts = {"kind": "topk", "k": int(found["k"]) if "k" in found else k}
        case "BatchTopKSAE" | "MatryoshkaBatchTopKSAE":
            sizes = tuple(found["group_sizes"].tolist()) if "group_sizes" in found else ()
            threshold = get("threshold").clamp(min=0).expand(len(b_enc))
            parts = {"kind": "threshold", "k": int(get("k")), "threshold": threshold, "group_sizes": sizes}
        case "JumpReluAutoEncoder":
            parts = {"kind": "jumprelu", "threshold": get("threshold").clamp(min=0)}
        case "GatedAutoEncoder":
            parts = {"kind": "gated", "r_mag": get("r_mag"), "b_mag": get("mag_bias")}
    centres = class_name == "AutoEncoder" or _CENTRES[parts["kind"]]
    return RawDictionary(
        encoder=encoder, b_enc=b_enc, decoder=decoder, b_dec=b_dec, is_transcoder=False, centres_input=centres, **parts
    )


def _there(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


def _layer(point: str) -> int:
    """Of ``blocks.N.*``; -1 of others."""
    parts = point.split(".")
    return int(parts[1]) if len(parts) > 2 and parts[0].rpartition("/")[2] == "blocks" and parts[1].isdigit() else -1
