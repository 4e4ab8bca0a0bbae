"""Hidden states between two stages of a network: a bounded store from which the next stage fetches.

The stage that computes puts one state after the other and waits while there is no room; the next stage fetches them by
their numbers. A unit that fails on one side is given up on the other, so that neither waits for what will not come.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

State = TypeVar("State")

Key = tuple[int, int]
"""Unit and attempt."""

_REMEMBERED = 64
"""Failures that are kept for a neighbour who has not asked yet; far more than units are ever under way."""


class Outbox(Generic[State]):
    """Final; every method may be called from any thread."""

    def __init__(self, room: int = 2) -> None:
        """``room``: states that may wait, of all units together."""
        self._room = room
        self._states: dict[tuple[Key, int], State] = {}
        self._failed: OrderedDict[Key, BaseException] = OrderedDict()
        self._changed = threading.Condition()

    def put(self, key: Key, index: int, state: State) -> None:
        """Add a state, in the order of ``index``; waits for room.

        Raises:
            BaseException: the error with which the unit was failed or given up.
        """
        with self._changed:
            self._changed.wait_for(lambda: key in self._failed or len(self._states) < self._room)
            self._require_going_on(key)
            self._states[key, index] = state
            self._changed.notify_all()

    def fetch(self, key: Key, index: int) -> State:
        """Take a state out; waits for it. Raises what ``put`` raises."""
        with self._changed:
            self._changed.wait_for(lambda: key in self._failed or (key, index) in self._states)
            self._require_going_on(key)
            state = self._states.pop((key, index))
            self._changed.notify_all()
            return state

    def fail(self, key: Key, error: BaseException) -> None:
        """The unit fails on one side: drop its states, and let both sides have the error. The first one counts."""
        with self._changed:
            for each in [each for each in self._states if each[0] == key]:
                del self._states[each]
            self._failed.setdefault(key, error)
            while len(self._failed) > _REMEMBERED:
                self._failed.popitem(last=False)
            self._changed.notify_all()

    def _require_going_on(self, key: Key) -> None:
        if key in self._failed:
            raise self._failed[key]
