"""The console over HTTP: entering, pages and actions, and requests of an attacker, each of which gets nothing."""

import asyncio
import gzip
import http.client
import json
import logging
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from sabot import App, NdjsonSink, NdjsonSource, col
from sabot.base.http_server import LimitedServer
from sabot.clock import ManualClock
from sabot.engine.checkpoint.inspection import AppCheckpoints, checkpoint_records
from sabot.errors import UserError
from sabot.web import pages
from sabot.web.access import Access
from sabot.web.console import Console, ConsoleSite
from sabot.web.guard import Guard
from sabot.web.records import StepRecord, chosen, folded
from sabot.web.texts import cell, table_text
from tools.agent_tools import PATIENCE

MARKUP = "<script>alert(1)</script>"


class Browser:
    """A client that keeps its cookie, as a browser does."""

    def __init__(self, console: ConsoleSite) -> None:
        self.port = console.port
        self.host = f"127.0.0.1:{console.port}"
        self.cookie = ""
        self.form = ""
        self.key = ""
        self.answer_headers: dict[str, str] = {}

    def ask(
        self, path: str, *, method: str = "GET", form: dict[str, Any] | None = None, **headers: str | None
    ) -> tuple[int, str]:
        """Sends a request with the headers of a browser; those that are None are left out."""
        own = {"Host": self.host, "Cookie": self.cookie or None}
        body = None
        if form is not None:
            method, body = "POST", urlencode({"form": self.form, "action_key": self.key} | form, doseq=True)
            own |= {"Origin": f"http://{self.host}", "Content-Type": "application/x-www-form-urlencoded"}
        own |= {name.replace("_", "-"): value for name, value in headers.items()}
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)  # as long as a read may take
        try:
            client.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in own.items():
                if value is not None:
                    client.putheader(name, value)
            if body is not None:
                client.putheader("Content-Length", str(len(body)))
            client.endheaders(None if body is None else body.encode())
            answer = client.getresponse()
            self.answer_headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, answer.read().decode()
        finally:
            client.close()

    def enter(self, token: str) -> "Browser":
        status, page = self.ask(f"/enter?token={token}")
        assert status == 200
        if (own := re.search(r'content="0;url=http://([\w.:-]+)/enter', page)) is not None:
            self.host = own[1]  # of the app's own: there are no sessions at 127.0.0.1
            status, page = self.ask(f"/enter?token={token}")
            assert status == 200
        key = re.search(r'name="action-key" content="(\w+)"', page)
        self.key = "" if key is None else key[1]
        self.cookie = self.answer_headers["set-cookie"].partition(";")[0]
        found = re.search(r'name="form" value="(\w+)"', self.ask("/")[1])
        assert found is not None
        self.form = found[1]
        return self


@pytest.fixture
def app(tmp_path: Path) -> App:
    rows = tmp_path / "orders.ndjson"
    rows.write_text('{"account": "a", "amount": 1.5}\n')
    made = App(f"shop {MARKUP}", state=str(tmp_path / "state"), broker="memory://")
    made.stream(NdjsonSource(rows), schema={"account": "string", "amount": "float64"}).filter(
        col("account") != MARKUP
    ).to(NdjsonSink(tmp_path / "out.ndjson"))
    return made


@pytest.fixture
def console(app: App) -> Iterator[Console]:
    made = Console(app, port=0, origins=("https://tunnel.example",))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def browser(console: Console) -> Browser:
    return Browser(console).enter(console.access.token("act"))


@pytest.fixture
def reader(console: Console) -> Browser:
    return Browser(console).enter(console.access.token("read"))


# -- entering ---------------------------------------------------------------------------------------------------------


def test_the_link_gives_a_session_and_the_page(console: Console, browser: Browser) -> None:
    status, page = browser.ask("/")
    assert status == 200
    assert "Plan" in page
    assert "filter-1" in page
    status, _ = browser.ask("/enter?token=" + console.access.token("act"))
    cookie = browser.answer_headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert f"sabot-{console.port}-" in cookie


