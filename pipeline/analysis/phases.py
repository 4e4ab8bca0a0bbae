"""How a snapshot predicts: its loss, and how near its predictions are to the corpus' unigrams and bigrams (Ge et al.
2025, arXiv 2509.17196: the statistical phase, before features form).

    loss    mean -log q(b | context)
    to_uni  mean sum_b p(b)   (log p(b)   - log q(b | context))        KL(unigram frequencies || prediction)
    to_bi   mean sum_b p(b|a) (log p(b|a) - log q(b | context))        a the last token of the context

q prediction, p frequencies; means over the same predicted tokens, in nats.

B contexts, L context length, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.analysis.ngrams import Ngrams
from pipeline.models.load import LoadedModel
from schemas.errors import ModelError

LOGITS_BYTES = 64 << 20
"""Float64 predictions held at once."""


@dataclass(frozen=True)
class Phase:
    """Nats a token, see above."""

    loss: float
    to_unigram: float
    to_bigram: float


@torch.no_grad()
def phase_of(loaded: LoadedModel, contexts: Sequence[npt.NDArray[np.int32]], ngrams: Ngrams) -> Phase:
    """Of a model with its head on contexts of two tokens or more.

    Raises:
        ModelError: the model predicts fewer tokens than the corpus has.
    """
    p_V = torch.from_numpy(ngrams.unigram / ngrams.unigram.sum())
    negative_entropy = float(torch.xlogy(p_V, p_V).sum())
    loss = uni = bi = count = 0.0
    for ids_BL in _batches(contexts, len(ngrams.unigram)):
        module: Any = loaded.module
        logits = module(input_ids=ids_BL[:, :-1].to(loaded.device)).logits.flatten(0, 1)
        if logits.shape[1] < len(p_V):
            raise ModelError(
                f"{loaded.spec.path} predicts {logits.shape[1]} tokens, the corpus has ids up to {len(p_V) - 1}: it "
                "was collected with another tokenizer"
            )
        log_q = torch.log_softmax(logits.double().cpu(), dim=-1)[:, : len(p_V)]
        before, after = ids_BL[:, :-1].flatten(), ids_BL[:, 1:].flatten()
        loss -= float(log_q[torch.arange(len(after)), after].sum())
        uni += len(after) * negative_entropy - float((log_q @ p_V).sum())
        bi += _to_bigrams(log_q, before, ngrams)
        count += len(after)
    return Phase(loss / count, uni / count, bi / count)


def _to_bigrams(log_q: Tensor, before: Tensor, ngrams: Ngrams) -> float:
    """Summed over the rows."""
    total = 0.0
    for token in np.unique(before.numpy()).tolist():
        ids, shares = ngrams.following(token)
        if not len(ids):
            continue
        p = torch.from_numpy(shares)
        rows = log_q[before == token]
        total += len(rows) * float(torch.xlogy(p, p).sum()) - float((rows[:, torch.from_numpy(ids)] @ p).sum())
    return total


def _batches(contexts: Sequence[npt.NDArray[np.int32]], vocab_size: int) -> Iterator[Tensor]:
    """Contexts of one length together, int64 [B, L]."""
    by_length: defaultdict[int, list[npt.NDArray[np.int32]]] = defaultdict(list)
    for one in contexts:
        if len(one) > 1:
            by_length[len(one)].append(one)
    for length, several in sorted(by_length.items()):
        size = max(1, LOGITS_BYTES // (8 * vocab_size * length))
        for start in range(0, len(several), size):
            yield torch.from_numpy(np.stack(several[start : start + size]).astype(np.int64))
