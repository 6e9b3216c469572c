"""Sinks of files that deliver exactly once: a crash at every step, whoever comes next, what is there already."""

import errno
import fcntl
import gzip
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pyarrow import csv, ipc
from pyarrow import parquet as pq

from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import build_records
from sabot.connectors.base import KeepsToken, Token, Track
from sabot.connectors.files import ArrowSink, CsvSink, FileSink, NdjsonSink, ParquetSink
from sabot.connectors.files.exactly_once import Busy, Entry, Ledger
from sabot.errors import AppLocked, TransientError, UserError
from sabot.steps import watch

TRACK = Track("app", "out", "i1")
Parts = list[tuple[int, list[pa.RecordBatch]]]


def rows(first: int, count: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(range(first, first + count), pa.int64())})


PARTS: Parts = [(5, [rows(0, 2), rows(2, 1)]), (6, []), (7, [rows(3, 2)]), (1 << 40, [rows(5, 1)])]
NUMBERS = list(range(6))


class Place:
    """Where a sink of one format and kind writes, and how its output is read from outside."""

    def __init__(self, root: Path, kind: str, **options: Any) -> None:
        name, _, self.kind = kind.rpartition(" ")
        self.root = root
        self.folder = name == "folder"
        self.format = self.kind.partition(".")[0]
        path = f"{root}/parts/" if self.folder else f"{root}/t.{self.kind}"
        if self.folder and self.kind.endswith(".gz"):
            options["compression"] = "gzip"
        self.path = Path(path)
        makers: dict[str, Any] = {"ndjson": NdjsonSink, "csv": CsvSink, "parquet": ParquetSink, "arrow": ArrowSink}
        self.sink: Callable[[], FileSink] = lambda: makers[self.format](path, **options)

    def files(self) -> list[Path]:
        found = sorted(self.path.iterdir()) if self.folder and self.path.exists() else [self.path]
        return [path for path in found if path.exists() and not path.name.startswith(".")]

    def numbers(self) -> list[int]:
        return [number for path in self.files() for number in self.read(path)]

    def read(self, path: Path) -> list[int]:
        if self.format == "parquet":
            table = pq.read_table(path)
        elif self.format == "arrow":
            with ipc.open_file(path) as reader:
                table = reader.read_all()
        else:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            if self.format == "ndjson":
                return [int(line[5:-1]) for line in data.splitlines()]
            table = csv.read_csv(pa.BufferReader(data)) if data else pa.table({"n": pa.array([], pa.int64())})
        found: list[int] = table["n"].to_pylist()
        return found

    def hidden(self) -> list[str]:
        folder = self.path if self.folder else self.root
        return sorted(path.name for path in folder.glob(".*") if not path.name.endswith(".token"))


FORMATS = ["ndjson", "csv", "parquet", "arrow", "ndjson.gz", "csv.gz"]
KINDS = [f"{kind} {name}" for kind in ("file", "folder") for name in FORMATS]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is synced when is looked at by `PowerLoss`, through the steps."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


class Crash(BaseException):
    """The process is dead."""


class Dying:
    """Dies before step `at`, or in the middle of it (`torn`); from then on nothing is done any more."""

    def __init__(self, at: int, *, torn: bool = False) -> None:
        self.at = at
        self.in_the_middle = torn
        self.steps = 0
        self.seen: list[tuple[str, str]] = []
        self.dead = False

    def before(self, name: str, what: str) -> None:
        self.steps += 1
        self.seen.append((name, what))
        self.dead = self.dead or (self.steps == self.at and not self.in_the_middle)
        if self.dead:
            raise Crash

    def after(self, name: str, what: str) -> None:
        if self.dead:
            raise Crash

    def torn(self, name: str, what: str, size: int) -> int:
        if self.steps == self.at and self.in_the_middle:
            self.dead = True
            return size // 2
        return size


class DyingAt(Dying):
    """Dies before the first step of a name."""

    def __init__(self, name: str) -> None:
        super().__init__(0)
        self.name = name

    def before(self, name: str, what: str) -> None:
        if name == self.name:
            self.at = self.steps + 1
        super().before(name, what)


class Failing(Dying):
    """The disk is full at step `at`, and at no other."""

    def before(self, name: str, what: str) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.dead = True
            raise OSError(errno.ENOSPC, "No space left on device")

    def after(self, name: str, what: str) -> None:
        """It goes on."""


