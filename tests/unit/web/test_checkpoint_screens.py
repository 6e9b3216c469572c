"""The screens of checkpoints over HTTP: times of tasks, failures, savepoints and their end; requests that get nothing."""

import html
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from unit.engine.checkpoint.test_state_reads import count_first, shop, two_checkpoints
from unit.web.test_console import MARKUP, Browser
from unit.web.test_job_screens import ask, enter
from unit.web.test_state_screens import cells

from sabot import App
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.checkpoint.inspection import AppCheckpoints, checkpoint_records, create_savepoint, task_records
from sabot.web.console import Console
from tools.agent_tools import checkpoint, started

pytestmark = pytest.mark.usefixtures("warm_starts")


@pytest.fixture
async def console(memory_url: str, tmp_path: Path) -> AsyncIterator[Console]:
    """The console of an app that has made a checkpoint and runs on."""
    app = shop(memory_url, tmp_path, "rocksdb", parallelism=2)
    async with started(app):
        await count_first(app)
        await checkpoint(app)
        made = Console(app, port=0)
        yield made
        made.close()


async def page_with(browser: Browser, path: str, text: str) -> str:
    """Returns the page as soon as it has the text: checkpoints are read beside it."""
    deadline = time.monotonic() + 60
    while text not in (page := (await ask(browser, path))[1]):
        assert time.monotonic() < deadline
    return page


async def test_a_checkpoint_names_its_slowest_task(console: Console, tmp_path: Path) -> None:
    (record,), _ = checkpoint_records(AppCheckpoints(tmp_path / "kept"))
    manifest = CheckpointStorage(tmp_path / "kept").read(1)
    tasks = task_records(manifest)
    assert record.slowest == tasks[0].task
    assert 0 < tasks[0].reached <= record.seconds
    for each in tasks:
        assert min(each.reached, each.sync) > 0
        assert (each.saved > 0) == (each.bytes > 0)
        assert each.reached >= each.aligned + each.sync
    assert sum(each.bytes for each in tasks) == manifest.nbytes
    browser = await enter(console, "read")
    page = await page_with(browser, "/checkpoints", 'href="/checkpoint?id=1"')
    assert record.slowest in page
    page = (await ask(browser, "/checkpoint?id=1"))[1]
    assert [row[0] for row in cells(page)] == [each.task for each in tasks]
    assert [row["task"] for row in json.loads((await ask(browser, "/checkpoint.json?id=1"))[1])] == [
        each.task for each in tasks
    ]


@pytest.mark.slow  # half a second of a core
async def test_checkpoints_that_are_not_read_yet_are_not_said_to_be_missing(console: Console) -> None:
    browser = await enter(console, "read")
    deadline = time.monotonic() + 60
    while 'href="/checkpoint?id=1"' not in (page := (await ask(browser, "/checkpoints"))[1]):
        assert "They are being read." in page
        assert "None yet." not in page
        assert time.monotonic() < deadline


@pytest.mark.slow  # half a second of a core
async def test_a_savepoint_is_listed_and_deleted(console: Console, tmp_path: Path) -> None:
    made = create_savepoint(AppCheckpoints(tmp_path / "kept", chosen=1), None, 10)
    browser, reader = await enter(console, "act"), await enter(console, "read")
    page = (await ask(browser, "/checkpoints"))[1]
    found = re.search(r'name="savepoint" value="([0-9a-f]{16})"', page)
    assert found is not None
    command = f"sabot run MODULE:APP --state {tmp_path / 'rocksdb'} --from {made.savepoint}"
    assert f'<code class="command">{command}</code>' in page
    (state,) = re.findall(rf'<a href="(/state\?of={found[1]})">1</a>', page)
    assert "As of checkpoint 1, written" in (await ask(browser, state))[1]
    assert "drop-savepoint" not in (await ask(reader, "/checkpoints"))[1]
    assert (await ask(reader, "/act/drop-savepoint", {"savepoint": found[1]}))[0] == 403
    for name in ("", "../kept", str(tmp_path / "kept"), MARKUP, "0" * 16):
        status, said = await ask(browser, "/act/drop-savepoint", {"savepoint": name})
        assert (status, "no such savepoint" in said) == (409, True)
    assert Path(made.savepoint).exists()
    assert (await ask(browser, "/act/drop-savepoint", {"savepoint": found[1]}))[0] == 200
    assert not Path(made.savepoint).exists()
    assert CheckpointStorage(tmp_path / "kept").ids() == [1]


