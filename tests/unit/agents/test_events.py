"""Events: who gets them, in which order, and what one subscriber can do to the others."""

import asyncio
import logging

import msgspec
import pytest

from sabot.agents import InMemoryEventBus, RuntimeEvent, RuntimeEventType
from sabot.errors import TransientError, UserError

TYPE = RuntimeEventType


def event(number, kind=TYPE.PROGRESS, job_id="job"):
    return RuntimeEvent(kind, job_id, {"number": number})


def numbers(events):
    return [each.data["number"] for each in events]


def test_schema_has_the_twenty_types():
    types = {
        "": "progress",
        "model.": "token reasoning done",
        "tool.": "start end error",
        "action.": "required resolved expired cancelled",
        "artifact.": "created updated",
        "job.": "started status_changed completed failed cancelled",
        "final.": "result error",
    }
    assert set(TYPE) == {f"{category}{word}" for category, words in types.items() for word in words.split()}
    assert len(TYPE) == 20
    assert {kind.category for kind in TYPE} == {"progress", "model", "tool", "action", "artifact", "job", "final"}


def test_schema_of_an_event_goes_through_json():
    first = RuntimeEvent(type=TYPE.JOB_STARTED, job_id="job-123", data={"agent": "a"}, scope_id="tenant")
    assert msgspec.json.decode(msgspec.json.encode(first), type=RuntimeEvent) == first
    assert first.event_id != RuntimeEvent(type=TYPE.JOB_STARTED, job_id="job-123").event_id


async def test_an_event_whose_type_is_a_text_is_one_of_that_type():
    bus, seen = InMemoryEventBus(), []
    await bus.subscribe(seen.append, event_types={"job.started"})
    await bus.publish(RuntimeEvent(type="job.started", job_id="job"))
    await bus.flush()
    assert [each.type.category for each in seen] == ["job"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"type": "job.startedd"}, "type='job.startedd' does not exist ('job.started' is one)"),
        ({"type": None}, "there are progress, model.token"),
        ({"job_id": None}, "RuntimeEvent: job_id=None"),
        ({"event_id": 7}, "RuntimeEvent: event_id=7"),
        ({"at": float("nan")}, "RuntimeEvent: at=nan"),
        ({"at": "now"}, "RuntimeEvent: at='now'"),
        ({"data": ["a"]}, "RuntimeEvent: data=['a']"),
    ],
)
def test_an_event_that_no_broker_could_be_told_is_refused_where_it_is_made(wrong, said):
    with pytest.raises(UserError) as refused:
        RuntimeEvent(**{"type": TYPE.JOB_STARTED, "job_id": "job", **wrong})
    assert said in str(refused.value)


async def test_plain_and_async_handlers_get_the_types_that_they_asked_for_in_order():
    bus, plain, later, all_of_them = InMemoryEventBus(), [], [], []

    async def handler(event):
        await asyncio.sleep(0)
        later.append(event)

    await bus.subscribe(plain.append, event_types={TYPE.JOB_STARTED, "job.failed"})
    await bus.subscribe(handler, event_types={TYPE.JOB_STARTED})
    await bus.subscribe(all_of_them.append)
    for number, kind in enumerate([TYPE.JOB_STARTED, TYPE.PROGRESS, TYPE.JOB_FAILED, TYPE.JOB_STARTED]):
        await bus.publish(event(number, kind))
    await bus.flush()
    assert (numbers(plain), numbers(later), numbers(all_of_them)) == ([0, 2, 3], [0, 3], [0, 1, 2, 3])


async def test_a_subscriber_of_one_job_gets_no_other():
    bus, mine = InMemoryEventBus(), []
    subscription = await bus.subscribe(mine.append, [TYPE.PROGRESS], job_id="b")
    for number, job in enumerate("abcb"):
        await bus.publish(event(number, job_id=job))
    await bus.publish(event(9, TYPE.JOB_FAILED, "b"))
    await bus.flush()
    assert numbers(mine) == [1, 3]
    assert (bus.wants(TYPE.PROGRESS, "b"), bus.wants(TYPE.PROGRESS, "a"), bus.wants(TYPE.JOB_FAILED, "b")) == (
        True,
        False,
        False,
    )
    await subscription.unsubscribe()
    assert not bus.wants(TYPE.PROGRESS, "b")


