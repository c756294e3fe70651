"""The light pool's turns, at the moment when the wait is over."""

import asyncio
import time
from contextlib import AsyncExitStack

from lora_drop.ui.serve import guard


def test_a_turn_that_comes_as_the_time_is_up_is_taken(monkeypatch):
    """Found by `scripts.attack`: a traceback, where the loop was late."""
    monkeypatch.setattr(guard, "LIGHT_SECONDS", 0.02)

    async def come() -> None:
        pool = guard.LightPool(public=False)
        async with AsyncExitStack() as held:
            for i in range(guard.LIGHT_AT_ONCE):
                await held.enter_async_context(pool.place(f"{i}"))
            waits = asyncio.create_task(wait(pool))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.05)  # the loop is late
        assert await waits == "a turn"
        assert not pool._waiting and not pool._running

    async def wait(pool: guard.LightPool) -> str:
        async with pool.place("other"):
            return "a turn"

    asyncio.run(come())
