"""Each kind of keyed state: how long rows stand still at a cut, and whether it keeps to its memory budget: a line for each.

    python benchmarks/kernels/state_kinds.py [--rows N] [--kinds sessions,texts,…] [--budget BYTES] [--cuts N]

N keys, each of which comes once, in batches of 64 Ki rows. For each kind:

    cut_ms      `Stateful.snapshot()`, when every key has changed: the rows stand still. The best and the worst of all cuts, in memory
    budget_cut_ms    the same with a directory and `--budget`
    save_s      writing the last of them, in another thread as a rule; save_cpu_s: seconds of processor time
    saved_mb    what it wrote, of which later checkpoints write only the changes
    rows_per_s  of the rows that came, in memory
    mb          what the state says that it takes in memory, without a directory
    budget_mb   the same with a directory and `--budget`; `within`: whether that is within the budget
    spilling    rows_per_s with that directory and budget

Checked: what is restored of the last cut has each key once, and so has the state under the budget.

    python benchmarks/kernels/state_kinds.py --grows budget|memory [--times N] …

With `--grows` each key comes N times, and each kind is filled once, with a directory and the budget, or without them. Its line says by how
many MB the process was larger than before, at most, after a batch (`own_mb`: its own pages; `all_mb`: with those of mapped files), and the
rows/s.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.text.records import state_key
from sabot.api.expr import col
from sabot.api.functions import process_spec
from sabot.api.patterns import pattern, step
from sabot.api.windows import tumbling
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.operators.agents.timers import KeyTimers
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import INSERT, OP_COLUMN, TIME_COLUMN, Cut, Operator, OperatorContext, Saved
from sabot.engine.operators.changes.groups import GroupAggregate
from sabot.engine.operators.functions.process import process_operator
from sabot.engine.operators.keyed.over import Over
from sabot.engine.operators.keyed.over_columns import OverColumn
from sabot.engine.operators.keyed.running import CountAggregate, Deduplicate, RunningAggregate
from sabot.engine.operators.keyed.top import TopN
from sabot.engine.operators.patterns.match import Pattern
from sabot.engine.operators.windows.fixed import WindowAggregate
from sabot.engine.operators.windows.sessions import SessionAggregate
from sabot.engine.operators.windows.top import WindowTopN

BATCH_ROWS = 65_536
SCHEMA = pa.schema([("key", pa.int64()), ("amount", pa.int64()), ("note", pa.string()), (TIME_COLUMN, pa.int64())])
CHANGES = SCHEMA.insert(3, pa.field(OP_COLUMN, pa.int8()))
NUMBERS = [
    AggregateColumn("n", "count"),
    AggregateColumn("total", "sum", "amount"),
    AggregateColumn("most", "max", "amount"),
]
TEXTS = [AggregateColumn("n", "count"), AggregateColumn("most", "max", "note")]
LISTS = [AggregateColumn("n", "count"), AggregateColumn("all", "collect_list", "amount")]
DIFFERING = [AggregateColumn("n", "count"), AggregateColumn("notes", "count_distinct", "note")]
LEAST = [AggregateColumn("n", "count"), AggregateColumn("least", "min", "amount")]
BEFORE = [OverColumn("before", "lag", "amount", 1)]
SUMS = [OverColumn("total", "sum", "amount")]
RISES = pattern("low", col("amount") >= 0).then("high", col("amount") < 0).within("1h")
WINDOW = tumbling("1h")
OF_AGENTS = "timers of agents"


@dataclass(frozen=True)
class Kind:
    """make: the operator. changes: its rows are changes. keys: the column of `contents` that has the key; None: the state is counted."""

    make: Callable[[], Operator]
    changes: bool = False
    keys: str | None = "key"


def put(keys: Any, batch: Any, ctx: Any) -> None:
    ctx.state("seen").put_many(keys, batch.column("amount"))


def set_timers(keys: Any, batch: Any, ctx: Any) -> None:
    ctx.timers.event_many(keys, 3_600_000)


def set_clocks(keys: Any, batch: Any, ctx: Any) -> None:
    ctx.timers.processing_many(keys, 1 << 50)


def nothing(keys: Any, at: Any, ctx: Any) -> None:
    return None


def made(function: Callable[..., Any], on_timer: Callable[..., Any] | None = None) -> Operator:
    return process_operator(["key"], process_spec(function, schema={"key": "int64"}, batch=True, on_timer=on_timer))


KINDS = {
    "windows": Kind(lambda: WindowAggregate(WINDOW, ["key"], NUMBERS)),
    "sessions": Kind(lambda: SessionAggregate(3_600_000, ["key"], NUMBERS)),
    "texts": Kind(lambda: WindowAggregate(WINDOW, ["key"], TEXTS)),
    "texts of sessions": Kind(lambda: SessionAggregate(3_600_000, ["key"], TEXTS)),
    "collect_list": Kind(lambda: WindowAggregate(WINDOW, ["key"], LISTS)),
    "texts of groups": Kind(lambda: GroupAggregate(["key"], TEXTS, changes=False)),
    "lists of groups": Kind(lambda: GroupAggregate(["key"], LISTS, changes=False)),
    "distinct of groups": Kind(lambda: GroupAggregate(["key"], DIFFERING, changes=False)),
    "count windows": Kind(lambda: CountAggregate(1000, ["key"], NUMBERS)),
    "ttl": Kind(lambda: RunningAggregate(["key"], NUMBERS, ttl_ms=3_600_000)),
    "deduplicate within": Kind(lambda: Deduplicate(["key"], 3_600_000)),
    "over rows": Kind(lambda: Over(["key"], SUMS, preceding_rows=3)),
    "lag": Kind(lambda: Over(["key"], BEFORE)),
    "top_n": Kind(lambda: TopN(["key"], 3, [("amount", True)])),
    "top_n of windows": Kind(lambda: WindowTopN(WINDOW, ["key"], 3, [("amount", True)])),
    "min over changes": Kind(lambda: GroupAggregate(["key"], LEAST, changes=True), changes=True),
    "patterns": Kind(lambda: Pattern(["key"], RISES, "past_last", [("n", step("high").count())])),
    "values": Kind(partial(made, put), keys=None),
    "timers": Kind(partial(made, set_timers, nothing), keys=None),
    "timers by the clock": Kind(partial(made, set_clocks, nothing), keys=None),
}


def batches(keys: int, kind: Kind) -> Iterator[Batch]:
    order = np.random.default_rng(7).permutation(keys)
    for start in range(0, keys, BATCH_ROWS):
        numbers = pa.array(order[start : start + BATCH_ROWS])
        notes = pc.binary_join_element_wise("note of ", numbers.cast(pa.string()), "")
        columns = [numbers, numbers, notes, pa.repeat(1_000, len(numbers))]
        if kind.changes:
            columns.insert(3, pa.repeat(pa.scalar(INSERT, pa.int8()), len(numbers)))
        yield Batch(pa.RecordBatch.from_arrays(columns, schema=CHANGES if kind.changes else SCHEMA))


def opened(kind: Kind, directory: Path | None = None, budget: int = 1 << 40) -> Operator:
    operator = kind.make()
    operator.emit = lambda batch: None
    if directory is not None:
        directory.mkdir(parents=True)
    schema = CHANGES if kind.changes else SCHEMA
    operator.open(OperatorContext(schema, directory=directory, memory_budget=budget))
    return operator


def fill(operator: Operator, given: list[Batch]) -> float:
    started = time.perf_counter()
    for batch in given:
        operator.process(batch)
    return time.perf_counter() - started


def check(operator: Operator, kind: Kind, keys: int, what: str) -> None:
    """That the state has each key, once."""
    if kind.keys is None:
        found: Any = operator.snapshot()[0]["groups"]
        assert found == keys, f"{what}: {found} keys, not {keys}"
        return
    seen = np.zeros(keys, bool)
    for rows in operator.contents():
        numbers = rows.column(kind.keys).to_numpy()
        assert not seen[numbers].any(), f"{what}: a key is there twice"
        seen[numbers] = True
    assert seen.all(), f"{what}: {keys - int(seen.sum())} keys are missing"


def megabytes(operator: Operator) -> float:
    return round(operator.statistics().get("bytes", 0) / 1e6, 1)


def timed_cut(operator: Operator) -> tuple[dict[str, Any], Cut, float]:
    """The facts, the cut, and how many seconds it took."""
    started = time.perf_counter()
    facts, cut = operator.snapshot()
    seconds = time.perf_counter() - started
    assert cut is not None
    return facts, cut, seconds


def best_and_worst(seconds: list[float]) -> dict[str, float]:
    return {"best": round(min(seconds) * 1e3, 2), "worst": round(max(seconds) * 1e3, 2)}


def measure(name: str, keys: int, budget: int, cuts: int) -> dict[str, Any]:
    kind = KINDS[name]
    with TemporaryDirectory(prefix="state-kinds-") as folder:
        root = Path(folder)
        operator, given = opened(kind), list(batches(keys, kind))
        seconds = fill(operator, given)
        stood = []
        for number in range(cuts):
            facts, cut, standing = timed_cut(operator)
            stood.append(standing)
            if number < cuts - 1:
                cut.discard()
        saved = root / "saved"
        saved.mkdir()
        started, used = time.perf_counter(), time.process_time()
        cut.save(saved)
        cut.discard()
        save_s, save_cpu_s = time.perf_counter() - started, time.process_time() - used
        saved_mb = sum(each.stat().st_size for each in saved.rglob("*") if each.is_file()) / 1e6
        mb = megabytes(operator)
        operator.close()
        operator = opened(kind)
        operator.restore([Saved(saved, json.loads(json.dumps(facts)))])
        check(operator, kind, keys, f"{name}, restored")
        operator.close()
        operator = opened(kind, root / "state", budget)
        spilling_s = fill(operator, given)
        budget_mb = megabytes(operator)
        stood_on_disk = []
        for _ in range(cuts):
            _, held, standing = timed_cut(operator)
            held.discard()
            stood_on_disk.append(standing)
        if kind.keys is None:  # RocksDB estimates how many keys it has; memory counts them
            again = root / "again"
            again.mkdir()
            facts, cut, _ = timed_cut(operator)
            cut.save(again)
            cut.discard()
            operator.close()
            operator = opened(kind)
            operator.restore([Saved(again, json.loads(json.dumps(facts)))])
        check(operator, kind, keys, f"{name}, under the budget")
        operator.close()
    return {
        "cut_ms": best_and_worst(stood),
        "budget_cut_ms": best_and_worst(stood_on_disk),
        "save_s": round(save_s, 2),
        "save_cpu_s": round(save_cpu_s, 2),
        "saved_mb": round(saved_mb, 1),
        "rows_per_s": round(keys / seconds),
        "mb": mb,
        "budget_mb": budget_mb,
        "spilling": round(keys / spilling_s),
        "within": budget_mb * 1e6 <= budget,
    }


async def measure_agents(keys: int, cuts: int) -> dict[str, Any]:
    """The timers of an agent, which stay in memory."""
    timers = KeyTimers("agent", SYSTEM_CLOCK, lambda due: None, lambda what, error: sys.exit(str(error)))
    started = time.perf_counter()
    for number in range(keys):
        timers.apply(state_key(number), [(True, 1 << 50, "")])
    seconds = time.perf_counter() - started
    stood = []
    with TemporaryDirectory(prefix="state-kinds-") as folder:
        for number in range(cuts):
            started = time.perf_counter()
            cut = timers.cut()
            stood.append(time.perf_counter() - started)
            assert cut is not None
            if number < cuts - 1:
                cut.discard()
        started = time.perf_counter()
        cut.save(Path(folder))
        cut.discard()
        save_s = time.perf_counter() - started
        again = KeyTimers("agent", SYSTEM_CLOCK, lambda due: None, lambda what, error: sys.exit(str(error)))
        again.load(Path(folder))
        assert len(again) == keys, f"{len(again)} timers, not {keys}"
    return {"cut_ms": best_and_worst(stood), "save_s": round(save_s, 2), "rows_per_s": round(keys / seconds)}


def pages() -> dict[str, int]:
    """The process's memory in bytes: its own pages, and all that are present."""
    told = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(told[field].split()[0]) * 1024 for name, field in (("own_mb", "RssAnon"), ("all_mb", "VmRSS"))}