async def test_who_has_unsubscribed_gets_no_more():
    bus, seen = InMemoryEventBus(), []
    subscription = await bus.subscribe(seen.append)
    await bus.publish(event(0))
    await subscription.flush()
    await bus.publish(event(1))
    await subscription.unsubscribe()
    await subscription.unsubscribe()
    await bus.publish(event(2))
    await bus.flush()
    assert (numbers(seen), subscription.delivered, list(subscription.queue)) == ([0], 1, [])


async def test_a_handler_may_unsubscribe_itself():
    bus, seen = InMemoryEventBus(), []

    async def once(event):
        await subscription.unsubscribe()
        await asyncio.sleep(0)
        seen.append(event)

    subscription = await bus.subscribe(once)
    for number in range(3):
        await bus.publish(event(number))
    delivering = [each for each in asyncio.all_tasks() if each.get_name().startswith("events of")]
    await subscription.flush()
    assert numbers(seen) == [0]
    assert await asyncio.gather(*delivering) == [None]


async def test_a_handler_that_holds_publishers_up_may_publish_itself():
    bus, seen = InMemoryEventBus(), []

    async def publishes(told):
        seen.append(told)
        if told.data["number"] < 10:
            await bus.publish(event(told.data["number"] + 10))

    await bus.subscribe(publishes, slow="hold", capacity=1)
    async with asyncio.timeout(60):
        for number in range(5):
            await bus.publish(event(number))
        await bus.flush()
    assert sorted(numbers(seen)) == [*range(5), *range(10, 15)]


async def test_one_that_raises_is_told_once_and_gets_the_next_ones(caplog):
    bus, seen = InMemoryEventBus(), []

    def broken(event):
        seen.append(event)
        raise KeyError(event.data["number"])

    subscription, other = await bus.subscribe(broken), await bus.subscribe(lambda event: None)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            await bus.publish(event(number))
        await bus.flush()
    assert (numbers(seen), subscription.errors, str(subscription.last_error)) == ([0, 1, 2], 3, "2")
    assert (other.delivered, [record.levelname for record in caplog.records]) == (3, ["WARNING"])
    assert "broken" in caplog.text


async def test_one_that_awaits_what_was_cancelled_gets_the_next_ones():
    bus, gone = InMemoryEventBus(), asyncio.get_running_loop().create_future()
    gone.cancel()

    async def broken(event):
        await gone

    subscription = await bus.subscribe(broken)
    for number in range(2):
        await bus.publish(event(number))
    await subscription.flush()
    assert (subscription.delivered, subscription.errors) == (2, 2)


async def test_one_that_hangs_holds_up_nobody_and_what_it_misses_is_counted_and_told_once(caplog):
    bus, seen = InMemoryEventBus(), []

    async def hangs(event):
        await asyncio.Event().wait()

    hung = await bus.subscribe(hangs, capacity=10)
    await bus.subscribe(seen.append)
    with caplog.at_level(logging.WARNING):
        for number in range(1000):
            await bus.publish(event(number))
    await asyncio.sleep(0)
    assert (hung.delivered, len(hung.queue) + hung.dropped) == (0, 999)
    assert len(hung.queue) <= 10
    assert numbers(seen) == list(range(1000))
    assert [record.getMessage().count("dropped") for record in caplog.records] == [1]
    await bus.close()
    assert hung.closed


async def test_one_that_asks_for_all_of_them_holds_its_publisher_up():
    bus, seen, may = InMemoryEventBus(), [], asyncio.Semaphore(0)

    async def slow(event):
        await may.acquire()
        seen.append(event)

    subscription = await bus.subscribe(slow, slow="hold", capacity=4)
    other = await bus.subscribe(lambda event: None)
    published = []

    async def publish():
        for number in range(20):
            await bus.publish(event(number))
            published.append(number)

    publisher = asyncio.create_task(publish())
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(published) < 20
    assert other.delivered == len(published)
    for _ in range(20):
        may.release()
    await publisher
    await bus.flush()
    assert (numbers(seen), subscription.dropped) == (list(range(20)), 0)


