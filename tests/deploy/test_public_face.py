"""``import headworks``: what users write in a notebook."""

from __future__ import annotations

import inspect
from importlib import metadata
from pathlib import Path

import pytest

import headworks
from schemas.errors import MissingError
from schemas.pipeline import PipelineSpec

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


def test_everything_public_is_there_and_described() -> None:
    for name in headworks.__all__:
        assert name == "__version__" or inspect.getdoc(getattr(headworks, name))
    assert headworks.__version__ == metadata.version("headworks")


def test_specs_load_with_overrides() -> None:
    job = headworks.load_job(QUICKSTART, ["name=mine"])
    assert isinstance(job, PipelineSpec)
    assert job.name == "mine"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        headworks.open_store(str(tmp_path / "store"))
    with pytest.raises(MissingError):
        headworks.load_dictionary(str(tmp_path / "sae"))