@contextmanager
def watching(watcher: Any) -> Iterator[Any]:
    watch(watcher)
    try:
        yield watcher
    finally:
        watch(None)


class PowerLoss(Dying):
    """The machine goes down before step `at`: what was not synced may be there or not, in part too (`seed`; 0: nothing of it).

    Of a folder, what happened to its names since its last sync comes in order, up to some moment.
    """

    def __init__(self, at: int, root: Path, seed: int) -> None:
        super().__init__(at)
        self.random = random.Random(seed) if seed else None
        self.root = root
        self.contents: dict[int, bytes] = {}
        self.names: dict[Path, list[dict[str, int]]] = {root: [{}]}

    def after(self, name: str, what: str) -> None:
        path = Path(what)
        if name == "sync" and not path.is_dir():
            self.contents[path.stat().st_ino] = path.read_bytes()
            return
        if name in ("create", "make folder"):
            self.contents[path.stat().st_ino] = b""
        if name == "make folder":
            self.names[path] = [{}]
        if path != self.root.parent:
            folder = path if name == "sync" else path.parent
            now = {each.name: each.stat().st_ino for each in folder.iterdir()}
            self.names[folder] = [now] if name == "sync" else [*self.names.get(folder, [{}]), now]

    def strike(self) -> None:
        """What the machine finds when it comes back."""
        found: dict[Path, bytes | None] = {}
        now = {path.stat().st_ino: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        for folder, listings in self.names.items():
            listing = self.random.choice(listings) if self.random else listings[0]
            for name, inode in listing.items():
                path = folder / name
                found[path] = None if path in self.names else self.content(inode, now.get(inode))
        shutil.rmtree(self.root)
        self.root.mkdir()
        for path, content in sorted(found.items(), key=lambda each: len(each[0].parts)):
            if content is None:
                path.mkdir()
            elif path.parent.exists():
                path.write_bytes(content)

    def content(self, inode: int, now: bytes | None) -> bytes:
        safe = self.contents[inode]
        if self.random is None or now is None:
            return safe
        to = self.random.choice([0, self.random.randint(0, len(now)), len(now)])
        return now[:to] + safe[to:]


def deliver_rest(sink: FileSink, token: Token | None, parts: Parts, returned: list[int] | None = None) -> None:
    if token is None:
        sink.settle(0)
    for seq, batches in parts:
        if token is None or seq > token.seq:
            sink.deliver(seq, batches)
            if returned is not None:
                returned.append(seq)


def live(place: Place, parts: Parts = PARTS, returned: list[int] | None = None) -> None:
    """What the engine does from a start to the end of the input."""
    sink = place.sink()
    deliver_rest(sink, sink.claim(TRACK), parts, returned)
    sink.finish()
    sink.close()


def dies(place: Place, at: int, parts: Parts = PARTS, *, torn: bool = False) -> bool:
    with watching(Dying(at, torn=torn)):
        try:
            live(place, parts)
        except Crash:
            return True
    return False


def is_whole(place: Place) -> None:
    """A reader sees rows of the beginning, once each."""
    if place.kind in ("ndjson", "csv") and not place.folder:
        return  # its end may be torn until the next claim
    found = place.numbers()
    assert found == NUMBERS[: len(found)]


def sinks(kind: str) -> list[dict[str, Any]]:
    """Options: a folder also with parts of which one gets large enough, and one does not."""
    if kind.startswith("file"):
        return [{}]
    return [{}, {"part_bytes": 300 if kind in ("folder parquet", "folder arrow") else 10}]


# --- a crash at every step


def crash_points(place: Place, parts: Parts = PARTS) -> list[tuple[int, bool]]:
    """Before each step, and in the middle of each write; of many writes of one file in a row the first and the last."""
    place.root.mkdir(exist_ok=True)
    with watching(Dying(0)) as watcher:
        live(place, parts)
    seen = watcher.seen
    assert len(seen) > 8
    inner = {n for n in range(1, len(seen) - 1) if seen[n - 1] == seen[n] == seen[n + 1] and seen[n][0] == "write"}
    points = [(n + 1, False) for n in range(len(seen)) if n not in inner]
    return points + [(at, True) for at, _ in points if seen[at - 1][0] in ("append", "token", "write")]


@pytest.mark.one_in(
    12, "half a second of a core each; the steps of a file, and those of a folder, are the same for every format"
)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_there_once_whatever_step_a_crash_comes_at(kind: str, tmp_path: Path) -> None:
    for number, options in enumerate(sinks(kind)):
        for at, torn in crash_points(Place(tmp_path / f"{number}", kind, **options)):
            place = Place(tmp_path / f"{number}-{at}-{torn}", kind, **options)
            place.root.mkdir()
            assert dies(place, at, torn=torn)
            is_whole(place)
            live(place)
            assert place.numbers() == NUMBERS, (options, at, torn)
            assert place.hidden() == []


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("file")])
def test_a_finished_file_is_gone_on_with_whatever_step_a_crash_comes_at(kind: str, tmp_path: Path) -> None:
    """By an app that was given more input: the rows of a file that cannot be added to are taken over."""
    whole = Place(tmp_path / "whole", kind)
    whole.root.mkdir()
    live(whole)
    more: Parts = [*PARTS, ((1 << 40) + 1, [rows(6, 2)])]
    tried = Place(tmp_path / "tried", kind)
    shutil.copytree(whole.root, tried.root)
    for at, torn in crash_points(tried, more):
        place = Place(tmp_path / f"{at}-{torn}", kind)
        shutil.copytree(whole.root, place.root)
        assert dies(place, at, more, torn=torn)
        live(place, more)
        assert place.numbers() == list(range(8)), (at, torn)
        assert place.hidden() == []