async def test_a_publisher_that_waits_goes_on_when_the_subscriber_leaves():
    bus = InMemoryEventBus()
    subscription = await bus.subscribe(lambda event: asyncio.Event().wait(), slow="hold", capacity=1)
    publisher = asyncio.create_task(asyncio.wait_for(_publish(bus, 10), 60))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not publisher.done()
    await subscription.unsubscribe()
    await publisher


async def _publish(bus, count):
    for number in range(count):
        await bus.publish(event(number))


async def test_a_second_task_that_iterates_over_a_subscription_is_refused_while_the_first_one_waits():
    """The first one waited for ever, and its event stayed in the queue."""
    bus = InMemoryEventBus()
    subscription = bus.listen([TYPE.PROGRESS])
    first = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    with pytest.raises(UserError, match="another task waits for the next event of this subscription"):
        await anext(subscription)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    await bus.publish(RuntimeEvent(TYPE.PROGRESS, "j"))
    assert (await second).job_id == "j"


async def test_a_subscription_without_a_handler_is_iterated_until_it_is_closed():
    bus = InMemoryEventBus()
    subscription = bus.listen([TYPE.PROGRESS])
    seen = []

    async def read():
        async for each in subscription:
            seen.append(each)
            if len(seen) == 3:
                subscription.close()

    reader = asyncio.create_task(read())
    await _publish(bus, 3)
    await reader
    assert numbers(seen) == [0, 1, 2]


def test_a_bus_can_be_subscribed_before_a_loop_runs():
    bus, seen = InMemoryEventBus(), []
    bus.on(seen.append)

    async def run():
        await _publish(bus, 2)
        await bus.flush()

    asyncio.run(run())
    asyncio.run(run())
    assert numbers(seen) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"slow": "sometimes"}, "'drop', 'hold'"),
        ({"capacity": 0}, "at least 1"),
        ({"capacity": True}, "at least 1"),
        ({"event_types": ["job.began"]}, "job.started"),
    ],
)
async def test_a_wrong_subscription_is_refused_with_what_there_is(options, said):
    with pytest.raises(UserError) as caught:
        await InMemoryEventBus().subscribe(print, **options)
    assert said in caught.value.hint
    with pytest.raises(UserError):
        await InMemoryEventBus().subscribe("print")


async def test_a_flush_is_bounded_and_names_the_handlers_that_hang():
    bus, seen = InMemoryEventBus(), []
    forever = asyncio.Event()

    async def hangs(event):
        await forever.wait()

    stuck = await bus.subscribe(hangs)
    await bus.subscribe(seen.append)
    for number in range(3):
        await bus.publish(event(number))
    with pytest.raises(TransientError, match=r"hangs is still at an event, and 2 wait behind it") as failed:
        await bus.flush(timeout=0.01)
    assert "unsubscribe" in failed.value.hint
    assert numbers(seen) == [0, 1, 2], "the others have handled theirs"
    with pytest.raises(TransientError, match=r"hangs is still at an event"):
        await stuck.flush(timeout="10ms")
    with pytest.raises(UserError, match="timeout"):
        await bus.flush(timeout="soon")
    forever.set()
    await bus.flush(timeout=None)
    assert stuck.delivered == 3


async def test_a_flush_waits_for_events_that_a_later_handler_publishes_for_an_earlier_one():
    bus, progress = InMemoryEventBus(), []

    async def reports(event):
        await asyncio.sleep(0)
        await bus.publish(RuntimeEvent(TYPE.PROGRESS, event.job_id, event.data))

    async def saves(event):
        await asyncio.sleep(0)
        progress.append(event)

    await bus.subscribe(saves, [TYPE.PROGRESS])
    await bus.subscribe(reports, [TYPE.JOB_STARTED])
    for number in range(3):
        await bus.publish(event(number, TYPE.JOB_STARTED))
    await bus.flush()
    assert numbers(progress) == [0, 1, 2]


async def test_a_flush_of_handlers_that_publish_without_end_is_bounded_too():
    bus = InMemoryEventBus()

    async def answers(event):
        await bus.publish(event)

    echo = await bus.subscribe(answers)
    await bus.publish(event(0))
    with pytest.raises(TransientError, match=r"after 0.01 s, subscriber .*answers is still at an event"):
        await bus.flush(timeout=0.01)
    await echo.unsubscribe()
    await bus.flush()
