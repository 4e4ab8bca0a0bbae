"""The figures of an evaluation as plain data: what ``evaluation.json`` holds, and how each is defined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.analysis.crosscoder import crosscoder_figures
from pipeline.evaluation.cross_entropy import LARGEST_CHANGE, CrossEntropy
from pipeline.evaluation.reconstruction import Reconstruction, density_histogram
from pipeline.evaluation.trained import Trained
from schemas.train import RowFilter

DEFINITIONS = {
    "FVU": "Fraction of variance unexplained: the sum of squared errors over the sum of squared distances to the mean, "
    "the mean taken over all evaluation rows, in unscaled activation space. 0 is perfect, 1 no better than the mean.",
    "L0": "Mean number of latents above zero in a row.",
    "Dead share": "Share of the latents that fired on none of the evaluation rows. On few rows, rare latents count as "
    "dead too.",
    "Density": "Share of the evaluation rows on which a latent fired, as log10.",
    "Cross-entropy recovered": "(L_ablation - L_spliced) / (L_ablation - L_clean) over held-out contexts, in float32. "
    "Spliced: the target's activations are replaced by the dictionary's prediction from the sources of the same "
    "forward. Ablated: replaced by their mean over the evaluation rows, or by zero. All tokens but the first of a "
    "context are predicted and count.",
    "Onset, peak": "Of a latent with several targets: the first target at which its decoder norm exceeds half of its "
    "greatest, and the earliest within 1 % of the greatest. The peak of a flat course is arbitrary.",
    "Feature dimensionality": "Sum over latents of |W_i|^2 / sum_j (W_i/|W_i| . W_j)^2; at most the width.",
    "Rows left out": "Rows that training left out are in none of the reconstruction figures; in every cross-entropy "
    "they keep their true activations.",
    "Splice check": "Change of the cross-entropy when x is replaced by x_hat + (x - x_hat), which must change nothing; "
    f"above {LARGEST_CHANGE:.0e} nats a token the evaluation is refused.",
}


SNAPSHOT_DEFINITIONS = {
    "KL to unigrams, bigrams": "Mean divergence of a snapshot's predictions from the frequencies of tokens, and of "
    "tokens behind the last one, in the whole store, in nats a token: KL(frequencies || prediction), not smoothed. "
    "Their entropies are what a model of that order can reach on this text.",
    "Kinds of latents": "Token identity: 90 % of a latent's activation is on one token. Previous token: 90 % behind "
    "one token. Induction: 80 % where the last tokens came together earlier in the context, on many tokens. Rare: on "
    "fewer than 10 rows. Chance: that one of this kind peaks, or begins, later than one of token identity, ties "
    "counted half; p by the Mann-Whitney test.",
}


def figures_of(
    trained: Trained, measured: Reconstruction, entropy: CrossEntropy | None, interpretation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """One dictionary's entry; the ``ce_`` figures, ``splice_check`` and ``interpretation`` are None where they were not
    asked for."""
    spec = trained.record.spec
    edges, counts = density_histogram(measured.density, measured.num_rows)
    return {
        "kind": trained.kind,
        "sources": list(spec.sources),
        "targets": spec.target_points,
        "num_latents": spec.num_latents,
        "activation": spec.activation.label,
        "trained_rows": trained.record.tokens,
        "trained_steps": trained.record.steps,
        "rows": measured.num_rows,
        "excluded": excluded_text(trained.train_spec.rows),
        "fvu": measured.fvu,
        "fvu_of_target": measured.fvu_of_target,
        "l0": measured.l0,
        "dead_share": measured.dead_share,
        "dead_latents": int((measured.fired == 0).sum()),
        "density_histogram": {"log10_edges": edges, "counts": counts},
        "ce_clean": entropy and entropy.clean,
        "ce_spliced": entropy and entropy.spliced,
        "ce_mean": entropy and entropy.mean,
        "ce_zero": entropy and entropy.zero,
        "ce_recovered": entropy and entropy.recovered,
        "ce_recovered_zero": entropy and entropy.recovered_zero,
        "ce_tokens": entropy and entropy.num_tokens,
        "ce_contexts": entropy and entropy.num_contexts,
        "splice_check": entropy and entropy.splice_check,
        "interpretation": interpretation,
        "crosscoder": crosscoder_figures(trained.dictionary),
    }


def latents_table(measured: Reconstruction) -> str:
    """CSV, a line for each latent: rows it fired on, log10 density (empty: never), mean while active, largest value."""
    lines = ["latent,fired,log10_density,mean_active,max"]
    for latent, fired in enumerate(measured.fired.tolist()):
        if fired:
            density = np.log10(fired / measured.num_rows)
            mean = measured.total[latent] / fired
            lines.append(f"{latent},{fired},{density:.4f},{mean:.6g},{measured.peak[latent]:.6g}")
        else:
            lines.append(f"{latent},0,,0,0")
    return "\n".join(lines) + "\n"


def excluded_text(rows: RowFilter) -> str:
    """What a row filter leaves out, for people."""
    parts = ["special tokens"] if rows.exclude_specials else []
    if rows.exclude_positions:
        parts.append(f"position {', '.join(map(str, rows.exclude_positions))} of each context")
    if rows.max_norm_multiple > 0:
        parts.append(f"norms over {rows.max_norm_multiple:g} times the median")
    return "; ".join(parts) or "nothing"
