"""S3 behind a proxy that fails on purpose: what passes is tried again, what does not is told, and no byte is wrong."""

from __future__ import annotations

import logging
import os
import random
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_proxy import FAULTS, FaultyProxy
from seaweed import BUCKET, S3Server, client

from pipeline.store import parallel, retrying
from pipeline.store.objects import Objects
from pipeline.store.reader import Store
from schemas.errors import MissingError, UnreachableError

Maker = Callable[..., Any]
MIB = 2**20
SLOW = [
    pytest.param(seed, rate, codec, marks=pytest.mark.slow)
    for seed, (rate, codec) in enumerate(product((0.05, 0.2, 0.4), ("none", "zstd")), start=100)
]


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """In front of the server, and in the environment; calm until a test sets ``choose``. Retries wait shortly."""
    monkeypatch.setattr(retrying, "_FIRST_LIMIT_S", 0.01)
    with FaultyProxy(s3_server.port) as one:
        for name, value in s3_server.through(one.port).items():
            monkeypatch.setenv(name, value)
        yield one


@pytest.fixture
def objects(proxy: FaultyProxy, request: pytest.FixtureRequest) -> Objects:
    return Objects(f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}-{time.monotonic_ns()}")


def script(*faults: str | None, method: str = "") -> Callable[[str, str], str | None]:
    """These faults for the first requests (with the method), then none."""
    waiting = [*faults]
    return lambda got, path: waiting.pop(0) if waiting and method in {"", got} else None


@pytest.mark.parametrize("fault", FAULTS)
def test_reads_outlast_a_failure(proxy: FaultyProxy, objects: Objects, fault: str) -> None:
    data = os.urandom(100_000)
    objects.write("a", data)
    for read in (lambda: objects.read("a"), lambda: objects.read_range("a", 0, 100_000)):
        proxy.choose = script(fault, fault)
        assert read() == data
    proxy.choose = script(fault, fault)
    assert objects.size("a") == len(data)
    proxy.choose = script(fault, fault)
    assert objects.sizes() == {"a": len(data)}
    proxy.choose = script(fault)
    assert objects.children() == (["a"], [])
    proxy.choose = script(fault, fault)
    with pytest.raises(MissingError):
        objects.read("b")
    proxy.choose = script(fault, fault)
    objects.delete("a")
    assert not objects.exists("a")
    assert proxy.faults[fault] >= 7


@pytest.mark.parametrize("fault", FAULTS)
def test_put_if_absent_is_exact_when_answers_fail(proxy: FaultyProxy, objects: Objects, fault: str) -> None:
    proxy.choose = script(fault, fault)
    assert objects.create("a", b"first")
    proxy.choose = script(fault, fault)
    assert not objects.create("a", b"second")
    proxy.choose = script(fault)
    assert not objects.create("a", b"first"), "equal bytes, but another call's"
    assert objects.read("a") == b"first"
    proxy.choose = script(fault)
    objects.write("a", b"third")
    assert objects.read("a") == b"third"


def test_a_lost_answer_does_not_hide_another_winner(proxy: FaultyProxy, objects: Objects, s3_server: S3Server) -> None:
    """Our first try never arrives; before the second somebody else has made the object."""
    rival = client(s3_server)
    key = f"{objects.url.removeprefix(f's3://{BUCKET}/')}/a"

    def choose(method: str, path: str) -> str | None:
        if method == "PUT" and len(proxy.seen) == 0:
            rival.put_object(Bucket=BUCKET, Key=key, Body=b"ours to the byte")
            return "reset"
        return None

    proxy.choose = choose
    assert not objects.create("a", b"ours to the byte")


def test_of_racing_creators_behind_faults_one_wins(proxy: FaultyProxy, objects: Objects) -> None:
    rng = random.Random(5)
    proxy.choose = lambda method, path: rng.choice(FAULTS) if rng.random() < 0.3 else None
    for race in range(6):
        with ThreadPoolExecutor(6) as pool:
            won = [*pool.map(lambda key: Objects(objects.url).create(key, b"same bytes"), [f"{race}"] * 6)]
        assert sum(won) == 1
    assert sum(proxy.faults.values()) > 10


