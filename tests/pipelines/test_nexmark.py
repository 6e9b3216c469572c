"""Nexmark's queries over generated events, against DuckDB: in several threads, with barriers, and after crashes."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, Batch, Source, UserError
from sabot.testing import BARRIER, CRASH, END, ListSink, ManualClock, ScriptedSource, run
from tools.source_tree import PROJECT

sys.path.append(str(PROJECT / "benchmarks"))
from nexmark.generator import SCHEMAS, Config, Generator, count_rows
from nexmark.oracle import Oracle
from nexmark.run import QUERIES, Settings, build, measure
from nexmark.source import NexmarkSource
from nexmark.sql_queries import query_of
from nexmark.streams import Nexmark, write_side

EVENTS = 6_000
SLICE = 500  # events of a batch
BARRIER_EVENTS = 2_000
# Half a minute, so that windows and sessions end and auctions expire, and over midnight.
CONFIG = Config(rate=200, start_ms=1_436_918_400_000 + 86_390_000)
WITHOUT_BIDS = ("q3", "q8")  # queries that read people and auctions alone
COMPARED = [query for query in QUERIES if query != "q12"]


def generator_of(seed: int) -> Generator:
    return Generator(seed, CONFIG)


def pieces(generator: Generator, kind: str, events: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(the event behind it, the rows of the kind) for each slice of the events."""
    for first in range(0, events, SLICE):
        end = min(first + SLICE, events)
        yield end, generator.rows(kind, count_rows(kind, first), count_rows(kind, end))


def scripts(generator: Generator, marked: str, crashes: int) -> dict[str, ScriptedSource]:
    """Scripts of all kinds; that of `marked` has a barrier each BARRIER_EVENTS, and as many crashes, each anywhere."""
    rng = random.Random(generator.seed)
    dead_at = Counter(rng.choice(range(SLICE, EVENTS, SLICE)) for _ in range(crashes))
    made = {}
    for kind, schema in SCHEMAS.items():
        script: list[Any] = []
        for end, rows in pieces(generator, kind, EVENTS):
            script.append(rows)
            if kind == marked:
                script += [BARRIER] * (end % BARRIER_EVENTS == 0) + [CRASH] * dead_at[end]
        made[kind] = ScriptedSource([*script, END], name=kind, schema=schema)
    return made


def result(query: str, generator: Generator, folder: Path, parallelism: int, crashes: int | None = None) -> pa.Table:
    """The final rows of the query: from sources that many may read, with checkpoints all the time; or from scripts, with crashes."""
    found = ListSink()
    write_side(folder / "side.csv")

    def make(directory: Path) -> App:
        interval = "10ms" if crashes is None else None
        app = App("nexmark", parallelism=parallelism, checkpoint_dir=directory, checkpoint_interval=interval)
        sources: Mapping[str, Source]
        if crashes is None:
            sources = {kind: NexmarkSource(kind, EVENTS, generator, block_epochs=7) for kind in SCHEMAS}
        else:
            sources = scripts(generator, "auction" if query in WITHOUT_BIDS else "bid", crashes)
        build(query, Nexmark(app, sources, folder / "side.csv")).materialize().to(found)
        return app

    lives = run(make, folder / "state")
    assert lives == 1 + (crashes or 0)
    return found.table()


# -- the events -----------------------------------------------------------------------------------------------------------


def column(kind: str, name: str, first: int, end: int, generator: Generator | None = None) -> list[Any]:
    values: list[Any] = (generator or Generator()).rows(kind, first, end, [name])[name].to_pylist()
    return values


def test_the_first_events_are_those_of_the_standard():
    assert [count_rows(kind, 1) for kind in SCHEMAS] == [1, 0, 0]
    assert [count_rows(kind, 4) for kind in SCHEMAS] == [1, 3, 0]
    assert [count_rows(kind, 50) for kind in SCHEMAS] == [1, 3, 46]
    assert [count_rows(kind, 51) for kind in SCHEMAS] == [2, 3, 46]
    assert column("person", "id", 0, 2) == [1000, 1001]
    assert column("auction", "id", 0, 4) == [1000, 1001, 1002, 1003]
    assert str(column("person", "dateTime", 0, 1)[0]) == "2015-07-15 00:00:00"


def hottest(kind: str, name: str, first_event: int, end_event: int) -> int:
    values = column(kind, name, count_rows(kind, first_event), count_rows(kind, end_event))
    return Counter(values).most_common(1)[0][0]


