"""A start that is refused changes nothing: whatever one receiver refuses, the others keep what they have."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars
import pytest
from deltalake import DeltaTable

from sabot import App, CsvSink, DeltaSink, NdjsonSink, ParquetSink, SabotError, Sink, SqlSink, UserError, count, files
from sabot.connectors.base import Track
from sabot.kafka import KafkaSink
from tools.agent_tools import publish, until

EARLIER = [{"k": number, "b": number} for number in range(5)]

RECEIVERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Sink]] = {
    "table": lambda place, given: SqlSink(f"sqlite:///{place}/out.db", "t", **given),
    "keyed table": lambda place, given: SqlSink(f"sqlite:///{place}/keyed.db", "t", keys=["k"], **given),
    "ndjson": lambda place, given: NdjsonSink(place / "out.ndjson", overwrite="overwrite" in given),
    "csv": lambda place, given: CsvSink(place / "out.csv", overwrite="overwrite" in given),
    "parquet": lambda place, given: ParquetSink(place / "out.parquet", overwrite="overwrite" in given),
    "parquet folder": lambda place, given: ParquetSink(f"{place}/parts/", **given),
    "ndjson folder": lambda place, given: NdjsonSink(f"{place}/texts/", overwrite="overwrite" in given),
    "partitions": lambda place, given: ParquetSink(f"{place}/days/", partition_by=["k"], **given),
    "delta": lambda place, given: DeltaSink(f"{place}/delta", **given),
}


def write(
    place: Path,
    name: str,
    rows: list[dict[str, int]],
    delivery: Any,
    *more: Sink,
    names: Iterable[str] = RECEIVERS,
    **given: Any,
) -> None:
    """Runs an app that writes rows into the receivers of these names, and into `more`."""
    app = App(name, state=place / name)
    stream = app.stream(rows)
    for kind in names:
        stream.to(RECEIVERS[kind](place, given), delivery=delivery)
    for sink in more:
        stream.to(sink, delivery=delivery)
    asyncio.run(app.run())


def content(place: Path) -> dict[str, Any]:
    """Returns what readers of the receivers find, and how the tables are made."""
    found: dict[str, Any] = {}
    for name in ("out", "keyed"):
        with sqlite3.connect(place / f"{name}.db") as database:
            found[name] = database.execute("SELECT * FROM t ORDER BY k").fetchall()
            found[f"{name} as made"] = database.execute("SELECT sql FROM sqlite_master").fetchall()
        database.close()
    for file in ("out.ndjson", "out.csv", "out.parquet"):
        found[file] = (place / file).read_bytes()
    for folder in ("parts", "texts", "days"):
        found[folder] = {str(each): each.read_bytes() for each in (place / folder).rglob("part-*") if each.is_file()}
    found["delta"] = polars.read_delta(str(place / "delta")).sort("k").rows()
    found["delta columns"] = DeltaTable(place / "delta").schema().to_json()
    return found


def lacking_table(place: Path) -> Sink:
    with sqlite3.connect(place / "other.db") as database:
        database.execute("CREATE TABLE t (k INTEGER)")
    return SqlSink(f"sqlite:///{place}/other.db", "t")


def table_without_index(place: Path) -> Sink:
    with sqlite3.connect(place / "other.db") as database:
        database.execute("CREATE TABLE t (k INTEGER, b INTEGER)")
    return SqlSink(f"sqlite:///{place}/other.db", "t", keys=["k"])


def lacking_folder(place: Path) -> Sink:
    (place / "others").mkdir()
    polars.DataFrame({"k": [1]}).write_parquet(place / "others" / "part-00000.parquet")
    return ParquetSink(f"{place}/others/")


def narrow_delta(place: Path) -> Sink:
    polars.DataFrame({"k": [1], "b": [1]}, schema={"k": polars.Int64, "b": polars.Int8}).write_delta(place / "other")
    return DeltaSink(place / "other")


def other_partitions(place: Path) -> Sink:
    polars.DataFrame({"k": [1], "b": [1]}).write_delta(place / "other")
    return DeltaSink(place / "other", partition_by=["k"])


def below_a_file(place: Path) -> Sink:
    (place / "file").write_text("")
    return NdjsonSink(place / "file" / "out.ndjson")


def in_a_file(place: Path) -> Sink:
    (place / "no.db").write_text("this is no database, and long enough to be told so" * 20)
    return SqlSink(f"sqlite:///{place}/no.db", "t")


def of_another_app(place: Path) -> Sink:
    """Makes a file whose token says that another app writes it, and has not come to its end."""
    sink = NdjsonSink(place / "taken.ndjson")
    sink.claim(Track("another", "streams.taken", "life"))
    sink.settle(1)
    sink.close()
    return NdjsonSink(place / "taken.ndjson")


REFUSED = [
    lacking_table,
    table_without_index,
    lacking_folder,
    narrow_delta,
    other_partitions,
    below_a_file,
    in_a_file,
]


@pytest.mark.one_in(16, "a tenth of a second of a core each")
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.__name__)
def test_a_first_start_that_one_sink_refuses_empties_no_other_one(
    refused: Callable[[Path], Sink], delivery: str, tmp_path: Path
) -> None:
    write(tmp_path, "before", EARLIER, delivery)
    earlier = content(tmp_path)
    with pytest.raises(UserError):
        write(tmp_path, "after", [{"k": 7, "b": 7}], delivery, refused(tmp_path), overwrite=True)
    assert content(tmp_path) == earlier


def test_a_first_start_that_the_file_of_another_app_refuses_empties_no_other_sink(tmp_path: Path) -> None:
    test_a_first_start_that_one_sink_refuses_empties_no_other_one(of_another_app, "exactly_once", tmp_path)


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_a_start_that_one_sink_refuses_adds_no_columns_to_the_others(delivery: str, tmp_path: Path) -> None:
    columned = ("table", "keyed table", "parquet folder", "delta")
    write(tmp_path, "before", EARLIER, delivery)
    earlier = content(tmp_path)
    more = [{**row, "c": 1} for row in EARLIER]
    evolving = [RECEIVERS[name](tmp_path, {"evolve": True}) for name in columned]
    with pytest.raises(UserError, match="has no column b"):
        write(tmp_path, "after", more, delivery, *evolving, lacking_table(tmp_path), names=())
    assert content(tmp_path) == earlier


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_a_start_that_one_sink_refuses_makes_no_tables_and_no_files(delivery: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column b"):
        write(tmp_path, "after", EARLIER, delivery, lacking_table(tmp_path))
    for file in ("out.ndjson", "out.csv", "out.parquet", "parts", "texts", "days", "delta"):
        assert not (tmp_path / file).exists(), file
    for name in ("out", "keyed"):
        if (tmp_path / f"{name}.db").exists():
            with sqlite3.connect(tmp_path / f"{name}.db") as database:
                assert database.execute("SELECT name FROM sqlite_master WHERE name = 't'").fetchall() == []
            database.close()


# -- a refused --fresh


class Totals:
    """The starts of one app that counts the orders of an account."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def app(self, **settings: Any) -> App:
        app = App("totals", broker=f"memory://{self.place}", state=self.place / "state", **settings)
        counts = app.stream("orders", schema={"account": "string"}).key_by("account").aggregate(n=count())
        counts.to(SqlSink(f"sqlite:///{self.place}/totals.db", "totals", keys=["account"]))
        return app

    async def live(self, app: App) -> list[Any]:
        """Runs the app for one more order. Returns its table."""
        await app.start()
        publish(app, "orders", [{"account": "ann"}])
        await until(lambda: sum(each["rows"] for each in app.statistics()["streams"].values()) >= 2)
        await app.stop()
        with sqlite3.connect(self.place / "totals.db") as database:
            return database.execute("SELECT account, n FROM totals").fetchall()


