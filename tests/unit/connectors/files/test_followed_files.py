"""A folder that goes on, `files("in/", follow="10s")`: which rows are new, whatever happens to the names of their files."""

import asyncio
import gzip
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs as arrow_fs
from pyarrow import ipc
from pyarrow import parquet as pq

from sabot import App, NdjsonSink, UserError
from sabot.clock import ManualClock
from sabot.connectors.base import Positions
from sabot.connectors.files import FileSource, files, followed, watched
from sabot.connectors.files.followed import FollowedFiles
from tools.agent_tools import bounded, until

FEW = 100  # rows of a batch


def lines(*numbers: int) -> str:
    return "".join(f"{json.dumps({'n': n})}\n" for n in numbers)


@dataclass
class Follower:
    """A source that follows a path, with a clock that is moved by hand, and what it has read."""

    path: str | os.PathLike[str]
    options: dict[str, Any] = field(default_factory=dict)
    schema: pa.Schema | None = field(default_factory=lambda: pa.schema({"n": pa.int64()}))
    clock: ManualClock = field(default_factory=ManualClock)
    rows: list[Any] = field(default_factory=list)
    bad: list[tuple[str, bytes]] = field(default_factory=list)
    kept: tuple[Mapping[str, bytes], Positions, int] | None = None

    def __post_init__(self) -> None:
        self.source = self.opened(None)

    def opened(self, positions: Positions | None, memory: Mapping[str, bytes] | None = None) -> FileSource:
        source = files(self.path, **{"follow": "10s", **self.options})
        assert isinstance(source, FollowedFiles)
        source.clock = self.clock
        source.scan(self.schema, None)
        if memory is not None:
            source.recall(memory)
        source.open(positions)
        return source

    def step(self, rows: int = FEW) -> bool:
        batch = self.source.read_batch(rows, 0)
        if batch is None:
            return False
        assert batch.offsets == self.source.positions()
        assert batch.num_rows <= rows
        self.rows += [row["n"] if list(row) == ["n"] else row for row in batch.data.to_pylist()]
        if batch.bad is not None:
            columns = batch.bad.column("reason").to_pylist(), batch.bad.column("payload").to_pylist()
            self.bad += list(zip(*columns, strict=True))
        return True

    def look(self, seconds: float = 10) -> list[Any]:
        """The rows that a look finds, after so many seconds."""
        self.clock.advance(seconds)
        before = len(self.rows)
        while self.step() or any(
            self.source.lag().values()
        ):  # on a busy machine a call gives up before it comes to rows
            continue
        return self.rows[before:]

    def checkpoint(self) -> None:
        self.kept = self.source.remember(), self.source.positions(), len(self.rows)

    def crash(self) -> None:
        """What was read since the last checkpoint has never been."""
        assert self.kept is not None
        memory, positions, rows = self.kept
        self.source.close()
        del self.rows[rows:]
        self.source = self.opened(positions, memory)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (place := tmp_path / "in").mkdir()
    return place


# -- what is new ---------------------------------------------------------------------------------------------------------


def test_files_that_come_later_are_read_once_in_the_order_of_their_times(folder: Path) -> None:
    (folder / "b.ndjson").write_text(lines(1, 2))
    follower = Follower(folder)
    assert follower.look(0) == [1, 2]
    for name, numbers, at in (("z", (3,), 100), ("a", (5,), 300), ("m", (4,), 200)):
        (folder / f"{name}.ndjson").write_text(lines(*numbers))
        os.utime(folder / f"{name}.ndjson", (at, at))
    assert follower.look(9) == []  # no look is due yet
    assert follower.look(1) == [3, 4, 5]
    assert follower.look() == []
    assert not follower.source.exhausted
    assert follower.source.lag() == {(follower.source.name, 0): 0}


def test_a_line_that_grows_is_read_when_its_line_break_is_there(folder: Path) -> None:
    (path := folder / "a.ndjson").write_text('{"n": 1}\n{"n"')
    follower = Follower(folder)
    assert follower.look(0) == [1]
    for text, found in ((": 2", []), ("0}\n", [20]), ('{"n": 3}\n{"n": 4}\n{', [3, 4])):
        with path.open("a") as file:
            file.write(text)
        assert follower.look() == found
    assert follower.bad == []


