"""All routes of the console of a running app, asked at random, by strangers and by those who may read or act: each request gets an answer,
none is an error of ours, the log stays empty, and the app's checkpoints go on.
"""

import asyncio
import logging
import random
import re
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from unit.web.test_console import MARKUP, Browser

import sabot
import sabot.web
from sabot import App, NdjsonSink
from sabot.testing import MemoryBroker
from sabot.web.console import Console
from sabot.web.payloads import Payloads
from tools.agent_tools import until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

REQUESTS = 1_200
ANSWERS = {200, 303, 400, 401, 403, 404, 405, 408, 409, 411, 413, 414, 421, 431, 499, 501, 503, 505}
ENDING = {"stop", "stop-with-savepoint"}  # these would end the app; other tests send them

ODD = [
    *(
        "",
        "0",
        "-1",
        "9" * 5_000,
        "9" * 20,
        "1e999",
        "NaN",
        "²",
        "٣",
        "true",
        "a" * 3_000,
        MARKUP,
        "=1+1",
        "0:17",
        "1:0:17",
        ":",
    ),
    *(
        "\x00",
        "a\x00b",
        "\r\n\r\n",
        "\t",
        "\u202e",
        "é",
        "\U0001f600",
        "../../etc/passwd",
        "//evil.example",
        "/\\evil.example",
        "%",
    ),
    *(
        "[" * 2_000,
        "{",
        "null",
        '{"a": "\\ud800"}',
        '{"choice": 1e999}',
        "9999-12-31T23:59:59Z",
        "-inf",
        "0001-01-01",
        "'",
    ),
]
RAW = [
    "%00",
    "%ED%A0%80",
    "%FF%FE",
    "%",
    "%zz",
    "%2e%2e%2f",
    "%2F%2Fevil",
    "%09",
    "%0d%0aSet-Cookie:x=1",
    "+",
    ";",
    "&&==",
    "%C0%AF",
]


def words_of_pages() -> list[str]:
    """The names of all fields of forms and parameters of addresses that the console knows."""
    folder = Path(sabot.web.__file__).parent
    texts = [each.read_text() for each in [*folder.rglob("*.html"), *folder.glob("*.py")]]
    return sorted(
        {found for text in texts for found in re.findall(r'(?:name="|(?:query|form)(?:\.get\()?\[?")(\w+)"', text)}
    )


class Client:
    """One who asks: a stranger, or somebody with a session."""

    def __init__(self, console: Console, browser: Browser, seed: str, known: list[str]) -> None:
        self.port = console.port
        self.browser = browser
        self.random = random.Random(seed)
        pages = console.screens[""]
        self.actions = sorted(pages.actions)
        paths = [each.path for each in pages.screens.values()]
        self.paths = [f"{path}{form}" for path in paths for form in ("", ".csv", ".json", ".bin")]
        self.paths += ["/enter", "/leave", "/nothing", *(f"/events/{name}" for name in [*pages.screens, "x"])]
        self.paths += [f"/assets/{name}" for name in ("", "x", "console.js", "../x")]
        self.words = words_of_pages()
        self.known = known

    def value(self) -> str:
        pick = self.random.random()
        if pick < 0.2:
            return self.random.choice(RAW)
        return quote(self.random.choice(ODD), safe="" if pick < 0.9 else "/:=")

    def fields(self, most: int) -> list[str]:
        some = self.random.sample(self.words, self.random.randint(0, most))
        return [f"{word}={self.value()}" for word in some]

    def target(self) -> str:
        pick = self.random.random()
        if pick < 0.35 and self.known:  # the address of a link, with one parameter changed, left out, or none
            split = urlsplit(self.random.choice(self.known))
            given = split.query.split("&")
            at = self.random.randrange(len(given))
            given[at : at + 1] = self.random.choice(
                [[], [given[at]], [f"{given[at].partition('=')[0]}={self.value()}"]]
            )
            return f"{split.path}?{'&'.join(given)}"
        path = self.random.choice(self.paths)
        if pick > 0.85:
            path += self.random.choice(["/", "//", "/x", "%00", "%2f", ".", "\\", "%ED%A0%80", "/../.."])
        if pick > 0.97:
            path = self.random.choice(["*", "http://x/", "x", "//", "/" + "a" * 9_000, "/%", "/\xff"])
        return f"{path}?{'&'.join(self.fields(4))}"

    def request(self) -> bytes:
        pick, rnd, browser = self.random.random(), self.random, self.browser
        host = browser.host if rnd.random() < 0.97 else rnd.choice(["x", "", "127.0.0.1", f"{browser.host}:1", "\xff"])
        headers = [f"Host: {host}", "Connection: close"]
        headers += [f"Cookie: {browser.cookie}"] if browser.cookie and rnd.random() < 0.97 else []
        if rnd.random() < 0.1:
            odd = [
                "Cookie: " + "x=;" * 50,
                'Cookie: a="\x7f',
                "X: " + "y" * 20_000,
                "Last-Event-ID: \xff",
                "Authorization: Bearer é",
            ]
            odd += [
                "Host: y",
                "Content-Length: 7",
                "Content-Length: x",
                "Transfer-Encoding: chunked",
                "Bad Name: x",
                "X: a\r\n b",
            ]
            headers.append(
                rnd.choice([*odd, "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate", "Expect: 100-continue"])
            )
        if pick < 0.55:
            return self.encoded(
                rnd.choice(["GET"] * 8 + ["HEAD", "PUT", "get", "OPTIONS", "G\x00T"]), self.target(), headers
            )
        action = (
            f"/act/{rnd.choice(self.actions)}"
            if pick < 0.93
            else rnd.choice(["/enter", "/leave/x", "/act/x", "/", "/steps"])
        )
        if action.removeprefix("/act/") in ENDING and browser.key:
            action = "/act/x"
        if browser.form or not browser.cookie:  # a program sends no origin
            headers += [f"Origin: http://{browser.host}"] if rnd.random() < 0.97 else ["Origin: null"]
        fields = [f"form={browser.form}", f"action_key={browser.key}", f"back={self.value()}", *self.fields(6)]
        if rnd.random() < 0.5 and self.known:
            fields += urlsplit(rnd.choice(self.known)).query.split("&")
        body = "&".join(fields).encode("utf-8", "replace")
        if rnd.random() < 0.05:
            body = rnd.choice([b"\xff\xfe", b"&" * 5_000, b"a=" + b"x" * 70_000, b"\x00", b"%" * 10])
        long = len(body) + (1 if rnd.random() < 0.005 else 0)  # a byte that does not come: 408 after five seconds
        return self.encoded("POST", action, [*headers, f"Content-Length: {long}"]) + body

    @staticmethod
    def encoded(method: str, target: str, headers: list[str]) -> bytes:
        return "\r\n".join([f"{method} {target} HTTP/1.1", *headers, "", ""]).encode("latin-1", "replace")

    def ask(self) -> tuple[int, bytes]:
        """The status of the answer to one request, 0 if the connection was closed without one, and the request."""
        sent = self.request()
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            answer = b""
            try:
                connection.sendall(sent)
                while (more := connection.recv(65_536)) and not (answer := answer + more).count(b"text/event-stream"):
                    pass
            except ConnectionError:  # it was closed while the rest of a refused request was on its way
                return 400, sent
        status = re.match(rb"(?:HTTP/1\.1 100 .*\r\n\r\n)?HTTP/1\.1 (\d{3}) ", answer)
        return int(status[1]) if status else 0, sent