def test_a_link_from_another_site_goes_on_from_a_page_of_the_console(console: Console) -> None:
    status, page = Browser(console).ask("/steps?sort=rows", sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    assert status == 200
    assert 'content="0;url=/steps?sort=rows"' in page


def test_the_token_is_in_a_file_of_its_owner_and_outlives_the_run(tmp_path: Path) -> None:
    access = Access(tmp_path / "state")
    session = access.enter(access.token("read"))
    assert session is not None
    file = tmp_path / "state" / "console.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert session.secret not in file.read_text()
    again = Access(tmp_path / "state")
    assert again.token("act") == access.token("act")
    assert again.session(session.secret) == session


def test_a_damaged_file_of_tokens_gives_new_ones(tmp_path: Path) -> None:
    token = Access(tmp_path).token("act")
    (tmp_path / "console.json").write_text('{"act": "", "read": "", "sessions": {"x": ["act", 1e999]}}')
    access = Access(tmp_path)
    assert access.token("act") not in ("", token)
    assert access.enter("") is None


def test_a_session_that_ends_in_one_process_ends_in_all_that_have_its_file(tmp_path: Path) -> None:
    """The next session of another process wrote it into the file again."""
    one, other = Access(tmp_path), Access(tmp_path)
    first = one.enter(one.token("act"))
    assert first is not None
    second = other.enter(other.token("read"))
    assert second is not None
    assert [other.session(each.secret) for each in (first, second)] == [first, second]
    one.leave(first)
    assert other.session(first.secret) is None
    other.enter(other.token("act"))
    assert [Access(tmp_path).session(each.secret) for each in (first, second)] == [None, second]


def test_a_session_ends_12_hours_after_its_last_request_and_in_a_week_at_most(tmp_path: Path) -> None:
    clock = ManualClock()
    access = Access(tmp_path, clock)
    session = access.enter(access.token("act"), "shop.localhost:8420")
    assert session is not None
    unused = access.enter(access.token("act"), "shop.localhost:8420")
    assert unused is not None
    for _ in range(15):
        clock.advance(11 * 3_600)
        assert Access(tmp_path, clock).session(session.secret, session.host) == session
        assert access.lasts(session)
    clock.advance(3_600)
    assert not access.lasts(unused)
    assert access.session(unused.secret, unused.host) is None
    clock.advance(2 * 3_600)
    assert access.session(session.secret, session.host) is None, "168 hours"


def test_an_open_page_alone_does_not_keep_its_session() -> None:
    clock = ManualClock()
    access = Access(None, clock)
    session = access.enter(access.token("act"))
    assert session is not None
    for _ in range(11):
        clock.advance(3_600)
        assert access.lasts(session)
    clock.advance(3_601)
    assert not access.lasts(session)


def test_a_session_of_an_earlier_version_in_the_file_is_read(tmp_path: Path) -> None:
    session = Access(tmp_path).enter(Access(tmp_path).token("act"))
    assert session is not None
    file = tmp_path / "console.json"
    kept = json.loads(file.read_text())
    kept["sessions"] = {name: each[:2] for name, each in kept["sessions"].items()}
    file.write_text(json.dumps(kept))
    assert Access(tmp_path).session(session.secret) == session


# -- what a cookie is worth ---------------------------------------------------------------------------------------------


def test_links_have_a_name_of_the_app_s_own_that_only_a_token_tells(tmp_path: Path) -> None:
    app = App("Shop & Söhne", state=str(tmp_path), broker="memory://")
    names = []
    for _ in range(2):
        console = Console(app, port=0)
        try:
            found = re.match(
                rf"http://(shop-s-hne-[a-z2-7]{{8}}\.localhost):{console.port}/enter\?token=", console.link
            )
            assert found is not None
            names.append(found[1])
            stranger = Browser(console)
            for path in ("/", "/enter?token=x", "/assets/console.js", "/nothing"):
                assert found[1] not in stranger.ask(path)[1] + str(stranger.answer_headers)
        finally:
            console.close()
    assert names[0] == names[1]
    (tmp_path / "console.json").unlink()
    assert Access(tmp_path).host_name("shop") != names[0]
    assert re.fullmatch(r"app-[a-z2-7]{8}\.localhost", Access(None).host_name("店"))
    assert len(Access(None).host_name("x" * 300).partition(".")[0]) < 63


def test_no_cookie_is_given_or_taken_at_a_name_that_other_ports_have_too(console: Console, browser: Browser) -> None:
    """A browser sends it to every port of 127.0.0.1: whoever served another one acted as the person, for 30 days."""
    token = console.access.token("act")
    for host in (f"127.0.0.1:{console.port}", f"localhost:{console.port}"):
        status, page = browser.ask(f"/enter?token={token}", Host=host)
        assert (status, "set-cookie" in browser.answer_headers) == (200, False)
        assert f'content="0;url=http://{browser.host}/enter?token={token}"' in page
        assert browser.ask("/", Host=host)[0] == 401
        assert browser.ask("/act/stop", form={}, Host=host, Origin=f"http://{host}")[0] == 401
        status, page = browser.ask("/enter", form={"token": token}, Host=host, Origin=f"http://{host}")
        assert (status, "set-cookie" in browser.answer_headers) == (200, False)
    assert browser.ask("/")[0] == 200


def test_who_has_the_cookie_only_cannot_act(console: Console, browser: Browser) -> None:
    thief = Browser(console)
    thief.host, thief.cookie = browser.host, browser.cookie
    status, page = thief.ask("/")
    assert status == 200
    found = re.search(r'name="form" value="(\w+)"', page)
    assert found is not None
    thief.form = found[1]
    assert not [path for path in ("/", "/steps", "/enter", "/checkpoints") if browser.key in thief.ask(path)[1]]
    for key in ("", "x", thief.form, "é"):
        status, page = thief.ask("/act/stop", form={"action_key": key, "back": "app"})
        assert status == 403
        assert "Enter the token to act" in page
        assert "key" not in page.partition("<main>")[2].partition("without the key")[2]
    assert thief.ask("/act/stop", form={"action_token": console.access.token("read")})[0] == 403
    assert browser.ask("/act/stop", form={})[0] == 200


def test_a_browser_without_scripts_acts_with_the_token(console: Console, browser: Browser) -> None:
    browser.key = ""
    status, page = browser.ask("/act/stop", form={"back": MARKUP, "x": '"'})
    assert status == 403
    assert MARKUP not in page
    assert 'name="x" value="&#34;"' in page
    assert browser.ask("/act/stop", form={"action_token": console.access.token("act")})[0] == 200


def test_a_program_acts_with_the_token_at_127_0_0_1(console: Console) -> None:
    program, host = Browser(console), f"http://127.0.0.1:{console.port}"
    act, read = (f"Bearer {console.access.token(role)}" for role in ("act", "read"))
    assert program.ask("/steps.json", Authorization=read) == (200, "[]")
    assert "/act/" not in program.ask("/", Authorization=read)[1]
    stop = {"form": {}, "Origin": None}
    assert program.ask("/act/stop", **stop, Authorization=read)[0] == 403
    assert program.ask("/act/stop", **stop, Authorization="Bearer x")[0] == 403
    assert program.ask("/act/stop", **stop, Authorization="Basic eDp5")[0] == 403
    assert program.ask("/act/stop", form={}, Origin="https://evil.example", Authorization=act)[0] == 403
    assert program.ask("/act/stop", form={}, Origin=host, Authorization=act)[0] == 403
    assert program.ask("/act/stop", **stop, Authorization=act)[0] == 200
    assert "set-cookie" not in program.answer_headers


def test_the_cookie_of_a_name_with_tls_is_secure(console: Console, browser: Browser) -> None:
    token = console.access.token("act")
    browser.ask(f"/enter?token={token}", Host="tunnel.example")
    assert "; Secure" in browser.answer_headers["set-cookie"]
    assert browser.ask(f"/enter?token={token}", X_Forwarded_Proto="https")[0] == 200
    assert "secure" not in browser.answer_headers["set-cookie"].lower(), "anybody can send this header"


def test_no_session_is_lost_if_several_processes_begin_one_at_once(tmp_path: Path) -> None:
    """Each wrote the file as it had read it, without the sessions that others had begun meanwhile."""
    accesses = [Access(tmp_path) for _ in range(4)]
    found: list[str] = []

    def enter(access: Access) -> None:
        for _ in range(20):
            session = access.enter(access.token("read"))
            assert session is not None
            found.append(session.secret)

    threads = [threading.Thread(target=enter, args=[each]) for each in accesses]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len({access.token("act") for access in accesses}) == 1
    known = Access(tmp_path)
    assert len(found) == 80
    assert all(known.session(secret) is not None for secret in found)


# -- attacks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [None, "evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", "127.0.0.1:{port}.evil.example"],
)
def test_a_wrong_host_gets_nothing(console: Console, browser: Browser, host: str | None) -> None:
    given = None if host is None else host.format(port=console.port)
    for path in ("/", "/enter?token=" + console.access.token("act"), "/assets/console.js", "/events/app"):
        status, page = browser.ask(path, Host=given)
        assert status in (400, 421)
        assert "shop" not in page
        assert "set-cookie" not in browser.answer_headers


def test_a_host_that_was_given_is_known(console: Console, browser: Browser) -> None:
    assert browser.ask("/", Host="tunnel.example")[0] == 401, "a session is that of one name"
    browser.host = "tunnel.example"
    browser.enter(console.access.token("act"))
    assert browser.ask("/", Host="Tunnel.Example")[0] == 200
    assert browser.ask("/leave", form={}, Origin="https://tunnel.example")[0] == 303


@pytest.mark.parametrize(
    "origin", [None, "null", "https://evil.example", "http://127.0.0.1:1", "http://127.0.0.1", "file://"]
)
def test_a_foreign_origin_gets_nothing(app: App, browser: Browser, origin: str | None) -> None:
    assert browser.ask("/act/stop", form={}, Origin=origin)[0] == 403
    assert browser.ask("/enter", form={"token": "x"}, Origin=origin)[0] == 403


def test_there_is_no_page_without_a_session(console: Console) -> None:
    stranger = Browser(console)
    for path in ("/", "/events/app", "/nothing", "/act/stop"):
        status, page = stranger.ask(path)
        assert status == 401
        assert "filter-1" not in page
    assert stranger.ask("/act/stop", form={"form": ""})[0] == 401
    assert stranger.ask("/enter?token=wrong")[0] == 401
    assert stranger.ask("/enter", form={"token": "wrong"})[0] == 401
    assert stranger.ask("/enter?token=%C3%A9")[0] == 401
    stranger.cookie = f'sabot-{console.port}-x="; \x7f'
    assert stranger.ask("/")[0] in (400, 401)


