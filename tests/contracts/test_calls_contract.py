"""What a crew promises to whoever has calls made by it, with a shared queue and with a queue for each worker.

The event loop is simulated: who goes next is decided by a seed, and time is virtual.
"""

import asyncio
import contextlib
import contextvars
import inspect
import itertools
import random
from collections import Counter, deque

import pytest

from sabot.base.config import parse_rate
from sabot.clock import SYSTEM_CLOCK, ManualClock
from sabot.engine.calls import CallOptions, Crew, Retry, crew
from sabot.engine.calls.cache import UNKNOWN, Questions
from sabot.engine.calls.functions import for_each_piece
from sabot.engine.calls.limits import AdaptiveLimit, TokenBucket
from sabot.errors import Overloaded, UserError
from sabot.testing.loop import SimulatedLoop

SEEDS = range(10)


class Calling:
    """Calls of one function, and what was told of them. Items are (key, number)."""

    def __init__(self, function, *, own_queues=False, skip=True, **options):
        self.function, self.skip = function, skip
        self.began, self.done, self.lost, self.attempts_failed = [], [], [], []
        self.unexpected = []
        self.in_flight = self.most = 0
        loop = asyncio.get_running_loop()
        options = CallOptions(**options)
        self.crew = Crew("app", self, options, clock=SYSTEM_CLOCK, loop=loop, own_queues=own_queues)
        self.own_queues = own_queues
        self.crew.start()

    def give(self, *items):
        if self.own_queues:
            for item in items:
                worker = self.crew.workers[item[0] % len(self.crew.workers)]
                worker.queue.append(item)
                worker.rouse()
        else:
            self.crew.queue.extend(items)
            self.crew.rouse(len(items))

    async def finished(self, count):
        while len(self.done) + len(self.lost) < count:
            assert not self.unexpected
            await asyncio.sleep(0.05)

    def left(self):
        """Items whose calls have not ended."""
        queues = [worker.items() for worker in self.crew.workers]
        if not self.own_queues:
            queues = [[w.item] for w in self.crew.workers if w.item is not None] + [list(self.crew.queue)]
        return [item for queue in queues for item in queue]

    def _now(self):
        return asyncio.get_running_loop().time()

    # Calls

    def begin(self, item, run):
        self.began.append((item, self._now()))
        value = run(self.function, item)
        if not inspect.isawaitable(value):
            return item, value, False
        return item, self._counted(value), True

    async def _counted(self, value):
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            return await value
        finally:
            self.in_flight -= 1

    def written(self, item, value):
        if value == "odd":
            raise ValueError("this cannot be written")
        return value

    def ended(self, item, about, output):
        assert about == item
        self.done.append((item, output))

    def attempt_failed(self, item, failure, attempts):
        self.attempts_failed.append((item, failure, attempts))
        return False

    def renew(self, item):
        pass

    def failed(self, item, failure, attempts):
        self.lost.append((item, failure, attempts))
        if not self.skip or isinstance(failure, KeyboardInterrupt):
            self.crew.end()

    def worker_ended(self, item, error):
        self.unexpected.append((item, error))

    def broke(self, what, error):
        self.unexpected.append((what, error))


def simulated(main, seed=0):
    loop = SimulatedLoop(random.Random(seed))
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


both = pytest.mark.parametrize("own_queues", [False, True], ids=["shared queue", "own queues"])


def items(count, keys=7):
    return [(number % keys, number) for number in range(count)]


