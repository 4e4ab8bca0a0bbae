"""What every storage must do, held against a local folder, memory://, S3 and GCS servers with the same tests."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from pipeline.store.layout import unit_keys
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from pipeline.store.rounding import dequantise, relative_error, rounding_error
from schemas.errors import CorruptionError, IncompleteError, MismatchError, MissingError

Maker = Callable[..., Any]


class StoreContract:
    """Subclasses give ``url``: an empty place on their storage. Whatever is written is written in both layouts."""

    @pytest.fixture(params=["zarr", "arrow"])
    def sample(self, request: pytest.FixtureRequest, sample: Maker) -> Maker:
        return partial(sample, layout=request.param)

    def test_objects(self, url: str) -> None:
        objects = pickle.loads(pickle.dumps(Objects(url)))
        assert objects.list() == []
        assert not objects.exists("a/b")
        objects.write("a/b", b"first")
        objects.write("a/b", bytearray(b"second"))
        objects.write("a/module:x.0:out/c", b"")
        objects.write("ab", b"x")
        assert objects.list() == ["a/b", "a/module:x.0:out/c", "ab"]
        assert objects.list("a/") == ["a/b", "a/module:x.0:out/c"]
        assert objects.sizes("a") == {"a/b": 6, "a/module:x.0:out/c": 0, "ab": 1}
        assert objects.at("a").list() == ["b", "module:x.0:out/c"]
        assert objects.read("a/b") == b"second"
        assert objects.read_range("a/b", 1, 3) == b"ec"
        assert objects.read_range("a/b", 4, 99) == b"nd"
        assert objects.read_range("a/b", 6, 9) == b""
        assert objects.size("a/b") == 6
        assert not objects.exists("a")
        objects.delete("a/b")
        objects.delete("a/b")
        assert not objects.exists("a/b")

    def test_an_absent_object_is_named(self, url: str) -> None:
        objects = Objects(url)
        for call in (objects.read, objects.size, lambda key: objects.read_range(key, 0, 1)):
            with pytest.raises(MissingError, match="nothing/here"):
                call("nothing/here")

    def test_of_eight_racing_creators_one_wins(self, url: str) -> None:
        start = Barrier(8)

        def race(rank: int) -> bool:
            objects = Objects(url)
            start.wait()
            return objects.create("ledger/0.json", b"%d" % rank)

        with ThreadPoolExecutor(8) as pool:
            won = [*pool.map(race, range(8))]
        assert sum(won) == 1
        assert Objects(url).read("ledger/0.json") == b"%d" % won.index(True)
        assert Objects(url).list() == ["ledger/0.json"]

    def test_what_was_written_is_read(self, url: str, sample: Maker) -> None:
        require_round_trip(url, sample())

    @pytest.mark.parametrize("sample", ["zarr"], indirect=True)
    def test_what_was_compressed_is_read(self, url: str, sample: Maker) -> None:
        require_round_trip(url, sample(codec="zstd"))

    @pytest.mark.parametrize("sample", ["zarr"], indirect=True)
    def test_what_was_entropy_coded_is_read(self, url: str, sample: Maker) -> None:
        """One hook point wide enough for codes to pay, one whose chunks stay as they are."""
        require_round_trip(url, sample(codec="bf16", widths={"blocks.0.hook_mlp_in": 128, "blocks.1.hook_mlp_in": 3}))

    @pytest.mark.parametrize("sample", ["zarr"], indirect=True)
    @pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
    def test_what_has_its_zeros_left_out_is_read(self, url: str, sample: Maker, dtype: str) -> None:
        require_round_trip(url, sample(codec="sparse", dtype=dtype))

    @pytest.mark.parametrize("dtype", ["int8", "float8_e4m3"])
    def test_rounded_rows_are_read_with_their_scales(self, url: str, sample: Maker, dtype: str) -> None:
        one = sample(dtype=dtype)
        require_round_trip(url, one)
        store = Store.open(url)
        for hook, given in one.arrays.items():
            scales, words = store.read_scales(hook, 5, 70), store.read_rows(hook, 5, 70)
            values = store.read_values(hook, 5, 70)
            np.testing.assert_array_equal(values, dequantise(words, scales, store.dtype))
            error = np.linalg.norm(values - given[5:70]) / np.linalg.norm(given[5:70])
            assert 0 < error < {"int8": 0.006, "float8_e4m3": 0.04}[dtype]
            whole = rounding_error(given, store.read_values(hook, 0, 75))
            rounding = store.statistics[hook].rounding
            assert rounding is not None
            assert relative_error(rounding) == pytest.approx(relative_error(whole), rel=1e-12)

    def test_many_open_and_write_at_once(self, url: str, sample: Maker) -> None:
        one = sample()
        start = Barrier(6)

        def work(rank: int) -> None:
            start.wait()
            writer = one.open(url)
            one.write(writer, [(rank + step) % writer.num_units for step in range(writer.num_units)])
            assert writer.finish().num_rows == 75

        with ThreadPoolExecutor(6) as pool:
            [*pool.map(work, range(6))]
        store = Store.open(url)
        one.require_equal(store)
        assert store.verify(deep=True) == []

    def test_resume_is_the_plan_minus_the_ledger(self, url: str, sample: Maker) -> None:
        one = sample()
        writer = one.open(url)
        one.write(writer, [1])
        with pytest.raises(IncompleteError, match=r"lacks 2 of 3 units .*: 0, 2"):
            writer.finish()
        with pytest.raises(IncompleteError, match=r"manifest\.json"):
            Store.open(url)
        begun = Store.open(url, allow_partial=True)
        hook = next(iter(one.arrays))
        assert begun.manifest is None
        assert begun.num_rows == 75
        assert begun.committed(hook) == [1]
        assert begun.statistics[hook].count == 32
        np.testing.assert_array_equal(begun.read_rows(hook, 32, 64), one.arrays[hook][32:64])
        with pytest.raises(IncompleteError, match="unit 0"):
            begun.read_rows(hook, 31, 33)
        again = one.open(url)
        assert [*again.committed()] == [1]
        one.write(again, [0, 2])
        again.finish()
        one.require_equal(Store.open(url))

    def test_further_hook_points_leave_old_objects_alone(self, url: str, sample: Maker) -> None:
        one, more = sample(), sample(widths={"blocks.1.hook_mlp_out": 4})
        one.write_all(url)
        objects = Objects(url)
        before = {key: objects.read(key) for key in objects.list() if key != "manifest.json"}
        manifest = more.write_all(url)
        assert {key: objects.read(key) for key in before} == before
        assert len(manifest.passes) == 2
        assert manifest.hook_points == {**one.pass_record.hook_points, **more.pass_record.hook_points}
        store = Store.open(url)
        one.require_equal(store)
        more.require_equal(store)
        assert store.verify(deep=True) == []
        assert one.open(url).finish() == manifest

    def test_other_facts_are_refused(self, url: str, sample: Maker) -> None:
        sample().write_all(url)
        with pytest.raises(MismatchError, match="model: this job has 'other'"):
            sample(facts={"model": "other"}).open(url)
        with pytest.raises(MismatchError, match=r"batch_tokens 16 \(here 32\)"):
            sample(batch_tokens=32).open(url)
        with pytest.raises(MismatchError, match=r"blocks\.0\.hook_mlp_in in pass"):
            sample(widths={"blocks.0.hook_mlp_in": 5, "blocks.1.hook_mlp_in": 5}).open(url)

    def test_the_first_committed_entry_is_the_truth(
        self, url: str, sample: Maker, caplog: pytest.LogCaptureFixture
    ) -> None:
        one = sample()
        writer = one.open(url)
        one.write(writer, [0, 1, 2])
        first = writer.committed()[1]
        start, stop = writer.unit_rows(1)
        other = {hook: words[start:stop] + 1 for hook, words in one.arrays.items()}
        with caplog.at_level(logging.WARNING, logger="pipeline.store"):
            got = writer.write_unit(1, other, one.tokens.slice(start, stop), worker="late", attempt=3, seconds={})
        assert got == first
        assert sum("store.unit_differs" in message for message in caplog.messages) == len(other)
        writer.finish()
        one.require_equal(Store.open(url))

    def test_an_attempt_goes_over_to_the_bytes_that_are_there(self, url: str, sample: Maker) -> None:
        """A killed attempt left one object of a unit, computed on hardware that differs in low bits."""
        one = sample()
        hook, other = one.arrays
        donor = Objects(url + "-donor")
        changed = sample()
        changed.arrays[hook][3, 0] += 1
        changed.write_all(donor.url)
        writer = one.open(url)
        (key,), (spoilt,) = (unit_keys(one.record, name, 0).values() for name in (hook, other))
        Objects(url).write(key, donor.read(key))
        Objects(url).write(spoilt, b"rubbish that no ledger names")
        one.write(writer, [0, 1, 2])
        writer.finish()
        store = Store.open(url)
        changed.require_equal(store)
        assert store.verify(deep=True) == []
        assert store.statistics == Store.open(donor.url).statistics

    @pytest.mark.parametrize("left", [0, 1])
    def test_the_same_of_rounded_rows(self, url: str, sample: Maker, left: int) -> None:
        """Words and scales fit each other, whether the killed attempt left both or one; the loss is this one's."""
        one, changed = sample(dtype="int8"), sample(dtype="int8")
        hook = next(iter(one.arrays))
        changed.arrays[hook][:] *= np.float32(1.0001)
        changed.write_all(url + "-donor")
        writer = one.open(url)
        for key in [*unit_keys(one.record, hook, 0).values()][left:]:
            Objects(url).write(key, Objects(url + "-donor").read(key))
        one.write(writer, [0, 1, 2])
        writer.finish()
        store = Store.open(url)
        assert store.verify(deep=True) == []
        values, given = store.read_values(hook, 0, 75), one.arrays[hook]
        assert np.abs(values - given).max() <= np.abs(given).max() / 127
        rounding = store.statistics[hook].rounding
        assert rounding is not None
        assert relative_error(rounding) == pytest.approx(relative_error(rounding_error(given, values)), rel=1e-12)

    def test_a_missing_object_is_never_zeros(self, url: str, sample: Maker) -> None:
        one = sample()
        one.write_all(url)
        hook = next(iter(one.arrays))
        key = unit_keys(one.record, hook, 1)[hook]
        Objects(url).delete(key)
        store = Store.open(url)
        np.testing.assert_array_equal(store.read_rows(hook, 0, 32), one.arrays[hook][:32])
        with pytest.raises(CorruptionError, match=key):
            store.read_rows(hook, 32, 33)
        assert [problem.key for problem in store.verify(deep=False)] == [key]


