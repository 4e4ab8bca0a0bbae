"""Local folders: temporary files, full disks, permissions, hard links."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.objects import Objects, is_partial
from pipeline.store.reader import Store
from schemas.errors import MissingError, ResourceError, SpecError, UnreachableError


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file of this process may pass ``limit``: writing fails in the middle, as on a full disk or at a quota.

    Not a fixture: pytest's own output may go to a longer file, and must not be written while this holds.
    """
    held = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, held[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, held)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_named_and_costs_nothing_that_was_there(local_url: str) -> None:
    objects = Objects(local_url)
    objects.write("a/held", b"held")
    with small_disk(4096):
        for call in (objects.write, objects.create):
            with pytest.raises(ResourceError, match=f"{local_url}/a/(held|new) cannot be written"):
                call("a/new" if call == objects.create else "a/held", bytes(4097))
    assert objects.list() == ["a/held"]
    assert objects.read("a/held") == b"held"
    assert objects.partials() == {}


def test_a_unit_that_meets_a_full_disk_is_not_committed_and_a_rerun_goes_on(sample: Any, local_url: str) -> None:
    one = sample(widths={"wide": 300})
    writer = one.open(local_url)
    one.write(writer, [0])
    with small_disk(16384), pytest.raises(ResourceError, match="activations/wide/c/1/0 cannot be written"):
        one.write(writer, [1])
    assert [*writer.committed()] == [0]
    one.write_all(local_url)
    one.require_equal(Store.open(local_url))


def test_leftovers_are_invisible_to_listings_but_can_be_found(local_url: str) -> None:
    objects = Objects(local_url)
    objects.write("a/b", b"1")
    left = Path(local_url, "a", ".b.12-ab.partial")
    left.write_bytes(b"half")
    assert objects.list() == ["a/b"]
    assert objects.partials("a/") == {"a/.b.12-ab.partial": 4}
    assert is_partial("a/.b.12-ab.partial")
    assert not is_partial("a/b.partial")
    objects.delete("a/.b.12-ab.partial")
    assert objects.partials() == {}


def test_paths_are_absolute_wherever_a_process_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = Objects("runs/store/")
    assert objects.url == str(tmp_path / "runs/store")
    assert Objects(f"file://{tmp_path}/runs/store").url == objects.url
    assert objects.local_path("a/b") == tmp_path / "runs/store/a/b"
    assert Objects("memory://x").local_path("a") is None


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/..", "a/./b"])
def test_keys_stay_below_the_root(local_url: str, key: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        Objects(local_url).read(key)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MissingError, match="file/a"):
        Objects(str(tmp_path / "file")).read("a")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        for write in (Objects(str(root)).write, Objects(str(root)).create):
            with pytest.raises(SpecError, match="file is a file"):
                write("a", b"")


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOTSUP, ResourceError), (errno.EACCES, UnreachableError)])
def test_file_systems_that_refuse_links_are_explained(
    local_url: str, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    """No such file system can be mounted in a test, so the one call is made to fail as theirs does."""

    def refuse(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(kind, match="a/b"):
        Objects(local_url).create("a/b", b"1")
    assert Objects(local_url).list() == []
