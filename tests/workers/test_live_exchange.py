"""The exchange of a live feed without Ray around it: who waits, who is told, what is kept. Rows are any objects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from schemas.errors import JobError, ResourceError
from workers.live_exchange import BlockExchange, require_block_room

READER = (0, 0, 1)


def run(work: Callable[[BlockExchange], Awaitable[None]], ahead: int = 2) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await work(BlockExchange(num_units=10, ahead=ahead))

    asyncio.run(main())


def test_a_reader_waits_for_its_block() -> None:
    async def work(exchange: BlockExchange) -> None:
        waiting = asyncio.create_task(exchange.block(READER, 0))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await exchange.offer(0, {"resid": "rows"})
        await exchange.done_before((9, 9, 9), 0)  # any change wakes those who wait
        assert await waiting == {"resid": "rows"}

    run(work)


def test_blocks_beyond_the_room_are_not_kept() -> None:
    async def work(exchange: BlockExchange) -> None:
        assert not await exchange.has_room(0)
        await exchange.expect(0)
        assert [await exchange.has_room(unit) for unit in range(4)] == [True, True, False, False]
        for unit in range(4):
            await exchange.offer(unit, {"resid": unit})
        assert [await exchange.offered(READER, unit) for unit in range(3)] == [{"resid": 0}, {"resid": 1}, {}]
        await exchange.done_before(READER, 1)
        assert (await exchange.figures())["blocks"] == 1
        # A tee offers hook points one by one.
        await exchange.offer(1, {"mlp_out": "more"})
        assert await exchange.offered(READER, 1) == {"resid": 1, "mlp_out": "more"}

    run(work)


def test_everybody_is_told_of_a_failure() -> None:
    async def work(exchange: BlockExchange) -> None:
        waiting = [asyncio.create_task(exchange.block((0, rank, 2), 3)) for rank in range(2)]
        waiting.append(asyncio.create_task(exchange.statistics(2)))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        await exchange.fail(JobError("the disk is full"))
        for one in waiting:
            with pytest.raises(JobError, match="disk is full"):
                await one
        with pytest.raises(JobError, match="disk is full"):
            await exchange.offered(READER, 0)

    run(work)


def test_a_lost_block_is_waited_for_again() -> None:
    async def work(exchange: BlockExchange) -> None:
        await exchange.expect(0)
        await exchange.offer(0, {"resid": "gone"})
        assert await exchange.block(READER, 0)
        await exchange.lost(0)
        assert await exchange.offered(READER, 0) == {}
        assert await exchange.has_room(0)

    run(work)


def test_blocks_that_ray_would_write_to_disk_are_refused() -> None:
    require_block_room(2**20, ahead=4, room=2**22)
    with pytest.raises(ResourceError, match=r"5 blocks of 1 MiB .* 5 MiB in all; 4 MiB"):
        require_block_room(2**20, ahead=5, room=2**22)
