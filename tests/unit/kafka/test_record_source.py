"""KafkaSource record by record, for code of one's own, on a broker in memory."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from sabot.connectors.memory import MemoryBroker
from sabot.kafka import KafkaSource
from tools.agent_tools import bounded


async def test_a_source_starts_and_stops_while_the_users_calls_fill_the_loops_own_pool(memory_url):
    """The calls that fill the pool may wait for this very source, so it must not wait for a thread of that pool."""
    release = threading.Event()
    pool = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(pool)
    busy = asyncio.get_running_loop().run_in_executor(None, release.wait)
    await MemoryBroker.get(memory_url).send("in", b"1", None, (), None, None)
    source = KafkaSource("in", memory_url, "group")
    try:
        await bounded(source.start())
        assert await bounded(source.get_next()) == 1
        await bounded(source.stop())
        assert not busy.done()
    finally:
        release.set()
        await busy
