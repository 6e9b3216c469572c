"""Sinks of files by partition: which folders and files there are, when they appear, exactly once wherever the process dies."""

import asyncio
import os
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import dataset
from pyarrow import fs as arrow_fs
from pyarrow import parquet as pq

from sabot import App, ArrowSink, CsvSink, NdjsonSink, ParquetSink, files
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Track
from sabot.connectors.files import parts, paths
from sabot.errors import UserError
from sabot.steps import watch
from sabot.testing import BARRIER, END, ManualClock, ScriptedSource, crash_at_every_step

TRACK = Track("app", "lake", "one")
ROWS = [{"day": f"d{n % 3}", "hour": n % 2, "n": n} for n in range(12)]


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows)


def files_of(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".part.")
    )


def lake(folder: Path) -> list[dict[str, Any]]:
    """What pyarrow reads of the folder, with the columns of the folders' names."""
    found = dataset.dataset(folder, format="parquet", partitioning="hive", exclude_invalid_files=False).to_table()
    return sorted(found.to_pylist(), key=lambda row: row["n"])


def claimed(folder: Path, **options: Any) -> ParquetSink:
    sink = ParquetSink(folder, partition_by=["day", "hour"], **options)
    sink.claim(TRACK)
    return sink


def deliver(sink: Any, seq: int, rows: list[dict[str, Any]]) -> None:
    sink.deliver(seq, [sink.fitting(batch(rows))])


def test_each_delivery_gives_each_partition_a_file_without_the_columns_of_its_folder(tmp_path: Path) -> None:
    sink = claimed(tmp_path)
    deliver(sink, 1, ROWS[:3])
    deliver(sink, 2, ROWS[3:])
    deliver(sink, 2, ROWS[3:])
    assert lake(tmp_path) == ROWS
    found = files_of(tmp_path)
    assert found[:3] == [
        "day=d0/hour=0/part-00000.parquet",
        "day=d0/hour=0/part-00001.parquet",
        "day=d0/hour=1/part-00001.parquet",
    ]
    assert len(found) == 3 + 6
    sink.close()


def test_rows_wait_until_a_part_has_its_bytes_and_the_end_completes_it(tmp_path: Path) -> None:
    size = batch(ROWS[:3]).nbytes
    sink = claimed(tmp_path, part_bytes=2 * size)
    deliver(sink, 1, ROWS[:3])
    assert files_of(tmp_path) == [".part-00000.parquet.journal"]
    deliver(sink, 2, ROWS[3:9])
    assert lake(tmp_path) == ROWS[:9]
    deliver(sink, 3, ROWS[9:])
    sink.finish()
    assert lake(tmp_path) == ROWS
    assert not [name for name in files_of(tmp_path) if "/." in name or name.startswith(".")]
    sink.close()


def test_a_part_is_completed_by_the_first_delivery_after_its_time(tmp_path: Path) -> None:
    clock = ManualClock()
    sink = claimed(tmp_path, part_time="10m")
    sink._delivering._clock = clock
    deliver(sink, 1, ROWS[:3])
    clock.advance(599)
    deliver(sink, 2, ROWS[3:6])
    assert files_of(tmp_path) == [".part-00000.parquet.journal"]
    clock.advance(2)
    deliver(sink, 3, ROWS[6:9])
    assert lake(tmp_path) == ROWS[:9]
    deliver(sink, 4, ROWS[9:])  # the time of the next part begins with its first rows
    assert lake(tmp_path) == ROWS[:9]
    sink.close()
    assert lake(tmp_path) == ROWS


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("../../etc", "day=..%2F..%2Fetc"),
        ("a=b%", "day=a%3Db%25"),
        ("", "day="),
        (None, "day=__HIVE_DEFAULT_PARTITION__"),
        ("ä\n\0", "day=%C3%A4%0A%00"),
        (True, "day=true"),
        (date(2026, 11, 22), "day=2026-11-22"),
        (-7, "day=-7"),
    ],
)
def test_values_are_escaped_in_the_names_of_folders(value: Any, folder: str) -> None:
    table = pa.table({"day": pa.array([value], pa.string() if value is None else None), "n": [1]})
    ((name, rows),) = paths.partitions_of(table, ["day"])
    assert (name, rows.to_pylist()) == (folder, [{"n": 1}])