# -- how many, and in which order -----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("seed", SEEDS)
def test_each_item_is_called_once_and_never_more_at_once_than_allowed(seed, own_queues):
    dice = random.Random(seed)

    async def call(item):
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(dice.choice((0, 0.001, 0.01)))
        return item[1] * 2

    async def main():
        calling = Calling(call, own_queues=own_queues, concurrency=4)
        given = items(60)
        while given:
            count = dice.randrange(1, 9)
            calling.give(*given[:count])
            del given[:count]
            await asyncio.sleep(dice.choice((0, 0.005)))
        await calling.finished(60)
        assert Counter(calling.done) == Counter((item, item[1] * 2) for item in items(60))
        assert 1 < calling.most <= 4
        assert calling.crew.in_flight == 0
        await calling.crew.close()

    simulated(main, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_queue_is_called_in_its_order_also_where_calls_fail_and_are_made_again(seed):
    dice = random.Random(seed)

    async def call(item):
        await asyncio.sleep(dice.choice((0, 0.001, 0.02)))
        if dice.random() < 0.2:
            raise ConnectionError("again")
        if dice.random() < 0.1:
            raise Overloaded()

    async def main():
        calling = Calling(call, own_queues=True, concurrency=3, retry=Retry(3, 0.01))
        calling.give(*items(50))
        await calling.finished(50)
        ended = [item for item, *_ in [*calling.done]]
        for worker in range(3):
            mine = [item for item in ended if item[0] % 3 == worker]
            assert mine == sorted(mine, key=lambda item: item[1])
        await calling.crew.close()

    simulated(main, seed)


def test_a_shared_queue_begins_in_its_order():
    async def call(item):
        await asyncio.sleep(0.01 * (item[1] % 3))

    async def main():
        calling = Calling(call, concurrency=3)
        calling.give(*items(30))
        await calling.finished(30)
        assert [item for item, _ in calling.began] == items(30)
        await calling.crew.close()

    simulated(main)


@pytest.mark.one_in(2, "a quarter of a second of a core each")
@both
def test_calls_that_never_wait_leave_the_loop_to_others(own_queues):
    async def main():
        calling = Calling(lambda item: [None for _ in range(200)], own_queues=own_queues, concurrency=2)
        calling.give(*items(20_000))
        ticks = 0
        while len(calling.done) < 20_000:
            await asyncio.sleep(0)
            ticks += 1
        await calling.crew.close()
        return ticks

    assert asyncio.run(main()) > 5


@both
def test_each_call_has_a_context_of_its_own(own_queues):
    who = contextvars.ContextVar("who", default=None)

    async def call(item):
        assert who.get() is None
        who.set(item)
        await asyncio.sleep(0)
        return who.get() == item

    async def main():
        calling = Calling(call, own_queues=own_queues, concurrency=2)
        calling.give(*items(10))
        await calling.finished(10)
        assert [output for _, output in calling.done] == [True] * 10
        await calling.crew.close()

    simulated(main)


# -- what fails -----------------------------------------------------------------------------------------------------------


@both
def test_an_attempt_that_fails_is_made_again_after_waits_that_double(own_queues):
    async def call(item):
        raise ConnectionError("down")

    async def main():
        calling = Calling(call, own_queues=own_queues, retry=Retry(10, 0.1))
        calling.give((0, 0))
        await calling.finished(1)
        times = [time for _, time in calling.began]
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0], abs=0.05)
        [(item, failure, attempts)] = calling.lost
        assert (item, type(failure), attempts) == ((0, 0), ConnectionError, 11)
        assert [attempt for *_, attempt in calling.attempts_failed] == list(range(1, 12))
        assert calling.crew.retries == 10
        await calling.crew.close()

    simulated(main)


@both
def test_a_result_that_cannot_be_written_is_a_failed_attempt(own_queues):
    async def main():
        calling = Calling(lambda item: "odd", own_queues=own_queues)
        calling.give((0, 0), (0, 1))
        await calling.finished(2)
        assert [(item, str(failure)) for item, failure, _ in calling.lost] == [
            ((0, 0), "this cannot be written"),
            ((0, 1), "this cannot be written"),
        ]
        await calling.crew.close()

    simulated(main)


@both
@pytest.mark.parametrize("seed", SEEDS)
def test_an_attempt_that_takes_too_long_is_cancelled_and_no_other(seed, own_queues):
    dice = random.Random(seed)
    slow = {number for number in range(40) if dice.random() < 0.2}

    async def call(item):
        await asyncio.sleep(60 if item[1] in slow else dice.random())

    async def main():
        calling = Calling(call, own_queues=own_queues, concurrency=5, timeout_s=2.0)
        calling.give(*items(40))
        await calling.finished(40)
        assert {item[1] for item, *_ in calling.lost} == slow
        assert {str(failure) for _, failure, _ in calling.lost} <= {"the call took longer than timeout=2.0s"}
        assert calling.crew.timeouts == len(slow)
        await calling.crew.close()

    simulated(main, seed)


