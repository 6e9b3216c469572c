"""`sabot web`: the screens of apps that run elsewhere, or not at all, and the proxy before a console."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from unit.web.test_console import MARKUP, Browser
from unit.web.test_job_screens import ticket

from sabot import App, NdjsonSink, NdjsonSource, col
from sabot.agents import Budget
from sabot.agents.accounts.contract import LedgerEvent
from sabot.base.redaction import without_password
from sabot.cli.web import ConsoleOptions, _add, _places_of
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.checkpoint.inspection import AppCheckpoints
from sabot.engine.runtime.watch.run_record import RECORD_FILE
from sabot.errors import UserError
from sabot.web.access import Access
from sabot.web.console import Console, KeptConsole
from sabot.web.guard import Proxy
from sabot.web.kept_app import AppPlaces
from sabot.web.payloads import Payloads
from tools.agent_tools import publish, started, until
from tools.command_line import ENV, SABOT, child

pytestmark = pytest.mark.usefixtures("warm_starts")

SECRET = "a-secret-of-the-proxy-with-32-characters"


def shop(folder: Path, name: str = "shop") -> App:
    rows = folder / "orders.ndjson"
    rows.write_text('{"account": "a", "amount": 1.5}\n' * 20)
    app = App(name, state=str(folder / "state"), version="v7", broker="memory://")
    app.stream(NdjsonSource(rows), schema={"account": "string", "amount": "float64"}).to(
        NdjsonSink(folder / "out.ndjson")
    )
    return app


@contextmanager
def site(*places: Path | str, **options: Any) -> Iterator[Browser]:
    found: Any = []
    for each in places:
        _add(found, _places_of(str(each)))
    made = KeptConsole(found, Access(None), port=0, **options)
    try:
        yield Browser(made).enter(made.access.token("act"))
    finally:
        made.close()


async def ask(browser: Browser, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
    return await asyncio.to_thread(browser.ask, path, form=form)


@pytest.mark.slow  # a second of a core
def test_a_console_in_the_background_of_a_shell_ends_by_sigterm(tmp_path: Path) -> None:
    asyncio.run(shop(tmp_path).run())
    command = [*SABOT, "web", str(tmp_path / "state"), "--web-port", "0"]
    env, log = ENV | {"XDG_STATE_HOME": str(tmp_path / "home")}, tmp_path / "log"
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    with log.open("w") as file, child(*ignoring, env=env, stdout=file, stderr=file) as process:
        deadline = time.monotonic() + 60
        while "console of shop" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def test_figures_say_which_of_them_count_from_the_last_start(tmp_path: Path) -> None:
    await shop(tmp_path).run()
    with site(tmp_path / "state") as browser:
        assert "in this run" not in (await ask(browser, "/apps/shop/"))[1]
    await shop(tmp_path).run()
    with site(tmp_path / "state") as browser:
        _, page = await ask(browser, "/apps/shop/")
    for name in ("dead letters", "failed checkpoints"):
        assert f'<dt>{name}</dt><dd>0 <span class="muted">in this run</span>' in page
    assert '<dt>restarts</dt><dd>0 <span class="muted">of this process</span>' in page


@pytest.mark.parametrize("kind", ["restart", "rescale"])
async def test_figures_that_count_from_a_restart_or_a_rescale_say_when_it_was(kind: str, tmp_path: Path) -> None:
    await shop(tmp_path).run()
    record = tmp_path / "state" / RECORD_FILE
    told = json.loads(record.read_text())
    told["events"].append({**told["events"][-1], "at": 1_700_000_000.0, "kind": kind})
    record.write_text(json.dumps(told))
    with site(tmp_path / "state") as browser:
        _, page = await ask(browser, "/apps/shop/")
    for name in ("rows read", "dead letters"):
        words = re.sub(r"<[^>]+>", "", page.partition(f"<dt>{name}</dt>")[2].partition("</div>")[0])
        assert words.endswith(f"since the last {kind} at 2023-11-14 22:13:20 UTC"), words
    await shop(tmp_path).run()
    with site(tmp_path / "state") as browser:
        assert "since the last" not in (await ask(browser, "/apps/shop/"))[1]


async def test_rows_that_two_streams_read_are_told_by_source(tmp_path: Path) -> None:
    app = shop(tmp_path)
    orders, rates = tmp_path / "orders.ndjson", tmp_path / "rates.ndjson"
    rates.write_text('{"rate": 1.5}\n' * 3)
    app.stream(NdjsonSource(orders), schema={"account": "string"}).to(NdjsonSink(tmp_path / "again.ndjson"))
    app.stream(NdjsonSource(rates), schema={"rate": "float64"}).to(NdjsonSink(tmp_path / "rates-out.ndjson"))
    await app.run()
    with site(tmp_path / "state") as browser:
        _, page = await ask(browser, "/apps/shop/")
    told = re.sub(r"<[^>]+>", "", page.partition("<dt>rows read/s</dt>")[2].partition("</div>")[0])
    assert re.fullmatch(rf"\S+ in all: {orders} \S+ by 2 readers, {rates} \S+", told), told
    assert re.search(r"<dt>rows read</dt><dd>43 <[^>]*>in all, since the start at", page)


@pytest.mark.slow  # half a second of a core
async def test_a_dead_app_shows_what_its_last_run_has_left(tmp_path: Path) -> None:
    await shop(tmp_path).run()
    with site(tmp_path / "state") as browser:
        status, page = await ask(browser, "/apps/shop/")
        assert status == 200
        assert "The app does not run. All is as of" in page
        assert "<dt>rows read</dt><dd>20 <" in page
        said = "exactly once: it stores the number of the last part in one step with the rows"
        assert f'<th scope="row">NdjsonSink {tmp_path}/out.ndjson</th><td class="muted">{said}</td>' in page
        assert "since the start at <time" in page
        assert 'class="sabot-plan"' in page
        assert "orders.ndjson" in page
        assert "v7" in page
        assert "cannot be stopped or asked for checkpoints from here: it does not run" in page
        assert "/act/stop" not in page
        assert (await ask(browser, "/apps/shop/act/stop", {}))[0] == 409
        links = re.findall(r'(?:href|action)="(/[^"]*)"', page)
        assert [each for each in links if not re.match(r"/$|/apps/shop/|/assets/|/leave$", each)] == []
        for each in set(links) - {"/leave"}:
            assert (await ask(browser, each.partition("?")[0]))[0] in (200, 404, 405), each
        assert (await ask(browser, "/apps/nobody/"))[0] == 404


@pytest.mark.slow  # half a second of a core
async def test_a_killed_app_is_told_from_a_stopped_one(tmp_path: Path) -> None:
    await shop(tmp_path).run()
    record = tmp_path / "state" / RECORD_FILE
    with site(tmp_path / "state") as browser:
        assert '<span class="badge stopped">' in (await ask(browser, "/"))[1]
        record.write_text(record.read_text().replace('"state":"stopped"', '"state":"running"'))
        await seen(browser, "/apps/shop/", "its process has ended without a stop")
        assert '<span class="badge killed">' in (await ask(browser, "/"))[1]
        told = json.loads(record.read_text())
        for tick in told["figures"]["ticks"]:
            tick["at"] -= 60
        record.write_text(json.dumps(told))
        await seen(
            browser, "/apps/shop/", '<span class="badge killed stale">killed</span> <span class="muted asof">as of'
        )
        record.write_text("{")
        await seen(browser, "/apps/shop/", "its process has ended")
        assert "v7" in (await ask(browser, "/apps/shop/"))[1], "the last good record stays"
        record.write_text(json.dumps(told))
        await shop(tmp_path).run()
        await seen(browser, "/apps/shop/", "<td>after <time")  # the time of a kill is not known


async def seen(browser: Browser, path: str, text: str) -> None:
    def look() -> None:
        deadline = time.monotonic() + 60
        while text not in (page := browser.ask(path)[1]):
            assert time.monotonic() < deadline, page
            time.sleep(0.05)

    await asyncio.to_thread(look)


@pytest.mark.slow  # half a second of a core
async def test_a_running_app_is_asked_for_a_checkpoint_and_stopped(tmp_path: Path) -> None:
    app = App("idle", state=str(tmp_path / "state"), broker="memory://kept-idle", checkpoint_interval=3600)
    app.agent("in", name="f")(lambda ctx: None)
    running = asyncio.create_task(app.run())
    try:
        await until((tmp_path / "state" / RECORD_FILE).exists)
        with site(tmp_path / "state") as browser:
            assert "the app runs in another process" in (await ask(browser, "/apps/idle/"))[1]
            await seen(browser, "/apps/idle/", "Workers need topics in Kafka")
            assert "--workers" not in (await ask(browser, "/apps/idle/"))[1]
            status, page = await ask(browser, "/apps/idle/act/checkpoint", {"back": "checkpoints"})
            assert '<a href="/apps/idle/checkpoints">Back to Checkpoints</a>' in page
            assert (status, "Checkpoint 1 is complete." in page) == (200, True)
            status, page = await ask(browser, "/apps/idle/act/rescale", {"workers": "2"})
            assert (status, "has no workers" in page) == (409, True)
            assert (await ask(browser, "/apps/idle/act/rescale", {"workers": "-1"}))[0] == 409
            status, page = await ask(browser, "/apps/idle/act/stop-with-savepoint", {})
            assert status == 200, page
            assert "is kept in" in page
            await asyncio.wait_for(running, 60)
            await seen(browser, "/apps/idle/", "The app does not run.")
        assert len(list((tmp_path / "state" / "checkpoints" / "savepoints").iterdir())) == 1
    finally:
        running.cancel()


async def test_an_app_has_its_name_as_soon_as_its_first_start_has_written_it(tmp_path: Path) -> None:
    """Who looked at it between the lock and the record saw it as `state`, until the console was started again."""
    app = shop(tmp_path, MARKUP)
    storage = CheckpointStorage(tmp_path / "state" / "checkpoints")
    storage.lock()
    with site(tmp_path / "state") as browser:
        assert ">state</a>" in (await ask(browser, "/"))[1]
        storage.unlock()
        await app.run()
        await seen(browser, "/", f">{escape(MARKUP)}</a>")


@pytest.mark.slow
async def test_rows_behind_a_step_of_an_app_in_another_process_are_shown(tmp_path: Path) -> None:
    app = App("shop", state=str(tmp_path / "state"), broker="memory://kept-rows", checkpoint_interval=3600)
    app.stream("orders", schema={"account": "string", "amount": "int64"}).filter(col("amount") > 0).to("out")
    running = asyncio.create_task(app.run())

    async def feed() -> None:
        for amount in range(1, 10_000):
            await app.send("orders", {"account": f"SECRET {MARKUP}", "amount": amount})
            await asyncio.sleep(0.02)

    feeding = asyncio.create_task(feed())
    try:
        await until((tmp_path / "state" / RECORD_FILE).exists)
        with site(tmp_path / "state", payloads=Payloads(names=frozenset({"amount"}))) as browser:
            points: list[str] = []
            while not points:  # the first figures come with the first record of the run
                points = re.findall(r'href="(/apps/shop/rows\?[^"]+)"', (await ask(browser, "/apps/shop/rows"))[1])
            path = unescape(points[-1])
            rows: list[dict[str, str]] = []
            while not rows:
                rows = json.loads((await ask(browser, path.replace("/rows?", "/rows.json?")))[1])
                await asyncio.sleep(0.05)
            assert all(each["amount"].isdecimal() for each in rows)
            assert "SECRET" not in json.dumps(rows)
            running.cancel()
            await asyncio.wait([running])
            await seen(browser, path, "only running streams have rows")
    finally:
        feeding.cancel()
        running.cancel()


async def test_budgets_of_an_app_in_another_process_are_shown_and_their_use_when_it_is_dead(tmp_path: Path) -> None:
    budget = Budget(f"ann {MARKUP}", max_tokens_daily=170)
    app = App("shop", state=str(tmp_path / "state"), broker="memory://kept-budgets", budgets=[budget])

    @app.agent("questions", durable=True)
    async def handle(ctx: Any) -> None: ...

    used = LedgerEvent(
        event_id="1",
        type="model",
        scope_id=budget.scope_id,
        name="m",
        input_tokens=100,
        at_ms=round(time.time() * 1000),
    )
    assert app.accounts is not None
    await app.accounts.writer.write([used])
    running = asyncio.create_task(app.run())
    try:
        await until((tmp_path / "state" / RECORD_FILE).exists)
        with site(tmp_path / "state") as browser:
            (limit,) = json.loads((await ask(browser, "/apps/shop/budgets.json?of=limits"))[1])
            assert (limit["limit"], limit["spent"]) == ("170", "100")
            status, page = await ask(browser, "/apps/shop/budgets")
            assert (status, MARKUP in page, "The last 200 calls" in page) == (200, False, True)
            running.cancel()
            await asyncio.wait([running])
            await seen(browser, "/apps/shop/budgets", "are known to the running app only")
            (row,) = json.loads((await ask(browser, "/apps/shop/budgets.json?by=scope%2C+model"))[1])
            assert (row["model"], row["read"]) == ("m", 100)
    finally:
        running.cancel()


@pytest.mark.slow  # a second of a core
async def test_ten_apps_are_in_one_server(tmp_path: Path) -> None:
    folders = []
    for n in range(10):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        await shop(folder, f"shop {n % 9} {MARKUP}").run()
        folders.append(folder / "state")
    with site(*folders) as browser:
        rows = json.loads((await ask(browser, "/.json"))[1])
        assert len(rows) == 10
        assert {each["state"] for each in rows} == {"stopped"}
        status, page = await ask(browser, "/")
        assert status == 200
        assert MARKUP not in page
        paths = re.findall(r'href="(/apps/[^"]+/)"', page)
        assert len(set(paths)) == 10
        for path in paths:
            assert (await ask(browser, path))[0] == 200
        assert len(re.findall(r'href="/apps/', (await ask(browser, "/?q=shop%205"))[1])) == 1


@pytest.mark.slow  # half a second of a core
async def test_the_places_of_one_app_are_shown_together(memory_url: str, tmp_path: Path) -> None:
    app = App(
        "shop",
        memory_url,
        state=str(tmp_path / "state"),
        journal=str(tmp_path / "jobs" / "shop"),
        checkpoint_interval=3600,
    )
    app.agent("tickets", name="handle", key="customer", sink="answers", durable=True)(ticket)
    async with started(app):
        publish(app, "tickets", [{"customer": "ann"}])
        await until(lambda: app.statistics()["jobs"]["parked"] == 1)
        await app.agent_runtime.trigger_checkpoint()
    with site(tmp_path / "state" / "checkpoints", tmp_path / "jobs" / "shop") as browser:
        assert len(re.findall(r'href="/apps/', (await ask(browser, "/"))[1])) == 1
        page = (await ask(browser, "/apps/shop/jobs"))[1]
        assert "shop.handle" in page
        found = re.search(r'href="(/apps/shop/job\?id=[^"]+)"', page)
        assert found is not None
        assert (await ask(browser, found[1]))[0] == 200


def test_the_journal_of_a_record_and_the_same_one_with_a_password_are_one_place() -> None:
    recorded = without_password("postgresql://ann:hunter-2-word@host/jobs")
    assert recorded == "postgresql://ann@host/jobs"
    known, given = AppPlaces("shop", journal=recorded), "postgresql://ann:hunter-2-word@host/jobs?app=shop"
    for places in ([known, AppPlaces("shop", journal=given)], [AppPlaces("shop", journal=given), known]):
        found: list[AppPlaces] = []
        for each in places:
            _add(found, each)
        assert [each.journal for each in found] == [given]
    _add(found, AppPlaces("shop", journal="postgresql://ann@host/others"))
    assert len(found) == 2


def test_checkpoints_that_are_named_again_keep_the_state_directory_by_which_the_app_is_asked(tmp_path: Path) -> None:
    beside = AppCheckpoints(tmp_path, state=tmp_path / "state")
    for places in ([beside, AppCheckpoints(tmp_path)], [AppCheckpoints(tmp_path), beside]):
        found: list[AppPlaces] = []
        for each in places:
            _add(found, AppPlaces("shop", checkpoints=each))
        (made,) = found
        assert made.checkpoints is not None
        assert made.checkpoints.state == tmp_path / "state"


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "there is no directory nowhere"),
        (".", "is no state directory, and has neither checkpoints nor a journal"),
        ("postgresql://ann:s3cret@127.0.0.1:1/x", "connection failed"),
        ("gopher://x/y", "gopher"),
    ],
)
def test_a_bad_place_is_one_clear_line(place: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*SABOT, "web", place],
        cwd=tmp_path,
        env=ENV | {"XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "s3cret" not in done.stderr


# -- a proxy ----------------------------------------------------------------------------------------------------------


@contextmanager
def behind(folder: Path, proxy: Proxy) -> Iterator[Console]:
    made = Console(shop(folder), port=0, proxy=proxy, origins=("https://shop.example",))
    try:
        yield made
    finally:
        made.close()


def test_a_request_that_does_not_come_from_the_proxy_gets_nothing(tmp_path: Path) -> None:
    with behind(tmp_path, Proxy("192.0.2.9")) as console:
        for path in ("/", "/enter?token=" + console.access.token("act"), "/assets/console.js"):
            status, page = Browser(console).ask(path)
            assert status == 403
            assert "orders" not in page
        assert console.link.startswith("https://shop.example/enter?token=")


@pytest.mark.parametrize(
    ("headers", "user"),
    [
        ({"X_User": "ann", "X_Sabot_Proxy_Secret": SECRET}, "ann"),
        ({"X_User": "ann"}, ""),
        ({"X_User": "ann", "X_Sabot_Proxy_Secret": SECRET[:-1]}, ""),
        ({"X_User": "ann", "X_Sabot_Proxy_Secret": ""}, ""),
        ({"X_Sabot_Proxy_Secret": SECRET}, ""),
        ({"X_Forwarded_User": "ann", "X_Sabot_Proxy_Secret": SECRET}, ""),
    ],
)
def test_a_user_counts_only_with_the_secret_of_the_proxy(headers: dict[str, str], user: str, tmp_path: Path) -> None:
    seen: list[str] = []

    async def who(form: Any) -> str:
        seen.append(form["by"])
        return "done"

    with behind(tmp_path, Proxy("127.0.0.1", "x-user", SECRET)) as console:
        console.screens[""].actions["stop"] = who
        browser = Browser(console).enter(console.access.token("act"))
        assert browser.ask("/act/stop", form={"by": "mallory"}, **headers)[0] == 200
        assert Browser(console).ask("/", **headers)[0] == 401, "a user has no session without a token"
    assert seen == [user] if user else seen[0].startswith("console:")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"web_listen": "0.0.0.0"}, "listens on the loopback address only"),
        ({"web_listen": "shop.example", "web_behind_proxy": "10.0.0.1"}, "no IPv4 address"),
        ({"web_user_header": "X-User"}, "counts only from a proxy"),
        ({"web_behind_proxy": "10.0.0.1", "web_user_header": "X-User"}, "counts only from a proxy"),
        ({"web_behind_proxy": "here"}, "no IPv4 address"),
    ],
)
def test_an_open_address_and_a_user_header_need_a_proxy(given: dict[str, str], said: str) -> None:
    options = ConsoleOptions(**given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        _ = options.address, options.proxy
    assert ConsoleOptions(web_listen="0.0.0.0", web_behind_proxy="10.0.0.1").address == "0.0.0.0"


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("short")
    options = ConsoleOptions(web_behind_proxy="127.0.0.1", web_user_header="X-User", web_proxy_secret=file)
    with pytest.raises(UserError, match="32 or more"):
        _ = options.proxy
    file.write_text(SECRET + os.linesep)
    assert options.proxy == Proxy("127.0.0.1", "x-user", SECRET)
