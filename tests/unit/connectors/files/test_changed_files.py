"""A position in files is bound to what was read: another file of the same name is refused, and what was added is read."""

import gzip
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs as arrow_fs
from pyarrow import ipc
from pyarrow import parquet as pq

from sabot import App, NdjsonSink
from sabot.connectors.base import Positions
from sabot.connectors.files import FileSource, files
from sabot.errors import UserError
from tools.agent_tools import bounded, until

N = pa.schema({"n": pa.int64()})
Saved = list[tuple[Positions, dict[str, bytes]]]
"""What a checkpoint has of each reader."""


def lines_of(numbers: list[int], header: bool) -> bytes:
    text = "".join(f"{n}\n" if header else f'{{"n":{n}}}\n' for n in numbers)
    return (("n\n" + text) if header else text).encode()


def whole(kind: str, numbers: list[int]) -> bytes:
    table = pa.table({"n": pa.array(numbers, pa.int64())})
    out = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, out, row_group_size=3)
    elif kind in ("arrow", "arrows"):
        make = ipc.new_file if kind == "arrow" else ipc.new_stream
        with make(out, N) as writer:
            writer.write_table(table, max_chunksize=3)
    elif kind == "json":
        out.write(b"[" + b",".join(b'{"n":%d}' % n for n in numbers) + b"]")
    else:
        data = lines_of(numbers, kind.startswith("csv"))
        out.write(gzip.compress(data, mtime=0) if kind.endswith(".gz") else data)
    return out.getvalue()


def added(kind: str, numbers: list[int]) -> bytes:
    """The bytes by which a file grows."""
    data = (
        lines_of(numbers, header=False) if not kind.startswith("csv") else "".join(f"{n}\n" for n in numbers).encode()
    )
    return gzip.compress(data, mtime=0) if kind.endswith(".gz") else data


def opened(path: Any, saved: Saved, readers: int = 1) -> list[FileSource]:
    source = files(path)
    source.scan(N, None)
    found = list(source.readers(readers))
    for at, reader in enumerate(found):
        if saved:
            positions, memory = saved[at]
            reader.recall(memory)
            reader.open(positions)
        else:
            reader.open(None)
    return found


def read(readers: list[FileSource], batches: int | None = None, max_rows: int = 2) -> list[int]:
    found: list[int] = []
    for reader in readers:
        left = batches
        while not reader.exhausted and (left is None or left > 0):
            if (batch := reader.read_batch(max_rows, 0)) is not None:
                assert batch.bad is None
                found += batch.data["n"].to_pylist()
                left = None if left is None else left - 1
    return found


def saved(readers: list[FileSource]) -> Saved:
    return [(reader.positions(), reader.remember()) for reader in readers]


def closed(readers: list[FileSource]) -> None:
    for reader in readers:
        reader.close()


