"""The explanation that single tokens give: for each token how often and how strongly the latent is on (Cunningham et
al. 2023, arXiv 2309.08600, with a table in place of a language model).

    rate_v = (active_v + r) / (n_v + 1)      share of a token's occurrences at which the latent is on
    mean_v = (total_v + m) / (n_v + 1)       mean value there, zeros included

r and m are the same over all tokens: a token that was seen once says little, one that was never seen nothing.
Thresholds are fitted on the odd windows with the rates of the even ones, or rare tokens would look certain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.evaluation.features import Pieces
from pipeline.interpretation.examples import Evidence
from pipeline.interpretation.explanation import Explanation
from pipeline.interpretation.lookup import Floats, fitted
from pipeline.interpretation.windows import Windows
from schemas.interpret import TokenExplainer


@dataclass(frozen=True)
class TokenStatistics:
    """Of one latent on the eligible rows of windows, each [V]."""

    occurrences: Floats
    active: Floats
    total: Floats

    @staticmethod
    def of(windows: Windows, value_T: Floats, vocab_size: int) -> TokenStatistics:
        """Counted."""
        ids, values = windows.token_id[windows.eligible], value_T[windows.eligible]
        counted = [np.bincount(ids, weights=weights, minlength=vocab_size) for weights in (None, values > 0, values)]
        return TokenStatistics(*(one.astype(np.float32) for one in counted))

    @property
    def rate(self) -> Floats:
        """[V]."""
        return _shrunk(self.active, self.occurrences)

    @property
    def mean(self) -> Floats:
        """[V]."""
        return _shrunk(self.total, self.occurrences)


class TokenTableExplainer:
    """See above."""

    def __init__(self, spec: TokenExplainer, pieces: Pieces, vocab_size: int) -> None:
        self._spec = spec
        self._pieces = pieces
        self._vocab_size = vocab_size

    def explain(self, evidence: Evidence) -> Explanation:
        """From all windows of the evidence."""
        windows, value_T = evidence.windows, evidence.value
        found = TokenStatistics.of(windows, value_T, self._vocab_size)
        is_odd_W = np.arange(len(windows)) % 2 == 1
        is_odd_T = np.repeat(is_odd_W, np.diff(windows.edges))
        even = TokenStatistics.of(windows.taken(~is_odd_W), value_T[~is_odd_T], self._vocab_size)
        judge = fitted(even.rate, even.mean, windows.taken(is_odd_W), value_T[is_odd_T], offset=0)
        text, tokens = self._named(found)
        return Explanation(text, replace(judge, scores=found.rate, expected=found.mean), tokens)

    def _named(self, found: TokenStatistics) -> tuple[str, list[dict[str, object]]]:
        # Tokens that were seen once are named only where nothing else is known: theirs is one lucky value.
        repeated = np.where(found.occurrences > 1, found.mean * (found.active > 0), 0)
        ranked = repeated if repeated.any() else found.mean * (found.active > 0)
        best = [int(token) for token in np.argsort(-ranked, kind="stable")[: self._spec.num_tokens] if ranked[token]]
        tokens: list[dict[str, object]] = [
            {
                "text": piece,
                "mean": _short(found.total[token] / found.occurrences[token]),
                "active": int(found.active[token]),
                "occurrences": int(found.occurrences[token]),
            }
            for token, piece in zip(best, self._pieces(best), strict=True)
        ]
        listed = ", ".join(f"{one['text']!r} ({one['active']} of {one['occurrences']})" for one in tokens)
        carried = float(found.total[best].sum() / max(float(found.total.sum()), 1e-30))
        return f"on for {listed or 'no token'}: {carried:.0%} of its activation", tokens


def _shrunk(sum_V: Floats, count_V: Floats) -> Floats:
    overall = sum_V.sum() / max(float(count_V.sum()), 1.0)
    shrunk: Floats = (sum_V + overall) / (count_V + 1)
    return shrunk


def _short(value: float) -> float:
    return float(f"{value:.4g}")
