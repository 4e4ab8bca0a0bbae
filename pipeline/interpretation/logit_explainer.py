"""The explanation that a latent's decoder row gives: which tokens it makes likely, on its direct way to the logits.

    logits_V = W_U (g * d)      d decoder row in activation space, g gain of the last norm, less its mean over V,
                                divided by its standard deviation

What lies between the hook point and the head is left out, so it says most in the last blocks. The judge looks whether
the tokens that come next are promoted ones.

F latents, D width of the stream, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.evaluation.features import Pieces
from pipeline.evaluation.trained import Trained
from pipeline.interpretation.examples import Evidence
from pipeline.interpretation.explanation import Explanation
from pipeline.interpretation.lookup import fitted
from pipeline.models.load import LoadedModel
from schemas.errors import ModelError, SpecError
from schemas.interpret import LogitExplainer

_IN_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


class DirectLogitExplainer:
    """See above."""

    def __init__(self, spec: LogitExplainer, pieces: Pieces, logits: dict[int, npt.NDArray[np.float32]]) -> None:
        """``logits``: latent -> [V]."""
        self._spec = spec
        self._pieces = pieces
        self._logits = logits

    def explain(self, evidence: Evidence) -> Explanation:
        """From the weights; the evidence gives the thresholds of the judge."""
        scores = self._logits[evidence.latent]
        # Expected values are not known; below the mean of the vocabulary nothing is expected.
        judge = fitted(scores, np.maximum(scores, 0), evidence.windows, evidence.value, offset=1)
        order = np.argsort(-scores, kind="stable")
        most, least = (self._named(scores, ids) for ids in (order, order[::-1]))
        text = f"makes {_listed(most)} likely, {_listed(least)} unlikely"
        return Explanation(text, judge, most)

    def _named(self, scores: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        chosen = [int(token) for token in ids[: self._spec.num_tokens]]
        texts = self._pieces(chosen)
        return [
            {"text": text, "logit": round(float(scores[token]), 3)} for token, text in zip(chosen, texts, strict=True)
        ]


def target_in_stream(trained: Trained) -> str:
    """The first target that is in the residual stream.

    Raises:
        SpecError: there is none.
    """
    for target in trained.record.d_target:
        if target.rpartition(".")[2] in _IN_STREAM:
            return target
    raise SpecError(
        f"dictionary {trained.name!r} writes {list(trained.record.d_target)}; explainer logits needs a target in the "
        f"residual stream ({', '.join(_IN_STREAM)}): use explainer tokens"
    )


@torch.no_grad()
def direct_logits(
    trained: Trained, latents: Sequence[int], loaded: LoadedModel, *, block: int = 64
) -> dict[int, npt.NDArray[np.float32]]:
    """latent -> logits over the vocabulary as above, [V].

    Raises:
        SpecError: no target is in the residual stream.
        ModelError: the model has no unembedding of the stream's width.
    """
    target = target_in_stream(trained)
    parts = torch.split(trained.dictionary.decoder.detach(), list(trained.record.d_target.values()), dim=1)
    rows_FD = parts[list(trained.record.d_target).index(target)].float().cpu()
    unembedding_VD = _unembedding(loaded, rows_FD.shape[1])
    norm = last_norm(loaded, rows_FD.shape[1])
    found: dict[int, npt.NDArray[np.float32]] = {}
    for start in range(0, len(latents), block):
        chosen = list(latents[start : start + block])
        logits_FV = through_norm(rows_FD[chosen], norm) @ unembedding_VD.T
        logits_FV -= logits_FV.mean(dim=1, keepdim=True)
        logits_FV /= logits_FV.std(dim=1, keepdim=True).clamp(min=1e-12)
        found |= {latent: row.numpy() for latent, row in zip(chosen, logits_FV, strict=True)}
    return found


def _unembedding(loaded: LoadedModel, width: int) -> Tensor:
    head = getattr(loaded.module, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    if weight is None or weight.ndim != 2 or weight.shape[1] != width:
        raise ModelError(
            f"{loaded.spec.path}: explainer logits needs an unembedding of width {width}, found "
            f"{None if weight is None else list(weight.shape)}: use explainer tokens"
        )
    found: Tensor = weight.detach().float().cpu()
    return found


def last_norm(loaded: LoadedModel, width: int) -> nn.Module | None:
    """The norm before the unembedding; None without one. Norms behind the blocks are the backbone's own children with
    a gain for each channel."""
    norms = [
        child
        for child in loaded.backbone.children()
        if getattr(getattr(child, "weight", None), "shape", None) == torch.Size([width])
    ]
    return norms[-1] if norms else None


def through_norm(rows_FD: Tensor, norm: nn.Module | None) -> Tensor:
    """The linear part of a LayerNorm or RMSNorm: gain, and centring. What it makes of ones tells which it is, and the
    gain, which is not the weight everywhere (Gemma's is 1 + weight)."""
    if norm is None:
        return rows_FD
    weight: Any = norm.weight
    ones = torch.ones_like(weight)[None]
    # Biases cancel.
    gain_D: Tensor = (norm(ones) - norm(-ones))[0].detach().float().cpu() / 2
    if gain_D.any():
        return rows_FD * gain_D
    # It takes the mean off, so that of ones nothing is left.
    scaled: Tensor = (rows_FD - rows_FD.mean(dim=1, keepdim=True)) * weight.detach().float().cpu()
    return scaled


def _listed(tokens: Sequence[dict[str, Any]]) -> str:
    return ", ".join(repr(one["text"]) for one in tokens)