KINDS = ["ndjson", "ndjson.gz", "csv", "csv.gz", "json", "parquet", "arrow", "arrows"]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", [0, 1])
def test_another_file_of_the_name_is_refused_by_its_name(tmp_path: Path, kind: str, which: int, readers: int) -> None:
    """A log that is rotated keeps its name for other rows: its position was used in them, and 13,000 rows were missing."""
    for number in range(3):
        (tmp_path / f"{number}.{kind}").write_bytes(whole(kind, list(range(10 * number, 10 * number + 7))))
    found = opened(tmp_path, [], readers)
    while any(reader.positions()[reader.place] >> 44 < 2 for reader in found):
        read(found, 1)
    kept = saved(found)
    closed(found)
    file = tmp_path / f"{which}.{kind}"
    file.write_bytes(whole(kind, list(range(90, 90 + 7))))
    os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match=f"file '{file}' is not the one that was read") as refused:
        closed(opened(tmp_path, kept, readers))
    assert "--fresh" in refused.value.hint


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_at_the_position_is_looked_at_whatever_its_time_says(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"rows.{kind}"
    file.write_bytes(whole(kind, list(range(10, 17))))
    stamp = file.stat().st_mtime_ns
    found = opened(file, [])
    read(found, 1)
    kept = saved(found)
    closed(found)
    file.write_bytes(whole(kind, list(range(20, 27))))
    os.utime(file, ns=(stamp, stamp))
    with pytest.raises(UserError, match=f"file '{file}' is not the one that was read"):
        opened(file, kept)


def test_a_file_that_was_read_and_is_gone_is_named(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.csv").write_bytes(whole("csv", [1, 2, 3]))
    found = opened(tmp_path, [])
    read(found)
    kept = saved(found)
    (tmp_path / "b.csv").rename(tmp_path / "old")
    with pytest.raises(UserError, match=r"b\.csv' was read before the checkpoint, and is not among the files"):
        opened(tmp_path, kept)
    (tmp_path / "old").rename(tmp_path / "b.csv")
    (tmp_path / "aa.csv").write_bytes(whole("csv", [4]))
    with pytest.raises(UserError, match=r"aa\.csv' of .* comes before .*b\.csv', which was begun"):
        opened(tmp_path, kept)


def test_a_file_that_lost_rows_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.ndjson").write_bytes(whole("ndjson", list(range(1000, 2000))))
    found = opened(tmp_path, [])
    read(found, max_rows=1000)
    kept = saved(found)
    os.truncate(tmp_path / "a.ndjson", 9000)
    with pytest.raises(UserError, match=r"a\.ndjson' is not the one .*: it has 9,000 bytes now, and had 11,000"):
        opened(tmp_path, kept)


@pytest.mark.parametrize("kind", ["ndjson", "csv", "ndjson.gz"])
def test_what_was_added_to_files_that_had_been_read_is_read_once(tmp_path: Path, kind: str) -> None:
    for number in range(4):
        (tmp_path / f"{number}.{kind}").write_bytes(whole(kind, list(range(10 * number, 10 * number + 5))))
    found = opened(tmp_path, [])
    rows = read(found, 10)
    kept = saved(found)
    closed(found)
    assert kept[0][0][str(tmp_path), 0] >> 44 == 3, "it is in the last file"
    for number in (0, 2, 3):
        with (tmp_path / f"{number}.{kind}").open("ab") as file:
            file.write(added(kind, [10 * number + 5, 10 * number + 6, 10 * number + 7]))
    for _ in range(12):  # a stop and a start at each place
        found = opened(tmp_path, kept)
        rows += read(found, 1)
        kept = saved(found)
        closed(found)
    assert sorted(rows) == sorted([*range(8), *range(10, 15), *range(20, 28), *range(30, 38)])


def changes(seed: int, kind: str, folder: Path) -> None:
    """Reads a folder with stops at random places, while files grow and new ones come last, and counts each row."""
    chance, rows, expected = random.Random(seed), list[int](), list[int]()
    names, readers = list[Path](), chance.choice([1, 1, 2, 3])
    kept: Saved = []

    def new(count: int) -> list[int]:
        numbers = list(range(len(expected), len(expected) + count))
        expected.extend(numbers)
        return numbers

    def add_file() -> None:
        names.append(folder / f"{len(names):03d}.{kind}")
        names[-1].write_bytes(whole(kind, new(chance.randint(1, 9))))

    add_file()
    add_file()
    for _ in range(chance.randint(2, 8)):
        found = opened(folder, kept, readers)
        rows += read(found, chance.randint(0, 6), chance.randint(1, 4))
        kept = saved(found)
        if chance.random() < 0.5:  # rows behind the checkpoint, which a crash makes read again
            behind = {at: reader.positions() for at, reader in enumerate(found)}
            read(found, chance.randint(0, 6))
            if chance.random() < 0.5:  # as agents: the memory is newer than the positions
                kept = [(behind[at], reader.remember()) for at, reader in enumerate(found)]
        closed(found)
        for path in names:
            if chance.random() < 0.3:
                with path.open("ab") as file:
                    file.write(added(kind, new(chance.randint(1, 4))))
        if chance.random() < 0.4:
            add_file()
    found = opened(folder, kept, readers)
    rows += read(found)
    closed(found)
    assert sorted(rows) == expected, (seed, kind)


@pytest.mark.one_in(3, "a second of a core each")
@pytest.mark.parametrize("kind", ["ndjson", "csv", "ndjson.gz"])
def test_each_row_counts_once_whatever_grows_between_starts(tmp_path: Path, kind: str) -> None:
    for seed in range(60):
        (tmp_path / str(seed)).mkdir()
        changes(seed, kind, tmp_path / str(seed))


def test_files_that_were_sorted_may_not_be_other_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n\n3\n1\n")
    (tmp_path / "b.csv").write_text("n\n2\n")
    source: Any = files(tmp_path, sort="n")
    source.scan(N, None)
    source.open(None)
    while source.read_batch(2, 1) is None:
        """It reads the files."""
    kept = source.positions(), source.remember()
    source.close()
    (tmp_path / "b.csv").write_text("n\n0\n")
    os.utime(tmp_path / "b.csv", ns=(1, 1))
    again: Any = files(tmp_path, sort="n")
    again.scan(N, None)
    again.recall(kept[1])
    with pytest.raises(
        UserError, match=r"b\.csv' begins with other bytes now, and its rows can be read once more only as"
    ):
        again.open(kept[0])


def test_a_checkpoint_that_knows_nothing_of_its_files_goes_on(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_bytes(whole("csv", [1, 2, 3]))
    found = opened(tmp_path, [])
    rows = read(found, 3)
    kept: Saved = [(found[0].positions(), {})]
    (tmp_path / "a.csv").write_bytes(whole("csv", [4, 5, 6]))
    again = opened(tmp_path, kept)
    assert rows + read(again) == [1, 2, 3, 1, 2, 3]
    assert opened(tmp_path, saved(again)), "and is a checkpoint that knows the file at its position"


@pytest.mark.slow  # half a second of a core
def test_a_file_that_was_read_costs_a_later_checkpoint_nothing(tmp_path: Path) -> None:
    for number in range(1100):
        (tmp_path / f"{number:05d}.ndjson").write_bytes(b'{"n":1}\n')
    found = opened(tmp_path, [])
    read(found, 1050)
    first = found[0].remember()
    read(found, 1)
    second = found[0].remember()
    assert list(first) == list(second) == [("000000", 0), ("000001", 0)]
    assert second["000000", 0] is first["000000", 0], "the block of the first 1,024 files is encoded and stored once"
    assert second["000001", 0] != first["000001", 0]


@pytest.mark.slow  # a second of a core
def test_an_object_is_known_by_its_etag(tmp_path: Path) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        options = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port}&allow_bucket_creation=true"
        filesystem, _ = arrow_fs.FileSystem.from_uri(f"s3://any:any@etags/x?{options}")
        filesystem.create_dir("etags")

        def put(name: str, numbers: list[int]) -> None:
            with filesystem.open_output_stream(f"etags/in/{name}.csv") as out:
                out.write(whole("csv", numbers))

        for name in "ab":
            put(name, [10, 11, 12])
        path = (filesystem, "etags/in")
        found = opened((path), [])
        read(found, 3)
        kept = saved(found)
        read(opened(path, kept))
        put("b", [10, 11, 13])
        with pytest.raises(UserError, match=r"b\.csv' is not the one .*: it has another ETag now"):
            opened(path, kept)
    finally:
        server.stop()


def app_of(url: str, folder: Path, agent: bool) -> tuple[App, Callable[[], list[int]]]:
    """An app that reads a folder beside a topic, so that it goes on when the files are read."""
    app = App("folders", url, checkpoint_dir=folder / "checkpoints", checkpoint_interval="1h")
    app.stream("other", schema={"n": "int64"}).to(NdjsonSink(folder / "other.ndjson"))
    source = files(str(folder / "in"))
    rows: list[int] = []
    if agent:

        @app.agent(source)
        async def read(ctx: Any) -> None:
            rows.append(ctx.message["n"])

    else:
        app.stream(source).map_batches(lambda batch: rows.extend(batch["n"].to_pylist()) or batch).to(
            NdjsonSink(folder / "out.ndjson")
        )
    return app, lambda: rows


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("agent", [False, True])
async def test_an_app_reads_what_was_added_and_refuses_what_was_replaced(
    memory_url: str, tmp_path: Path, agent: bool
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.ndjson").write_bytes(lines_of([10 * number, 10 * number + 1], False))
    app, rows = app_of(memory_url, tmp_path, agent)
    await app.start()
    await until(lambda: len(rows()) == 6)
    await bounded(app.stop())
    with (tmp_path / "in" / "1.ndjson").open("ab") as file:
        file.write(lines_of([12], False))
    (tmp_path / "in" / "3.ndjson").write_bytes(lines_of([30], False))

    app, rows = app_of(memory_url, tmp_path, agent)
    await app.start()
    await until(lambda: sorted(rows()) == [12, 30])
    await bounded(app.stop())
    (tmp_path / "in" / "1.ndjson").write_bytes(lines_of([55, 56, 57], False))

    app, rows = app_of(memory_url, tmp_path, agent)
    with pytest.raises(UserError, match=r"1\.ndjson' is not the one that was read before the checkpoint"):
        await app.start()
    await bounded(app.stop())
