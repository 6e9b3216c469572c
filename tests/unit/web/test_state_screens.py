"""The screen of state over HTTP: rows, one key, two checkpoints, savepoints; hidden values, and requests that get nothing."""

import base64
import csv
import io
import json
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from unit.engine.checkpoint.test_state_reads import two_checkpoints
from unit.web.test_console import MARKUP, Browser
from unit.web.test_job_screens import ask, enter
from unit.web.test_reader import begun, ended, endless

from sabot import App
from sabot.engine.checkpoint import Manifest
from sabot.engine.checkpoint.inspection import AppCheckpoints, create_savepoint
from sabot.engine.checkpoint.state_reads import owners_in
from sabot.testing import MemoryBroker
from sabot.web.console import Console
from sabot.web.payloads import Payloads
from sabot.web.reader import ConsoleReader
from tools.agent_tools import checkpoint, started, until

pytestmark = pytest.mark.usefixtures("warm_starts")


@pytest.fixture
async def kept(memory_url: str, tmp_path: Path) -> tuple[Manifest, Manifest]:
    return await two_checkpoints(memory_url, tmp_path, "rocksdb")


@pytest.fixture
async def consoles(kept: tuple[Manifest, Manifest], tmp_path: Path) -> AsyncIterator[Any]:
    """Opens the console of the app, which does not run, with some payloads."""
    opened = []

    async def open_console(payloads: Payloads | None = None) -> Browser:
        app = App("shop", state=str(tmp_path / "state"), checkpoint_dir=str(tmp_path / "kept"))
        opened.append(Console(app, port=0, payloads=payloads))
        return await enter(opened[-1], "act")

    yield open_console
    for each in opened:
        each.close()


def address(form: str = "", **query: object) -> str:
    return f"/state{form}?{urlencode(query)}"


def cells(page: str) -> list[list[str]]:
    """Returns the texts of the cells of each row of the table."""
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition("<tbody>")[2], re.DOTALL)
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[" ".join(unescape(re.sub(r"<[^>]*>", " ", cell)).split()) for cell in row] for row in found]


@pytest.mark.slow  # half a second of a core
async def test_the_owners_of_state_lead_to_their_rows_page_by_page(consoles: Any) -> None:
    browser = await consoles(Payloads("all"))
    status, page = await ask(browser, "/state")
    assert status == 200
    assert {row[0]: row[1] for row in cells(page)} == {
        "totals": "running aggregate",
        "steady": "running aggregate",
        "shop.notes": "agent",
    }
    status, page = await ask(browser, address(of=1, step="steady"))
    assert sorted(cells(page)) == sorted([f"a{n}", "5", f"{400 + 5 * n}"] for n in range(40))
    assert "the rows of all pages, up to 20,000" in page
    status, page = await ask(browser, address(of=1, step="shop.notes", q="a7"))
    assert cells(page) == [["shop.notes/seen", "a7", "rows", "[87, 127, 167]"]]
    status, page = await ask(browser, address(of=1, step="totals", q="nobody"))
    assert "This key has no state." in page


@pytest.mark.slow  # half a second of a core
async def test_two_checkpoints_are_beside_each_other(consoles: Any, kept: tuple[Manifest, Manifest]) -> None:
    browser = await consoles(Payloads("all"))
    status, page = await ask(browser, address(of=kept[1].checkpoint_id, step="totals", beside=kept[0].checkpoint_id))
    assert status == 200
    assert sorted(cells(page)) == [
        ["added", "<b>new</b>", "–", "n 1, total 5"],
        ["changed", "a7", "n 5, total 435", "n 6, total 1435"],
    ]
    assert "2 keys have changed from checkpoint 1 to this one." in re.sub(r"\s+", " ", page)
    assert "<b>new" not in page
    query = {"of": kept[1].checkpoint_id, "step": "totals", "beside": kept[0].checkpoint_id}
    found = {each["account"]: each for each in json.loads((await ask(browser, address(".json", **query)))[1])}
    assert found["a7"] == {"change": "changed", "account": "a7", "before": "n=5, total=435", "after": "n=6, total=1435"}
    status, page = await ask(browser, address(of=2, step="steady", beside=1))
    assert "0 keys have changed" in page
    assert "in files that are equal in both are not read" in page


