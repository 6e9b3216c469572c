"""Objects as a sink: formats and partitions, what is there after a crash, errors, and S3 by its address."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs as arrow_fs

from sabot import App, NdjsonSink, ObjectSink, count, files
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import to_records
from sabot.connectors.base import Track
from sabot.connectors.files import sink as sinks
from sabot.engine.checkpoint import CheckpointStorage
from sabot.errors import TransientError, UserError
from sabot.testing import BARRIER, END, ScriptedSource, crash_at_every_step
from tools.agent_tools import publish, started, until, values
from tools.checkpoint_tools import in_memory
from tools.gcs_server import gcs_server

TRACK = Track("app", "out", "one")
ROWS = [{"day": f"d{n % 3}", "n": n} for n in range(6)]


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows)


def rows(source: Any) -> list[dict[str, Any]]:
    return sorted(App("reads").stream(source).collect().to_pylist(), key=lambda row: row["n"])


@pytest.mark.parametrize(
    ("format", "compression"),
    [("parquet", None), ("parquet", "zstd"), ("arrow", None), ("csv", None), ("csv", "gzip"), ("ndjson", "zstd")],
)
def test_each_format_is_read_again_with_files(format: str, compression: str | None) -> None:
    store, _ = in_memory()
    sink = ObjectSink((store, "bucket/out"), format, compression=compression)
    sink.claim(TRACK)
    for seq in (1, 2):
        sink.deliver(seq, [sink.fitting(batch(ROWS[3 * seq - 3 : 3 * seq]))])
    sink.finish()
    sink.close()
    assert rows(files((store, "bucket/out"), format)) == ROWS


def test_each_partition_gets_an_object_and_a_part_replaces_itself() -> None:
    store, handler = in_memory()
    for _ in range(2):  # as after a crash, which the receiver need not know of
        sink = ObjectSink((store, "bucket/out"), "ndjson", partition_by=["day"])
        sink.claim(TRACK)
        sink.deliver(7, [sink.fitting(batch(ROWS))])
        sink.close()
    found = sorted(handler.files.items())
    assert [path.split("/")[2] for path, _ in found] == ["day=d0", "day=d1", "day=d2"]
    assert [data for _, data in found] == [b'{"n":0}\n{"n":3}\n', b'{"n":1}\n{"n":4}\n', b'{"n":2}\n{"n":5}\n']


def test_a_crash_between_partitions_leaves_whole_objects_and_the_part_comes_again() -> None:
    sent: list[str] = []

    def dies_at_the_third(verb: str, path: str) -> None:
        if verb == "move":
            sent.append(path)
            if len(sent) == 3:
                raise ConnectionResetError("reset by peer")

    store, handler = in_memory(dies_at_the_third)
    sink = ObjectSink((store, "bucket/out"), "ndjson", partition_by=["day"])
    sink.claim(TRACK)
    part = [sink.fitting(batch(ROWS))]
    with pytest.raises(TransientError, match=r"bucket/out/day=d2/part-.*reset by peer"):
        sink.deliver(1, part)
    assert len([path for path in handler.files if not path.endswith(".tmp")]) == 2
    sink.claim(TRACK)
    sink.deliver(1, part)
    assert sorted(path.split("/")[2] for path in handler.files) == ["day=d0", "day=d1", "day=d2"]
    assert sum(data.count(b"\n") for data in handler.files.values()) == len(ROWS)
    sink.close()


def test_at_least_once_rows_are_sent_at_each_flush() -> None:
    store, handler = in_memory()
    sink = ObjectSink((store, "bucket/out"))
    sink.open()
    sink.write(Batch(batch(ROWS[:2])))
    assert not handler.files
    sink.flush()
    sink.flush()
    assert len(handler.files) == 1
    sink.write(Batch(batch(ROWS[2:])))
    sink.finish()
    sink.close()
    assert rows(files((store, "bucket/out"))) == ROWS


def test_at_least_once_rows_are_sent_when_there_are_enough_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    store, handler = in_memory()
    sink = ObjectSink((store, "bucket/out"))
    one = Batch(batch(ROWS[:1]))
    monkeypatch.setattr(sinks, "_OBJECT_BYTES", 3 * one.data.nbytes)
    sink.open()
    counts = []
    for _ in range(7):
        sink.write(one)
        counts.append(len(handler.files))
    assert counts == [0, 0, 1, 1, 1, 2, 2]
    sink.close()


async def test_a_stream_is_delivered_exactly_once(tmp_path: Path) -> None:
    store, _ = in_memory()
    (tmp_path / "in.ndjson").write_text("".join(f'{{"n": {n}}}\n' for n in range(100)))
    app = App("out", state=tmp_path / "state")
    app.stream(files(tmp_path / "in.ndjson")).to(ObjectSink((store, "bucket/out")), delivery="exactly_once")
    await app.run()
    assert rows(files((store, "bucket/out"))) == [{"n": n} for n in range(100)]


def test_columns_that_the_format_cannot_hold_are_refused_before_rows_are_taken() -> None:
    store, handler = in_memory()
    sink = ObjectSink((store, "bucket/out"), "csv")
    lists = batch([{"n": [1]}])
    with pytest.raises(UserError, match=r"bucket/out.*column 'n'"):
        sink.check_types(lists.schema)
    sink.claim(TRACK)
    with pytest.raises(UserError, match="cannot be written as CSV"):
        sink.fitting(lists)
    with pytest.raises(UserError, match="do not fit those before"):
        sink.fitting(sink.fitting(batch([{"n": 1}])).rename_columns(["m"]))
    with pytest.raises(UserError, match="records that are not decoded have no columns"):
        sink.fitting(to_records(Batch(batch(ROWS)), 0))
    assert not handler.files
    with pytest.raises(UserError, match="no format of files"):
        ObjectSink((store, "bucket/out"), "xml")


def test_a_sink_of_files_names_the_one_of_objects() -> None:
    with pytest.raises(UserError, match="s3://bucket/out/: this sink writes files of this machine") as refused:
        NdjsonSink("s3://key:secret@bucket/out/")
    assert "ObjectSink" in str(refused.value)
    assert "secret" not in str(refused.value)


def build(directory: Path) -> App:
    app = App("out", state="memory", checkpoint_dir=directory / "checkpoints")
    script = [*ROWS[:2], BARRIER, *ROWS[2:4], BARRIER, *ROWS[4:], END]
    sink = ObjectSink((arrow_fs.LocalFileSystem(), f"{directory}/out"), "csv", partition_by=["day"])
    app.stream(ScriptedSource(script)).to(sink, delivery="exactly_once")
    return app


def outcome(directory: Path) -> list[str]:
    """What was written, and what a crash has left: nothing of it may stay."""
    found = [path for path in (directory / "out").rglob("*") if path.is_file()]
    return sorted(f"{path.parent.name} {path.suffix} {path.read_text()}" for path in found)


@pytest.mark.slow  # it waits
def test_a_crash_at_some_steps_leaves_each_row_once() -> None:
    crashes = crash_at_every_step(build, outcome, sample=2, seed=3)
    assert crashes.died > 0


@pytest.mark.slow  # sixteen runs
def test_crashes_at_many_steps_leave_each_row_once() -> None:
    crashes = crash_at_every_step(build, outcome, workers=2, sample=16, seed=11)
    assert crashes.died > 8
    assert crashes.kinds["upload"] > 0


@pytest.mark.slow  # the server of the store takes seconds to import
def test_s3_is_written_by_its_address() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true&allow_bucket_deletion=true"
        filesystem, _ = arrow_fs.FileSystem.from_uri(f"s3://any:any@rows/x?{options}")
        filesystem.create_dir("rows")
        sink = ObjectSink(f"s3://any:any@rows/out/?{options}", partition_by=["day"])
        assert sink.name == "s3://rows/out/"
        sink.claim(TRACK)
        for _ in range(2):
            sink.deliver(1, [sink.fitting(batch(ROWS))])
        sink.close()
        assert rows(files(f"s3://any:any@rows/out/?{options}")) == ROWS
        check_of_buckets(f"s3://any:any@{{}}?{options}")
        filesystem.create_dir("going")
        sink = ObjectSink(f"s3://any:any@going/out?{options}")
        sink.claim(TRACK)
        filesystem.delete_dir("going")
        with pytest.raises(UserError, match=r"s3://going/out/part-.*: the store has no bucket 'going'"):
            sink.deliver(1, [batch(ROWS)])
    finally:
        server.stop()


@pytest.fixture
def gcs() -> Iterator[str]:
    """The address of a path in Google's object store, with {} for bucket and path; there is the bucket "rows"."""
    with gcs_server("rows") as port:
        yield f"gs://anonymous@{{}}?scheme=http&endpoint_override=127.0.0.1:{port}"