def test_one_file_is_open_at_a_time_however_many_partitions_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_now, most = 0, 0

    class Counted(parts.WholeFile):
        def __init__(self, *options: Any) -> None:
            nonlocal open_now, most
            super().__init__(*options)
            open_now += 1
            most = max(most, open_now)

        def close(self) -> None:
            nonlocal open_now
            super().close()
            open_now -= 1

    monkeypatch.setattr(parts, "WholeFile", Counted)
    sink = claimed(tmp_path)
    deliver(sink, 1, [{"day": str(n), "hour": 0, "n": n} for n in range(50)])
    sink.close()
    assert (most, open_now, len(files_of(tmp_path))) == (1, 0, 50)


def test_overwrite_removes_the_parts_of_all_partitions(tmp_path: Path) -> None:
    sink = claimed(tmp_path)
    deliver(sink, 1, ROWS)
    sink.finish()
    sink.close()
    again = ParquetSink(tmp_path, partition_by=["day", "hour"], overwrite=True)
    again.start_afresh()
    again.claim(Track("app", "lake", "two"))
    deliver(again, 1, ROWS[:1])
    again.close()
    assert files_of(tmp_path) == ["day=d0/hour=0/part-00000.parquet"]


def test_without_its_token_the_folder_gets_further_parts(tmp_path: Path) -> None:
    sink = claimed(tmp_path)
    deliver(sink, 1, ROWS)
    sink.close()
    os.remove(tmp_path / ".part.parquet.token")
    other = claimed(tmp_path)
    deliver(other, 1, ROWS[:1])
    other.close()
    assert files_of(tmp_path)[:2] == ["day=d0/hour=0/part-00000.parquet", "day=d0/hour=0/part-00001.parquet"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"day": "a", "n": 1}], "partition_by names 'hour', but the rows have day, n"),
        ([{"day": "a", "hour": 1.5, "n": 1}], "column 'hour' of type double cannot name folders"),
        ([{"day": "a", "hour": 1}], "none is left for the files"),
    ],
)
def test_columns_that_cannot_name_folders_are_refused_before_rows_are_taken(
    tmp_path: Path, rows: Any, said: str
) -> None:
    sink = claimed(tmp_path)
    with pytest.raises(UserError, match=said):
        sink.fitting(batch(rows))
    with pytest.raises(UserError, match=said):
        ArrowSink(tmp_path / "b", partition_by=["day", "hour"]).check_types(batch(rows).schema)


def text_lake(folder: Path, format: Any) -> list[dict[str, Any]]:
    found = dataset.dataset(folder, format=format, partitioning="hive", exclude_invalid_files=False).to_table()
    return sorted(found.to_pylist(), key=lambda row: row["n"])


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("kind", "compression", "first"),
    [
        (NdjsonSink, None, b'{"n":0}\n'),
        (NdjsonSink, "gzip", b'{"n":0}\n'),
        (CsvSink, None, b'"n"\n0\n'),
        (CsvSink, "zstd", b'"n"\n0\n'),
    ],
)
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_text_by_partition_has_a_header_in_each_file(
    tmp_path: Path, kind: Any, compression: str | None, first: bytes, delivery: Any
) -> None:
    app = App("text", state="memory", checkpoint_dir=tmp_path / "checkpoints")
    folder = tmp_path / "lake"
    sink = kind(folder, partition_by=["day", "hour"], compression=compression)
    app.stream(ScriptedSource([*ROWS, END])).to(sink, delivery=delivery)
    asyncio.run(app.run())
    (name, *_) = sorted((folder / "day=d0" / "hour=0").iterdir())
    assert name.name == "part-00000" + sink._format.ending
    with pa.input_stream(os.fspath(name)) as stream:
        assert stream.read().startswith(first)
    if compression != "zstd":
        assert text_lake(folder, "json" if kind is NdjsonSink else "csv") == ROWS
    assert not [name for name in files_of(folder) if "/." in name or name.startswith(".")]