def test_a_line_without_its_line_break_is_read_when_its_file_has_not_changed_for_a_minute(folder: Path) -> None:
    (path := folder / "a.ndjson").write_text('{"n": 1}\n{"n": 2}')
    follower = Follower(folder)
    assert follower.look(0) == [1]
    assert follower.look(50) == []
    assert follower.look() == [2]
    with path.open("a") as file:
        file.write('\n{"n": 3}\n')
    assert follower.look() == [3]
    assert follower.bad == []


def test_the_rest_of_a_line_that_was_taken_as_whole_is_a_dead_letter(folder: Path) -> None:
    (path := folder / "a.csv").write_text("n\n1\n12")
    follower = Follower(folder)
    assert follower.look(0) == [1]
    assert follower.look(60) == [12]
    with path.open("a") as file:
        file.write("34\n5\n")
    assert follower.look() == [5]
    ((reason, payload),) = follower.bad
    assert "the rest of a line" in reason
    assert payload == b"34\n"


def test_a_quoted_line_break_does_not_end_a_record_of_csv(folder: Path) -> None:
    (path := folder / "a.csv").write_text('n,text\n1,"a\nb"\n2,"c\n')
    follower = Follower(folder, schema=None)
    assert follower.look(0) == [{"n": 1, "text": "a\nb"}]
    with path.open("a") as file:
        file.write('d"\n3,e\n')
    assert follower.look() == [{"n": 2, "text": "c\nd"}, {"n": 3, "text": "e"}]


def test_a_header_of_csv_that_is_not_whole_is_waited_for(folder: Path) -> None:
    (path := folder / "a.csv").write_text("number,n")
    follower = Follower(folder)
    assert follower.look(0) == []
    with path.open("a") as file:
        file.write("\n7,1\n")
    assert follower.look() == [1]


def parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path)


def arrow(table: pa.Table, path: Path) -> None:
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def gzipped(table: pa.Table, path: Path) -> None:
    path.write_bytes(gzip.compress(lines(*table["n"].to_pylist()).encode()))


def array(table: pa.Table, path: Path) -> None:
    path.write_text(json.dumps(table.to_pylist()))


