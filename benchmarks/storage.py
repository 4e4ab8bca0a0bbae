"""Writing a store against writing a file, and reading it from S3 against raw ranged GETs of the same bytes.

Write: shards of 64 MiB (bfloat16, no codec), encoded with checksums, flushed and named put-if-absent, against one
``write`` of as many bytes and an fsync; on local disk, its waiting writes done before each turn, and in memory (tmpfs),
where what is left is our own work. ``create`` writes a shard that is encoded already.

S3: SeaweedFS on this machine, started here, so client and server share the cores. The raw side is ``http.client``
with one connection for each thread and a URL that was signed once: no library can ask for less. Ours checks the length
of every body, and ``rows`` every CRC-32C besides. Ratios are medians over rounds in which each side has its turn.
"""

from __future__ import annotations

import http.client
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store import parallel
from pipeline.store.objects import Objects
from pipeline.store.shard import Geometry, ShardReader, encode_shard
from pipeline.store.sources import Bytes, Source

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "pipeline" / "store"))

MIB = 2**20
SHARD_BYTES = 64 * MIB
SMALL_BYTES, SMALL_READS = 64 * 1024, 400
ROUNDS = 5
Action = Callable[[], object]


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        places = {"disk": Path(disk), "memory": Path(memory)}
        written = [{"on": on, **writing(place, width)} for on, place in places.items() for width in (576, 4096)]
        return {"write": written, "s3": reading(Path(disk))}


def writing(folder: Path, width: int) -> dict[str, Any]:
    """GB/s of stored words."""
    rng = np.random.default_rng(0)
    chunk_rows = 256
    shard_rows = SHARD_BYTES // (2 * width) // chunk_rows * chunk_rows
    words = rng.integers(0, 2**16, (shard_rows, width), dtype=np.uint16)
    objects, names = Objects(str(folder / f"store-{width}")), iter(range(10**6))
    shard = encode_shard(words, chunk_rows, shard_rows, "none")

    def put() -> None:
        objects.create(f"c/{next(names)}/0", encode_shard(words, chunk_rows, shard_rows, "none"))

    def plain() -> None:
        with (folder / f"plain-{next(names)}").open("wb", buffering=0) as file:
            file.write(words.data)
            os.fsync(file.fileno())

    def create() -> None:
        objects.create(f"c/{next(names)}/0", shard)

    def empty() -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                path.unlink()
        os.sync()

    seconds = in_turn(
        empty,
        {
            "store": put,
            "create": create,
            "encode": lambda: encode_shard(words, chunk_rows, shard_rows, "none"),
            "plain_file": plain,
        },
    )
    return {
        "d_model": width,
        **rates(seconds, words.nbytes),
        "share_of_plain_file": share(seconds, "plain_file", "store"),
    }


def reading(folder: Path) -> dict[str, Any]:
    import seaweed

    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**16, (SHARD_BYTES // 8192, 4096), dtype=np.uint16)
    shard = bytes(encode_shard(words, 64, len(words), "none"))
    (folder / "seaweed").mkdir()
    with seaweed.serving(folder / "seaweed") as server:
        os.environ.update(server.environment)
        objects = Objects(f"s3://{seaweed.BUCKET}/store")
        objects.write("shard", shard)
        url = seaweed.client(server).generate_presigned_url(
            "get_object", Params={"Bucket": seaweed.BUCKET, "Key": "store/shard"}, ExpiresIn=3600
        )
        raw = Raw(server.port, url.split(str(server.port), 1)[1])
        large = _large(objects, raw, words, shard)
        return {**large, "small": [_small(objects, raw, shard, threads) for threads in (1, 4, 16)]}


class Raw:
    """Ranged GETs of one object and nothing else."""

    def __init__(self, port: int, path: str) -> None:
        self._port, self._path, self._mine = port, path, threading.local()

    def get(self, span: tuple[int, int]) -> bytes:
        if not hasattr(self._mine, "connection"):
            self._mine.connection = http.client.HTTPConnection("127.0.0.1", self._port)
        self._mine.connection.request("GET", self._path, headers={"Range": f"bytes={span[0]}-{span[1] - 1}"})
        data: bytes = self._mine.connection.getresponse().read()
        assert len(data) == span[1] - span[0]
        return data


def _large(objects: Objects, raw: Raw, words: Any, shard: bytes) -> dict[str, Any]:
    spans = parallel.spans_of(0, len(shard), parallel.PART_BYTES)
    out = np.empty(len(shard), dtype=np.uint8)
    geometry = Geometry(64, len(words), 4096, words.dtype, "none")

    def span(start: int, stop: int) -> Bytes:
        got = np.empty(stop - start, dtype=np.uint8)
        return got[: objects.read_into("shard", start, got.data)]

    def rows() -> None:
        ShardReader(Source("shard", len(shard), span), geometry, len(words)).rows(0, len(words))

    with ThreadPoolExecutor(parallel.REQUESTS_AT_ONCE) as pool:
        seconds = in_turn(
            calm,
            {
                "raw": lambda: [*pool.map(raw.get, spans)],
                "raw_one_connection": lambda: [raw.get(span) for span in spans],
                "read_into": lambda: objects.read_into("shard", 0, out.data),
                "read": lambda: objects.read("shard"),
                "rows": rows,
                "put": lambda: objects.write("again", shard),
            },
        )
    assert out.tobytes() == shard
    return {
        "object_bytes": len(shard), **rates(seconds, len(shard)),
        "read_into_share_of_raw": share(seconds, "raw", "read_into"),
        "rows_share_of_raw": share(seconds, "raw", "rows"),
    }  # fmt: skip


def _small(objects: Objects, raw: Raw, shard: bytes, threads: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    starts: Sequence[int] = rng.integers(0, len(shard) - SMALL_BYTES, SMALL_READS).tolist()
    spans = [(start, start + SMALL_BYTES) for start in starts]
    with ThreadPoolExecutor(threads) as pool:
        seconds = in_turn(
            calm,
            {
                "raw": lambda: [*pool.map(raw.get, spans)],
                "read_range": lambda: [*pool.map(lambda span: objects.read_range("shard", *span), spans)],
            },
        )
    each = {name: round(SMALL_READS / statistics.median(took)) for name, took in seconds.items()}
    return {
        "bytes": SMALL_BYTES,
        "threads": threads,
        "per_second": each,
        "share_of_raw": share(seconds, "raw", "read_range"),
    }


def in_turn(before: Action, actions: dict[str, Action]) -> dict[str, list[float]]:
    """Seconds of each action, which have their turns, after one turn that is not counted; nor is ``before``."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(ROUNDS + 1):
        for name, action in actions.items():
            before()
            began = time.perf_counter()
            action()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def rates(seconds: dict[str, list[float]], num_bytes: int) -> dict[str, float]:
    """Median GB/s."""
    return {f"{name}_gb_s": round(num_bytes / statistics.median(took) / 1e9, 3) for name, took in seconds.items()}


def calm() -> None:
    """Nothing to do first."""


def share(seconds: dict[str, list[float]], limit: str, ours: str) -> float:
    """Median over the rounds of how much of the limit's speed ours has."""
    return round(statistics.median(a / b for a, b in zip(seconds[limit], seconds[ours], strict=True)), 3)
