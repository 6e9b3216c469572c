"""The narrow place in words, out of made figures: the right task and cause, and no word about a healthy app."""

from typing import Any

import pytest

from sabot.base.figures import AppFigures
from sabot.engine.runtime.tasks.task_times import TaskState
from sabot.engine.runtime.watch.bottleneck import Cause, NarrowPlace, narrow_places

SECONDS = 4.0


def task(
    *to: str,
    fill: float | None = None,
    keys: tuple[str, ...] = (),
    edge_fill: float = 0.0,
    rows: int = 1000,
    work: dict[str, float] | None = None,
    functions: dict[str, str] | None = None,
    operators: dict[str, dict[str, Any]] | None = None,
    input: dict[str, Any] | None = None,
    sends: float = 0.0,
    cut: float = 0.0,
    queued: float = 0.0,
    turns: int = 2000,
    worker: int | None = None,
    **shares: float,
) -> dict[str, Any]:
    """The figures of a task at the end of the time, of which the rest of its shares is idle; it began at zero.

    fill: that of its input; None: it reads a source. work: the share of time of each step, whose function `functions` names.
    """
    shares["idle"] = max(0.0, 1.0 - sum(shares.values()))
    named = {
        id: {"seconds": share * SECONDS, **({"function": functions[id]} if id in (functions or {}) else {})}
        for id, share in (work or {}).items()
    }
    return {
        "time": {state.label: shares.get(state.label, 0.0) * SECONDS for state in TaskState},
        "state": "busy",
        "rows": rows,
        "queued_seconds": queued * SECONDS,
        "turns": turns,
        "cut_seconds_total": cut * SECONDS,
        "reading_seconds": 0.0,
        "cutting_seconds": 0.0,
        "operators": {**named, **(operators or {})},
        "edges": [
            {"from": "x", "to": stage, "rows": rows, "keys": list(keys), "fill": edge_fill, "seconds": sends * SECONDS}
            for stage in to
        ],
        "input": {**({"fill": fill, "inputs": 2} if fill is not None else {"lag": {}}), **(input or {})},
        **({} if worker is None else {"worker": worker}),
    }


def at_zero(figures: Any) -> Any:
    """The figures with all counters at zero, as they were before."""
    if not isinstance(figures, dict):
        return figures if isinstance(figures, str | list) else type(figures)(0)
    kept = {"limit", "fill", "capacity_rows", "capacity_bytes", "worker", "cpus", "cpu_percent", "lag"}
    return {
        name: [at_zero(one) for one in each]
        if isinstance(each, list) and name == "edges"
        else each
        if name in kept
        else at_zero(each)
        for name, each in figures.items()
    }


def places(cpu: float = 0.5, **figures: Any) -> list[NarrowPlace]:
    """cpu: how many of the four processors the app used."""
    now = {"process": {"cpu_seconds": cpu * SECONDS, "cpus": 4}, **figures}
    before = {**{name: at_zero(each) for name, each in now.items() if name != "workers"}}
    return narrow_places(AppFigures.of(before), AppFigures.of(now))


def first(**figures: Any) -> tuple[str, Cause]:
    found = places(**figures)
    assert found, "it has a narrow place"
    return found[0].task, found[0].cause


HELD = task("orders-1", backpressured=0.95, edge_fill=1.0)
EASY = task(fill=0.0, busy=0.1)


def test_a_slow_function_before_which_all_wait() -> None:
    window = task("write-1", fill=1.0, busy=0.97, work={"window-1": 0.1, "map-1": 0.87}, functions={"map-1": "score"})
    streams = {"read-1/0": HELD, "orders-1/0": window, "write-1/0": EASY}
    assert first(streams=streams, cpu=1.0) == ("orders-1/0", Cause.SLOW_FUNCTION)
    (place,) = places(streams=streams, cpu=1.0)
    assert place.sentence == (
        "orders-1/0 is the narrow place: it computes 97 % of the time, most of it in score; its input is full, and the "
        "tasks before it wait"
    )
    assert (place.fill, place.step) == (1.0, "score")
    assert "--workers" in place.advice
    (place,) = places(streams=streams, cpu=1.0, broker={"topics": 1})
    assert "--workers" not in place.advice
    assert "workers need topics in Kafka: those at memory:// are in this process" in place.advice