def test_records_that_are_not_decoded_have_no_partitions(tmp_path: Path) -> None:
    sink = NdjsonSink(tmp_path, partition_by=["partition"])
    sink.claim(TRACK)
    with pytest.raises(UserError, match="records that are not decoded"):
        sink.fitting(pa.RecordBatch.from_pylist([], schema=RECORD_SCHEMA))
    with pytest.raises(UserError, match=r"column 'n' .* cannot be written as csv"):
        CsvSink(tmp_path / "b", partition_by=["day"]).check_types(batch([{"day": "a", "n": [1]}]).schema)


def opened(folder: Path, **options: Any) -> ParquetSink:
    sink = ParquetSink(folder, partition_by=["day", "hour"], **options)
    sink.open()
    return sink


def test_at_least_once_flushed_rows_wait_for_their_part_and_survive(tmp_path: Path) -> None:
    size = batch(ROWS[:3]).nbytes
    sink = opened(tmp_path, part_bytes=2 * size)
    sink.write(Batch(batch(ROWS[:3])))
    sink.flush()
    sink.write(Batch(batch(ROWS[3:6])))  # lost: it was not flushed
    assert files_of(tmp_path) == [".part-00000.parquet.journal"]
    again = opened(tmp_path, part_bytes=2 * size)
    again.write(Batch(batch(ROWS[6:9])))
    again.flush()
    assert lake(tmp_path) == ROWS[:3] + ROWS[6:9]
    again.write(Batch(batch(ROWS[9:])))
    again.finish()
    again.close()
    assert lake(tmp_path) == ROWS[:3] + ROWS[6:]
    assert not [name for name in files_of(tmp_path) if "/." in name or name.startswith(".")]
    sink.close()


def test_at_least_once_a_flush_completes_a_part_after_its_time(tmp_path: Path) -> None:
    clock = ManualClock()
    sink = opened(tmp_path, part_time="10m")
    sink._writing._clock = clock
    sink.write(Batch(batch(ROWS[:3])))
    sink.flush()
    assert files_of(tmp_path) == [".part-00000.parquet.journal"]
    clock.advance(601)
    sink.flush()
    assert lake(tmp_path) == ROWS[:3]
    clock.advance(601)
    sink.flush()
    sink.write(Batch(batch(ROWS[3:6])))  # the time of a part begins with its first rows
    sink.flush()
    assert lake(tmp_path) == ROWS[:3]
    sink.close()
    assert lake(tmp_path) == ROWS[:6]


class CopiedAtRename:
    """Copies a folder as it is before the rename of this number: what the next worker finds if this one dies there."""

    def __init__(self, folder: Path, copy: Path, number: int) -> None:
        self.folder, self.copy, self.left = folder, copy, number

    def before(self, name: str, what: str) -> None:
        self.left -= name == "rename"
        if self.left == 0 and not self.copy.exists():
            shutil.copytree(self.folder, self.copy)

    def after(self, name: str, what: str) -> None:
        """Nothing happens then."""

    def torn(self, name: str, what: str, size: int) -> int:
        return size


def died_at_rename(tmp_path: Path, number: int) -> Path:
    """The folder of a sink that has died while it gave the files of a part their names."""
    sink = opened(tmp_path / "first")
    sink.write(Batch(batch(ROWS[:6])))
    sink.flush()
    watch(CopiedAtRename(tmp_path / "first", tmp_path / "second", number))
    try:
        sink.finish()
    finally:
        watch(None)
    sink.close()
    return tmp_path / "second"


def test_a_part_of_which_some_partitions_have_their_files_is_gone_on_with(tmp_path: Path) -> None:
    folder = died_at_rename(tmp_path, 2)
    assert len([name for name in files_of(folder) if "/part-" in name]) == 1
    exactly = claimed(folder, part_bytes=1 << 20)
    deliver(exactly, 1, ROWS[6:])
    exactly.close()
    assert lake(folder) == ROWS
    assert len(files_of(folder)) == 6