@pytest.mark.slow  # the store is a process of its own
def test_gcs_is_written_and_read_by_its_address_and_keeps_checkpoints(gcs: str, memory_url: str) -> None:
    place = gcs.format("rows/out/")
    sink = ObjectSink(place, "ndjson", partition_by=["day"])
    assert sink.name == "gs://rows/out/"
    sink.claim(TRACK)
    for _ in range(2):
        sink.deliver(1, [sink.fitting(batch(ROWS))])
    sink.close()
    assert rows(files(place, "ndjson")) == ROWS
    for format in ("parquet", "arrow", "csv"):
        place = gcs.format(f"rows/{format}/")
        app = App("lake")
        app.stream(ScriptedSource([batch(ROWS), END], schema=batch(ROWS).schema)).to(files(place, format))
        asyncio.run(app.run())
        assert rows(files(place)) == ROWS
        assert rows(files(gcs.format(f"rows/{format}/part-*"), format)) == ROWS
    for total in (3, 6):  # the second run goes on from the checkpoint of the first
        asyncio.run(counted(memory_url, gcs.format("rows/checkpoints"), total))
    check_of_buckets(gcs)


async def counted(broker: str, checkpoints: str, total: int) -> None:
    app = App("count", broker, state="memory", checkpoint_dir=checkpoints)
    app.stream("rows", schema={"k": "string"}).key_by("k").aggregate(n=count()).to("counts")
    publish(app, "rows", [{"k": "a"}] * 3)
    async with started(app):
        await until(lambda: bool(values(app, "counts")) and values(app, "counts")[-1]["n"] == total)