def test_a_step_of_the_engine_is_named_too() -> None:
    window = task("write-1", fill=0.9, busy=0.9, work={"window-1": 0.85})
    assert first(streams={"read-1/0": HELD, "orders-1/0": window, "write-1/0": EASY}) == ("orders-1/0", Cause.SLOW_STEP)


def test_a_function_that_sleeps_is_slow_and_waits_for_no_lock() -> None:
    slow = task(
        "write-1", fill=1.0, busy=0.02, contended=0.98, work={"map-1": 1.0}, functions={"map-1": "ask"}, turns=80
    )
    (place,) = places(streams={"read-1/0": HELD, "orders-1/0": slow, "write-1/0": EASY}, cpu=0.1)
    assert (place.task, place.cause) == ("orders-1/0", Cause.SLOW_FUNCTION)
    assert "ask sleeps or waits" in place.sentence
    # The same beside a thread that computes all the time: it is woken too seldom to wait for the lock.
    (place,) = places(streams={"read-1/0": HELD, "orders-1/0": slow, "write-1/0": EASY}, cpu=1.0)
    assert place.cause is Cause.SLOW_FUNCTION


def test_two_steps_that_take_turns_with_the_interpreter() -> None:
    work: dict[str, Any] = {"work": {"map-1": 1.0}, "functions": {"map-1": "f"}}
    one = task("process-1", busy=0.5, contended=0.48, **work)
    other = task("write-1", fill=0.4, busy=0.45, contended=0.4, **work)
    (place, *_) = places(streams={"read-1/0": one, "process-1/0": other, "write-1/0": EASY}, cpu=1.0)
    assert (place.task, place.cause) == ("read-1/0", Cause.INTERPRETER_LOCK)
    assert "read-1/0 and process-1/0 take turns" in place.sentence


def test_the_lock_is_found_on_a_machine_that_leaves_the_app_half_a_processor() -> None:
    work: dict[str, Any] = {"work": {"map-1": 1.0}, "functions": {"map-1": "f"}, "queued": 0.4}
    both = {f"orders-1/{n}": task("write-1", fill=1.0, busy=0.26, contended=0.74, **work) for n in range(2)}
    assert first(streams={"read-1/0": HELD, **both, "write-1/0": EASY}, cpu=0.53)[1] is Cause.INTERPRETER_LOCK


def test_an_app_that_uses_all_processors_says_so_and_other_programs_do_not_count() -> None:
    step = task("write-1", fill=1.0, busy=0.6, contended=0.4, queued=0.4, work={"window-1": 1.0})
    streams = {"read-1/0": HELD, "orders-1/0": step, "write-1/0": EASY}
    assert first(streams=streams, cpu=3.9) == ("orders-1/0", Cause.PROCESSORS)
    assert first(streams=streams, cpu=0.7) == ("orders-1/0", Cause.SLOW_STEP)
    starved = task("write-1", fill=1.0, busy=0.2, contended=0.75, queued=0.7, work={"window-1": 1.0})
    (place,) = places(streams={**streams, "orders-1/0": starved}, cpu=0.2)
    assert place.sentence.startswith("the processors are the narrow place: other programs use them, and orders-1/0")


@pytest.mark.parametrize(("cut", "word"), [(0.0, "receiver"), (0.8, "commits")])
def test_a_slow_sink_and_slow_commits(cut: float, word: str) -> None:
    sink = task(fill=0.95, backpressured=0.9, busy=0.05, cut=cut, work={"write-1": 0.0})
    (place, *_) = places(streams={"read-1/0": task("write-1", backpressured=0.9, edge_fill=1.0), "write-1/0": sink})
    assert (place.task, place.cause) == ("write-1/0", Cause.SLOW_SINK)
    assert f"its {word} take" in place.sentence


