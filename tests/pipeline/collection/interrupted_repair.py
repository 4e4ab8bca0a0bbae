"""Run as a script: repair copies of a damaged store in processes that kill themselves at every call in turn.

    python interrupted_repair.py DAMAGED FOLDER STEP

DAMAGED is repaired undisturbed as FOLDER/calm; that takes N calls of fsync, link, rename and unlink. FOLDER/trial-I is
repaired by a child that dies by SIGKILL just before call I (every STEP-th), then, its lease grown old, by one that
lives.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[3])]

# Loaded here once, or every child would load it: seconds each time.
import pandas as pd  # noqa: E402, F401 - pyarrow asks for it
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402, F401

from pipeline.collection.repair import repair  # noqa: E402 - found only with the path above


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


def repaired(url: str, fatal: int) -> int:
    """Calls that were made."""
    countdown = Countdown(fatal)
    os.fsync, os.link = countdown.wrap(os.fsync), countdown.wrap(os.link)
    Path.replace = countdown.wrap(Path.replace)  # type: ignore[method-assign]
    Path.unlink = countdown.wrap(Path.unlink)  # type: ignore[method-assign]
    done = repair(url)
    if done.remaining:
        sys.exit(f"{url}, to die at call {fatal}: {done.remaining}")
    return countdown.calls


def in_child(url: str, fatal: int) -> int:
    """Calls that the child made; 0 if it was killed."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, b"%d" % repaired(url, fatal))
        os._exit(0)
    os.close(write_end)
    _, status = os.waitpid(child, 0)
    calls = int(os.read(read_end, 99) or b"0")
    os.close(read_end)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        sys.exit(f"the child of {url} that was to die at call {fatal} failed before")
    return calls


def main(damaged: Path, folder: Path, step: int) -> None:
    shutil.copytree(damaged, folder / "calm")
    calls = in_child(str(folder / "calm"), 0)
    for fatal in range(1, calls + 1, step):
        trial = Path(shutil.copytree(damaged, folder / f"trial-{fatal}"))
        in_child(str(trial), fatal)
        for lease in trial.glob("leases/*.json"):
            os.utime(lease, (time.time() - 3600,) * 2)
        in_child(str(trial), 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
