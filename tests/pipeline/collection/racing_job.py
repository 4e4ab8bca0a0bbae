"""Run as a script: a collect job without Ray that begins when another, its rival, is ready too.

    python racing_job.py SPEC.json READY

It makes the file READY when its model's libraries are loaded, and waits until there are two such files beside it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]

from small_job import built_table  # noqa: E402 - found only with the path above

from pipeline.collection.prepare import prepare  # noqa: E402
from pipeline.collection.unit import UnitCollector, collect_units  # noqa: E402
from schemas.collect import CollectSpec  # noqa: E402
from schemas.errors import IncompleteError, MismatchError  # noqa: E402


def main(spec_file: Path, ready: Path) -> None:
    spec = CollectSpec.model_validate(json.loads(spec_file.read_text()))
    ready.touch()
    while len([*ready.parent.glob("ready-*")]) < 2:
        time.sleep(0.01)
    table = built_table(spec)
    passes = prepare(spec, table)
    while True:
        try:
            collectors = [UnitCollector.open(one.of) for one in passes]
            for collector, one in zip(collectors, passes, strict=True):
                list(collect_units(collector, one.units))
            for collector in collectors:
                collector.writer.finish()
            return
        except (IncompleteError, MismatchError):
            again = prepare(spec, table)
            if [(one.of.hook_points, one.of.num_rows) for one in again] == [
                (one.of.hook_points, one.of.num_rows) for one in passes
            ]:
                raise
            passes = again


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
