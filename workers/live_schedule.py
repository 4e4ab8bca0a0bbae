"""Which block of a live feed is made next: decisions only, no Ray, no clock.

Readers, the ranks of a training, want units in ascending order and say when they are done with one. Blocks are made in
order, at most ``ahead`` units beyond the first that any reader still wants; a unit that a reader is waiting for is made
wherever it lies. So what is in memory is bounded, and nobody waits for a block that nobody may make.
"""

from __future__ import annotations

Reader = tuple[int, int, int]
"""(attempt at the training, rank, number of ranks); readers of an earlier attempt are gone."""


class BlockSchedule:
    """Which blocks there are, are being made, and are wanted. Final; every method is deterministic."""

    def __init__(self, num_units: int, ahead: int) -> None:
        self.num_units = num_units
        self.ahead = ahead
        self._lows: dict[Reader, int] = {}
        self._first: int | None = None
        self._attempt = -1
        self._awaited: set[int] = set()
        self._making: set[int] = set()
        self.ready: set[int] = set()
        """Units whose blocks can be read."""

    @property
    def low(self) -> int | None:
        """The first unit that any reader still wants; None while there is no reader. Until all ranks are there it is
        the one that the first of them began with: the others begin there, too."""
        if self._lows and len(self._lows) == next(iter(self._lows))[2]:
            return min(self._lows.values())
        return self._first

    def expect(self, unit: int) -> None:
        """Readers will come and begin here: until they do, blocks are made for them."""
        self._first = unit

    def want(self, reader: Reader, unit: int) -> bool:
        """A reader wants a unit, and none below it that it has not asked for; False of one that is gone."""
        if reader[0] < self._attempt:
            return False
        if reader[0] > self._attempt:
            self._attempt = reader[0]
            self._lows.clear()
            self._awaited.clear()
            self._first = unit
        self._first = unit if self._first is None else min(self._first, unit)
        self._lows[reader] = min(self._lows.get(reader, unit), unit)
        if unit not in self.ready:
            self._awaited.add(unit)
        return True

    def need(self, unit: int) -> None:
        """Somebody waits for what is known once a unit is made."""
        if unit not in self.ready:
            self._awaited.add(unit)

    def done_before(self, reader: Reader, unit: int) -> list[int]:
        """A reader wants nothing below ``unit`` any more; units whose blocks nobody wants then."""
        if reader in self._lows:
            self._lows[reader] = max(self._lows[reader], unit)
        return self._dropped()

    def has_room(self, unit: int) -> bool:
        """Whether a block of a unit would be kept."""
        low = self.low
        return unit in self._awaited or (low is not None and low <= unit < low + self.ahead)

    def next_unit(self) -> int | None:
        """The unit to make next, taken as begun; None while there is nothing to do."""
        low = self.low
        wanted = set(self._awaited)
        if low is not None:
            wanted.update(range(low, min(low + self.ahead, self.num_units)))
        unit = min(wanted - self.ready - self._making, default=None)
        if unit is not None:
            self._making.add(unit)
        return unit

    def made(self, unit: int) -> list[int]:
        """A block can be read; units whose blocks nobody wants, this one perhaps."""
        self._making.discard(unit)
        self._awaited.discard(unit)
        self.ready.add(unit)
        return self._dropped()

    def failed(self, unit: int) -> None:
        """Making a block came to nothing; it is made again if it is still wanted."""
        self._making.discard(unit)

    def lost(self, unit: int) -> None:
        """A block that was ready is not there any more, and a reader wants it."""
        self.ready.discard(unit)
        self._awaited.add(unit)

    def _dropped(self) -> list[int]:
        low = self.low
        gone = [] if low is None else sorted(unit for unit in self.ready if unit < low)
        self.ready.difference_update(gone)
        return gone
