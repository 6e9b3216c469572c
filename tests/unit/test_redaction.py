"""Secrets in settings, addresses and what others say: what is shown has none of them."""

import asyncio
import base64
import json
import logging
import random
import signal
import sys
import textwrap
from collections.abc import Iterator
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sabot import App, SqlSink, UserError
from sabot.base import logs, redaction
from sabot.base.redaction import (
    HIDDEN,
    clean_cause,
    clean_value,
    has_password,
    keep_headers,
    keep_secret,
    keep_settings,
    redacted,
    redacted_url,
    scrubbed,
    visible,
)
from sabot.cli import commands, printing
from sabot.connectors.base import Sink
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint.places import place_of
from sabot.engine.checkpoint.requests import Requests
from sabot.engine.letters.topics import DeadLetters
from sabot.engine.state import state_directory
from sabot.errors import SabotError, message_of
from sabot.kafka import KafkaSink, KafkaSource
from sabot.kafka.client import BrokerLink, client_of, explain, producer_of
from sabot.mcp import McpRefused
from sabot.mcp.config import McpServerSpec
from sabot.process import Command
from sabot.testing import END, ScriptedSource
from tools.agent_tools import until
from tools.command_line import sabot_does
from tools.secrets_planted import leaks, planted, printed

# --- settings


@pytest.mark.parametrize(
    "name",
    [
        *(
            "sasl.password",
            "sasl.pasword",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.client.secret",
            "sasl.jaas.config",
        ),
        *("ssl.key.password", "ssl.key.pem", "ssl.keystore.pasword", "ssl.key.passphrase", "SASL.PASSWORD", "oauth_cb"),
        *(
            "sasl.username",
            "sasl.oauthbearer.assertion.private.key.pem",
            "secret_access_key",
            "account_key",
            "sslpassword",
        ),
        *("access-token", "client.credentials", "sasl.nobody.knows.this"),
    ],
)
def test_a_setting_that_may_be_a_secret_is_not_shown(name: str) -> None:
    assert redacted({name: "x"}) == {name: "***"}


def test_settings_that_are_none_are_shown() -> None:
    settings = {
        "bootstrap.servers": "a:1,b:2",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "ssl.ca.location": "/etc/ca.pem",
        "ssl.key.location": "/etc/key",
        "linger.ms": 5,
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "group.id": "shop-group",
    }
    assert redacted(settings) == settings


def test_a_secret_within_a_name_an_address_or_a_value_that_is_no_text_is_not_shown() -> None:
    shown = redacted(
        {"sasl.password=hunter": 1, "url": "http://u:hunter@h/p", "on_delivery": len, "inner": {"token": "hunter"}}
    )
    assert shown == {
        "sasl.password…": "***",
        "url": "http://h/p",
        "on_delivery": "<builtin_function_or_method>",
        "inner": {"token": "***"},
    }


# --- addresses


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pa#ss@h:5432/db", "postgresql://h:5432/db"),
        ("postgresql://u:pa/s@s@h/db", "postgresql://h/db"),
        ("postgresql://u:p?a=b@h/db", "postgresql://h/db"),
        ("s3://KEY:se/cr+et@bucket/path?region=x", "s3://bucket/path?region=x"),
        ("s3://KEY@bucket/a@b", "s3://bucket/a@b"),
        ("s3://bucket/path@12", "s3://bucket/path@12"),
        ("s3://bucket/x?secret_key=abc&region=r", "s3://bucket/x?secret_key=***&region=r"),
        ("postgresql://h/db?sslpassword=abc&user=u", "postgresql://h/db?sslpassword=***&user=u"),
        ("host=h password='a b' user=u", "host=h password=*** user=u"),
        ("memory://", "memory://"),
        ("/var/lib/a@b", "/var/lib/a@b"),
    ],
)
def test_an_address_is_shown_without_who_calls(url: str, shown: str) -> None:
    assert redacted_url(url) == shown


@given(st.text(st.sampled_from("#@/%:?&=+;,. '\"\\"), max_size=8), st.sampled_from(["kafka", "s3", "postgresql"]))
def test_no_part_of_a_password_stands_in_an_address_as_it_is_shown(between: str, scheme: str) -> None:
    url = f"{scheme}://user:{planted(between)}@host/path"
    assert leaks(redacted_url(url)) == []
    assert has_password(url)


