"""An agent and a stream of one app: they write into one sink, under one rule, and are cut by the same barriers."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot import AgentFailed, App, Batch, Sink, UserError, col
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, simulate
from tools.agent_tools import bounded, publish, until

NUMBERS = [{"n": n} for n in range(10)]


def into_one(sink: Sink, source: Any, words: Any, folder: Path | None = None, **deliveries: Any) -> App:
    """A stream of numbers and an agent that passes words on, both into this sink."""
    app = App("both", state=None if folder is None else str(folder), checkpoint_interval=0.05, restart="none")
    app.stream(source).filter(col("n") >= 0).to(sink, delivery=deliveries.get("stream"))

    @app.agent(words, sink=sink, delivery=deliveries.get("agent"))
    async def say(ctx: Any) -> Any:
        return {"said": ctx.message}

    return app


def split(rows: Sequence[dict[str, Any]]) -> tuple[Counter[int], Counter[str]]:
    """What came of the stream, and of the agent."""
    return Counter(row["n"] for row in rows if "n" in row), Counter(row["said"] for row in rows if "said" in row)


async def test_an_agent_and_a_stream_write_into_one_sink() -> None:
    sink = ListSink()
    table = pa.RecordBatch.from_pylist(NUMBERS)
    app = into_one(sink, ScriptedSource([table, END]), ScriptedSource(["a", "b", END], name="words"))
    await bounded(app.run())
    assert split(sink.rows) == (Counter(range(10)), Counter("ab"))


@pytest.mark.one_in(10, "the seeds differ in where crashes fall, and ten are run")
@pytest.mark.parametrize("seed", range(20))
def test_each_row_reaches_their_sink_once_whatever_dies(seed: int, tmp_path: Path) -> None:
    sink = ListSink()
    words = [f"w{n}" for n in range(12)]

    def build(folder: Path) -> App:
        rows = [pa.RecordBatch.from_pylist(NUMBERS[start : start + 2]) for start in range(0, 10, 2)]
        source = ScriptedSource([*rows[:3], BARRIER, CRASH, *rows[3:], END])
        return into_one(
            sink,
            source,
            ScriptedSource([words[:5], BARRIER, words[5:], END], name="words"),
            folder,
            stream="exactly_once",
            agent="exactly_once",
        )

    simulate(build, seed, crashes=3, stops=1, directory=tmp_path)
    assert split(sink.rows) == (Counter(range(10)), Counter(words))


async def test_two_who_write_one_sink_agree_on_its_delivery() -> None:
    app = into_one(
        ListSink(),
        ScriptedSource([END], schema=pa.schema([("n", pa.int64())])),
        ScriptedSource([END], name="words"),
        stream="exactly_once",
        agent="at_least_once",
    )
    with pytest.raises(
        UserError, match=r"sink list: two streams or agents write it with different delivery=.*give both the same"
    ):
        await bounded(app.run())


async def test_two_agents_agree_on_it_too(memory_url: str) -> None:
    app = App("both", broker=memory_url)
    app.agent("in", name="one", sink="out", delivery="exactly_once")(print)
    app.agent("in", name="other", sink="out", delivery="at_least_once")(print)
    with pytest.raises(UserError, match="sink out: two streams or agents write it with different delivery="):
        await bounded(app.start())


async def test_a_sink_of_changes_takes_no_rows_of_an_agent() -> None:
    app, sink = App("both"), ListSink()
    app.stream(ScriptedSource([pa.RecordBatch.from_pylist(NUMBERS), END])).upsert("n").to(sink)
    app.agent(ScriptedSource(["a", END], name="words"), name="say", sink=sink)(print)
    with pytest.raises(UserError, match="a stream writes changes into it"):
        await bounded(app.run())


async def test_an_agent_goes_on_writing_when_the_stream_has_ended(memory_url: str) -> None:
    sink = ListSink()
    app = App("both", broker=memory_url, checkpoint_interval=0.02)
    app.stream(ScriptedSource([pa.RecordBatch.from_pylist(NUMBERS), END])).to(sink)

    @app.agent("words", sink=sink)
    async def say(ctx: Any) -> Any:
        return {"said": ctx.message}

    running = asyncio.ensure_future(app.run())
    await until(lambda: len(sink.rows) == 10)
    publish(app, "words", ["late"])
    await until(lambda: {"said": "late"} in sink.rows)
    app.request_stop()
    await bounded(running)


async def test_a_drained_app_comes_to_its_end(memory_url: str) -> None:
    sink = ListSink()
    app = App("both", broker=memory_url, checkpoint_interval=0.02)
    app.stream("numbers", schema={"n": "int64"}).to(sink)
    called, drained = asyncio.Event(), asyncio.Event()

    @app.agent("words", sink=sink)
    async def say(ctx: Any) -> Any:
        called.set()
        await drained.wait()
        return {"said": ctx.message}

    publish(app, "numbers", NUMBERS)
    publish(app, "words", ["a"])
    await app.start()
    await bounded(called.wait())
    await until(lambda: len(sink.rows) == 10)
    stopping = asyncio.ensure_future(app.stop(drain=True))
    await asyncio.sleep(0)
    drained.set()
    await bounded(stopping)
    assert split(sink.rows) == (Counter(range(10)), Counter("a"))


# Errors of sinks, of agents as of streams


class Refuses(Sink):
    """A user's own, whose `write` raises."""

    name = "refuses"

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.tried = 0

    def open(self) -> None:
        """Ready."""

    def write(self, batch: Batch) -> None:
        self.tried += 1
        raise self.error

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing to let go of."""


@pytest.mark.parametrize(("error", "tries"), [(ValueError("odd value"), 1), (OSError("no answer"), 3)])
async def test_what_a_sink_of_an_agent_raises_is_tried_again_unless_it_will_be_so_again(
    error: Exception, tries: int, memory_url: str, tmp_path: Path
) -> None:
    app, sink = App("both", broker=memory_url, state=str(tmp_path), restart="fixed(2, 1ms)"), Refuses(error)
    app.agent("in", name="say", sink=sink)(lambda ctx: ctx.message)
    publish(app, "in", [1])
    with pytest.raises(AgentFailed, match=f"sink refuses: {type(error).__name__}: {error}") as raised:
        await bounded(app.run())
    assert sink.tried == tries
    assert ("cast the column" in raised.value.hint) == (tries == 1)
