"""What a submitted job runs: ``python -m deploy.entry job.json``. The file is data, see ``deploy.submission``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy import show
from deploy.exits import guarded, stoppable
from pipeline import logs
from pipeline.spec_file import validated


def main(path: str) -> None:
    """Run the job and print its summary as JSON on the last line of stdout; progress goes to stderr."""
    content = json.loads(Path(path).read_text("utf-8"))
    job = validated(content["job"], where=path)
    from workers.progress import Progress
    from workers.run import run_job

    with stoppable(lambda: f"{job.name} was stopped; what it committed is kept, submit it again to go on"):
        summary = run_job(job, progress=Progress(logs.progress_stream()))
    for line in show.summary_lines(summary):
        sys.stdout.write(line + "\n")
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    logs.configure()
    sys.exit(guarded(lambda: main(sys.argv[1]), debug=True, as_json=False, mistakes=False))
