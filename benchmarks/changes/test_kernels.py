"""What a change costs the kernels: a run is kept, and compared with the run before it, test by test.

    pytest benchmarks/changes --benchmark-autosave                            before the change
    pytest benchmarks/changes --benchmark-compare --benchmark-compare-fail=median:5%

The scripts in benchmarks/kernels say how fast a kernel is beside its peers; these say whether it is slower than it was, with the scatter of
the machine beside. Answers are checked in each. SABOT_BENCHMARK_ROWS: how many rows; 200,000 by default.
"""

import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sabot._cython.groups.partition import hash_columns
from sabot._cython.text.json import JsonDecoder, encode_rows

sys.path.append(str(Path(__file__).parents[1] / "kernels"))
import filter_project
import keyed_aggregate

ROWS = int(os.environ.get("SABOT_BENCHMARK_ROWS", "200000"))
BATCH_ROWS = 16_384

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def payments() -> list[pa.RecordBatch]:
    """Batches of id, amount, country, is_online."""
    return filter_project.payments(ROWS).to_batches(max_chunksize=BATCH_ROWS)


@pytest.fixture(scope="module")
def payloads(payments: list[pa.RecordBatch]) -> list[pa.Array]:
    """The same as JSON, as a topic brings them."""
    return [encode_rows(batch) for batch in payments]


def test_json_to_columns(benchmark: Run, payloads: list[pa.Array], payments: list[pa.RecordBatch]) -> None:
    decoder = JsonDecoder(payments[0].schema.remove(3))
    decoded = benchmark(lambda: [decoder.decode(part)[0] for part in payloads])
    assert pa.Table.from_batches(decoded).equals(pa.Table.from_batches(payments).drop_columns("is_online"))


def test_columns_to_json(benchmark: Run, payments: list[pa.RecordBatch], payloads: list[pa.Array]) -> None:
    assert benchmark(lambda: [encode_rows(batch) for batch in payments]) == payloads


def test_filter_and_project(benchmark: Run, payments: list[pa.RecordBatch]) -> None:
    wanted = filter_project.answer(filter_project.by_pyarrow(payments))
    assert filter_project.answer(benchmark(filter_project.ours, payments)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("keys", keyed_aggregate.KEYS)
def test_keyed_aggregates(benchmark: Run, keys: str) -> None:
    names = keyed_aggregate.KEYS[keys]
    rows = keyed_aggregate.make_rows(ROWS, "uniform")
    batches = keyed_aggregate.batches_of(rows, BATCH_ROWS)
    table = benchmark(keyed_aggregate.ours, batches, names)
    keyed_aggregate.check(table, keyed_aggregate.by_pyarrow(pa.Table.from_batches([rows]), names), names)


def test_rows_that_a_shuffle_deals(benchmark: Run, payments: list[pa.RecordBatch]) -> None:
    hashes = benchmark(lambda: [hash_columns([batch.column("id")]) for batch in payments])
    spread = np.bincount(np.concatenate([np.asarray(each) for each in hashes]) % np.uint64(8), minlength=8)
    assert all(abs(a - b) < ROWS / 20 for a, b in pairwise(spread))
