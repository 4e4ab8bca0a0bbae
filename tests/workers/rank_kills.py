"""Killing ranks of a training under Ray Train once its log has reached a step."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil


def steps_logged(output: str) -> list[int]:
    path = Path(output, "metrics.jsonl")
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def ranks() -> list[psutil.Process]:
    """Processes of the worker group, children of the Ray that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.pid)


def kill_at(output: str, step: int, rank: int) -> threading.Thread:
    """A thread that kills a rank with SIGKILL, -1 the last one or -2 the one before it, once the output has logged a
    step."""

    def watch() -> None:
        while max(steps_logged(output), default=0) < step:
            time.sleep(0.01)
        os.kill(ranks()[rank].pid, signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread
