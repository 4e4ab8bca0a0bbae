"""Places are taken in one spelling only, and an accepted one never resolves outside of its prefix."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.service import links
from deploy.service.links import Looked, require_within
from deploy.service.places import LONGEST, Place, read_place

TRICKS = {
    "traversal": ["/data/team/../other", "/data/team/..", "/..", "s3://lab/team/../other", "/data/team/./x", "/."],
    "encoded": ["/data/team/%2e%2e/other", "s3://lab/team%2F..%2Fother", "/data/team/%252e%252e/x"],
    "doubled slashes": ["//data/team", "/data//team", "s3:///lab/team", "s3://lab//team", "/data/team//"],
    "trailing dots": ["/data/team.", "/data/team/...", "/data/team/.. /x", "/data/team /x", "s3://lab./x"],
    "files as URLs": ["file:///data/team", "FILE:///data/team", "file:/data/team", "local:///data/team", "file://h/d"],
    "home": ["~/x", "~root/x", "/data/~root/x", "s3://~/x"],
    "environment": ["$HOME/x", "/data/${USER}/x", "/data/$USER", "${env:HOME}/x", "/data/team/{stdlib}/x"],
    "chains": [
        "simplecache::s3://lab/team/x", "zip://x::/etc/passwd", "/data/team/a.zip::x", "filecache::/data/team/x",
        "s3://lab/team::file:///etc/passwd",
    ],
    "other schemes": [
        "github://org:repo@main/x", "http://169.254.169.254/latest/meta-data", "https://localhost:8265/api/jobs/",
        "http://[::1]/x", "ftp://host/x", "data:text/plain,x", "dir:///etc", "S3://lab/team", "s3:lab/team", "hf://x/y",
        "ssh://host/x", "reference://x", "tar:///x", "memory:/x", "abfs://x/y", "smb://h/x", "jupyter://x",
    ],
    "relative": ["data/team", ".", "./x", "..", "", " /data/team", "\t/data/team", "-", "C:\\data", "gpt2"],
    "letters": [
        "/data/team\x00/x", "/data/team\n/x", "/data/te\u0430m\u200b", "/data/team\uff0f\uff0e\uff0e\uff0fx",
        "/data/\u2025/x", "/data/te\u0301am", "/data/\u202emaet", "/data/team\u00a0", "/data/\ud800", "/data\\team",
        "/data/\ufb01les", "/data/team\x7f",
    ],
    "wildcards": ["/data/*", "/data/te?m", "/data/[t]eam", "s3://l*b/team"],
    "queries": ["s3://lab/team?versionId=1", "gs://lab/team#3", "s3://lab/team|x", "/data/`x`", "s3://"],
    "length": ["/" + "a" * LONGEST],
}  # fmt: skip


@pytest.mark.parametrize("text", [text for texts in TRICKS.values() for text in texts], ids=ascii)
def test_tricks_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_place(text)


@pytest.mark.parametrize("text", [text for texts in TRICKS.values() for text in texts], ids=ascii)
def test_wildcards_open_no_door_to_tricks(text: str) -> None:
    try:
        place = read_place(text, wildcards=True)
    except ValueError:
        return
    assert "*" in text or "?" in text or "[" in text
    assert not place.is_in(read_place("/data/team"))
    assert place.scheme in ("", "s3")
    if "versionId" not in text:
        assert not place.is_in(read_place("s3://lab/team"))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("/data/team/", "/data/team"),
        ("/", "/"),
        ("s3://lab/team/x", "s3://lab/team/x"),
        ("s3a://lab/team", "s3://lab/team"),
        ("gcs://lab/x y/a:b@c=1,+(2)", "gs://lab/x y/a:b@c=1,+(2)"),
        ("memory://x", "memory://x"),
        ("/données/コーパス/..a/.hidden", "/données/コーパス/..a/.hidden"),
    ],
)
def test_plain_places_are_taken(text: str, canonical: str) -> None:
    assert str(read_place(text)) == canonical


@pytest.mark.parametrize(
    ("text", "prefix", "is_in"),
    [
        ("/data/team", "/data/team", True),
        ("/data/team/x", "/data/team", True),
        ("/data/team2", "/data/team", False),
        ("/data/Team/x", "/data/team", False),
        ("/data", "/data/team", False),
        ("/x", "/", True),
        ("s3://lab/team-b/x", "s3://lab/team", False),
        ("s3://labs/team", "s3://lab", False),
        ("s3a://lab/team/x", "s3://lab/team", True),
        ("gs://lab/team", "s3://lab/team", False),
        ("/lab/team", "s3://lab/team", False),
        ("s3://lab", "/", False),
    ],
)
def test_prefixes_are_compared_part_by_part(text: str, prefix: str, is_in: bool) -> None:
    place, other = read_place(text), read_place(prefix)
    assert place.is_in(other) == is_in
    assert place.is_below(other) == (is_in and text != prefix)


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """``team`` with files, folders and links of every kind; ``other`` is what must not be reached."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(os.path.realpath(name))
        for folder in ("team/a/b", "team/c", "team/deep/1/2/3", "team2", "other/x", "shared"):
            (root / folder).mkdir(parents=True)
        for file in ("team/a/f.txt", "team/deep/1/2/3/f.txt", "team2/f.txt", "other/x/f.txt", "shared/f.txt"):
            (root / file).write_text(file)
        for link, target in {
            "team/in": "a", "team/up": "..", "team/out": "../other", "team/file": "../other/x/f.txt",
            "team/chain": "out/x", "team/self": ".", "team/loop": "loop", "team/gone": "../other/nothing-yet",
            "team/c/abs": str(root / "other"), "team/into": "../shared", "shared/back": "../other",
            "team/deep/1/2/3/far": "../../../../../other", "entry": "team",
        }.items():  # fmt: skip
            (root / link).symlink_to(target)
        yield root