def an_app(folder: Path, url: str) -> App:
    app = App(f"shop {MARKUP}", url, state=str(folder / "state"), checkpoint_interval="300ms")
    broker = MemoryBroker.get(url)
    broker.publish("tickets", [{"order": each, "note": MARKUP} for each in range(5)], key="ann")
    broker.publish("orders", [{"n": each} for each in range(12)], key="ann")

    @app.source(schema={"number": "int64"})
    def numbers(start: int) -> Any:
        for number in range(start, 1_000_000_000):
            time.sleep(0.02)
            yield {"number": number}

    app.stream(numbers).key_by("number").aggregate(n=sabot.count()).to(NdjsonSink(folder / "out.ndjson"))

    @app.agent("tickets", name="handle", durable=True, concurrency=10)
    async def handle(ctx: Any) -> None:
        await ctx.ask("confirm", {"order": ctx.message["order"]})

    @app.agent("orders", name="check", on_error="skip")
    async def check(ctx: Any) -> None:
        if ctx.message["n"] % 3:
            raise KeyError(f"no account {MARKUP}")

    return app


@pytest.mark.parametrize("who", ["a stranger", "read", "act", "a program"])
@pytest.mark.parametrize("seed", range(2))
async def test_no_request_is_an_error_of_ours(
    tmp_path: Path, memory_url: str, who: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    app = an_app(tmp_path, memory_url)
    console = Console(app, port=0, payloads=Payloads("all"))
    running = asyncio.create_task(app.run())
    try:
        while app.statistics()["checkpoints"]["last_id"] < 3:
            assert not running.done(), running
            await asyncio.sleep(0.1)

        def fuzz() -> Counter[int]:
            entered = Browser(console).enter(console.access.token("act"))
            pages = [entered.ask(each.path)[1] for each in console.screens[""].screens.values()]
            known = sorted(
                {each.replace("&amp;", "&") for page in pages for each in re.findall(r'href="(/[^"]*\?[^"]+)"', page)}
            )
            assert len(known) > 10
            browser = Browser(console)
            if who == "a stranger":
                browser.host = entered.host
            elif who == "a program":
                browser.cookie = f"x\r\nAuthorization: Bearer {console.access.token('act')}"
                browser.key = "x"
            else:
                browser = browser.enter(console.access.token(who))  # type: ignore[arg-type]
            client = Client(console, browser, f"{who} {seed}", known)
            answers: Counter[int] = Counter()
            for _ in range(REQUESTS):
                status, sent = client.ask()
                answers[status] += 1
                assert status in ANSWERS, (status, sent[:2_000])
            return answers

        before = app.statistics()["checkpoints"]["last_id"]
        answers = await asyncio.to_thread(fuzz)
        if who == "a stranger":
            assert answers[401] > REQUESTS / 3
        else:
            assert answers[200] > REQUESTS / 30
        if who in ("act", "a program"):
            assert answers[409] > 10, "actions that were asked for what is not there"
        await until(lambda: app.statistics()["checkpoints"]["last_id"] > before + 3)
        said = [
            each for each in caplog.records if each.name.startswith(("sabot.web", "sabot.base", "asyncio", "uvicorn"))
        ]
        assert [each.getMessage() for each in said] == []
        assert not running.done()
    finally:
        app.request_stop()
        await running
        console.close()
