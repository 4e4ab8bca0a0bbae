"""What a person should know of the hook points of a collection before it runs: a pure function of spec and sketch."""

from __future__ import annotations

from pipeline.models.family import PATTERN
from pipeline.models.gradients import LOSS
from pipeline.models.hooks import is_gradient, is_pattern
from pipeline.planning.model import Sketch
from pipeline.planning.sizes import row_bytes
from schemas.collect import CollectSpec
from schemas.fields import about_bytes

_NEURONS = ".mlp.hook_post"


def source_notes(spec: CollectSpec, forward: Sketch, length: int = 0) -> list[str]:
    """One sentence for each kind of hook point that takes more than it seems, or stores badly.

    ``length``: the greatest length of a context; 0: that of the packing.
    """
    notes = []
    if patterns := [hook for hook in forward.widths if is_pattern(hook)]:
        notes.append(_of_patterns(spec, forward, patterns, length or spec.tokens.packing.context_length))
    if gradients := [hook for hook in forward.widths if is_gradient(hook)]:
        kept = about_bytes(forward.kept_bytes_per_token * spec.batch_tokens)
        notes.append(
            f"gradients ({len(gradients)} hook points) are of the {LOSS}: every batch runs through the whole model and "
            f"back, and keeps about {kept} beside the weights for that; fewer batch_tokens keep less"
        )
        if spec.storage.dtype == "float16":
            notes.append("gradients are small: float16 has no numbers below 6e-8; bfloat16 has the range of float32")
    return [*notes, *_of_neurons(spec, forward)]


def _of_patterns(spec: CollectSpec, forward: Sketch, patterns: list[str], length: int) -> str:
    size = sum(row_bytes(spec.storage, forward.widths[hook]) for hook in patterns)
    heads = sorted({forward.widths[hook] // length for hook in patterns})
    return (
        f"attention patterns ({len(patterns)} of {PATTERN}) take {about_bytes(size)} a token: a column for each of "
        f"{' or '.join(map(str, heads))} heads and each of {length} tokens of the context, so that a context takes the "
        "square of its length; fewer layers and shorter contexts make them small, and codec sparse leaves the zeros of "
        "causal attention out"
    )


def _of_neurons(spec: CollectSpec, forward: Sketch) -> list[str]:
    neurons = [hook for hook in forward.widths if hook.endswith(_NEURONS)]
    if not neurons or not forward.activation:
        return []
    is_zero = "relu" in forward.activation.replace("leaky_relu", "") or forward.activation == "AbsTopK"
    if spec.storage.codec == "sparse" and not is_zero:
        return [
            f"neurons behind {forward.activation} are hardly ever exactly zero: codec sparse stores them as codec none "
            "does; bf16 or zstd make them smaller"
        ]
    if spec.storage.codec == "none" and spec.storage.layout == "zarr" and is_zero:
        return [f"neurons behind {forward.activation} are mostly exact zeros: codec sparse leaves them out"]
    return []