def test_an_app_that_begins_drops_the_unfinished_part_of_all_partitions(tmp_path: Path) -> None:
    folder = died_at_rename(tmp_path, 1)
    assert len(files_of(folder)) == 2 + 6
    again = ParquetSink(folder, partition_by=["day", "hour"])
    again.start_afresh()
    again.open()
    again.flush()
    assert files_of(folder) == []
    again.close()


def build(directory: Path, kind: Any = ParquetSink, delivery: Any = "exactly_once") -> App:
    app = App("lake", state="memory", checkpoint_dir=directory / "checkpoints")
    script = [*ROWS[:4], BARRIER, *ROWS[4:8], BARRIER, *ROWS[8:], END]
    size = batch(ROWS[:4]).nbytes
    sink = kind(directory / "lake", partition_by=["day", "hour"], part_bytes=size + 1)
    app.stream(ScriptedSource(script)).to(sink, delivery=delivery)
    return app


def outcome(directory: Path) -> Any:
    hidden = [name for name in files_of(directory / "lake") if "/." in name or name.startswith(".")]
    return lake(directory / "lake"), hidden


@pytest.mark.slow  # it waits
def test_a_crash_at_some_steps_leaves_each_row_once() -> None:
    crashes = crash_at_every_step(build, outcome, sample=4, seed=3)
    assert crashes.died > 0


def build_text(directory: Path) -> App:
    return build(directory, NdjsonSink)


def outcome_of_text(directory: Path) -> Any:
    hidden = [name for name in files_of(directory / "lake") if "/." in name or name.startswith(".")]
    return text_lake(directory / "lake", "json"), hidden


def test_a_crash_at_some_steps_leaves_each_line_once() -> None:
    crashes = crash_at_every_step(build_text, outcome_of_text, sample=2, seed=5)
    assert crashes.died > 0


def build_at_least_once(directory: Path) -> App:
    return build(directory, CsvSink, "at_least_once")


def outcome_at_least_once(directory: Path) -> Any:
    rows = text_lake(directory / "lake", "csv")
    hidden = [name for name in files_of(directory / "lake") if "/." in name or name.startswith(".")]
    return [row for number, row in enumerate(rows) if row not in rows[:number]], hidden


@pytest.mark.slow  # sixteen runs
def test_crashes_at_some_steps_lose_no_line_at_least_once() -> None:
    crashes = crash_at_every_step(build_at_least_once, outcome_at_least_once, workers=2, sample=16, seed=7)
    assert crashes.died > 8


@pytest.mark.slow  # forty runs
def test_crashes_at_many_steps_leave_each_row_once() -> None:
    crashes = crash_at_every_step(build, outcome, workers=2, sample=40, seed=11)
    assert crashes.died > 25
    assert crashes.kinds["rename"] > 3


# -- read back


FORMATS: list[tuple[Any, str]] = [
    (ParquetSink, "parquet"),
    (ArrowSink, "arrow"),
    (NdjsonSink, "ndjson"),
    (CsvSink, "csv"),
]
MIXED = [
    {"n": 1, "day": "2026-11-22", "hour": 7, "open": True, "zip": "007"},
    {"n": 2, "day": "2026-11-22", "hour": -7, "open": False, "zip": "a/b é=%"},
    {"n": 3, "day": None, "hour": None, "open": None, "zip": ""},
    {"n": 4, "day": "2026-11-23", "hour": 2**62, "open": True, "zip": "8"},
]