@both
def test_a_call_that_answers_although_it_was_cancelled_for_its_time_has_answered(own_queues):
    async def call(item):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "late"

    async def main():
        calling = Calling(call, own_queues=own_queues, timeout_s=1.0)
        calling.give((0, 0), (0, 1))
        await calling.finished(2)
        assert calling.done == [((0, 0), "late"), ((0, 1), "late")]
        await calling.crew.close()

    simulated(main)


@both
def test_a_call_that_is_cancelled_from_inside_has_failed_and_the_worker_goes_on(own_queues):
    async def call(item):
        if item[1] == 0:
            asyncio.current_task().cancel("by itself")
            await asyncio.sleep(0)
        if item[1] == 1:
            raise asyncio.CancelledError

    async def main():
        calling = Calling(call, own_queues=own_queues)
        calling.give((0, 1), (0, 2))
        await calling.finished(2)
        assert [(item, str(failure)) for item, failure, _ in calling.lost] == [((0, 1), "the call cancelled itself")]
        assert [item for item, _ in calling.done] == [(0, 2)]
        await calling.crew.close()

    simulated(main)


@both
def test_a_worker_that_somebody_else_cancels_is_told_of(own_queues):
    async def call(item):
        await asyncio.sleep(60)

    async def main():
        calling = Calling(call, own_queues=own_queues)
        calling.give((0, 0))
        await asyncio.sleep(1)
        calling.crew.workers[0].task.cancel()
        await asyncio.sleep(1)
        assert calling.unexpected == [((0, 0), None)]
        assert calling.left() == [(0, 0)]

    simulated(main)


@both
def test_after_the_end_no_call_begins_and_no_item_is_lost(own_queues):
    async def call(item):
        await asyncio.sleep(0.1)
        if item[1] == 3:
            raise ValueError("no good")

    async def main():
        calling = Calling(call, own_queues=own_queues, concurrency=2, skip=False)
        calling.give(*items(20, keys=2))
        await asyncio.sleep(60)
        assert [item for item, *_ in calling.lost] == [(1, 3)]
        ended = {item for item, _ in calling.done}
        assert (1, 3) in calling.left()
        assert ended | set(calling.left()) == set(items(20, keys=2))
        assert not ended & set(calling.left())
        began = len(calling.began)
        await asyncio.sleep(60)
        assert len(calling.began) == began
        await calling.crew.close()

    simulated(main)


def test_the_end_of_the_process_is_no_error_to_be_made_again():
    def call(item):
        raise KeyboardInterrupt

    async def main():
        calling = Calling(call, retry=Retry(5, 0.1))
        calling.give((0, 0), (0, 1))
        await calling.finished(1)
        await asyncio.sleep(1)
        assert [type(failure) for _, failure, _ in calling.lost] == [KeyboardInterrupt]
        assert calling.attempts_failed == []
        assert len(calling.began) == 1

    simulated(main)


# -- the stop -------------------------------------------------------------------------------------------------------------


@both
def test_quiesce_lets_calls_end_and_close_cancels_them_and_start_makes_them_again(own_queues):
    async def call(item):
        await asyncio.sleep(1 if item[1] % 2 else 100)
        return "ended"

    async def main():
        calling = Calling(call, own_queues=own_queues, concurrency=2)
        calling.give(*items(6, keys=2))
        await asyncio.sleep(0.5)
        await calling.crew.quiesce(2.0)
        assert calling.crew.stopped
        assert [item for item, _ in calling.done] == [(1, 1)]
        await calling.crew.close()
        await calling.crew.close()
        assert set(calling.left()) == set(items(6, keys=2)) - {(1, 1)}
        assert calling.crew.left_behind == []
        calling.crew.start()
        await asyncio.sleep(1000)
        assert Counter(item for item, _ in calling.done) == Counter(items(6, keys=2))

    simulated(main)


