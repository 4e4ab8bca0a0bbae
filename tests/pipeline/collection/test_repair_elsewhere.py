"""Repair on other hardware, where the model's low bits differ, and repair that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_job import HOOKS, built_table, small_spec

from pipeline.collection.prepare import prepare
from pipeline.collection.repair import repair
from pipeline.collection.spot_check import spot_check
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.verification import inspect
from pipeline.store.writer import StoreWriter

SCRIPT = Path(__file__).parent / "interrupted_repair.py"
DAMAGED = f"activations/{HOOKS[0]}/c/1/0"


@pytest.fixture(scope="module")
def here(model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """As this machine collects it: three units of two hook points."""
    spec = small_spec(model, corpus, tmp_path_factory.mktemp("here") / "store", tokens={"max_tokens": 192})
    (one,) = prepare(spec, built_table(spec))
    collector = UnitCollector.open(one.of)
    for _ in collect_units(collector, one.units):
        pass
    collector.writer.finish()
    return Store.open(spec.output)


def elsewhere(here: Store, url: Path, changed: np.uint16, units: set[int]) -> Path:
    """The same store as another machine would have collected it: every seventh word of some units differs."""
    (pass_,) = here.passes
    writer = StoreWriter.open(str(url), here.record, here.passes[pass_], num_rows=here.num_rows)
    for unit in range(here.num_units):
        start, stop = writer.unit_rows(unit)
        arrays = {hook: here.read_rows(hook, start, stop).copy() for hook in HOOKS}
        for words in arrays.values():
            words.reshape(-1)[::7] ^= changed if unit in units else np.uint16(0)
        tokens = here.tokens(start, stop)
        writer.write_unit(unit, arrays, tokens, worker="elsewhere", attempt=0, seconds={})
    writer.finish()
    return url


def content(folder: Path) -> dict[str, Any]:
    """Every file, ledger entries without what is for people, leases and interrupted writes left out."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    said = ("worker", "attempt", "seconds", "crc32c")
    return {
        key: {name: value for name, value in json.loads(data).items() if name not in said}
        if key.startswith("ledger/")
        else data
        for key, data in files.items()
        if not key.startswith("leases/") and not key.endswith(".partial")
    }


def test_low_bits_of_other_hardware_replace_object_entry_and_manifest(here: Store, tmp_path: Path) -> None:
    folder = elsewhere(here, tmp_path / "store", np.uint16(1), {0, 1, 2})
    before = content(folder)
    (folder / DAMAGED).unlink()
    done = repair(str(folder))
    assert done.remaining == []
    told = {action.key: action.what for action in done.actions}
    pass_ = next(iter(here.passes))
    assert {*told} == {DAMAGED, f"ledger/{pass_}/00000001.json", "manifest.json"}
    assert "low bits differ" in told[DAMAGED]
    assert inspect(Objects(str(folder)), is_deep=True).problems == []
    after = content(folder)
    assert {key for key in before if before[key] != after[key]} == {*told}, "nothing else was touched"
    rows = Store.open(str(folder)).read_rows(HOOKS[0], 64, 128)
    np.testing.assert_array_equal(rows, here.read_rows(HOOKS[0], 64, 128))
    entry = json.loads((folder / f"ledger/{pass_}/00000001.json").read_bytes())
    assert entry["worker"].startswith("repair@")
    assert Store.open(str(folder)).manifest.ledger_digest != here.manifest.ledger_digest  # type: ignore[union-attr]


def test_a_model_that_gives_other_numbers_is_not_believed(here: Store, tmp_path: Path) -> None:
    folder = elsewhere(here, tmp_path / "store", np.uint16(0x3F00), {0, 1, 2})
    (folder / DAMAGED).unlink()
    before = content(folder)
    done = repair(str(folder))
    (told,) = [action for action in done.actions if not action.is_possible]
    assert (told.key, "OTHER NUMBERS" in told.what) == (DAMAGED, True)
    assert [problem.key for problem in done.remaining] == [DAMAGED]
    assert content(folder) == before


def test_a_spot_check_tells_low_bits_from_other_numbers(here: Store, tmp_path: Path) -> None:
    assert all(one.is_equal for one in spot_check(here.url, 3))
    low = elsewhere(here, tmp_path / "low", np.uint16(1), {1})
    found = {one.unit: one for one in spot_check(str(low), 3)}
    assert {unit: one.is_equal for unit, one in found.items()} == {0: True, 1: False, 2: True}
    assert all(one.is_low_bits for one in found.values())
    assert 0 < found[1].greatest < 0.01
    gross = elsewhere(here, tmp_path / "gross", np.uint16(0x3F00), {1})
    assert {one.unit: one.is_low_bits for one in spot_check(str(gross), 3)} == {0: True, 1: False, 2: True}


def test_a_spot_check_draws_by_its_seed(here: Store) -> None:
    drawn = [[one.unit for one in spot_check(here.url, 1, seed=seed)] for seed in (0, 0, *range(1, 8))]
    assert drawn[0] == drawn[1]
    assert len({tuple(units) for units in drawn}) == 3
    assert len([*spot_check(here.url, 100)]) == 3 * len(HOOKS), "no more than there are"


def test_a_spot_check_needs_no_token_table(here: Store, tmp_path: Path) -> None:
    found = [*spot_check(here.url, 100, tokens=str(tmp_path / "nowhere"))]
    assert {one.unit for one in found} == {0, 1}, "the last context may go on behind the last row"
    assert all(one.is_equal for one in found)


@pytest.mark.parametrize("step", [pytest.param(5, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)])
def test_killed_anywhere_a_repair_can_be_repeated(here: Store, tmp_path: Path, step: int) -> None:
    """Low bits differ, so that object, ledger entry and manifest must change together, and an entry is lost."""
    folder = elsewhere(here, tmp_path / "damaged", np.uint16(1), {0, 1, 2})
    (folder / DAMAGED).unlink()
    (pass_,) = here.passes
    (folder / f"ledger/{pass_}/00000002.json").write_bytes(b"{}")
    (folder / "activations/zarr.json").unlink()
    command = [sys.executable, str(SCRIPT), str(folder), str(tmp_path), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    calm = content(tmp_path / "calm")
    trials = sorted(tmp_path.glob("trial-*"))
    assert len(trials) > 20 / step
    for trial in trials:
        assert content(trial) == calm, trial
        assert inspect(Objects(str(trial)), is_deep=True).problems == []