async def test_in_place_of_a_checkpoint_that_has_gone_the_page_names_those_that_are_there(consoles: Any) -> None:
    browser = await consoles(Payloads("all"))
    status, page = await ask(browser, address(of=2, step="totals", beside=77))
    assert status == 200
    assert "Checkpoint 77 is not kept any more" in page
    (way,) = re.findall(r'<a href="([^"]*)">Compare with the oldest that is there, checkpoint 1</a>', page)
    assert "2 keys have changed from checkpoint 1" in re.sub(r"\s+", " ", (await ask(browser, unescape(way)))[1])
    status, page = await ask(browser, address(of=77, step="totals", q="a7"))
    assert (status, cells(page)) == (200, [["a7", "6", "1435"]])
    assert "Checkpoint 77 is not kept any more" in page
    assert re.search(r"As of checkpoint \d, written", page)
    _, page = await ask(browser, address(of=77, step="totals", beside=78))
    assert "Checkpoints 77 and 78 are not kept any more" in page


@pytest.mark.slow  # half a second of a core
async def test_long_binary_values_are_short_on_the_page_and_whole_in_json(memory_url: str, tmp_path: Path) -> None:
    app = App("shop", memory_url, state=str(tmp_path / "state"), checkpoint_dir=str(tmp_path / "kept"))

    @app.agent("in", name="notes")
    async def notes(ctx: Any) -> None:
        await ctx.state("seen").put("k", bytes(range(256)) * 13)

    MemoryBroker.get(memory_url).publish("in", [b"1"])
    async with started(app):
        await until(lambda: app.agent_runtime.get_stats()["shop.notes"]["messages_processed"] == 1)
        await checkpoint(app)
    console = Console(App("shop", checkpoint_dir=str(tmp_path / "kept")), port=0, payloads=Payloads("all"))
    try:
        browser = await enter(console, "act")
        ((*_, shown),) = cells((await ask(browser, address(step="shop.notes")))[1])
        assert shown == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYX… (4,440 characters)"
        (row,) = json.loads((await ask(browser, address(".json", step="shop.notes")))[1])
        assert base64.b64decode(row["value"]) == bytes(range(256)) * 13
    finally:
        console.close()


@pytest.mark.slow  # half a second of a core
async def test_values_are_hidden_but_those_that_are_named(consoles: Any) -> None:
    browser = await consoles()
    _, page = await ask(browser, address(of=2, step="totals"))
    assert cells(page)[0] == ["hidden"] * 3
    assert not [cell for row in cells(page) for cell in row if "1435" in cell]
    assert "Values of account, n, total are hidden" in page
    assert json.loads((await ask(browser, address(".json", of=2, step="totals")))[1])[0] == {
        "account": "",
        "n": "",
        "total": "",
    }
    browser = await consoles(Payloads("scrubbed", frozenset({"n"})))
    _, page = await ask(browser, address(of=2, step="totals", beside=1))
    assert ["changed", "hidden", "n 5, total hidden", "n 6, total hidden"] in cells(page)
    _, page = await ask(browser, address(of=2, step="shop.notes"))
    assert cells(page)[0] == ["shop.notes/seen", "hidden", "hidden", "hidden"], "a namespace is a name of the program"


@pytest.mark.slow  # half a second of a core
async def test_csv_and_json_have_the_rows_of_all_pages(consoles: Any) -> None:
    browser = await consoles(Payloads("all"))
    rows = json.loads((await ask(browser, address(".json", of=1, step="totals")))[1])
    assert sorted(row["account"] for row in rows) == sorted(f"a{n}" for n in range(40))
    text = (await ask(browser, address(".csv", of=1, step="shop.notes")))[1]
    assert next(csv.reader(io.StringIO(text))) == ["namespace", "record_key", "key", "value"]


@pytest.mark.slow  # half a second of a core
async def test_a_savepoint_is_shown_as_a_checkpoint_is(consoles: Any, tmp_path: Path) -> None:
    create_savepoint(AppCheckpoints(tmp_path / "kept", chosen=1), None, 10)
    browser = await consoles(Payloads("all"))
    page = (await ask(browser, "/state"))[1]
    found = re.search(r'value="([0-9a-f]{16})">savepoint of checkpoint 1 in ', page)
    assert found is not None
    page = (await ask(browser, address(of=found[1], step="totals", q="a7")))[1]
    assert cells(page) == [["a7", "5", "435"]]
    page = (await ask(browser, address(of=2, step="totals", beside=found[1])))[1]
    assert len(cells(page)) == 2


async def test_a_session_that_may_read_sees_no_state(
    consoles: Any, tmp_path: Path, kept: tuple[Manifest, Manifest]
) -> None:
    console = Console(App("shop", checkpoint_dir=str(tmp_path / "kept")), port=0, payloads=Payloads("all"))
    reader = await enter(console, "read")
    for path in (
        "/state",
        address(of=1, step="totals"),
        address(".json", of=1, step="totals"),
        address(".csv", step="totals"),
    ):
        status, page = await ask(reader, path)
        assert (status, ">a7<" in page) == (403, False), path
    assert "/state" not in (await ask(reader, "/"))[1]
    console.close()


