"""Fully shuffled training batches from a store: against memcpy, SAELens' cached activations and safetensors shards.

One process, bfloat16 without codec, files in the page cache, every row of the store in a random order, batches of 4096.

1. memcpy copies 256 MiB into a ready buffer with one thread, the fastest of the plain copies here (two torch threads
   are slower). It and three epochs of ours take turns; the ratio is the median over the turns. The first epoch is told
   apart: it compiles the loops, maps the files, reads the ledger and checks every checksum.
2. Peers read the same number of rows of the same width, each with its own reader: rows a second, page-cached too.
   SAELens keeps float32 as its runner does; the safetensors shards are bfloat16.
3. Memory of a process of its own that reads an epoch, of a store and of one ten times as large: its own (anonymous)
   memory, and the pages of mapped files, which the kernel takes back when it needs them, apart.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peer
from pipeline.order.feed import FeedBatch, RowFeed
from pipeline.store.reader import Store
from pipeline.store.rows import TokenRows
from pipeline.store.writer import StoreWriter
from schemas.fingerprint import fingerprint
from schemas.store import PassRecord, StoreRecord
from schemas.train import RowFilter, RowOrder

HOOK, BATCH_ROWS, SHARD_ROWS, CONTEXT = "blocks.9.hook_resid_post", 4096, 16384, 256
ROWS = {576: 2**19, 4096: 2**17}
ROUNDS, EPOCHS, PEER_ROWS, THREADS = 9, 3, 2**17, 2
MEMORY_ROWS = (2**17, 10 * 2**17)
COPY_BYTES = 2**28


def write(url: str, width: int, num_rows: int, layout: str = "zarr", codec: str = "none") -> None:
    """Normal numbers; units repeat a few blocks of them, which no part of reading can tell."""
    identity = {"benchmark": "reading", "width": width, "num_rows": num_rows, "layout": layout}
    record = StoreRecord.model_validate({
        "fingerprint": fingerprint(identity), "identity": identity, "table_fingerprint": "table", "layout": layout,
        "dtype": "bfloat16", "chunk_rows": 1024, "shard_rows": SHARD_ROWS, "codec": codec, "table_url": "",
        "specials": {}, "spec": {}, "versions": {},
    })  # fmt: skip
    passes = PassRecord(hook_points={HOOK: width}, batch_tokens=BATCH_ROWS)
    writer = StoreWriter.open(url, record, passes, num_rows=num_rows)
    words = block(width, SHARD_ROWS)
    for unit in range(writer.num_units):
        start, stop = writer.unit_rows(unit)
        row = np.arange(start, stop)
        tokens = TokenRows(row, row % 49152, row // 1000, row % CONTEXT, np.zeros(len(row), np.bool_))
        arrays = {HOOK: words[: stop - start]}
        writer.write_unit(unit, arrays, tokens, worker="benchmark", attempt=0, seconds={})
    writer.finish()


def block(width: int, num_rows: int) -> np.ndarray[Any, Any]:
    """bfloat16 words [num_rows, width]."""
    values = np.random.default_rng(0).standard_normal((num_rows, width), dtype=np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def feed_of(url: str) -> RowFeed:
    every_row = RowFilter(exclude_specials=False, exclude_positions=[])
    return RowFeed(Store.open(url), [HOOK], rows=every_row, order=RowOrder(), batch_rows=BATCH_ROWS, split="all")


class Copy:
    """A plain copy into a ready buffer."""

    def __init__(self) -> None:
        self._source, self._target = (np.ones(COPY_BYTES // 8, np.int64) for _ in range(2))

    def rate(self) -> float:
        """GB/s, the median of five."""
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            np.copyto(self._target, self._source)
            seconds.append(time.perf_counter() - began)
        return COPY_BYTES / 1e9 / statistics.median(seconds)


def seconds_of(batches: Iterator[FeedBatch], feed: RowFeed, epochs: int) -> float:
    """Seconds an epoch. One window less than the batches come from is read while they are taken, so time is for it."""
    windows = epochs * feed.epoch(0).num_windows
    began = time.perf_counter()
    for _ in islice(batches, epochs * feed.batches_per_epoch):
        pass
    return (time.perf_counter() - began) / epochs * windows / (windows - 1)


def shuffled(url: str, size_bytes: int, copy: Copy) -> dict[str, Any]:
    """Some epochs of all batches, in turn with the copy."""
    feed = feed_of(url)
    batches = feed.iterate()
    first = size_bytes / 1e9 / seconds_of(batches, feed, 1)
    rates, copies = [], []
    for _ in range(ROUNDS):
        time.sleep(0.2)  # the window that is read ahead is done: the copy has the machine for itself
        copies.append(copy.rate())
        rates.append(size_bytes / 1e9 / seconds_of(batches, feed, EPOCHS))
    batches.close()
    shares = sorted(rate / one for rate, one in zip(rates, copies, strict=True))
    return {
        "first_epoch_gb_per_s": first,
        "gb_per_s": statistics.median(rates),
        "memcpy_gb_per_s": statistics.median(copies),
        "share_of_memcpy": statistics.median(shares),
        "share_quartiles": [shares[len(shares) // 4], shares[-len(shares) // 4]],
    }


def against_peers(folder: Path, width: int) -> dict[str, Any]:
    """Rows a second of everybody."""
    url, words = str(folder / f"peer-{width}"), folder / f"words-{width}.npy"
    write(url, width, PEER_ROWS)
    np.save(words, np.concatenate([block(width, SHARD_ROWS)] * (PEER_ROWS // SHARD_ROWS)))
    feed = feed_of(url)
    batches = feed.iterate()
    seconds_of(batches, feed, 1)
    seconds = [seconds_of(batches, feed, EPOCHS) for _ in range(ROUNDS)]
    batches.close()
    result: dict[str, Any] = {"width": width, "headworks_rows_per_s": PEER_ROWS / statistics.median(seconds)}
    for name in ("sae_lens", "safetensors"):
        answer = peer.run("reading.py", name, words, folder / f"{name}-{width}", BATCH_ROWS, CONTEXT, threads=THREADS)
        if "rows_per_s" in answer:
            answer["times_as_fast"] = result["headworks_rows_per_s"] / answer["rows_per_s"]
        result[name] = answer
    return result


def memory(folder: Path) -> list[dict[str, Any]]:
    """Peaks of a fresh process for each store."""
    lines = []
    for num_rows in MEMORY_ROWS:
        url = str(folder / f"memory-{num_rows}")
        write(url, 576, num_rows)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.reading", url],
            check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        lines.append({"store_mb": num_rows * 576 * 2 // 10**6, **json.loads(done.stdout)})
    return lines


def read_and_watch(url: str) -> dict[str, int]:
    """MB at the peak of one epoch, above what the imports take."""
    before, peaks, done = _resident(), {"RssAnon": 0, "RssFile": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for name, size in _resident().items():
                peaks[name] = max(peaks[name], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    feed = feed_of(url)
    batches = feed.iterate()
    for _ in islice(batches, feed.batches_per_epoch):
        pass
    batches.close()
    done.set()
    watcher.join()
    return {
        "own_mb": (peaks["RssAnon"] - before["RssAnon"]) // 1000,
        "mapped_files_mb": (peaks["RssFile"] - before["RssFile"]) // 1000,
    }


def _resident() -> dict[str, int]:
    """kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))}


def measure() -> dict[str, Any]:
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy = Copy()
        for width, num_rows in ROWS.items():
            for layout in ("zarr", "arrow"):
                url = str(folder / f"{layout}-{width}")
                write(url, width, num_rows, layout)
                line = shuffled(url, num_rows * width * 2, copy)
                table.append({"width": width, "layout": layout, "rows": num_rows, **line})
        peers = [against_peers(folder, width) for width in (576,)]
        return {"batch_rows": BATCH_ROWS, "shuffled": table, "peers": peers, "memory": memory(folder)}


if __name__ == "__main__":
    print(json.dumps(read_and_watch(sys.argv[1])))
