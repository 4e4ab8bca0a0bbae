"""A real Ray head with its dashboard, for tests of whatever hands jobs to one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A Ray head and how to talk to it."""

    url: str
    environment: dict[str, str]

    def headworks(self, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "headworks", *words, "--address", self.url],
            env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def json(self, *words: str) -> Any:
        answer = self.headworks(*words, "--json")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def started_head(agent_port: int = 0, **variables: str) -> Iterator[Head]:
    """`ray start --head` on ports of its own. Ended by process id: `ray stop` would end every Ray of this machine."""
    gcs, dashboard, client, agent = free_ports(4)
    agent = agent_port or agent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    environment |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment |= variables
    with tempfile.TemporaryDirectory(prefix="hw", dir="/tmp", ignore_cleanup_errors=True) as folder:
        # Where Ray puts a token of its own accord; `ray start` then asks for it.
        Path(folder, ".ray").mkdir()
        Path(folder, ".ray", "auth_token").write_text("t" * 64)
        environment["HOME"] = folder
        process = subprocess.Popen(
            [
                BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=100000000",
                "--dashboard-host=127.0.0.1", f"--port={gcs}", f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}",
            ],
            env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        head = Head(f"http://127.0.0.1:{dashboard}", environment)
        try:
            deadline = time.monotonic() + 90
            while head.headworks("jobs", "list").returncode:
                assert time.monotonic() < deadline, "the head does not answer"
                assert process.poll() is None, "ray start ended"
            yield head
        finally:
            family = [*psutil.Process(process.pid).children(recursive=True)]
            process.send_signal(signal.SIGTERM)
            psutil.wait_procs(family, timeout=10)
            for orphan in family:
                if orphan.is_running():
                    orphan.kill()
            process.wait(timeout=30)
