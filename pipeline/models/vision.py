"""What a vision model sees of an image: reads its ``config.json`` and ``preprocessor_config.json``, yields the patches.

Fields of the corpus's spec go before what the model says; what neither says is asked for.
"""

from __future__ import annotations

from typing import Any, Literal

from pipeline.models.identity import check_spec
from pipeline.models.location import ModelLocation
from pipeline.tokens.images import require_crop
from pipeline.tokens.patches import ImageInput, PatchGrid
from schemas.corpus import ImagesCorpus
from schemas.errors import ModelError, SpecError
from schemas.model import ModelSpec

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which ``preprocessor_config.json`` has."""

_CLS = frozenset({"vit", "clip_vision_model", "dinov2", "vit_mae", "dinov2_with_registers", "dinov3_vit"})
_NO_SPECIALS = frozenset({"siglip_vision_model", "siglip2_vision_model"})
_REGISTERS = frozenset({"dinov2_with_registers", "dinov3_vit"})


def patch_grid(corpus: ImagesCorpus, model: ModelSpec) -> PatchGrid:
    """The rows of an image, and how it gets to the model.

    Raises:
        ModelError: the model is not of kind ``vision``. SpecError: a field that neither spec nor model has.
    """
    location = check_spec(model)
    if model.kind != "vision":
        raise ModelError(f"a corpus of images needs model.kind vision; {model.path!r} is of kind {model.kind!r}")
    config = _config(model, location)
    processor = _processor(model, location)
    fit = _fit(corpus, processor)
    size = corpus.size or _side(getattr(config, "image_size", 0))
    image = ImageInput(
        size=_known("size", size),
        patch_size=_known("patch_size", corpus.patch_size or _side(getattr(config, "patch_size", 0))),
        special_tokens=_specials(corpus, config),
        fit=fit,
        resized=0 if fit == "stretch" else corpus.resized or _shortest(processor) or size,
        resample=_resample(corpus, processor),
        mean=_channels("mean", corpus.mean or processor.get("image_mean")),
        std=_channels("std", corpus.std or processor.get("image_std")),
    )
    try:
        require_crop(image)
    except ValueError as error:
        raise SpecError(f"tokens.corpus: {error}") from error
    return PatchGrid(image)


def vision_config(config: Any) -> Any:
    """Of a model of text and images the part of the images."""
    return getattr(config, "vision_config", None) or config


def _config(model: ModelSpec, location: ModelLocation) -> Any:
    if location.kind == "python":
        return None
    from transformers import AutoConfig

    revision = {"revision": model.revision} if location.kind == "hub" else {}
    try:
        return vision_config(AutoConfig.from_pretrained(location.path, **revision))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {model.path!r} has no configuration that can be read: {error}") from error


def _processor(model: ModelSpec, location: ModelLocation) -> dict[str, Any]:
    """What ``preprocessor_config.json`` says; empty where there is none."""
    if location.kind == "python":
        return {}
    from transformers.image_processing_base import ImageProcessingMixin

    revision = {"revision": model.revision} if location.kind == "hub" else {}
    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(location.path, **revision)
    except OSError:
        return {}
    return dict(found)


def _specials(corpus: ImagesCorpus, config: Any) -> tuple[str, ...]:
    if corpus.special_tokens is not None:
        return tuple(corpus.special_tokens)
    kind = getattr(config, "model_type", "")
    if kind in _NO_SPECIALS:
        return ()
    if kind not in _CLS:
        raise SpecError(
            f"tokens.corpus.special_tokens: it is not known which rows of a {kind or 'python:'} model come before the "
            "patches; name them, for example [cls], or [] if there are none"
        )
    registers = int(getattr(config, "num_register_tokens", 0)) if kind in _REGISTERS else 0
    return ("cls", *(f"register_{index}" for index in range(1, registers + 1)))


def _fit(corpus: ImagesCorpus, processor: dict[str, Any]) -> Literal["crop", "stretch"]:
    if corpus.fit != "model":
        return corpus.fit
    return "crop" if processor.get("do_center_crop") or _shortest(processor) else "stretch"


def _shortest(processor: dict[str, Any]) -> int:
    size = processor.get("size")
    return int(size.get("shortest_edge", 0)) if isinstance(size, dict) else 0


def _resample(corpus: ImagesCorpus, processor: dict[str, Any]) -> str:
    if corpus.resample != "model":
        return corpus.resample
    found = _RESAMPLE.get(processor.get("resample", -1))
    if found is None:
        raise SpecError(_ask("resample", "for example bicubic"))
    return found


def _channels(field: str, values: Any) -> tuple[float, ...]:
    if not values or len(values) != 3:
        raise SpecError(_ask(field, "one number for each of red, green and blue"))
    return tuple(float(value) for value in values)


def _known(field: str, value: int) -> int:
    if value <= 0:
        raise SpecError(_ask(field, "in pixels"))
    return value


def _ask(field: str, what: str) -> str:
    return f"tokens.corpus.{field}: the model's files do not say it; give it, {what}"


def _side(value: Any) -> int:
    sides = set(value) if isinstance(value, list | tuple) else {value}
    return int(sides.pop()) if len(sides) == 1 else 0