@pytest.mark.one_in(6, "what a machine that goes down takes with it is one function")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.rpartition(" ")[2] in ("ndjson", "arrow", "csv.gz")])
def test_rows_are_there_once_when_the_machine_goes_down(kind: str, tmp_path: Path) -> None:
    """All that a return of `deliver` has promised is there; and so is what was under way, or not at all."""
    for number, options in enumerate(sinks(kind)):
        for at, torn in crash_points(Place(tmp_path / f"{number}", kind, **options)):
            for seed in (0, at) if not torn else ():
                place = Place(tmp_path / f"{number}-{at}-{seed}", kind, **options)
                place.root.mkdir()
                returned: list[int] = []
                with watching(PowerLoss(at, place.root, seed)) as power, pytest.raises(Crash):
                    live(place, returned=returned)
                power.strike()
                token = place.sink().claim(TRACK)
                assert [0 if token is None else token.seq] >= returned[-1:], (options, at, seed)
                live(place)
                assert place.numbers() == NUMBERS, (options, at, seed)
                assert place.hidden() == []


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", ["file ndjson", "file parquet", "folder csv", "folder csv.gz"])
def test_rows_are_there_once_when_the_next_process_dies_too(kind: str, tmp_path: Path) -> None:
    options = sinks(kind)[-1] if kind == "folder csv.gz" else {}
    first = 9
    while True:
        crashed = Place(tmp_path / f"{first}", kind, **options)
        crashed.root.mkdir()
        if not dies(crashed, first, torn=first % 2 == 0):
            break
        second = 1 + first % 4
        while True:
            place = Place(tmp_path / f"{first}-{second}", kind, **options)
            shutil.copytree(crashed.root, place.root)
            alive = dies(place, second)
            if alive:
                live(place)
            assert place.numbers() == NUMBERS, (first, second)
            assert place.hidden() == []
            shutil.rmtree(place.root)
            if not alive:
                break
            second += 4
        first += 3


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("kind", ["file csv", "file arrow", "file ndjson.gz", "folder ndjson", "folder parquet"])
def test_the_same_sink_goes_on_after_a_fault_at_every_step(kind: str, tmp_path: Path) -> None:
    """A disk without room: a TransientError, and the token says whether the part got through."""
    at = 1
    faults: list[str] = []
    while True:
        place = Place(tmp_path / str(at), kind)
        place.root.mkdir()
        sink = place.sink()
        with watching(Failing(at)) as watcher:
            delivered = False
            try:
                deliver_rest(sink, sink.claim(TRACK), PARTS)
                delivered = True
                sink.finish()
            except TransientError as error:
                faults.append(str(error))
                if not delivered:
                    deliver_rest(sink, sink.claim(TRACK), PARTS)
                sink.finish()
        sink.close()
        assert place.numbers() == NUMBERS, at
        assert place.hidden() == []
        if not watcher.dead:
            break
        at += 1
    assert len(faults) == at - 1
    assert all("No space left" in fault for fault in faults)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_parts_and_any_crashes_give_the_rows_once(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    root = tmp_path_factory.getbasetemp() / "any"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    kind = data.draw(st.sampled_from(KINDS))
    options = {"part_bytes": data.draw(st.sampled_from([1, 20, 60, 1000]))} if data.draw(st.booleans()) else {}
    place = Place(root, kind, **(options if kind.startswith("folder") else {}))
    counts = data.draw(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5))
    parts: Parts = []
    total = 0
    for number, sizes in enumerate(counts):
        batches = []
        for size in sizes:
            batches.append(rows(total, size))
            total += size
        parts.append((number + 1, batches))
    for _ in range(data.draw(st.integers(0, 4))):
        with watching(Dying(data.draw(st.integers(1, 60)), torn=data.draw(st.booleans()))):
            try:
                live(place, parts)
            except Crash:
                continue
    live(place, parts)
    assert place.numbers() == list(range(total))
    assert place.hidden() == []