@pytest.fixture
def totals(tmp_path: Path) -> Totals:
    return Totals(tmp_path)


def kept(place: Path) -> dict[str, bytes]:
    """Returns the manifests of an app and the files that they list."""
    folders = (place / "state/checkpoints/checkpoints", place / "state/checkpoints/files")
    return {str(each): each.read_bytes() for folder in folders for each in folder.rglob("*") if each.is_file()}


def by_sink(app: App, place: Path) -> None:
    app.stream([{"k": 1, "b": 1}]).to(lacking_table(place))


def by_sink_of_another_app(app: App, place: Path) -> None:
    app.stream([{"k": 1, "b": 1}]).to(of_another_app(place))


def by_lifespan(app: App, place: Path) -> None:
    @app.on_start
    async def connect() -> None:
        raise UserError("the service is down")


def by_topic_of_no_broker(app: App, place: Path) -> None:
    app.stream([{"k": 1}]).to(
        KafkaSink("orders", "kafka://localhost:1", **{"socket.connection.setup.timeout.ms": 1000})
    )


def by_file_that_is_missing(app: App, place: Path) -> None:
    (place / "missing.csv").write_text("k\n1\n")
    app.stream(files(place / "missing.csv")).to(NdjsonSink(place / "copy.ndjson"))
    (place / "missing.csv").unlink()


@pytest.mark.one_in(5, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    "refuses",
    [by_sink, by_sink_of_another_app, by_lifespan, by_topic_of_no_broker, by_file_that_is_missing],
    ids=lambda refuses: refuses.__name__,
)
async def test_a_fresh_start_that_is_refused_leaves_the_checkpoints_as_they_were(
    totals: Totals, refuses: Callable[[App, Path], None]
) -> None:
    assert await totals.live(totals.app()) == [("ann", 1)]
    before = kept(totals.place)
    assert before
    app = totals.app(fresh=True)
    refuses(app, totals.place)
    for _ in range(2):  # in one process, a second attempt is a fresh start too
        with pytest.raises(SabotError):
            await app.start()
        assert kept(totals.place) == before
    assert await totals.live(totals.app()) == [("ann", 2)]


@pytest.mark.slow  # half a second of a core
async def test_a_fresh_start_that_is_not_refused_gives_the_checkpoints_up_once(totals: Totals) -> None:
    assert await totals.live(totals.app()) == [("ann", 1)]
    app = totals.app(fresh=True)
    assert await totals.live(app) == [("ann", 2)]  # of the two orders in the topic
    assert await totals.live(app) == [("ann", 3)]
    assert await totals.live(totals.app()) == [("ann", 4)]
