"""The proof from outside, and that it can fail: a short dance on a real broker; results that are lost, repeated or wrong are found,
also by the benchmark; figures that rise are found.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "pipelines"))
import dance_verifier
import exactly_once
import kill_dance
import soak

ROWS = [  # partition, offset, row
    (0, 0, {"n": 0, "account": "a", "amount": 5, "ts": 1_000}),
    (0, 2, {"n": 2, "account": "a", "amount": 7, "ts": 11_000}),
    (0, 3, {"n": 4, "account": "t0", "amount": 1, "ts": 50_000}),
    (1, 0, {"n": 1, "account": "b", "amount": 3, "ts": 9_999}),
    (1, 1, {"n": 3, "account": "b", "amount": 3, "ts": 9_999}),
    (1, 5, {"n": 5, "account": "t1", "amount": 1, "ts": 45_000}),
]
RESULTS = [
    {"n": 0, "account": "a", "count": 1, "total": 5, "p": 0, "o": 0},
    {"n": 2, "account": "a", "count": 2, "total": 12, "p": 0, "o": 2},
    {"n": 4, "account": "t0", "count": 1, "total": 1, "p": 0, "o": 3},
    {"n": 1, "account": "b", "count": 1, "total": 3, "p": 1, "o": 0},
    {"n": 3, "account": "b", "count": 2, "total": 6, "p": 1, "o": 1},
    {"n": 5, "account": "t1", "count": 1, "total": 1, "p": 1, "o": 5},
    {"account": "a", "window_start": 0, "window_end": 10_000, "rows": 1, "sum": 5},
    {"account": "a", "window_start": 10_000, "window_end": 20_000, "rows": 1, "sum": 7},
    {"account": "b", "window_start": 0, "window_end": 10_000, "rows": 2, "sum": 6},
]


def records(values):
    return [(0, number, json.dumps(value).encode()) for number, value in enumerate(values)]


def verdict(results):
    wanted = dance_verifier.expected([(at, offset, json.dumps(row).encode()) for at, offset, row in ROWS])
    found = dance_verifier.compare(wanted, dance_verifier.delivered(records(results)))
    return found["expected"], found["delivered"], found["lost"], found["duplicated"]


def test_the_verifier_agrees_with_the_answer_in_any_order():
    assert verdict(RESULTS[::-1]) == (9, 9, 0, 0)


@pytest.mark.parametrize("number", range(len(RESULTS)))
def test_the_verifier_finds_each_result_that_is_lost_and_each_that_comes_twice(number):
    assert verdict(RESULTS[:number] + RESULTS[number + 1 :]) == (9, 8, 1, 0)
    assert verdict([*RESULTS, RESULTS[number]]) == (9, 10, 0, 1)


@pytest.mark.parametrize(
    ("number", "wrong"),
    [(1, {"count": 3}), (1, {"total": 5}), (1, {"o": 1}), (1, {"n": 3}), (6, {"sum": 12}), (6, {"rows": 2})],
)
def test_a_wrong_result_is_one_too_many_and_the_right_one_is_lost(number, wrong):
    assert verdict([*RESULTS[:number], RESULTS[number] | wrong, *RESULTS[number + 1 :]]) == (9, 9, 1, 1)


def test_a_dance_without_a_figure_of_trouble_passes_and_no_other():
    clean = {"lost": 0, "duplicated": 0, "died": 0, "woken_went_on": 0}
    assert kill_dance.passed(clean)
    assert not any(kill_dance.passed(clean | {trouble: 1}) for trouble in clean)


def series(rise, *, count=40):
    """100 of everything, and RSS that rises by so much over the whole."""
    return [
        (float(at), {**dict.fromkeys(soak.TOLERANCE, 100.0), "rss_mb": 400 + rise * at / (count - 1) + (at % 3)})
        for at in range(count)
    ]


@pytest.mark.parametrize(("rise", "flat"), [(0, True), (-200, True), (25, True), (60, False)])
def test_memory_that_rises_beyond_its_tolerance_is_not_flat(rise, flat):
    found = soak.judge(series(rise))
    assert found["rss_mb"]["flat"] is flat
    assert found["rss_mb"]["rise"] == pytest.approx(rise, abs=2)
    assert all(each["flat"] for name, each in found.items() if name != "rss_mb")


def test_a_file_with_two_names_counts_once(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").write_bytes(b"x" * 500)
    assert soak.directory(tmp_path) == (0.0015, 2)


def benchmark_results(program, rows):
    if program == "windows":
        return [{"account": f"acc{n}", "window_start": 0, "rows": 1, "sum": n % 10} for n in range(rows)]
    if program == "agent":
        return [{"n": n, "seen": n // exactly_once.ACCOUNTS + 1} for n in range(rows)]
    return [{"n": n, "twice": n % 10 * 2} for n in range(rows) if n % 10]


@pytest.mark.parametrize("program", exactly_once.PROGRAMS)
@pytest.mark.parametrize(
    "spoil", [None, lambda rows: rows[1:], lambda rows: [*rows, rows[3]]], ids=["whole", "one lost", "one twice"]
)
def test_the_benchmark_checks_that_each_result_is_there_once(monkeypatch, program, spoil):
    found = benchmark_results(program, 50)
    spoiled = found if spoil is None else spoil(found[1:] if program == "windows" else found)
    monkeypatch.setattr(exactly_once, "results", lambda *_: [pa.RecordBatch.from_pylist(spoiled)])
    if spoil is None:
        assert exactly_once.CHECKS[program]("", "", 50) == len(found)
    else:
        with pytest.raises(AssertionError):
            exactly_once.CHECKS[program]("", "", 50)


@pytest.mark.kafka
@pytest.mark.integration
@pytest.mark.slow
def test_nothing_is_lost_or_repeated_by_kills_a_pause_and_restarts_of_the_broker(own_kafka, tmp_path):
    options = argparse.Namespace(
        kills=4, pauses=1, workers=1, longest_pause=0, seed=4, rows=6_000, delivery="", keep=False
    )
    outcome = kill_dance.dance(tmp_path, own_kafka, options)
    assert (outcome["lost"], outcome["duplicated"], outcome["died"], outcome["woken_went_on"]) == (0, 0, 0, 0), outcome
    assert outcome["expected"] == outcome["delivered"] > 6_000
    assert outcome["kills"] == 4


@pytest.mark.kafka
@pytest.mark.integration
@pytest.mark.slow
def test_nothing_is_lost_or_repeated_where_workers_and_their_coordinator_are_killed_and_paused(kafka_url, tmp_path):
    """Seeds with more kills and longer pauses: kill_dance.py --workers 3 --seed …"""
    options = argparse.Namespace(
        kills=3, pauses=1, workers=3, longest_pause=0.3, seed=1, rows=3_000, delivery="", keep=False
    )
    outcome = kill_dance.dance(tmp_path, kill_dance.Broker(url=kafka_url), options)
    assert (outcome["lost"], outcome["duplicated"], outcome["died"], outcome["woken_went_on"]) == (0, 0, 0, 0), outcome
    assert outcome["expected"] == outcome["delivered"] > 3_000
    assert outcome["kills"] == 3
    assert outcome["killed_members"] > 0
    assert outcome["pauses"] == 1
