"""An app over tables whose program changes from life to life: the state that a start takes over is that of DuckDB, or the start is refused.

Wrong without a word is what must never be. SABOT_CHANGING_SEEDS=N draws N programs.
"""

import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from changing_tables import History, Row, Shape, answer, build, changed, drawn, plainly

import sabot
from sabot import App, UserError, col
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.operators.reading import state_of
from sabot.engine.plan import check, make_plan
from sabot.engine.runtime.life.restore import Asked, decide
from tools.agent_tools import bounded, publish, records, until, values

SEEDS = int(os.environ.get("SABOT_CHANGING_SEEDS", "60"))


class Lives:
    """The lives of one app over the tables, one after the other."""

    def __init__(self, broker: str, directory: Path, rng: random.Random) -> None:
        self.broker, self.directory, self.rng = broker, directory, rng
        self.state = rng.choice(["memory", "rocksdb"])
        self.history = History(rng)
        self.unread = 0  # records that no life has read
        for topic in ("cars", "shops"):
            MemoryBroker.get(broker).create_topic(topic, partitions=1)

    def app(self, shape: Shape, parallelism: int = 1, **settings: Any) -> App:
        state = "memory" if self.state == "memory" else str(self.directory / "state")
        app = App(
            "cars",
            broker=self.broker,
            state=state,
            checkpoint_dir=self.directory / "checkpoints",
            parallelism=parallelism,
        )
        app.configure(**settings)
        build(app, shape)
        return app

    async def refused(self, shape: Shape, parallelism: int, **settings: Any) -> UserError | None:
        """Returns how a start of the program is refused, if it is. What `sabot plan --against` says is the same."""
        manifest = CheckpointStorage(self.directory / "checkpoints").latest()
        assert manifest is not None
        app = self.app(shape, parallelism)
        plan = make_plan(app.spec.ends, parallelism=parallelism)
        found: UserError | None = None
        asked = Asked(**{name: frozenset(given) for name, given in settings.items()})
        try:
            check(decide(plan, manifest, asked).verdicts, manifest.checkpoint_id)
        except UserError as error:
            found = error
            with pytest.raises(UserError) as refused:
                await self.app(shape, parallelism, **settings).start()
            assert refused.value.message == found.message
        return found

    async def live(self, shape: Shape, rows: int, parallelism: int = 1, **settings: Any) -> list[Any]:
        """Runs the program over so many rows more. Returns what it has written."""
        app = self.app(shape, parallelism, **settings)
        for table, key, row in self.history.more(rows):
            publish(app, table, [row], key=key)
            self.unread += 1
        before = len(values(app, "out")) if "out" in MemoryBroker.get(self.broker).topics() else 0
        tables = len(records(app, "table")) if "table" in MemoryBroker.get(self.broker).topics() else 0
        await app.start()
        await until(
            lambda: sum(task["input"].get("rows_in", 0) for task in app.statistics()["streams"].values()) == self.unread
        )
        await bounded(app.stop())
        self.unread = 0
        self.table = records(app, "table")[tables:] if shape.end == "top" or shape.keys else []
        return values(app, "out")[before:]

    def is_not_whole(self, shape: Shape) -> str:
        """How the rows that the last life has written into `table` differ from DuckDB's whole answer."""
        last = {record.key: record for record in self.table}
        right = answer(shape, list(self.history.cars.values()), list(self.history.shops.values()))
        rows = sorted(map(str, (plainly(each.value) for each in last.values() if each.payload is not None)))
        whole = sorted(map(str, map(plainly, right.values())))
        return "" if rows == whole else f"the table is written again as {rows}, DuckDB has {whole}"

    def wrong(self, shape: Shape, written: Sequence[Row]) -> str:
        """How what the app has now differs from DuckDB's answer: the state of its last step, and the last row of each key in its output."""
        right = answer(shape, list(self.history.cars.values()), list(self.history.shops.values()))
        right = {key: plainly(row) for key, row in right.items()}
        keys = shape.keys if shape.end == "group" else ("g", "place")
        last = {tuple(row[name] for name in keys): row for row in written}
        for key, row in last.items():
            if row.pop("op") == "delete":
                if key in right:
                    return f"{key}: the output deletes it, DuckDB has {right[key]}"
            elif right.get(key) != plainly(row):
                return f"{key}: the output has {plainly(row)}, DuckDB {right.get(key)}"
        if shape.end == "group" and shape.named:
            manifest = CheckpointStorage(self.directory / "checkpoints").latest()
            rows = state_of(manifest, "end").to_pylist()
            kept = {tuple(row[name] for name in keys): plainly(row) for row in rows}
            if kept != right:
                return f"the state has {kept}, DuckDB {right}"
        return ""


