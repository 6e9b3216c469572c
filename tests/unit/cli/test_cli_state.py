"""`sabot state`: what an app keeps, read by somebody else, in the forms that people and programs want."""

import asyncio
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli_checkpoints import PROGRAM, ROWS

import sabot
from sabot import App, NdjsonSource
from sabot.cli import load_app
from tools.command_line import lines, sabot_says


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The state directory of an app that has run to its end: totals by account, and the counts of an agent."""
    folder = tmp_path_factory.mktemp("totals")
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.ndjson").write_text(text)
    app = App("totals", state=str(folder / "state"))
    stream = app.stream(NdjsonSource(str(folder / "rows.ndjson")), time="ts")
    kept = stream.key_by("account").aggregate(n=sabot.count(), total=sabot.sum("amount"))
    kept.to(sabot.NdjsonSink(str(folder / "out.ndjson")))

    @app.agent(NdjsonSource(str(folder / "rows.ndjson")), key="account", name="seen")
    async def seen(ctx: Any) -> None:
        await ctx.state("last").put("amount", ctx.message["amount"])

    asyncio.run(app.run())
    return str(folder / "state")


def test_without_an_operator_it_is_said_who_keeps_state(state: str) -> None:
    found = lines("state", state, "--json")
    assert [(each["operator"], each["kind"], each["rows"]) for each in found] == [
        ("aggregate-1", "running aggregate", 3),
        ("totals.seen", "agent", None),
    ]
    table = sabot_says("state", state).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["operator", "aggregate-1", "totals.seen"]
    rows = list(csv.DictReader(io.StringIO(sabot_says("state", state, "--format", "csv").stdout)))
    assert [row["operator"] for row in rows] == ["aggregate-1", "totals.seen"]


def test_state_comes_as_a_table_as_json_and_as_csv(state: str) -> None:
    expected = {f"a{n}": (10, sum(row["amount"] for row in ROWS if row["account"] == f"a{n}")) for n in range(3)}
    rows = lines("state", state, "aggregate-1", "--json")
    assert {row["account"]: (row["n"], row["total"]) for row in rows} == expected
    text = sabot_says("state", state, "aggregate-1", "--format", "csv").stdout
    assert {row["account"]: (int(row["n"]), int(row["total"])) for row in csv.DictReader(io.StringIO(text))} == expected
    shown = sabot_says("state", state, "aggregate-1")
    assert {line.split()[0] for line in shown.stdout.splitlines()} == {"account", "a0", "a1", "a2"}
    assert shown.stderr.startswith("3 rows; checkpoint ")
    cut = sabot_says("state", state, "aggregate-1", "--limit", "2")
    assert (len(cut.stdout.splitlines()), cut.stderr.startswith("2 rows of 3; ")) == (3, True)


def test_one_key_is_asked_for_and_an_older_checkpoint(state: str) -> None:
    (row,) = lines("state", state, "aggregate-1", "--key", "a1", "--json")
    assert row["n"] == 10
    (row,) = lines("state", state, "totals.seen", "--key", "a2", "--json")
    assert (row["key"], row["value"]) == ("amount", 29)
    assert lines("state", state, "aggregate-1", "--key", "nobody", "--json") == []
    assert len(lines("state", state, "aggregate-1", "--as-of", "1", "--json")) == 3
    assert not (Path(state) / "checkpoints" / "restored").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nobody"], 1, "has no operator or agent 'nobody'"),
        (["aggregate-1", "--as-of", "99"], 1, "has no checkpoint 99"),
        (["aggregate-1", "--format", "xml"], 2, "'xml' is not one of table, json, csv"),
        (["aggregate-1", "--fresh", "--as-of", "1"], 2, "--fresh makes a new checkpoint, and --as-of names an old one"),
        (["aggregate-1", "--fresh"], 1, "no app runs on"),
    ],
)
def test_what_cannot_be_read_is_told(state: str, words: list[str], code: int, said: str) -> None:
    done = sabot_says("state", state, *words)
    assert (done.exit_code, said in done.stderr) == (code, True), done.stderr


async def test_the_state_of_a_running_app_as_it_is_now(
    tmp_path: Path, memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_ticks.py").write_text(
        f"{PROGRAM.format(broker=memory_url)}    done.set()\nimport asyncio\ndone = asyncio.Event()\n"
    )
    app = load_app("cli_ticks:app")
    await app.start()
    try:
        await app.send("ticks", 1)
        await sys.modules["cli_ticks"].done.wait()
        none = await asyncio.to_thread(sabot_says, "state", "cli_ticks:app", "counter.count")
        assert (none.exit_code, "holds no checkpoint" in none.stderr) == (1, True)
        (row,) = await asyncio.to_thread(lines, "state", "cli_ticks:app", "counter.count", "--fresh", "--json")
        assert (row["key"], row["value"]) == ("n", 1)
    finally:
        await app.stop()
