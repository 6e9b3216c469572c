"""What a checkpoint holds of operators: files and figures that somebody else may have written, and whose hashes he has made fit."""

import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from mutations import damaged_value, json_bytes, mutated, pack, unpack
from pyarrow import ipc

from sabot.api.expr import col
from sabot.api.functions import process_spec
from sabot.api.patterns import pattern, step
from sabot.api.windows import CumulativeWindow, HoppingWindow, TumblingWindow
from sabot.base.os_errors import restoring
from sabot.codecs.engine_columns import OP_COLUMN
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import TIME_COLUMN, Operator, Saved
from sabot.engine.operators.changes.groups import GroupAggregate
from sabot.engine.operators.changes.materialize import Materialize
from sabot.engine.operators.changes.steps import Changelog, Upsert
from sabot.engine.operators.functions.process import Process
from sabot.engine.operators.joins.asof import AsofJoin
from sabot.engine.operators.joins.interval import IntervalJoin
from sabot.engine.operators.joins.join import Join, TableLookup
from sabot.engine.operators.joins.sides import Sides
from sabot.engine.operators.joins.window import WindowJoin
from sabot.engine.operators.keyed.ordered import EventOrder
from sabot.engine.operators.keyed.over import Over
from sabot.engine.operators.keyed.over_state import OverColumn
from sabot.engine.operators.keyed.running import CountAggregate, Deduplicate, Reduce, RunningAggregate
from sabot.engine.operators.keyed.top import TopN
from sabot.engine.operators.patterns.match import Pattern
from sabot.engine.operators.reading import operators_of, state_of
from sabot.engine.operators.rows.subset import Sample
from sabot.engine.operators.windows.fixed import WindowAggregate
from sabot.engine.operators.windows.sessions import SessionAggregate
from sabot.engine.operators.windows.top import WindowTopN
from sabot.errors import SabotError
from targets.base import Target, refused, use
from tools.operator_run import OperatorRun

__all__ = ["State", "damaged_arrow"]

SCHEMA = pa.schema(
    [("user", pa.string()), ("shop", pa.int32()), ("x", pa.float64()), ("note", pa.string()), (TIME_COLUMN, pa.int64())]
)
CHANGES = SCHEMA.insert(len(SCHEMA) - 1, pa.field(OP_COLUMN, pa.int8()))
SHOPS = pa.schema([("number", pa.int32()), ("city", pa.string()), (TIME_COLUMN, pa.int64())])
SIDES = Sides(("shop",), ("number",), (("city", "city"),))
ROWS = [
    {
        "user": [f"u{number % 5}", None][number % 11 == 0],
        "shop": number % 3,
        "x": number / 4,
        "note": f"n{number % 4}",
        TIME_COLUMN: number * 10 + number * 7 % 30,
        OP_COLUMN: 0,
    }
    for number in range(40)
]
CITIES = [{"number": number, "city": f"c{number}", TIME_COLUMN: 100 + number} for number in range(4)]
CALLS = [
    AggregateColumn("n", "count"),
    AggregateColumn("total", "sum", "x", text="sum(x)"),
    AggregateColumn("spread", "stddev", "x", ddof=0),
]
GATHERED = [
    *(
        AggregateColumn("notes", "count_distinct", "note"),
        AggregateColumn("all", "collect_list", "x"),
        AggregateColumn("longest", "max", "note"),
    ),
    *(AggregateColumn("last", "last", "note"), AggregateColumn("least", "min", "x")),
]
SKETCHES = [
    *(
        AggregateColumn("about", "approx_count_distinct", "note"),
        AggregateColumn("middle", "approx_quantile", "x", q=0.5),
    ),
    AggregateColumn("most", "top_k", "note", k=2),
]


class _Mean:
    """A function of the user's."""

    type = pa.float64()
    name = "Mean"

    def init(self) -> Any:
        return {"sum": 0.0, "n": 0}

    def accumulate(self, state: Any, values: Any) -> Any:
        return {"sum": state["sum"] + sum(values.to_pylist()), "n": state["n"] + len(values)}

    def merge(self, state: Any, other: Any) -> Any:
        return {"sum": state["sum"] + other["sum"], "n": state["n"] + other["n"]}

    def finish(self, state: Any) -> Any:
        return state["sum"] / max(1, state["n"])