async def test_a_command_to_start_the_app_is_good_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my apps"
    folder.mkdir()
    monkeypatch.chdir(folder)
    app = App("shop", "memory://without-topics", state="home")
    console = Console(app, port=0, program=("shop:app",))
    try:
        browser = await enter(console, "act")
        page = html.unescape((await ask(browser, "/"))[1])
        command = f"cd '{folder}' && sabot run shop:app --state '{folder / 'home'}' --workers 2"
        assert f'<code class="command">{command}</code>' in page
    finally:
        console.close()


@pytest.mark.slow  # half a second of a core
async def test_a_savepoint_that_cannot_be_read_is_said(console: Console, tmp_path: Path) -> None:
    made = create_savepoint(AppCheckpoints(tmp_path / "kept", chosen=1), None, 10)
    (manifest,) = (Path(made.savepoint) / "checkpoints").iterdir()
    manifest.write_text("{}")
    browser = await enter(console, "act")
    assert "cannot be read" in (await ask(browser, "/checkpoints"))[1]
    assert "savepoint of" not in (await ask(browser, "/state"))[1]


@pytest.mark.slow  # half a second of a core
async def test_failures_have_their_reasons_for_those_who_may_act(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, f"No space left on device {MARKUP}")

    monkeypatch.setattr(CheckpointStorage, "begin", full)
    browser, reader = await enter(console, "act"), await enter(console, "read")
    assert (await ask(browser, "/act/checkpoint", {}))[0] == 409
    page = await page_with(browser, "/checkpoints", "Failed")
    assert "No space left on device &lt;script&gt;" in page
    assert "No space left" not in await page_with(reader, "/checkpoints", "The log has the reason.")


PROGRAM = """
import sabot
from sabot import App

print("imported: " + '{"id": "this is not an outcome"}')
app = App("shop", "memory://elsewhere", checkpoint_dir="kept")
orders = app.stream("orders", schema={"account": "string", "amount": "int64"}).key_by("account")
orders.aggregate(n=sabot.count(), total=sabot.sum("amount")).named("totals").to("totals", delivery="at_least_once")
"""


@pytest.mark.slow  # two seconds of a core
async def test_the_page_says_what_a_new_program_would_keep(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two_checkpoints(memory_url, tmp_path, "rocksdb")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "changed_shop.py").write_text(PROGRAM)
    app = App("shop", checkpoint_dir=str(tmp_path / "kept"))
    console = Console(app, port=0, program=("changed_shop:app",))
    browser, reader = await enter(console, "act"), await enter(console, "read")
    status, page = await ask(browser, "/checkpoint/plan?id=1")
    outcomes = {row[0]: row[1] for row in cells(page)}
    assert (outcomes["totals"], outcomes["steady"]) == ("keep", "drop")
    assert "would not continue all state of the checkpoint" in page
    assert "changed_shop" not in sys.modules, "a process of its own loads the program"
    found = {row["id"]: row for row in json.loads((await ask(browser, "/checkpoint/plan.json?id=1"))[1])}
    assert (found["totals"]["lost"], found["steady"]["lost"]) == (False, True)
    assert (await ask(reader, "/checkpoint/plan?id=1"))[0] == 403
    (tmp_path / "changed_shop.py").write_text(f"raise ValueError({MARKUP!r})")
    status, page = await ask(browser, "/checkpoint/plan?id=1")
    assert (status, "cannot be planned" in page, MARKUP in page) == (200, True, False)
    console.close()
    console = Console(app, port=0)
    browser = await enter(console, "act")
    assert "does not know the program" in (await ask(browser, "/checkpoint/plan?id=1"))[1]
    console.close()


@pytest.mark.one_in(9, "a fifth of a second of a core each")
@pytest.mark.parametrize("id", ["0", "2", "-1", "x", "1/../1", "..%2f1", quote("١"), quote(MARKUP), ""])
async def test_no_other_checkpoint_is_shown(console: Console, id: str) -> None:
    browser = await enter(console, "read")
    for path in ("/checkpoint", "/checkpoint.csv"):
        status, page = await ask(browser, f"{path}?id={id}")
        assert (status, "no such checkpoint" in page, MARKUP in page) == (404, True, False)
    assert '<a href="/checkpoints">Back to Checkpoints</a>' in (await ask(browser, f"/checkpoint?id={id}"))[1]