def require_round_trip(url: str, one: Any) -> None:
    manifest = one.write_all(url)
    store = pickle.loads(pickle.dumps(Store.open(url)))
    one.require_equal(store)
    assert store.manifest == manifest
    assert store.verify(deep=True) == []
    rng = np.random.default_rng(0)
    for hook, words in one.expected.items():
        rows = rng.integers(0, len(words), 200)
        np.testing.assert_array_equal(store.gather(hook, rows), words[rows])
        out = np.zeros((200, words.shape[1]), dtype=words.dtype)
        assert store.gather(hook, rows, out) is out
        np.testing.assert_array_equal(out, words[rows])
        np.testing.assert_array_equal(store.gather_values(hook, rows), store.read_values(hook, 0, 75)[rows])
        for start, stop in ((0, 0), (3, 5), (7, 9), (30, 34), (5, 70), (74, 75)):
            np.testing.assert_array_equal(store.read_rows(hook, start, stop), words[start:stop])
    assert store.tokens(30, 70) == one.tokens.slice(30, 70)
    assert len(store.tokens(9, 9)) == 0


class TestLocal(StoreContract):
    @pytest.fixture
    def url(self, local_url: str) -> str:
        return local_url


class TestMemory(StoreContract):
    @pytest.fixture
    def url(self, memory_url: str) -> str:
        return memory_url


class TestS3(StoreContract):
    @pytest.fixture
    def url(self, s3_url: str) -> str:
        return s3_url


class TestGCS(StoreContract):
    @pytest.fixture
    def url(self, gcs_url: str) -> str:
        return gcs_url