# --- texts of others


@pytest.mark.parametrize("secret", ["hunter#2/vault", "pass%2Fword%20x", "quo\"te'd\\x", "zwei-Wörter und mehr"])
def test_a_known_secret_is_hidden_in_all_its_forms(secret: str) -> None:
    keep_secret(secret)
    forms = [
        secret,
        quote(secret, safe=""),
        unquote(secret),
        repr(secret)[1:-1],
        base64.b64encode(secret.encode()).decode(),
    ]
    assert [scrubbed(f"before {form} after") for form in forms] == ["before *** after"] * len(forms)


def test_a_short_secret_is_hidden_as_a_whole_word_and_a_common_one_is_not_looked_for() -> None:
    keep_secret("hntr9", "abc", "password", "same", beside=["same"])
    assert scrubbed("hntr9, hntr9s, abc, password, same") == "***, hntr9s, abc, password, same"


@pytest.mark.parametrize(
    "count",
    [
        *(
            "max_tokens=5",
            "RequestSpec(max_tokens=5)",
            "options.max_tokens=1_000",
            "max_tokens=None,",
            "max_output_tokens = 5",
        ),
        *(
            "input_tokens=12 of 30",
            "tokens_per_minute=60000",
            "token_count=7",
            "maxTokens=7",
            "https://h/v1?max_tokens=5",
        ),
        *(
            "max_tokens=-4: a whole number is wanted",
            "max_tokens='0': a whole number is wanted",
            "max_tokens=1.5",
            "max_tokens=1e9",
            "max_tokens=nan",
            "max_tokens=True",
            "max_tokens_daily=-1",
            "max_tokens_monthly=1000000",
            "pending_tokens=-1",
            "reserved_tokens=5",
        ),
    ],
)
def test_how_many_tokens_a_model_may_use_is_no_secret(count: str) -> None:
    """A user read that his answer "was cut off at max_tokens=***"."""
    assert scrubbed(count) == count
    assert not has_password(count)
    assert str(SabotError(f"refused: {count}")) == f"refused: {count}"


@pytest.mark.parametrize(
    "text",
    [
        "token=5",
        "access_token=12345",
        "access_tokens=5",
        "tokens=123456",
        "max_tokens=sk-5",
        "max_tokens='sk-5'",
        "max_tokens_daily=sk-5",
        "access_tokens_daily=5",
        "max_tokens=1234567890123456",
    ],
)
def test_a_token_is_a_secret_also_where_it_is_a_number(text: str) -> None:
    assert scrubbed(text) == f"{text.partition('=')[0]}=***"
    name, _, value = text.partition("=")
    assert redacted({name: value}) == {name: "***"}
    assert redacted({"max_tokens": 5, "token": 5}) == {"max_tokens": 5, "token": "***"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("401: Authorization: Bearer abc.def.ghi was refused", "401: Authorization: Bearer *** was refused"),
        (
            "{'Authorization': 'Basic dXNlcjpw', 'x-api-key': 'k1'}",
            "{'Authorization': 'Basic ***', 'x-api-key': '***'}",
        ),
        ("authorization=Bearer abc", "authorization=*** ***"),
        ("Set-Cookie: sid=9f; Path=/\nsid", "Set-Cookie: ***\nsid"),
        ("bearer eyJhbGciOi.J9.x1 has expired", "bearer *** has expired"),
        ("Bearer authentication is wanted, next-key: 5", "Bearer authentication is wanted, next-key: 5"),
    ],
)
def test_what_headers_of_http_say_is_hidden(text: str, shown: str) -> None:
    """An error that a client of HTTP raised in a job stood with its token in the list of jobs, and at `GET /jobs/ID`."""
    assert scrubbed(text) == shown
    assert scrubbed(shown) == shown


def test_an_error_of_ours_and_its_cause_say_no_secret() -> None:
    keep_settings({"sasl.oauthbearer.config": "principal=admin secret=swordfish77"})
    cause = ValueError("cannot read secret=swordfish77")
    assert str(SabotError("of swordfish77", hint="x")) == "of *** (x)"
    assert clean_cause(cause) is None
    nested = RuntimeError("wrapped")
    nested.__context__ = cause
    assert clean_cause(nested) is None
    assert clean_cause(fine := ValueError("fine")) is fine


