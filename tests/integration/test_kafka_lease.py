"""Two workers of one app without checkpoints on one topic: the broker lets one of them have it."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException

from sabot import App
from sabot.errors import AppLocked, SabotError
from sabot.kafka import admin
from sabot.kafka.lease import KafkaLease
from tools.broker import Broker

pytestmark = pytest.mark.kafka

WAIT = 60.0
SHORT = {"session.timeout.ms": 1000}
HELD = {"session.timeout.ms": 5000}  # a session that must not end: on a busy machine beats may be a second late


PROGRAM = """
import asyncio, sys
from sabot import App

app = App("app", sys.argv[1], state="memory", kafka={"session.timeout.ms": 1000})
app.stream(sys.argv[2], schema={"x": "int64"}).to(sys.argv[2] + "-out")


async def main():
    await app.start()
    print("started", flush=True)
    await app.run()


asyncio.run(main())
"""


class Worker:
    """One that may be dead for all that others can tell, as on another machine."""

    def __init__(
        self,
        url: str,
        topic: str,
        name: str,
        is_over: Callable[[str], bool] = lambda life: False,
        kafka: dict[str, int] = SHORT,
    ) -> None:
        self.errors: list[SabotError] = []
        self.ended = threading.Event()
        self.lease = KafkaLease(url, "app", topic, kafka, life=name, is_over=is_over, lost=self._lost)
        self.lease.holder = f"app@{name}:1"

    def _lost(self, error: SabotError) -> None:
        self.errors.append(error)
        self.ended.set()

    def take(self) -> bool:
        return self.lease.take(lambda: False)

    def is_killed(self) -> None:
        """It sends no more heartbeats, and tells nobody."""
        self.lease._closing.set()
        thread = self.lease._thread
        assert thread is not None
        thread.join(WAIT)
        self.lease._consumer.close()  # a static member does not leave
        self.lease._consumer = None


@pytest.fixture
def made(kafka: Broker, topic: str) -> str:
    admin.create_topic(kafka.url, topic, 2)
    return topic


@pytest.mark.slow  # waits for the end of a session
def test_a_second_worker_waits_for_the_session_of_the_first_and_is_told_who_that_is(
    kafka: Broker, made: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Worker(kafka.url, made, name, kafka=HELD) for name in ("one", "two"))
    assert first.take()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(AppLocked, match=f"another worker has topic '{made}': app@one:1"),
    ):
        second.take()
    assert [line for line in caplog.messages if "worker app@one:1 has topic" in line and "waiting up to 8 s" in line]
    assert first.errors == []
    first.lease.release()
    third = Worker(kafka.url, made, "three")
    assert third.take()  # it was let go: nobody waits
    third.lease.release()


def test_a_lease_that_was_let_go_or_whose_process_is_gone_is_free_at_once(
    kafka: Broker, made: str, caplog: pytest.LogCaptureFixture
) -> None:
    for end in (lambda worker: worker.lease.release(), Worker.is_killed):
        before, after = Worker(kafka.url, made, "one"), Worker(kafka.url, made, "two", lambda life: life == "one")
        assert before.take()
        end(before)
        assert after.take()
        assert after.lease._noted() == ("app@two:1", "two")
        after.lease.release()
    assert not [line for line in caplog.messages if "waiting" in line]


@pytest.mark.slow  # waits for the end of a session of a second
def test_a_killed_worker_of_another_machine_is_followed_when_its_session_is_over(
    kafka: Broker, made: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Worker(kafka.url, made, "one"), Worker(kafka.url, made, "two")
    assert first.take()
    first.is_killed()
    assert second.take()
    assert [line for line in caplog.messages if "waiting up to" in line]
    second.lease.release()


def test_of_two_that_look_at_the_same_time_the_later_keeps_it_and_the_other_names_it(kafka: Broker, made: str) -> None:
    first, second = Worker(kafka.url, made, "one"), Worker(kafka.url, made, "two", lambda life: True)
    assert first.take()
    assert second.take()
    assert first.ended.wait(WAIT)
    (error,) = first.errors
    assert isinstance(error, AppLocked)
    assert "app@two:1" in str(error)
    first.lease.release()
    assert second.lease._noted() == ("app@two:1", "two")  # the one that lost has not let go what is not its own
    assert not second.errors
    second.lease.release()


def test_a_forbidden_group_is_a_warning(
    kafka: Broker, made: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(kafka.url, made, "one")

    def forbidden() -> int:
        raise KafkaException(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED))

    monkeypatch.setattr(worker.lease, "_members", forbidden)
    assert worker.take()
    (told,) = [line for line in caplog.messages if "forbidden" in line]
    assert f"group 'sabot.app.lease.{made}'" in told
    assert "grant it Read" in told
    worker.lease.release()


@pytest.mark.slow  # waits for the end of a session
async def test_an_app_without_checkpoints_ends_where_another_worker_takes_its_topic(kafka: Broker, made: str) -> None:
    apps = [App("app", kafka.url, state="memory", kafka=dict(HELD)) for _ in range(2)]
    for app in apps:
        app.stream(made, schema={"x": "int64"}).to(f"{made}-out")
    await apps[0].start()
    running = asyncio.ensure_future(apps[0].run())
    async with asyncio.timeout(WAIT):
        with pytest.raises(AppLocked, match=f"app@.*:{os.getpid()}"):
            await apps[1].run()
        assert not running.done()
        other = Worker(kafka.url, made, "other", lambda life: True)
        assert await asyncio.to_thread(other.take)
        with pytest.raises(AppLocked, match="app@other:1"):
            await running
    other.lease.release()


@pytest.fixture
def process_of() -> Iterator[Callable[[str, str], "subprocess.Popen[str]"]]:
    """Starts a worker in a process of its own."""
    processes: list[subprocess.Popen[str]] = []

    def begin(url: str, topic: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PROGRAM, url, topic]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow  # processes, one of which is paused for longer than its session
def test_a_paused_worker_ends_with_the_name_of_its_follower_and_a_killed_one_is_followed(
    kafka: Broker, made: str, process_of: Callable[[str, str], "subprocess.Popen[str]"]
) -> None:
    def said(process: "subprocess.Popen[str]", what: str) -> str:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if what in line:
                return line
        raise AssertionError("".join(lines))

    paused = process_of(kafka.url, made)
    said(paused, "started")
    paused.send_signal(signal.SIGSTOP)
    second = process_of(kafka.url, made)
    said(second, "started")
    paused.send_signal(signal.SIGCONT)
    assert f":{second.pid}" in said(paused, "AppLocked")
    assert paused.wait(WAIT) == 1
    assert second.poll() is None
    second.kill()
    second.wait(WAIT)
    said(process_of(kafka.url, made), "started")