@pytest.mark.one_in(9, "some hundredths of a second of a core each")
@pytest.mark.parametrize(("sink", "format"), FORMATS)
@pytest.mark.parametrize("parallelism", [1, 2])
def test_what_a_sink_has_put_into_folders_is_read_back(
    tmp_path: Path, sink: Any, format: str, parallelism: int
) -> None:
    """The columns that name the folders are in no file, and were dropped in silence."""
    app = App("write")
    app.stream(MIXED).to(sink(f"{tmp_path}/lake/", partition_by=["day", "hour", "open", "zip"]))
    app.main()
    read = App("read", parallelism=parallelism)
    found = read.stream(files(tmp_path / "lake")).collect()
    assert sorted(found.to_pylist(), key=lambda row: row["n"]) == MIXED
    assert found.schema.field("day").type == pa.string()
    for columns in (["n"], ["zip"], ["hour", "n"]):
        app = App("some")
        rows = app.stream(files(tmp_path / "lake")).select(*columns).collect().to_pylist()
        assert sorted(rows, key=str) == sorted(({name: row[name] for name in columns} for row in MIXED), key=str)


@pytest.mark.parametrize(("sink", "format"), FORMATS)
def test_a_schema_says_the_types_of_folders(tmp_path: Path, sink: Any, format: str) -> None:
    app = App("write")
    app.stream([{"day": date(2026, 11, 22), "n": 1, "k": 5}]).to(sink(f"{tmp_path}/lake/", partition_by=["day", "k"]))
    app.main()
    schema = {"day": "date32", "n": "int64", "k": "string"}
    rows = App("read").stream(files(tmp_path / "lake"), schema=schema).collect().to_pylist()
    assert rows == [{"day": date(2026, 11, 22), "n": 1, "k": "5"}]
    with pytest.raises(UserError, match="its folder says day='2026-11-22', which is no int64") as refused:
        App("read").stream(files(tmp_path / "lake"), schema={"day": "int64"}).collect()
    assert refused.value.hint == 'schema_overrides={"day": "string"} takes such values as texts'


def test_a_folder_with_more_digits_than_its_decimal_holds_is_refused(tmp_path: Path) -> None:
    """Its low bits were a number."""
    (folder := tmp_path / f"price={'9' * 39}").mkdir()
    (folder / "a.ndjson").write_text('{"n": 1}\n')
    with pytest.raises(UserError, match=r"its folder says price='9{39}', which is no decimal128"):
        App("read").stream(files(tmp_path), schema={"n": "int64", "price": "decimal(38, 2)"}).collect()


def test_folders_are_those_below_the_path_and_those_of_a_glob(tmp_path: Path) -> None:
    app = App("write")
    app.stream([{"_day": "mon", "n": 1}, {"_day": "tue", "n": 2}]).to(
        ParquetSink(tmp_path / "year=2026", partition_by=["_day"])
    )
    app.main()

    def read(path: Any, format: str | None = None) -> list[dict[str, Any]]:
        return App("read").stream(files(path, format)).collect().to_pylist()

    both = [{"n": 1, "_day": "mon"}, {"n": 2, "_day": "tue"}]
    assert read(tmp_path / "year=2026") == both
    assert read(f"{tmp_path}/year=2026/_day=*/*.parquet") == both
    assert read(f"{tmp_path}/**/*.parquet") == [{"n": row["n"], "year": 2026, "_day": row["_day"]} for row in both]
    assert read((arrow_fs.LocalFileSystem(), str(tmp_path / "year=2026")), "parquet") == both
    assert read(tmp_path / "year=2026" / "_day=mon") == [{"n": 1}]


def test_a_column_that_the_files_have_too_is_read_from_them(tmp_path: Path) -> None:
    for day in ("2026-11-22", "2026-11-23"):
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(pa.table({"day": [date.fromisoformat(day)], "n": [1]}), tmp_path / f"day={day}" / "a.parquet")
    found = App("read").stream(files(tmp_path)).collect()
    assert found["day"].to_pylist() == [date(2026, 11, 22), date(2026, 11, 23)]


def test_records_do_not_have_the_columns_of_folders_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "day=mon").mkdir()
    (tmp_path / "day=mon" / "a.ndjson").write_text('{"n": 1}\n')
    app = App("agents")
    seen = []

    @app.agent(files(tmp_path, "ndjson"))
    async def look(ctx: Any) -> None:
        seen.append(ctx.message)

    app.main()
    assert seen == [{"n": 1}]
    assert "its folders name the columns day, which records do not have" in caplog.text