def _seen(row: Any, ctx: Any) -> None:
    ctx.state("last").put(row["x"])
    ctx.list("notes").add(row["note"])
    ctx.map("shops").put(row["shop"], (ctx.map("shops").get(row["shop"]) or 0) + 1)
    ctx.timers.event(ctx.timestamp + 1_000_000)


def _summed(so_far: Any, row: Any) -> Any:
    return {**row, "x": so_far["x"] + row["x"]}


class Case(NamedTuple):
    """An operator, how far its time comes before the barrier, and what it takes."""

    make: Callable[[], Operator]
    keys: Sequence[str] = ("user",)
    watermark: int | None = None
    changes: bool = False
    joined: bool = False
    ordered: bool = False


_RISES = pattern("low", col("x") < 1).then("high", col("x") >= 4, times=20).within("1h")
_STEPS = process_spec(_seen, schema={"n": "int64"}, on_timer=lambda timer, ctx: None)
CASES = {
    "running": Case(lambda: RunningAggregate(["user", "shop"], CALLS[:2]), ("user", "shop")),
    "ttl": Case(lambda: RunningAggregate(["user"], CALLS, ttl_ms=1000), watermark=200),
    "gathered": Case(lambda: WindowAggregate(TumblingWindow(200), ["user"], [*CALLS, *GATHERED]), watermark=100),
    "hopping": Case(lambda: WindowAggregate(HoppingWindow(60, 20, 5), ["user"], CALLS), watermark=100),
    "cumulative": Case(lambda: WindowAggregate(CumulativeWindow(90, 30), [], CALLS), (), watermark=100),
    "late": Case(lambda: WindowAggregate(TumblingWindow(50), ["user"], CALLS, allowed_lateness_ms=40), watermark=100),
    "sketches": Case(lambda: WindowAggregate(TumblingWindow(1000), ["user"], SKETCHES)),
    "function": Case(
        lambda: WindowAggregate(TumblingWindow(1000), ["user"], [AggregateColumn("m", "user", "x", function=_Mean())])
    ),
    "session": Case(lambda: SessionAggregate(25, ["user"], CALLS), watermark=50),
    "session-gathered": Case(lambda: SessionAggregate(25, ["user"], [*CALLS, *GATHERED]), watermark=50),
    "count": Case(lambda: CountAggregate(9, ["user"], CALLS)),
    "deduplicate": Case(lambda: Deduplicate(["note"]), ("note",)),
    "within": Case(lambda: Deduplicate(["note"], 100_000), ("note",)),
    "reduce": Case(lambda: Reduce(["user"], _summed)),
    "order": Case(lambda: EventOrder(("user",)), watermark=200),
    "join": Case(lambda: Join(SIDES, "full"), ("shop",), joined=True),
    "interval": Case(lambda: IntervalJoin(SIDES, "inner", 0, 200), ("shop",), 100, joined=True),
    "window-join": Case(lambda: WindowJoin(SIDES, "inner", TumblingWindow(600)), ("shop",), 100, joined=True),
    "asof": Case(lambda: AsofJoin(SIDES, "left"), ("shop",), 100, joined=True),
    "lookup": Case(lambda: TableLookup(SIDES, "left"), ("shop",), joined=True),
    "groups": Case(lambda: GroupAggregate(["user"], [*CALLS[:2], *GATHERED], changes=False)),
    "groups-changes": Case(lambda: GroupAggregate(["user"], [*CALLS[:2], *GATHERED[:3]], changes=True), changes=True),
    "upsert": Case(lambda: Upsert(["user"], changes=False)),
    "upsert-changes": Case(lambda: Upsert(["user"], changes=True), changes=True),
    "materialize": Case(lambda: Materialize(["user"]), changes=True),
    "materialize-all": Case(Materialize, (), changes=True),
    "top": Case(lambda: TopN(["user"], 2, [("x", True)], rank="place")),
    "top-changes": Case(lambda: TopN(["user"], 2, [("x", True)], changes=True), changes=True),
    "window-top": Case(lambda: WindowTopN(HoppingWindow(60, 20), ["user"], 2, [("x", True)], rank="r"), watermark=100),
    "over": Case(lambda: Over(["user"], [OverColumn("n", "count"), OverColumn("b", "lag", "x")]), ordered=True),
    "over-rows": Case(
        lambda: Over(["user"], [OverColumn("t", "sum", "x"), OverColumn("m", "min", "x")], preceding_rows=3),
        ordered=True,
    ),
    "over-range": Case(
        lambda: Over(["user"], [OverColumn("t", "sum", "x"), OverColumn("l", "last", "x")], preceding_ms=90),
        ordered=True,
    ),
    "over-lead": Case(
        lambda: Over(["user"], [OverColumn("a", "lead", "note"), OverColumn("r", "rank", "x")]), ordered=True
    ),
    "pattern": Case(
        lambda: Pattern(["user"], _RISES, "past_last", [("n", step("high").count()), ("x", step("low").last("x"))]),
        ordered=True,
    ),
    "process": Case(lambda: Process(["user"], _STEPS)),
    "changelog": Case(Changelog, (), changes=True),
    "sample": Case(lambda: Sample(0.5, 1), ()),
}


