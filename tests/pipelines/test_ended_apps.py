"""An app whose inputs have all been read to their end: what its last checkpoint keeps, and what a start makes of it."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from sabot import App, NdjsonSource, ParquetSink, Stream, UserError, count
from sabot.api.nodes.read import Read
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.plan import make_plan, walk, with_schemas
from sabot.engine.plan.state_matching import compare, planned
from sabot.testing import ListSink
from tools.agent_tools import bounded, publish, until, values

PEOPLE = [{"id": n, "name": f"name-{n}"} for n in range(20)]
BIDS = [{"bid": n, "who": n * 7 % 25} for n in range(200)]
PAIRS = sorted((bid["bid"], f"name-{bid['who']}") for bid in BIDS if bid["who"] < 20)


def write(path: Path, rows: Sequence[Any]) -> None:
    with open(path, "a") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)


def joined(folder: Path, *, name: str | None = None, **settings: Any) -> App:
    """Joins two files, and writes the pairs exactly once."""
    settings = {"checkpoint_dir": folder / "checkpoints", "checkpoint_interval": "1h", "restart": "none", **settings}
    app = App("ended", **settings)
    bids, people = (app.stream(NdjsonSource(folder / f"{each}.ndjson")) for each in ("bids", "people"))
    pairs: Stream = bids.join(people, left_on="who", right_on="id")
    (pairs if name is None else pairs.named(name)).to(ParquetSink(folder / "out.parquet"))
    return app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "app"
    place.mkdir()
    write(place / "bids.ndjson", BIDS)
    write(place / "people.ndjson", PEOPLE)
    return place


def pairs(folder: Path) -> list[tuple[int, str]]:
    rows = pyarrow.parquet.read_table(folder / "out.parquet").to_pylist()
    return sorted((row["bid"], row["name"]) for row in rows)


def newest(folder: Path) -> Manifest:
    storage = CheckpointStorage(folder / "checkpoints")
    manifest = storage.latest()
    assert manifest is not None
    return manifest


def states(manifest: Manifest) -> set[str]:
    return {state for task in manifest.tasks.values() for state in task.states}


@pytest.mark.parametrize("parallelism", [1, 2])
async def test_rows_that_wait_for_partners_are_not_kept_when_none_will_come(folder: Path, parallelism: int) -> None:
    """Seen before: the last checkpoint of a join over two files took longer than the join."""
    app = joined(folder, parallelism=parallelism)
    await bounded(app.run())
    assert pairs(folder) == PAIRS
    manifest = newest(folder)
    assert not states(manifest)
    with pytest.raises(UserError, match="keeps no state"):
        app.state(next(id for id in operators(manifest) if "join" in id)).to_arrow()


def operators(manifest: Manifest) -> set[str]:
    return {operator for task in manifest.tasks.values() for operator in task.meta["operators"]}


async def test_a_join_with_a_name_can_be_read_when_all_has_ended(folder: Path) -> None:
    app = joined(folder, name="pairs")
    await bounded(app.run())
    rows = app.state("pairs").to_arrow().to_pylist()
    assert sum(row["side"] == "left" for row in rows) == len(BIDS)
    assert sum(row["side"] == "right" for row in rows) == len(PEOPLE)


async def test_results_that_are_tables_can_be_read_when_all_has_ended(folder: Path) -> None:
    app = App("totals", checkpoint_dir=folder / "checkpoints", checkpoint_interval="1h")
    totals = app.stream(NdjsonSource(folder / "bids.ndjson")).group_by("who").aggregate(n=count())
    totals.materialize().to(ParquetSink(folder / "out.parquet"))
    await bounded(app.run())
    (groups,) = (id for id in states(newest(folder)) if "materialize" not in id)
    assert app.state(groups).to_arrow().num_rows == 25


async def test_a_drain_keeps_the_rows_of_a_join(memory_url: str, tmp_path: Path) -> None:
    """Its inputs go on at the next start."""

    def program() -> App:
        app = App("drained", memory_url, checkpoint_dir=tmp_path / "checkpoints", checkpoint_interval="1h")
        bids = app.stream("bids", schema={"bid": "int64", "who": "int64"})
        people = app.stream("people", schema={"id": "int64", "name": "string"})
        bids.join(people, left_on="who", right_on="id").to("pairs")
        return app

    app = program()
    run = asyncio.ensure_future(app.run())
    await until(lambda: run.done() or app.statistics()["streams"], "the start")
    publish(app, "bids", BIDS)
    await until(lambda: rows_read(app) == len(BIDS), "the rows to be read")
    await bounded(app.stop(drain=True))
    await bounded(run)
    assert states(newest(tmp_path))
    app = program()
    run = asyncio.ensure_future(app.run())
    await until(lambda: run.done() or app.statistics()["streams"], "the next start")
    publish(app, "people", PEOPLE)
    await until(lambda: len(values(app, "pairs")) >= len(PAIRS), "the pairs")
    await bounded(app.stop())
    await bounded(run)
    assert sorted((pair["bid"], pair["name"]) for pair in values(app, "pairs")) == PAIRS


def rows_read(app: App) -> int:
    figures = app.statistics()["streams"]
    return sum(task["input"].get("rows_in", 0) for name, task in figures.items() if name.startswith("read"))


async def test_a_group_over_a_join_is_started_again_when_the_rows_of_the_join_are_gone(folder: Path) -> None:
    """A start that completes the output of an app that has ended was refused: the rows of the group were of a join without state."""

    def build() -> App:
        app = App("grouped", checkpoint_dir=folder / "checkpoints", checkpoint_interval="1h", restart="none")
        bids, people = (app.stream(NdjsonSource(folder / f"{each}.ndjson")) for each in ("bids", "people"))
        pairs = bids.join(people, left_on="who", right_on="id", how="left")
        pairs.group_by("name").aggregate(n=count()).changelog().to(ListSink())
        return app

    await bounded(build().run())
    writes = build().spec.ends
    reads = [node for node in walk(writes) if isinstance(node, Read)]
    plan = make_plan(with_schemas(writes, {id(read): read.source.infer_schema() for read in reads}))
    outcomes = {each.id: each.outcome for each in compare(planned(plan), newest(folder))}
    assert "refuse" not in outcomes.values()


async def test_a_join_with_changes_does_not_begin_with_their_table_again_when_its_rows_are_gone(folder: Path) -> None:
    """A start that completes the output of an app that has ended filled the join from the table, and wrote its rows twice."""

    def build() -> App:
        app = App("grouped", checkpoint_dir=folder / "checkpoints", checkpoint_interval="1h", restart="none")
        bids, people = (app.stream(NdjsonSource(folder / f"{each}.ndjson")) for each in ("bids", "people"))
        counts = bids.group_by("who").aggregate(n=count())
        people.join(counts, left_on="id", right_on="who", how="right").changelog().to(ListSink())
        return app

    await bounded(build().run())
    writes = build().spec.ends
    reads = [node for node in walk(writes) if isinstance(node, Read)]
    plan = make_plan(with_schemas(writes, {id(read): read.source.infer_schema() for read in reads}))
    verdicts = compare(planned(plan), newest(folder))
    (join,) = [each for each in verdicts if each.id.startswith("join")]
    assert (join.outcome, join.fills) == ("new", ())
    assert "all inputs had ended" in join.why


async def test_an_app_that_ended_at_until_does_not_leave_new_records_unread_in_silence(
    memory_url: str, tmp_path: Path
) -> None:
    def app(**settings: Any) -> App:
        made = App("live", memory_url, state="memory", checkpoint_dir=tmp_path / "checkpoints", **settings)
        made.stream("rows", schema={"n": "int64"}).group_by().aggregate(n=count()).upsert("n").to("out")
        return made

    publish(app(), "rows", [{"n": n} for n in range(5)])
    await bounded(app(until="now").run())
    await bounded(app(until="now").run())  # a second time: it has ended, and nothing is read twice
    publish(app(), "rows", [{"n": 5}])
    with pytest.raises(
        UserError, match=r"live had ended with checkpoint \d+ at the end that until= set, so what rows has got"
    ):
        await bounded(app().run())