async def lived(seed: int, broker: str, directory: Path) -> Counter[str]:
    """An app of three or four lives. Returns how often a start was right or refused; AssertionError where it was wrong."""
    rng = random.Random(seed)
    lives, shape = Lives(broker, directory, rng), drawn(rng)
    counts: Counter[str] = Counter()
    told, dropped = [f"{shape}"], False
    parallelism = rng.choice([1, 1, 2])
    wrong = lives.wrong(shape, await lives.live(shape, rng.randint(20, 40), parallelism))
    for _ in range(rng.randint(2, 3)):
        assert not wrong, f"seed {seed}: {wrong}\n" + "\n".join(told)
        other, settings = changed(shape, rng), {}
        if rng.random() < 0.15 and other.named and not dropped:
            settings["drop"] = [rng.choice(["end", "middle"]) if other.middle else "end"]
        parallelism = rng.choice([1, 1, 2])
        told.append(f"{other} {settings} parallelism {parallelism}")
        error = await lives.refused(other, parallelism, **settings)
        if error is not None:
            counts["refused"] += 1
            told.append(f"refused: {error}")
            hint = (error.hint or "").partition(" (the last start")[0]
            keeps, _, gives_up = hint.partition("; or give up only this state:")
            ways = re.findall(r"--drop ([^\s;)]+)", gives_up)
            refills = re.findall(r"--refill ([^\s;)]+)", keeps)
            beside = re.findall(r"--drop ([^\s;)]+)", keeps)  # of steps that the program has no more
            if refills and not dropped and rng.random() < 0.6:
                settings["refill"] = refills
                settings["drop"] = sorted({*settings.get("drop", ()), *beside})
            elif rng.random() < 0.4 or not ways or dropped or any(way.startswith("upsert-") for way in ways):
                continue
            else:
                settings["drop"] = sorted({*settings.get("drop", ()), *ways})
            told.append(f"{settings}")
            again = await lives.refused(other, parallelism, **settings)
            assert again is None, f"seed {seed}: {again}\n" + "\n".join(told)
            counts["refilled" if "refill" in settings else "dropped"] += 1
        if not dropped and rng.random() < 0.4:
            wished = {**settings, "reemit": ["table"]}
            if await lives.refused(other, parallelism, **wished) is None:  # the sink of a join, or none
                settings = wished
                told.append("written again")
        written = await lives.live(other, rng.randint(5, 20), parallelism, **settings)
        counts["same" if other == shape else "changed"] += 1
        shape, dropped = other, bool(settings)  # what is dropped is dropped once
        wrong = lives.wrong(shape, written)
        if "reemit" in settings:
            counts["written again"] += 1
            wrong = wrong or lives.is_not_whole(shape)
    assert not wrong, f"seed {seed}: {wrong}\n" + "\n".join(told)
    return counts


@pytest.mark.one_in(60, "a fifth of a second of a core each")
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_changed_program_over_a_table_is_right_or_refused(seed: int, memory_url: str, tmp_path: Path) -> None:
    await lived(seed, memory_url, tmp_path)


# -- in words ----------------------------------------------------------------------------------------------------------

MAKERS = ["opel", "fiat", "opel", "seat", "fiat", "opel"]


class Cars:
    """A table of cars and the lives of an app over it."""

    def __init__(self, broker: str, directory: Path, state: str, **settings: Any) -> None:
        self.broker, self.directory, self.state, self.settings = broker, directory, state, settings
        self.table: dict[int, Row] = {}
        MemoryBroker.get(broker).create_topic("cars", partitions=1)

    def app(self, program: Any, **settings: Any) -> App:
        state = "memory" if self.state == "memory" else str(self.directory / "state")
        app = App(
            "cars", broker=self.broker, state=state, checkpoint_dir=self.directory / "checkpoints", **self.settings
        )
        app.configure(**settings)
        schema = {"id": "int64", "maker": "string", "seats": "int64", "price": "float64"}
        program(app.table("cars", key="id", schema=schema))
        return app

    def put(self, id: int, maker: str | None, seats: int = 4, price: float = 1.0) -> tuple[int, Row | None]:
        return id, None if maker is None else {"id": id, "maker": maker, "seats": seats, "price": price}

    async def live(self, program: Any, *changes: tuple[int, Row | None], **settings: Any) -> list[Any]:
        """Runs the program over these changes, and stops it. Returns what it has written."""
        app = self.app(program, **settings)
        broker = MemoryBroker.get(self.broker)
        before = len(values(app, "out")) if "out" in broker.topics() else 0
        for id, row in changes:
            broker.publish("cars", [row], key=id)
            self.table.pop(id, None)
            self.table |= {} if row is None else {id: row}
        await app.start()
        read = lambda: sum(task["input"].get("rows_in", 0) for task in app.statistics()["streams"].values())  # noqa: E731
        await until(lambda: read() == len(changes))
        await bounded(app.stop())
        return values(app, "out")[before:] if "out" in broker.topics() else []

    def state_of(self, operator: str) -> list[Row]:
        manifest = CheckpointStorage(self.directory / "checkpoints").latest()
        assert manifest is not None
        return sorted(state_of(manifest, operator).to_pylist(), key=str)


