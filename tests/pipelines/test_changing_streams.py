"""An app over streams whose program changes from life to life: columns come and go behind joins as of event time, patterns, first rows of
windows, and chains of these. Each row that comes out is that of a run that nobody interrupted, in the columns that were always there; no
row is missing, none comes twice; or the start is refused, as `sabot plan --against` says.

SABOT_CHANGING_SEEDS=N draws N programs.
"""

import os
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import sabot
from sabot import App, Stream, UserError, col, step, tumbling
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.plan import check, make_plan
from sabot.engine.runtime.life.restore import Asked, decide
from tools.agent_tools import bounded, publish, until, values

SEEDS = int(os.environ.get("SABOT_CHANGING_SEEDS", "60"))
ORDERS = {"n": "int64", "k": "string", "x": "int64", "w": "string", "ts": "int64"}
QUOTES = {"q": "int64", "k": "string", "p": "int64", "r": "string", "ts": "int64"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A program. core: its step. columns: what comes out of that. sums: aggregates of windows behind it; none: its rows are written."""

    core: str
    columns: tuple[str, ...]
    sums: tuple[tuple[str, str], ...] = ()
    above: bool = False  # whether a filter that passes all rows stands before it
    beside: bool = False  # whether another pipeline stands beside it
    named: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        return ("k", "window_end") if self.sums else ("n", "q") if self.core == "interval" else ("n",)


EVERY = {
    "asof": ("x", "w", "p", "r"),
    "versions": ("x", "w", "p", "r"),
    "interval": ("x", "w", "p", "r"),
    "pattern": ("x", "p", "w", "r"),
    "first": ("x", "w"),
    "last": ("x", "w"),
}


def build(app: App, shape: Shape) -> None:
    def named(stream: Stream, name: str) -> Stream:
        return stream.named(name) if shape.named else stream

    orders = app.stream("orders", schema=ORDERS, time="ts")
    orders.select("n").to("ordered")  # so that it is the first to be read, whatever else the program does
    if shape.core == "versions":
        quotes = app.table("quotes", key="k", schema=QUOTES, time="ts").drop("ts")
        rows = orders.join_asof(quotes, on="k")
    else:
        quotes = app.stream("quotes", schema=QUOTES, time="ts")
        if shape.beside:
            orders.select("n").to("beside")
        if shape.above:
            orders = orders.filter(col("n") >= 0)
        if shape.core == "asof":
            rows = orders.join_asof(quotes.drop("ts"), on="k", tolerance="30s")
        elif shape.core == "interval":
            rows = orders.join(quotes.drop("ts"), on="k", between=("0s", "10s"))
        else:
            quotes.select("q").to("quoted")
            by_key = orders.key_by("k")
            if shape.core == "pattern":
                sought = sabot.pattern("a", col("x") > 3).then("b", col("x") < 2, times=(1, 2)).within("20s")
                made = {
                    "x": step("a").first("x"),
                    "p": step("b").sum("x"),
                    "w": step("a").last("w"),
                    "r": step("b").last("w"),
                }
                measures = {name: made[name] for name in shape.columns}
                rows = by_key.pattern(sought, n=step("b").last("n"), **measures)
            elif shape.core == "first":
                rows = by_key.window(tumbling("20s")).top_n(2, by=["x", "n"], descending=[True, False])
            else:
                rows = by_key.over(preceding=2, before=sabot.lag("x"))
    rows = named(rows, "core")
    if shape.sums:
        made_of = {name: getattr(sabot, kind)("n") for name, kind in shape.sums}
        sums = rows.key_by("k").window(tumbling("30s")).aggregate(**made_of)
        named(sums, "sums").to("out")
    else:
        rows.select(*dict.fromkeys([*shape.keys, *shape.columns])).to("out")


def drawn(rng: random.Random) -> Shape:
    core = rng.choice(list(EVERY))
    shape = Shape(core, _columns(core, rng), above=rng.random() < 0.5, named=rng.random() < 0.7)
    return replace(shape, sums=_sums(rng)) if core in ("asof", "versions", "pattern") and rng.random() < 0.4 else shape


def changed(shape: Shape, rng: random.Random) -> Shape:
    what = rng.choice(["columns", "columns", "sums", "above", "beside", "same"])
    if what == "columns":
        fewer = tuple(name for name in shape.columns if rng.random() < 0.7)
        return replace(shape, columns=fewer or shape.columns if rng.random() < 0.7 else _columns(shape.core, rng))
    if what == "sums" and shape.sums:
        return replace(shape, sums=tuple(dict([*shape.sums[:1], *_sums(rng)]).items()))
    if what == "above":
        return replace(shape, above=not shape.above)
    return replace(shape, beside=not shape.beside) if what == "beside" else shape


def _columns(core: str, rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.sample(EVERY[core], rng.randint(1, len(EVERY[core]))))


def _sums(rng: random.Random) -> tuple[tuple[str, str], ...]:
    kinds = {"total": "sum", "rows": "count", "low": "min", "high": "max", "mid": "mean", "kinds": "count_distinct"}
    return tuple((name, kinds[name]) for name in rng.sample(list(kinds), rng.randint(1, 3)))


class Lives:
    """The lives of one app, one after the other."""

    def __init__(self, broker: str, directory: Path, state: str) -> None:
        self.broker, self.directory, self.state = broker, directory, state
        self._written = 0
        for topic in ("orders", "quotes"):
            MemoryBroker.get(broker).create_topic(topic, partitions=1)

    def app(self, shape: Shape, parallelism: int) -> App:
        state = "memory" if self.state == "memory" else str(self.directory / "state")
        places = {"state": state, "checkpoint_dir": self.directory / "checkpoints"}
        app = App("shop", broker=self.broker, parallelism=parallelism, **places)
        build(app, shape)
        return app

    async def refused(self, shape: Shape, parallelism: int) -> bool:
        """Returns whether a start of the program is refused. What `sabot plan --against` says is the same."""
        manifest = CheckpointStorage(self.directory / "checkpoints").latest()
        assert manifest is not None
        plan = make_plan(self.app(shape, parallelism).spec.ends, parallelism=parallelism)
        try:
            check(decide(plan, manifest, Asked()).verdicts, manifest.checkpoint_id)
            return False
        except UserError as error:
            said = error.message
        with pytest.raises(UserError) as refused:
            await self.app(shape, parallelism).start()
        assert refused.value.message == said
        return True

    async def live(self, shape: Shape, rows: list[tuple[str, Row]], parallelism: int, *, last: bool) -> list[Row]:
        """Runs the program over these rows more. last: the streams end there. Returns what it has written."""
        app = self.app(shape, parallelism)
        for topic, row in rows:
            publish(app, topic, [row], key=row["k"])
        await app.start()
        await until(lambda: _read(app) == len(rows))
        await bounded(app.stop(drain=last))
        found = values(app, "out") if "out" in MemoryBroker.get(self.broker).topics() else []
        self._written, found = len(found), found[self._written :]
        return found


def _read(app: App) -> int:
    return sum(task["input"].get("rows_in", 0) for task in app.statistics()["streams"].values())


def history(rng: random.Random, count: int) -> list[tuple[str, Row]]:
    rows: list[tuple[str, Row]] = []
    for number in range(count):
        row = {"k": rng.choice("abc"), "ts": 1000 * number}
        if rng.random() < 0.35:
            rows.append(("quotes", {"q": number, "p": rng.randint(0, 9), "r": rng.choice("uvw"), **row}))
        else:
            rows.append(("orders", {"n": number, "x": rng.randint(0, 9), "w": rng.choice("uvw"), **row}))
    return rows


def by_key(shape: Shape, rows: list[Row], names: set[str]) -> Counter[Any]:
    return Counter(tuple(row[name] for name in [*shape.keys, *sorted(names)]) for row in rows)


async def lived(seed: int, broker: str, directory: Path) -> Counter[str]:
    """An app of up to four lives. Returns how often a start was right or refused; AssertionError where it was wrong."""
    rng = random.Random(seed)
    shape, rows = drawn(rng), history(rng, 120)
    told, counts = [f"seed {seed}", str(shape)], Counter[str]()
    lives = Lives(broker, directory, rng.choice(["memory", "rocksdb"]))
    ends = sorted(rng.sample(range(20, 110), rng.randint(1, 3)))
    written = [(shape, await lives.live(shape, rows[: ends[0]], rng.choice([1, 1, 2]), last=False))]
    for first, end in zip(ends, [*ends[1:], len(rows)], strict=True):
        other, parallelism = changed(shape, rng), rng.choice([1, 1, 2])
        told.append(f"{other} parallelism {parallelism} from {first}")
        if await lives.refused(other, parallelism):
            counts["refused"] += 1
            told.append("refused")
            other = shape
        counts["same" if other == shape else "changed"] += 1
        shape = other
        written.append((shape, await lives.live(shape, rows[first:end], parallelism, last=end == len(rows))))
    whole = replace(shape, columns=EVERY[shape.core])
    if shape.sums:
        whole = replace(whole, sums=tuple({each: None for life, _ in written for each in life.sums}))
    alone = Lives(f"{broker}-alone", directory / "alone", "memory")
    expected = await alone.live(whole, rows, 1, last=True)
    always = [set(dict(life.sums)) if shape.sums else set(life.columns) for life, _ in written]
    names = set.intersection(*always)
    found = [row for _, part in written for row in part]
    missing = by_key(shape, expected, names) - by_key(shape, found, names)
    doubled = by_key(shape, found, names) - by_key(shape, expected, names)
    assert missing + doubled == Counter(), f"{missing=} {doubled=} {names}\n" + "\n".join(told)
    MemoryBroker.get(f"{broker}-alone").reset()
    return counts


@pytest.mark.one_in(30, "a fifth of a second of a core each")
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_changed_program_over_streams_goes_on_or_is_refused(seed: int, memory_url: str, tmp_path: Path) -> None:
    await lived(seed, memory_url, tmp_path)