def test_sources_that_wait_for_an_exactly_once_delivery() -> None:
    delivery = {"out#1": {"sink": "out", "delivered_rows": 10, "undelivered_rows": 5000, "failures_total": 0}}
    streams = {"read-1/0": task("write-1", backpressured=0.9), "write-1/0": EASY}
    (place,) = places(streams=streams, delivery=delivery)
    assert (place.task, place.cause, place.step) == ("out#1", Cause.SLOW_SINK, "out")


def calls(**figures: Any) -> dict[str, Any]:
    return {
        "in_flight": 5,
        "limit": 5,
        "attempts": 100,
        "attempt_seconds": 20.0,
        "overloads": 0,
        "function": "ask",
        **figures,
    }


def test_calls_at_their_limit_and_what_each_takes() -> None:
    step = task("write-1", waiting=0.95, operators={"map_async-1": {"seconds": 0.0, **calls()}})
    (place,) = places(streams={"read-1/0": step, "write-1/0": EASY})
    assert (place.task, place.cause) == ("read-1/0", Cause.SLOW_FUNCTION)
    assert "5 of 5 run, 0.2 s each" in place.sentence


def test_calls_that_are_turned_away_and_a_model_at_its_limit() -> None:
    step = task("write-1", waiting=0.95, operators={"map_async-1": {"seconds": 0.0, **calls(overloads=7)}})
    assert first(streams={"read-1/0": step, "write-1/0": EASY}) == ("read-1/0", Cause.MODEL_LIMIT)
    asks = task("write-1", waiting=0.95, operators={"map_llm-1": {"seconds": 0.0, **calls()}})
    engines = {"anthropic opus": {"overloads": 3, "waiting": 2, "limit": 4}}
    (place,) = places(streams={"read-1/0": asks, "write-1/0": EASY}, engines=engines)
    assert (place.cause, place.step) == (Cause.MODEL_LIMIT, "anthropic opus")
    assert "3 calls were turned away (429)" in place.sentence


def agent(rows: int, **figures: Any) -> dict[str, Any]:
    return {"rows": rows, "bytes": 0, "capacity_rows": 16384, "capacity_bytes": 1 << 26, **calls(**figures)}


def agent_task(**shares: float) -> dict[str, Any]:
    return {name: each for name, each in task(**shares).items() if name in ("time", "state", "queued_seconds", "turns")}


def test_an_agent_whose_calls_are_at_their_limit_and_one_that_holds_the_loop() -> None:
    tasks = {"agents": agent_task(waiting=0.9, busy=0.05)}
    (place,) = places(agent_tasks=tasks, operators={"shop.ask": agent(9000)})
    assert (place.task, place.cause) == ("shop.ask", Cause.SLOW_FUNCTION)
    assert (
        place.sentence
        == "agent shop.ask is the narrow place: it waits 90 % of the time for calls (5 of 5 run, 0.2 s each), and 9,000 records wait"
    )
    (place,) = places(
        agent_tasks={"agents": agent_task(waiting=0.1, busy=0.9)},
        operators={"shop.ask": agent(9000, in_flight=1, attempt_seconds=0.98 * SECONDS)},
    )
    assert (place.task, place.cause) == ("shop.ask", Cause.SLOW_FUNCTION)
    assert "holds the event loop" in place.sentence
    assert places(agent_tasks=tasks, operators={"shop.ask": agent(3, in_flight=3)}) == []


