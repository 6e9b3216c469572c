"""The answers of the engines that Nexmark's benchmark runs beside ours; those of Flink are compared in the benchmark itself (--check)."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tools.source_tree import PROJECT

sys.path.append(str(PROJECT / "benchmarks"))
from nexmark import run
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
    assert not oracle.differences(query, batch.run_duckdb(query, files, 1, "json"))


@pytest.mark.parametrize(
    ("peer", "query", "why"), [("flink", "q6", "be said in Flink SQL"), ("polars", "q12", "batch")]
)
def test_a_query_that_a_peer_cannot_express_has_a_reason_in_place_of_figures(
    tmp_path: Path, batch: ModuleType, peer: str, query: str, why: str
) -> None:
    peers = importlib.import_module("nexmark_peers")
    with pytest.raises(peers.NotSaid, match=why):
        peers.run(peer, query, tmp_path, tmp_path, 1, 1000)
