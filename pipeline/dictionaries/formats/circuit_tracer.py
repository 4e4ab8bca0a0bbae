"""circuit-tracer: transcoders of all layers of a model, from layer 0 on, ReLU or with thresholds.

    config.yaml                    model_kind, model_name, feature_input_hook, feature_output_hook, scan
    layer_I.safetensors            transcoder set: W_enc [F, D], W_dec [F, D], b_enc, b_dec, W_skip [D, D],
                                   activation_function.threshold [F]
    W_enc_I.safetensors            cross-layer: W_enc_I [F, D], b_enc_I, b_dec_I, threshold_I
    W_dec_I.safetensors            cross-layer: W_dec_I [F, L - I, D], what latents of layer I write to I, I + 1, ...

I counts layers; L layers, F latents of each, D width. ``hook_mlp_in`` and ``hook_mlp_out`` are ``mlp.hook_in`` and
``mlp.hook_out`` there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import yaml

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.formats.facts import Facts, packed, refuse, tensor, unpacked
from pipeline.dictionaries.formats.raw import RawDictionary, raw_group, raw_of
from pipeline.store.objects import Objects
from schemas.errors import CorruptionError, SpecError

NAME = "circuit_tracer"
CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"

_HOOKS = {"hook_mlp_in": "mlp.hook_in", "hook_mlp_out": "mlp.hook_out"}
_OURS = {theirs: ours for ours, theirs in _HOOKS.items()}


def files(dictionaries: Sequence[Dictionary], facts: Facts) -> dict[str, bytes]:
    """Name -> content, of transcoders of one layer each, or of one dictionary with groups ``per_layer`` or
    ``cross_layer``.

    Raises:
        SpecError: not all layers from 0 on, not ReLU or thresholds, several widths, or no transcoders.
    """
    name = facts.name
    is_cross = len(dictionaries) == 1 and dictionaries[0].spec.groups == "cross_layer"
    layers = _cross_layers(dictionaries[0]) if is_cross else _layers(dictionaries)
    points = [_places(source, name) for _, source, _ in layers], [_places(target, name) for _, _, target in layers]
    order = sorted(range(len(layers)), key=lambda index: points[0][index][0])
    for side in points:
        if [side[index][0] for index in order] != list(range(len(layers))):
            refuse(name, NAME, f"it wants every layer from 0 on, once; these are {sorted(layer for layer, _ in side)}")
        if len({hook for _, hook in side}) > 1:
            refuse(name, NAME, f"it wants one kind of hook point, these are {sorted({hook for _, hook in side})}")
    raws = [layers[index][0] for index in order]
    _require(raws, name, is_cross=is_cross)
    config = {
        "model_name": facts.model,
        "model_kind": "cross_layer_transcoder" if is_cross else "transcoder_set",
        "feature_input_hook": points[0][0][1],
        "feature_output_hook": points[1][0][1],
        "scan": name,
    }
    write = _cross_files if is_cross else _set_files
    return {CONFIG: yaml.safe_dump(config, sort_keys=False).encode(), **write(raws)}


def read(folder: Objects) -> tuple[list[RawDictionary], list[Facts], bool]:
    """The layers in order, each with its hook points, and whether they are cross-layer; then decoders lie side by side.

    Raises:
        CorruptionError: a layer is missing.
    """
    config: dict[str, Any] = yaml.safe_load(folder.read(CONFIG)) or {}
    names, _ = folder.children()
    is_cross = "W_enc_0.safetensors" in names
    stem = "W_enc" if is_cross else "layer"
    num_layers = sum(bool(re.fullmatch(rf"{stem}_\d+\.safetensors", name)) for name in names)
    if not num_layers:
        raise CorruptionError(f"{folder.url} has neither layer_0.safetensors nor W_enc_0.safetensors")
    read_layer = _read_cross if is_cross else _read_set
    hooks = [str(config.get(f"feature_{side}_hook") or default) for side, default in
             (("input", "hook_resid_mid"), ("output", "hook_mlp_out"))]  # fmt: skip
    hooks = [_OURS.get(hook, hook) for hook in hooks]
    model = str(config.get("model_name") or "")
    facts = [Facts("", model, f"blocks.{i}.{hooks[0]}", f"blocks.{i}.{hooks[1]}") for i in range(num_layers)]
    return [read_layer(folder, layer, num_layers) for layer in range(num_layers)], facts, is_cross


def _layers(dictionaries: Sequence[Dictionary]) -> list[tuple[RawDictionary, str, str]]:
    """Each layer with its source and target."""
    found = []
    for dictionary in dictionaries:
        spec = dictionary.spec
        if spec.groups != "per_layer":
            found.append((raw_of(dictionary), spec.sources[0], spec.target_points[0]))
            continue
        first = 0
        for group in spec.latent_groups:
            latents = slice(first, first + group.num_latents)
            found.append((raw_group(dictionary, group, latents), group.sources[0], group.targets[0]))
            first = latents.stop
    return found


def _cross_layers(dictionary: Dictionary) -> list[tuple[RawDictionary, str, str]]:
    """Each layer with its own source and target; the decoder [F, (L - I) D], ``b_dec`` of all that it writes."""
    spec, found, first = dictionary.spec, [], 0
    for group in spec.latent_groups:
        latents = slice(first, first + group.num_latents)
        found.append((raw_group(dictionary, group, latents), group.sources[0], group.targets[0]))
        first = latents.stop
    return found


def _require(raws: Sequence[RawDictionary], name: str, *, is_cross: bool) -> None:
    for raw in raws:
        if raw.kind not in ("relu", "threshold", "jumprelu"):
            refuse(name, NAME, f"it loads ReLU transcoders and those with thresholds, this is {raw.label}")
        if not raw.is_transcoder:
            refuse(name, NAME, "it replaces MLPs: it wants transcoders, this is an autoencoder")
        if is_cross and raw.skip is not None:
            refuse(name, NAME, "it loads no skip of a cross-layer transcoder")
    widths = {(raw.num_latents, raw.d_in) for raw in raws}
    outs = {raw.b_dec.shape[0] // (len(raws) - layer if is_cross else 1) for layer, raw in enumerate(raws)}
    if len(widths) > 1 or outs != {raws[0].d_in}:
        refuse(name, NAME, f"it wants equal widths; (latents, source) are {sorted(widths)}, targets {sorted(outs)}")


def _set_files(raws: Sequence[RawDictionary]) -> dict[str, bytes]:
    found = {}
    for layer, raw in enumerate(raws):
        tensors = {"W_enc": raw.encoder, "W_dec": raw.decoder, "b_enc": raw.b_enc, "b_dec": raw.b_dec}
        if raw.threshold is not None:
            tensors[THRESHOLD] = raw.threshold
        if raw.skip is not None:
            tensors["W_skip"] = raw.skip
        found[f"layer_{layer}.safetensors"] = packed(tensors)
    return found


def _cross_files(raws: Sequence[RawDictionary]) -> dict[str, bytes]:
    found = {}
    for layer, raw in enumerate(raws):
        D = raw.d_in
        tensors = {f"W_enc_{layer}": raw.encoder, f"b_enc_{layer}": raw.b_enc, f"b_dec_{layer}": raw.b_dec[:D]}
        if raw.threshold is not None:
            tensors[f"threshold_{layer}"] = raw.threshold
        found[f"W_enc_{layer}.safetensors"] = packed(tensors)
        decoder = raw.decoder.reshape(raw.num_latents, len(raws) - layer, D)
        found[f"W_dec_{layer}.safetensors"] = packed({f"W_dec_{layer}": decoder})
    return found


def _read_set(folder: Objects, layer: int, num_layers: int) -> RawDictionary:
    del num_layers
    key = f"layer_{layer}.safetensors"
    found, at = unpacked(folder, key), f"{folder.url}/{key}"
    raw = _plain({name: tensor(found, name, at) for name in ("W_enc", "W_dec", "b_enc", "b_dec")})
    skip = tensor(found, "W_skip", at) if "W_skip" in found else None
    return _with_threshold(replace(raw, skip=skip), found, THRESHOLD, at)


def _read_cross(folder: Objects, layer: int, num_layers: int) -> RawDictionary:
    key, at = f"W_enc_{layer}.safetensors", f"{folder.url}/W_enc_{layer}.safetensors"
    found = unpacked(folder, key) | unpacked(folder, f"W_dec_{layer}.safetensors")
    tensors = {name: tensor(found, f"{name}_{layer}", at) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    num_latents, D = tensors["W_enc"].shape
    if tuple(tensors["W_dec"].shape) != (num_latents, num_layers - layer, D):
        raise CorruptionError(
            f"{at}: W_dec_{layer} has the shape {list(tensors['W_dec'].shape)}, expected "
            f"{[num_latents, num_layers - layer, D]}"
        )
    raw = _plain(tensors | {"W_dec": tensors["W_dec"].reshape(num_latents, -1)})
    return _with_threshold(raw, found, f"threshold_{layer}", at)


def _plain(tensors: Mapping[str, torch.Tensor]) -> RawDictionary:
    return RawDictionary(
        kind="relu",
        encoder=tensors["W_enc"],
        b_enc=tensors["b_enc"],
        decoder=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        is_transcoder=True,
        centres_input=False,
    )


def _with_threshold(raw: RawDictionary, found: Mapping[str, torch.Tensor], name: str, at: str) -> RawDictionary:
    if name not in found:
        return raw
    threshold = found[name].float().reshape(-1)
    if bool((threshold < 0).any()):
        raise SpecError(f"{at}: {name} is negative for some latents, which lets negative codes pass")
    return replace(raw, kind="jumprelu", threshold=threshold)


def _places(point: str, name: str) -> tuple[int, str]:
    """``blocks.3.hook_mlp_in`` -> ``(3, "mlp.hook_in")``."""
    match = re.fullmatch(r"(?:.*/)?blocks\.(\d+)\.(\w+)", point)
    if match is None:
        refuse(name, NAME, f"it wants hook points blocks.LAYER.*, this one is {point!r}")
    return int(match[1]), _HOOKS.get(match[2], match[2])
