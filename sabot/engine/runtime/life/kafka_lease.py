"""The lease on an app at its Kafka broker. It prevents two workers from running the app at once, if nothing else
does.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from sabot.api.nodes.read import Read, StreamEnd
from sabot.base.config import parse_broker
from sabot.base.proc import is_over, life_of_this_process
from sabot.base.threads import call_on_loop, run_in_thread, run_to_end
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.plan import walk
from sabot.engine.runtime.agents.runnable import RunnableAgent
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.tasks.inference import StoppedEarly
from sabot.errors import SabotError


async def take_lease(
    app: AppSpec,
    storage: CheckpointStorage | None,
    agents: Mapping[str, RunnableAgent],
    writes: Sequence[StreamEnd],
    stop_asked: asyncio.Event,
    lost: Callable[[BaseException], None],
) -> Callable[[], None]:
    """Takes the lease, and returns a blocking function that releases it. The lease is that of the app's first topic
    by name. There is none if the app reads no Kafka topic, or has a storage for checkpoints, which has an owner
    already; the function then does nothing.

    `lost`: called on this loop with an AppLocked if the lease is lost. Raises AppLocked if another worker has the
    lease, and StoppedEarly.
    """
    scheme, _ = parse_broker(app.settings.broker)
    read = {node.source for node in walk(writes) if isinstance(node, Read) and isinstance(node.source, str)}
    for spec in (agent.spec for agent in agents.values()):
        read.update(() if spec is None else (topic for topic in spec.inputs if isinstance(topic, str)))
    if storage is not None or scheme != "kafka" or not read:
        return lambda: None
    from sabot.kafka.lease import KafkaLease

    loop, life = asyncio.get_running_loop(), life_of_this_process()

    def tell_lost(error: SabotError) -> None:
        call_on_loop(loop, lost, error)

    lease = KafkaLease(
        app.settings.broker, app.id, min(read), app.settings.kafka, life=life, is_over=is_over, lost=tell_lost
    )
    taking = asyncio.ensure_future(run_in_thread(lease.take, stop_asked.is_set))
    try:
        taken = await asyncio.shield(taking)
    except BaseException:
        lease.give_up()
        await run_to_end(_close(taking, lease.release))
        raise
    if not taken:
        await run_to_end(run_in_thread(lease.release))
        raise StoppedEarly(f"app {app.id}: stopped before its start was complete")
    return lease.release


async def _close(taking: asyncio.Future[bool], close: Callable[[], None]) -> None:
    await asyncio.wait([taking])
    taking.exception()  # the start was cancelled, or raises it itself
    await run_in_thread(close)
