"""Rows for which a step fails: they alone leave the stream, with their place, their step and their error; all others go on.

One text where a number was expected ended a stream for good: three restarts, exit 1, no dead letter, and the row was not named.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import sabot
from sabot import App, DataError, SabotError, TransientError, UserError, col, pattern, step
from sabot.codecs.records import header_rows
from sabot.engine.operators.rows import bad
from sabot.testing import BARRIER, CRASH, END, ListSink, MemoryBroker, ScriptedSource, run
from tools.agent_tools import publish, records, started, until

SCHEMA = {"n": "int64", "price": "string", "k": "string"}
BAD = {3: "n/a", 40: "", 41: "12,5", 99: "ten"}


def rows(count: int = 100) -> list[dict[str, Any]]:
    return [{"n": n, "price": BAD.get(n, str(n)), "k": "ab"[n % 2]} for n in range(count)]


def priced(stream: sabot.Stream) -> sabot.Stream:
    return stream.filter(col("n") >= 0).with_columns(price=col("price").cast("float64"))


def facts(letters: ListSink) -> list[dict[str, str]]:
    """The headers of letters, with the row that each one has."""
    found = []
    for data in letters.batches:
        for headers, payload in zip(
            header_rows(data.column("headers")), data.column("payload").to_pylist(), strict=True
        ):
            said = {name.removeprefix("sabot."): value.decode() for name, value in headers}
            found.append({**said, "row": json.loads(payload)})
    return found


def once(steps: Any, sent: list[dict[str, Any]], **options: Any) -> tuple[ListSink, ListSink]:
    """The results and the dead letters of these steps over a script, which ends."""
    results, letters = ListSink("results"), ListSink("letters")

    def build(directory: Path) -> App:
        app = App("bad", checkpoint_dir=directory, restart="fixed(1, 1ms)")
        source = ScriptedSource([sent, END], name="in")
        steps(app.stream(source, schema=SCHEMA, dead_letter=letters, **options)).to(results)
        return app

    run(build)
    return results, letters


@pytest.mark.parametrize("parallelism", [1, 2])
async def test_the_rows_that_a_cast_refuses_are_dead_letters_with_their_places_and_the_others_go_on(
    memory_url: str, parallelism: int
) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("in", partitions=2)
    places = {}
    for n, row in enumerate(rows()):
        place = broker.publish("in", [row], partition=n % 2), n % 2
        if n in BAD:
            places[n] = place
    app = App("bad", memory_url, parallelism=parallelism)
    keyed = app.stream("in", schema=SCHEMA).filter(col("n") >= 0).deduplicate("k", "n")
    keyed.with_columns(price=col("price").cast("float64")).to("out")
    async with started(app):
        await until(lambda: len(records(app, "in.dlq")) == len(BAD), "the dead letters")
        await until(lambda: len(records(app, "out")) == 100 - len(BAD), "the other rows")
    assert sorted(record.value["n"] for record in records(app, "out")) == [n for n in range(100) if n not in BAD]
    for letter in records(app, "in.dlq"):
        said = {name.removeprefix("sabot."): value.decode() for name, value in letter.headers}
        row = letter.value
        assert (int(said["offset"]), int(said["partition"])) == (places[row["n"]][0], row["n"] % 2)
        assert said["topic"] == "in"
        assert said["error"] == "DataError"
        assert said["message"].startswith(f"column 'price': '{BAD[row['n']]}' is no double")
        assert said["step"].startswith("with price = ")
        assert row == {"n": row["n"], "price": BAD[row["n"]], "k": "ab"[row["n"] % 2]}


def test_null_in_the_place_of_what_cannot_be_computed() -> None:
    results, letters = once(priced, rows(), on_error="null")
    assert [row["price"] for row in results.rows] == [None if n in BAD else float(n) for n in range(100)]
    assert not letters.batches


def test_a_step_may_have_another_policy_than_its_stream() -> None:
    def steps(stream: sabot.Stream) -> sabot.Stream:
        halves = stream.on_error("null").with_columns(half=col("price").cast("float64") / 2)
        return halves.on_error("dead_letter").filter(col("price").cast("float64") >= 50)

    results, letters = once(steps, rows(), on_error="fail")
    assert [row["n"] for row in results.rows] == [n for n in range(50, 100) if n not in BAD]
    assert [each["row"]["n"] for each in facts(letters)] == list(BAD)
    assert all(each["row"]["half"] is None for each in facts(letters))


async def test_a_row_that_ends_the_app_is_named_and_restarts_do_not_repeat_it(memory_url: str, tmp_path: Any) -> None:
    app = App("bad", memory_url, checkpoint_dir=tmp_path, restart="fixed(3, 1ms)")
    publish(app, "in", rows(10))
    priced(app.stream("in", schema=SCHEMA, on_error="fail")).to(ListSink())
    with pytest.raises(DataError, match=r"column 'price': .*'n/a' is no double; in\[0\]@3 \(cast"):
        await app.run()
    assert app.statistics()["failure"]
    assert app.agent_runtime.runner.status.restarts == 0


def test_a_collect_has_no_dead_letters_and_says_which_row_is_bad() -> None:
    table = pa.table({"n": [1, 2], "price": ["1", "n/a"], "k": ["a", "b"]})
    with pytest.raises(DataError, match="'n/a' is no double; row 1 of a batch of 2 rows"):
        priced(App("bad").stream(ScriptedSource([table.to_batches()[0], END], schema=table.schema))).collect()


def test_a_function_over_batches_is_called_with_halves_until_the_bad_rows_are_found() -> None:
    calls: list[int] = []

    def parsed(batch: pa.RecordBatch) -> pa.RecordBatch:
        calls.append(batch.num_rows)
        return batch.set_column(1, "price", pc.cast(batch["price"], pa.float64()))

    results, letters = once(
        lambda stream: stream.map_batches(parsed, schema={**SCHEMA, "price": "float64"}), rows(1000)
    )
    assert [row["n"] for row in results.rows] == [n for n in range(1000) if n not in BAD]
    assert [(each["row"]["n"], int(each["offset"])) for each in facts(letters)] == [(n, n) for n in BAD]
    assert {each["error"] for each in facts(letters)} == {"ArrowInvalid"}
    assert len(calls) <= 2 * len(BAD) * 11 + 1


def test_a_function_that_fails_for_all_rows_is_not_called_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad, "CALLS", 20)
    calls: list[int] = []

    def broken(batch: pa.RecordBatch) -> pa.RecordBatch:
        calls.append(batch.num_rows)
        raise ValueError("no row is good enough")

    results, letters = once(lambda stream: stream.map_batches(broken, schema=SCHEMA), rows(1000))
    assert not results.rows
    assert sorted(each["row"]["n"] for each in facts(letters)) == list(range(1000))
    assert len(calls) < 50


@pytest.mark.parametrize(
    "error",
    [
        NameError("name 'pries' is not defined"),
        UserError("no such currency"),
        ConnectionError("refused"),
        TransientError("busy"),
    ],
)
def test_what_is_no_row_s_fault_ends_the_app(error: Exception) -> None:
    def broken(batch: pa.RecordBatch) -> pa.RecordBatch:
        raise error

    with pytest.raises(SabotError, match=str(error)):
        once(lambda stream: stream.map_batches(broken, schema=SCHEMA), rows(10))


def test_a_row_of_flat_map_that_fails_takes_back_what_it_gave() -> None:
    def parts(row: dict[str, Any]) -> Any:
        yield {"n": row["n"], "value": 1.0}
        yield {"n": row["n"], "value": float(row["price"] or "nothing")}
        if row["n"] == 7:
            yield {"n": 7, "value": "seven"}  # fits no float

    def steps(stream: sabot.Stream) -> sabot.Stream:
        return stream.flat_map(parts, schema={"n": "int64", "value": "float64"})

    results, letters = once(steps, rows())
    gone = {7, *BAD}
    assert Counter(row["n"] for row in results.rows) == {n: 2 for n in range(100) if n not in gone}
    assert {(each["row"]["n"], int(each["offset"])) for each in facts(letters)} == {(n, n) for n in gone}


def test_rows_of_a_failed_filter_leave_a_table_of_changes_as_if_they_had_never_come() -> None:
    """Of an update, the row that passes stays: it is parted from the one that does not."""
    results, letters = ListSink("results"), ListSink("letters")

    def build(directory: Path) -> App:
        app = App("bad", checkpoint_dir=directory, restart="fixed(1, 1ms)")
        values = [("a", "1"), ("b", "x"), ("a", "n/a"), ("b", "2"), ("a", "3")]
        sent = [{"k": key, "v": value} for key, value in values]
        source = ScriptedSource([[row] for row in sent] + [END], name="in")
        table = app.table(source, key="k", schema={"k": "string", "v": "string"}, dead_letter=letters)
        table.with_columns(v=col("v").cast("int64")).to(results)
        return app

    run(build)
    assert sorted((row["k"], row["v"]) for row in results.current) == [("a", 3), ("b", 2)]
    assert [each["row"] for each in facts(letters)] == [{"k": "b", "v": "x"}, {"k": "a", "v": "n/a"}]


def test_dead_letters_of_rows_are_written_once_over_a_crash() -> None:
    results, letters = ListSink("results"), ListSink("letters")
    sent = rows()
    script = [sent[:30], BARRIER, sent[30:60], CRASH, sent[60:], END]

    def build(directory: Path) -> App:
        app = App("bad", checkpoint_dir=directory, restart="fixed(1, 1ms)")
        source = ScriptedSource(script, name="in")
        priced(app.stream(source, schema=SCHEMA, dead_letter=letters)).to(results)
        return app

    run(build)
    assert Counter(row["n"] for row in results.rows) == {n: 1 for n in range(100) if n not in BAD}
    assert Counter(each["row"]["n"] for each in facts(letters)) == dict.fromkeys(BAD, 1)


# -- process functions -----------------------------------------------------------------------------------------------------

COUNTED = {"n": "int64", "total": "int64", "seen": "string"}


def count_up(row: dict[str, Any], ctx: Any) -> Any:
    """Changes all that a call can change before it looks at the price."""
    total = ctx.state("total")
    total.put((total.get() or 0) + 1)
    ctx.list("seen").add(row["n"])
    ctx.map("last").put("n", row["n"])
    ctx.timers.event(1_000_000 + row["n"])
    ctx.side("all", {"n": row["n"]})
    yield {"n": row["n"], "total": total.get(), "seen": json.dumps(ctx.list("seen").get()[-2:])}
    float(row["price"])
    if row["n"] == 12:
        yield {"n": "twelve"}


def count_many(keys: pa.Array, batch: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
    """The same over batches."""
    state, totals, seen = ctx.state("total"), [], []
    for key, n in zip(keys, batch["n"].to_pylist(), strict=True):
        one = pa.array([key.as_py()])
        state.put_many(one, pa.array([(state.get_many(one)[0].as_py() or 0) + 1]))
        totals.append(state.get_many(one)[0].as_py())
        last = ctx.state("last").get_many(one)[0].as_py()
        seen.append(json.dumps([n] if last is None else [last, n]))
        ctx.state("last").put_many(one, pa.array([n]))
    ctx.timers.event_many(keys, pc.add(batch["n"], 1_000_000))
    ctx.side("all", batch.select(["n"]), pa.array([0] * batch.num_rows))
    pc.cast(batch["price"], pa.float64())
    if pc.any(pc.equal(batch["n"], 12)).as_py():
        raise ValueError("twelve")
    return pa.record_batch([batch["n"], pa.array(totals, pa.int64()), pa.array(seen)], names=list(COUNTED))


def fired(timer: Any, ctx: Any) -> dict[str, Any]:
    return {"n": timer.at, "total": None, "seen": None}


def fired_many(keys: pa.Array, at: pa.Array, ctx: Any) -> pa.RecordBatch:
    return pa.record_batch([at, pa.nulls(len(at), pa.int64()), pa.nulls(len(at), pa.string())], names=list(COUNTED))


def as_if_never_seen(gone: set[int], rows: int = 100) -> list[dict[str, Any]]:
    """What plain Python gives for the rows that are not gone, and for their timers."""
    seen: dict[str, list[int]] = {"a": [], "b": []}
    found = []
    for n in (n for n in range(rows) if n not in gone):
        mine = seen["ab"[n % 2]]
        mine.append(n)
        found.append({"n": n, "total": len(mine), "seen": json.dumps(mine[-2:])})
    return found + [{"n": 1_000_000 + n, "total": None, "seen": None} for n in range(rows) if n not in gone]


@pytest.mark.one_in(8, "a quarter of a second of a core each")
@pytest.mark.parametrize("ttl", [None, "1d"])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("crash", [False, True])
def test_what_a_row_of_a_process_function_changed_before_it_failed_is_undone(
    batch: bool, crash: bool, ttl: str | None
) -> None:
    results, sides, letters = ListSink("results"), ListSink("sides"), ListSink("letters")
    function, on_timer = (count_many, fired_many) if batch else (count_up, fired)
    sent = rows()
    script = [sent[:30], BARRIER, sent[30:60], CRASH, sent[60:], END] if crash else [sent, END]

    def build(directory: Path) -> App:
        app = App("bad", checkpoint_dir=directory)
        stream = app.stream(ScriptedSource(script, name="in"), schema=SCHEMA, time="n", dead_letter=letters)
        options: Any = {"schema": COUNTED, "sides": {"all": {"n": "int64"}}, "ttl": ttl, "batch": batch}
        made = stream.key_by("k").process(function, on_timer=on_timer, **options)
        made.to(results)
        made.side("all").to(sides)
        return app

    run(build)
    gone = {12, *BAD}
    assert sorted(results.rows, key=lambda row: row["n"]) == as_if_never_seen(gone)
    assert sorted(row["n"] for row in sides.rows) == [n for n in range(100) if n not in gone]
    found = facts(letters)
    assert sorted(each["row"]["n"] for each in found) == sorted(gone)
    assert all(int(each["offset"]) >= each["row"]["n"] for each in found)


@pytest.mark.parametrize("batch", [False, True])
def test_a_timer_whose_function_fails_is_set_apart_and_the_others_fire(batch: bool) -> None:
    def arm(row: dict[str, Any], ctx: Any) -> None:
        ctx.timers.event(row["n"] + 1_000_000)

    def fire(timer: Any, ctx: Any) -> dict[str, Any]:
        seen = ctx.state("seen")
        seen.put((seen.get() or 0) + 1)
        if timer.at % 10 == 3:
            raise ValueError("three")
        return {"n": timer.at, "total": seen.get(), "seen": None}

    def arm_many(keys: pa.Array, batch: pa.RecordBatch, ctx: Any) -> None:
        ctx.timers.event_many(keys, pc.add(batch["n"], 1_000_000))

    def fire_many(keys: pa.Array, at: pa.Array, ctx: Any) -> pa.RecordBatch:
        if any(each % 10 == 3 for each in at.to_pylist()):
            raise ValueError("three")
        return fired_many(keys, at, ctx)

    def steps(stream: sabot.Stream) -> sabot.Stream:
        function, on_timer = (arm_many, fire_many) if batch else (arm, fire)
        return stream.key_by("k").process(function, on_timer=on_timer, schema=COUNTED, batch=batch)

    results, letters = once(steps, rows(20), time="n")
    assert sorted(row["n"] for row in results.rows) == [1_000_000 + n for n in range(20) if n % 10 != 3]
    assert [(each["row"]["k"], each["row"]["at"]) for each in facts(letters)] == [("b", 1_000_003), ("b", 1_000_013)]
    if not batch:
        assert max(row["total"] for row in results.rows if row["n"] % 2) == 8


def test_timers_of_one_time_keep_their_order_when_a_later_row_fails() -> None:
    """They had fired before the row, and were set again in the opposite order when the calls of its batch were undone."""

    def arm(row: dict[str, Any], ctx: Any) -> None:
        if row["n"] == 0:
            for name in ("x", "y", "z"):
                ctx.timers.event(10, name)
        if row["n"] == 20:
            ctx.timers.delete(10, "y")  # it has fired
            raise ValueError("twenty")

    def fire(timer: Any, ctx: Any) -> dict[str, Any]:
        return {"n": timer.at, "total": 0, "seen": timer.name}

    results, letters = ListSink("results"), ListSink("letters")
    batches = [[rows(30)[n] for n in some] for some in ((0, 2), (20, 28))]

    def build(directory: Path) -> App:
        app = App("bad", checkpoint_dir=directory)
        source = ScriptedSource([*batches, END], name="in")
        stream = app.stream(source, schema=SCHEMA, dead_letter=letters, time="n")
        stream.key_by("k").process(arm, on_timer=fire, schema=COUNTED, order="time").to(results)
        return app

    run(build)
    assert [row["seen"] for row in results.rows] == ["x", "y", "z"]
    assert len(facts(letters)) == 1


def test_timers_that_fire_again_in_smaller_batches_have_their_own_keys() -> None:
    """The slots of all keys of a failed batch were free after the first part of it, and timers of that part took them."""

    def arm(keys: pa.Array, batch: pa.RecordBatch, ctx: Any) -> None:
        ctx.timers.event_many(keys, pc.add(batch["n"], 1_000_000))

    def fire(keys: pa.Array, at: pa.Array, ctx: Any) -> pa.RecordBatch:
        if 1_000_007 in at.to_pylist():
            raise ValueError("seven")
        first = pc.less(at, 2_000_000)
        ctx.timers.event_many(keys.filter(first), pc.add(at.filter(first), 1_000_000))
        return pa.record_batch({"n": at, "total": keys.cast(pa.int64()), "seen": pa.nulls(len(at), pa.string())})

    def steps(stream: sabot.Stream) -> sabot.Stream:
        keyed = stream.key_by(id=col("n").cast("string"))
        return keyed.process(arm, on_timer=fire, schema=COUNTED, batch=True)

    results, letters = once(steps, rows(20), time="n")
    good = [n for n in range(20) if n != 7]
    assert sorted((row["n"], row["total"]) for row in results.rows) == [
        (at + n, n) for at in (1_000_000, 2_000_000) for n in good
    ]
    assert [each["row"] for each in facts(letters)] == [{"id": "7", "at": 1_000_007, "name": "", "kind": "event"}]


@pytest.mark.slow  # half a second of a core
def test_a_row_for_which_a_pattern_cannot_be_computed_is_in_no_match() -> None:
    price = col("price").cast("float64")
    rise = pattern("low", price >= 0).next("high", price > step("low").last(price))

    def steps(policy: Any) -> Any:
        measures = {"n": step("high").last("n"), "low": step("low").last(price)}
        return lambda stream: stream.on_error(policy).key_by("k").pattern(rise, **measures)

    expected = []
    for key in (0, 1):
        good = [n for n in range(key, 100, 2) if n not in BAD]
        expected += zip(good[1::2], map(float, good[::2]), strict=False)
    for policy in ("dead_letter", "null"):
        results, letters = once(steps(policy), rows(), time="n")
        assert sorted((row["n"], row["low"]) for row in results.rows) == sorted(expected)
        assert sorted(each["row"]["n"] for each in facts(letters)) == (sorted(BAD) if policy == "dead_letter" else [])
    with pytest.raises(SabotError, match="is no double") as caught:
        once(steps("fail"), rows(), time="n")
    assert "pattern" in str(caught.value)


@pytest.mark.slow  # half a second of a core
def test_a_match_whose_measures_cannot_be_computed_is_set_apart() -> None:
    pairs = pattern("a", col("n") >= 0).next("b", col("n") >= 0)

    def steps(policy: Any) -> Any:
        measures = {"price": step("b").last("price").cast("float64"), "n": step("a").first("n")}
        return lambda stream: stream.on_error(policy).key_by("k").pattern(pairs, **measures)

    lasts = [n for n in range(100) if n % 4 > 1]  # of each pair of a key
    results, letters = once(steps("dead_letter"), rows(), time="n")
    assert sorted(row["price"] for row in results.rows) == [n for n in lasts if n not in BAD]
    assert [(each["row"]["k"], each["row"]["match_end"]) for each in facts(letters)] == [("b", 3), ("b", 99)]
    results, letters = once(steps("null"), rows(), time="n")
    assert sum(row["price"] is None and row["n"] is None for row in results.rows) == 2
    assert (len(results.rows), letters.batches) == (50, [])


def test_a_process_step_may_end_the_app_or_give_nulls() -> None:
    def priced(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
        return {"n": row["n"], "price": float(row["price"])}

    def steps(policy: Any) -> Any:
        schema = {"n": "int64", "price": "float64"}
        return lambda stream: stream.key_by("k").process(priced, schema=schema, on_error=policy)

    with pytest.raises(SabotError, match=r"could not convert string to float: 'n/a'"):
        once(steps("fail"), rows())
    results, letters = once(steps("null"), rows())
    assert [row["n"] for row in results.rows] == [None if n in BAD else n for n in range(100)]
    assert not letters.batches


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_row_of_a_broadcast_side_that_fails_is_one_dead_letter_and_leaves_no_trace(parallelism: int) -> None:
    results, letters = ListSink("results"), ListSink("letters")
    limits = [{"name": "low", "value": "1"}, {"name": "low", "value": "n/a"}, {"name": "high", "value": "9"}]

    def set_limit(row: dict[str, Any], ctx: Any) -> None:
        ctx.broadcast("limits").put(row["name"], row["value"])
        float(row["value"])

    def check(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
        return {"n": row["n"], "limits": json.dumps(dict(ctx.broadcast("limits").items()))}

    def build(directory: Path) -> App:
        app = App("bad", checkpoint_dir=directory, parallelism=parallelism)
        names = {"name": "string", "value": "string"}
        few = app.stream(ScriptedSource([limits, END], name="limits"), schema=names, dead_letter=letters)
        many = app.stream(ScriptedSource([rows(6), END], name="in"), schema=SCHEMA, dead_letter=letters)
        seen = many.key_by("k").connect(few.broadcast())
        seen.process(check, right=set_limit, schema={"n": "int64", "limits": "string"}).to(results)
        return app

    run(build)
    assert len(results.rows) == 6
    assert all("n/a" not in row["limits"] for row in results.rows)
    assert [each["row"] for each in facts(letters)] == [{"name": "low", "value": "n/a"}]
