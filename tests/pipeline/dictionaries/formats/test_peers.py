"""The other libraries themselves load what was exported and compute what our dictionaries compute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parent))
from foreign_cases import ACTIVATIONS, answers, layered, make, rows

from pipeline.dictionaries.folder import read_record
from pipeline.dictionaries.formats.exchange import export

ROOT = Path(__file__).parents[4]
PEERS = ROOT / ".venv-peers/bin/python"
SCRIPT = Path(__file__).with_name("peers.py")
PACKAGES = {
    "saelens": "sae_lens", "sparsify": "sparsify", "dictionary_learning": "dictionary_learning",
    "circuit_tracer": "circuit_tracer",
}  # fmt: skip
OUT = "blocks.1.hook_mlp_out"

CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "saelens": [
        *[(activation, {}) for activation in ACTIVATIONS],
        *[(activation, {"targets": [OUT], "skip": skip}) for activation in ("relu", "jumprelu", "batch_topk")
          for skip in (False, True)],
    ],
    "sparsify": [("topk", {}), ("topk", {"targets": [OUT]}), ("topk", {"targets": [OUT], "skip": True})],
    "dictionary_learning": [(activation, {}) for activation in ACTIVATIONS],
    "circuit_tracer": [
        *[(activation, {"groups": "per_layer", "skip": skip}) for activation in ("relu", "jumprelu")
          for skip in (False, True)],
        *[(activation, {"groups": "cross_layer"}) for activation in ("relu", "jumprelu", "batch_topk")],
    ],
}  # fmt: skip


def _installed(format_name: str) -> bool:
    found = (ROOT / ".venv-peers/lib").glob(f"python3*/site-packages/{PACKAGES[format_name]}")
    return PEERS.exists() and any(found)


@dataclass(frozen=True)
class Case:
    """A dictionary of ours, and its export of the same name."""

    name: str
    format_name: str
    url: str
    sources: list[str]
    targets: list[str]


@dataclass(frozen=True)
class Computed:
    """What ours and theirs make of the same activations."""

    cases: list[Case]
    acts: dict[str, torch.Tensor]
    theirs: dict[str, torch.Tensor]


def _exported(folder: Path, format_name: Any) -> list[Case]:
    cases = []
    for number, (activation, fields) in enumerate(CASES[format_name]):
        name = f"{format_name}-{number}-{activation}"
        build = layered if format_name == "circuit_tracer" else make
        url = build(folder / "ours" / name, activation, seed=number, **fields)
        export(url, str(folder / name), format_name)
        spec = read_record(url).spec
        cases.append(Case(name, format_name, url, spec.sources, spec.target_points))
    return cases


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Computed:
    """All libraries in one process: most of its time goes into importing them."""
    folder = tmp_path_factory.mktemp("exchange")
    cases = [case for name in CASES if _installed(name) for case in _exported(folder, name)]
    acts = rows(sorted({point for case in cases for point in case.sources}))
    safetensors.torch.save_file(acts, folder / "acts.safetensors")
    listed = [[case.name, case.format_name, case.sources, case.targets] for case in cases]
    (folder / "cases.json").write_text(json.dumps(listed))
    done = subprocess.run(
        [str(PEERS), str(SCRIPT), str(folder)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Computed(cases, acts, safetensors.torch.load_file(folder / "answers.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("format_name", CASES)
def test_the_library_computes_the_same(format_name: str, request: pytest.FixtureRequest) -> None:
    if not _installed(format_name):
        pytest.skip(f"needs {PACKAGES[format_name]} in .venv-peers, see `make peers`")
    computed: Computed = request.getfixturevalue("computed")
    cases = [case for case in computed.cases if case.format_name == format_name]
    assert len(cases) == len(CASES[format_name])
    for case in cases:
        codes, values = answers(case.url, computed.acts)
        assert 0 < (codes > 0).double().mean() < 1
        torch.testing.assert_close(computed.theirs[f"{case.name}/codes"], codes, rtol=1e-5, atol=1e-5)
        for point in case.targets:
            torch.testing.assert_close(computed.theirs[f"{case.name}/{point}"], values[point], rtol=1e-5, atol=1e-5)
