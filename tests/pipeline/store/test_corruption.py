"""Damage of any kind to any object is an error that names it, and never other numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.verification import inspect
from schemas.errors import CorruptionError, HookPointError, IncompleteError, MismatchError, MissingError, SpecError

FAULTS = ["flip", "cut", "grow", "remove", "swap"]
FORMS: list[dict[str, str]] = [
    {},
    {"codec": "zstd"},
    {"codec": "bf16"},
    {"codec": "sparse"},
    {"dtype": "int8"},
    {"layout": "arrow"},
    {"layout": "arrow", "dtype": "float8_e4m3"},
]


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: "-".join(form.values()) or "plain")
def stored(request: pytest.FixtureRequest, sample: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As ``built``, of every kind of object that there is."""
    folder = tmp_path_factory.mktemp("sound")
    one = sample(**request.param)
    one.write_all(str(folder))
    return folder, one


@pytest.fixture(scope="module", params=["none", "zstd", "bf16", "sparse"])
def built(request: pytest.FixtureRequest, sample: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, sample) of a sound store, which every test leaves as it was."""
    folder = tmp_path_factory.mktemp("sound")
    one = sample(codec=request.param)
    one.write_all(str(folder))
    return folder, one


@contextmanager
def damaged(folder: Path, key: str, fault: str, position: int, other: str) -> Iterator[None]:
    path, partner = folder / key, folder / other
    held, others = path.read_bytes(), partner.read_bytes()
    try:
        if fault == "remove":
            path.unlink()
        elif fault == "swap":
            path.write_bytes(others)
            partner.write_bytes(held)
        elif fault == "flip":
            place, bit = divmod(position % (8 * len(held)), 8)
            path.write_bytes(held[:place] + bytes([held[place] ^ 1 << bit]) + held[place + 1 :])
        else:
            path.write_bytes(held[: position % len(held)] if fault == "cut" else held + b"\0")
        yield
    finally:
        path.write_bytes(held)
        partner.write_bytes(others)


def read_everything(folder: Path, one: Any) -> None:
    one.require_equal(Store.open(str(folder)))


def objects_of(folder: Path) -> list[str]:
    keys = (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file())
    return [key for key in keys if "/c/" in key or key.endswith(".arrow") or key.startswith("tokens/")]


def documents_of(folder: Path) -> list[str]:
    keys = (str(path.relative_to(folder)) for path in sorted(folder.rglob("*.json")))
    return [key for key in keys if not key.startswith("activations/")]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_damaged_objects_are_named(stored: Any, data: st.DataObject) -> None:
    folder, one = stored
    key = data.draw(st.sampled_from(objects_of(folder)))
    kind = key.rpartition("/c/")[0] or key.rpartition("/")[0]
    other = data.draw(st.sampled_from([name for name in objects_of(folder) if name.startswith(kind) and name != key]))
    fault = data.draw(st.sampled_from(FAULTS))
    with damaged(folder, key, fault, data.draw(st.integers(0, 2**20)), other):
        message = ""
        try:
            read_everything(folder, one)
        except CorruptionError as error:
            message = str(error)
        if message:
            assert key in message or (fault == "swap" and other in message)
            assert re.search("expected .*got", message)
        else:
            # Arrow's own metadata, which this reader does not look at: every row was what it should be.
            assert fault == "flip"
            assert key.endswith(".arrow")
        assert any(key in str(problem) for problem in Store.open(str(folder)).verify(deep=True))
    assert Store.open(str(folder)).verify(deep=True) == []


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_damaged_documents_never_give_other_numbers(built: Any, data: st.DataObject) -> None:
    """What no reader needs (the log) and what changes no meaning (1e-05 to 1E-05) may pass; a verification notices."""
    folder, one = built
    sound = Store.open(str(folder))
    key = data.draw(st.sampled_from(documents_of(folder)))
    other = data.draw(st.sampled_from([name for name in documents_of(folder) if name != key]))
    fault = data.draw(st.sampled_from([*FAULTS, "flip", "flip"]))
    with damaged(folder, key, fault, data.draw(st.integers(0, 2**20)), other):
        try:
            store = Store.open(str(folder))
            one.require_equal(store)
        except (CorruptionError, MismatchError, IncompleteError, MissingError) as error:
            message = str(error)
        else:
            assert (store.record, store.manifest) == (sound.record, sound.manifest)
            assert key in {problem.key for problem in store.verify(deep=False)}
            return
    assert str(folder) in message


def test_swapped_objects_of_two_hook_points_of_one_width_are_noticed(sample: Any, tmp_path: Path) -> None:
    one = sample(widths={"a": 4, "b": 4})
    one.write_all(str(tmp_path))
    with damaged(tmp_path, "activations/a/c/0/0", "swap", 0, "activations/b/c/0/0"):
        with pytest.raises(CorruptionError, match="in the ledger"):
            Store.open(str(tmp_path)).read_rows("b", 0, 1)
        found = [problem.key for problem in Store.open(str(tmp_path)).verify(deep=True)]
        assert found == ["activations/a/c/0/0", "activations/b/c/0/0"]


def test_a_ledger_that_was_exchanged_as_a_whole_does_not_fit_the_manifest(sample: Any, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    one, other = sample(), sample()
    other.arrays["blocks.0.hook_mlp_in"][0, 0] ^= 1
    one.write_all(str(ours))
    other.write_all(str(theirs))
    for path in [*theirs.rglob("*.json"), *theirs.rglob("c/*/0")]:
        if path.name != "manifest.json":
            (ours / path.relative_to(theirs)).write_bytes(path.read_bytes())
    assert [problem.key for problem in Store.open(str(ours)).verify(deep=True)] == ["manifest.json"]


def test_zarr_metadata_that_was_altered_is_found(built: Any) -> None:
    folder, _ = built
    key = next(str(path.relative_to(folder)) for path in sorted(folder.glob("activations/*/zarr.json")))
    with damaged(folder, key, "remove", 0, "zarr.json"):
        assert [problem.key for problem in Store.open(str(folder)).verify(deep=False)] == [key]
    altered = (folder / key).read_bytes()
    try:
        (folder / key).write_bytes(altered.replace(b'"fill_value":0', b'"fill_value":1'))
        assert [problem.key for problem in Store.open(str(folder)).verify(deep=False)] == [key]
    finally:
        (folder / key).write_bytes(altered)


def test_what_is_not_a_store_is_refused(tmp_path: Path, built: Any) -> None:
    folder, _ = built
    with pytest.raises(MissingError, match="no activation store at"):
        Store.open(str(tmp_path))
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(MismatchError, match="did not make"):
        Store.open(str(tmp_path))
    newer = (folder / "zarr.json").read_bytes().replace(b'"format":1', b'"format":2,"extra":0')
    (tmp_path / "zarr.json").write_bytes(newer)
    with pytest.raises(MismatchError, match="store format 2"):
        Store.open(str(tmp_path))


def test_wrong_questions_get_clear_answers(built: Any) -> None:
    folder, one = built
    store = Store.open(str(folder))
    hook = next(iter(one.arrays))
    with pytest.raises(HookPointError, match=r"did you mean 'blocks\.0\.hook_mlp_in'"):
        store.read_rows("blocks.0.hook_mlp_out", 0, 1)
    for start, stop in ((-1, 3), (0, 76), (5, 4)):
        with pytest.raises(SpecError, match="75 rows"):
            store.read_rows(hook, start, stop)
    with pytest.raises(SpecError, match="75 rows"):
        store.gather(hook, [75])  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="out has"):
        store.gather(hook, [1, 2], out=one.arrays[hook][:1])  # type: ignore[arg-type]
    assert hook in store._repr_html_()
    assert store.gather(hook, []).shape == (0, 5)  # type: ignore[arg-type]


def test_the_progress_of_verifying_ends_at_its_total(stored: Any) -> None:
    """Whatever is read twice, and wherever damage ends a check early; what is missing is not counted on."""
    folder, _ = stored
    objects = objects_of(folder)

    def heard() -> tuple[int, int]:
        seen: list[tuple[int, int]] = []
        inspect(Objects(str(folder)), is_deep=True, progress=lambda done, total: seen.append((done, total)))
        assert all(done <= total for done, total in seen)
        return seen[-1]

    done, total = heard()
    assert done == total > 0
    gone = objects[0]
    for fault, lost in (("flip", 0), ("remove", (folder / gone).stat().st_size)):
        with damaged(folder, gone, fault, 777, objects[1]):
            assert heard() == (total - lost, total - lost)
