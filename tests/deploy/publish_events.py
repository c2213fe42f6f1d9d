"""Send events to Redis as Prefect's API does, at the pace of a busy flow, and say how many have arrived.

Run by ``test_events.py`` as a process of its own, with a server's settings:
``python publish_events.py NUMBER``. Prints the number, the batch size and the seconds between batches.
"""

import asyncio
import sys

from prefect_redis.client import get_async_redis_client  # type: ignore[import-untyped]
from prefect_redis.messaging import Cache, Publisher  # type: ignore[import-untyped]

TOPIC = "trial"
PAUSE_SECONDS = 0.0005
"""Between two events; while it waits, a batch that is due can be sent."""


async def publish(number: int) -> tuple[int, int, float]:
    """How many of so many events have arrived, and the two settings."""
    publisher = Publisher(TOPIC, Cache(), "id")
    async with publisher:
        for turn in range(number):
            await publisher.publish_data(b"{}", {"id": str(turn)})
            await asyncio.sleep(PAUSE_SECONDS)
    arrived = await get_async_redis_client().xlen(TOPIC)
    assert publisher.publish_every is not None
    return arrived, publisher.batch_size, publisher.publish_every.total_seconds()


if __name__ == "__main__":
    print(*asyncio.run(publish(int(sys.argv[1]))))