@both
def test_a_call_that_refuses_to_be_cancelled_is_left_behind_and_named(own_queues):
    refuses = True

    async def call(item):
        while refuses and item[1] == 0:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue
        await asyncio.sleep(3600)

    async def main():
        nonlocal refuses
        calling = Calling(call, own_queues=own_queues, concurrency=2)
        calling.give((0, 0), (1, 1))
        await asyncio.sleep(1)
        before = asyncio.get_running_loop().time()
        await calling.crew.close()
        assert asyncio.get_running_loop().time() - before == pytest.approx(crew.CANCEL_SECONDS, abs=0.5)
        assert calling.crew.left_behind == [(0, 0)]
        refuses = False

    simulated(main)


@both
@pytest.mark.parametrize("fails", [False, True])
def test_a_call_that_was_left_behind_does_nothing_more_when_the_crew_has_started_again(own_queues, fails):
    """Its late end counted too: the item ended twice, and its worker made two calls at once."""

    async def main():
        let_go, refusing = asyncio.Event(), [(0, 0)]

        async def call(item):
            if item not in refusing:
                await asyncio.sleep(100)
                return "again"
            refusing.clear()
            while not let_go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await let_go.wait()
            if fails:
                raise ValueError("late")
            return "late"

        calling = Calling(call, own_queues=own_queues, concurrency=2)
        calling.give((0, 0), (1, 1), (0, 2), (1, 3))
        await asyncio.sleep(1)
        await calling.crew.close()
        assert calling.crew.left_behind == [(0, 0)]
        calling.crew.start()
        await asyncio.sleep(1)
        let_go.set()
        await calling.finished(4)
        await asyncio.sleep(1000)
        assert sorted(calling.done) == [(item, "again") for item in [(0, 0), (0, 2), (1, 1), (1, 3)]]
        assert (calling.lost, calling.attempts_failed, calling.unexpected) == ([], [], [])
        await calling.crew.close()

    simulated(main)


@both
def test_a_call_that_cleans_up_is_waited_for_and_disturbed_once_at_most(own_queues):
    cleaned = []

    async def call(item):
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(2)
            cleaned.append(item)

    async def main():
        calling = Calling(call, own_queues=own_queues, concurrency=2)
        calling.give((0, 0), (1, 1))
        await asyncio.sleep(1)
        await calling.crew.close()
        assert sorted(cleaned) == [(0, 0), (1, 1)]
        assert calling.crew.left_behind == []
        assert sorted(calling.left()) == [(0, 0), (1, 1)]

    simulated(main)


# -- limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
@both
@pytest.mark.parametrize("seed", SEEDS)
def test_a_service_that_is_overloaded_gets_fewer_calls_at_once_and_every_item_is_done(seed, own_queues):
    """A service that takes five calls at once, and turns the others away."""
    dice = random.Random(seed)
    busy = refused = 0

    async def call(item):
        nonlocal busy, refused
        if busy >= 5:
            refused += 1
            raise Overloaded("too many")
        busy += 1
        try:
            await asyncio.sleep(0.1 + dice.random() * 0.01)
        finally:
            busy -= 1

    async def main():
        calling = Calling(call, own_queues=own_queues, concurrency=40)
        calling.give(*items(400, keys=40))
        await calling.finished(400)
        assert calling.lost == []
        assert calling.attempts_failed == []
        assert calling.crew.overloads == refused > 0
        assert calling.crew.limit < 10
        assert refused < 200  # without a limit it is turned away several times for each call
        await calling.crew.close()

    simulated(main, seed)


@both
def test_retry_after_holds_all_calls_and_then_the_one_that_was_turned_away_is_made_again(own_queues):
    told = []

    async def call(item):
        await asyncio.sleep(0.01)
        if not told:
            told.append(asyncio.get_running_loop().time())
            raise Overloaded(retry_after="30")

    async def main():
        calling = Calling(call, own_queues=own_queues, concurrency=2)
        calling.give(*items(10, keys=2))
        await calling.finished(10)
        assert not [time for _, time in calling.began if told[0] < time < told[0] + 29.9]
        assert calling.lost == []
        await calling.crew.close()

    simulated(main)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@both
