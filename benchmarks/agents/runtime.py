"""What the parts of the agent runtime cost by themselves.

    python benchmarks/agents/runtime.py --rows 200000

    events_per_s           events that one publisher hands to --subscribers handlers in memory, half of them coroutine functions, until all
                           have handled all

Checked: each handler got each event once, in order. The last line is one JSON object.
"""

import argparse
import asyncio
import gc
import json
import time
from typing import Any

from sabot.agents import InMemoryEventBus, RuntimeEvent, RuntimeEventType


class Counter:
    """Handlers that check the order of what they get."""

    def __init__(self) -> None:
        self.next = 0

    def take(self, event: RuntimeEvent) -> None:
        assert event.data["number"] == self.next
        self.next += 1

    async def take_later(self, event: RuntimeEvent) -> None:
        self.take(event)


async def events(rows: int, subscribers: int) -> dict[str, float]:
    """Of an InMemoryEventBus."""
    bus, counters = InMemoryEventBus(), [Counter() for _ in range(subscribers)]
    for number, counter in enumerate(counters):
        await bus.subscribe(counter.take_later if number % 2 else counter.take)
    gc.collect()
    began = time.perf_counter()
    for number in range(rows):
        await bus.publish(RuntimeEvent(RuntimeEventType.PROGRESS, "job", {"number": number}))
    await bus.flush()
    seconds = time.perf_counter() - began
    assert [counter.next for counter in counters] == [rows] * subscribers, "events are missing"
    return {"events_per_s": round(rows / seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="events")
    parser.add_argument("--subscribers", type=int, default=10, help="of the events")
    options = parser.parse_args()
    outcome: dict[str, Any] = {"benchmark": "runtime", "rows": options.rows, "subscribers": options.subscribers}
    outcome |= asyncio.run(events(options.rows, options.subscribers))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