# --- what is seen, and what the token says


@pytest.mark.parametrize("kind", [f"folder {name}" for name in FORMATS] + ["file ndjson", "file csv"])
def test_what_was_delivered_is_seen_at_once_and_given_again_changes_nothing(kind: str, tmp_path: Path) -> None:
    place = Place(tmp_path, kind)
    sink = place.sink()
    assert sink.claim(TRACK) is None
    sink.deliver(1, [rows(0, 3)])
    assert place.numbers() == [0, 1, 2]
    sink.deliver(2, [rows(3, 1), rows(4, 0)])
    sink.deliver(2, [rows(3, 1), rows(4, 0)])
    sink.deliver(1, [rows(0, 3)])
    assert place.numbers() == [0, 1, 2, 3]
    assert len(place.files()) == (2 if place.folder else 1)
    assert sink.claim(TRACK) == Token(2, "i1")
    sink.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_token_is_read_back_by_whoever_claims_next(kind: str, tmp_path: Path) -> None:
    place = Place(tmp_path, kind)
    sink = place.sink()
    assert isinstance(sink, KeepsToken)
    assert sink.claim(TRACK) is None
    assert place.sink().claim(TRACK) is None
    sink = place.sink()
    sink.claim(TRACK)
    sink.settle(0)
    assert sink.claim(TRACK) == Token(0, "i1")
    sink.deliver(3, [])  # no rows, and no file of none
    assert place.files() == [] or place.numbers() == []
    assert sink.claim(TRACK) == Token(3, "i1")
    sink.deliver(4, [rows(0, 1)])
    sink.finish()
    sink.finish()
    sink.close()
    later = place.sink()
    assert later.claim(Track("app", "out", "i2")) == Token(4, "i1")  # what to make of it is not the sink's to say
    later.settle(9)
    later.deliver(10, [rows(1, 1)])
    later.finish()
    later.close()
    assert place.sink().claim(TRACK) == Token(10, "i2")
    assert place.numbers() == [0, 1]


def test_a_part_of_a_folder_waits_until_it_is_large_enough_if_that_is_asked_for(tmp_path: Path) -> None:
    for kind in ("folder ndjson", "folder parquet", "folder csv.gz"):
        place = Place(tmp_path / kind, kind, part_bytes=24)
        place.root.mkdir()
        sink = place.sink()
        sink.claim(TRACK)
        sink.deliver(1, [rows(0, 1)])
        assert place.numbers() == []
        sink.claim(TRACK)
        sink.deliver(2, [rows(1, 2)])
        assert place.numbers() == [0, 1, 2]
        sink.deliver(3, [rows(3, 1)])
        assert place.numbers() == [0, 1, 2]
        sink.close()  # as when the app stops
        assert [place.read(path) for path in place.files()] == [[0, 1, 2], [3]]
        assert place.hidden() == []


def test_a_large_delivery_is_written_as_large_row_groups(tmp_path: Path) -> None:
    sink = ParquetSink(f"{tmp_path}/")
    sink.claim(TRACK)
    sink.deliver(1, [rows(first, 2_000) for first in range(0, 300_000, 2_000)])
    sink.close()
    found = pq.read_metadata(tmp_path / "part-00000.parquet")
    assert [found.row_group(group).num_rows for group in range(found.num_row_groups)] == [264_000, 36_000]