@pytest.mark.slow  # half a second of a core
def test_a_long_text_of_somebody_who_wishes_us_ill_takes_no_long_time() -> None:
    from sabot.clock import SYSTEM_CLOCK

    began = SYSTEM_CLOCK.monotonic()
    for text in ("a" * 300_000 + "=", "token='" * 40_000, "://a:" * 60_000, "password " * 30_000 + "="):
        scrubbed(text)
    assert SYSTEM_CLOCK.monotonic() - began < 60  # seconds, on a machine that is busy; quadratic ones took minutes


class Tenant:
    """Has secrets, as long as it lives."""


Known = redaction._Known


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Known:
    """What is known of secrets, without those of other tests."""
    monkeypatch.setattr(redaction, "_known", known := Known())
    return known


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("size", [4, 5, 6, 7, 8, 11, 40, 300])
def test_a_secret_is_found_wherever_it_stands_among_thousands(alone: Known, size: int) -> None:
    dice = random.Random(size)
    made = ["".join(dice.choices("abcdeü%/+ 0123456789", k=size)) for _ in range(500)]
    keep_secret(*made)
    for place in range(9):
        wanted = made[dice.randrange(len(made))]
        shown = scrubbed(f"{'ü.' * place}{'.' * place} {wanted} .")
        assert wanted not in shown
        assert HIDDEN in shown
    assert scrubbed("xyz " * 100) == "xyz " * 100


@pytest.mark.slow  # half a second of a core
def test_no_secret_is_forgotten_for_the_number_of_others(alone: Known) -> None:
    """Hundreds of tenants, each with a few keys: the first one's key was in the logs when the last one came."""
    tenants = [Tenant() for _ in range(1500)]
    for number, tenant in enumerate(tenants):
        keep_settings({"api_key": f"key-of-tenant-{number:04}"}, owner=tenant)
    assert [number for number in range(1500) if f"{number:04}" in scrubbed(f"key-of-tenant-{number:04}")] == []


@pytest.mark.slow  # half a second of a core
def test_a_secret_is_let_go_when_its_last_owner_has_gone_and_others_came(alone: Known) -> None:
    first, second = Tenant(), Tenant()
    keep_secret("the-key-of-both", owner=first)
    keep_secret("the-key-of-both", owner=second)
    keep_secret("the-key-of-the-process")
    del first
    _many_come_and_go()
    assert scrubbed("the-key-of-both") == HIDDEN
    del second
    keep_secret("one-more")
    assert scrubbed("the-key-of-both") == HIDDEN  # what was said while it was used may still be written
    _many_come_and_go()
    assert scrubbed("the-key-of-both, the-key-of-the-process") == f"the-key-of-both, {HIDDEN}"
    assert len(alone._forms) < 1100
    assert len(alone._by_piece) < 4 * 1100


def _many_come_and_go() -> None:
    for number in range(1200):
        keep_secret(f"passing-{number:04}", owner=Tenant())
    keep_secret("the-last-one", owner=Tenant())


@pytest.mark.slow  # half a second of a core
def test_a_child_has_its_secrets_as_long_as_somebody_has_it(alone: Known) -> None:
    command = Command(argv=["true"], environment={"API_KEY": "key-of-the-command"})
    _many_come_and_go()
    assert scrubbed("key-of-the-command") == HIDDEN
    del command
    _many_come_and_go()
    assert scrubbed("key-of-the-command") == "key-of-the-command"


@pytest.mark.one_in(3, "half a second of a core each")
@pytest.mark.parametrize("given", ["environment", "headers", "url"])
def test_a_server_of_a_pool_has_its_secrets_as_long_as_the_pool_knows_it(alone: Known, given: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "environment": {"command": ["desk"], "environment": {"API_KEY": "key-of-the-server"}},
        "headers": {"url": "http://desk", "headers": {"Authorization": "Bearer key-of-the-server"}},
        "url": {"url": "http://ada:key-of-the-server@desk"},
    }
    spec = McpServerSpec(name="desk", **options[given])
    _many_come_and_go()
    assert scrubbed("key-of-the-server") == HIDDEN
    del spec
    _many_come_and_go()
    assert scrubbed("key-of-the-server") == "key-of-the-server"


