"""Where forward processes and ranks meet in a live feed: an actor that knows which blocks there are and hands them on.

A block is one unit's rows, one object of Ray's store for each hook point; the exchange holds references, never rows.
Feed ``live``: the exchange has the forward processes make blocks, no more than ``BlockSchedule`` allows, so that they
wait for ranks that are slower. A forward process that dies is replaced and its unit made again; blocks that it had
made belong to the exchange, not to it, and stay. Feed ``tee``: collectors offer the blocks that there is room for.
With every feed ranks ask here whether the collection has failed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray import exceptions

from pipeline.collection.prepare import CollectPass
from pipeline.store.statistics import merge_all
from schemas.errors import HeadworksError, JobError, ResourceError, UnreachableError, UserError
from schemas.fields import about_bytes
from schemas.store import HookStatistics
from workers.cluster import total_resources
from workers.live_forward import BlockReceipt, LiveForward
from workers.live_schedule import BlockSchedule, Reader
from workers.replica import actor_options

SHARE_OF_OBJECT_STORE = 0.8
"""Of Ray's object store, what blocks may take; beyond, Ray would write them to disk."""


@dataclass
class LiveFigures:
    """What forward processes have done so far."""

    workers_ready: int = 0
    units: int = 0
    rows: int = 0
    size_bytes: int = 0
    retries: int = 0
    deaths: int = 0
    stalled_s: float = 0.0
    """Seconds of processes that waited for ranks, of all processes together."""
    blocks: int = 0
    """In memory now."""


