"""Which network a job runs."""

from __future__ import annotations

from typing import Annotated, Literal

from schemas.fields import JsonObject, Spec, Words
from schemas.reach import Reach

ModelPath = Annotated[str, Reach("model")]
"""See ``ModelSpec.path``."""

Revision = Annotated[str, Reach("revision")]
"""A branch, tag or commit on the Hub."""

Arguments = Annotated[JsonObject, Reach("arguments")]
"""JSON values for a ``python:`` callable."""


class ModelSpec(Spec):
    """A Hugging Face model, a GGUF file or an allowed ``torch.nn.Module``."""

    path: ModelPath
    """Hub name, local folder, ``FOLDER/FILE.gguf``, ``package:PACKAGE/FILE.gguf`` for a file inside an installed
    Python package, or ``python:module.attribute`` for a callable that returns a ``torch.nn.Module`` (only modules that
    the operator lists in ``HEADWORKS_ALLOWED_IMPORTS``)."""
    kind: Literal["causal_lm", "masked_lm", "encoder", "vision", "module"] = "causal_lm"
    """Which head the model carries. ``encoder``: none; of a model with encoder and decoder its encoder. ``vision``:
    none, and it takes images. Collection runs the head for gradients only; they and cross-entropy need
    ``causal_lm``."""
    revision: Revision = "main"
    """Git revision on the Hub; local models are identified by the digest of their weights."""
    dtype: Literal["bfloat16", "float16", "float32", "native"] = "bfloat16"
    """Compute precision. ``native``: bfloat16 where the processor has bfloat16 matrix units, else float32."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation; part of the fingerprint since it changes low bits."""
    device: Words = "auto"
    """``auto`` (CUDA if present), ``cpu``, ``cuda``. Not part of the fingerprint."""
    arguments: Arguments = {}
    """Keyword arguments (JSON values) for a ``python:`` callable; forbidden otherwise."""
