"""A store group: stores of one table under one folder, opened as one, added to later, refused while one is missing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headworks
from pipeline.store.group import join_group, read_group
from pipeline.store.joined import JoinedStore, group_urls, open_any, store_urls
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from schemas.errors import CorruptionError, IncompleteError, MismatchError, MissingError
from schemas.group import GroupMember, GroupRecord
from schemas.model import ModelSpec
from schemas.snapshots import GROUP

Maker = Callable[..., Any]
HOOK = "blocks.0.hook_mlp_in"


def record(table: str, *names: str) -> GroupRecord:
    members = [GroupMember(name=name, store=name, model=ModelSpec(path=name)) for name in names]
    return GroupRecord(table_fingerprint=table, table_url="", members=members)


@pytest.fixture
def table(sample: Maker, local_url: str) -> str:
    """Two stores below the group, ``b`` and ``a``; the fingerprint of their table."""
    for name in ("b", "a"):
        one = sample(facts={"model": name})
        one.write_all(f"{local_url}/{name}")
    return str(one.record.table_fingerprint)


def test_a_group_opens_as_one_in_its_order(table: str, local_url: str) -> None:
    join_group(Objects(local_url), record(table, "b", "a"))
    for opened in (headworks.open_store(local_url), pickle.loads(pickle.dumps(open_any(local_url)))):
        assert isinstance(opened, JoinedStore)
        assert [*opened.stores] == ["b", "a"]
        expected = Store.open(f"{local_url}/a").read_rows(HOOK, 3, 9)
        np.testing.assert_array_equal(opened.read_rows(f"a/{HOOK}", 3, 9), expected)
    assert store_urls(local_url) == [f"{local_url}/b", f"{local_url}/a"]
    assert store_urls(f"{local_url}/b") == [f"{local_url}/b"]
    # What a reader does not name changes nothing for it.
    used = open_any(local_url, [f"a/{HOOK}"])
    join_group(Objects(local_url), record(table, "b", "a", "c"))
    assert open_any(local_url, [f"a/{HOOK}"]).fingerprint == used.fingerprint
    assert used.fingerprint != opened.fingerprint


def test_a_group_with_a_store_yet_to_come(table: str, local_url: str, sample: Maker) -> None:
    join_group(Objects(local_url), record(table, "b", "a", "c"))
    with pytest.raises(IncompleteError, match=r"group.*is not complete.*/c"):
        open_any(local_url)
    assert {name.partition("/")[0] for name in open_any(local_url, [f"a/{HOOK}"]).hook_points} == {"a"}
    partial = open_any(local_url, allow_partial=True)
    assert isinstance(partial, JoinedStore)
    assert [*partial.stores] == ["b", "a"]
    with pytest.raises(MissingError, match="is a group of stores"):
        Store.open(local_url)
    with pytest.raises(MissingError, match=r"zarr\.json is not there"):
        open_any(f"{local_url}/nothing")


def test_members_of_earlier_jobs_stay_if_they_have_a_store(table: str, local_url: str) -> None:
    join_group(Objects(local_url), record(table, "b", "typo"))
    found = join_group(Objects(local_url), record(table, "a"))
    assert [member.name for member in found.members] == ["a", "b"]
    assert read_group(Objects(local_url)) == found
    assert group_urls(local_url) == {name: f"{local_url}/{name}" for name in ("a", "b")}
    with pytest.raises(MismatchError, match="rows would not be aligned"):
        join_group(Objects(local_url), record("other", "a"))


def test_an_altered_document_is_noticed(table: str, local_url: str) -> None:
    objects = Objects(local_url)
    join_group(objects, record(table, "b", "a"))
    objects.write(GROUP, objects.read(GROUP).replace(b'"store": "a"', b'"store": "b"'))
    with pytest.raises(CorruptionError, match="CRC-32C"):
        open_any(local_url)