def test_a_long_text_is_looked_through_once_however_many_secrets_there_are(alone: Known) -> None:
    """What is counted is looks for a form: a vendor's keys all begin alike, and a text may say how."""
    keep_secret(*(f"sk-vendor-api03-{sha256(b'%d' % number).hexdigest()}" for number in range(2000)))
    text = Looked("sk-vendor-api03- is how keys begin. " * 1000)
    assert alone.hide(text) == text
    assert text.looks < 20


class Looked(str):
    """Counts how often something is looked for in it."""

    looks = 0

    def __contains__(self, part: str) -> bool:  # type: ignore[override]
        self.looks += 1
        return super().__contains__(part)


# What would hide something, and how it is shown.
HIDING = {
    "\x1b[2J": r"\x1b[2J",
    "gone\rhere": r"gone\rhere",
    "\x85": r"\x85",
    "\u202etxt.exe": r"\u202etxt.exe",
    "a\u200bb": r"a\u200bb",
    "\u2028": r"\u2028",
    "\u2066\u2069": r"\u2066\u2069",
    "\udc80": r"\udc80",
    "\U000e0041": r"\U000e0041",
    "two\n\tlines, zwei Wörter, 日本": "two\n\tlines, zwei Wörter, 日本",
}


@pytest.mark.parametrize("said", HIDING)
def test_what_hides_something_is_seen_in_errors_and_logs(said: str) -> None:
    shown = HIDING[said]
    refused = McpRefused("desk", f"stock: {said}", -32000, hint=said)
    assert (refused.message, refused.hint) == (f"MCP server desk: stock: {shown}", shown)
    assert message_of(ValueError(said)) == shown
    assert visible(shown) == shown
    out = StringIO()
    handler = logging.StreamHandler(out)
    for formatter in (logs.Scrubbing("%(message)s"), logs.AsJson("")):
        handler.setFormatter(formatter)
        try:
            raise ValueError(said)
        except ValueError:
            log = logging.LogRecord("others", logging.WARNING, "", 1, "heard: %s", (said,), sys.exc_info())
        handler.emit(log)
        log.exc_text = None
    plain, line = out.getvalue().split('{"time"')
    assert plain.count(shown) == 2
    facts = json.loads('{"time"' + line)
    assert facts["message"] == f"heard: {shown}"
    assert shown in facts["traceback"]
    assert printing.plain(said) == shown.replace("\n", r"\n").replace("\t", r"\t")


# --- Kafka