def test_records_are_delivered_as_lines(tmp_path: Path) -> None:
    sink = NdjsonSink(tmp_path / "t.ndjson")
    sink.claim(TRACK)
    sink.deliver(1, [build_records([b'{"a":\n1}', None], None, [0, 0], 0, [0, 0])])
    sink.finish()
    assert (tmp_path / "t.ndjson").read_text() == '{"a": 1}\nnull\n'


def test_an_empty_result_is_a_file_of_the_expected_columns(tmp_path: Path) -> None:
    for kind in KINDS:
        place = Place(tmp_path / kind, kind)
        place.root.mkdir()
        sink = place.sink()
        sink.expect(rows(0, 0).schema)
        sink.claim(TRACK)
        sink.settle(0)
        sink.finish()
        sink.close()
        (path,) = place.files()
        assert place.read(path) == []
        if place.kind == "csv":
            assert path.read_text() == '"n"\n'


# --- two at once


@pytest.mark.parametrize("kind", ["file ndjson", "file parquet", "folder parquet", "folder csv"])
def test_who_claims_last_keeps_the_one_before_out(kind: str, tmp_path: Path) -> None:
    place = Place(tmp_path, kind, **({"part_bytes": 1000} if kind == "folder csv" else {}))
    older, newer = place.sink(), place.sink()
    older.claim(TRACK)
    older.deliver(1, [rows(0, 2)])
    assert newer.claim(TRACK) == Token(1, "i1")
    with pytest.raises(AppLocked, match="another process"):
        older.deliver(2, [rows(7, 2)])
    with pytest.raises(UserError, match="not claimed"):
        older.deliver(2, [rows(7, 2)])
    older.close()
    newer.deliver(2, [rows(2, 1)])
    newer.finish()
    newer.close()
    assert place.numbers() == [0, 1, 2]


def test_the_close_of_one_that_is_out_completes_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path, "folder parquet", part_bytes=1000)
    older, newer = place.sink(), place.sink()
    older.claim(TRACK)
    older.deliver(1, [rows(0, 2)])
    newer.claim(TRACK)
    older.close()
    assert place.numbers() == []
    newer.deliver(2, [rows(2, 1)])
    newer.close()
    assert place.numbers() == [0, 1, 2]


def test_a_process_that_was_stopped_in_a_delivery_keeps_others_waiting(tmp_path: Path) -> None:
    """SIGSTOP between two steps: it may go on at any time, so nobody else can be let in before it is killed."""
    place = Place(tmp_path, "folder parquet")
    stopped = place.sink()
    stopped.claim(TRACK)
    tried = []

    class Looking(Dying):
        def before(self, name: str, what: str) -> None:
            if name in ("write", "rename", "token"):
                watch(None)
                with pytest.raises(TransientError, match="another process is writing into it at this moment"):
                    place.sink().claim(TRACK)
                tried.append(name)
                watch(self)

    with watching(Looking(0)):
        stopped.deliver(1, [rows(0, 2)])
    assert {"write", "rename", "token"} <= set(tried)
    assert place.sink().claim(TRACK) == Token(1, "i1")


def test_a_claim_under_way_keeps_the_one_before_out(tmp_path: Path) -> None:
    place = Place(tmp_path, "file ndjson")
    sink = place.sink()
    sink.claim(TRACK)
    with open(tmp_path / ".t.ndjson.token", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AppLocked, match=r"another process writes the results of sabot\.app\.out now"):
            sink.deliver(1, [rows(0, 1)])


def test_a_second_track_on_one_path_is_named(tmp_path: Path) -> None:
    for kind in ("file ndjson", "folder parquet"):
        place = Place(tmp_path, kind)
        sink = place.sink()
        sink.claim(TRACK)
        sink.deliver(1, [rows(0, 1)])
        other = place.sink()
        with pytest.raises(UserError, match=r"gets the results of sabot\.app\.out, and sabot\.job2\.out would write"):
            other.claim(Track("job2", "out", "x"))
        sink.deliver(2, [rows(1, 1)])
        sink.finish()
        sink.close()
        assert other.claim(Track("job2", "out", "x")) is None  # that one is over: this one adds to it
        other.deliver(1, [rows(2, 1)])
        other.finish()
        other.close()
        assert place.numbers() == [0, 1, 2]