def check_of_buckets(place: str) -> None:
    """A bucket that does not exist is named where it is read, written, and where checkpoints would be."""
    told = r"://none.*: the store has no bucket 'none'"
    for path in ("none/x.csv", "none/x/*.csv", "none/x/"):
        with pytest.raises(UserError, match=told) as refused:
            files(place.format(path))
        assert "any" not in str(refused.value)
    with pytest.raises(UserError, match=told):
        ObjectSink(place.format("none/out")).claim(TRACK)
    with pytest.raises(UserError, match=told):
        CheckpointStorage(place.format("none/checkpoints")).lock()


@pytest.mark.parametrize("format", ["parquet", "arrow", "csv", "ndjson"])
def test_files_of_a_store_are_written_where_they_are_read(format: str) -> None:
    store, handler = in_memory()
    app = App("lake")
    app.stream(ScriptedSource([batch(ROWS), END], schema=batch(ROWS).schema)).to(files((store, "bucket/out"), format))
    asyncio.run(app.run())
    assert all(path.startswith("bucket/out/part-") for path in handler.files)
    assert rows(files((store, "bucket/out"))) == ROWS


async def test_an_agent_writes_into_files_of_a_store(memory_url: str) -> None:
    store, handler = in_memory()
    app = App("lake", memory_url, checkpoint_interval="20ms")
    app.agent("rows", name="kept", sink=[files((store, "bucket/out"), "ndjson"), "other"])(lambda ctx: ctx.message)
    publish(app, "rows", ROWS)
    async with started(app):
        # a file that is not published yet stands beside them under a hidden name: readers see no file at all before
        await until(lambda: any(path.startswith("bucket/out/part-") for path in handler.files))
        await until(lambda: rows(files((store, "bucket/out"))) == ROWS)


def test_files_that_are_no_folder_of_a_store_are_no_sink(tmp_path: Path) -> None:
    store, _ = in_memory()
    stream = App("lake").stream("rows", schema={"n": "int64"})
    (tmp_path / "a.ndjson").write_text('{"n": 1}\n')
    for source in (
        files(tmp_path / "a.ndjson"),
        files((store, "bucket/*"), "ndjson"),
        files((store, "bucket/one.parquet"), "parquet"),
    ):
        with pytest.raises(UserError, match=r"rows cannot be written into files\(") as refused:
            stream.to(source)
        assert "files(" in refused.value.hint
    with pytest.raises(UserError, match="is neither a topic nor a Sink"):
        stream.to(ScriptedSource([END]))


def test_files_of_this_machine_say_which_sink_writes_there(tmp_path: Path) -> None:
    stream = App("lake").stream("rows", schema={"n": "int64"})
    (tmp_path / "a.csv").write_text("n\n1\n")
    for source, sink in (
        (files(f"{tmp_path}/"), f"CsvSink('{tmp_path}/') writes"),
        (files(tmp_path / "new", "parquet"), f"ParquetSink('{tmp_path}/new') writes"),
        (files(f"{tmp_path}/*.csv"), "CsvSink('folder/') writes"),
    ):
        with pytest.raises(UserError, match="rows cannot be written into") as refused:
            stream.to(source)
        assert sink in refused.value.hint
    (tmp_path / "empty").mkdir()
    for missing in ("empty/", "none/"):
        with pytest.raises(UserError) as refused:
            files(f"{tmp_path}/{missing}")
        assert f"NdjsonSink('{tmp_path}/{missing}')" in refused.value.hint
