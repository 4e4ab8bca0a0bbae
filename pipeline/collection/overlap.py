"""Units that overlap: the forward of one unit runs while the one before it is encoded, written and committed.

    submit -> read -> forward -> copy -> encode -> write, commit -> result

Every stage has threads of its own and takes items from a queue of bounded length: units, then their batches, then
their hook points. A stage that is behind holds up the ones before it and in the end ``submit``; nothing is dropped.
The rows of a unit are held from its forward to its commit, of at most ``UNITS_HELD`` units: beside the model a process
holds their rows, up to three hook points encoded (one made, one waiting, one written; one more for each further thread
that writes), and the activations of a few batches.

An error in any stage fails the unit that it met, whose remaining items pass through the other stages untouched, so that
nothing of it is committed; other units go on. Threads end with ``close``, which gives up what is under way.

On CPU the forward and the encoding share the cores, and what overlaps is mostly waiting for storage. On CUDA the
process's cores are free to encode.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, Self, TypeVar

import torch

from pipeline.collection.plan import Batch
from pipeline.collection.seconds import Stage
from pipeline.collection.staging import Staged, Staging, open_staging
from pipeline.collection.unit_run import Kept, UnitRun, empty_rows, first_rows
from pipeline.store.parallel import MapBlocks
from pipeline.store.unit_part import EncodedPart
from pipeline.store.writer import StoreWriter
from schemas.errors import JobError

Result = TypeVar("Result")
Ended = TypeVar("Ended")

UNITS_HELD = 2
"""Units whose rows are in memory: one that the forward fills, one that is encoded and written."""

BATCHES_WAITING = 2
ENCODED_WAITING = 1
REMOTE_WRITERS = 4
"""Threads that create objects in remote storage, whose answers take long. A disk is written by one."""


class OverlappedCollector(Generic[Ended]):
    """Collects the units that are submitted, several at a time. Final; ``submit`` from any thread, ``close`` once."""

    def __init__(
        self,
        begin: Callable[[int, int], UnitRun],
        writer: StoreWriter,
        device: torch.device,
        end: Callable[[UnitRun], Ended],
    ) -> None:
        """``begin(unit, attempt)`` gives the run of one unit into ``writer``'s store; the network is on ``device``.

        ``end`` is done with a unit whose hook points are all written, and gives its result: ``UnitRun.commit``.
        """
        self._end = end
        self._begin = begin
        self._writer = writer
        self._device = device
        # Torch counts its threads for each thread that calls it; another count could change low bits.
        self._num_threads = torch.get_num_threads()
        self._num_writers = 1 if writer.objects.is_local else REMOTE_WRITERS
        self._room: queue.Queue[Kept] = queue.Queue()
        self._num_rooms = 0
        self._to_read: queue.Queue[_Job[Ended] | None] = queue.Queue(1)
        self._to_forward: queue.Queue[_Job[Ended] | None] = queue.Queue(1)
        self._to_copy: queue.Queue[tuple[_Job[Ended], Batch, Staged] | _Job[Ended] | None] = queue.Queue(
            BATCHES_WAITING
        )
        self._to_encode: queue.Queue[_Job[Ended] | None] = queue.Queue(UNITS_HELD)
        self._to_write: queue.Queue[tuple[_Job[Ended], str, EncodedPart | None] | None] = queue.Queue(ENCODED_WAITING)
        self._threads: list[threading.Thread] = []
        self._jobs: set[_Job[Ended]] = set()
        self._lock = threading.Lock()
        self._submitting = threading.Lock()
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, unit: int, attempt: int = 0) -> Future[Ended]:
        """Begin a unit behind those that were submitted before; waits while the stages have no room for it.

        The result is there once the unit is committed; its exception is the error of the stage that failed.
        """
        with self._submitting:
            job: _Job[Ended] = _Job(self._begin(unit, attempt))
            job.run.seconds.num_threads = {"write": self._num_writers}
            with self._lock:
                assert not self._is_closed, "submit after close"
                self._jobs.add(job)
            if not self._threads:
                self._start()
            self._to_read.put(job)
        return job.future

    def close(self) -> None:
        """Give up the units that are not committed, and end the threads; returns when they have ended.

        Every stage ends what it has in hand first: a batch, or an object.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for job in self._jobs:
                job.fail(JobError(f"unit {job.run.unit} was given up: its collector was closed"))
        with self._submitting:
            if self._threads:
                self._to_read.put(None)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        loops = [self._read, self._forward, self._copy, self._encode, *[self._write] * self._num_writers]
        for loop in loops:
            # Daemons: an interpreter that ends without ``close`` must not wait for them.
            thread = threading.Thread(target=loop, name=f"headworks{loop.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _read(self) -> None:
        while (job := self._to_read.get()) is not None:
            job.step(job.run.read)
            self._to_forward.put(job)
        self._to_forward.put(None)

    def _forward(self) -> None:
        torch.set_num_threads(self._num_threads)
        clock = _Clock("forward")
        stages = partial(open_staging, self._device, self._writer.record.dtype)
        staging: Staging | None = None
        while (job := self._to_forward.get()) is not None:
            job.step(partial(self._give_room, job))
            staging = staging or job.step(stages)
            for batch in job.run.batches:
                if staging is not None and (staged := job.step(partial(job.run.forward, batch, staging))) is not None:
                    self._to_copy.put((job, batch, staged))
            clock.passed(job)
            self._to_copy.put(job)
        self._to_copy.put(None)

    def _copy(self) -> None:
        clock = _Clock("copy")
        while (item := self._to_copy.get()) is not None:
            if isinstance(item, _Job):
                clock.passed(item)
                self._to_encode.put(item)
                continue
            job, batch, staged = item
            job.step(partial(job.run.keep, batch, staged))
            job.step(staged.release, even_if_failed=True)
            clock.passed(job)
        self._to_encode.put(None)

    def _encode(self) -> None:
        clock = _Clock("encode")
        with _spread(encoding_threads(self._device, self._num_threads)) as each:
            while (job := self._to_encode.get()) is not None:
                for hook in job.run.hook_points:
                    part = job.step(partial(job.run.encode, hook, each))
                    clock.passed(job)
                    self._to_write.put((job, hook, part))
                    part = None
                if not job.run.hook_points:
                    self._to_write.put((job, "", None))
        for _ in range(self._num_writers):
            self._to_write.put(None)

    def _write(self) -> None:
        clock = _Clock("write")
        while (item := self._to_write.get()) is not None:
            job, hook, part = item
            if part is not None:
                job.step(partial(job.run.write, hook, part))
            item = part = None
            clock.passed(job)
            if job.part_is_last():
                self._finish(job)
                clock.passed(job)

    def _finish(self, job: _Job[Ended]) -> None:
        """All hook points of a unit have passed: commit it unless one failed, and take its memory back."""
        ended = job.step(partial(self._end, job.run))
        if job.run.kept:
            self._room.put(job.room)
        with self._lock:
            self._jobs.discard(job)
        job.finish(ended)

    def _give_room(self, job: _Job[Ended]) -> None:
        """Memory for the rows of a unit, from one that is committed where there is no more; waits for that."""
        if self._num_rooms < UNITS_HELD and self._room.empty():
            job.room = empty_rows(self._writer, min(self._writer.record.shard_rows, self._writer.num_rows))
            self._num_rooms += 1
        else:
            job.room = self._room.get()
        job.run.kept = first_rows(job.room, job.run.num_rows)


def encoding_threads(device: torch.device, num_threads: int) -> int:
    """Threads that encode one hook point: one where the forward needs the process's cores, else one for each."""
    return 1 if device.type == "cpu" else num_threads


class _Job(Generic[Ended]):
    """A unit on its way through the stages."""

    def __init__(self, run: UnitRun) -> None:
        self.run = run
        self.future: Future[Ended] = Future()
        self.room: Kept = {}
        self._error: BaseException | None = None
        self._num_left = max(1, len(run.hook_points))
        self._lock = threading.Lock()

    def step(self, do: Callable[[], Result], *, even_if_failed: bool = False) -> Result | None:
        """The result of one step, None where the unit has failed before or now."""
        if self._error is not None and not even_if_failed:
            return None
        try:
            return do()
        except BaseException as error:  # noqa: BLE001 - comes out of the unit's result, in a thread that can act on it
            self.fail(error)
            return None

    def fail(self, error: BaseException) -> None:
        """The first error is the unit's."""
        with self._lock:
            self._error = self._error or error

    def part_is_last(self) -> bool:
        """One more hook point has passed the last stage: was it the last?"""
        with self._lock:
            self._num_left -= 1
            return self._num_left == 0

    def finish(self, ended: Ended | None) -> None:
        """Nothing of the unit is under way any more."""
        if ended is not None:
            self.future.set_result(ended)
        else:
            assert self._error is not None
            self.future.set_exception(self._error)


class _Clock:
    """The time of one thread of a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._mark = time.perf_counter()

    def passed(self, job: _Job[Any]) -> None:
        """The time since the last call was the job's."""
        now = time.perf_counter()
        job.run.seconds.time(self._stage, now - self._mark)
        self._mark = now


@contextmanager
def _spread(num_threads: int) -> Iterator[MapBlocks]:
    """``map``, on so many threads."""
    if num_threads == 1:
        yield map
        return
    with ThreadPoolExecutor(num_threads, "headworks-encode") as pool:
        yield pool.map
