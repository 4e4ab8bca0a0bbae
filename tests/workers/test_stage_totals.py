"""The seconds of all units together, and what the summary says of them."""

from __future__ import annotations

from pathlib import Path

from workers.collector import Receipt
from workers.decisions import UnitCommitted, WorkerDied
from workers.stage_totals import StageTotals

SECONDS = {"read": 0.1, "forward": 6.0, "copy": 0.2, "encode": 1.0, "write": 2.0, "commit": 0.5, "total": 12.0}
STALLS = {"stall_forward": 4.0, "stall_copy": 9.8, "stall_encode": 9.0, "stall_write": 8.0}


def test_the_summary_adds_up_the_units_of_every_worker(tmp_path: Path) -> None:
    totals = StageTotals()
    assert totals.words(str(tmp_path)) == ""
    assert totals.summary["binds"] == ""
    for unit in (0, 1):
        totals.note(UnitCommitted(unit, unit), Receipt(unit, 64, 1000, 0, {**SECONDS, **STALLS}))
    totals.note(WorkerDied(0, "killed"))
    assert totals.summary["seconds"]["forward"] == 12.0
    assert totals.summary["stalls"] == {"forward": 8.0, "copy": 19.6, "encode": 18.0, "write": 16.0}
    assert totals.summary["shares"] == {
        "compute": 0.6, "copy": 0.02, "encode": 0.1, "storage": 0.25, "tokens": 0.01,
    }  # fmt: skip
    assert totals.summary["binds"] == "compute"
    assert totals.words(str(tmp_path)).startswith("compute binds (in use: compute 60%,")


def test_slow_storage_is_called_by_what_it_is(tmp_path: Path) -> None:
    totals = StageTotals()
    slow = {**SECONDS, **STALLS, "write": 9.5}
    totals.note(UnitCommitted(0, 0), Receipt(0, 64, 1000, 0, slow))
    assert totals.summary["binds"] == "storage"
    assert totals.words(str(tmp_path)).startswith("the disk binds")
    assert totals.words("memory://far").startswith("the network binds")