def measure_growth(name: str, keys: int, times: int, budget: int | None) -> dict[str, Any]:
    """budget: None for a state in memory."""
    kind = KINDS[name]
    with TemporaryDirectory(prefix="state-kinds-") as folder:
        before, seconds = pages(), 0.0
        most = before
        operator = opened(kind) if budget is None else opened(kind, Path(folder) / "state", budget)
        for _ in range(times):
            for batch in batches(keys, kind):
                seconds += fill(operator, [batch])
                most = {each: max(most[each], now) for each, now in pages().items()}
        operator.close()
    grown = {each: round((most[each] - before[each]) / 1e6) for each in most}
    return {**grown, "rows_per_s": round(keys * times / seconds)}


def main() -> None:
    names = [*KINDS, OF_AGENTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="keys")
    parser.add_argument("--kinds", default=",".join(names), help="a list with commas")
    parser.add_argument("--budget", type=int, default=64_000_000, help="bytes")
    parser.add_argument("--cuts", type=int, default=3)
    parser.add_argument("--grows", choices=["budget", "memory"], help="measure the process instead")
    parser.add_argument("--times", type=int, default=3, help="how often each key comes, with --grows")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.kinds.split(","):
        if name not in names:
            sys.exit(f"there is no kind {name!r}: one of {', '.join(names)}")
        if name == OF_AGENTS:
            found[name] = asyncio.run(measure_agents(options.rows, options.cuts))
        elif options.grows is None:
            found[name] = measure(name, options.rows, options.budget, options.cuts)
        else:
            budget = options.budget if options.grows == "budget" else None
            found[name] = measure_growth(name, options.rows, options.times, budget)
        print(name, found[name], flush=True)
    print(json.dumps({"benchmark": "state_kinds", "rows": options.rows, "budget": options.budget, "kinds": found}))


if __name__ == "__main__":
    main()