# --- an app that begins, and what is there already


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_app_that_begins_finds_the_end_of_an_earlier_one(kind: str, overwrite: bool, tmp_path: Path) -> None:
    place = Place(tmp_path, kind, overwrite=overwrite)
    live(place)
    again = place.sink()
    again.start_afresh()
    added = place.folder or place.kind in ("ndjson", "csv")
    track = Track("app", "out", "i2")
    assert again.claim(track) == (None if overwrite else Token(1 << 40, "i1"))
    assert place.numbers() == NUMBERS  # another sink may still refuse the start
    again.settle(0)
    assert place.numbers() == ([] if overwrite and added else NUMBERS)
    again.deliver(1, [rows(100, 1)])
    assert again.claim(track) == Token(1, "i2")
    again.deliver(2, [rows(101, 1)])
    again.finish()
    again.close()
    assert place.numbers() == ([100, 101] if overwrite else [*NUMBERS, 100, 101])


@pytest.mark.parametrize("kind", ["file parquet", "file ndjson.gz", "folder ndjson", "folder arrow"])
def test_an_app_that_begins_drops_what_an_earlier_one_left_unfinished(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path, kind, **({"part_bytes": 1000} if kind.startswith("folder") else {}))
    sink = place.sink()
    sink.claim(TRACK)
    sink.deliver(1, [rows(0, 3)])
    again = place.sink()
    again.start_afresh()
    assert again.claim(Track("app", "out", "i2")) == Token(1, "i1")
    assert "an earlier run left unfinished is dropped" not in caplog.text  # another sink may still refuse the start
    again.deliver(2, [rows(10, 1)])
    assert "an earlier run left unfinished is dropped" in caplog.text
    again.finish()
    again.close()
    assert place.numbers() == [10]
    assert place.hidden() == []


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
def test_crashes_while_an_app_begins_with_nothing_leave_nothing_of_the_old(kind: str, tmp_path: Path) -> None:
    old = Place(tmp_path / "old", kind)
    old.root.mkdir()
    live(old)
    at, died = 1, True
    while died:
        place = Place(tmp_path / str(at), kind, overwrite=True)
        shutil.copytree(old.root, place.root)
        died = False
        for watcher in (Dying(at), None):
            sink = place.sink()
            sink.start_afresh()
            with watching(watcher):
                try:
                    assert sink.claim(TRACK) is None
                    sink.settle(0)
                except Crash:
                    died = True
                    continue
            sink.deliver(1, [rows(10, 2)])
            sink.finish()
            sink.close()
            break
        assert place.numbers() == [10, 11]
        at += 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_app_that_begins_with_nothing_does_so_also_if_its_first_delivery_fails(kind: str, tmp_path: Path) -> None:
    place = Place(tmp_path, kind, overwrite=True)
    live(place)
    sink = place.sink()
    sink.start_afresh()
    assert sink.claim(TRACK) is None
    (token,) = place.root.rglob(".*.token")
    with Ledger(token).held(), pytest.raises(TransientError, match="another process is writing into it"):
        sink.settle(0)
    assert sink.claim(TRACK) is None
    sink.deliver(1, [rows(10, 2)])
    sink.finish()
    sink.close()
    assert place.numbers() == [10, 11]


def test_a_file_of_another_run_is_replaced_and_never_mixed_even_by_a_process_that_goes_on(tmp_path: Path) -> None:
    """overwrite, and a crash before the first row: the next process is not told that the app has just begun."""
    place = Place(tmp_path, "file parquet", overwrite=True)
    live(place)
    sink = place.sink()
    sink.start_afresh()
    sink.claim(TRACK)
    sink.settle(0)
    later = place.sink()
    later.claim(TRACK)
    later.deliver(1, [rows(10, 1)])
    assert place.numbers() == NUMBERS
    later.finish()
    later.close()
    assert place.numbers() == [10]


def test_an_empty_run_with_overwrite_leaves_no_older_result(tmp_path: Path) -> None:
    place = Place(tmp_path, "file parquet", overwrite=True)
    live(place)
    sink = place.sink()
    sink.start_afresh()
    sink.claim(TRACK)
    sink.finish()
    sink.close()
    assert place.files() == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_at_least_once_is_gone_on_with_exactly_once_and_back(kind: str, tmp_path: Path) -> None:
    place = Place(tmp_path, kind)
    sink = place.sink()
    sink.open()
    sink.write(Batch(rows(0, 2)))
    sink.flush()
    shutil.copytree(tmp_path, tmp_path / "copy")  # as after a kill
    sink.close()
    place = Place(tmp_path / "copy", kind)
    sink = place.sink()
    assert sink.claim(TRACK) is None
    sink.deliver(1, [rows(2, 1)])
    with watching(DyingAt("token")), pytest.raises(Crash):
        sink.deliver(2, [rows(100, 50)])  # does not count: it comes again, at least once
    sink = place.sink()
    sink.open()
    assert not list(place.path.glob(".*.token") if place.folder else place.root.glob(".*.token"))
    sink.write(Batch(rows(3, 1)))
    sink.flush()
    sink.finish()
    sink.close()
    assert place.numbers() == [0, 1, 2, 3]
    assert place.hidden() == []


