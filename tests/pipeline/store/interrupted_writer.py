"""Run as a script: write one store in processes that kill themselves at the system calls given as arguments.

    python interrupted_writer.py URL CALL [CALL ...]

Each CALL begins a child that dies by SIGKILL just before its CALL-th fsync, link or rename (0: it lives and finishes):
before anything is written, with a half-written temporary file, with objects but no ledger entry, and so on. Prints how
many such calls the last child made.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]

from conftest import make_sample  # noqa: E402 - found only with the path above


class Countdown:
    """Counts the calls that make writes durable and visible, and dies at one of them."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.calls = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted


def write(url: str, fatal: int) -> int:
    countdown = Countdown(fatal)
    for name in ("fsync", "link"):
        setattr(os, name, countdown.wrap(getattr(os, name)))
    Path.replace = countdown.wrap(Path.replace)  # type: ignore[method-assign]
    if fatal:
        _tear_writes()
    one = make_sample(num_rows=44, chunk_rows=4, shard_rows=16)
    writer = one.open(url)
    one.write(writer, [unit for unit in range(writer.num_units) if unit not in writer.committed()])
    writer.finish()
    return countdown.calls


def _tear_writes() -> None:
    """Files that have no name yet when the process dies lose their second half, as unflushed ones may."""
    kill = os.kill

    def tearing(pid: int, number: int) -> None:
        for partial in Path(sys.argv[1]).rglob("*.partial"):
            if partial.stat().st_nlink == 1:  # a second link is the object's own name: that write had succeeded
                os.truncate(partial, partial.stat().st_size // 2)
        kill(pid, number)

    os.kill = tearing


def main(url: str, calls: list[int]) -> None:
    for fatal in calls:
        read, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write_end, b"%d" % write(url, fatal))
            os._exit(0)
        os.close(write_end)
        _, status = os.waitpid(child, 0)
        made = os.read(read, 99).decode()
        os.close(read)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            sys.exit(f"the child failed with {os.WEXITSTATUS(status)}")
    print(made or "killed")


if __name__ == "__main__":
    main(sys.argv[1], [int(call) for call in sys.argv[2:]])
