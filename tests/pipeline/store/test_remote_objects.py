"""Remote storage that does not answer, is not installed or is given credentials in a URL; objects too large for one
request; processes that fork."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.spec_file import validated
from pipeline.store import retrying
from pipeline.store.objects import Objects
from schemas.errors import MissingError, SpecError, UnreachableError


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 endpoint at a port where nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return


@pytest.mark.usefixtures("nobody")
def test_an_endpoint_that_does_not_answer_is_named_soon() -> None:
    began = time.monotonic()
    with pytest.raises(
        UnreachableError,
        match=r"s3://bucket/store/zarr\.json: gave up after 3 tries .*: no connection 3x.*AWS_ENDPOINT_URL",
    ):
        Objects("s3://bucket/store").read("zarr.json")
    assert time.monotonic() - began < 5


def test_an_answer_that_never_comes_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that accepts connections and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setattr("pipeline.store.s3.SILENCE_S", 0.2)
        monkeypatch.setattr(retrying, "_TRIES", 2)
        with pytest.raises(UnreachableError, match="timeout 2x"):
            Objects("s3://bucket/store").read("zarr.json")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIDEXAMPLE:wJalrXUtnFEMI@bucket/store",
        "s3://AKIDEXAMPLE:wJalr/UtnFEMI@bucket/store",
        "gs://user:wJalrXUtnFEMI@bucket",
        "sftp://me:wJalrXUtnFEMI@host/folder",
        "simplecache::s3://AKIDEXAMPLE:wJalrXUtnFEMI@bucket/store",
        "https://bucket.s3.amazonaws.com/store?X-Amz-Signature=wJalrXUtnFEMI",
    ],
)
def test_credentials_in_a_url_are_refused_and_never_repeated(url: str) -> None:
    spec = {"kind": "evaluate", "store": url, "dictionaries": "runs/a", "output": "runs/b"}
    several = spec | {"store": {"a": url, "b": url}}
    for call in (
        lambda: Objects(url), lambda: validated(spec, where="spec.yaml"), lambda: validated(several, where="spec.yaml"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match="credentials in it") as caught:
            call()
        assert "wJalr" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["s3://bucket/a@b:c", "memory://x/y@z", "s3://arn:aws:s3:eu-west-1:1:accesspoint/a"])
def test_other_urls_with_such_signs_are_taken(url: str) -> None:
    Objects(url)


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("s3", "botocore", "s3"), ("gs", "gcsfs", "gcs"), ("abfs", "adlfs", None)]
)
def test_a_missing_extra_is_named(scheme: str, package: str, extra: str | None) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from pipeline.store.objects import Objects\n"
        "from schemas.errors import SpecError\n"
        f"try: Objects('{scheme}://bucket/store')\n"
        "except SpecError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert f"{scheme}://bucket/store: {scheme}:// needs a package that is not installed: " in done.stdout
    assert (f"pip install 'headworks[{extra}]'" if extra else package) in done.stdout


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(SpecError, match="nosuch://a: expected a path or a URL that fsspec opens"):
        Objects("nosuch://a")


class Flaky(MemoryFileSystem):
    """A file system of another library, which answers every second request with a failure, after doing it."""

    protocol = "flaky"
    calls = 0

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        super().pipe_file(path, value, mode=mode, **kwargs)
        self._fail()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: object) -> bytes:
        data: bytes = super().cat_file(path, start, end, **kwargs)
        self._fail()
        return data

    def _fail(self) -> None:
        Flaky.calls += 1
        if Flaky.calls % 2:
            raise ConnectionResetError("the line is bad")


def test_any_file_system_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here no mark can be kept, so after a failure the bytes tell whether the object is ours."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(retrying, "_FIRST_LIMIT_S", 0.01)
    monkeypatch.setattr(Flaky, "calls", 0)
    objects = Objects(f"flaky://{time.monotonic_ns()}")
    assert objects.create("a", b"mine")
    assert objects.read("a") == b"mine"
    assert not objects.create("a", b"mine"), "refused at the first try: another call's"
    with pytest.raises(MissingError):
        objects.read("b")


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # gcsfs hands aiohttp bytes
def test_a_forked_child_reads_too(s3_url: str, gcs_url: str) -> None:
    """As the workers of a torch DataLoader do, with a store that the parent has read from."""
    for url in (s3_url, gcs_url):
        objects = Objects(url)
        data = os.urandom(20 * 2**20)
        objects.write("a", data)
        assert objects.read("a") == data
        child = os.fork()
        if not child:
            os._exit(0 if objects.read("a") == data and objects.list() == ["a"] else 1)
        deadline = time.monotonic() + 30
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                pytest.fail(f"the child hangs reading {url}")
            time.sleep(0.05)
        assert os.waitstatus_to_exitcode(ended[1]) == 0, url


def test_large_objects_go_in_parts_and_still_only_once(s3_url: str) -> None:
    """Above 32 MiB; put-if-absent then holds for the request that completes them."""
    objects = Objects(s3_url)
    data = bytearray(33 * 2**20)
    data[-1] = 7
    assert objects.create("large", data)
    assert not objects.create("large", data)
    assert objects.size("large") == len(data)
    assert objects.read_range("large", len(data) - 2, len(data)) == b"\0\7"
