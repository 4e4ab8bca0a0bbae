"""A plan of a circuit job counts what the job then computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.circuits.circuit import find_circuit
from pipeline.circuits.network import MaskedNetwork
from pipeline.circuits.tasks.pairs import Pairs
from pipeline.planning.jobs import plan
from pipeline.tokens.tokenizer import Tokenizer
from schemas.circuit import CircuitSpec
from schemas.pipeline import PipelineSpec
from schemas.plan import PlanAssumptions, Rates


def test_passes_are_at_most_those_planned_and_not_far_below(
    planted: Path, network: MaskedNetwork, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = CircuitSpec.model_validate(
        {
            "model": {"path": str(planted)}, "ablation": "zero", "tasks": ["single_double_quote"], "nonsense": False,
            "task": {"pairs": 64, "held_out_pairs": 32}, "mask": {"steps": 12, "batch_pairs": 8},
            "output": str(tmp_path / "circuits"),
        }
    )  # fmt: skip
    (found,) = plan(spec, PlanAssumptions(rates=Rates(flop_per_s=1e9))).jobs
    assert found.circuit is not None
    assert (found.circuit.searches, found.circuit.nodes, found.circuit.steps) == (1, network.nodes.number, 12)
    assert found.circuit.hours == found.circuit.flop / 1e9 / 3600
    assert not Path(spec.output).exists()

    seen = {True: 0, False: 0}
    margins = MaskedNetwork.margins

    def counted(self: MaskedNetwork, pairs: Pairs, gates: object = None) -> object:
        # Attribution, whose gates are all open, has a pass over the pairs besides, which is not planned.
        seen[getattr(gates, "requires_grad", False)] += pairs.token_ids.numel()
        return margins(self, pairs, gates)  # type: ignore[arg-type]

    monkeypatch.setattr(MaskedNetwork, "margins", counted)
    find_circuit(spec.model_copy(update={"attribution": False}), network, tokenizer, "single_double_quote", 0, _quiet)
    assert 0.9 * found.circuit.tokens < seen[True] <= found.circuit.tokens
    (alone,) = plan(spec.model_copy(update={"attribution": False}), PlanAssumptions()).jobs
    assert alone.circuit is not None
    assert alone.circuit.hours is None
    assert 0.5 * alone.circuit.measuring_tokens < seen[False] <= alone.circuit.measuring_tokens


def test_a_model_that_is_yet_to_be_trained_is_planned_with_its_circuits(tmp_path: Path) -> None:
    text = {
        "corpus": {"format": "grammar", "grammar": {"kind": "python_templates"}, "num_documents": 200},
        "packing": {"mode": "packed", "context_length": 32},
    }
    model = {
        "kind": "train_model", "name": "model", "network": {"layers": 1, "d_model": 16, "heads": 2}, "tokens": text,
        "tokenizer": {"kind": "byte_pairs", "vocab_size": 160, "alphabet": "seen"},
        "steps": 2, "batch_tokens": 64, "snapshots": [0],
        "output": str(tmp_path / "model"),
    }  # fmt: skip
    search = {
        "kind": "circuit", "name": "search", "model": {"path": "${model}"}, "ablation": "zero",
        "tasks": ["for_while", "single_double_quote"], "nonsense": False, "output": str(tmp_path / "circuits"),
    }  # fmt: skip
    job = PipelineSpec.model_validate({"jobs": [model, search], "output": str(tmp_path)})
    *_, found = plan(job, PlanAssumptions()).jobs
    assert found.circuit is not None
    assert found.circuit.nodes == 7 * 16 + 64
    # 160 tokens hold no quote together with its bracket.
    assert (found.circuit.searches, "cannot pose single_double_quote" in found.notes[0]) == (1, True)


def test_another_model_is_said_not_to_be_planned(tmp_path: Path) -> None:
    spec = CircuitSpec.model_validate(
        {"model": {"path": str(tmp_path)}, "ablation": "zero", "output": str(tmp_path / "circuits")}
    )
    (found,) = plan(spec, PlanAssumptions()).jobs
    assert found.circuit is None
    assert "is not the folder of a decoder" in found.notes[0]


def _quiet(done: int, total: int) -> None:
    """Of progress nothing is shown."""