def test_a_call_that_is_turned_away_for_ten_minutes_has_failed(own_queues):
    async def call(item):
        raise Overloaded(retry_after=3600 if item[1] else 1)

    async def main():
        calling = Calling(call, own_queues=own_queues, concurrency=1, retry=Retry(3, 0.1))
        calling.give((0, 0))
        await calling.finished(1)
        first, last = calling.began[0][1], calling.began[-1][1]
        assert 560 < last - first <= 600
        calling.give((0, 1))  # a service that asks for longer than that is not waited for
        await calling.finished(2)
        assert [type(failure) for _, failure, _ in calling.lost] == [Overloaded, Overloaded]
        await calling.crew.close()

    simulated(main)


@both
@pytest.mark.parametrize("seed", range(5))
def test_no_more_calls_begin_in_a_second_than_the_rate_allows(seed, own_queues):
    dice = random.Random(seed)

    async def call(item):
        await asyncio.sleep(dice.random() * 0.1)

    async def main():
        calling = Calling(call, own_queues=own_queues, concurrency=10, rate=20.0)
        for _ in range(4):
            calling.give(*items(25, keys=10))
            await asyncio.sleep(dice.choice((0, 3)))
        await calling.finished(100)
        times = [time for _, time in calling.began]
        for first, time in enumerate(times):
            assert sum(time <= later < time + 1 for later in times[first:]) <= 22
        assert times[-1] - times[0] < 13  # and hardly fewer
        await calling.crew.close()

    simulated(main, seed)


@both
def test_a_stop_does_not_wait_for_limits(own_queues):
    async def main():
        calling = Calling(lambda item: None, own_queues=own_queues, concurrency=3, rate=0.001)
        calling.give(*items(10, keys=3))
        await asyncio.sleep(1)
        await calling.crew.quiesce(60)
        assert asyncio.get_running_loop().time() < 2
        assert len(calling.done) == 1
        assert len(calling.left()) == 9
        await calling.crew.close()

    simulated(main)


def test_an_adaptive_limit_halves_once_for_calls_that_were_under_way_together_and_rises_by_one_a_round():
    clock = ManualClock()
    limit = AdaptiveLimit(16)
    began = clock.monotonic()
    for _ in range(16):
        assert limit.wait_s(began) == 0
        limit.begun(began)
    assert limit.wait_s(began) == float("inf")
    clock.advance(1)
    for _ in range(16):
        limit.overloaded(clock.monotonic(), began, 0.0)
    assert (limit.limit, limit.in_flight) == (8, 0)
    for most in range(9, 17):
        for _ in range(most):  # a round and a little, so that sums of fractions are above the next number
            clock.advance(1)
            while limit.wait_s(clock.monotonic()) == 0:
                limit.begun(clock.monotonic())
            limit.ended(clock.monotonic() + 1, clock.monotonic(), well=True)
        assert limit.limit in (most, most - 1)
    assert limit.limit <= 16


def test_an_adaptive_limit_rises_only_while_it_is_in_use_and_never_falls_below_one():
    clock = ManualClock()
    limit = AdaptiveLimit(16, in_flight=1)
    limit.overloaded(clock.monotonic(), clock.monotonic() - 1, 5.0)
    assert limit.limit == 1
    assert limit.wait_s(clock.monotonic()) == 5.0
    clock.advance(6)
    assert limit.wait_s(clock.monotonic()) == 0
    limit.begun(clock.monotonic())
    limit.ended(clock.monotonic(), clock.monotonic(), well=True)
    assert limit.limit == 2
    for _ in range(100):  # one at a time says nothing of two
        limit.begun(clock.monotonic())
        limit.ended(clock.monotonic(), clock.monotonic(), well=True)
    assert limit.limit == 2
    limit.begun(clock.monotonic())
    limit.begun(clock.monotonic())
    limit.ended(clock.monotonic(), clock.monotonic(), well=False)  # an error that says nothing of limits
    assert limit.limit == 2


