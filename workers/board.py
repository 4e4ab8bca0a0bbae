"""A notice board between a process of the cluster and the driver: the last thing that was said, nothing more.

Ranks and tasks post their progress without waiting; the driver reads when it likes. Losing a post loses a line of the
progress display and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray


class Board:
    """Runs as a Ray actor that takes no CPU. Keeps the latest record."""

    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}

    def post(self, record: dict[str, Any]) -> None:
        """Put up a record in place of the last."""
        self._latest = record

    def latest(self) -> dict[str, Any]:
        """The last record, empty before the first."""
        return self._latest


def open_board() -> Any:
    """A new board's actor handle; it ends with the last handle to it."""
    return ray.remote(num_cpus=0)(Board).remote()


def poster(board: Any) -> Callable[[dict[str, Any]], None]:
    """A function that posts and does not wait; for the process that works."""

    def post(record: dict[str, Any]) -> None:
        board.post.remote(record)

    return post


def read(board: Any, timeout_s: float = 5.0) -> dict[str, Any]:
    """The latest record; empty where the board does not answer in time or is gone."""
    try:
        latest: dict[str, Any] = ray.get(board.latest.remote(), timeout=timeout_s)
    except ray.exceptions.RayError:
        return {}
    return latest