def test_a_hot_key_is_the_cause_of_one_busy_subtask() -> None:
    subtasks = {
        f"orders-1/{number}": task(
            "write-1", fill=fill, busy=busy, rows=rows, work={"map-1": busy}, functions={"map-1": "f"}
        )
        for number, (fill, busy, rows) in enumerate([(0.0, 0.05, 100), (1.0, 0.97, 9000), (0.0, 0.06, 120)])
    }
    reader = task("orders-1", backpressured=0.9, keys=("account",), edge_fill=1.0)
    found = places(streams={"read-1/0": reader, **subtasks, "write-1/0": EASY})
    assert [(place.task, place.cause) for place in found] == [("orders-1/1", Cause.HOT_KEY)]
    assert "82 times as many rows" in found[0].sentence


def test_subtasks_of_one_stage_are_one_place() -> None:
    busy: dict[str, Any] = {"busy": 0.95, "work": {"window-1": 0.9}}
    streams = {f"orders-1/{number}": task("write-1", fill=1.0, **busy) for number in range(4)}
    found = places(streams={"read-1/0": HELD, **streams, "write-1/0": EASY}, cpu=3.0)
    assert len(found) == 1


LATE = {"late_seconds": {"read-1/0": 0.1, "read-2/0": 2.3}}


def test_a_slow_alignment_names_the_input_whose_barriers_are_late() -> None:
    joins = task("write-1", fill=0.3, aligning=0.6, busy=0.1, input=LATE)
    quick, slow = task("join-1", busy=0.85), task("join-1", busy=0.5)
    (place,) = places(streams={"read-1/0": quick, "read-2/0": slow, "join-1/0": joins, "write-1/0": EASY})
    assert (place.task, place.cause, place.step) == ("join-1/0", Cause.SLOW_ALIGNMENT, "read-2/0")
    assert place.sentence.endswith("on its slowest input, read-2/0, which computes 50 % of the time")


def test_late_barriers_of_a_task_without_time_left_are_a_consequence() -> None:
    joins = task("write-1", fill=0.3, aligning=0.6, busy=0.1, input=LATE)
    streams = {"read-1/0": HELD, "read-2/0": task("join-1", contended=0.98), "join-1/0": joins, "write-1/0": EASY}
    assert places(streams=streams) == []
    # A task with little time left, whose input fills but is not yet full, is about to be the narrow place: nothing is said yet.
    reads, fills = task("f-1", busy=0.5), task("write-1", fill=0.3, busy=0.6, contended=0.25, rows=3000)
    waits = task(fill=0.0, aligning=0.8, busy=0.02, input={"late_seconds": {"f-1/1": 3.0, "f-1/0": 0.1}})
    streams = {"read-1/0": reads, "f-1/0": task("write-1", fill=0.1, busy=0.1), "f-1/1": fills, "write-1/0": waits}
    assert places(streams=streams) == []


def test_a_source_that_has_no_more_rows_has_no_slow_function() -> None:
    for lag, busy, said in [({}, 0.75, []), ({"t[0]": 9}, 0.95, []), ({"t[0]": 9_000}, 0.75, [Cause.SLOW_FUNCTION])]:
        reads = task("write-1", busy=busy, work={"map-1": busy}, functions={"map-1": "f"}, input={"lag": lag})
        assert [place.cause for place in places(streams={"read-1/0": reads, "write-1/0": EASY})] == said


@pytest.mark.parametrize(
    ("subtasks", "lag", "says"),
    [
        (1, ["t[0]"], "topic t has 1 partition, so more workers do not help"),
        (2, ["t[0]", "t[1]"], "topic t has 2 partitions, so more workers do not help"),
        (2, ["t[0]"], "topic t has 1 partition, so more workers do not help"),
        (2, ["t[0]", "t[1]", "t[2]"], "or a higher parallelism with --workers"),
    ],
)
@pytest.mark.parametrize("functions", [{"map-1": "f"}, {}], ids=["function", "step"])
def test_more_workers_are_no_advice_for_a_topic_without_more_partitions(
    functions: dict[str, str], subtasks: int, lag: list[str], says: str
) -> None:
    reads = {
        f"read-1/{n}": task(
            "write-1",
            busy=0.95,
            work={"map-1": 0.9},
            functions=functions,
            input={"source": "t", "lag": {name: 9_000 for name in lag[n::subtasks]}},
        )
        for n in range(subtasks)
    }
    place, *_ = places(streams={**reads, "write-1/0": EASY})
    assert place.task == "read-1/0"
    assert place.advice.endswith(says)
    (place,) = places(streams={"read-1/0": HELD, "orders-1/0": {**reads["read-1/0"], "input": {"fill": 1.0}}})
    assert place.advice.endswith("or a higher parallelism with --workers")


