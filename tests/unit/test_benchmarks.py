"""The benchmarks' own checks bite: a wrong answer or a growing process does not pass as a figure."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import Batch
from sabot.codecs.records import build_records
from sabot.engine.operators.windows.fixed import WindowAggregate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(
        sys,
        "path",
        [*(str(BENCHMARKS / folder) for folder in ("kernels", "pipelines", "peers", "agents", "changes")), *sys.path],
    )
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
            reader.check(build_records(payloads, None, [0] * len(part), 0, range(len(part))))

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


@pytest.mark.slow  # half a second of a core
def test_the_fraud_oracle_is_what_the_demo_counts(monkeypatch):
    fraud = script("fraud", monkeypatch)
    whole = fraud.expected(30_000, seed=5)
    monkeypatch.setattr(fraud, "ORACLE_BATCH_ROWS", 7_001)
    assert fraud.expected(30_000, seed=5) == whole
    assert whole["rows"] == 30_000
    assert 0 < whole["alerts"] < 1_000


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("join", ["interval", "asof", "regular", "left"])
def test_the_joins_of_two_files_add_up_to_the_answer_of_duckdb(monkeypatch, tmp_path, join):
    joins = script("joins", monkeypatch)
    paths = joins.make_files(tmp_path, 5_000)
    figures = joins.measure(join, paths, 5_000, 2, 1, {"duckdb": joins.run_duckdb})
    assert figures["result_rows"] > 0
    assert figures["sabot"]["rows_per_s"] == pytest.approx(10_000 / figures["sabot"]["seconds"], rel=0.1)
    assert figures["duckdb"]["sabot_takes"] > 0


def test_a_peer_with_another_answer_stops_the_run_and_one_that_takes_too_long_is_left_out(monkeypatch, tmp_path):
    joins = script("joins", monkeypatch)
    paths = joins.make_files(tmp_path, 1_000)

    def wrong(*given):
        taken, (rows, x, y, z) = joins.run_duckdb(*given)
        return taken, (rows, x, y, z + 1)

    def slow(*given):
        raise joins.subprocess.TimeoutExpired("peer", 5)

    with pytest.raises(AssertionError, match="regular: wrong has"):
        joins.measure("regular", paths, 1_000, 1, 1, {"wrong": wrong})
    assert joins.measure("regular", paths, 1_000, 1, 2, {"slow": slow})["slow"] == {"stopped_after_s": 5}


def test_what_changes_take_back_is_taken_off_the_totals(monkeypatch):
    totals = script("joins", monkeypatch).Totals()
    ops = ["insert", "insert", "update_before", "update_after", "delete"]
    rows = pa.record_batch({"op": ops, "x": [1, 2, 2, 5, 1], "y": [10, 20, 20, 30, 10]})
    totals.write(Batch(rows))
    assert totals.answer == (1, 5, 30, 150)
    totals.write(Batch(pa.record_batch({"op": ["insert"], "x": [4], "y": pa.array([None], pa.int64())})))
    assert totals.answer == (2, 9, 30, 150)


def test_no_two_rows_of_both_streams_have_the_same_time_and_none_is_late(monkeypatch):
    joins = script("joins", monkeypatch)
    sides = [joins.make_side(5_000, seed, "x", odd)["ts"].to_numpy() for seed, odd in ((7, 0), (8, 3))]
    assert len(np.unique(np.concatenate(sides))) == 10_000
    for times in sides:
        assert (np.maximum.accumulate(times) - times).max() <= joins.DISORDER_MS < 5_000


@pytest.mark.parametrize("program", ["top_n", "top_n_updates"])
def test_the_first_ten_of_each_key_add_up_to_the_answer_of_duckdb(monkeypatch, tmp_path, program):
    top_n = script("top_n", monkeypatch)
    path = top_n.make_file(tmp_path, program, 20_000)
    assert top_n.measure(program, path, 20_000, 2, 1, {})["result_rows"] > 0


@pytest.mark.parametrize("batch", [True, False])
def test_every_timer_of_the_benchmark_fires_once(monkeypatch, tmp_path, batch):
    timers = script("timers", monkeypatch)
    rows = timers.make_rows(4_000, 1_000)
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=500)
    truth = timers.expected(rows, 1_000)
    assert timers.run_app(tmp_path / "rows.parquet", 1_000, 2, batch)[1] == truth
    assert timers.run_operator(rows, 1_000)[2] == truth
    with pytest.raises(AssertionError, match="rows gives"):
        timers.least(lambda: ({"seconds": 1.0}, (0, 0, 0, 0)), 1, "rows", truth)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("name", ["fails", "steps"])
def test_the_matches_of_the_benchmark_are_those_of_its_twin(monkeypatch, tmp_path, name):
    pattern = script("pattern", monkeypatch)
    events = pattern.make_events(40_000, 20, 100)
    pq.write_table(events, tmp_path / "events.parquet")
    figures, want = pattern.measure(name, events, tmp_path / "events.parquet", 1, 1)
    assert figures["matches"] == len(want) > 0


@pytest.mark.parametrize("lost", [None, "intent", "result", "entry"])
def test_an_effect_that_a_journal_lost_is_found(monkeypatch, lost):
    from sabot.errors import CorruptJournal
    from sabot.journal.entries import Begin, EffectResult, End, Intent
    from sabot.journal.memory import MemoryJournal

    bench = script("journal", monkeypatch)
    journal, body = MemoryJournal(), bench.BODY
    entries = {
        "alone": Intent("alone", 0, 0, "call", body=body),
        "begin": Begin("job-0", 0),
        "intent": Intent("job-0", 0, 0, "call", body=body),
        "result": EffectResult("job-0", 0, 0, body=body),
        "end": End("job-0", 0, "succeeded"),
        "burst": EffectResult("burst", 0, 0, body=body),
    }
    for name, entry in entries.items():
        if name != lost:
            journal.append(entry)
    if lost == "entry":
        del journal.storage.entries[1]
    asked = {"alone": 1, "effects": 1, "burst": 1}
    if lost is None:
        assert bench.check(journal, asked, 1) == 6
    else:
        with pytest.raises(CorruptJournal if lost == "entry" else AssertionError):
            bench.check(journal, asked, 1)


@pytest.mark.parametrize(
    ("totals", "calls", "complaint"),
    [
        ([6, 3, 3], [3, 4], None),
        ([6, 3, 2], [3, 4], "jobs returned"),
        ([6, 3], [3, 4], "jobs returned"),
        ([6, 3, 3], [3, 5], "called"),
    ],
    ids=["right", "a wrong job", "a lost job", "a step twice"],
)
def test_an_engine_with_a_wrong_job_or_a_step_too_many_stops_the_run(monkeypatch, totals, calls, complaint):
    effects = script("effects", monkeypatch)
    said = {"totals": totals, "calls": calls}
    if complaint is None:
        effects.check(said, 2, 2, 3, "engine")
    else:
        with pytest.raises(AssertionError, match=f"engine: .*{complaint}"):
            effects.check(said, 2, 2, 3, "engine")


def test_a_row_that_is_in_no_batch_is_found(monkeypatch, tmp_path):
    batches = script("durable_batches", monkeypatch)
    assert batches.measure("durable", 20, tmp_path, 100)["calls"] == 1
    take = batches.Calls.take
    monkeypatch.setattr(batches.Calls, "take", lambda calls, rows, total: take(calls, rows - 1, total))
    with pytest.raises(AssertionError, match="plain: 19 rows"):
        batches.measure("plain", 20, tmp_path, 100)


def test_a_record_that_is_lost_repeated_or_changed_changes_the_sum_of_what_was_sent(monkeypatch):
    checksum = script("kafka_produce", monkeypatch).checksum

    def total(*pairs: tuple[bytes, bytes]) -> int:
        payloads, keys = ([pair[which] for pair in pairs] for which in (0, 1))
        return checksum(build_records(payloads, keys, [0] * len(pairs), 0, range(len(pairs))), keyed=True)

    one, other = (b"1", b"k"), (b"2", b"l")
    assert total(one, other) == total(other, one) == total(one) + total(other)
    different = [
        total(one),
        total(one, other, other),
        total((b"1", b"l"), (b"2", b"k")),
        total((b"1", b"kl"), (b"2", b"")),
    ]
    assert total(one, other) not in different
    assert total() == 0


@pytest.mark.parametrize("wrong", [None, "account", "n", "total", "biggest", "missing", "twice"])
def test_windows_of_the_kafka_benchmark_are_compared_row_by_row(monkeypatch, wrong):
    ingest = script("kafka_ingest", monkeypatch)
    rows = [
        {"account": account, "window_start": start, "n": 2, "total": 3.0, "biggest": 2.0}
        for start in (0, 60_000)
        for account in ("a", "b")
    ]
    found = [dict(row) for row in reversed(rows)]
    if wrong == "missing":
        del found[0]
    elif wrong == "twice":
        found.append(dict(found[0]))
    elif wrong is not None:
        found[1][wrong] = {"account": "c", "n": 3, "total": 3.1, "biggest": 2.5}[wrong]
    tables = [pa.Table.from_pylist(each, schema=ingest.SHAPE) for each in (found, rows)]
    if wrong is None:
        ingest.check_windows(*tables)
    else:
        with pytest.raises(AssertionError):
            ingest.check_windows(*tables)


@pytest.mark.parametrize(
    ("kinds", "pairs"),
    [
        (["bound", "decode", "windows"], ["bound decode", "bound windows", "windows bound", "decode bound"]),
        (["decode", "windows"], ["decode", "windows", "windows", "decode"]),
        (["bound"], ["bound", "bound"]),
        ([], []),
    ],
)
def test_each_kind_of_the_kafka_benchmark_runs_beside_the_bound(monkeypatch, kinds, pairs):
    ingest = script("kafka_ingest", monkeypatch)
    assert [" ".join(turn) for _, turn in ingest.turns(kinds, 2)] == pairs


def test_rows_that_do_not_cross_or_come_by_another_edge_are_found(monkeypatch):
    bench = script("exchange", monkeypatch)
    run = bench.Run(40_000, None, None)
    answer = bench.Answer(dealt=True)
    for batch in run.batches:
        answer.add(batch)
    run.check([answer.figures()])
    assert answer.figures()["owners"] == list(range(bench.EDGES))
    for name in ("rows", "cents"):
        with pytest.raises(AssertionError, match=f"{name} arrived of"):
            run.check([answer.figures(), {**bench.Answer().figures(), name: 1}])


def test_of_a_peer_that_writes_a_window_again_and_again_the_last_one_counts(monkeypatch):
    peers = script("ingest_peers", monkeypatch)
    rows = [
        {"account": "a", "window_start": 0, "n": 1},
        {"account": "b", "window_start": 0, "n": 1},
        {"account": "a", "window_start": 60_000, "n": 1},
        {"account": "a", "window_start": 0, "n": 2},
        {"account": "end3", "window_start": 0, "n": 1},
    ]
    found = pa.Table.from_pylist(rows)
    assert peers.windows_of("flink", found).to_pylist() == rows[:4]
    last = peers.windows_of("faust", found)
    assert sorted(last.to_pylist(), key=rows.index) == rows[1:4]


@pytest.mark.parametrize(
    ("pairs", "slower"),
    [
        ([(1.0, 1.1)] * 5, True),
        ([(1.0, 1.04), (1.0, 1.2), (1.0, 1.05), (1.0, 1.06), (1.0, 0.9)], True),
        ([(1.0, 1.02)] * 5, False),
        ([(1.0, 1.5), (1.0, 1.5), (1.0, 1.5), (1.0, 0.5), (1.0, 0.5)], False),
        ([(1.0, 0.5)] * 5, False),
    ],
    ids=["all slower", "four of five slower", "within the bound", "scatter", "faster"],
)
def test_a_commit_is_slower_by_more_than_the_bound_in_four_pairs_of_five(monkeypatch, pairs, slower):
    assert script("compare", monkeypatch).told("seconds", pairs)[1] is slower


def test_the_lines_that_two_commits_are_compared_by_are_scripts_that_are_here(monkeypatch):
    lines = script("compare", monkeypatch).LINES
    named = {line.command[0] for line in lines.values()} - {"-m"}
    assert named
    assert [name for name in named if not (BENCHMARKS.parent / name).is_file()] == []


@pytest.mark.parametrize(
    ("words", "count"),
    [([], 13), (["start"], 1), (["nexmark"], 4), (["start nexmark json"], 3), (["nexmark", "json", "1", "kafka"], 2)],
)
def test_a_line_of_the_comparison_is_named_by_its_first_words(monkeypatch, words, count):
    assert len(script("compare", monkeypatch).chosen(words)) == count


def test_a_word_that_begins_no_line_of_the_comparison_is_named(monkeypatch):
    with pytest.raises(ValueError, match="no line 7; there are start, txn_windows"):
        script("compare", monkeypatch).chosen(["nexmark", "7"])


def test_each_tree_runs_its_own_benchmark_if_the_older_one_cannot_run_the_present_one(monkeypatch, tmp_path, capsys):
    compare = script("compare", monkeypatch)
    monkeypatch.setattr(compare, "PLACE", tmp_path / "compare")
    monkeypatch.setattr(compare, "ROOT", tmp_path / "root")
    trees = [tmp_path / name for name in ("base", "here", "root")]
    for tree, work in zip(trees, ("'base'", "sabot.NEW", "sabot.NEW"), strict=True):
        (tree / "benchmarks").mkdir(parents=True)
        (tree / "sabot.py").write_text("NEW = 'here'" if tree.name == "here" else "")
        (tree / "benchmarks" / "work.py").write_text(
            f"import sabot\nprint('{{\"seconds\":', {{'base': 2, 'here': 3}}[{work}], '}}')"
        )
    line = compare.Line(["benchmarks/work.py"], compare.costs(seconds=compare.at("seconds")))
    assert compare.compare(line, trees[0], trees[1], 2)["seconds"] == [(2.0, 3.0), (2.0, 3.0)]
    assert "each with the benchmark of its own commit: AttributeError" in capsys.readouterr().out


def test_a_table_of_duckdb_that_lacks_a_row_is_no_figure(monkeypatch, tmp_path):
    bench = script("duckdb_sink", monkeypatch)
    path = bench.make_file(tmp_path, 1_000)
    wanted = bench.answer_of_file(path)
    assert bench.run("sink", path, tmp_path, wanted).keys() == {"seconds", "cpu_seconds"}
    whole = bench.parts
    monkeypatch.setattr(bench, "parts", lambda path: (data.slice(1) for data in whole(path)))
    with pytest.raises(SystemExit, match="sink: the table has"):
        bench.run("sink", path, tmp_path, wanted)


SPARSE = [
    "keys",
    "no keys",
    "texts",
    "late",
    "calendar",
    "hopping",
    "cumulative",
    "wide",
    "by key",
    "wide texts",
    "wide distinct",
    "200 panes",
    "1440 panes",
    "bursts",
    "bursts of 1440 panes",
    "top",
    "top of hopping",
]


def test_each_shape_of_sparse_windows_is_counted(monkeypatch):
    assert {*SPARSE, "dense"} == script("sparse_windows", monkeypatch).cases(100, 25).keys()


def calls_of(monkeypatch, name: str, rows: int) -> tuple[int, int]:
    """Runs a shape of sparse windows in four batches or fewer: the number of calls, and of windows."""
    sparse, calls = script("sparse_windows", monkeypatch), 0

    def count(frame: Any, event: str, given: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    window, keys, aggregates, times, lateness_ms = sparse.cases(rows, rows // 4)[name]
    parts = sparse.batches(times, rows // 4)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        _, found, late = sparse.run(window, keys, aggregates, parts, lateness_ms)
    finally:
        sys.setprofile(before)
    assert not late
    return calls, sparse.check(found, parts, window, keys)


def calls_a_window(monkeypatch, name: str, rows: int) -> float:
    """The calls for a further window: the difference of two runs, which leaves out what a batch costs."""
    calls, windows = calls_of(monkeypatch, name, rows)
    more_calls, more_windows = calls_of(monkeypatch, name, 4 * rows)
    return (more_calls - calls) / (more_windows - windows)


@pytest.mark.one_in(6, "a tenth of a second of a core each")
@pytest.mark.parametrize("name", SPARSE)
def test_windows_with_few_rows_close_by_batches(monkeypatch, name):
    """A window cost 0.12 ms, which is hundreds of calls."""
    assert calls_a_window(monkeypatch, name, 1_000) < 12


def test_windows_that_close_one_by_one_are_found(monkeypatch):
    """A planted fault: each window closes at a watermark of its own."""
    advance, last = WindowAggregate.advance, dict[WindowAggregate, int]()

    def one_by_one(self: WindowAggregate, watermark: int) -> None:
        start = script("sparse_windows", monkeypatch).START_MS
        for each in range(last.get(self, start), min(watermark, start + 810_000), 1_000):
            advance(self, each)
        advance(self, watermark)
        last[self] = watermark

    monkeypatch.setattr(WindowAggregate, "advance", one_by_one)
    assert calls_a_window(monkeypatch, "keys", 200) > 60