def test_a_token_bucket_saves_up_no_more_than_a_moments_worth():
    clock = ManualClock()
    bucket = TokenBucket(100.0)

    def begun():
        count = 0
        while bucket.wait_s(clock.monotonic()) == 0:
            bucket.begun(clock.monotonic())
            count += 1
        return count

    assert begun() == 5
    assert bucket.wait_s(clock.monotonic()) == pytest.approx(0.01)
    clock.advance(0.011)
    assert begun() == 1
    clock.advance(3600)
    assert begun() == 5


@pytest.mark.parametrize(("text", "rate"), [("50/s", 50), ("300/m", 5), ("1.5 / s", 1.5), ("36/h", 0.01), (7, 7.0)])
def test_a_rate_is_read_as_users_write_it(text, rate):
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["50", "0/s", "-1/s", "5/w", 0, -1, True, float("nan"), float("inf"), None, "1e3/s"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(UserError, match="rate") as caught:
        parse_rate(text)
    assert caught.value.hint.startswith("write ")


# -- pieces ---------------------------------------------------------------------------------------------------------------


def test_a_function_that_yields_is_held_up_by_who_takes_its_pieces():
    async def main():
        made = []
        room = asyncio.Semaphore(2)
        taken = deque()

        async def tokens():
            for number in range(6):
                made.append(number)
                yield number

        async def take(piece):
            taken.append(piece)
            await room.acquire()

        giving = asyncio.ensure_future(for_each_piece(tokens(), take))
        await asyncio.sleep(1)
        assert made == [0, 1, 2]  # the third waits for room
        room.release()
        await asyncio.sleep(1)
        assert made == [0, 1, 2, 3]
        for _ in range(3):
            room.release()
        await giving
        assert list(taken) == [0, 1, 2, 3, 4, 5]

    simulated(main)


@pytest.mark.parametrize("how", ["the taker fails", "it is cancelled"])
def test_a_function_that_yields_is_closed_whatever_happens(how):
    async def main():
        closed = []

        async def tokens():
            try:
                while True:
                    await asyncio.sleep(0.1)
                    yield "token"
            finally:
                closed.append(True)

        def refuse(piece):
            if how == "the taker fails":
                raise ValueError("enough")

        giving = asyncio.ensure_future(for_each_piece(tokens(), refuse))
        await asyncio.sleep(1)
        giving.cancel()
        await asyncio.wait([giving])
        assert closed == [True]

    simulated(main)


# -- equal questions ------------------------------------------------------------------------------------------------------


def test_equal_questions_that_are_under_way_are_asked_once_and_all_are_told():
    questions = Questions(10, None, ManualClock())
    assert questions.known("key", questions.now()) is UNKNOWN
    assert questions.under_way("key") is None  # so it is the first one's to ask
    for waiter in ("second", "third"):
        questions.under_way("key").append(waiter)
    assert questions.answered("key", None, keep=True) == ["second", "third"]
    assert questions.known("key", questions.now()) is None  # which is an answer
    assert questions.hits == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_kept_so_many_and_so_long_and_those_used_last_stay(seed):
    """Beside a twin that is a list, the last used last."""
    dice, clock = random.Random(seed), ManualClock()
    most, ttl_s = dice.choice([(0, None), (1, 5.0), (5, None), (5, 3.0)])
    questions, twin = Questions(most, ttl_s, clock), []
    for number in range(500):
        clock.advance(dice.choice((0, 1)))
        key = dice.randrange(8)
        expected = [entry for entry in twin if entry[0] == key and (ttl_s is None or clock.time() < entry[1] + ttl_s)]
        answer = questions.known(key, questions.now())
        assert answer == (expected[0][2] if expected else UNKNOWN)
        if expected:
            twin.remove(expected[0])
            twin.append(expected[0])
            continue
        assert questions.under_way(key) is None
        keep = dice.random() < 0.9  # else it has failed
        assert questions.answered(key, number, keep=keep) == []
        if keep and most:
            twin = [entry for entry in twin if entry[0] != key][-most + 1 :] if most > 1 else []
            twin.append((key, clock.time(), number))
        assert len(questions) == len(twin)