def test_tasks_of_two_workers_do_not_take_turns_with_one_lock() -> None:
    waits: dict[str, Any] = {
        "busy": 0.4,
        "contended": 0.58,
        "queued": 0.5,
        "work": {"map-1": 1.0},
        "functions": {"map-1": "f"},
    }
    workers = [{"worker": number, "cpu_percent": 90.0} for number in (1, 2)]
    both = {f"read-1/{number}": task("write-1", worker=number + 1, **waits) for number in range(2)}
    (place,) = places(streams={**both, "write-1/0": EASY}, workers=workers)
    assert place.cause is Cause.SLOW_FUNCTION
    assert (
        "computes 40 % of the time, and is contended (could compute, but has to wait) 58 %, most of it in f"
        in place.sentence
    )
    beside = {"read-1/0": both["read-1/0"], "read-2/0": task("write-1", worker=1, **waits)}
    (place,) = places(streams={**beside, "write-1/0": EASY}, workers=workers)
    assert place.cause is Cause.INTERPRETER_LOCK
    assert "read-1/0 and read-2/0 take turns" in place.sentence


def test_an_exchange_that_takes_most_of_the_work() -> None:
    sends = task("orders-1", busy=0.95, sends=0.7, work={"filter-1": 0.2}, input={"ends": True}, keys=("k",))
    assert first(streams={"read-1/0": sends, "orders-1/0": task("write-1", fill=0.1, busy=0.3)}) == (
        "read-1/0",
        Cause.SLOW_EXCHANGE,
    )


def test_an_exchange_between_workers_whose_readers_have_room() -> None:
    sends = task("orders-1", backpressured=0.9, edge_fill=1.0, worker=1)
    takes = task("write-1", fill=0.0, busy=0.1, worker=2)
    workers = [{"worker": number, "cpu_percent": 20.0} for number in (1, 2)]
    assert first(streams={"read-1/0": sends, "orders-1/0": takes}, workers=workers) == ("read-1/0", Cause.SLOW_EXCHANGE)


def test_barriers_that_are_late_in_an_exchange_are_a_consequence() -> None:
    streams = {f"read-1/{n}": task("sum-1", backpressured=0.9, edge_fill=1.0, worker=n + 1) for n in range(2)}
    for n in range(2):
        late = {"late_seconds": {f"read-1/{1 - n}": 0.4 * SECONDS}}
        streams[f"sum-1/{n}"] = task("write-1", fill=0.5, busy=0.1, aligning=0.4, input=late, worker=n + 1)
    workers = [{"worker": number, "cpu_percent": 20.0} for number in (1, 2)]
    assert [place.cause for place in places(streams=streams, workers=workers)] == [Cause.SLOW_EXCHANGE]
    # So are those of a sender that has a little time left, while its channel is the narrow place (a run on CI).
    for n in range(2):
        streams[f"read-1/{n}"] = task("sum-1", backpressured=0.76, edge_fill=1.0, worker=n + 1)
        late = {"late_seconds": {f"read-1/{1 - n}": 0.78 * SECONDS, f"read-1/{n}": 0.4 * SECONDS}}
        streams[f"sum-1/{n}"] = task("write-1", fill=1.0, busy=0.1, aligning=0.78, input=late, worker=n + 1)
    assert [place.cause for place in places(streams=streams, workers=workers)] == [Cause.SLOW_EXCHANGE]
    # A sender whose channel is held until another task brings its barrier does not wait for the exchange.
    held = task("write-1", fill=0.5, busy=0.1, aligning=0.8, input={"late_seconds": {"read-2/0": 3.2}}, worker=2)
    slow = task("sum-1", busy=0.6, worker=1)
    streams = {"read-1/0": streams["read-1/0"], "read-2/0": slow, "sum-1/0": held}
    assert [place.cause for place in places(streams=streams, workers=workers)] == [Cause.SLOW_ALIGNMENT]