@pytest.mark.slow  # half a second of a core
async def test_no_name_of_a_checkpoint_leads_elsewhere(consoles: Any) -> None:
    browser = await consoles(Payloads("all"))
    for name in ("../kept", "/etc", "99", "1/../2", MARKUP, "1%00", "-1", "0", "s3://bucket/x", "é"):
        await refuses(browser, name)


async def refuses(browser: Browser, name: str) -> None:
    for query in ({"of": name, "step": "totals"}, {"of": 1, "step": "totals", "beside": name}):
        for form in ("", ".json", ".csv"):
            status, page = await ask(browser, address(form, **query))
            said = "is not kept any more" if name.isdigit() and not form else "no such checkpoint"
            assert said in page, (status, page)
            assert MARKUP not in page


async def test_the_newest_checkpoint_is_the_next_one_if_it_goes_while_it_is_read(
    kept: tuple[Manifest, Manifest], consoles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, read, gone = await consoles(), ConsoleReader.read, []

    async def late(self: ConsoleReader, function: Any, *arguments: Any) -> Any:
        if not gone:
            gone.append(max(Path(kept[1].path).parent.glob("*.json")))
            gone[0].unlink()
        return await read(self, function, *arguments)

    monkeypatch.setattr(ConsoleReader, "read", late)
    status, page = await ask(browser, "/state")
    assert status == 200
    assert "totals" in [row[0] for row in cells(page)]


@pytest.mark.one_in(4, "a second of a core each")
@pytest.mark.parametrize("form", ["", ".json"])
@pytest.mark.parametrize("key", [{}, {"q": "a7"}])
async def test_rows_of_the_newest_checkpoint_are_those_of_the_next_one_if_it_goes_meanwhile(
    kept: tuple[Manifest, Manifest], consoles: Any, monkeypatch: pytest.MonkeyPatch, key: dict[str, str], form: str
) -> None:
    browser, read, pages = await consoles(Payloads("all")), ConsoleReader.read, ConsoleReader.pages
    gone: list[Path] = []

    def removed(function: Any) -> None:
        if function is not owners_in and not gone:
            gone.append(max(Path(kept[1].path).parent.glob("*.json")))
            gone[0].unlink()

    async def late(self: ConsoleReader, function: Any, *arguments: Any) -> Any:
        removed(function)
        return await read(self, function, *arguments)

    def late_pages(self: ConsoleReader, function: Any, *arguments: Any) -> Any:
        removed(function)
        return pages(self, function, *arguments)

    monkeypatch.setattr(ConsoleReader, "read", late)
    monkeypatch.setattr(ConsoleReader, "pages", late_pages)
    status, page = await ask(browser, address(form, step="totals", **key))
    assert status == 200, page
    if form:
        assert [each["n"] for each in json.loads(page) if each["account"] == "a7"] == ["6"]
    else:
        assert "As of checkpoint 2, written" in page, "the one before the last one, which has the state at the stop"
        assert ["a7", "6", "1435"] in cells(page)


@pytest.mark.slow  # half a second of a core
async def test_a_read_ends_when_its_page_is_left(kept: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    console = Console(App("shop", checkpoint_dir=str(tmp_path / "kept")), port=0)
    browser, screens = await enter(console, "act"), console.screens[""]

    async def slow(query: Any) -> dict[str, Any]:
        return {"number": await screens.reader.read(endless, str(tmp_path / "mark"))}

    screens.screens["state"] = replace(screens.screens["state"], more=slow)
    with socket.create_connection(("127.0.0.1", console.port)) as tab:
        tab.send(f"GET /state HTTP/1.1\r\nHost: {browser.host}\r\nCookie: {browser.cookie}\r\n\r\n".encode())
        process = await begun(tmp_path / "mark")
    await ended(process)
    assert (await ask(browser, "/"))[0] == 200
    console.close()


@pytest.mark.slow  # half a second of a core
async def test_markup_and_wrong_words_are_text(consoles: Any) -> None:
    browser = await consoles(Payloads("all"))
    for query in (
        {"of": 1, "step": MARKUP},
        {"of": 1, "step": "totals", "q": MARKUP},
        {"of": 1, "step": "totals", "at": MARKUP},
        {"of": 1, "step": "totals", "at": "0-1024-99999999999"},
        {"of": 2, "step": MARKUP, "beside": 1},
    ):
        status, page = await ask(browser, address(**query))
        assert status == 200
        assert MARKUP not in page
