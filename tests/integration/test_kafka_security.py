"""Certificates, logins and rights at a real broker: what works, and what each refusal tells the user, in time and without his password."""

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sabot import App, col
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import Record, build_records, iterate_records
from sabot.connectors.base import Track
from sabot.errors import BrokerUnavailable, SabotError, UserError
from sabot.journal import Letter
from sabot.journal.entries import Begin
from sabot.journal.kafka import KafkaJournal
from sabot.kafka import KafkaSink, KafkaSource, RecordSender, admin
from sabot.kafka.client import link_of
from sabot.kafka.log import TopicAppender
from tools.agent_tools import PATIENCE, bounded, until, within
from tools.broker import running_or_skipped
from tools.fault_tools import sabot_run
from tools.secure_broker import PASSWORD, SecureBroker

# A broker of its own, and clients that wait for their refusal: a minute in all.
pytestmark = [pytest.mark.integration, pytest.mark.kafka, pytest.mark.slow]
ROW = b'{"n": 1}'
WRONG = "not-the-password-9902"
BOUND = 10.0  # seconds, until a refusal at an opening is told


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    with running_or_skipped(SecureBroker(tmp_path_factory.mktemp("secure"))) as broker:
        yield broker


@pytest.fixture
def user(secure: SecureBroker) -> str:
    """A user without any right."""
    name = f"user-{uuid.uuid4().hex[:6]}"
    secure.add_user(name)
    return name


@pytest.fixture
def filled(secure: SecureBroker, topic: str) -> str:
    """A topic with one record."""
    admin.create_topic(secure.url, topic, 1)
    sink = KafkaSink(topic, secure.url)
    sink.open()
    sink.write(batch(ROW))
    sink.flush()
    sink.close()
    return topic


@pytest.fixture(autouse=True)
def _no_password_in_a_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, logger="sabot")
    yield
    assert PASSWORD not in caplog.text
    assert WRONG not in caplog.text


def batch(*payloads: bytes) -> Batch:
    rows = len(payloads)
    return Batch(build_records(list(payloads), None, np.zeros(rows), 0, np.arange(rows)))


def read(url: str, kafka: dict[str, Any], topic: str, rows: int) -> list[Record]:
    source, found = KafkaSource(topic, url, "readers", **kafka), list[Record]()
    source.open(None)
    try:
        while len(found) < rows:
            got = source.read_batch(100, PATIENCE)
            assert got is not None, f"{len(found)} of {rows} records came"
            found += iterate_records(got.data, got.topic)
    finally:
        source.close()
    return found


def read_once(url: str, kafka: dict[str, Any], topic: str) -> None:
    """One record, and the group's offset."""
    source = KafkaSource(topic, url, "readers", **kafka)
    try:
        source.open(None)
        got = source.read_batch(100, PATIENCE)
        assert got is not None, "no record came"
        source.commit(got.offsets)
    finally:
        source.close()


def read_on(url: str, kafka: dict[str, Any], topic: str) -> None:
    """Record after record, until it is refused: the group is asked for beside the records, which may come first."""
    source = KafkaSource(topic, url, "readers", **kafka)
    try:
        source.open(None)
        for _ in range(600):
            source.read_batch(100, 0.1)
    finally:
        source.close()


def start_by_hand(url: str, kafka: dict[str, Any], topic: str) -> None:
    async def start() -> None:
        source = KafkaSource(topic, url, "readers", **kafka)
        await source.start()
        await source.stop()

    asyncio.run(start())


def write_once(url: str, kafka: dict[str, Any], topic: str) -> None:
    sink = KafkaSink(topic, url, **kafka)
    try:
        sink.open()
        sink.write(batch(ROW))
        sink.flush()
    finally:
        sink.close()


def deliver_once(url: str, kafka: dict[str, Any], topic: str) -> None:
    sink, track = KafkaSink(topic, url, **kafka), Track("secure", topic, "life")
    try:
        sink.known(track)
        token = sink.claim(track)
        sink.deliver(1 if token is None else token.seq + 1, [batch(ROW).data])
    finally:
        sink.close()


def send_once(url: str, kafka: dict[str, Any], topic: str) -> None:
    sender = RecordSender(url, kafka)
    try:
        asyncio.run(bounded(sender.send(topic, ROW)))
    finally:
        sender.close()


def own_journal(url: str, kafka: dict[str, Any], topic: str) -> None:
    journal = KafkaJournal(f"{url}/{topic}.journal", kafka=kafka, copy_slack_bytes=-(1 << 40))
    assert journal.wait_durable(journal.append(Begin("job", 0)), PATIENCE)
    journal.post(Letter("signal", uuid.uuid4().hex, "job", "s"))
    position, _ = journal.take()[0]
    assert journal.wait_durable(position, PATIENCE)
    journal.trim(journal.positions())
    journal.close()


