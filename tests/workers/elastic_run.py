"""Trains on the cluster at an address; says the summary. Arguments: address, the job as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kill_job import MARK

from schemas.pipeline import ClusterSpec
from schemas.train import TrainSpec
from workers.cluster import connect
from workers.progress import Progress
from workers.train import run_train

if __name__ == "__main__":
    with connect(ClusterSpec(), sys.argv[1]):
        summary = run_train(TrainSpec.model_validate_json(sys.argv[2]), progress=Progress(sys.stderr))
    print(MARK + json.dumps(summary), flush=True)