def test_parts_that_others_put_there_keep_their_names(tmp_path: Path) -> None:
    place = Place(tmp_path, "folder parquet")
    sink = place.sink()
    sink.claim(TRACK)
    (place.path / "part-00000.parquet").write_bytes(b"mine")
    sink.deliver(1, [rows(0, 1)])
    sink.deliver(2, [rows(1, 1)])
    assert (place.path / "part-00000.parquet").read_bytes() == b"mine"
    assert [place.read(path) for path in place.files()[1:]] == [[0], [1]]
    for path in place.files():
        path.unlink()  # as who moves parts on, once they are there
    sink.claim(TRACK)
    sink.deliver(3, [rows(2, 1)])
    assert [path.name for path in place.files()] == ["part-00003.parquet"]


# --- what cannot be


@pytest.mark.parametrize("kind", ["file ndjson", "file parquet", "folder csv", "folder arrow"])
def test_columns_that_do_not_fit_are_refused_and_leave_no_trace(kind: str, tmp_path: Path) -> None:
    place = Place(tmp_path, kind, **({"part_bytes": 1000} if kind == "folder csv" else {}))
    sink = place.sink()
    sink.claim(TRACK)
    sink.deliver(1, [rows(0, 1)])
    odd: Sequence[pa.RecordBatch] = [rows(1, 1), pa.record_batch({"d": pa.array([1], pa.duration("s"))})]
    with pytest.raises(Exception, match=r"columns d duration|begins with|cannot be written"):
        sink.deliver(2, odd)
    sink.close()
    again = place.sink()
    assert again.claim(TRACK) == Token(1, "i1")
    if kind != "file ndjson" and kind != "folder arrow":
        with pytest.raises(UserError, match=r"columns d duration|begins with"):
            again.deliver(2, odd[1:])
        again.claim(TRACK)
    again.deliver(2, [rows(1, 1)])
    again.finish()
    again.close()
    assert place.numbers() == [0, 1]
    assert place.hidden() == []


def test_what_the_format_cannot_say_is_known_at_the_first_delivery(tmp_path: Path) -> None:
    interval = pa.record_batch([pa.array([None], pa.month_day_nano_interval())], names=["i"])
    sink = ParquetSink(tmp_path / "t.parquet")
    sink.claim(TRACK)
    with pytest.raises(UserError, match=r"t\.parquet': its format cannot represent a value"):
        sink.deliver(1, [interval])
    assert sink.claim(TRACK) is None


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("file parquet", pa.month_day_nano_interval()),
        ("folder csv", pa.list_(pa.int64())),
        ("file ndjson", pa.duration("s")),
    ],
)
def test_columns_that_are_expected_and_cannot_be_said_are_known_before_a_row_comes(
    kind: str, column: pa.DataType, tmp_path: Path
) -> None:
    place = Place(tmp_path, kind)
    sink = place.sink()
    sink.expect(pa.schema([("c", column)]))
    with pytest.raises((UserError, TypeError), match=r"cannot (represent a value|be written as)"):
        sink.claim(TRACK)
    assert place.files() == []


def test_a_text_file_that_lost_what_was_delivered_stops_the_app(tmp_path: Path) -> None:
    place = Place(tmp_path, "file ndjson")
    sink = place.sink()
    sink.claim(TRACK)
    sink.deliver(1, [rows(0, 2)])
    os.truncate(place.path, 10)
    with pytest.raises(UserError, match=r"16 bytes were delivered into it, and it has 10.*\.token"):
        place.sink().claim(TRACK)
    place.path.unlink()
    with pytest.raises(UserError, match="it is gone") as gone:
        place.sink().claim(TRACK)
    assert f"remove its token, '{place.path.parent}/.{place.path.name}.token'" in gone.value.hint
    afresh = place.sink()
    afresh.start_afresh()  # who removes the file and starts afresh means it
    afresh.claim(TRACK)
    afresh.deliver(2, [rows(5, 1)])
    assert place.numbers() == [5]