@pytest.mark.parametrize("rest", ["u:{}@h:9092", "{}@h:9092", "h:9092?sasl.password={}", "h:9092#{}"])
def test_a_broker_address_with_credentials_is_refused_with_a_hint(rest: str) -> None:
    secret = planted("%.")
    url = f"kafka://{rest.format(secret)}"
    for use in (
        lambda: App("a", url),
        lambda: App("a").configure(broker=url),
        lambda: KafkaSource("t", url),
        lambda: KafkaSink("t", url),
        lambda: DeadLetters("t", url),
    ):
        with pytest.raises(UserError, match="user and password are settings") as caught:
            use()
        assert "sasl.username" in caught.value.hint
        assert leaks(printed(caught.value), whole=(secret,)) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"sasl.pasword": "{}"},
        {"sasl.password={}": "x"},
        {"ssl.key.pem": "{}", "security.protocol": "ssl"},
        {"ssl.key.password": "{}", "ssl.key.location": "/nowhere", "security.protocol": "ssl"},
        {"sasl.oauthbearer.token.endpoint.url": "https://id:{}@h/token"},
        {"security.protocol": "sasl_plaintext", "sasl.mechanism": "{}", "sasl.username": "u", "sasl.password": "{}"},
        {"sasl.jaas.config": 'org.apache.kafka.PlainLoginModule required username="u" password="{}";'},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_setting_that_the_client_refuses_is_not_repeated(
    settings: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    secret = planted()
    kafka = {name.format(secret): value.format(secret) for name, value in settings.items()}
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as caught:
        producer_of(BrokerLink("127.0.0.1:1", "sink"), kafka)
    told: Any
    try:
        told = App("a", kafka=kafka)
    except UserError as error:  # some are refused before there is a client
        told = printed(error)
    assert leaks(printed(caught.value), caplog.text, told, whole=(secret,)) == []


def test_what_the_client_quotes_of_a_setting_is_hidden_at_debug_too(caplog: pytest.LogCaptureFixture) -> None:
    secret, link = planted(), BrokerLink("127.0.0.1:1", "source")
    link.opened = True
    kafka = {
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "OAUTHBEARER",
        "enable.sasl.oauthbearer.unsecure.jwt": True,
        "sasl.oauthbearer.config": f"principal=admin secret={secret}",
    }
    said: list[KafkaError] = []
    with caplog.at_level(logging.DEBUG):
        client = client_of(
            lambda conf: __import__("confluent_kafka").Producer(conf), link, {**kafka, "error_cb": said.append}, {}
        )
        for _ in range(100):
            client.poll(0.1)
            if any(error.code() == KafkaError._AUTHENTICATION for error in said):
                break
    assert leaks(*(error.str() for error in said)), "the client quotes it, or this test shows nothing"
    link.down()
    error = explain(KafkaError(KafkaError._ALL_BROKERS_DOWN), link, "orders")
    assert "client settings" in caplog.text
    assert "does not answer (" in caplog.text
    assert leaks(printed(error), caplog.text, link.reason, whole=(secret,)) == []


# --- SQL, checkpoints, state, names


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    "url",
    [
        *(
            "postgresql://u:{}@h/db",
            "postgresql:u:{}@h",
            "host=h password={}",
            "password={} host=h:1",
            "mysql://u:{}@h/db",
        ),
        *("sqlite://u:{}@h/db", "postgresql://h/db?password={}&nonsense", "postgresql://u:x@h@{}/db"),
    ],
)
def test_the_address_of_a_database_that_is_not_understood_is_not_repeated(url: str) -> None:
    secret = planted()
    with pytest.raises(UserError) as caught:
        SqlSink(url.format(secret), "alerts")
    assert leaks(printed(caught.value), whole=(secret,)) == []


def test_a_database_is_known_by_its_place_and_not_by_its_password() -> None:
    addresses = {
        SqlSink(f"postgresql://u{password}@h:5432/db?connect_timeout=3", "alerts").address
        for password in ("", ":p", ":p#q", ":p?q", ":p:q", ":p%40q", ":p%2Fq")
    }
    assert addresses == {"h:5432/db/alerts"}
    # as they were before passwords with these characters were understood: a lane of a checkpoint is called by them
    assert SqlSink("postgresql:///db", "t").address == "postgresql/db/t"
    assert SqlSink("postgresql://a:1,b:2/db", "t").address == "a:1,b:2/db/t"
    assert SqlSink("postgresql://u@[::1]:5432/db", "t").address == "[::1]:5432/db/t"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:{}@bucket/jobs?region=eu-west-1",
        "s3://:{}@bucket/jobs?region=eu-west-1",
        "nfs://u:{}@h/x",
        "s3://b/x?region=eu-west-1&secret_key={}",
        "abfs://:{}@a/b",
    ],
)
@pytest.mark.parametrize("between", ["", "/+", "#?@:%"])
def test_a_place_of_checkpoints_is_shown_without_its_key(uri: str, between: str) -> None:
    secret = planted(between)
    try:
        place = place_of(uri.format(secret))
        shown = f"{place.where} {place.locate('x')}"
    except UserError as error:
        shown = printed(error)
    assert leaks(shown, whole=(secret,)) == []


def test_a_state_directory_that_is_an_address_is_not_repeated() -> None:
    with pytest.raises(UserError) as caught:
        state_directory(f"postgresql://u:{planted()}@h/db")
    assert leaks(printed(caught.value)) == []


class Named(Sink):
    def __init__(self, name: str) -> None:
        self.name = name

    def open(self) -> None: ...
    def write(self, batch: Any) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("name", ["https://u:{}@h/hook", "https://h/hook?token={}", "postgresql://u:{}@h/db"])
