"""``python -m benchmarks [NAME ...]``: run all benchmarks, or those named, and keep their results."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from pathlib import Path

NAMES = (
    "codec",
    "collection",
    "collection_cuda",
    "eight_dictionaries",
    "quality",
    "reading",
    "scaling",
    "service",
    "storage",
    "training_step",
)
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, object]:
    """What a reader needs to judge the figures."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    wanted = sys.argv[1:] or NAMES
    unknown = set(wanted) - set(NAMES)
    if unknown:
        sys.exit(f"no such benchmark: {sorted(unknown)}; there are {', '.join(NAMES)}")
    for name in wanted:
        result = {"benchmark": name, **machine(), **importlib.import_module(f"benchmarks.{name}").measure()}
        text = json.dumps(result, indent=1)
        # What cannot run here leaves the results of the machine where it could.
        if "skipped" not in result:
            (RESULTS / f"{name}.json").write_text(text + "\n")
        print(text, flush=True)


if __name__ == "__main__":
    main()
