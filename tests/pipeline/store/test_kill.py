"""SIGKILL at any moment of writing: a rerun gives, byte for byte, the store of an undisturbed run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store.objects import Objects
from pipeline.store.reader import Store

SCRIPT = Path(__file__).parent / "interrupted_writer.py"


def content(url: str) -> dict[str, bytes]:
    objects = Objects(url)
    return {key: objects.read(key) for key in objects.list()}


def named_by_the_ledger(store: Store) -> set[str]:
    entries = [store.entry(pass_, unit) for pass_ in store.passes for unit in range(store.num_units)]
    objects = {receipt.key for entry in entries for receipt in entry.objects.values()}
    return objects | {f"ledger/{entry.pass_id}/{entry.unit:08d}.json" for entry in entries}


@pytest.mark.parametrize(
    ("layout", "dtype", "trials"), [("zarr", "bfloat16", 3), ("zarr", "int8", 2), ("arrow", "int8", 2)]
)
def test_killed_anywhere_and_run_again_the_store_is_the_same(
    tmp_path: Path, layout: str, dtype: str, trials: int
) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(trials), "3", layout, dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    undisturbed = content(str(tmp_path / "calm"))
    leftovers = 0
    for trial in range(trials):
        url = str(tmp_path / f"trial-{trial}")
        assert content(url) == undisturbed
        found = Objects(url).partials()
        on_disk = {str(path.relative_to(url)) for path in Path(url).rglob("*") if path.is_file()}
        assert on_disk == {*undisturbed, *found}
        leftovers += len(found)
        store = Store.open(url)
        assert store.verify(deep=True) == []
        documents = {key for key in undisturbed if key.endswith("json") and not key.startswith("ledger/")}
        assert {*undisturbed} == named_by_the_ledger(store) | documents
    assert leftovers
