"""Run as a script: write the same store several times, in processes that kill themselves at random system calls.

    python interrupted_writer.py FOLDER TRIALS SEED LAYOUT DTYPE

FOLDER/calm is written undisturbed; it takes N calls of fsync, link and rename. Each FOLDER/trial-I is written by one
child after the other that die by SIGKILL just before a random one of these calls (before anything is written, with a
half-written temporary file, with objects but no ledger entry, and so on), and by a last one that lives.
"""

from __future__ import annotations

import os
import random
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


def write(url: str, fatal: int, layout: str, dtype: str) -> int:
    countdown = Countdown(fatal)
    for name in ("fsync", "link"):
        setattr(os, name, countdown.wrap(getattr(os, name)))
    Path.replace = countdown.wrap(Path.replace)  # type: ignore[method-assign]
    if fatal:
        _tear_writes(url)
    one = make_sample(num_rows=44, chunk_rows=4, shard_rows=16, layout=layout, dtype=dtype)
    writer = one.open(url)
    one.write(writer, [unit for unit in range(writer.num_units) if unit not in writer.committed()])
    writer.finish()
    return countdown.calls


def _tear_writes(url: str) -> None:
    """Files that have no name yet when the process dies lose their second half, as unflushed ones may."""
    kill = os.kill

    def tearing(pid: int, number: int) -> None:
        for partial in Path(url).rglob("*.partial"):
            if partial.stat().st_nlink == 1:  # a second link is the object's own name: that write had succeeded
                os.truncate(partial, partial.stat().st_size // 2)
        kill(pid, number)

    os.kill = tearing


def in_child(url: str, fatal: int, layout: str, dtype: str) -> int:
    """Calls that the child made; 0 if it was killed."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, b"%d" % write(url, fatal, layout, dtype))
        os._exit(0)
    os.close(write_end)
    _, status = os.waitpid(child, 0)
    calls = int(os.read(read_end, 99) or b"0")
    os.close(read_end)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        sys.exit(f"the child of {url} that was to die at call {fatal} failed before")
    return calls


def main(folder: Path, trials: int, seed: int, layout: str, dtype: str) -> None:
    calls = in_child(str(folder / "calm"), 0, layout, dtype)
    rng = random.Random(seed)
    for trial in range(trials):
        # Each child goes on where the one before it died, so the later ones have fewer calls to die at.
        for fatal in [*(rng.randint(1, calls // 2) for _ in range(6)), 0]:
            in_child(str(folder / f"trial-{trial}"), fatal, layout, dtype)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
