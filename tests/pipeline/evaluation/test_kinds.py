"""Every kind of dictionary through the whole evaluation: figures, spliced cross-entropy, features, report."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.evaluate import evaluate
from pipeline.training.engine import train
from pipeline.training.world import SingleWorld
from schemas.evaluate import EvaluateSpec
from schemas.train import TrainSpec

RESID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"
K = {"k": 8, "aux_k": 16}
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "topk": {"kind": "topk", "multi_k": 16, **K},
    "batch_topk": {"kind": "batch_topk", **K},
    "matryoshka": {"kind": "matryoshka_batch_topk", "prefixes": [0.25, 1.0], **K},
    "relu_l1": {"kind": "relu_l1", "l1_coefficient": 0.5},
    "unit_norm": {"kind": "relu_l1_unit_norm", "l1_coefficient": 0.3, "dead_after_tokens": 1000},
    "p_anneal": {"kind": "relu_p_anneal", "coefficient": 0.3},
    "tanh": {"kind": "relu_tanh", "penalty": {"kind": "tanh", "coefficient": 0.3}},
    "tanh_quad": {"kind": "relu_tanh", "penalty": {"kind": "tanh_quad", "coefficient": 0.05, "frequency": 0.1}},
    "jumprelu": {"kind": "jumprelu", "penalty": {"kind": "tanh", "coefficient": 0.3}},
    "gated": {"kind": "gated", "l1_coefficient": 0.3},
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("sparse autoencoder", {"sources": [RESID], "tied": True, "activation": AUTOENCODERS["relu_l1"]}),
    "crosscoder": ("crosscoder", {"sources": [MLP_IN, MLP_OUT], "activation": AUTOENCODERS["batch_topk"]}),
    "target_gates": (
        "crosscoder",
        {"sources": [MLP_IN, MLP_OUT], "activation": {**AUTOENCODERS["jumprelu"], "gate": "per_target"}},
    ),
    "skip": ("skip transcoder", {"sources": [MLP_IN], "targets": [MLP_OUT], "skip": True}),
    "cross_layer": (
        "cross-layer transcoder",
        {"sources": [MLP_IN, MLP_OUT], "targets": [MLP_OUT, RESID], "groups": "cross_layer"},
    ),
}


@pytest.mark.slow
def test_every_kind_is_evaluated(flow: Any, tmp_path: Path) -> None:
    wanted = {name: {"sources": [RESID], "activation": activation} for name, activation in AUTOENCODERS.items()}
    wanted |= {name: {"activation": AUTOENCODERS["topk"], **fields} for name, (_, fields) in OTHERS.items()}
    job = TrainSpec.model_validate(
        {
            "store": flow.store,
            "dictionaries": [{"name": name, "num_latents": 96, **fields} for name, fields in wanted.items()],
            "batch_rows": 256,
            "num_tokens": 16_000,
            "trackers": [],
            "output": f"{tmp_path}/dictionaries",
        }
    )
    train(job, SingleWorld())
    spec = EvaluateSpec.model_validate(
        {
            "store": flow.store,
            "dictionaries": job.output,
            "max_rows": 2000,
            "cross_entropy_tokens": 200,
            "report": {"num_features": 4, "contexts_per_feature": 2, "context_tokens": 8, "rows": 1000},
            "output": f"{tmp_path}/evaluation",
        }
    )
    result = evaluate(spec)["dictionaries"]
    assert list(result) == list(wanted)
    for name, figures in result.items():
        assert figures["kind"] == (OTHERS[name][0] if name in OTHERS else "sparse autoencoder")
        assert 0 < figures["fvu"] < 0.9, (name, figures["fvu"])
        assert 0 < figures["l0"] < 96
        assert figures["ce_recovered"] > 0.1, (name, figures["ce_recovered"])
        assert figures["splice_check"] <= 1e-5
        table = csv.DictReader(io.StringIO((tmp_path / "evaluation" / f"{name}.latents.csv").read_text()))
        assert sum(int(row["fired"]) > 0 for row in table) == 96 - figures["dead_latents"]
    # The gates for each target are one more.
    assert len({figures["activation"] for figures in result.values()}) == len(AUTOENCODERS) + 1
    page = (tmp_path / "evaluation" / "report.html").read_text()
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])["dictionaries"]
    assert [one["name"] for one in shown] == list(wanted)
    assert all(one["features"] for one in shown)