def test_a_name_with_a_password_is_refused(name: str) -> None:
    name = name.format(planted())
    app = App("a")
    stream = app.stream(ScriptedSource([END]), schema={"x": "int64"})
    uses = [
        lambda: stream.to(Named(name)),
        lambda: stream.to(name),
        lambda: app.stream(ScriptedSource([END], name=name)),
        lambda: app.stream(ScriptedSource([END]), dead_letter=name),
        lambda: app.agent("t", name="f", sink=Named(name))(len),
        lambda: app.agent(name, name="g")(len),
    ]
    for use in uses:
        with pytest.raises(UserError, match="password or a token") as caught:
            use()
        assert leaks(printed(caught.value)) == []


def test_a_value_for_others_has_no_registered_secret_and_nothing_under_the_name_of_one() -> None:
    keep_secret("hunter2-in-a-value", "991827364")
    value = {
        "user": "ada hunter2-in-a-value",
        "Api-Key": "k",
        "access_token": ["a", "b"],
        "tokens": 5,
        "password": None,
        "key": "a",
        "at": [991827364, 1.5, True, {"hunter2-in-a-value": "x"}],
    }
    assert clean_value(value, fields=True) == {
        "user": f"ada {HIDDEN}",
        "Api-Key": HIDDEN,
        "access_token": HIDDEN,
        "tokens": 5,
        "password": None,
        "key": "a",
        "at": [HIDDEN, 1.5, True, {HIDDEN: "x"}],
    }
    assert clean_value({"password": "x", "at": ("hunter2-in-a-value",)}) == {"password": "x", "at": [HIDDEN]}


def test_a_request_for_a_savepoint_is_removed_when_it_is_answered(tmp_path: Path) -> None:
    """Who asked may have been killed, and the place of the savepoint has a key in its address."""
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / f"{'a' * 32}.json").write_text(json.dumps({"savepoint": f"s3://K:{planted()}@b/x"}))
    requests = Requests(tmp_path)
    ((name, _),) = requests.pending()
    requests.answer(name, {"error": "no"})
    assert requests.pending() == []
    assert leaks(tmp_path) == []


# --- a whole app


@pytest.mark.slow  # half a second of a core
def test_an_app_with_secrets_says_none_of_them_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Settings are kept for a broker that is not used here; the agent's own error repeats one of them."""
    secret, other = planted(), planted()
    kafka = {
        "sasl.username": planted(""),
        "sasl.password": secret,
        "sasl.oauthbearer.config": f"scope=x secret={other}",
    }
    app = App("vault", "memory://vault", state=str(tmp_path / "state"), kafka=kafka, checkpoint_interval="50ms")
    MemoryBroker.get("memory://vault").reset()

    @app.agent(ScriptedSource([{"n": 1}, {"n": 2}, END], name="in"), key="n", on_error="skip", sink="out")
    async def repeats(ctx: Any) -> Any:
        await ctx.state().put("n", 1)
        raise ValueError(f"cannot log in with {app.settings.kafka['sasl.password']}, secret={other}")

    app.stream(ScriptedSource([{"n": 1}, END], name="rows"), schema={"n": "int64"}).to("rows-out")

    async def run() -> list[object]:
        await app.start()
        await asyncio.sleep(0)
        seen = [app.statistics(), app.agent_runtime.runner.watch.metrics.text(), app.agent_runtime.agents, repr(app)]
        await until(lambda: app.statistics()["agents"]["vault.repeats"]["dead_letters"] == 2)
        await app.stop(drain=True)
        return [*seen, app.statistics(), app.agent_runtime.runner.watch.metrics.text(), app.graph()]

    with caplog.at_level(logging.DEBUG):
        seen = asyncio.run(run())
    broker = MemoryBroker.get("memory://vault")
    letters = [record for name in broker.topics() for record in broker.records(name)]
    assert any("cannot log in with ***" in str(record.headers) for record in letters)
    says = [
        CliRunner().invoke(commands.cli, [*words.split(), str(tmp_path / "state")]).output
        for words in (
            "checkpoints list",
            "checkpoints show",
            "checkpoints show --json",
            "checkpoints verify",
            "state --names",
        )
    ]
    assert leaks(*seen, *says, letters, caplog.text, tmp_path, whole=(secret, other)) == []


