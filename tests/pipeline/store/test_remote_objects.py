"""Remote storage that does not answer, and objects too large for one request."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pipeline.store.objects import Objects
from schemas.errors import UnreachableError

s3fs = pytest.importorskip("s3fs", reason="s3:// needs the extra `s3`")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 endpoint at a port where nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("nobody")
def test_an_endpoint_that_does_not_answer_is_named() -> None:
    with pytest.raises(UnreachableError, match=r"s3://bucket/store/zarr\.json.*AWS_ENDPOINT_URL"):
        Objects("s3://bucket/store").read("zarr.json")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # s3fs hands aiohttp bytes
def test_large_objects_go_in_parts_and_still_only_once(s3_url: str) -> None:
    """Above 100 MB s3fs uploads in parts; put-if-absent then holds for the request that completes them."""
    objects = Objects(s3_url)
    data = bytearray(101 * 2**20)
    data[-1] = 7
    assert objects.create("large", data)
    assert not objects.create("large", data)
    assert objects.size("large") == len(data)
    assert objects.read_range("large", len(data) - 2, len(data)) == b"\0\7"