def test_hot_auctions_and_sellers_change_where_the_standard_has_it():
    assert hottest("bid", "auction", 1_000, 1_652) == 1000
    assert column("bid", "auction", count_rows("bid", 1_652), count_rows("bid", 1_652) + 40).count(1100) > 10
    assert 1100 not in column("bid", "auction", 0, count_rows("bid", 1_000))
    assert hottest("auction", "seller", 0, 5_000) == 1000
    assert hottest("auction", "seller", 5_000, 10_000) == 1100
    assert hottest("bid", "bidder", 5_000, 10_000) == 1101


@pytest.mark.slow  # half a second of a core
def test_shares_and_sizes_are_those_of_the_standard():
    generator, bids = Generator(7), count_rows("bid", 200_000)
    rows = generator.rows("bid", 0, bids)
    oracle = Oracle(generator, 200_000)

    def share(condition: str) -> float:
        return oracle.rows(f"select avg(({condition})::int) from bid")[0][0]

    late = oracle.rows(
        'select count(*) from bid b join auction a on a.id = b.auction where b."dateTime" < a."dateTime"'
    )
    assert late[0][0] / bids == pytest.approx(0.045, abs=0.003)
    assert share("0.908 * price between 1000001 and 49999999") == pytest.approx(0.283, abs=0.005)
    assert share("channel in ('Google', 'Facebook', 'Baidu', 'Apple')") == pytest.approx(0.5, abs=0.01)
    assert share("channel not like 'channel-%' or url like '%&channel_id=%'") == pytest.approx(0.95, abs=0.01)
    assert rows["price"].to_numpy().min() == 100
    text = 'length(name) + length("emailAddress") + length("creditCard") + length(city) + length(state) + length(extra)'
    assert oracle.rows(f"select avg(8 + {text}) from person")[0][0] == pytest.approx(200, abs=3)
    text = 'length("itemName") + length(description) + length(extra)'
    assert oracle.rows(f"select avg(48 + {text}) from auction")[0][0] == pytest.approx(500, abs=5)
    assert oracle.rows("select avg(32 + length(extra)) from bid")[0][0] == pytest.approx(100, abs=1)
    assert oracle.rows("select min(category), max(category) from auction") == [(10, 14)]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", SCHEMAS)
def test_any_split_and_any_columns_give_the_same_events(kind):
    rng, generator, rows = random.Random(kind), generator_of(3), count_rows(kind, 3_000)
    whole = generator.rows(kind, 0, rows)
    assert not whole.equals(generator_of(4).rows(kind, 0, rows))
    cuts = sorted({0, rows, *(rng.randrange(rows) for _ in range(10))})
    for first, end in pairwise(cuts):
        names = rng.sample(whole.schema.names, 3)
        assert generator_of(3).rows(kind, first, end, names).equals(whole.slice(first, end - first).select(names))


def read_all(reader: NexmarkSource, at: int, step: int) -> pa.Table:
    reader.open({(reader.name, number): at for number in range(reader.count)})
    batches = []
    while not reader.exhausted:
        batches.append(reader.read_batch(step, 0).data)
    return pa.Table.from_batches(batches, schema=reader.schema)


@pytest.mark.parametrize("count", [1, 3])
def test_readers_share_the_rows_and_go_on_where_they_were(count):
    generator, rows = generator_of(1), count_rows("bid", EVENTS)
    whole = NexmarkSource("bid", EVENTS, generator, block_epochs=7)
    whole.scan(None, ["price", "extra"])
    parts = [read_all(reader, 0, 100) for reader in whole.readers(count)]
    expected = pa.Table.from_batches([generator.rows("bid", 0, rows, ["price", "extra"])])
    assert (
        pa.concat_tables(parts)
        .sort_by([(name, "ascending") for name in expected.column_names])
        .equals(expected.sort_by([(name, "ascending") for name in expected.column_names]))
    )
    for reader, part in zip(whole.readers(count), parts, strict=True):
        assert read_all(reader, 333, 1_000).equals(part.slice(333).combine_chunks())


def test_a_checkpoint_of_more_readers_is_refused():
    reader = NexmarkSource("bid", EVENTS, generator_of(1))
    with pytest.raises(UserError, match="2 readers, and 1 go on"):
        reader.open({("bid", 0): 4, ("bid", 1): 4})


# -- the queries ----------------------------------------------------------------------------------------------------------


def cases(seeds: range) -> list[Any]:
    """Every query in one thread and in several."""
    return [
        pytest.param(query, parallelism, seed, id=f"{query} in {parallelism} threads, seed {seed}")
        for seed in seeds
        for parallelism in (1, 2, 4)
        for query in COMPARED
    ]