PROGRAM = """
    import sys
    from sabot import App
    from sabot.testing import END, ScriptedSource
    app = App("child", kafka={{"sasl.password": {secret!r}, "security.protocol": "ssl"}})

    @app.agent(ScriptedSource([{{"n": 1}}, END], name="in"))
    async def fails(ctx):
        raise ValueError("no login: " + {secret!r})
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two of them in the current folder; -> the secret that stands in both."""
    secret = planted("#@/")
    (tmp_path / "of_secrets.py").write_text(textwrap.dedent(PROGRAM).format(secret=secret))
    (tmp_path / "of_wrong.py").write_text(f"from sabot import App\napp = App('a', 'kafka://u:{secret}@h:1')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield secret
    sys.modules.pop("of_secrets", None)
    for number, handler in handlers.items():  # `sabot run` leaves the process deaf, which ends after it
        signal.signal(number, handler)


@pytest.mark.one_in(2, "a second of a core each")
@pytest.mark.parametrize("module", ["of_secrets", "of_wrong"])
def test_a_traceback_at_debug_quotes_no_line_with_a_secret(module: str, programs: str, tmp_path: Path) -> None:
    done = sabot_does(tmp_path, "run", f"{module}:app", "--loglevel", "debug")
    assert "Traceback" in done.stderr
    assert "***" in done.stderr
    assert leaks(done.stdout, done.stderr, whole=(programs,)) == []


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    "words",
    [
        "run of_secrets:app --broker kafka://u:{}@h:1",
        "run of_secrets:app --state postgresql://u:{}@h/db",
        "run of_secrets:app --from nfs://K:{}@bucket/x@3",
        "run of_secrets:app --checkpoint-dir nfs://K:{}@bucket/x",
        "dlq list t --broker kafka://u:{}@h:1",
        "dlq list t --broker kafka://127.0.0.1:1 --kafka sasl.password:{}",
        "dlq list t --broker kafka://127.0.0.1:1 --kafka sasl.pasword={}",
        "checkpoints list s3:/K:{}@bucket/x",
        "checkpoints list nfs://K:{}@bucket/x",
        "plan of_secrets:app",
    ],
)
def test_a_command_does_not_repeat_a_secret_that_it_was_given(words: str, programs: str) -> None:
    done = CliRunner().invoke(commands.cli, [word.format(programs) for word in words.split()])
    assert done.exit_code == 0 if "plan" in words else done.exit_code in (1, 2)
    assert "sabot:" in done.stderr or "plan" in words
    assert leaks(done.stdout, done.stderr, whole=(programs,)) == []


def test_an_address_whose_password_is_no_utf8_is_an_error_of_ours_without_it() -> None:
    """A byte of an environment variable that is no UTF-8 was a UnicodeEncodeError, in place of what was wrong with the address."""
    with pytest.raises(UserError) as refused:
        App("a", broker="redis://me:pass\udcd0word@host:1")
    assert "word" not in str(refused.value)


def test_secret_headers_are_known_by_their_names_as_random_words_and_by_where_they_come_from() -> None:
    headers = {
        "Cookie": "sid=planted-41; theme=planted-42",
        "X-Auth": "planted-43",
        "X-Key-Id": "planted 44",
        "X-A": "planted-45",
    }
    headers |= {
        "X-Sum": "sha256=planted0f5e",
        "X-Version": "2026-11-28",
        "X-Team": "kitchen and garden",
        "Accept": "text/csv",
    }
    keep_headers(headers, apart=["X-A"])
    said = scrubbed("; ".join(value for text in headers.values() for value in (text, text.rpartition("=")[2])))
    assert "planted" not in said.replace("planted0f5e", ""), said
    assert all(each in said for each in ("2026-11-28", "kitchen and garden", "text/csv")), said
    assert "sha256=planted0f5e" not in said
    assert redacted({"headers.X-Team": "a", "header.X-Auth": "b", "headers.Content-Type": "text/csv"}) == {
        "headers.X-Team": HIDDEN,
        "header.X-Auth": HIDDEN,
        "headers.Content-Type": "text/csv",
    }
