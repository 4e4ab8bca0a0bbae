"""Dictionaries of ours from those of other libraries. Scales are 1: their weights stand in the space of activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.dictionaries.dictionary import Dictionary
from pipeline.dictionaries.formats.facts import Facts
from pipeline.dictionaries.formats.raw import RawDictionary
from schemas.dictionary import DictionaryRecord, DictionarySpec
from schemas.errors import SpecError
from schemas.versions import versions

_CENTRES = {"relu": False, "topk": True, "threshold": True, "jumprelu": False, "gated": True}


def build(raws: Sequence[RawDictionary], facts: Sequence[Facts], *, name: str, groups: str = "one") -> Dictionary:
    """One dictionary of one part, or of the layers of a ``per_layer`` or ``cross_layer`` transcoder.

    Raises:
        SpecError: no hook points are known, or no thresholds that ours could have.
    """
    raws = [raw.centred(_CENTRES[raw.kind] and not raw.is_transcoder) for raw in raws]
    sources, targets = [one.source for one in facts], [one.target for one in facts]
    if not all(sources) or not all(targets):
        raise SpecError("the file does not say which hook point the dictionary is of; name it with --source (--target)")
    first = raws[0]
    if first.is_transcoder and sources == targets:
        raise SpecError(f"this is a transcoder: name what it reconstructs with --target, other than {sources[0]!r}")
    spec = DictionarySpec.model_validate(
        {
            "name": name,
            "sources": sources,
            "targets": targets if first.is_transcoder else [],
            "num_latents": sum(raw.num_latents for raw in raws),
            "activation": _activation(first),
            "groups": groups,
            "skip": first.skip is not None,
        }
    )
    widths = [raw.d_in for raw in raws]
    d_target = dict(zip(targets, [first.d_in] * len(raws) if groups == "cross_layer" else _outs(raws), strict=True))
    points = dict.fromkeys([*sources, *targets], 1.0)
    dictionary = Dictionary(spec, dict(zip(sources, widths, strict=True)), d_target, points)
    with torch.no_grad():
        _fill(dictionary, raws)
    return dictionary.requires_grad_(False).eval()


def record_of(dictionary: Dictionary, facts: Facts, origin: dict[str, Any]) -> DictionaryRecord:
    """What is known of a dictionary that was trained elsewhere: ``origin`` stands in for its train job."""
    return DictionaryRecord(
        spec=dictionary.spec,
        d_source=dictionary.d_source,
        d_target=dictionary.d_target,
        scales=dictionary.scales,
        store_fingerprint="",
        table_fingerprint="",
        model={"path": facts.model} if facts.model else {},
        train_spec={"imported": origin},
        steps=0,
        tokens=0,
        versions=versions(),
    )


def _outs(raws: Sequence[RawDictionary]) -> list[int]:
    return [raw.d_out for raw in raws]


def _activation(raw: RawDictionary) -> dict[str, Any]:
    k = min(max(raw.k, 1), raw.num_latents)
    match raw.kind:
        case "topk":
            return {"kind": "topk", "k": k}
        case "threshold" if raw.group_sizes:
            ends = [sum(raw.group_sizes[: index + 1]) for index in range(len(raw.group_sizes))]
            return {"kind": "matryoshka_batch_topk", "k": k, "prefixes": [end / raw.num_latents for end in ends]}
        case "threshold":
            return {"kind": "batch_topk", "k": k}
        case "gated" | "jumprelu" as kind:
            return {"kind": kind}
    return {"kind": "relu_l1"}


def _fill(dictionary: Dictionary, raws: Sequence[RawDictionary]) -> None:
    first = column = 0
    for raw, width in zip(raws, dictionary.d_target.values(), strict=True):
        latents = slice(first, first + raw.num_latents)
        sources = slice(0, raw.d_in) if len(raws) == 1 else slice(column, column + raw.d_in)
        targets = slice(column, column + raw.decoder.shape[1])
        dictionary.encoder[latents, sources] = raw.encoder
        dictionary.b_enc[latents] = raw.b_enc
        dictionary.decoder[latents, targets] = raw.decoder
        dictionary.b_dec[column : column + width] = raw.b_dec
        if dictionary.skip is not None and raw.skip is not None:
            dictionary.skip[targets, sources] = raw.skip
        _fill_activation(dictionary, raw, latents)
        first, column = latents.stop, column + width


def _fill_activation(dictionary: Dictionary, raw: RawDictionary, latents: slice) -> None:
    state: dict[str, torch.Tensor] = dict(dictionary.activation.state_dict(keep_vars=True))
    if raw.kind == "threshold":
        assert raw.threshold is not None
        state["threshold"].fill_(float(raw.threshold[0]))
    elif raw.kind == "jumprelu":
        assert raw.threshold is not None
        state["log_threshold"][latents] = raw.threshold.log()
    elif raw.kind == "gated":
        assert raw.r_mag is not None
        assert raw.b_mag is not None
        state["r_mag"][latents] = raw.r_mag
        state["b_mag"][latents] = raw.b_mag
