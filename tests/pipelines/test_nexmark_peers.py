"""The answers of the engines that Nexmark's benchmark runs beside ours; those of Flink are compared in the benchmark itself (--check)."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tools.source_tree import PROJECT

sys.path.append(str(PROJECT / "benchmarks"))
from nexmark import peers, run
from nexmark.generator import Generator
from nexmark.oracle import Oracle
from nexmark.streams import write_side

EVENTS = 10_000
PEERS = PROJECT / "benchmarks" / "peers"
COMPARED = [query for query in run.QUERIES if query != "q12"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nexmark")
    run.dump(Generator(1), EVENTS, folder)
    run.write_json(Generator(1), EVENTS, folder)
    write_side(folder / "side.csv")
    return folder


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(Generator(1), EVENTS)


@pytest.fixture(scope="module")
def batch() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PEERS))
        yield importlib.import_module("nexmark_batch")


@pytest.mark.slow
@pytest.mark.parametrize("query", COMPARED)
def test_polars_gives_the_answer_of_duckdb(files: Path, oracle: Oracle, batch: ModuleType, query: str) -> None:
    found = batch.polars_queries(files)[query]().collect().to_arrow()
    assert not oracle.differences(query, found)


@pytest.mark.slow
@pytest.mark.parametrize("query", COMPARED)
def test_duckdb_reads_the_same_from_lines_of_json(files: Path, oracle: Oracle, batch: ModuleType, query: str) -> None:
    assert not oracle.differences(query, batch.run_duckdb(query, files, 1, "json", None))


@pytest.mark.slow
def test_the_functions_of_the_peers_in_python_give_the_answers_of_duckdb(
    files: Path, oracle: Oracle, batch: ModuleType, tmp_path: Path
) -> None:
    rows = importlib.import_module("nexmark_rows")
    bids = [json.loads(line) for line in (files / "bid.ndjson").read_text().splitlines()]
    for query in (*rows.STATELESS, *rows.RUNNING):
        result = tmp_path / f"{query}.result"
        output = rows.Output(str(result))
        output.begin()
        if query in rows.STATELESS:
            output.write(*filter(None, map(rows.stateless(query, files), bids)))
        else:
            (key_of, step), last = rows.running(query), {}
            for bid in bids:
                key = key_of(bid)
                last[key] = row = step(last.get(key), bid)
                output.write(row, key=key)
        output.end()
        left_open = peers.LEFT_OPEN.get(query, ())
        assert not oracle.differences(query, peers.typed(result, oracle, query), left_open=left_open)


@pytest.mark.parametrize(
    ("peer", "query", "why"),
    [
        ("flink", "q6", "be said in Flink SQL"),
        ("polars", "q12", "batch"),
        ("faust", "q3", "joins are not implemented"),
        ("pathway", "q19", "no last rows"),
    ],
)
def test_a_query_that_a_peer_cannot_express_has_a_reason_in_place_of_figures(
    tmp_path: Path, batch: ModuleType, peer: str, query: str, why: str
) -> None:
    engines = importlib.import_module("nexmark_peers")
    with pytest.raises(engines.NotSaid, match=why):
        engines.run(peer, query, tmp_path, tmp_path, 1, 1000)