def test_one_slow_partition() -> None:
    lag = {"t[0]": 10, "t[1]": 90_000, "t[2]": 0}
    (place,) = places(streams={"read-1/0": task("write-1", busy=0.2, input={"lag": lag}), "write-1/0": EASY})
    assert (place.task, place.cause, place.step) == ("read-1/0", Cause.SLOW_PARTITION, "t[1]")


@pytest.mark.parametrize(
    "input",
    [
        {"lag": {"t[0]": 50_000}},  # it has rows and gives few
        {"ends": True},  # a file is read as fast as it can be
        {"overdue_seconds": 0.8 * SECONDS},  # its polls take longer than they may
    ],
)
def test_a_starved_source(input: dict[str, Any]) -> None:
    reader = task("write-1", busy=0.05, input={"source": "orders", **input})
    (place,) = places(streams={"read-1/0": reader, "write-1/0": EASY})
    assert (place.task, place.cause, place.step) == ("read-1/0", Cause.STARVED_SOURCE, "orders")


HEALTHY = {
    "without load": {"read-1/0": task("write-1"), "write-1/0": EASY},
    "with some load": {"read-1/0": task("write-1", busy=0.4), "write-1/0": task(fill=0.1, busy=0.3, backpressured=0.2)},
    "a busy task that keeps up": {
        "read-1/0": task("a-1", busy=0.2),
        "a-1/0": task("write-1", fill=0.1, busy=0.8),
        "write-1/0": EASY,
    },
    "a reader that decodes all that comes": {"read-1/0": task("write-1", busy=0.9), "write-1/0": EASY},
    "a little lag": {"read-1/0": task("write-1", busy=0.2, input={"lag": {"t[0]": 40}}), "write-1/0": EASY},
    "ended": {"read-1/0": {**task("write-1", busy=0.9, input={"ends": True}), "state": ""}},
    "a barrier now and then": {
        "read-1/0": task("a-1"),
        "a-1/0": task("write-1", fill=0.0, aligning=0.15),
        "write-1/0": EASY,
    },
    "calls below their limit": {
        "read-1/0": task("write-1", waiting=0.1, operators={"map_async-1": {"seconds": 0.0, **calls(in_flight=2)}}),
        "write-1/0": EASY,
    },
    "nothing": {},
}


@pytest.mark.parametrize("streams", HEALTHY.values(), ids=HEALTHY)
def test_no_word_about_a_healthy_app(streams: dict[str, Any]) -> None:
    assert places(streams=streams) == []


def test_a_task_behind_the_narrow_place_is_not_named_and_no_more_than_three_are() -> None:
    work: dict[str, Any] = {"busy": 0.95, "work": {"window-1": 0.9}}
    chains = {
        name: each
        for number in range(5)
        for name, each in {
            f"read-{number}/0": task(f"a-{number}", backpressured=0.9, edge_fill=1.0),
            f"a-{number}/0": task("write-1", fill=1.0, **work),
        }.items()
    }
    found = places(streams={**chains, "write-1/0": EASY}, cpu=3.0)
    assert len(found) == 3
    assert all(place.task.startswith("a-") for place in found)


def test_readings_that_are_too_close_or_of_other_tasks_say_nothing() -> None:
    now = AppFigures.of({"streams": {"read-1/0": task("write-1", busy=0.9, input={"ends": True})}})
    assert narrow_places(now, now) == []
    assert narrow_places(AppFigures(), now) == []
    assert narrow_places(AppFigures(), AppFigures()) == []
