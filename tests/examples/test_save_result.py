"""What is kept of a run."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def save_result() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "save_result.py"))


def test_parts_of_several_files_with_few_digits(tmp_path: Path, save_result: dict[str, Any]) -> None:
    (tmp_path / "summary.json").write_text('{"jobs": {"a": {"seconds": 12.3456789}}}')
    (tmp_path / "scores.json").write_text('{"mean": 0.123456789, "latents": [1, 2], "deep": {"latents": 3, "n": 4}}')
    taken = {
        "seconds": save_result["part"](f"{tmp_path}/summary.json:jobs.a.seconds"),
        "scores": save_result["part"](f"{tmp_path}/scores.json"),
    }
    file = save_result["save"]("study", taken, folder=tmp_path, without=frozenset({"latents"}))
    assert json.loads(file.read_text()) == {"seconds": 12.346, "scores": {"mean": 0.12346, "deep": {"n": 4}}}


def test_a_key_that_is_not_there_ends_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    command = [sys.executable, str(EXAMPLES / "save_result.py"), "study", f"x={tmp_path}/a.json:missing"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("file", sorted((EXAMPLES / "results").glob("*.json")), ids=lambda file: file.stem)
def test_results_that_are_kept_are_small_and_have_a_section_and_a_target(file: Path) -> None:
    assert file.stat().st_size < 30_000
    json.loads(file.read_text())
    docs = "".join(each.read_text() for each in (EXAMPLES.parent / "docs").glob("*.md"))
    assert f"results/{file.name}" in docs
    assert f"\nstudy-{file.stem.replace('_', '-')}:" in (EXAMPLES.parent / "Makefile").read_text()