@pytest.fixture(params=["memory", "rocksdb"])
def cars(request: Any, memory_url: str, tmp_path: Path) -> Cars:
    return Cars(memory_url, tmp_path / "app", request.param)


def makers(**aggregates: Any) -> Any:
    return lambda table: table.group_by("maker").aggregate(**aggregates).named("makers").changelog().to("out")


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_an_aggregate_added_over_a_table_knows_the_cars_that_came_before(cars: Cars) -> None:
    """It took back cars that it had never seen: the newest was a deleted one, the mean was None."""
    columns = {"price": sabot.sum("price"), "seats": sabot.max("seats")}
    await cars.live(makers(n=sabot.count(), **columns), *(cars.put(i, maker, i, i) for i, maker in enumerate(MAKERS)))
    more = {
        "least": sabot.min("seats"),
        "mean": sabot.mean("price"),
        "kinds": sabot.count_distinct("seats"),
        "total": sabot.sum("seats"),
    }
    written = await cars.live(
        makers(n=sabot.count(), **columns, **more), cars.put(5, None), cars.put(1, "opel", 7, 3.0), cars.put(3, None)
    )
    opel = {"maker": "opel", "n": 3, "price": 5.0, "seats": 7, "least": 0, "mean": 5 / 3, "kinds": 3, "total": 9}
    fiat = {"maker": "fiat", "n": 1, "price": 4.0, "seats": 4, "least": 4, "mean": 4.0, "kinds": 1, "total": 4}
    assert cars.state_of("makers") == [fiat, opel]
    assert [row for row in written if row["maker"] == "opel"][-1] == {"op": "update_after", **opel}


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_step_added_over_a_table_begins_with_the_rows_of_the_table(cars: Cars) -> None:
    def before(table: Any) -> None:
        table.select("id", "maker", "seats").changelog().to("all")

    def after(table: Any) -> None:
        before(table)
        makers(n=sabot.count(), seats=sabot.sum("seats"))(table.filter(col("seats") > 0))

    await cars.live(before, *(cars.put(i, maker, i) for i, maker in enumerate(MAKERS)))
    written = await cars.live(after, cars.put(5, None))
    assert cars.state_of("makers") == [
        {"maker": "fiat", "n": 2, "seats": 5},
        {"maker": "opel", "n": 1, "seats": 2},
        {"maker": "seat", "n": 1, "seats": 3},
    ]
    assert {row["maker"] for row in written} == {"fiat", "opel", "seat"}


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_another_filter_before_a_step_over_a_table_is_refused_until_the_step_begins_anew(cars: Cars) -> None:
    """It went on: cars that no longer passed were counted for ever, and cars that had not passed were taken away."""

    def over(seats: int) -> Any:
        return lambda table: makers(n=sabot.count(), seats=sabot.sum("seats"))(table.filter(col("seats") > seats))

    await cars.live(over(1), *(cars.put(i, maker, i) for i, maker in enumerate(MAKERS)))
    said = r"its state has the rows of cars with col\(.seats.\) > 1, and now those with col\(.seats.\) > 2 come \(another filter\)"
    with pytest.raises(UserError, match=rf"makers .*{said}.*--drop makers\)"):
        await cars.live(over(2))
    with pytest.raises(
        UserError, match=r"its state has only the rows of cars with .* > 1, and now the others come too"
    ):
        await cars.live(makers(n=sabot.count(), seats=sabot.sum("seats")))
    await cars.live(over(2), cars.put(5, "opel", 1), drop=["makers"])
    assert cars.state_of("makers") == [{"maker": "fiat", "n": 1, "seats": 4}, {"maker": "seat", "n": 1, "seats": 3}]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_an_aggregate_added_over_a_join_is_refused_with_the_way_out(cars: Cars) -> None:
    def over(**aggregates: Any) -> Any:
        def program(table: Any) -> None:
            ones = table.select("maker", "seats", "id").rename({"id": "other", "seats": "others"})
            joined = table.join(ones, on="maker").named("pairs")
            joined.group_by("maker").aggregate(others=sabot.sum("others"), **aggregates).named("makers").changelog().to(
                "out"
            )

        return program

    await cars.live(over(), *(cars.put(i, maker, i) for i, maker in enumerate(MAKERS)))
    with pytest.raises(UserError, match=r"makers .*most would begin without the rows.*--drop pairs --drop makers\)"):
        await cars.live(over(most=sabot.max("others")))
    await cars.live(over(most=sabot.max("others")), cars.put(0, None), drop=["pairs", "makers"])
    assert cars.state_of("makers") == [
        {"maker": "fiat", "others": 10, "most": 4},
        {"maker": "opel", "others": 14, "most": 5},
        {"maker": "seat", "others": 3, "most": 3},
    ]