class BlockExchange:
    """Runs as an asynchronous actor that takes no CPU; the job that started it ends it."""

    def __init__(self, num_units: int, ahead: int, forward_class: type[LiveForward] = LiveForward) -> None:
        self._forward_class = forward_class
        self._schedule = BlockSchedule(num_units, ahead)
        self._blocks: dict[int, dict[str, Any]] = {}
        self._statistics: dict[int, dict[str, HookStatistics]] = {}
        self._failure: HeadworksError | None = None
        self._is_finished = False
        self._changed = asyncio.Condition()
        self._figures = LiveFigures()
        self._errors: Counter[int] = Counter()
        self._load_errors = 0

    async def block(self, reader: Reader, unit: int) -> dict[str, Any]:
        """hook point -> reference of a unit's rows, once they are made."""
        self._schedule.want(reader, unit)
        await self._wait_until(lambda: unit in self._blocks)
        return self._blocks.get(unit, {})

    async def offered(self, reader: Reader, unit: int) -> dict[str, Any]:
        """hook point -> reference of a unit's rows, empty where nobody has offered them. Raises what ``fail`` said."""
        await self.require_running()
        self._schedule.want(reader, unit)
        return self._blocks.get(unit, {})

    async def done_before(self, reader: Reader, unit: int) -> None:
        """The reader wants no unit below ``unit`` any more."""
        self._drop(self._schedule.done_before(reader, unit))
        await self._tell()

    async def lost(self, unit: int) -> None:
        """A reader could not get a block that there was."""
        self._blocks.pop(unit, None)
        self._schedule.lost(unit)
        await self._tell()

    async def expect(self, unit: int) -> None:
        """Readers will begin at this unit: make blocks for them before they come."""
        self._schedule.expect(unit)
        await self._tell()

    async def has_room(self, unit: int) -> bool:
        """Whether an offer would be kept."""
        return self._schedule.has_room(unit)

    async def offer(self, unit: int, block: dict[str, Any]) -> None:
        """Rows of a unit that is being written, by hook point; they come one by one."""
        if self._schedule.has_room(unit):
            self._blocks.setdefault(unit, {}).update(block)
            self._drop(self._schedule.made(unit))

    async def statistics(self, num_units: int) -> dict[str, HookStatistics]:
        """hook point -> statistics of the first units, merged in their order; they are made if need be."""
        for unit in range(num_units):
            if unit not in self._statistics:
                self._schedule.need(unit)
        await self._wait_until(lambda: all(unit in self._statistics for unit in range(num_units)))
        found = [self._statistics[unit] for unit in range(num_units)]
        return {
            hook: merge_all((one[hook] for one in found), width=len(first.mean)) for hook, first in found[0].items()
        }

    async def figures(self) -> dict[str, Any]:
        """Of ``LiveFigures``."""
        self._figures.blocks = len(self._blocks)
        return asdict(self._figures)

    async def fail(self, error: HeadworksError) -> None:
        """The collection has failed: whoever waits here, or comes, is told so."""
        self._failure = error
        await self._tell()

    async def finish(self) -> None:
        """Nobody wants more: forward processes end with what they have in hand."""
        self._is_finished = True
        await self._tell()

    async def require_running(self) -> None:
        """Raises what ``fail`` said."""
        if self._failure is not None:
            raise self._failure

    async def run(self, one: CollectPass, num_workers: int) -> None:
        """Make blocks in ``num_workers`` processes until ``finish``; raises what cannot be mended by trying again."""
        tasks = [asyncio.ensure_future(self._keep_working(one, index)) for index in range(num_workers)]
        try:
            await asyncio.gather(*tasks)
        except HeadworksError as error:
            await self.fail(error)
            raise
        finally:
            for task in tasks:
                task.cancel()

    async def _keep_working(self, one: CollectPass, index: int) -> None:
        """One process after the other, each until it dies."""
        limits = one.spec.workers
        while not self._is_finished:
            name = f"forward-{index}"
            actor: Any = ray.remote(self._forward_class).options(**actor_options(limits)).remote(name)
            try:
                await self._work(actor, one)
            except exceptions.RayActorError as error:
                self._figures.deaths += 1
                if self._figures.deaths > limits.max_worker_deaths:
                    raise JobError(
                        f"{self._figures.deaths} forward processes died (workers.max_worker_deaths is "
                        f"{limits.max_worker_deaths}); the last: {_first_line(error)}\nA process that dies without an "
                        "error was most often killed for its memory: lower batch_tokens, storage.shard_rows or "
                        "workers.num_workers. The training's last checkpoint is kept; run again to go on."
                    ) from None
            finally:
                ray.kill(actor, no_restart=True)

    async def _work(self, actor: Any, one: CollectPass) -> None:
        """Load, then make one block after the other. Raises RayActorError where the process is gone."""
        limits = one.spec.workers
        try:
            await actor.load.remote(one, max(1, int(limits.cpus_per_worker)))
        except exceptions.RayTaskError as error:
            self._load_errors += 1
            cause = _cause(error)
            if _is_final(cause) or self._load_errors >= limits.max_attempts:
                raise _as_ours(cause, "a forward process could not be made ready") from None
            return
        self._figures.workers_ready += 1
        while (unit := await self._next_unit()) is not None:
            references = actor.make.options(num_returns=1 + len(one.hook_points)).remote(unit)
            try:
                receipt: BlockReceipt = await references[0]
            except exceptions.RayTaskError as error:
                self._schedule.failed(unit)
                self._count_error(unit, _cause(error), limits.max_attempts)
            except BaseException:
                self._schedule.failed(unit)
                self._figures.retries += 1
                raise
            else:
                self._keep(unit, receipt, dict(zip(one.hook_points, references[1:], strict=True)))
            await self._tell()

    async def _next_unit(self) -> int | None:
        """The next unit, waited for; None once nobody wants any more."""
        began = time.perf_counter()
        async with self._changed:
            while not self._is_finished:
                if (unit := self._schedule.next_unit()) is not None:
                    self._figures.stalled_s += time.perf_counter() - began
                    return unit
                await self._changed.wait()
        return None

    def _keep(self, unit: int, receipt: BlockReceipt, block: dict[str, Any]) -> None:
        self._require_room(receipt)
        self._blocks[unit] = block
        self._statistics[unit] = receipt.statistics
        self._figures.units += 1
        self._figures.rows += receipt.num_rows
        self._figures.size_bytes += receipt.size_bytes
        self._drop(self._schedule.made(unit))

    def _require_room(self, receipt: BlockReceipt) -> None:
        """Raises ResourceError where the blocks that may wait do not fit into Ray's object store."""
        room = int(total_resources().get("object_store_memory", 0) * SHARE_OF_OBJECT_STORE)
        require_block_room(receipt.size_bytes, self._schedule.ahead, room)

    def _count_error(self, unit: int, cause: BaseException, max_attempts: int) -> None:
        self._errors[unit] += 1
        self._figures.retries += 1
        if _is_final(cause) or self._errors[unit] >= max_attempts:
            raise _as_ours(cause, f"unit {unit} failed {self._errors[unit]} times (workers.max_attempts)")

    def _drop(self, units: list[int]) -> None:
        for unit in units:
            self._blocks.pop(unit, None)

    async def _wait_until(self, condition: Any) -> None:
        await self._tell()  # what is wanted has changed
        async with self._changed:
            while not condition():
                await self.require_running()
                await self._changed.wait()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def require_block_room(block_bytes: int, ahead: int, room: int) -> None:
    """Refuse blocks that Ray would write to disk.

    Raises:
        ResourceError: saying what they take and what there is.
    """
    needed = block_bytes * ahead
    if needed > room:
        raise ResourceError(
            f"a live feed keeps up to {ahead} blocks of {about_bytes(block_bytes)} in Ray's object store, "
            f"{about_bytes(needed)} in all; {about_bytes(room)} of it are to be had. Raise cluster.object_store_memory "
            "(of a Ray that is there: its --object-store-memory), or lower storage.shard_rows, order.window_chunks or "
            "workers.blocks_ahead of the training."
        )


def _is_final(error: BaseException) -> bool:
    return isinstance(error, UserError) and not isinstance(error, UnreachableError)


def _as_ours(cause: BaseException, what: str) -> HeadworksError:
    if isinstance(cause, HeadworksError):
        return cause
    return JobError(f"{what}: {type(cause).__name__}: {cause}\nMend the cause and run again.")


def _cause(error: exceptions.RayTaskError) -> BaseException:
    return error.cause if isinstance(error.cause, Exception) else error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