def test_an_old_session_gets_nothing(browser: Browser) -> None:
    assert browser.ask("/leave", form={})[0] == 303
    assert browser.ask("/")[0] == 401
    assert browser.ask("/act/stop", form={})[0] == 401


def test_a_form_needs_the_token_of_its_session(console: Console, browser: Browser) -> None:
    other = Browser(console).enter(console.access.token("act"))
    assert browser.ask("/act/stop", form={"form": ""})[0] == 403
    assert browser.ask("/act/stop", form={"form": other.form})[0] == 403
    assert browser.ask("/act/stop", form={"form": "é"})[0] == 403
    assert browser.ask("/act/stop", form={})[0] == 200


def test_a_session_that_may_read_cannot_act(app: App, reader: Browser) -> None:
    assert "/act/" not in reader.ask("/")[1]
    assert reader.ask("/act/stop", form={})[0] == 403
    assert reader.ask("/leave", form={})[0] == 303


def test_no_page_for_readers_has_a_token_or_a_secret(console: Console, app: App, reader: Browser) -> None:
    app.configure(checkpoint_dir="s3://bucket/shop?access_key=known&secret_key=s3cr3t-word")
    assert "s3://bucket/shop" in reader.ask("/")[1]
    secrets = (
        console.access.token("act"),
        console.access.token("read"),
        "s3cr3t-word",
        reader.cookie.partition("=")[2],
    )
    for path in [
        "/",
        "/steps",
        "/steps.json",
        "/checkpoints",
        "/nothing",
        "/enter",
        "/assets/console.js",
        "/assets/console.css",
    ]:
        page = reader.ask(path)[1]
        assert not [each for each in secrets if each in page], path


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    "path",
    [
        "/assets/../access.py",
        "/assets/%2e%2e/access.py",
        "/assets/..%2faccess.py",
        "/assets//etc/passwd",
        "/assets/",
        "/assets/console.js%00.css",
        "//evil.example/",
        "/events/../app",
        "/events/%2e%2e%2f",
        "/act/stop",
        "/\\evil.example",
    ],
)
def test_paths_lead_to_pages_only(browser: Browser, path: str) -> None:
    status, page = browser.ask(path)
    assert status in (400, 404, 405)
    assert "import" not in page


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "/\\evil.example",
        "/%5cevil.example",
        "//evil.example/%2e%2e",
        "/%09/evil.example",
        "/%2f%2fevil.example",
        "/%2F%5Cevil.example",
        "/%0d%0a/evil.example",
        "/%0a%09%20/evil.example?x=%09//y",
        "/%20/evil.example",
        "/%c2%a0//evil.example",
        "http://evil.example/",
    ],
)
def test_the_page_that_goes_on_stays_at_this_host(console: Console, path: str) -> None:
    """Browsers leave out tabs and line breaks of an address: /%09/host was one of another host."""
    _, page = Browser(console).ask(path, sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    found = re.search(r'content="\d;url=([^"]*)"', page)
    assert found is not None
    assert re.fullmatch(r"/(?![/\\])[!-~]*", found[1]), "one slash, and only characters that browsers keep"


def test_markup_in_names_is_shown_as_text(browser: Browser) -> None:
    status, page = browser.ask("/")
    assert status == 200
    assert "alert(1)" in page
    assert MARKUP not in page
    assert browser.ask(f"/?q={MARKUP}")[1].count(MARKUP) == 0
    assert MARKUP not in browser.ask(f"/{MARKUP}")[1]


def test_every_answer_has_the_headers_that_bind_the_browser(browser: Browser) -> None:
    for path, headers in [("/", {}), ("/nothing", {}), ("/", {"Host": "evil.example"}), ("/assets/console.js", {})]:
        browser.ask(path, **headers)
        policy = browser.answer_headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert browser.answer_headers["x-content-type-options"] == "nosniff"
        assert browser.answer_headers["cache-control"] == "no-store"
        assert "server" not in browser.answer_headers
        assert not [name for name in browser.answer_headers if name.startswith("access-control")]


def test_no_page_needs_inline_code_or_another_site(browser: Browser) -> None:
    screens = dict.fromkeys(("/", "/steps", "/rows", "/checkpoints", "/letters"), 200)
    for path, expected in {**screens, "/enter": 401, "/nothing": 404}.items():
        status, page = browser.ask(path)
        assert status == expected
        assert not re.findall(r"\sstyle=|<style|\son\w+=|javascript:", page)
        assert not re.findall(r"<script(?! type=\"module\" src=\"/assets/)", page)
        assert re.findall(r'(?:src|href|action)="(?![/?])[^"]*"', page) == []


def test_links_and_forms_stay_below_the_path_of_their_app() -> None:
    folder = Path(pages.__file__).parent / "templates"
    found = {
        each.name: re.findall(r'(?:href|action|src)="(/[^"]*)"', each.read_text()) for each in folder.rglob("*.html")
    }
    assert found.keys() >= {"base.html", "jobs.html", "steps.html"}
    of_server = ("/assets/", "/enter", "/leave")
    found["base.html"].remove("/")  # from an app to all apps
    wrong = {name: link for name, links in found.items() for link in links if not link.startswith(of_server)}
    assert wrong == {}, 'write href="{{ root }}/…": `sabot web` shows each app below a path of its own'


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_other_methods_are_refused(browser: Browser, method: str) -> None:
    assert browser.ask("/", method=method)[0] == 405


def test_a_form_whose_field_has_two_values_is_refused(console: Console, browser: Browser) -> None:
    """The last one decided: answer=reject&answer=approve was an approval."""
    status, said = browser.ask("/act/answer", form={"answer": ["reject", "approve"]})[:2]
    assert (status, said) == (400, "The form has the field 'answer' with two values.\n")
    assert browser.ask("/act/stop", form={"x": ["1", "1"]})[0] == 200


def test_a_form_that_is_too_large_or_slow_is_refused(console: Console, browser: Browser) -> None:
    assert browser.ask("/act/stop", form={"x": "y" * 70_000})[0] == 413
    assert browser.ask("/?" + "q" * 5_000)[0] == 414
    with socket.create_connection(("127.0.0.1", console.port), timeout=60) as slow:
        slow.sendall(
            f"POST /enter HTTP/1.1\r\nHost: 127.0.0.1:{console.port}\r\nOrigin: http://127.0.0.1:{console.port}\r\n"
            "Content-Length: 10\r\n\r\nx".encode()
        )
        assert b" 408 " in slow.recv(1000)


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5",
        "Transfer-Encoding: identity\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: 5x",
        "Content-Length : 5",
    ],
)
def test_a_request_of_which_a_proxy_could_see_another_end_is_closed(console: Console, head: str) -> None:
    """What one server takes for the body the other takes for the next request, which is that of somebody else."""
    host = Browser(console).host
    hidden = f"GET /assets/icon.svg HTTP/1.1\r\nHost: {host}\r\n\r\n"
    sent = f"POST /enter HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n{head}\r\n\r\n0\r\n\r\n{hidden}"
    with socket.create_connection(("127.0.0.1", console.port), timeout=60) as connection:
        connection.sendall(sent.encode())
        answer = b""
        while more := connection.recv(65_536):
            answer += more
    assert re.match(rb"HTTP/1.1 (400|501) ", answer)
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_a_form_whose_connection_breaks_is_not_acted_on() -> None:
    """Its first fields were taken for the whole form: without its last ones, a redrive selects more dead letters."""
    access, acted = Access(None), []

    async def pages(scope: Any, receive: Any, send: Any) -> None:
        acted.append(scope["form"])

    session = access.enter(access.token("act"), "127.0.0.1:1")
    assert session is not None
    address = "http://127.0.0.1:1"
    guard = Guard(pages, access, [address], "c", ask=pages, confirm=pages, pass_on=pages)
    sent = [(b"host", b"127.0.0.1:1"), (b"origin", address.encode()), (b"cookie", f"c={session.secret}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/act/redrive-all", "query_string": b"", "headers": sent}
    body = f"form={session.form}&action_key={access.key(session)}&place=orders.dlq".encode()
    whole = {"type": "http.request", "body": body, "more_body": False}
    for messages in ([whole | {"more_body": True}, {"type": "http.disconnect"}], [whole]):
        left, answers = iter(messages), []

        async def receive(left: Any = left) -> Any:
            return next(left)

        async def send(message: Any, answers: list[Any] = answers) -> None:
            answers.append(message)

        await guard(dict(scope), receive, send)
        assert [each["status"] for each in answers if "status" in each] == ([400] if len(messages) == 2 else [])
    assert [each["place"] for each in acted] == ["orders.dlq"]


def is_open(connection: socket.socket) -> bool:
    """Sends one more header. False if the server has closed the connection."""
    try:
        connection.sendall(b"X-Slow: 1\r\n")
    except ConnectionError:
        return False
    return True


@pytest.mark.slow  # half a second of a core
def test_slow_headers_are_cut_off_and_a_page_loads_beside_a_thousand_idle_connections(
    console: Console, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = []
    try:
        with monkeypatch.context() as patched:
            patched.setattr("sabot.base.http_connections.HEAD_SECONDS", 3600.0)  # a page behind them would not come
            for _ in range(1_000):
                each = socket.create_connection(("127.0.0.1", console.port), timeout=60)
                each.sendall(b"GET / HTTP/1.1\r\n")
                idle.append(each)
            assert browser.ask("/")[0] == 200
        began = time.monotonic()
        while is_open(idle[-1]):
            assert time.monotonic() < began + PATIENCE, "a header each half second keeps a connection open"
            time.sleep(0.5)
    finally:
        for each in idle:
            each.close()


# -- steps ------------------------------------------------------------------------------------------------------------


def step(name: str, **facts: Any) -> StepRecord:
    nothing = {each.name: None for each in fields(StepRecord)}
    common = {"kind": "step", "task": "read-1", "subtask": 0, "rows_in": 0, "rows_per_second": 0.0, "shares": {}}
    return StepRecord(**{**nothing, "counts": {"late_rows": 0, "dead_letters": 0}, **common, "step": name, **facts})


def test_subtasks_are_folded_into_one_row() -> None:
    one = step("count", rows_in=30, state_keys=1, fill=0.2, behind=5.0, seconds=0.5, shares={"busy": 1.0, "idle": 0.0})
    two = step("count", subtask=1, rows_in=10, state_keys=2, seconds=0.1, shares={"busy": 0.5, "idle": 0.5})
    (row,) = folded([one, two])
    assert (row.rows_in, row.state_keys, row.fill, row.behind, row.rows_out) == (40, 3, 0.2, 5.0, None)
    assert row.shares == {"busy": 0.75, "idle": 0.25}
    assert row.seconds == pytest.approx(0.3)
    assert row.skew == 1.5
    assert folded([one]) == [one]


def test_steps_are_searched_and_sorted() -> None:
    steps = [step("b", rows_in=1, lag=3), step("A", rows_in=2), step("c", rows_in=3, task="write-1", lag=1)]

    def names(search: str = "", order: str = "") -> str:
        return "".join(each.step for each in chosen(steps, search, order))

    assert names() == names(order="nothing") == names(order="shares") == "bAc"
    assert names(order="-rows_in") == "cAb"
    assert names(order="lag") == "cbA"
    assert names(order="-lag") == "bcA", "what is not known comes last"
    assert names("a") == "bA", "of the name of the task, too"
    assert names("WRITE") == "c"


def test_the_table_of_steps_is_there_as_csv_and_json(browser: Browser) -> None:
    assert browser.ask("/steps?q=x&sort=-rows_in&subtasks=1")[0] == 200
    status, text = browser.ask("/steps.json")
    assert (status, json.loads(text)) == (200, []), "the app does not run"
    assert browser.ask("/steps.csv?sort=step")[0] == 200
    assert browser.answer_headers["content-type"].startswith("text/csv")
    assert browser.ask(f"/steps?q={quote(MARKUP)}&sort={quote(MARKUP)}&{quote(MARKUP)}=1")[1].count(MARKUP) == 0


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx"])
def test_no_cell_of_csv_is_a_formula(text: str) -> None:
    assert cell(text) == f"'{text}"
    assert (cell(-1), cell("a=1"), cell(None)) == (-1, "a=1", None)
    assert table_text([{text: 1}], "csv").startswith(f"'{text}")


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # half a second of a core
def test_the_checkpoints_of_an_app_that_does_not_run(browser: Browser) -> None:
    while "They are being read." in (answer := browser.ask("/checkpoints"))[1]:
        assert answer[0] == 200
    assert "None yet." in answer[1]
    assert browser.ask("/checkpoints.json") == (200, "[]")
    status, page = browser.ask("/act/checkpoint", form={"back": "checkpoints"})
    assert status == 409
    assert "does not run" in page
    assert 'href="/checkpoints"' in page
    assert browser.ask("/act/savepoint", form={})[0] == 409


def test_an_app_without_checkpoints_has_no_screen_and_no_actions_for_them() -> None:
    console = Console(App("loose", broker="memory://"), port=0)
    try:
        browser = Browser(console).enter(console.access.token("act"))
        page = browser.ask("/")[1]
        assert "/act/stop" in page
        assert "savepoint" not in page
        assert "/checkpoints" not in page
        assert browser.ask("/checkpoints")[0] == 404
        assert browser.ask("/act/savepoint", form={})[0] == 404
    finally:
        console.close()


async def test_the_kept_checkpoints_are_those_of_the_command_line(app: App, console: Console, browser: Browser) -> None:
    await app.run()
    deadline = time.monotonic() + PATIENCE
    while not (found := json.loads((await asyncio.to_thread(browser.ask, "/checkpoints.json"))[1])):
        assert time.monotonic() < deadline
        await asyncio.to_thread(browser.ask, "/checkpoints")
    storage = app.checkpoints()
    assert storage is not None
    expected = checkpoint_records(AppCheckpoints(storage.directory))[0]
    assert found == [asdict(each) for each in expected]
    status, _ = await asyncio.to_thread(browser.ask, "/act/stop-with-savepoint", form={})
    assert status == 200
    assert re.fullmatch(rf"checkpoint {expected[-1].checkpoint} is kept in .*/savepoints/\S+", console.after_run())


def test_of_two_stops_one_is_promised_a_savepoint(console: Console, browser: Browser) -> None:
    """Both were, and the first one's was never made."""
    other = Browser(console).enter(console.access.token("act"))
    status, said = browser.ask("/act/stop-with-savepoint", form={})
    assert status == 200
    assert "is then kept in" in said
    who = re.search(r"console:\w+", browser.ask("/")[1])
    assert who is not None
    for path in ("/act/stop-with-savepoint", "/act/stop"):
        status, said = other.ask(path, form={})
        assert (status, "kept in" in said) == (409, False)
        assert f"under way already: {who[0]} has asked for it" in said


# -- errors -----------------------------------------------------------------------------------------------------------


def test_an_action_that_is_cut_off_by_the_end_of_the_app_is_told_so(console: Console, browser: Browser) -> None:
    """It was told "Internal Server Error", as by a bug."""
    begun = threading.Event()

    async def wait(form: Any) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    console.screens[""].actions["stop"] = wait
    answers: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: answers.append(browser.ask("/act/stop", form={})))
    asking.start()
    assert begun.wait(60)
    console.close()
    asking.join(60)
    ((status, said),) = answers
    assert status == 503
    assert "ended before it had answered" in said


def test_an_error_of_a_page_is_one_line_of_the_log_and_the_page_names_it(
    console: Console, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(form: Any) -> str:
        raise RuntimeError("a bug\n  of ours")

    console.screens[""].actions["stop"] = fail
    status, page = browser.ask("/act/stop", form={})
    assert status == 500
    (said,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    number = re.search(r"error (\w{8})", page)
    assert number is not None
    assert re.fullmatch(
        rf"error {number[1]} of the console: POST /act/stop: RuntimeError: a bug\\n  of ours \(test_console.py:\d+\)",
        said,
    )
    assert [each.exc_info for each in caplog.records if each.levelno > logging.DEBUG] == [None]


@pytest.mark.parametrize("path", ["/assets/x", "/assets/", "/assets/console.js/x", "/assets/console.css%00"])
def test_an_asset_that_is_none_is_not_found_without_a_session(
    console: Console, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It was an error with 40 lines in the log of the app."""
    assert Browser(console).ask(path)[0] == 404
    assert caplog.records == []


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_the_port_is_the_next_free_one(console: Console) -> None:
    other = LimitedServer(console.port, "127.0.0.1", name="other", option="--port")
    assert console.port < other.port < console.port + 20
    other.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 65_535))
        taken.listen()
        with pytest.raises(UserError, match="no port"):
            LimitedServer(65_535, "127.0.0.1", name="other", option="--port")


def test_all_that_a_page_loads_is_small(browser: Browser) -> None:
    for page in ("/", "/steps", "/rows", "/checkpoints", "/letters"):
        paths = [page, "/assets/console.js", "/assets/console.css", "/assets/icon.svg"]
        sizes = {path: len(gzip.compress(browser.ask(path)[1].encode())) for path in paths}
        assert sum(sizes.values()) <= 60_000, sizes


def events(
    browser: Browser, seconds: float, *, least: int = 1, page: str = "app", **headers: str
) -> list[tuple[str, dict[str, str]]]:
    """The events of some seconds, and of more until there are so many: their ids, and their fragments."""
    client = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=60)
    client.request("GET", f"/events/{page}", headers={"Host": browser.host, "Cookie": browser.cookie, **headers})
    answer = client.getresponse()
    assert answer.status == 200
    found, until = [], time.monotonic() + seconds
    number = ""
    while time.monotonic() < until or len(found) < least:
        said = answer.readline()
        assert said, f"the page has ended, with {len(found)} events"
        line = said.decode().strip()
        if line.startswith("id: "):
            number = line.removeprefix("id: ")
        elif line.startswith("data: "):
            found.append((number, json.loads(line.removeprefix("data: "))["parts"]))
    client.close()
    return found


def test_events_have_the_fragments_that_have_changed(browser: Browser) -> None:
    (_, whole), *more = events(browser, 2.5, least=2)
    assert whole.keys() == {"notice", "status", "narrow", "curves", "graph", "events", "actions"}
    assert more
    assert all("graph" not in parts for _, parts in more), "the app does not run"
    (again, parts), *_ = events(browser, 0.5, **{"Last-Event-ID": more[-1][0]})
    assert again != more[-1][0]
    assert parts.keys() == whole.keys()


def test_an_open_page_is_told_when_the_app_ends(
    console: Console, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    client = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=60)
    client.request("GET", "/events/app", headers={"Host": browser.host, "Cookie": browser.cookie})
    answer = client.getresponse()
    assert any(line.startswith(b"data: ") for line in answer)
    console.close()
    assert answer.read().decode().endswith("event: ended\ndata: The app has ended\n\n")
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    client.close()


def test_open_pages_are_bounded(console: Console, browser: Browser) -> None:
    open_ones = []
    for _ in range(32):
        client = http.client.HTTPConnection("127.0.0.1", console.port, timeout=60)
        client.request("GET", "/events/app", headers={"Host": browser.host, "Cookie": browser.cookie})
        answer = client.getresponse()
        answer.readline()
        open_ones.append((client, answer))
    assert browser.ask("/events/app")[0] == 503
    assert browser.ask("/")[0] == 200
    for client, answer in open_ones:
        answer.close()
        client.close()
    deadline = time.monotonic() + PATIENCE
    while browser.ask("/events/nothing")[0] != 404 or not events(browser, 0.1):
        assert time.monotonic() < deadline


def test_open_pages_are_bounded_if_many_come_at_once(console: Console, browser: Browser) -> None:
    """All of them were counted before the first was open."""
    ask = f"GET /events/app HTTP/1.1\r\nHost: {browser.host}\r\nCookie: {browser.cookie}\r\n\r\n".encode()
    opened = [socket.create_connection(("127.0.0.1", console.port), timeout=60) for _ in range(80)]
    try:
        for each in opened:
            each.sendall(ask)
        answers = [each.recv(12) for each in opened]
    finally:
        for each in opened:
            each.close()
    assert answers.count(b"HTTP/1.1 200") == 32
    assert answers.count(b"HTTP/1.1 503") == 48


def is_cut_off(connection: socket.socket, sent: bytes) -> bool:
    try:
        connection.send(sent)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return False


@pytest.mark.slow
def test_a_client_that_does_not_read_is_cut_off(console: Console, browser: Browser) -> None:
    ask = f"GET / HTTP/1.1\r\nHost: {browser.host}\r\nCookie: {browser.cookie}\r\n\r\n".encode()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        deaf.connect(("127.0.0.1", console.port))
        deaf.setblocking(False)
        until = time.monotonic() + PATIENCE
        while not is_cut_off(deaf, ask):
            assert time.monotonic() < until
            time.sleep(0.001)


def test_the_app_is_stopped_and_shown_while_its_loop_is_blocked(tmp_path: Path) -> None:
    app = App("blocked", broker="memory://")
    blocked, go_on = threading.Event(), threading.Event()

    @app.agent("words")
    async def block(ctx) -> None:
        blocked.set()
        go_on.wait(60)

    console = Console(app, port=0)

    async def run() -> None:
        await app.start()
        await app.send("words", {"word": "x"})
        await app.run()

    def ask() -> None:
        assert blocked.wait(60)
        browser = Browser(console).enter(console.access.token("act"))
        status, page = browser.ask("/")
        assert status == 200
        assert "running" in page
        assert browser.ask("/act/stop", form={})[0] == 200
        seen.append(True)
        go_on.set()

    seen: list[bool] = []
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        asyncio.run(asyncio.wait_for(run(), 60))
    finally:
        go_on.set()
        asking.join()
        console.close()
    assert seen
