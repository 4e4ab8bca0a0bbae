"""The law of the folders, held by import-linter, and what it cannot see: what importing a module costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def loaded_by(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after the statement."""
    code = f"{statement}\nimport sys; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(answer.stdout.split())


def test_the_law_holds() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run([linter], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert answer.returncode == 0, answer.stdout


def test_opening_a_store_loads_neither_torch_nor_ray() -> None:
    assert not loaded_by("import pipeline.store.reader") & {"torch", "ray", "transformers"}


def test_the_public_face_is_light() -> None:
    assert not loaded_by("import headworks") & {"torch", "ray", "transformers", "zarr"}


def test_the_command_line_starts_light() -> None:
    assert not loaded_by("import deploy.cli") & {"torch", "ray", "transformers", "zarr"}


def test_specs_are_pure_data() -> None:
    assert not loaded_by("import schemas.pipeline") & {"torch", "ray", "zarr", "pyarrow", "fsspec", "yaml"}
