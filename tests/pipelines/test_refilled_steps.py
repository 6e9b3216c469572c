"""A step of a changed program is refilled: its state is computed again from its topics, and its results are those of a fresh run."""

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App, Batch, Source, UserError, col, count, tumbling
from sabot._cython.groups.partition import hash_columns
from sabot.connectors.files import files
from sabot.connectors.memory import MemoryBroker, MemorySink
from sabot.connectors.sql import SqlSink
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.operators.reading import state_of
from sabot.engine.plan import make_plan
from sabot.engine.runtime.life.outcomes import outcomes_of
from sabot.engine.runtime.life.refilling import Refilling
from sabot.engine.runtime.life.restore import Asked
from sabot.engine.runtime.tasks.reading import Reader, SourceInput
from sabot.errors import InternalError
from tools.agent_tools import bounded, publish, until, values
from tools.command_line import sabot_says

CARS = {"id": "int64", "maker": "string", "seats": "int64"}
TRIPS = {"id": "int64", "km": "int64", "ts": "int64"}
ROWS = [{"id": n % 7, "maker": f"m{n % 3}", "seats": n} for n in range(40)]


class Lives:
    """The lives of one app: each runs a program over more rows, and stops it with a checkpoint."""

    def __init__(self, broker: str, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self.parallelism, self.state = 1, "memory"

    def app(self, program: Any, **settings: Any) -> App:
        app = App("cars", broker=self.broker, state=self.state, checkpoint_dir=self.folder / "checkpoints")
        app.configure(parallelism=self.parallelism, **settings)
        program(app)
        return app

    async def live(
        self, program: Any, rows: dict[str, list[dict[str, Any]]], *, written: int = 0, **settings: Any
    ) -> list[Any]:
        """Returns what this life has written into the topic `out`. `written`: how many rows reach the sink before the stop, which
        does not wait for calls: it keeps them for the next life, and steps behind them may have no state yet.
        """
        app = self.app(program, **settings)
        before = len(values(app, "out")) if "out" in MemoryBroker.get(self.broker).topics() else 0
        await app.start()
        for topic, more in rows.items():
            publish(app, topic, more)
        wanted = sum(map(len, rows.values()))
        await until(
            lambda: (
                sum(task["input"].get("rows_in", 0) for task in app.statistics()["streams"].values()) >= wanted
                and sum(task["rows"] for name, task in app.statistics()["streams"].items() if "write" in name)
                >= written
            )
        )
        await bounded(app.stop())
        return values(app, "out")[before:]

    def kept(self, step: str) -> list[dict[str, Any]]:
        manifest = CheckpointStorage(self.folder / "checkpoints").latest()
        assert manifest is not None
        return sorted(state_of(manifest, step).to_pylist(), key=str)


@pytest.fixture
def lives(memory_url: str, tmp_path: Path) -> Lives:
    MemoryBroker.get(memory_url).create_topic("cars", partitions=2)
    return Lives(memory_url, tmp_path)


def table(*columns: str) -> Any:
    return lambda app: app.stream("cars", schema=CARS).select("id", *columns).upsert("id").named("newest").to("out")


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("state", ["memory", "state"])
async def test_a_column_that_a_table_did_not_keep_is_read_again_from_its_topic(
    lives: Lives, parallelism: int, state: str
) -> None:
    lives.state = state if state == "memory" else str(lives.folder / "state")
    await lives.live(table("maker"), {"cars": ROWS})
    lives.parallelism = parallelism
    with pytest.raises(UserError, match=r"column seats is new") as refused:
        await lives.live(table("maker", "seats"), {})
    assert "compute this state again: --refill newest" in refused.value.hint
    written = await lives.live(
        table("maker", "seats"), {"cars": [{"id": 100, "maker": "m", "seats": 1}]}, refill=["newest"]
    )
    right = {row["id"]: row for row in [*ROWS, {"id": 100, "maker": "m", "seats": 1}]}
    assert {row["id"]: row for row in written} == right  # the table is written again
    assert len(written) == len(right)
    assert lives.kept("newest") == sorted(right.values(), key=str)


def minutes(**aggregates: Any) -> Any:
    def program(app: App) -> None:
        trips = app.stream("trips", schema=TRIPS, time="ts")
        counted = trips.key_by("id").window(tumbling("1m")).aggregate(**aggregates).named("minutes")
        counted.upsert("id", "window_start").named("table").to("out")

    return program


def trips(first: int, last: int) -> list[dict[str, Any]]:
    return [{"id": n % 5, "km": n, "ts": n * 1000} for n in range(first, last)]


async def test_an_aggregate_added_to_windows_is_in_the_table_behind_them_for_all_windows(
    lives: Lives, memory_url: str
) -> None:
    MemoryBroker.get(memory_url)
    await lives.live(minutes(n=count()), {"trips": trips(0, 250)})
    more = minutes(n=count(), km=sabot.sum("km"))
    with pytest.raises(UserError, match=r"table .*column km is new") as refused:
        await lives.live(more, {})
    assert "--refill table" in refused.value.hint
    written = await lives.live(more, {"trips": trips(250, 400)}, refill=["table"])
    kept = {(row["id"], row["window_start"]): (row["n"], row["km"]) for row in lives.kept("table")}
    right: dict[Any, list[int]] = {}
    for trip in trips(0, 400):
        right.setdefault((trip["id"], trip["ts"] // 60_000), []).append(trip["km"])
    whole = {key: (len(km), sum(km)) for key, km in right.items() if key[1] < 6}  # the seventh minute is open
    assert sorted(kept.values()) == sorted(whole.values())
    assert len(written) == 30  # those of the new windows, and of the windows before again, with the new column


async def test_a_group_over_a_table_is_refilled_from_the_table_and_needs_no_topic(
    lives: Lives, memory_url: str
) -> None:
    def program(where: int) -> Any:
        def build(app: App) -> None:
            cars = app.table("cars", key="id", schema=CARS).named("newest")
            cars.filter(col("seats") > where).group_by("maker").aggregate(n=count()).named("makers").upsert("maker").to(
                "out"
            )

        return build

    await lives.live(program(0), {"cars": ROWS})
    with pytest.raises(UserError) as refused:
        await lives.live(program(35), {})
    assert "--refill makers" in refused.value.hint
    await lives.live(program(35), {"cars": [{"id": 100, "maker": "m9", "seats": 50}]}, refill=["makers"])
    assert {row["maker"]: row["n"] for row in lives.kept("makers")} == {"m0": 2, "m1": 1, "m2": 1, "m9": 1}


async def test_steps_over_a_refilled_table_continue(lives: Lives) -> None:
    def program(*aggregates: str) -> Any:
        def build(app: App) -> None:
            cars = app.table("cars", key="id", schema=CARS).named("newest")
            cars.group_by("maker").aggregate(n=count()).named("makers").upsert("maker").to("out")
            if aggregates:
                cars.group_by("id").aggregate(most=sabot.max("seats")).named("most").upsert("id").to("most")

        return build

    await lives.live(program(), {"cars": ROWS})
    with pytest.raises(UserError, match="column seats is new") as refused:
        await lives.live(program("most"), {})
    assert refused.value.hint.count("--refill") == 1
    written = await lives.live(program("most"), {"cars": [{"id": 6, "maker": "m0", "seats": 99}]}, refill=["newest"])
    assert len(written) == 2  # the change of m0, and that of the maker that car 6 had before
    assert [row["most"] for row in lives.kept("most")] == [35, 36, 37, 38, 39, 33, 99]


async def test_a_topic_without_its_first_rows_cannot_refill_a_step(lives: Lives, memory_url: str) -> None:
    MemoryBroker.get(memory_url).retention_bytes = 2000
    for _ in range(5):
        await lives.live(table("maker"), {"cars": ROWS})
    with pytest.raises(UserError, match="its first rows are gone"):
        await lives.live(table("maker", "seats"), {}, refill=["newest"])
    await lives.live(table("maker"), {"cars": ROWS})  # the earlier program goes on from its checkpoint


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("agent", [False, True])
async def test_an_app_goes_on_without_the_records_that_retention_has_removed_as_asked(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, agent: bool
) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.retention_bytes = 2000
    broker.create_topic("cars")

    def counts(app: App) -> list[int]:
        return [each["n"] for each in values(app, "out")]

    async def live(rows: int, count_until: int, **settings: Any) -> None:
        app = App("cars", broker=memory_url, state=str(tmp_path / "state"))
        app.configure(**settings)
        if agent:

            @app.agent("cars", sink="out")
            async def counted(ctx: Any) -> Any:
                n = (await ctx.state().get("n") or 0) + 1
                await ctx.state().put("n", n)
                return {"n": n}

        else:
            cars = app.stream("cars", schema=CARS).with_columns(all=sabot.lit(0))
            cars.group_by("all").aggregate(n=count()).upsert("all").to("out")
        await app.start()
        broker.publish("cars", ROWS[:rows])
        await until(lambda: "out" in broker.topics() and count_until in counts(app))
        await bounded(app.stop())
        assert max(counts(app)) == count_until

    await live(10, 10)
    for row in range(500):
        broker.publish("cars", ROWS[row % 40 : row % 40 + 1])
    first = broker.records("cars")[0].offset
    with pytest.raises(UserError, match=r"cars\[0\]: position \d+ does not exist") as refused:
        await live(0, 10)
    assert (
        f"retention has removed {first - 10} records that were not read; --from-earliest cars goes on"
        in refused.value.hint
    )
    with pytest.raises(UserError, match="--from-earliest vans: the app reads no topic of that name"):
        await live(0, 10, from_earliest=["vans"])
    await live(1, 10 + 510 - first + 1, from_earliest=["cars"])
    assert f"cars[0]: {first - 10} records that were not read are missing" in caplog.text


async def test_a_refill_is_done_once(lives: Lives) -> None:
    await lives.live(table("maker"), {"cars": ROWS})
    for _ in range(2):
        await lives.live(table("maker", "seats"), {"cars": ROWS[:3]}, refill=["newest"])
    manifests = CheckpointStorage(lives.folder / "checkpoints", retain=9).manifests()
    assert [manifest.describe.get("refilled") for manifest in manifests][-1] == ["newest"]
    assert not any(name.startswith("refilled-") for name in manifests[-1].tasks)


async def test_a_start_that_is_refused_after_its_refill_leaves_the_checkpoint_before_it(lives: Lives) -> None:
    def more_than(least: int) -> Any:
        def program(app: App) -> None:
            cars = app.stream("cars", schema=CARS).filter(col("seats") >= least)
            cars.group_by("maker").aggregate(n=sabot.count()).named("makers").upsert("maker").to("out")

        return program

    await lives.live(more_than(0), {"cars": ROWS})
    before = lives.kept("makers")
    with pytest.raises(UserError, match="--reemit nope"):
        await lives.live(more_than(20), {}, refill=["makers"], reemit=["nope"])
    manifest = CheckpointStorage(lives.folder / "checkpoints").latest()
    assert manifest is not None
    assert "refilled" not in manifest.describe
    assert lives.kept("makers") == before
    found = await lives.live(more_than(0), {"cars": ROWS})
    assert {row["maker"]: row["n"] for row in found} == {"m0": 28, "m1": 26, "m2": 26}


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_a_join_with_a_table_that_is_read_first_is_refilled(
    lives: Lives, memory_url: str, parallelism: int
) -> None:
    """A reader up to a checkpoint never said that the rows from the start had been read: the other source waited for ever."""
    MemoryBroker.get(memory_url).create_topic("vans", partitions=1)
    lives.parallelism = parallelism

    def program(app: App) -> None:
        cars = app.table("vans", key="id", schema=CARS | {"ts": "int64"}, time="ts").named("cars")
        found = app.stream("trips", schema=TRIPS, time="ts").join_asof(cars, on="id").named("found")
        found.group_by("id").aggregate(n=count(), seats=sabot.sum("seats")).named("sums").upsert("id").to("out")

    cars = [{"id": n % 5, "maker": "m", "seats": n, "ts": n * 1000} for n in range(80)]
    await lives.live(program, {"vans": cars, "trips": trips(1, 60)})
    before = lives.kept("sums")
    assert len(before) == 5
    await lives.live(program, {}, refill=["sums"])
    assert lives.kept("sums") == before


async def test_a_planted_reader_that_never_says_that_its_table_has_been_read_is_found(
    lives: Lives, memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault of the test before this one: a reader that is at the checkpoint waits for the end of its source."""
    right, asked = SourceInput.next, 0

    def faulty(self: SourceInput, wait_seconds: float) -> Any:
        nonlocal asked
        if self.replay is None or not self.awaited_by:
            return right(self, wait_seconds)
        asked += self.exhausted
        if asked > 20:
            raise RuntimeError("asked 20 times at the checkpoint")
        return Reader.next(self, wait_seconds)

    monkeypatch.setattr(SourceInput, "next", faulty)
    with pytest.raises(InternalError, match="asked 20 times"):
        await test_a_join_with_a_table_that_is_read_first_is_refilled(lives, memory_url, 1)


async def test_a_step_whose_topic_the_checkpoint_does_not_know_is_refilled_with_none_of_its_rows(
    lives: Lives, memory_url: str
) -> None:
    """The second reading of a topic that no program had read went on for ever: it has no position to stop at."""
    MemoryBroker.get(memory_url).create_topic("vans", partitions=1)

    def program(topic: str) -> Any:
        def build(app: App) -> None:
            vehicles = app.stream(topic, schema=CARS)
            vehicles.group_by("maker").aggregate(n=count()).named("makers").upsert("maker").to("out")

        return build

    await lives.live(program("cars"), {"cars": ROWS})
    await lives.live(program("vans"), {"vans": ROWS[:10]}, refill=["makers"], drop=["read-1"])
    assert {row["maker"]: row["n"] for row in lives.kept("makers")} == {"m0": 4, "m1": 3, "m2": 3}


async def test_a_new_statement_behind_a_join_of_tables_is_complete_after_the_refill_that_is_offered(
    lives: Lives, memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its state was right, and its sink empty: the refilled rows were written nowhere."""
    MemoryBroker.get(memory_url).create_topic("owners", partitions=1)

    def program(*names: str) -> Any:
        def build(app: App) -> None:
            cars = app.table("cars", key="id", schema=CARS)
            owners = app.table("owners", key="car", schema={"car": "int64", "name": "string"})
            owned = cars.join(owners, left_on="id", right_on="car").named("owned")
            owned.group_by("name").aggregate(n=count()).named("names").upsert("name").to("names")
            if names:
                owned.group_by("maker").aggregate(n=count()).named("makers").upsert("maker").to("out")

        return build

    cars = [{"id": n, "maker": f"m{n % 3}", "seats": n} for n in range(30)]
    owners = [{"car": n, "name": f"p{n % 4}"} for n in range(30)]
    await lives.live(program(), {"cars": cars, "owners": owners})
    with pytest.raises(UserError) as refused:
        await lives.live(program("makers"), {})
    assert "--refill makers" in refused.value.hint
    written = await lives.live(program("makers"), {}, refill=["makers"])
    assert {row["maker"]: row["n"] for row in written} == {"m0": 10, "m1": 10, "m2": 10}
    assert " is empty" not in caplog.text
    assert " is mixed" not in caplog.text


@pytest.mark.slow  # half a second of a core
async def test_a_table_that_lacks_rows_is_named_with_the_option_that_completes_it_until_it_is_complete(
    lives: Lives, caplog: pytest.LogCaptureFixture
) -> None:
    def program(least: int, *names: str) -> Any:
        def build(app: App) -> None:
            cars = app.table("cars", key="id", schema=CARS).named("newest")
            for name in names:
                cars.filter(col("seats") >= least).select("id", name).upsert("id").to(f"{name}s")

        return build

    async def said(program: Any, **settings: Any) -> list[str]:
        caplog.clear()
        await lives.live(program, {}, **settings)
        return [line.split(";")[1].split()[1] for line in caplog.messages if "its table is" in line]

    await lives.live(program(0, "maker", "seats"), {"cars": ROWS})
    assert await said(program(35, "maker", "seats")) == ["makers", "seatss"]
    assert "sink makers: its table is mixed" in caplog.text
    assert await said(program(35, "maker", "seats"), reemit=["makers"]) == ["seatss"]
    assert await said(program(36, "maker", "seats"), reemit=["makers"]) == [
        "seatss"
    ]  # another program: it is done again
    assert await said(program(36, "maker", "seats"), reemit=["makers", "seatss"]) == []
    assert await said(program(36, "maker", "seats")) == []


async def test_a_step_that_does_not_exist_is_named(lives: Lives) -> None:
    await lives.live(table("maker"), {"cars": ROWS})
    with pytest.raises(UserError, match="--refill nowest: the program has no step") as refused:
        await lives.live(table("maker"), {}, refill=["nowest"])
    assert "newest" in refused.value.hint


def of_table(*columns: str) -> Any:
    def program(app: App) -> None:
        cars = app.table("cars", key="id", schema=CARS)
        cars.select("id", *columns).to("out")
        cars.group_by("id").aggregate(n=count()).upsert("id").to("counts")

    return program


@pytest.mark.slow  # half a second of a core
async def test_the_table_of_a_topic_answers_to_the_name_of_its_topic(lives: Lives) -> None:
    await lives.live(of_table("maker"), {"cars": ROWS})
    with pytest.raises(UserError, match=r"upsert-1 .*seats") as refused:
        await lives.live(of_table("maker", "seats"), {})
    assert "--refill upsert-1" in refused.value.hint
    out = await lives.live(of_table("maker", "seats"), {"cars": ROWS[:2]}, refill=["cars"], reemit=["cars"])
    newest = {row["id"]: row for row in [*ROWS, *ROWS[:2]]}
    assert {row["id"]: row for row in out} == newest
    assert {row["id"]: row["seats"] for row in lives.kept("upsert-1")} == {
        id: row["seats"] for id, row in newest.items()
    }
    out = await lives.live(of_table("maker", "seats"), {"cars": ROWS[2:3]}, refill=["cars"], reemit=["cars"])
    assert out == ROWS[2:3]  # both are done once
    out = await lives.live(of_table("maker", "seats"), {"cars": ROWS[3:4]}, drop=["cars", "group-1"])
    assert lives.kept("upsert-1") == [{**ROWS[3]}]
    with pytest.raises(UserError, match="--refill carts: the program has no step of that name"):
        await lives.live(of_table("maker"), {}, refill=["carts"])


async def test_rows_that_pass_calls_are_not_passed_again(lives: Lives) -> None:
    async def asked(row: Any) -> dict[str, Any]:
        return {**row, "size": "small"}

    def program(*more: str) -> Any:
        def build(app: App) -> None:
            cars = app.stream("cars", schema=CARS).map_async(asked, schema={**CARS, "size": "string"})
            cars.select("id", "size", *more).upsert("id").named("newest").to("out")

        return build

    await lives.live(program(), {"cars": ROWS}, written=7)
    with pytest.raises(UserError, match="column seats is new") as refused:
        await lives.live(program("seats"), {})
    assert "--refill" not in refused.value.hint
    with pytest.raises(UserError, match="calls would be made again"):
        await lives.live(program("seats"), {}, refill=["newest"])


async def test_the_plan_says_what_is_computed_again(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lives.folder)
    await lives.live(table("maker"), {"cars": ROWS})
    Path("refilled.py").write_text(
        'from sabot import App\napp = App("cars", "memory://")\n'
        f'app.stream("cars", schema={CARS}).select("id", "maker", "seats").upsert("id").named("newest").to("out")\n'
    )
    refused = sabot_says("plan", "refilled:app", "--against", "checkpoints")
    assert (refused.exit_code, "start with --refill newest" in refused.stderr) == (1, True)
    done = sabot_says("plan", "refilled:app", "--against", "checkpoints", "--refill", "newest", "--json")
    newest = json.loads(done.stdout.splitlines()[0])
    assert (done.exit_code, newest["outcome"]) == (0, "refill")
    assert newest["why"] == "it is computed again from cars, up to the positions of the checkpoint"


def stored(*columns: str) -> Any:
    def program(app: App) -> None:
        cars = app.stream("cars", schema=CARS).select("id", *columns).upsert("id").named("newest")
        cars.to(SqlSink("sqlite:cars.db", table="cars", evolve=True))

    return program


def in_database() -> list[Any]:
    with contextlib.closing(sqlite3.connect("cars.db")) as connection:
        return connection.execute("SELECT * FROM cars ORDER BY id").fetchall()


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_a_table_is_written_again_whole_with_its_new_column(
    lives: Lives, parallelism: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lives.folder)
    lives.parallelism = parallelism
    await lives.live(stored("maker"), {"cars": ROWS})
    more = {"id": 4, "maker": "m0", "seats": 77}
    await lives.live(stored("maker", "seats"), {"cars": [more]}, drop=["newest.seats"])
    assert [row[2] for row in in_database()] == [None] * 4 + [77, None, None]  # keys that did not change
    await lives.live(stored("maker", "seats"), {}, refill=["newest"])
    right = {row["id"]: (row["id"], row["maker"], row["seats"]) for row in [*ROWS, more]}
    assert in_database() == [right[id] for id in sorted(right)]


async def test_a_refilled_table_is_written_again_by_the_same_start(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lives.folder)
    await lives.live(stored("maker"), {"cars": ROWS})
    await lives.live(stored("maker", "seats"), {}, refill=["newest"], reemit=["cars"])
    right = {row["id"]: (row["id"], row["maker"], row["seats"]) for row in ROWS}
    assert in_database() == [right[id] for id in sorted(right)]


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("overwrite", [False, True])
async def test_rows_of_keys_that_are_gone_are_counted_or_deleted_where_the_sink_may_overwrite(
    lives: Lives, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, overwrite: bool, delivery: Any
) -> None:
    monkeypatch.chdir(lives.folder)
    caplog.set_level("INFO", "sabot")

    def program(least: int) -> Any:
        def build(app: App) -> None:
            cars = app.stream("cars", schema=CARS).filter(col("seats") >= least)
            sink = SqlSink("sqlite:cars.db", table="cars", overwrite=overwrite)
            cars.upsert("id").named("newest").to(sink, delivery=delivery)

        return build

    await lives.live(program(0), {"cars": ROWS})
    first = in_database()
    least = 37
    await lives.live(program(least), {}, refill=["newest"], reemit=["cars"])
    gone = [row for row in first if row[2] < least]
    assert 0 < len(gone) < len(first)
    assert in_database() == ([row for row in first if row not in gone] if overwrite else first)
    said = f"{len(gone)} rows of keys that its table does not have any more"
    assert (
        f"sink cars: deletes {said}, as overwrite= says" in caplog.text
        if overwrite
        else f"cars: {said} stay" in caplog.text
    )
    again = {"id": 1, "maker": "new", "seats": 99}
    await lives.live(program(least), {"cars": [again]})
    assert (1, "new", 99) in in_database()


def test_keys_besides_those_of_a_table_are_found_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.connectors.sql.sink._KEYS_AT_A_TIME", 7)
    address = f"sqlite:///{tmp_path}/t.db"
    with contextlib.closing(sqlite3.connect(tmp_path / "t.db")) as connection:
        connection.execute("CREATE TABLE t (a INTEGER, b TEXT, PRIMARY KEY (a, b))")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(n // 5, f"it's {n % 5}") for n in range(100)])
        connection.commit()
    sink = SqlSink(address, table="t", keys=["a", "b"])
    kinds = pa.schema({"a": pa.int64(), "b": pa.string()})
    mine = pa.record_batch({"a": [n // 5 for n in range(90)], "b": [f"it's {n % 5}" for n in range(90)]}, schema=kinds)
    left = sink.keys_besides(hash_columns(mine.columns), kinds)
    assert left is not None
    assert left.to_pylist() == [{"a": n // 5, "b": f"it's {n % 5}"} for n in range(90, 100)]
    assert sink.keys_besides(hash_columns(mine.columns), pa.schema({"a": pa.int64(), "b": pa.float64()})) is None


async def test_rows_of_a_table_that_is_written_again_have_passed_the_steps_before_the_sink(lives: Lives) -> None:
    def program(app: App) -> None:
        cars = app.table("cars", key="id", schema=CARS).named("newest").filter(col("seats") > 35)
        cars.select("id", twice=col("seats") * 2).upsert("id").to("out")

    await lives.live(program, {"cars": ROWS})
    again = await lives.live(program, {}, reemit=["out"])
    assert sorted(row["twice"] for row in again) == [72, 74, 76, 78]
    assert await lives.live(program, {}, reemit=["out"]) == []  # once


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("state", ["memory", "state"])
@pytest.mark.parametrize("over", ["rows", "table"])
async def test_the_first_rows_of_each_key_are_written_again(lives: Lives, over: str, state: str) -> None:
    lives.state = state if state == "memory" else str(lives.folder / "state")

    def program(app: App) -> None:
        cars = app.stream("cars", schema=CARS)
        cars = cars if over == "rows" else cars.upsert("id")
        best = cars.key_by("maker").top_n(2, by="seats", rank="place").named("best")
        best.upsert("maker", "place").to("out")

    more = {"id": 9, "maker": "m1", "seats": 38}
    await lives.live(program, {"cars": ROWS})
    came = await lives.live(program, {"cars": [more]}, reemit=["out"])
    right = [*ROWS, more] if over == "rows" else list({row["id"]: row for row in [*ROWS, more]}.values())
    best = {}
    for maker in ("m0", "m1", "m2"):
        rows = sorted((row for row in right if row["maker"] == maker), key=lambda row: -row["seats"])
        best |= {(maker, place): {**row, "place": place} for place, row in enumerate(rows[:2], 1)}
    assert {(row["maker"], row["place"]): row for row in came} == best
    assert len(came) == len(best) + 2  # a row of m1 has come in between


async def test_the_plan_advises_to_write_the_first_rows_again_and_the_start_does_it(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lives.folder)

    def program(*columns: str) -> Any:
        def build(app: App) -> None:
            cars = app.stream("cars", schema=CARS).select("id", "maker", *columns)
            best = cars.key_by("maker").top_n(1, by="id", rank="place").named("best")
            best.upsert("maker", "place").to(SqlSink("sqlite:cars.db", table="cars", evolve=True))

        return build

    await lives.live(program(), {"cars": ROWS[:7]})
    app = lives.app(program("seats"))
    plan = make_plan(app.spec.ends, parallelism=1)
    manifest = CheckpointStorage(lives.folder / "checkpoints").latest()
    assert manifest is not None

    def said(**asked: list[str]) -> list[str]:
        names = Asked(**{name: frozenset(given) for name, given in asked.items()})
        found = outcomes_of(plan, manifest, names, ends=app.spec.ends, agents={}, open_topic=MemorySink)
        return [each.why for each in found if each.id == "sink cars"]

    lacks = "column seats (int64) is added"
    assert (
        said(refill=["best"]) == said(refill=["best"], reemit=["cars"]) == [lacks, "all rows of best are written again"]
    )
    await lives.live(program("seats"), {}, refill=["best"])
    with contextlib.closing(sqlite3.connect("cars.db")) as connection:
        assert sorted(connection.execute("SELECT id, seats FROM cars")) == [(4, 4), (5, 5), (6, 6)]


async def test_a_sink_without_a_table_is_not_written_again(lives: Lives) -> None:
    await lives.live(table("maker"), {"cars": ROWS})
    with pytest.raises(
        UserError, match="--reemit outt: the program writes no table into a sink of that name"
    ) as refused:
        await lives.live(table("maker"), {}, reemit=["outt"])
    assert refused.value.hint == "the tables are written into out"


async def test_an_added_column_may_be_null_in_the_rows_so_far(lives: Lives) -> None:
    await lives.live(table("maker"), {"cars": ROWS})
    with pytest.raises(UserError) as refused:
        await lives.live(table("maker", "seats"), {})
    assert refused.value.hint.endswith("--refill newest; or give up only this state: --drop newest.seats")
    more = {"id": 4, "maker": "m9", "seats": 77}
    written = await lives.live(table("maker", "seats"), {"cars": [more]}, drop=["newest.seats"])
    assert written == [more]
    kept = {row["id"]: row for row in lives.kept("newest")}
    assert kept == {row["id"]: {**row, "seats": None} for row in ROWS} | {4: more}


async def test_an_added_column_of_another_type_is_not_null_but_refused(lives: Lives) -> None:
    def program(app: App) -> None:
        cars = app.stream("cars", schema=CARS).with_columns(maker=sabot.lit(1))
        cars.select("id", "maker", "seats").upsert("id").named("newest").to("out")

    await lives.live(table("maker"), {"cars": ROWS})
    with pytest.raises(UserError, match="column maker was string, is int64") as refused:
        await lives.live(program, {}, drop=["newest.seats"])
    assert "--drop newest " in f"{refused.value.hint} "


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_a_lookup_that_needs_another_column_or_other_rows_is_filled_again_by_itself(
    lives: Lives, parallelism: int
) -> None:
    def program(least: int, *columns: str) -> Any:
        def build(app: App) -> None:
            cars = app.table("cars", key="id", schema=CARS).named("newest")
            cars.group_by("maker").aggregate(most=sabot.max("seats")).named("most").upsert("maker").to("most")
            trips = app.stream("trips", schema=TRIPS, time="ts")
            found = trips.lookup(cars.filter(col("seats") >= least), on="id", how="left").named("of_trip")
            found.select("id", "km", *columns).to("out")

        return build

    lives.parallelism = parallelism
    await lives.live(program(0, "maker"), {"cars": ROWS})
    written = await lives.live(program(0, "maker", "seats"), {"trips": trips(0, 7)})
    newest = {row["id"]: row for row in ROWS}
    right = [{"id": n % 5, "km": n, "maker": newest[n % 5]["maker"], "seats": newest[n % 5]["seats"]} for n in range(7)]
    assert sorted(written, key=str) == sorted(right, key=str)
    written = await lives.live(program(37, "maker", "seats"), {"trips": trips(0, 5)})
    assert {row["id"]: row["seats"] for row in written} == {0: None, 1: None, 2: 37, 3: 38, 4: 39}


@pytest.mark.slow
async def test_files_that_several_readers_share_refill_a_step(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lives.folder)
    Path("cars.ndjson").write_text(
        "".join(f'{{"id": {n}, "maker": "m{n % 3}", "seats": {n}}}\n' for n in range(150_000))
    )

    def program(*columns: str) -> Any:
        def build(app: App) -> None:
            cars = app.stream(sabot.files("cars.ndjson"), schema=CARS).select("id", *columns)
            cars.upsert("id").named("newest").to(SqlSink("sqlite:cars.db", table="cars", evolve=True))

        return build

    lives.parallelism = 2
    await lives.app(program("maker")).run()
    await lives.app(program("maker", "seats"), refill=["newest"], reemit=["cars"]).run()
    with contextlib.closing(sqlite3.connect("cars.db")) as connection:
        assert connection.execute("SELECT count(*), sum(seats - id) FROM cars").fetchall() == [(150_000, 0)]


async def test_the_hint_names_all_refills_that_are_needed_together(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(*columns: str) -> Any:
        def build(app: App) -> None:
            cars = app.stream("cars", schema=CARS).select("id", "maker", *columns).upsert("id").named("newest")
            made = {"n": count()} | ({"most": sabot.max("seats")} if columns else {})
            cars.group_by("maker").aggregate(**made).named("makers").upsert("maker").to("out")

        return build

    await lives.live(program(), {"cars": ROWS})
    for settings in ({}, {"refill": ["newest"]}):
        with pytest.raises(UserError) as refused:
            await lives.live(program("seats"), {}, **settings)
        assert "again: --refill newest --refill makers; or" in refused.value.hint
    written = await lives.live(program("seats"), {}, refill=["newest", "makers"])
    newest = {row["id"]: row for row in ROWS}
    right = {maker: [row["seats"] for row in newest.values() if row["maker"] == maker] for maker in ("m0", "m1", "m2")}
    assert {row["maker"]: (row["n"], row["most"]) for row in lives.kept("makers")} == {
        maker: (len(seats), max(seats)) for maker, seats in right.items()
    }
    assert {row["maker"]: row["most"] for row in written} == {maker: max(seats) for maker, seats in right.items()}


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_a_chain_of_steps_that_each_begin_anew_is_refilled_in_one_start_as_the_hint_says(
    lives: Lives, parallelism: int
) -> None:
    def program(least: int) -> Any:
        def build(app: App) -> None:
            cars = app.table("cars", key="id", schema=CARS).named("newest").filter(col("seats") > least)
            made = cars.group_by("maker").aggregate(n=count()).named("makers")
            made.with_columns(maker=col("maker").fill_null("?")).upsert("maker").named("table").to("out")

        return build

    lives.parallelism = parallelism
    rows = [{"id": n, "maker": ["m0", "m1", None][n % 3], "seats": n} for n in range(60)]
    await lives.live(program(10), {"cars": rows})
    with pytest.raises(UserError) as refused:
        await lives.live(program(30), {})
    assert "compute this state again: --refill makers --refill table;" in refused.value.hint
    more = [{"id": 59, "maker": "m0", "seats": 59}]
    written = await lives.live(program(30), {"cars": more}, refill=["makers", "table"])
    assert {row["maker"]: row["n"] for row in written} == {"?": 9, "m0": 10, "m1": 10}
    assert sorted((row["maker"], row["n"]) for row in lives.kept("table")) == [("?", 9), ("m0", 10), ("m1", 10)]
    await lives.live(program(30), {})


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_a_join_that_needs_another_column_reads_both_topics_again(lives: Lives, parallelism: int) -> None:
    def program(*columns: str) -> Any:
        def build(app: App) -> None:
            cars = app.stream("cars", schema=CARS).select("id", "maker", *columns)
            paid = app.stream("paid", schema={"car": "int64", "price": "int64"})
            cars.join(paid, left_on="id", right_on="car").named("sold").to("out")

        return build

    lives.parallelism = parallelism
    cars = [{"id": n, "maker": f"m{n % 3}", "seats": n * 10} for n in range(20)]
    written = await lives.live(program(), {"cars": cars[:15], "paid": [{"car": n, "price": n} for n in range(5)]})
    assert len(written) == 5
    with pytest.raises(UserError, match="column seats is new") as refused:
        await lives.live(program("seats"), {})
    assert "--refill sold" in refused.value.hint
    more = {"cars": cars[15:], "paid": [{"car": n, "price": n} for n in range(5, 20)]}
    written = await lives.live(program("seats"), more, refill=["sold"])
    assert sorted((row["id"], row["seats"], row["price"]) for row in written) == [(n, n * 10, n) for n in range(5, 20)]


async def test_windows_that_an_idle_partition_has_let_close_do_not_come_out_twice(
    lives: Lives, memory_url: str
) -> None:
    MemoryBroker.get(memory_url).create_topic("trips", partitions=2)

    def program(**aggregates: Any) -> Any:
        def build(app: App) -> None:
            rows = app.stream("trips", schema=TRIPS, time="ts", idle="50ms")
            rows.key_by("id").window(tumbling("1m")).aggregate(n=count(), **aggregates).named("minutes").to("out")

        return build

    app = lives.app(program())
    await app.start()
    MemoryBroker.get(memory_url).publish("trips", trips(0, 250), partition=1)
    await until(lambda: len(values(app, "out")) == 20)  # partition 0 is idle
    await bounded(app.stop())
    app = lives.app(program(km=sabot.sum("km")), refill=["minutes"])
    await app.start()
    MemoryBroker.get(memory_url).publish("trips", trips(250, 310), partition=1)
    await until(lambda: len(values(app, "out")) == 25)
    await bounded(app.stop())
    fifth = [[km for km in range(240, 300) if km % 5 == id] for id in range(5)]
    found = sorted((row["id"], row["n"], row["km"]) for row in values(app, "out")[20:])
    assert found == [(id, len(km), sum(km)) for id, km in enumerate(fifth)]


@pytest.mark.parametrize("start", ["latest", 5])
async def test_a_topic_that_was_not_read_from_its_start_cannot_refill_a_step(lives: Lives, start: Any) -> None:
    await lives.live(table("maker"), {"cars": ROWS}, start=start)
    with pytest.raises(UserError, match=f"cars began at start={start!r}"):
        await lives.live(table("maker", "seats"), {}, start=start, refill=["newest"])
    with pytest.raises(UserError, match=r"give up only this state: --drop newest") as refused:
        await lives.live(table("maker", "seats"), {}, start=start)
    assert "--refill" not in str(refused.value)


class Endless(Source):
    """Rows of a user's source that goes on, without the ability to end at a place."""

    name = "cars"
    schema = pa.schema([("id", pa.int64()), ("maker", pa.string()), ("seats", pa.int64())])

    def open(self, positions: Any, start: Any = "earliest") -> None:
        self.next = (positions or {}).get((self.name, 0), 0)

    def read_batch(self, max_rows: int, timeout: float) -> Batch:
        row = {**ROWS[self.next % len(ROWS)], "id": self.next}
        self.next += 1
        return Batch(pa.RecordBatch.from_pylist([row], self.schema), self.positions(), self.name)

    def positions(self) -> dict[tuple[str, int], int]:
        return {(self.name, 0): self.next}

    def close(self) -> None:
        self.next = 0


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("source", ["own", "generator", "folder", "datagen"])
async def test_a_source_without_an_end_cannot_refill_a_step_and_no_hint_offers_it(
    lives: Lives, tmp_path: Path, source: str
) -> None:
    """The refill read rows for ever, without a word, and the hint had offered it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.ndjson").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def rows(app: App) -> Any:
        if source == "datagen":
            app.sql("CREATE TABLE cars (id BIGINT, seats BIGINT) WITH ('connector' = 'datagen')")
            return app.sql("SELECT MOD(id, 7) AS id, MOD(seats, 9) AS seats FROM cars")
        if source == "folder":
            return app.stream(files(tmp_path / "in", "ndjson", follow="1s"), schema=CARS)
        if source == "own":
            return app.stream(Endless())

        @app.source(schema=CARS, bounded=False)
        async def cars(resume: Any) -> Any:
            while True:
                for row in ROWS:
                    yield row
                await asyncio.sleep(0)

        return app.stream(cars)

    def program(app: App, **totals: Any) -> None:
        rows(app).group_by("id").aggregate(**totals).named("totals").changelog().to("out")

    app = lives.app(lambda app: program(app, v=sabot.sum("seats")))
    await app.start()
    await until(lambda: len(values(app, "out")) > 0)
    await bounded(app.stop())
    with pytest.raises(UserError, match=r"run the program that wrote it; or give up only this state: --drop totals.v"):
        await bounded(lives.app(lambda app: program(app, v=sabot.max("seats"))).start())
    with pytest.raises(UserError, match="goes on without an end, so that its rows before the checkpoint"):
        await bounded(lives.app(lambda app: program(app, v=sabot.max("seats")), refill=["totals"]).start())


async def test_a_savepoint_is_not_refilled(lives: Lives) -> None:
    await lives.live(table("maker"), {"cars": ROWS})
    storage = CheckpointStorage(lives.folder / "checkpoints")
    manifest = storage.latest()
    assert manifest is not None
    storage.copy_to(manifest, lives.folder / "saved")
    with pytest.raises(UserError, match=r"run the program that wrote it; or give up only this state: --drop newest"):
        await lives.live(table("maker", "seats"), {}, from_=str(lives.folder / "saved"))
    with pytest.raises(UserError, match="the start is from a savepoint"):
        await lives.live(table("maker", "seats"), {}, refill=["newest"], from_=str(lives.folder / "saved"))


async def test_a_stop_during_a_refill_leaves_the_checkpoint_before_it(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lives.live(table("maker"), {"cars": ROWS})
    before = CheckpointStorage(lives.folder / "checkpoints").last_id()
    app = lives.app(table("maker", "seats"), refill=["newest"])
    stored = Refilling._replayed

    async def stopped(self: Refilling, refill: Any, folder: Path, stop_asked: Any) -> Any:
        stop_asked.set()
        return await stored(self, refill, folder, stop_asked)

    monkeypatch.setattr(Refilling, "_replayed", stopped)
    await bounded(app.run())
    assert CheckpointStorage(lives.folder / "checkpoints").last_id() == before
    monkeypatch.undo()
    await lives.live(table("maker", "seats"), {"cars": ROWS[:1]}, refill=["newest"])
    assert len(lives.kept("newest")) == 7


async def test_beside_a_removed_step_the_hint_names_the_refill_of_the_others(lives: Lives) -> None:
    def before(app: App) -> None:
        cars = app.stream("cars", schema=CARS).select("id", "maker").upsert("id").named("newest")
        cars.to("out")
        cars.group_by("maker").aggregate(n=count()).named("gone").upsert("maker").to("counts")

    await lives.live(before, {"cars": ROWS})
    with pytest.raises(
        UserError, match="compute this state again: --refill newest --drop gone; or give up only this state"
    ):
        await lives.live(table("maker", "seats"), {})
    await lives.live(table("maker", "seats"), {}, refill=["newest"], drop=["gone"])
    right = {row["id"]: row for row in ROWS}
    assert lives.kept("newest") == [right[id] for id in sorted(right)]


SHOPS = {"maker": "string", "city": "string"}


def sales(
    *, whole: bool = True, as_rows: bool = False, table: bool = True, of: str = "seats", **aggregates: Any
) -> Any:
    """A group over a join of two tables. `whole`: all columns of the cars are written, so that their table has them.
    `as_rows`: each change of the group is a row of `out`. `table`: False if the cars are rows without a key.
    """

    def program(app: App) -> None:
        columns = {**CARS, "price": "int64"}
        cars = app.table("cars", key="id", schema=columns) if table else app.stream("cars", schema=columns)
        shops = app.table("shops", key="maker", schema=SHOPS)
        if whole:
            cars.to("all")
        sold = cars.join(shops, on="maker").named("sold")
        group = sold.group_by("city").aggregate(total=sabot.sum(of), **aggregates).named("cities")
        (group.changelog() if as_rows else group.upsert("city")).to("out")

    return program


SOLD = [{"id": n, "maker": f"m{n % 3}", "seats": n, "price": n * 7 % 11} for n in range(30)]
MAKERS = [{"maker": f"m{n}", "city": f"c{n % 2}"} for n in range(3)]


def by_city(rows: list[dict[str, Any]], column: str, how: Any) -> dict[str, Any]:
    cities = {shop["maker"]: shop["city"] for shop in MAKERS}
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(cities[row["maker"]], []).append(row[column])
    return {city: how(values) for city, values in found.items()}


@pytest.mark.one_in(4, "a quarter of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("added", ["price", "seats"], ids=["a column that the join left out", "a column that it has"])
async def test_an_aggregate_added_behind_a_join_of_tables_is_filled_from_them_by_itself(
    lives: Lives, parallelism: int, added: str
) -> None:
    """It was refused: a join keeps no table, and had left the column out that nobody used."""
    lives.parallelism = parallelism
    await lives.live(sales(), {"cars": SOLD[:20], "shops": MAKERS})
    changed = sales(most=sabot.max(added))
    written = await lives.live(changed, {"cars": SOLD[20:]})
    newest = {row["city"]: (row["total"], row["most"]) for row in written}
    totals, most = by_city(SOLD, "seats", sum), by_city(SOLD, added, max)
    assert newest == {city: (totals[city], most[city]) for city in totals}
    assert {row["city"]: row["most"] for row in lives.kept("cities")} == most
    again = await lives.live(changed, {"cars": [{"id": 99, "maker": "m1", "seats": 1000, "price": 0}]})
    assert {row["city"]: row["total"] for row in again} == {"c1": totals["c1"] + 1000}  # nothing is filled twice


@pytest.mark.slow  # half a second of a core
async def test_one_refill_of_a_table_is_enough_for_the_joins_and_groups_over_it(lives: Lives) -> None:
    await lives.live(sales(whole=False), {"cars": SOLD[:20], "shops": MAKERS})
    changed = sales(whole=False, most=sabot.max("price"))
    with pytest.raises(UserError, match="column price is new") as refused:
        await lives.live(changed, {})
    assert "compute this state again: --refill upsert-1;" in refused.value.hint
    written = await lives.live(changed, {"cars": SOLD[20:]}, refill=["upsert-1"])
    assert {row["city"]: row["most"] for row in written} == by_city(SOLD, "price", max)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (sales(as_rows=True), sales(as_rows=True, most=sabot.max("price"))),  # all rows so far would be rows once more
        (sales(), sales(of="price")),  # another total under the same name
        (sales(table=False), sales(table=False, most=sabot.max("price"))),  # the join alone has the rows
    ],
    ids=["rows of changes", "another aggregate", "a stream"],
)
async def test_a_step_behind_a_join_is_refused_if_tables_cannot_fill_it_or_more_would_change(
    lives: Lives, before: Any, after: Any
) -> None:
    await lives.live(before, {"cars": SOLD, "shops": MAKERS})
    with pytest.raises(UserError, match=r"state that would be lost.*sold"):
        await lives.live(after, {})
