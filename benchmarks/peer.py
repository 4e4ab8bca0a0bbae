"""Running a peer's script in the peers' environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"


def run(script: str, *arguments: object, threads: int, timeout_s: float = 1200) -> dict[str, Any]:
    """The last line that ``benchmarks/peers/SCRIPT`` prints, as JSON; ``{"skipped": why}`` without that environment."""
    if not PYTHON.exists():
        return {"skipped": "no .venv-peers; run `make peers`"}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    answer = subprocess.run(
        [PYTHON, HERE / "peers" / script, *map(str, arguments), str(threads)],
        check=False, capture_output=True, text=True, timeout=timeout_s, env=environment, cwd=HERE.parent,
    )  # fmt: skip
    if answer.returncode:
        raise RuntimeError(f"{script} {arguments} failed:\n{answer.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(answer.stdout.strip().splitlines()[-1])
    return result