PARTS = st.sampled_from([
    "team", "team2", "other", "entry", "a", "b", "c", "x", "f.txt", "in", "up", "out", "file", "chain", "self", "loop",
    "gone", "abs", "deep", "1", "2", "3", "far", "new", "..", ".", "", "*", "**", "*.txt", "[ou]*", "~", "...", "into",
])  # fmt: skip


def resolved(root: Path, text: str) -> set[str]:
    """Where the storage layer would end up: what fsspec opens, as the kernel resolves it, with all that lies in it."""
    filesystem, path = fsspec.url_to_fs(text)
    matched = [path]
    if set(path) & set("*?["):
        matched = list(filesystem.glob(path))
    found = set()
    for each in matched:
        found.add(os.path.realpath(each))
        for folder, folders, files in os.walk(each, followlinks=False):
            found |= {os.path.realpath(os.path.join(folder, name)) for name in [*folders, *files]}
    return found


@settings(max_examples=250, deadline=None)
@given(parts=st.lists(PARTS, max_size=6), for_writing=st.booleans(), trailing=st.sampled_from(["", "/"]))
@example(parts=["team", "c", "*"], for_writing=False, trailing="")
@example(parts=["team", "gone"], for_writing=True, trailing="")
@example(parts=["team", "a"], for_writing=False, trailing="")
def test_no_accepted_local_place_ever_resolves_outside(
    tree: Path, parts: list[str], for_writing: bool, trailing: str
) -> None:
    prefix = read_place(str(tree / "team"))
    text = "/".join([str(tree), *parts]) + trailing
    try:
        place = read_place(text, wildcards=not for_writing)
        if not place.is_in(prefix):
            return
        require_within(place, [prefix], for_writing=for_writing)
    except ValueError:
        return
    team = str(tree / "team")
    for real in resolved(tree, text):
        assert real == team or real.startswith(f"{team}/"), (text, real)