FACES = (read_once, start_by_hand, write_once, deliver_once, send_once, own_journal)


def refusal(face: Callable[..., None], *arguments: Any) -> SabotError:
    """What it raises, which is in time and has no password in it."""
    with within(BOUND), pytest.raises((UserError, BrokerUnavailable)) as caught:
        face(*arguments)
    assert PASSWORD not in str(caught.value)
    assert WRONG not in str(caught.value)
    return caught.value


# Certificates and logins


async def _refused_everywhere(url: str, kafka: dict[str, Any], topic: str, words: str, hint: str) -> None:
    found = await asyncio.gather(*(asyncio.to_thread(refusal, face, url, kafka, topic) for face in FACES))
    for error in found:
        assert url in error.message
        assert words in error.message
        assert hint in error.hint


@pytest.mark.one_in(6, "all of them make their clients from the same settings")
@pytest.mark.parametrize("face", FACES)
def test_tls_with_the_right_authority_works(secure: SecureBroker, filled: str, face: Callable[..., None]) -> None:
    face(secure.url_of("TLS"), secure.tls(), filled)


@pytest.mark.one_in(3, "half a second of a core each")
@pytest.mark.parametrize(
    ("listener", "words", "hint"),
    [
        ("TLS", "self-signed certificate in certificate chain", "other-ca.pem"),
        ("EXPIRED", "certificate has expired", "renew the broker's certificate"),
        ("ELSEWHERE", "certificate is not valid for '127.0.0.1'", "an address that stands in the certificate"),
    ],
)
async def test_a_certificate_that_is_not_accepted_is_told_by_its_fault(
    secure: SecureBroker, listener: str, words: str, hint: str
) -> None:
    authority = secure.other_ca if listener == "TLS" else secure.ca
    kafka = {**secure.tls(), "ssl.ca.location": str(authority)}
    await _refused_everywhere(secure.url_of(listener), kafka, "t", words, hint)


def test_a_certificate_is_told_by_its_fault_where_the_authorities_are_a_folder(
    secure: SecureBroker, tmp_path: Path
) -> None:
    kafka = {**secure.tls(), "ssl.ca.location": str(tmp_path)}
    assert "self-signed certificate" in refusal(read_once, secure.url_of("TLS"), kafka, "t").message


async def test_a_client_without_tls_is_told_that_the_listener_wants_it(secure: SecureBroker) -> None:
    await _refused_everywhere(
        secure.url_of("TLS"), {}, "t", "speaks TLS, but the settings of the client do not", "security.protocol"
    )


@pytest.mark.one_in(3, "a third of a second of a core each")
@pytest.mark.parametrize(
    ("login", "words", "hint"),
    [
        ({"sasl.password": WRONG}, "invalid credentials", "sasl.username and sasl.password"),
        ({"sasl.username": "nobody"}, "refuses the login of user 'nobody'", "the broker has this user"),
        ({"sasl.mechanism": "PLAIN"}, "Unsupported SASL mechanism", "sasl.mechanism is PLAIN: use one of those"),
    ],
)
async def test_a_login_that_is_refused_is_told_by_its_fault(
    secure: SecureBroker, user: str, login: dict[str, str], words: str, hint: str
) -> None:
    kafka = {**secure.login(user), **login}
    await _refused_everywhere(secure.url_of("LOGIN"), kafka, "t", words, hint)


async def test_a_login_where_none_is_taken_is_told(secure: SecureBroker, user: str) -> None:
    kafka = secure.login(user)
    await _refused_everywhere(secure.url_of("TLS"), kafka, "t", "not valid in current SASL state", "takes no login")