def test_rows_that_somebody_else_adds_meanwhile_are_not_written_into(tmp_path: Path) -> None:
    place = Place(tmp_path, "file ndjson")
    sink = place.sink()
    sink.claim(TRACK)
    sink.deliver(1, [rows(0, 1)])
    with place.path.open("ab") as file:
        file.write(b"mine\n")
    with pytest.raises(TransientError, match="another process writes into it"):
        sink.deliver(2, [rows(1, 1)])


def test_a_damaged_journal_or_token_stops_the_app(tmp_path: Path) -> None:
    place = Place(tmp_path, "file parquet")
    sink = place.sink()
    sink.claim(TRACK)
    sink.deliver(1, [rows(0, 20)])
    sink.deliver(2, [rows(20, 20)])
    journal = tmp_path / ".t.parquet.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-30] + b"x" + whole[-29:])
    with pytest.raises(UserError, match=r"journal' is damaged: of \d+ bytes that were delivered \d+ can be read"):
        sink.finish()
    assert place.files() == []
    journal.write_bytes(whole)
    token = tmp_path / ".t.parquet.token"
    token.write_bytes(bytes(20_000))
    with pytest.raises(UserError, match="stores what was delivered, is damaged or was not written by Sabot"):
        place.sink().claim(TRACK)
    token.write_bytes(b"my diary")
    with pytest.raises(UserError, match="was not written by Sabot"):
        place.sink().claim(TRACK)


def test_a_folder_that_is_removed_has_no_token(tmp_path: Path) -> None:
    place = Place(tmp_path, "folder parquet")
    sink = place.sink()
    sink.claim(TRACK)
    sink.deliver(1, [rows(0, 1)])
    shutil.rmtree(place.path)
    with pytest.raises(TransientError, match="No such file"):
        sink.deliver(2, [rows(1, 1)])
    assert sink.claim(TRACK) is None


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/t\.parquet' cannot be written"):
        ParquetSink(tmp_path / "file" / "t.parquet").claim(TRACK)
    with pytest.raises(UserError, match="not claimed"):
        NdjsonSink(tmp_path / "t.ndjson").settle(1)


# --- the token


@given(st.lists(st.integers(0, 1 << 60), max_size=5), st.integers(0, 1 << 61), st.data())
@settings(max_examples=60, deadline=None)
def test_a_torn_write_of_the_token_leaves_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], last: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "torn.token"
    path.unlink(missing_ok=True)
    ledger = Ledger(path)
    entry = Entry(lane="ü" * data.draw(st.integers(0, 200)))
    with ledger.held(create=True):
        for number in numbers:
            entry = ledger.write(replace(entry, seq=number))
    keep = data.draw(st.integers(0, 300))

    class Tearing(Dying):
        def torn(self, name: str, what: str, size: int) -> int:
            self.dead = True
            return min(keep, size)

    whole = False
    with watching(Tearing(0)):
        try:
            with ledger.held():
                ledger.write(replace(entry, seq=last))
        except Crash:
            pass
    with ledger.held():
        found = ledger.read()
        known = [] if found is None else [found.seq]
        whole = known == [last] and found is not None and found.turn == len(numbers)
        assert whole or known == numbers[-1:]
        again = ledger.write(replace(found or Entry(), seq=7))
        assert ledger.read() == again


def test_the_token_is_read_by_one_at_a_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "t.token")
    with ledger.held(create=True), pytest.raises(Busy), Ledger(ledger.path).held():
        pass
    with ledger.held():
        assert ledger.read() is None


@pytest.mark.parametrize("ready", ["../victim", "/etc/passwd", "..", "a/b", "a\0b"])
def test_a_token_that_names_a_file_elsewhere_counts_for_nothing(tmp_path: Path, ready: str) -> None:
    """A rename that it asks for would put the file of somebody else in the place of the results."""
    ledger = Ledger(tmp_path / "t.token")
    with ledger.held(create=True):
        ledger.write(Entry(lane="out", ready="rows.parquet"))
        ledger.write(Entry(lane="out", ready=ready, turn=0))
        found = ledger.read()
        assert found is not None
        assert found.ready == "rows.parquet"
    known = ledger.peek()
    assert known == found
