"""Agents whose input is files of columns: CSV, Parquet and Arrow have no records, of which batch agents made their columns before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import csv, feather, parquet

from sabot import App, RowErrors, UserError
from sabot.connectors.files import NdjsonSink, files
from sabot.connectors.memory import MemoryBroker
from sabot.errors import AgentFailed
from tools.agent_tools import values

ORDERS = pa.table(
    {
        "id": pa.array(range(6), pa.int64()),
        "amount": pa.array([5, 50, 6, 60, 7, 70], pa.int64()),
        "by": ["ann", "bob"] * 3,
    }
)

WRITERS: dict[str, Callable[[Any, Any], Any]] = {
    "csv": csv.write_csv,
    "parquet": lambda table, path: parquet.write_table(table, path, row_group_size=2),
    "arrow": lambda table, path: feather.write_feather(table, path, compression="uncompressed", chunksize=2),
}


@pytest.fixture(params=WRITERS)
def orders(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"orders.{request.param}"
    WRITERS[request.param](ORDERS, str(path))
    return path


async def test_a_batch_agent_gets_the_columns_of_a_file(memory_url: str, orders: Path) -> None:
    app, names = App("shop", memory_url), set[tuple[str, ...]]()

    @app.agent(files(orders), sink="large", batch=True)
    async def large(batch: Any, ctx: Any) -> Any:
        names.add(tuple(batch.schema.names))
        return batch.filter(pc.greater(batch["amount"], 10))

    await app.run()
    assert names == {("id", "amount", "by")}
    assert values(app, "large") == [row for row in ORDERS.to_pylist() if row["amount"] > 10]


async def test_a_batch_agent_gets_the_columns_of_its_schema(memory_url: str, orders: Path) -> None:
    app = App("shop", memory_url)

    @app.agent(files(orders), sink="seen", batch=True, schema={"by": "string", "amount": "int64"})
    async def seen(batch: Any, ctx: Any) -> Any:
        return batch

    await app.run()
    assert values(app, "seen") == ORDERS.select(["by", "amount"]).to_pylist()


async def test_a_record_agent_gets_each_row_of_a_file(memory_url: str, orders: Path) -> None:
    app = App("shop", memory_url, state="memory")

    @app.agent(files(orders), sink="counts", key="by")
    async def counted(ctx: Any) -> Any:
        count = (await ctx.state().get("count") or 0) + 1
        await ctx.state().put("count", count)
        return {"id": ctx.message["id"], "count": count}

    await app.run()
    assert values(app, "counts") == [{"id": number, "count": number // 2 + 1} for number in range(6)]


async def test_rows_that_a_batch_agent_names_as_bad_are_dead_letters(memory_url: str, orders: Path) -> None:
    app = App("shop", memory_url)

    @app.agent(files(orders), sink="good", batch=True, dead_letter="bad")
    async def careful(batch: Any, ctx: Any) -> Any:
        if bad := {row: "too much" for row, amount in enumerate(batch["amount"].to_pylist()) if amount == 60}:
            raise RowErrors(bad)
        return batch

    await app.run()
    assert [row["id"] for row in values(app, "good")] == [0, 1, 2, 4, 5]
    (letter,) = MemoryBroker.get(memory_url).records("bad")
    assert (letter.value, dict(letter.headers)["sabot.message"]) == (ORDERS.to_pylist()[3], b"too much")


@pytest.mark.one_in(3, "a tenth of a second of a core each")
async def test_a_batch_agent_goes_on_in_the_file_where_it_had_failed(
    memory_url: str, orders: Path, tmp_path: Path
) -> None:
    broken = True

    def shop() -> App:
        app = App("shop", memory_url, state=str(tmp_path / "state"))

        @app.agent(files(orders), sink=NdjsonSink(tmp_path / "out.ndjson"), batch=True)
        async def fragile(batch: Any, ctx: Any) -> Any:
            if broken:
                raise ValueError("not today")
            return batch

        return app

    with pytest.raises(AgentFailed, match="not today"):
        await shop().run()
    broken = False
    await shop().run()
    assert (tmp_path / "out.ndjson").read_text().count("\n") == 6


async def test_columns_that_an_agent_asks_for_and_no_file_has_are_refused_at_the_start(
    memory_url: str, orders: Path
) -> None:
    app = App("shop", memory_url)

    @app.agent(files(orders), key="customer")
    async def keyed(ctx: Any) -> None:
        raise AssertionError

    with pytest.raises(UserError, match="customer"):
        await app.run()
    app = App("shop", memory_url)

    @app.agent(files(orders), batch=True, schema={"price": "int64"})
    async def priced(batch: Any, ctx: Any) -> None:
        raise AssertionError

    with pytest.raises((UserError, AgentFailed), match="price"):
        await app.run()


async def test_a_record_agent_over_columns_that_json_cannot_say_is_refused_at_the_start(
    memory_url: str, tmp_path: Path
) -> None:
    table = pa.table({"kept_for": pa.array([1], pa.duration("s"))})
    parquet.write_table(table, tmp_path / "x.parquet")
    app = App("shop", memory_url)

    @app.agent(files(tmp_path / "x.parquet"))
    async def blobs(ctx: Any) -> None:
        raise AssertionError

    with pytest.raises(UserError, match=r"agent shop.blobs, from .*x.parquet"):
        await app.run()


async def test_a_row_that_json_cannot_hold_ends_a_record_agent_by_name(memory_url: str, tmp_path: Path) -> None:
    """The app ended with an InternalError of the task of all agents."""
    parquet.write_table(pa.table({"blob": pa.array([b"\xff"], pa.binary())}), tmp_path / "x.parquet")
    app = App("shop", memory_url)

    @app.agent(files(tmp_path / "x.parquet"))
    async def blobs(ctx: Any) -> None:
        raise AssertionError

    with pytest.raises(AgentFailed, match=r"agent shop.blobs failed at its source .*'blob'.*batch=True"):
        await app.run()


@pytest.mark.parametrize("batch", [False, True])
def test_a_function_that_cannot_be_called_so_is_refused_where_it_is_written(batch: bool) -> None:
    """It failed at the first record."""
    called = "batch, ctx" if batch else "ctx"

    async def two(ctx: Any, more: Any, less: Any) -> None: ...

    async def none() -> None: ...

    for function in (two, none):
        with pytest.raises(UserError, match=rf"it is called as {function.__name__}\({called}\), but its function has"):
            App("shop").agent("orders", batch=batch)(function)

    async def defaults(first: Any, second: Any = None, *, third: Any = None) -> None: ...

    App("shop").agent("orders", batch=batch)(defaults)
