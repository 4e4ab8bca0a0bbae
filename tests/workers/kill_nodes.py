"""A Ray cluster of several nodes in a process of its own, so that it and the tests' other Ray never meet.

Reads one command a line (``fill NUMBER``, ``add``, ``remove``) and answers each with JSON; ends when its input does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parent))

from kill_job import MARK

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
# A dead node is noticed in seconds; a busy one has long enough to answer.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 5000,
          "health_check_failure_threshold": 3}  # fmt: skip


def raylet(node: Any) -> Any:
    return node.all_processes["raylet"][0].process


def main() -> None:
    head = {**NODE, "_system_config": HEALTH, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: list[Any] = []
    added: list[Any] = []
    try:
        answer({"address": cluster.address, "head": raylet(cluster.head_node).pid})
        for line in sys.stdin:
            command, *words = line.split()
            if command == "fill":
                nodes = [node for node in nodes if raylet(node).poll() is None]
                nodes += [cluster.add_node(wait=False, **NODE) for _ in range(int(words[0]) - len(nodes))]
            elif command == "add":
                added.append(cluster.add_node(wait=False, **NODE))
            elif command == "remove":
                cluster.remove_node(added.pop(), allow_graceful=False)
            answer({})
    finally:
        cluster.shutdown()


def answer(facts: dict[str, Any]) -> None:
    print(MARK + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
