"""A start without a checkpoint says that it adds to rows that are there, in each kind of sink."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sabot import App, CsvSink, NdjsonSink, ParquetSink, files
from sabot.connectors.base import Sink
from sabot.connectors.sql import SqlSink

ROWS = [{"id": 1, "n": 10}, {"id": 2, "n": 20}]


def started(sink: Sink, caplog: pytest.LogCaptureFixture, delivery: Any = None) -> list[str]:
    """The warnings about kept rows of a start without a checkpoint."""
    app = App("kept", "memory://kept-output", fresh=True)
    app.stream(ROWS).to(sink, delivery=delivery)
    caplog.clear()
    app.main()
    return [line for line in caplog.messages if "has rows already" in line]


@pytest.mark.parametrize("delivery", [None, "at_least_once"])
def test_a_second_fresh_start_says_that_it_adds_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, delivery: Any
) -> None:
    def sinks() -> list[Sink]:
        return [
            CsvSink(tmp_path / "out.csv"),
            NdjsonSink(tmp_path / "out.ndjson"),
            ParquetSink(tmp_path / "folder/"),
            ParquetSink(f"{tmp_path}/days/", partition_by=["id"]),
            SqlSink(f"sqlite:///{tmp_path}/out.db", "t"),
        ]

    for sink in sinks():
        assert started(sink, caplog, delivery) == []
    for sink in sinks():
        (said,) = started(sink, caplog, delivery)
        assert "this start without a checkpoint adds to them" in said


@pytest.mark.slow  # half a second of a core
def test_a_sink_that_begins_empty_or_replaces_rows_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert started(CsvSink(tmp_path / "out.csv", overwrite=True), caplog) == []
        assert started(ParquetSink(tmp_path / "out.parquet", overwrite=True), caplog) == []
        assert started(SqlSink(f"sqlite:///{tmp_path}/out.db", "t", keys=["id"]), caplog) == []
        assert started(SqlSink(f"sqlite:///{tmp_path}/out.db", "new", overwrite=True), caplog) == []
    assert sqlite3.connect(tmp_path / "out.db").execute("SELECT * FROM new").fetchall() == [(1, 10), (2, 20)]
    assert (tmp_path / "out.csv").read_text().count("\n") == 3


@pytest.mark.slow  # half a second of a core
def test_a_sink_that_begins_empty_says_what_it_removes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def sinks() -> list[Sink]:
        return [
            CsvSink(tmp_path / "out.csv", overwrite=True),
            ParquetSink(tmp_path / "out.parquet", overwrite=True),
            ParquetSink(tmp_path / "folder/", overwrite=True),
            SqlSink(f"sqlite:///{tmp_path}/out.db", "t", overwrite=True),
        ]

    for delivery in ("at_least_once", None):
        for sink in sinks():
            started(sink, caplog, delivery)
        for sink in sinks():
            with caplog.at_level("INFO", logger="sabot"):
                started(sink, caplog, delivery)
            assert "as overwrite= says" in caplog.text, sink.name


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("delivery", [None, "at_least_once"])
def test_a_table_that_is_overwritten_loses_its_rows_at_a_fresh_start_and_keeps_them_at_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, delivery: Any
) -> None:
    database = f"sqlite:///{tmp_path}/out.db"
    (tmp_path / "in").mkdir()

    def run(*, fresh: bool, number: int) -> list[tuple[int]]:
        (tmp_path / f"in/{number}.ndjson").write_text(json.dumps({"n": number}) + "\n")
        app = App("table", "memory://table", state=tmp_path / "state", fresh=fresh)
        rows = app.stream(files(tmp_path / "in"), schema={"n": "int64"})
        rows.to(SqlSink(database, "t", overwrite=True), delivery=delivery)
        app.main()
        found = sqlite3.connect(tmp_path / "out.db").execute("SELECT n FROM t ORDER BY n")
        return list(found)

    assert run(fresh=False, number=1) == [(1,)]
    assert run(fresh=True, number=2) == [(1,), (2,)], "the rows of the first run are deleted, and both files read"
    assert run(fresh=False, number=3) == [(1,), (2,)], "an app that is complete goes on from its checkpoint"