@pytest.mark.one_in(100, "0.4 s of a core each")
@pytest.mark.parametrize(("query", "parallelism", "seed"), cases(range(3)))
def test_a_query_gives_what_duckdb_gives(query, parallelism, seed, tmp_path):
    generator = generator_of(seed)
    found = result(query, generator, tmp_path, parallelism)
    wrong = Oracle(generator, EVENTS).differences(query, found, any_of_equals=parallelism > 1)
    assert not wrong, wrong


@pytest.mark.one_in(132, "0.6 s of a core each")
@pytest.mark.parametrize(("query", "parallelism", "seed"), cases(range(3, 5)))
def test_five_crashes_change_no_answer(query, parallelism, seed, tmp_path):
    generator = generator_of(seed)
    found = result(query, generator, tmp_path, parallelism, crashes=5)
    wrong = Oracle(generator, EVENTS).differences(query, found)
    assert not wrong, wrong


class Arriving(NexmarkSource):
    """Each batch comes 0.7 s after the one before; `arrived` says when each row came."""

    def __init__(self, generator: Generator, clock: ManualClock) -> None:
        super().__init__("bid", EVENTS, generator)
        self.clock = clock
        self.arrived: list[int] = []

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        batch = super().read_batch(100, timeout)
        if batch is not None:
            self.clock.advance(0.7)
            self.arrived += [round(self.clock.time() * 1000)] * batch.num_rows
        return batch


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("api", ["python", "sql"])
async def test_windows_of_processing_time_hold_what_came_in_them_by_the_clock(tmp_path, api):
    generator, clock, found = generator_of(1), ManualClock(start=1_700_000_000.0), ListSink()
    write_side(tmp_path / "side.csv")
    app = App("nexmark", clock=clock)
    bids = Arriving(generator, clock)
    sources = {kind: NexmarkSource(kind, EVENTS, generator) for kind in SCHEMAS} | {"bid": bids}
    streams = Nexmark(app, sources, tmp_path / "side.csv")
    (build("q12", streams) if api == "python" else query_of("q12", app, streams)).to(found)
    await app.run()
    oracle = Oracle(generator, EVENTS)
    came = generator.rows("bid", 0, count_rows("bid", EVENTS))
    came = came.append_column("arrived", pa.array(bids.arrived).cast(pa.timestamp("ms")))
    oracle.put("bid", pa.Table.from_batches([came]))
    assert len(set(found.table()["starttime"])) > 3
    assert not oracle.differences("q12", found.table())


@pytest.mark.slow  # half a second of a core
def test_a_query_reads_the_stream_from_parquet():
    figures = measure("q3", Settings(generator_of(2), EVENTS, format="parquet", check=True))  # compares with DuckDB's
    assert figures["result_rows"] > 0


@pytest.mark.slow  # two processes for each of them
def test_the_command_takes_streams_of_no_bids(tmp_path):
    command = [sys.executable, "-m", "benchmarks.nexmark", "--events", "3", "--queries", "q4,q10", "--check"]
    printed = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout
    assert [query["result_rows"] for query in json.loads(printed.splitlines()[-1])["queries"]] == [0, 0]


@pytest.mark.one_in(2, "a process each")
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--events", "-1"], "argument --events: -1 is less than 0"),
        (
            ["--events", "9", "--queries", "q0", "--parallelism", "2000"],
            "parallelism=2000: a number of threads, 1 to 1024",
        ),
        (["--events", "9", "--dump", "/dev/null"], "[Errno 17] File exists: '/dev/null'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_says_in_a_line_what_cannot_be(asked, says):
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.nexmark", *asked], cwd=PROJECT, check=False, capture_output=True, text=True
    )
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[-1].endswith(says), ended.stderr


@pytest.mark.slow
def test_the_command_writes_stream_and_results_and_prints_figures(tmp_path):
    asked = [
        "--events",
        "20000",
        "--seed",
        "3",
        "--queries",
        "q4,q5,q10",
        "--format",
        "json",
        "--parallelism",
        "2",
        "--check",
    ]
    folders = ["--out", str(tmp_path / "out"), "--dump", str(tmp_path / "dump")]
    command = [sys.executable, "-m", "benchmarks.nexmark", *asked, *folders]
    printed = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.splitlines()
    figures = json.loads(printed[-1])
    assert [line.split()[0] for line in printed[:-1]] == ["q4", "q5", "q10"]
    assert [query["query"] for query in figures["queries"]] == ["q4", "q5", "q10"]
    bids = count_rows("bid", 20_000)
    assert figures["queries"][2]["result_rows"] == bids == pq.read_table(tmp_path / "dump" / "bid.parquet").num_rows
    assert pq.read_table(tmp_path / "out" / "q4.parquet").column_names == ["category", "avg_price"]
    assert any((tmp_path / "out" / "q10.parquet" / "dt=2015-07-15" / "hm=00:00").glob("*.parquet"))