def accepted(tree: Path, name: str, *, wildcards: bool = True, for_writing: bool = False) -> bool:
    try:
        prefix = read_place(str(tree / "team"))
        require_within(read_place(f"{tree}/{name}", wildcards=wildcards), [prefix], for_writing=for_writing)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "is_fine"),
    [
        ("team/a", True),
        ("team/in", True),
        ("team/in/f.txt", True),
        ("team/new/folder", True),
        ("team/a/*.txt", True),
        ("team/a/**/*.txt", True),
        ("entry/a", True),
        ("team/up", False),
        ("team/out", False),
        ("team/out/x/f.txt", False),
        ("team/file", False),
        ("team/chain", False),
        ("team/loop", False),
        ("team/gone", False),
        ("team/c", False),
        ("team/c/*", False),
        ("team/into", False),
        ("team/deep", False),
        ("team/deep/**", False),
        ("team/deep/*/*", True),
        ("team/*/*/f.txt", False),
        ("team2/f.txt", False),
    ],
)
def test_links_are_found_in_and_below_a_place(tree: Path, name: str, is_fine: bool) -> None:
    assert accepted(tree, name) == is_fine


def test_what_is_written_beside_an_output_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "team/x").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    assert accepted(tmp_path, "team/x/store", for_writing=True)
    (tmp_path / "team/x/store.scratch").symlink_to("../../other")
    assert not accepted(tmp_path, "team/x/store", for_writing=True)
    assert accepted(tmp_path, "team/x/other-store", for_writing=True)
    (tmp_path / "team/x/tokens").mkdir()
    (tmp_path / "team/x/tokens/part").symlink_to("../../../other")
    assert not accepted(tmp_path, "team/x/other-store", for_writing=True)


def test_an_output_whose_folder_is_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "team/in").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/back").symlink_to("../team/in")
    (tmp_path / "team/x").symlink_to("../other")
    assert accepted(tmp_path, "team/x/back")
    assert not accepted(tmp_path, "team/x/back", for_writing=True)


def test_storage_that_cannot_be_looked_at_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not there on the service's machine"):
        require_within(read_place(f"{tmp_path}/none/x"), [read_place(f"{tmp_path}/none")])
    (tmp_path / "team").mkdir()
    for index in range(5):
        (tmp_path / "team" / str(index)).mkdir()
    assert accepted(tmp_path, "team")
    monkeypatch.setattr(links, "MOST_ENTRIES", 4)
    with pytest.raises(ValueError, match="more than 4 files"):
        require_within(read_place(f"{tmp_path}/team"), [read_place(f"{tmp_path}/team")])


def test_the_parts_before_a_wildcard() -> None:
    assert read_place("s3://lab/a/b*/c", wildcards=True).fixed == Place("s3", ("lab", "a"))
    assert read_place("/a/b").fixed == read_place("/a/b")


def test_many_places_of_one_job_are_looked_at_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MOST_ENTRIES", 8)
    for folder in ("a", "b", "c"):
        for index in range(3):
            (tmp_path / "team" / folder / str(index)).mkdir(parents=True)
    prefix, looked = read_place(f"{tmp_path}/team"), Looked()
    for _ in range(5):
        require_within(read_place(f"{tmp_path}/team/a"), [prefix], looked=looked)
    require_within(read_place(f"{tmp_path}/team/b"), [prefix], looked=looked)
    with pytest.raises(ValueError, match="more than 8 files"):
        require_within(read_place(f"{tmp_path}/team/c"), [prefix], looked=looked)


def test_what_was_refused_once_is_refused_again(tmp_path: Path) -> None:
    (tmp_path / "team/a/b").mkdir(parents=True)
    (tmp_path / "team/a/out").symlink_to("/etc")
    prefix, looked = read_place(f"{tmp_path}/team"), Looked()
    for name in ("a", "a", "", "a/out", "a"):
        with pytest.raises(ValueError, match="leads through a link"):
            require_within(read_place(f"{tmp_path}/team/{name}"), [prefix], looked=looked)
    require_within(read_place(f"{tmp_path}/team/a/b"), [prefix], looked=looked)