async def test_what_may_pass_is_told_in_time_with_what_it_may_be(
    secure: SecureBroker, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that stops ends connections in the same way: these are no UserErrors."""
    monkeypatch.setattr("sabot.kafka.client.ANSWER_SECONDS", 2.0)
    await _refused_everywhere(secure.url, secure.tls(), "t", "does not speak TLS", "security.protocol is plaintext")
    await _refused_everywhere(secure.url_of("LOGIN"), secure.tls(), "t", "is closed by the broker", "want a login?")


# Rights


def give(secure: SecureBroker, user: str, topic: str, *rights: str) -> None:
    """By the names that docs/connectors.md lists."""
    names = {"topic": topic, "group": "readers", "transactional-id": "sabot.secure*", "token": "sabot.secure*"}
    for right in rights:
        operation, kind = right.split()
        secure.allow(user, "group" if kind == "token" else kind, names[kind], operation)


def test_a_journal_needs_what_docs_jobs_lists_and_no_more(
    secure: SecureBroker, user: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    url, kafka, name = secure.url_of("LOGIN"), secure.login(user), f"{topic}.journal"
    assert "may not write topic" in refusal(own_journal, url, kafka, topic).message
    secure.allow(user, "topic", name, "create", "alter_configs")
    for operation in ("describe", "describe_configs", "write", "read"):
        refusal(own_journal, url, kafka, topic)
        secure.allow(user, "topic", name, operation)
    own_journal(url, kafka, topic)
    assert "records cannot be deleted" in caplog.text
    secure.allow(user, "topic", name, "delete")
    caplog.clear()
    own_journal(url, kafka, topic)
    assert [each for each in caplog.records if each.levelname == "WARNING"] == []


def test_an_appender_names_the_right_that_it_lacks_at_each_append(secure: SecureBroker, user: str, filled: str) -> None:
    """Of the second one on, the client says only that there was a fatal error: it gives its reason once."""
    secure.allow(user, "topic", filled, "describe")
    appender = TopicAppender(link_of(secure.url_of("LOGIN"), "journal"), secure.login(user), filled, patience_s=BOUND)
    for _ in range(3):
        with pytest.raises(UserError, match=f"may not write to topic '{filled}'"):
            appender.append(0, [ROW])
    appender.close()


@pytest.mark.one_in(8, "what they say of a right that is missing is one function")
@pytest.mark.parametrize(
    ("face", "rights", "may_not", "command"),
    [
        (read_once, [], "read topic", "--operation Read --topic "),
        (read_on, ["read topic"], "read group 'readers'", "--operation Read --group readers"),
        (read_once, ["describe topic", "read group"], "read topic", "--operation Read --topic "),
        (start_by_hand, ["read topic"], "read group 'readers'", "--operation Read --group readers"),
        (write_once, [], "write topic", "--operation Write --topic "),
        (write_once, ["describe topic"], "write to topic", "--operation Write --topic "),
        (send_once, [], "write topic", "--operation Write --topic "),
        (send_once, ["describe topic"], "write to topic", "--operation Write --topic "),
        (deliver_once, [], "write topic", "--operation Write --topic "),
        (
            deliver_once,
            ["write topic"],
            "use transactional id",
            "--operation Describe --transactional-id sabot.secure.",
        ),
        (
            deliver_once,
            ["write topic", "write transactional-id"],
            "read group 'sabot.secure.",
            "--operation Read --group sabot.secure.",
        ),
        (
            deliver_once,
            ["read topic", "write transactional-id", "read token"],
            "write topic",
            "--operation Write --topic ",
        ),
        (
            deliver_once,
            ["write topic", "write transactional-id", "read token"],
            "read topic",
            "--operation Read --topic ",
        ),
    ],
)
def test_a_right_that_is_missing_is_named_with_the_command_that_gives_it(
    secure: SecureBroker,
    user: str,
    filled: str,
    face: Callable[..., None],
    rights: list[str],
    may_not: str,
    command: str,
) -> None:
    give(secure, user, filled, *rights)
    error = refusal(face, secure.url_of("LOGIN"), secure.login(user), filled)
    assert isinstance(error, UserError)
    assert f"user '{user}' may not {may_not}" in error.message
    assert filled in error.message
    assert f"--allow-principal User:{user} " in error.hint
    assert command in error.hint


@pytest.mark.one_in(3, "what they say of a right that is missing is one function")
@pytest.mark.parametrize("face", [write_once, send_once, deliver_once])
def test_the_right_to_make_a_topic_is_named(
    secure: SecureBroker, user: str, topic: str, face: Callable[..., None]
) -> None:
    give(secure, user, topic, "read topic", "write topic", "write transactional-id", "read token")
    error = refusal(face, secure.url_of("LOGIN"), secure.login(user), topic)
    assert f"may not create topic '{topic}'" in error.message
    assert f"--operation Create --topic {topic}" in error.hint
    give(secure, user, topic, "create topic")
    face(secure.url_of("LOGIN"), secure.login(user), topic)


def test_no_right_to_see_a_topic_of_a_tool_is_named(secure: SecureBroker, user: str, filled: str) -> None:
    with pytest.raises(UserError, match=f"may not delete topic '{filled}'") as caught:
        admin.delete_topic(secure.url_of("LOGIN"), filled, kafka=secure.login(user))
    assert "--operation Delete --topic" in caught.value.hint


async def test_a_sender_whose_right_is_given_later_sends(secure: SecureBroker, user: str, filled: str) -> None:
    """The error is fatal to its producer. Its thread ended with it, and the call never returned."""
    secure.allow(user, "topic", filled, "describe")
    sender = RecordSender(secure.url_of("LOGIN"), secure.login(user))
    calls = [bounded(sender.send(filled, b"%d" % n)) for n in range(3)]
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, UserError)
        assert f"--operation Write --topic {filled}" in error.hint
    secure.allow(user, "topic", filled, "write")
    assert await bounded(sender.send(filled, b"4")) == 1
    sender.close()


def test_a_sink_without_a_right_can_be_closed_before_it_has_told_that(
    secure: SecureBroker, user: str, filled: str
) -> None:
    """The client raises the fatal error in whatever call comes next, which was that of the closing."""
    secure.allow(user, "topic", filled, "describe")
    sink = KafkaSink(filled, secure.url_of("LOGIN"), **secure.login(user))
    sink.open()
    sink.write(batch(ROW))
    refusal(send_once, secure.url_of("LOGIN"), secure.login(user), filled)  # so the sink's record is refused too by now
    sink.close()


# Apps


def app_of(secure: SecureBroker, user: str, state: Path, listener: str = "LOGIN", **more: Any) -> App:
    kafka = {**secure.login(user), **more}
    return App("secure", secure.url_of(listener), kafka=kafka, state=state, checkpoint_interval="200ms")


def test_an_app_needs_the_rights_that_the_documentation_lists_and_no_more(
    secure: SecureBroker, user: str, topic: str, tmp_path: Path
) -> None:
    source, out, seen = f"{topic}.in", f"{topic}.out", f"{topic}.seen"
    admin.create_topic(secure.url, source, 2)
    secure.allow(user, "topic", source, "read")
    secure.allow(user, "group", "secure*", "read")
    for made in (out, seen, f"{source}.dlq"):
        secure.allow(user, "topic", made, "read", "write", "create")
    secure.allow(user, "transactional-id", "sabot.secure.*", "write", "describe")
    secure.allow(user, "group", "sabot.secure.*", "read")
    secure.allow(user, "topic", source, "write")  # of app.send
    app = app_of(secure, user, tmp_path)
    stream = app.stream(source, schema={"n": "int64"}).filter(col("n") > 0)
    stream.to(out, delivery="exactly_once")

    @app.agent(source, sink=seen, delivery="exactly_once", on_error="skip")
    async def count(ctx: Any) -> dict[str, int]:
        return {"twice": 2 * ctx.message["n"]}

    async def run() -> None:
        await app.start()
        try:
            for payload in ({"n": 1}, {"n": 2}, "bad"):
                await app.send(source, payload)
            await asyncio.to_thread(read, secure.url, {}, out, 2)
            await asyncio.to_thread(read, secure.url, {}, seen, 2)
            await until(lambda: f"{source}.dlq" in admin.topics(secure.url))  # the first dead letter makes it
            await asyncio.to_thread(read, secure.url, {}, f"{source}.dlq", 1)
        finally:
            await app.stop()

    asyncio.run(bounded(run()))
    assert sorted(json.loads(record.payload)["n"] for record in read(secure.url, {}, out, 2)) == [1, 2]


@pytest.mark.one_in(3, "a login that is refused is told in full above")
@pytest.mark.parametrize("verb", ["run", "start", "send"])
async def test_an_app_with_a_wrong_password_ends_with_the_reason(
    secure: SecureBroker, user: str, filled: str, tmp_path: Path, verb: str
) -> None:
    app = app_of(secure, user, tmp_path, **{"sasl.password": WRONG})

    @app.agent(filled)
    async def look(ctx: Any) -> None:
        """Nothing."""

    with within(BOUND), pytest.raises(UserError, match=f"refuses the login of user '{user}'") as caught:
        await (app.send(filled, {}) if verb == "send" else getattr(app, verb)())
    assert WRONG not in str(caught.value)
    await app.stop()


def test_the_command_line_tells_the_reason_and_ends(
    secure: SecureBroker, user: str, filled: str, tmp_path: Path
) -> None:
    program = f"""
from sabot import App
app = App("secure", {secure.url_of("LOGIN")!r}, kafka={secure.login(user, WRONG)!r})
app.stream({filled!r}, schema={{"n": "int64"}}).to("out")
"""
    (tmp_path / "secured.py").write_text(program)
    done = sabot_run("secured:app", "--loglevel", "debug", folder=tmp_path)
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert f"refuses the login of user '{user}'" in told
    assert "sasl.username and sasl.password" in told
    assert WRONG not in told


# While it runs


async def _end(app: App, running: "asyncio.Task[None]") -> str:
    """What the app ends with."""
    with pytest.raises(SabotError) as caught:
        await bounded(running)
    await app.stop()
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


@pytest.mark.one_in(4, "both rights are taken away, and under both deliveries")
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("taken", ["read", "write"])
async def test_a_right_that_is_taken_away_while_an_app_runs_ends_it_with_the_reason(
    secure: SecureBroker, user: str, filled: str, tmp_path: Path, taken: str, delivery: Any
) -> None:
    out = f"{filled}.out"
    admin.create_topic(secure.url, out, 1)
    secure.allow(user, "topic", filled, "read")
    secure.allow(user, "topic", out, "read", "write")
    secure.allow(user, "topic", f"{filled}.dlq", "read", "write", "create")
    secure.allow(user, "group", "*", "read")
    secure.allow(user, "transactional-id", "*", "write", "describe")
    app = app_of(secure, user, tmp_path)
    app.stream(filled, schema={"n": "int64"}).to(out, delivery=delivery)
    running = asyncio.create_task(app.run())
    await asyncio.to_thread(read, secure.url, {}, out, 1)
    secure.forbid(user, "topic", *((filled, "read") if taken == "read" else (out, "write")))
    await asyncio.to_thread(write_once, secure.url, {}, filled)
    told = await _end(app, running)
    assert f"user '{user}' may not {taken} topic" in told
    assert f"--operation {taken.title()} --topic {filled if taken == 'read' else out}" in told


async def test_a_password_that_is_changed_while_an_app_runs_is_told_once_and_ends_it(
    secure: SecureBroker,
    user: str,
    filled: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sabot.kafka.client.REFUSED_SECONDS", 1.0)
    secure.allow(user, "topic", filled, "read")
    secure.allow(user, "topic", f"{filled}.dlq", "read", "write", "create")
    secure.allow(user, "group", "*", "read")
    secure.allow(user, "transactional-id", "*", "write", "describe")
    app = app_of(secure, user, tmp_path, "RENEWED")
    seen = []

    @app.agent(filled)
    async def look(ctx: Any) -> None:
        seen.append(ctx.offset)

    running = asyncio.create_task(app.run())
    await until(lambda: seen)
    secure.add_user(user, "another-password")
    told = await _end(app, running)
    assert f"refuses the login of user '{user}'" in told
    assert "sasl.password" in told
    assert len([line for line in caplog.messages if "refuses a connection" in line]) == 1


def test_a_sink_whose_password_is_changed_while_it_writes_ends(
    secure: SecureBroker, user: str, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client would try for five minutes (message.timeout.ms)."""
    monkeypatch.setattr("sabot.kafka.client.REFUSED_SECONDS", 1.0)
    secure.allow(user, "topic", filled, "write")
    sink = KafkaSink(filled, secure.url_of("RENEWED"), **secure.login(user))
    sink.open()

    def write_on() -> None:
        while True:
            sink.write(batch(ROW))
            sink.flush()

    sink.write(batch(ROW))
    sink.flush()
    secure.add_user(user, "another-password")
    error = refusal(write_on)
    assert f"refuses the login of user '{user}'" in error.message
    sink.close()


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_table_of_flink_with_its_login_reads_from_a_broker_that_wants_one(secure, filled, mechanism):
    user = f"user-{uuid.uuid4().hex[:6]}"
    secure.add_user(user)
    secure.allow(user, "topic", filled, "read", "describe")
    secure.allow(user, "group", "*", "read")
    module = "org.apache.kafka.common.security.scram.ScramLoginModule"
    login = f'{module} required username="{user}" password="{PASSWORD}";'
    table = f"""
        CREATE TABLE numbers (n BIGINT) WITH (
            'connector' = 'kafka', 'topic' = '{filled}', 'format' = 'json', 'scan.bounded.mode' = 'latest-offset',
            'properties.bootstrap.servers' = '{secure.url_of("LOGIN").removeprefix("kafka://")}',
            'properties.security.protocol' = 'SASL_SSL', 'properties.ssl.ca.location' = '{secure.ca}',
            'properties.sasl.mechanism' = '{mechanism}', 'properties.sasl.jaas.config' = '{login}');
        SELECT n FROM numbers"""
    assert App("reads").sql(table).collect().to_pylist() == [{"n": 1}]