@pytest.mark.parametrize("fault", ["503", "reset", "lost", "cut", "short"])
def test_large_objects_go_and_come_in_parts_that_fail_alone(
    proxy: FaultyProxy, objects: Objects, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("pipeline.store.s3.UPLOAD_BYTES", 5 * MIB)  # S3's least
    monkeypatch.setattr("pipeline.store.remote.PART_BYTES", MIB)
    data = os.urandom(17 * MIB + 5)
    every = iter(range(10**6))
    proxy.choose = lambda method, path: fault if next(every) % 3 == 0 else None
    assert objects.create("large", data)
    assert not objects.create("large", data)
    assert objects.read("large") == data
    out = bytearray(3 * MIB)
    assert objects.read_into("large", 15 * MIB, memoryview(out)) == 2 * MIB + 5
    assert out[: 2 * MIB + 5] == data[15 * MIB :]
    spans = [(start, start + 1000) for start in range(0, 2 * MIB, 50_000)]
    assert [*objects.read_spans("large", spans)] == [data[a:b] for a, b in spans]
    sent = [path for method, path, _ in proxy.seen if method == "PUT" and "partNumber" in path]
    assert len(sent) <= 2 * 4 + 2, "only the parts that failed are sent again"
    proxy.choose = script(fault, method="POST")
    objects.write("large", data[::-1])
    assert objects.read("large") == data[::-1]


def test_a_lost_completion_is_known_again(
    proxy: FaultyProxy, objects: Objects, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server
) -> None:
    monkeypatch.setattr("pipeline.store.s3.UPLOAD_BYTES", 5 * MIB)
    done = []

    def choose(method: str, path: str) -> str | None:
        if method == "POST" and "uploadId" in path and not done:
            done.append(path)
            return "lost"
        return None

    for put in (objects.create, objects.write):
        done.clear()
        proxy.choose = choose
        assert put("large", bytes(11 * MIB)) is not False
        assert done
        assert objects.size("large") == 11 * MIB
    left = client(s3_server).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert not [one for one in left if "a_lost_completion" in one["Key"]]


def test_a_failed_upload_leaves_nothing_behind(
    proxy: FaultyProxy, objects: Objects, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server
) -> None:
    monkeypatch.setattr("pipeline.store.s3.UPLOAD_BYTES", 5 * MIB)
    monkeypatch.setattr(retrying, "_TRIES", 2)
    proxy.choose = lambda method, path: "503" if "partNumber=2" in path else None
    with pytest.raises(UnreachableError, match=r"large: gave up after 2 tries .* 503 SlowDown 2x"):
        objects.write("large", bytes(11 * MIB))
    assert not objects.exists("large")
    left = client(s3_server).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert not [one for one in left if "leaves_nothing" in one["Key"]]


def test_an_object_replaced_while_it_is_read_is_read_again(
    proxy: FaultyProxy, objects: Objects, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server
) -> None:
    monkeypatch.setattr("pipeline.store.remote.PART_BYTES", MIB)
    old, new = os.urandom(3 * MIB), os.urandom(3 * MIB)
    objects.write("a", old)
    key = f"{objects.url.removeprefix(f's3://{BUCKET}/')}/a"
    gets = []

    def choose(method: str, path: str) -> None:
        gets.append(method)
        if len(gets) == 2:
            client(s3_server).put_object(Bucket=BUCKET, Key=key, Body=new)

    proxy.choose = choose
    assert objects.read("a") == new


def test_what_cannot_pass_is_not_tried_again(
    proxy: FaultyProxy, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingError, match="nothing is not there"):
        objects.read("nothing")
    assert len(proxy.seen) == 1
    with pytest.raises(MissingError, match="there is no bucket 'elsewhere'"):
        Objects("s3://elsewhere/store").read("a")
    assert len(proxy.seen) == 2
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-never-shown")
    with pytest.raises(UnreachableError, match=r"SignatureDoesNotMatch.*check the permissions") as caught:
        objects.read("a")
    assert len(proxy.seen) == 3
    assert "never-shown" not in str(caught.value)


def test_giving_up_says_what_failed_how_often(proxy: FaultyProxy, objects: Objects) -> None:
    faults = ["503", "503", "reset"] * 9
    proxy.choose = lambda method, path: faults.pop()
    with pytest.raises(UnreachableError, match=r"/a: gave up after 10 tries in .* s: 503 SlowDown 6x, ") as caught:
        objects.read("a")
    assert "connection lost 4x" in str(caught.value)
    assert len(proxy.seen) == 10


def test_time_is_bounded_too(proxy: FaultyProxy, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWORKS_STORAGE_SECONDS", "0.3")
    monkeypatch.setattr(retrying, "_FIRST_LIMIT_S", 0.2)
    proxy.choose = lambda method, path: "503"
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"more time than 0\.3 s \(HEADWORKS_STORAGE_SECONDS\)"):
        objects.read("a")
    assert time.monotonic() - began < 2
    assert len(proxy.seen) < 10


def test_a_storage_that_asks_for_time_is_given_it_but_not_for_ever(
    proxy: FaultyProxy, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the client and by signed reads; a number of seconds or a date."""
    waits: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", waits.append)
    objects.write("a", bytes(1000))
    in_a_minute = formatdate(time.time() + 30, usegmt=True)
    for asked, bounds in (("7", (7, 7.1)), (in_a_minute, (25, 30.1)), ("86400", (60, 60.1)), ("soon", (0, 0.1))):
        for read in (lambda: objects.read("a"), lambda: objects.read_range("a", 0, 1000)):
            proxy.retry_after = asked
            proxy.choose = script("503")
            waits.clear()
            read()
            assert len(waits) == 1
            assert bounds[0] <= waits[0] <= bounds[1], asked
    monkeypatch.setenv("HEADWORKS_STORAGE_SECONDS", "20")
    proxy.retry_after, proxy.choose = "86400", script("503")
    waits.clear()
    objects.read("a")
    assert 19 < waits[0] <= 20


def test_success_after_failures_is_logged(
    proxy: FaultyProxy, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.choose = script("503", "lost")
    with caplog.at_level(logging.INFO, logger="pipeline.store.retrying"):
        objects.create("a", b"x")
    (line,) = [message for message in caplog.messages if "storage.retried" in message]
    assert f"object={objects.url}/a tries=3" in line
    assert "503 SlowDown 1x" in line


def test_a_listing_of_many_pages_misses_nothing(
    proxy: FaultyProxy, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"ledger/{index:04d}.json" for index in range(25)]
    with ThreadPoolExecutor(4) as pool:
        [*pool.map(lambda key: objects.write(key, b"x"), keys)]
    backend = objects._backend
    whole = backend._list  # type: ignore[attr-defined]
    monkeypatch.setattr(backend, "_list", lambda below, after, **options: whole(below, after, MaxKeys=4, **options))
    every = iter(range(10**6))
    proxy.choose = lambda method, path: FAULTS[next(every) // 2 % len(FAULTS)] if next(every) % 4 == 1 else None
    assert objects.list() == keys
    assert objects.children("ledger") == ([key.removeprefix("ledger/") for key in keys], [])
    assert proxy.faults.total() > 3


@pytest.mark.parametrize(("seed", "rate", "codec"), [(1, 0.3, "none"), *SLOW])
def test_a_store_through_faults_is_that_of_a_calm_run(
    proxy: FaultyProxy, sample: Maker, tmp_path: Path, seed: int, rate: float, codec: str
) -> None:
    """Two writers at once, then a reader, all through random faults: the same objects with the same bytes."""
    one = sample(codec=codec)
    calm = Objects(str(tmp_path / "calm"))
    one.write_all(calm.url)
    rng = random.Random(seed)
    proxy.choose = lambda method, path: rng.choice(FAULTS) if rng.random() < rate else None
    url = f"s3://{BUCKET}/stormy-{time.monotonic_ns()}"

    def write(units: Sequence[int]) -> None:
        one.write(one.open(url), units)

    with ThreadPoolExecutor(2) as pool:
        [*pool.map(write, ([0, 1, 2], [2, 1, 0]))]
    manifest = one.open(url).finish()
    store = Store.open(url)
    one.require_equal(store)
    assert store.verify(deep=True) == []
    rows = np.random.default_rng(seed).integers(0, 75, 50)
    for hook, words in one.arrays.items():
        np.testing.assert_array_equal(store.gather(hook, rows), words[rows])
    assert proxy.faults.total() > 5
    proxy.choose = lambda method, path: None
    stormy = Objects(url)
    assert stormy.sizes() == calm.sizes()
    assert manifest == Store.open(calm.url).manifest
    for key in calm.list():
        assert stormy.read(key) == calm.read(key), key


def test_memory_under_way_is_bounded(proxy: FaultyProxy, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads read, no more than the stated number of requests is under way."""
    objects.write("a", bytes(2000))
    under_way = most = 0
    backend = objects._backend
    whole = backend.piece  # type: ignore[attr-defined]

    def piece(*arguments: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return whole(*arguments)
        finally:
            under_way -= 1

    monkeypatch.setattr(backend, "piece", piece)
    proxy.choose = lambda method, path: "delay"
    with ThreadPoolExecutor(40) as pool:
        [*pool.map(lambda index: objects.read_range("a", index, index + 1), range(200))]
    assert parallel.REQUESTS_AT_ONCE // 2 < most <= parallel.REQUESTS_AT_ONCE


def test_ranges_are_read_by_signed_urls_that_stay_secret(
    proxy: FaultyProxy, objects: Objects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first read of an object by the client, the others by a URL; one that is refused falls back to the client."""
    objects.write("a", b"0123456789")
    proxy.seen.clear()
    for start in range(4):
        assert objects.read_range("a", start, start + 2) == b"0123456789"[start : start + 2]
    assert ["X-Amz-Signature" in path for _, path, _ in proxy.seen] == [False, True, True, True]
    reads = objects._backend._connection.reads  # type: ignore[attr-defined]
    (name, (url, until)), *_ = [(name, kept) for name, kept in reads._urls.items() if kept[0]]
    reads._urls[name] = (url[:-8] + "00000000", until)
    proxy.seen.clear()
    assert objects.read("a") == b"0123456789"
    assert ["X-Amz-Signature" in path for _, path, _ in proxy.seen] == [True, False]
    monkeypatch.setattr(retrying, "_TRIES", 1)
    for fault in ("reset", "503", "short"):
        assert objects.read_range("a", 0, 2) == b"01"
        proxy.choose = script(fault)
        with caplog.at_level(logging.INFO), pytest.raises(UnreachableError) as caught:
            objects.read_range("a", 0, 2)
        assert "Signature" not in "".join(traceback.format_exception(caught.value)) + caplog.text
        proxy.choose = lambda method, path: None
