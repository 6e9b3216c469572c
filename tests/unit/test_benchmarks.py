"""The benchmarks' own checks bite: a wrong answer or a growing process does not pass as a figure."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sabot.connectors.base import build_records

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*(str(BENCHMARKS / folder) for folder in ("pipelines", "peers")), *sys.path])
    return importlib.import_module(name)


def samples(mb_per_million: float, *, jump_at: int = -1, count: int = 30) -> list[tuple[int, float]]:
    """300 MB, sampled each half million rows."""
    return [(i * 500_000, 300 + i * mb_per_million / 2 + (50 if i == jump_at else 0)) for i in range(count)]


@pytest.mark.parametrize(
    ("seen", "flat"),
    [
        (samples(0.0), True),
        (samples(-3.0), True),
        (samples(1.0), True),
        (samples(4.0), False),
        (samples(0.0, jump_at=20), False),
        (samples(40.0, count=8), None),
    ],
    ids=["level", "falling", "within the bound", "rising", "one jump", "too short to say"],
)
def test_memory_that_grows_past_the_bound_is_not_flat(monkeypatch, seen, flat):
    assert script("memory_flat", monkeypatch).judge(seen, bound_mb=32.0)["flat"] is flat


def test_the_slope_is_that_of_the_samples_after_the_warm_up(monkeypatch):
    seen = [(i * 500_000, 100.0 * i if i < 4 else 400 + i) for i in range(20)]
    figures = script("memory_flat", monkeypatch).judge(seen, bound_mb=32.0)
    assert figures["slope_mb_per_million_rows"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("results", "complaint"),
    [
        ([(7, 1), (3, 1), (7, 2)], None),
        ([(7, 1), (7, 3)], "acc7: 3"),
        ([(7, 1), (7, 1)], "acc7: 1"),
        ([(7, 2), (7, 1)], "acc7: 2"),
    ],
    ids=["in order", "one lost", "one twice", "out of order"],
)
@pytest.mark.parametrize("split", [0, 1])
def test_a_lost_repeated_or_swapped_count_is_found(monkeypatch, results, complaint, split):
    reader = script("memory_flat", monkeypatch).CountsReader(None)
    parts = [results[:split], results[split:]]

    def read() -> None:
        for part in filter(None, parts):
            payloads = [json.dumps({"account": f"acc{account}", "seen": seen}).encode() for account, seen in part]
            reader._check(build_records(payloads, None, [0] * len(part), 0, range(len(part))))

    if complaint is None:
        read()
        assert (reader.rows, reader.last[7], reader.last[3]) == (3, 2, 1)
    else:
        with pytest.raises(AssertionError, match=complaint):
            read()


def test_a_peer_may_repeat_a_result_but_not_lose_one(monkeypatch):
    peers = script("record_agent_peers", monkeypatch)
    payloads = [b'{"account": "acc0", "seen": %d}' % seen for seen in (1, 2, 2, 3)]
    assert peers.check("peer", payloads, [3]) == 1
    with pytest.raises(AssertionError, match="acc0 counts"):
        peers.check("peer", payloads[:3], [3])


def test_the_fraud_oracle_is_what_the_demo_counts(monkeypatch):
    fraud = script("fraud", monkeypatch)
    whole = fraud.expected(30_000, seed=5)
    monkeypatch.setattr(fraud, "ORACLE_BATCH_ROWS", 7_001)
    assert fraud.expected(30_000, seed=5) == whole
    assert whole["rows"] == 30_000
    assert 0 < whole["alerts"] < 1_000
