"""The file of units that were given up, and the error that names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import JobError, ResourceError
from schemas.set_aside import SetAsideRecord
from workers.decisions import SetAside
from workers.set_aside import given_up

POISONED = SetAside(3, errors=3, deaths=0, cause="RuntimeError: shape", traceback="Traceback: shape")
DEADLY = SetAside(7, errors=1, deaths=3, cause="worker 4 died: killed", traceback="")


def test_the_file_lies_beside_the_summary_and_goes_when_nothing_is_set_aside(tmp_path: Path) -> None:
    output = str(tmp_path / "runs" / "store")
    place = tmp_path / "runs" / "store.set_aside.json"
    with given_up("collect", output) as units:
        units.add([POISONED, DEADLY], lambda unit: f"rows {unit * 10} on")
        with pytest.raises(JobError) as caught:
            units.require_none()
    message = str(caught.value)
    assert "2 units were set aside, everything else is committed" in message
    assert "unit 3 (rows 30 on): 3 errors, RuntimeError: shape" in message
    assert "unit 7 (rows 70 on): 1 errors and 3 deaths of workers, worker 4 died: killed" in message
    assert str(place) in message
    record = SetAsideRecord.model_validate_json(place.read_text())
    assert (record.job, record.output) == ("collect", output)
    assert [one.unit for one in record.units] == [3, 7]
    assert record.units[0].traceback == "Traceback: shape"
    with given_up("collect", output) as units:
        units.require_none()
    assert not place.exists()


def test_what_was_set_aside_before_another_error_is_kept_too(tmp_path: Path) -> None:
    def fail() -> None:
        with given_up("collect", str(tmp_path / "store")) as units:
            units.add([POISONED], str)
            raise ResourceError("the disk is full")

    with pytest.raises(ResourceError, match="full"):
        fail()
    assert (tmp_path / "store.set_aside.json").exists()


def test_a_run_that_never_set_anything_aside_writes_nothing(tmp_path: Path) -> None:
    with given_up("collect", str(tmp_path / "folder" / "store")) as units:
        units.require_none()
    assert list(tmp_path.iterdir()) == []