class State(Target):
    """Operators' state: read as `sabot state` reads it, and taken over by the operator, which then goes on."""

    name = "state"

    def __init__(self) -> None:
        super().__init__()
        self._saved: dict[str, dict[str, bytes]] = {}

    @property
    def seeds(self) -> Sequence[bytes]:  # type: ignore[override]
        return [pack(self._snapshot(name)) for name in CASES]

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(list(CASES))
        files = dict(self._snapshot(name))
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            which = rng.choice([each for each in files if each != "case"])
            if which == "facts":
                files[which] = json_bytes(damaged_value(rng, json.loads(files[which])))
            elif rng.random() < 0.7:
                files[which] = damaged_arrow(rng, files[which])
            else:
                files[which] = mutated(rng, [files[which]])
        return pack(files)

    def check(self, data: bytes) -> bool:
        files = unpack(data)
        case = CASES[files["case"].decode()]
        with tempfile.TemporaryDirectory(dir=self.directory) as folder:
            directory = Path(folder) / "saved"
            directory.mkdir()
            for name, content in files.items():
                if name not in ("case", "facts"):
                    (directory / name).parent.mkdir(parents=True, exist_ok=True)
                    (directory / name).write_bytes(content)
            facts = json.loads(files["facts"])
            if not isinstance(facts, dict) or _says_millions(files):
                return False
            saved = Saved(directory, facts)
            return bool(self._read(saved) | self._restored(case, saved, Path(folder) / "run"))

    def _read(self, saved: Saved) -> bool:
        saved_app = _SavedApp(saved)
        try:
            operators_of(saved_app)
            table = state_of(saved_app, "op-1")
        except SabotError as error:
            return refused(error)
        for batch in table.to_batches():
            use(batch)
        return True

    def _restored(self, case: Case, saved: Saved, directory: Path) -> bool:
        run = _run(case, directory)
        try:
            with restoring("op-1", saved.directory):  # as `runtime.tasks.task` does
                run._start(1, [saved])
            with suppress(Exception):  # what no program has written may fail later, loudly; memory stays whole
                _feed(run, case, ROWS[:7], CITIES[:2])
                run.checkpoint()
                run.end(timed=case.watermark is not None)
        except SabotError as error:
            return refused(error)
        finally:
            for part in run.parts:
                part.close()
        return True

    def _snapshot(self, name: str) -> dict[str, bytes]:
        if name not in self._saved:
            case = CASES[name]
            directory = Path(tempfile.mkdtemp(dir=self.directory))
            run = _run(case, directory)
            _feed(run, case, ROWS, CITIES)
            if case.watermark is not None:
                run.advance(case.watermark)
            (saved,) = run.checkpoint()
            run.parts[0].close()
            files = {"case": name.encode(), "facts": json_bytes(saved.facts)}
            for file in sorted(saved.directory.rglob("*")):
                if file.is_file():
                    files[file.relative_to(saved.directory).as_posix()] = file.read_bytes()
            shutil.rmtree(directory)
            self._saved[name] = files
        return self._saved[name]


def _says_millions(files: dict[str, bytes]) -> bool:
    """A table of changes says of a row how often it is there: a million times is legal, and takes as long as it says."""
    if not files["case"].startswith(b"materialize"):
        return False
    with suppress(pa.ArrowException, OSError):
        for name in files:
            if name.endswith(".arrow"):
                counts = ipc.open_file(pa.py_buffer(files[name])).read_all().column("0.sum")
                return any(abs(count or 0) > 1000 for count in counts.to_pylist())
    return False