WHOLE: dict[str, Callable[[pa.Table, Path], None]] = {
    "parquet": parquet,
    "arrow": arrow,
    "ndjson.gz": gzipped,
    "json": array,
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_that_is_copied_piece_by_piece_is_read_once_when_it_is_whole(folder: Path, kind: str) -> None:
    table = pa.table({"n": range(10_000)})
    WHOLE[kind](table, whole := folder.parent / f"whole.{kind}")
    data, path = whole.read_bytes(), folder / f"a.{kind}"
    follower = Follower(folder, {"format": kind.split(".")[0].replace("json", "ndjson").replace("ndnd", "nd")})
    for part in range(5):
        path.write_bytes(data[: (part + 1) * len(data) // 5])
        follower.look()
        if part == 2:
            follower.checkpoint()
            follower.crash()
    assert follower.rows == list(range(10_000))
    assert follower.bad == []
    assert follower.look(100) == []


@pytest.mark.parametrize("kind", ["parquet", "arrow", "ndjson.gz"])
def test_a_file_that_stays_damaged_for_a_minute_is_an_error_with_its_name(folder: Path, kind: str) -> None:
    WHOLE[kind](pa.table({"n": range(1000)}), path := folder / f"a.{kind}")
    path.write_bytes(path.read_bytes()[:-9])
    follower = Follower(folder, {"format": kind.split(".")[0]})
    follower.look(0)
    follower.look(50)
    with pytest.raises(UserError, match=f"a.{kind}"):
        follower.look(60)


# -- files that change their names -----------------------------------------------------------------------------------------


def test_a_log_that_is_rotated_among_the_files_is_neither_read_twice_nor_skipped(folder: Path) -> None:
    (folder / "app.ndjson").write_text(lines(1, 2))
    follower = Follower(folder)
    assert follower.look(0) == [1, 2]
    with (folder / "app.ndjson").open("a") as file:
        file.write(lines(3))
    (folder / "app.ndjson").rename(folder / "app-1.ndjson")
    (folder / "app.ndjson").write_text(lines(4))
    assert follower.look() == [3, 4]
    (folder / "app-1.ndjson").rename(folder / "app-2.ndjson")
    (folder / "app.ndjson").rename(folder / "app-1.ndjson")
    (folder / "app.ndjson").write_text(lines(5))
    assert follower.look() == [5]


def test_one_log_is_read_on_under_the_name_that_rotation_has_given_to_it(folder: Path) -> None:
    (path := folder / "app.ndjson").write_text(lines(1))
    follower = Follower(path)
    assert follower.look(0) == [1]
    with path.open("a") as writer:  # which keeps the file open, as a program does until it is told
        writer.write(lines(2))
        writer.flush()
        path.rename(folder / "app.ndjson.1")
        path.write_text(lines(4))
        assert sorted(follower.look()) == [2, 4]
        writer.write(lines(3))
    assert follower.look() == [3]
    assert follower.bad == []


def test_a_rotation_while_the_app_was_down_loses_nothing(folder: Path) -> None:
    (path := folder / "app.ndjson").write_text(lines(1))
    follower = Follower(path)
    follower.look(0)
    follower.checkpoint()
    with path.open("a") as file:
        file.write(lines(2))
    path.rename(folder / "app.ndjson.1")
    path.write_text(lines(3))
    follower.crash()
    follower.look(0)
    assert sorted(follower.rows) == [1, 2, 3]


def test_a_file_that_another_one_replaces_is_read_as_a_new_one(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (folder / "a.ndjson").write_text(lines(1, 2))
    follower = Follower(folder)
    assert follower.look(0) == [1, 2]
    (folder / ".new").write_text(lines(3))
    (folder / ".new").rename(folder / "a.ndjson")
    assert follower.look() == [3]
    assert "a.ndjson is another file now" in caplog.text


def test_a_file_that_is_cut_off_is_read_as_a_new_one_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "a.ndjson").write_text(lines(1, 2, 3))
    follower = Follower(folder)
    assert follower.look(0) == [1, 2, 3]
    with (folder / "a.ndjson").open("r+") as file:  # the same inode
        file.truncate(0)
        file.write(lines(4))
    follower.look()
    follower.look()
    assert follower.rows == [1, 2, 3, 4]
    assert "a.ndjson was cut off (copytruncate)" in caplog.text


def test_a_parquet_file_that_is_written_anew_in_its_place_is_read_again(folder: Path) -> None:
    pq.write_table(pa.table({"n": [1, 2]}), folder / "a.parquet")
    follower = Follower(folder)
    assert follower.look(0) == [1, 2]
    os.utime(folder / "a.parquet", (1, 1))
    assert follower.look() == []  # the same rows with another time
    pq.write_table(pa.table({"n": [3, 4, 5]}), folder / "a.parquet")
    follower.look()
    follower.look()
    assert follower.rows == [1, 2, 3, 4, 5]


def test_files_with_the_same_rows_are_different_files(folder: Path) -> None:
    (folder / "a.ndjson").write_text(lines(1))
    follower = Follower(folder)
    assert follower.look(0) == [1]
    (folder / "b.ndjson").write_text(lines(1))
    assert follower.look() == [1]
    (folder / "a.ndjson").unlink()
    (folder / "c.ndjson").write_text(lines(1))  # perhaps with the inode of the one that is gone
    os.utime(folder / "c.ndjson", (5, 5))
    assert follower.look() == [1]


# -- files that are gone ---------------------------------------------------------------------------------------------------


def test_a_file_that_was_read_may_be_removed(folder: Path) -> None:
    (folder / "a.ndjson").write_text(lines(1))
    follower = Follower(folder)
    follower.look(0)
    (folder / "a.ndjson").unlink()
    (folder / "b.ndjson").write_text(lines(2))
    follower.look()
    follower.look()
    follower.checkpoint()
    follower.crash()
    follower.look()
    assert (follower.rows, follower.bad) == ([1, 2], [])


def test_a_file_that_is_gone_before_it_was_read_is_a_dead_letter_with_its_name(folder: Path) -> None:
    (folder / "a.ndjson").write_text(lines(1))
    follower = Follower(folder, {"format": "ndjson"})
    follower.look(0)
    follower.checkpoint()
    with (folder / "a.ndjson").open("a") as file:
        file.write(lines(2))
    follower.look()
    (folder / "a.ndjson").unlink()
    follower.crash()  # the checkpoint has only the first row
    (folder / "b.ndjson").write_text('{"n"')
    follower.look()
    (folder / "b.ndjson").unlink()
    for _ in range(3):
        follower.look()
    assert [reason.partition(":")[0] for reason, _ in follower.bad] == ["the file is gone, and was not read"]


def test_a_folder_that_is_away_for_some_time_brings_no_row_twice(folder: Path) -> None:
    for n in range(5):
        (folder / f"{n}.ndjson").write_text(lines(n))
    follower = Follower(folder, {"format": "ndjson"})
    assert len(follower.look(0)) == 5
    folder.rename(away := folder.with_name("away"))
    assert follower.look() == []  # it cannot be listed
    folder.mkdir()  # a place where nothing is mounted
    for _ in range(5):
        assert follower.look() == []
    follower.checkpoint()
    follower.crash()
    folder.rmdir()
    away.rename(folder)
    (folder / "5.ndjson").write_text(lines(5))
    assert follower.look() == [5]


@pytest.mark.slow  # half a second of a core
def test_what_is_kept_of_files_that_are_gone_has_an_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_GONE", 20)
    follower = Follower(folder, {"format": "ndjson"})
    sizes = []
    for n in range(1500):
        (folder / f"{n}.ndjson").write_text(lines(n))
        follower.look()
        (folder / f"{n}.ndjson").unlink()
        if n % 500 == 499:
            sizes.append(sum(map(len, follower.source.remember().values())))
    assert follower.rows == list(range(1500))
    assert sizes[2] < 1.5 * sizes[1] < 100_000
    follower.look()
    follower.look()
    follower.clock.advance("8d")
    follower.look()
    assert len(follower.source.remember()) == 1


# -- where they are --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["*.ndjson", "sub*/a.ndjson", "**/*.ndjson"])
def test_a_glob_is_matched_anew_at_each_look(folder: Path, path: str) -> None:
    (folder / "sub1").mkdir()
    follower = Follower(folder / path, {"format": "ndjson"})
    assert follower.look(0) == []
    (folder / "sub2" / "deeper").mkdir(parents=True)
    for n, name in enumerate(["a.ndjson", "_b.ndjson", ".c.ndjson", "d.txt", "sub1/a.ndjson", "sub2/deeper/e.ndjson"]):
        (folder / name).write_text(lines(n))
    expected = {"*.ndjson": [0, 1], "sub*/a.ndjson": [4], "**/*.ndjson": [0, 1, 4, 5]}
    assert sorted(follower.look()) == expected[path]


def test_a_folder_is_read_without_hidden_files_and_with_the_columns_of_its_folders(folder: Path) -> None:
    schema = pa.schema({"n": pa.int64(), "day": pa.string()})
    follower = Follower(folder, {"format": "ndjson"}, schema)
    assert follower.look(0) == []
    for name in (".tmp", "_new", "day=mon", "day=mon/.new"):
        (folder / name).mkdir()
        (folder / name / "a.ndjson").write_text(lines(1))
    assert follower.look() == [{"n": 1, "day": "mon"}]
    (folder / "day=tue").mkdir()
    (folder / "day=tue" / "a.ndjson").write_text(lines(2))
    assert follower.look() == [{"n": 2, "day": "tue"}]


def test_one_file_may_come_later(folder: Path) -> None:
    follower = Follower(folder / "a.ndjson")
    assert follower.look(0) == []
    (folder / "a.ndjson").write_text(lines(1))
    (folder / "b.ndjson").write_text(lines(2))
    assert follower.look() == [1]


def test_objects_of_a_store_are_read_once_and_anew_when_they_were_written_again(folder: Path) -> None:
    store = arrow_fs.SubTreeFileSystem(str(folder), arrow_fs.LocalFileSystem())
    follower = Follower((store, "in"), {"format": "ndjson"})  # type: ignore[arg-type]
    assert follower.look(0) == []
    (folder / "in").mkdir()
    (folder / "in" / "a.ndjson").write_text(lines(1))
    (folder / "in" / "b.ndjson").write_text('{"n": 2}')
    assert sorted(follower.look()) == [1, 2]
    follower.checkpoint()
    follower.crash()
    os.utime(folder / "in" / "a.ndjson", (9, 9))
    assert follower.look() == []
    (folder / "in" / "a.ndjson").write_text(lines(30))
    follower.look()
    follower.look()
    assert sorted(follower.rows) == [1, 2, 30]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"follow": 0}, "follow"),
        ({"follow": "soon"}, "'soon' is no duration"),
        ({"follow": "1s", "sort": "n"}, "sort='n' needs all files"),
        ({"follow": "1s"}, "has no file yet, whose ending would name the format"),
    ],
)
def test_what_cannot_be_followed_is_refused(folder: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        files(folder, **options)


def test_a_place_that_is_not_there_is_refused_at_the_start(folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Follower(folder / "nowhere", {"format": "csv"})
    source = files(folder, "csv", follow="1s")
    with pytest.raises(UserError, match="has no file yet, and the columns are those of the first one"):
        source.infer_schema()


def test_a_checkpoint_of_a_source_that_ends_is_refused_and_so_is_the_other_way_round(folder: Path) -> None:
    (folder / "a.ndjson").write_text(lines(1))
    follower, ending = Follower(folder), files(folder)
    follower.look(0)
    ending.recall(follower.source.remember())
    with pytest.raises(UserError, match="as they are followed"):
        ending.open(follower.source.positions())
    ending.open(None)
    again = files(folder, follow="1s")
    again.recall(ending.remember())
    with pytest.raises(UserError, match="is not one of files that are followed"):
        again.open(ending.positions())


# -- in an app -------------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("word", ["python", "sql"])
async def test_an_app_goes_on_with_the_files_that_came_while_it_was_down(
    tmp_path: Path, folder: Path, word: str
) -> None:
    out, clock = tmp_path / "out.ndjson", ManualClock()

    def program(parallelism: int) -> App:
        app = App("goes on", checkpoint_dir=tmp_path / "checkpoints", clock=clock, parallelism=parallelism)
        if word == "python":
            app.stream(files(folder, follow="10s")).select("n", "day").to(NdjsonSink(out))
        else:
            app.sql(f"""
                CREATE TABLE numbers (n BIGINT, `day` STRING) PARTITIONED BY (`day`) WITH ('connector' = 'filesystem',
                    'path' = '{folder}', 'format' = 'json', 'source.monitor-interval' = '10 s');
                CREATE TABLE found (n BIGINT, `day` STRING) WITH ('connector' = 'filesystem', 'path' = '{out}',
                    'format' = 'json', 'source.monitor-interval' = '10 s');
                INSERT INTO found SELECT n, `day` FROM numbers;
            """)
        return app

    def put(day: str, *numbers: int) -> None:
        (folder / f"day={day}").mkdir(exist_ok=True)
        with (folder / f"day={day}" / "a.ndjson").open("a") as file:
            file.write(lines(*numbers))

    def read(app: App) -> int:
        figures = app.statistics()["streams"]
        return sum(each["input"].get("rows_in", 0) for each in figures.values() if "input" in each)

    async def run(app: App, rows: int, *numbers: int) -> None:
        running = asyncio.ensure_future(app.run())
        await until(lambda: running.done() or read(app) >= rows - len(numbers), "the rows that were there")
        put("mon", *numbers)
        clock.advance(10)
        await until(lambda: running.done() or read(app) >= rows, "the rows that came")
        await bounded(app.stop())
        await bounded(running)

    put("mon", 1, 2)
    await run(program(1), 3, 3)
    put("tue", 4)
    (folder / "day=mon" / "a.ndjson").rename(folder / "day=mon" / "b.ndjson")
    await run(program(2), 3, 5, 6)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    days = {4: "tue"}
    assert sorted((row["n"], row["day"]) for row in rows) == [(n, days.get(n, "mon")) for n in range(1, 7)]


# -- many files ------------------------------------------------------------------------------------------------------------


def test_a_look_asks_few_of_many_known_files_for_their_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_COLD", 10)
    for n in range(50):
        (folder / f"{n:02}.ndjson").write_text(lines(n))
    follower = Follower(folder)
    assert len(follower.look(0)) == 50
    follower.look(700)  # all are cold from now on
    asked: list[str] = []
    facts = watched.Listed.facts
    monkeypatch.setattr(watched.Listed, "facts", lambda each: (asked.append(each.path), facts(each))[1])
    with (folder / "49.ndjson").open("a") as file:
        file.write(lines(100))
    looks = []
    for _ in range(5):
        asked.clear()
        follower.look()
        looks.append(len(asked))
    assert max(looks) <= 12
    assert follower.rows[50:] == [100]


# -- at random -------------------------------------------------------------------------------------------------------------


class Writer:
    """Writes rows with numbers of their own, and does to their files whatever programs do."""

    def __init__(self, folder: Path, rng: random.Random, kind: str) -> None:
        self.folder, self.rng, self.kind = folder, rng, kind
        self.numbers: Iterator[int] = iter(range(1, 1_000_000))
        self.written: list[int] = []
        self.logs: dict[Path, tuple[bytes, list[int]]] = {}  # the bytes that are still to be written, and its rows
        self.made = 0

    def text(self, n: int) -> bytes:
        if self.kind == "ndjson":
            return f"{json.dumps({'n': n, 'text': 'x' * self.rng.choice([0, 5, 3000])})}\n".encode()
        text = self.rng.choice(["", "a", "b\n" * 40, 'c""d'])
        return f'{n},"{text}"\n'.encode()

    def name(self, ending: str | None = None) -> Path:
        self.made += 1
        place = self.folder / self.rng.choice(["", "", "sub"])
        place.mkdir(exist_ok=True)
        return place / f"{self.rng.randrange(100):02}-{self.made}.{ending or self.kind}"

    def act(self, safe: set[int]) -> None:
        """`safe`: the rows that a checkpoint covers, whose files may be removed."""
        act = self.rng.choice(["create", "append", "append", "piece", "piece", "rotate", "rename", "copy in", "remove"])
        if act == "create" or not self.logs:
            self.logs[self.name()] = (b"" if self.kind == "ndjson" else b"n,text\n"), []
            return
        path = self.rng.choice(list(self.logs))
        rest, rows = self.logs[path]
        if act in ("append", "piece"):
            for _ in range(self.rng.randrange(1, 5)):
                rest += self.text(n := next(self.numbers))
                rows.append(n)
                self.written.append(n)
            end = len(rest) if act == "append" else self.rng.randrange(len(rest) + 1)
            with path.open("ab") as file:
                file.write(rest[:end])
            self.logs[path] = rest[end:], rows
        elif act in ("rotate", "rename") and path.exists():
            known = path.suffix != ".1" and not safe.isdisjoint(rows)  # the new name is none of those that are read
            new = path.with_name(path.name + ".1") if act == "rotate" and known else self.name()
            self.logs[path.rename(new)] = self.logs.pop(path)
        elif act == "copy in":
            rows = [next(self.numbers) for _ in range(self.rng.randrange(5))]
            text = (b"" if self.kind == "ndjson" else b"n,text\n") + b"".join(map(self.text, rows))
            hidden = self.folder / ".copy"
            hidden.write_bytes(text)
            self.logs[hidden.rename(self.name())] = b"", rows
            self.written += rows
        elif act == "remove" and rows and not rest and path.exists() and safe.issuperset(rows):
            path.unlink()
            del self.logs[path]

    def close(self) -> None:
        for path, (rest, _) in self.logs.items():
            with path.open("ab") as file:
                file.write(rest)


@pytest.mark.one_in(4, "half a second of a core each")
@pytest.mark.parametrize("kind", ["ndjson", "csv"])
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 60))])
def test_each_row_comes_once_whatever_is_done_to_its_file(
    folder: Path, seed: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "_HOT_SECONDS", float("inf"))  # a rotated log is followed while its writer may have it
    monkeypatch.setattr(
        followed, "_SETTLED_SECONDS", float("inf")
    )  # lines of this writer may be half written for minutes
    rng = random.Random(f"{seed} {kind}")
    schema = pa.schema({"n": pa.int64()})
    writer, follower = Writer(folder, rng, kind), Follower(folder, {"format": kind}, schema)
    follower.checkpoint()
    safe: set[int] = set()
    for _ in range(150):
        for _ in range(rng.randrange(4)):
            writer.act(safe)
        follower.clock.advance(rng.choice([0, 3, 10, 10]))
        for _ in range(rng.randrange(6)):
            follower.step(rng.choice([1, 2, FEW]))
        if rng.random() < 0.15:
            follower.checkpoint()
            safe = set(follower.rows)
        if rng.random() < 0.08:
            follower.crash()
    writer.close()
    for _ in range(4):
        follower.look()
    assert follower.bad == []
    assert sorted(follower.rows) == sorted(writer.written)


def test_a_checkpoint_that_names_a_file_elsewhere_gives_none_of_its_rows(folder: Path, tmp_path: Path) -> None:
    """Whoever could write the checkpoints of an app had any file of the machine read as rows of its folder."""
    (outside := tmp_path / "no").mkdir()
    (outside / "a.ndjson").write_text(lines(666))
    os.link(outside / "a.ndjson", folder / "a.ndjson")  # the inode is known too
    (folder / "b.ndjson").write_text(lines(1))
    follower = Follower(folder)
    memory = follower.source.remember()
    follower.source.close()
    (folder / "a.ndjson").unlink()
    assert any(b"/in/a.ndjson" in data for data in memory.values())
    forged = {place: data.replace(b"/in/a.ndjson", b"/no/a.ndjson") for place, data in memory.items()}
    follower.source = follower.opened(follower.source.positions(), forged)
    assert [follower.look(seconds) for seconds in (0, 10, 10)] == [[1], [], []]