async def test_a_table_that_is_dropped_takes_the_steps_over_it_along(cars: Cars) -> None:
    await cars.live(makers(n=sabot.count()), *(cars.put(i, maker, i) for i, maker in enumerate(MAKERS)))
    with pytest.raises(
        UserError, match=r"makers .*its rows are of upsert-1, whose state would not go on.*--drop makers"
    ):
        await cars.live(makers(n=sabot.count()), drop=["upsert-1"])


async def test_aggregates_over_groups_that_swap_their_names_are_refused(cars: Cars) -> None:
    def over(**inner: Any) -> Any:
        def program(table: Any) -> None:
            groups = table.group_by("maker", "seats").aggregate(**inner).named("inner")
            groups.group_by("maker").aggregate(m=sabot.sum("a")).named("outer").changelog().to("out")

        return program

    await cars.live(over(a=sabot.count(), b=sabot.max("id")), *(cars.put(i, m, i) for i, m in enumerate(MAKERS)))
    with pytest.raises(UserError, match=r"outer .*its a was .*count\(\).*--drop outer\)"):
        await cars.live(over(b=sabot.count(), a=sabot.max("id")))


@pytest.mark.slow  # two seconds of a core
async def test_what_is_added_over_a_table_larger_than_the_budget_is_filled(memory_url: str, tmp_path: Path) -> None:
    """Groups that had left the memory are brought back for it, in several subtasks."""
    cars = Cars(memory_url, tmp_path / "app", "rocksdb", memory_budget="8MB", parallelism=2)
    count = 20_000
    rows = [cars.put(i, f"maker {i % 9001:04}", i % 11, i) for i in range(count)]
    await cars.live(makers(n=sabot.count(), p=sabot.sum("price"), s=sabot.max("seats")), *rows)
    gone = [cars.put(i, None) for i in range(0, count, 7)]
    after = makers(n=sabot.count(), s=sabot.max("seats"), t=sabot.sum("seats"), low=sabot.min("price"))
    await cars.live(after, *gone)
    expected: dict[str, Row] = {}
    for row in cars.table.values():
        group = expected.setdefault(row["maker"], {"n": 0, "s": 0, "t": 0, "low": float("inf")})
        group["n"] += 1
        group["s"], group["t"] = max(group["s"], row["seats"]), group["t"] + row["seats"]
        group["low"] = min(group["low"], row["price"])
    assert {row.pop("maker"): row for row in cars.state_of("makers")} == expected


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_a_lookup_and_a_ranking_added_over_a_table_know_its_rows(
    memory_url: str, tmp_path: Path, parallelism: int
) -> None:
    """Each row of the stream met an empty table, and the first rows were those that came later."""
    broker = MemoryBroker.get(memory_url)
    for topic in ("cars", "trips"):
        broker.create_topic(topic, partitions=1)

    async def live(more: bool) -> App:
        app = App("cars", broker=memory_url, checkpoint_dir=tmp_path / "checkpoints", parallelism=parallelism)
        cars = app.table("cars", key="id", schema={"id": "int64", "maker": "string", "seats": "int64"})
        trips = app.stream("trips", schema={"trip": "int64", "id": "int64"})
        cars.changelog().to("all")
        trips.select("trip").to("seen")
        if more:
            trips.lookup(cars, on="id").select("trip", "maker").to("out")
            cars.key_by("maker").top_n(1, by="seats").named("most").changelog().to("ranked")
        await app.start()
        await until(lambda: len(values(app, "seen")) == len(broker.records("trips")))
        await until(lambda: len(values(app, "all")) == len(MAKERS))
        await bounded(app.stop())
        return app

    for id, maker in enumerate(MAKERS):
        broker.publish("cars", [{"id": id, "maker": maker, "seats": id}], key=id)
    broker.publish("trips", [{"trip": 0, "id": 0}])
    await live(more=False)
    broker.publish("trips", [{"trip": id, "id": id} for id in range(1, 8)])
    app = await live(more=True)
    found = {row["trip"]: row["maker"] for row in values(app, "out")}
    assert found == {id: MAKERS[id] if id < len(MAKERS) else None for id in range(1, 8)}
    ranked = {(row["maker"], row["seats"]) for row in values(app, "ranked")}
    assert ranked == {("opel", 5), ("fiat", 4), ("seat", 3)}