def _run(case: Case, directory: Path) -> OperatorRun:
    input = CHANGES if case.changes else SCHEMA
    right: dict[str, Any] = {"right": SHOPS, "right_keys": ["number"]} if case.joined else {}
    return OperatorRun(case.make, input, list(case.keys), directory, **right)


def _feed(run: OperatorRun, case: Case, rows: list[dict[str, Any]], cities: list[dict[str, Any]]) -> None:
    if case.ordered:
        rows = sorted(rows, key=lambda row: row[TIME_COLUMN])
    schema = CHANGES if case.changes else SCHEMA
    run.feed(pa.RecordBatch.from_pylist(rows, schema=schema), 17)
    if case.joined:
        run.feed_right(pa.RecordBatch.from_pylist(cities, schema=SHOPS), 3)


class _Task(NamedTuple):
    meta: dict[str, Any]
    states: dict[str, str]


class _SavedApp:
    """A checkpoint of one operator, as reading sees it."""

    checkpoint_id = 7
    created_ms = 1_000_000

    def __init__(self, saved: Saved) -> None:
        self._directory = saved.directory
        meta = {"operators": {"op-1": saved.facts}, "texts": {"op-1": "what it does"}}
        self.tasks = {"t-1/0": _Task(meta, {"op-1": "states/0"})}

    def state_directory(self, task: str, name: str) -> Path:
        return self._directory


def damaged_arrow(rng: random.Random, data: bytes) -> bytes:
    """A valid Arrow file or stream with other values, rows, columns or notes; what is none is damaged as bytes."""
    try:
        return _rewritten_arrow(rng, data)
    except (pa.ArrowException, OSError, TypeError, ValueError):  # damaged already: its names may be no UTF-8, too
        return mutated(rng, [data])


def _rewritten_arrow(rng: random.Random, data: bytes) -> bytes:
    opened, write = (ipc.open_file, ipc.new_file) if data.startswith(b"ARROW1") else (ipc.open_stream, ipc.new_stream)
    reader = opened(pa.py_buffer(data))
    schema = reader.schema
    pieces = (
        [reader.get_batch_with_custom_metadata(number) for number in range(reader.num_record_batches)]
        if opened is ipc.open_file
        else [(batch, None) for batch in reader]
    )
    if not pieces:
        raise ValueError("no batches")
    for batch, _ in pieces:
        batch.validate(full=True)
    at = rng.randrange(len(pieces))
    batch, notes = pieces[at]
    dice = rng.random()
    if dice < 0.1 and batch.num_rows:
        rows = [rng.randrange(batch.num_rows) for _ in range(rng.randrange(2 * batch.num_rows))]
        batch = batch.take(pa.array(rows, pa.int64()))
    elif dice < 0.15:
        pieces.insert(at, pieces[at])
    elif dice < 0.2 and notes is not None:
        notes = {key: _other_note(rng, value) for key, value in notes.items()}
    else:
        batch = _other_value(rng, batch)
        schema = batch.schema
    pieces[at] = (batch, notes)
    out = io.BytesIO()
    with write(out, schema) as writer:
        for each, about in pieces:
            writer.write_batch(each, about)
    return out.getvalue()


def _other_note(rng: random.Random, note: bytes) -> bytes:
    value: Any = int(note) if note.lstrip(b"-").isdigit() else note.decode("latin-1")
    return str(damaged_value(rng, value)).encode(errors="replace")


def _other_value(rng: random.Random, batch: pa.RecordBatch) -> pa.RecordBatch:
    if not batch.num_rows or not batch.num_columns:
        return batch
    number = rng.randrange(batch.num_columns)
    field, values = batch.schema.field(number), batch.column(number).to_pylist()
    row = rng.randrange(len(values))
    value = values[row]
    for _ in range(20):
        if isinstance(value, bytes):
            values[row] = mutated(rng, [value])
        else:
            values[row] = damaged_value(rng, value)
        try:
            made = pa.array(values, field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
        if made.null_count and not field.nullable:
            continue
        columns = [*batch.columns]
        columns[number] = made
        return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    return batch
