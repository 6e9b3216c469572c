"""The lease of an app that reads a topic and keeps no checkpoints: only one worker at a time has it.

The lease is the one static member of a consumer group of its own. A worker that joins as this member fences the
member before it, at once and at the broker, so two workers that try at the same time cannot both keep it. The broker
tells that there is a member, but not who it is. So the member writes its name into the metadata of an offset, which
only the member can commit: "HOLDER<tab>LIFE", or nothing after it has released the lease.
"""

import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition

from sabot.base.redaction import clean_cause
from sabot.base.supervision import watch_call
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import AppLocked, SabotError, TransientError
from sabot.kafka.client import (
    ANSWER_SECONDS,
    ELECTING,
    FORBIDDEN,
    client_of,
    connection_of,
    explain,
    link_of,
    make_admin,
    said,
)
from sabot.kafka.settings import whole_number

log = logging.getLogger("sabot.kafka")

_SESSION_MS = 10_000
_MARGIN_SECONDS = 3.0  # the broker ends a session a little later than it says
_LOOK_SECONDS = 0.1
_CLOSE_SECONDS = 5.0


class KafkaLease:
    """A claim (`claims.Claim`) to a topic. `lost` is called with an AppLocked, in another thread, when another worker
    takes it.
    """

    def __init__(
        self,
        broker: str,
        app: str,
        topic: str,
        kafka: Mapping[str, Any],
        *,
        life: str,
        is_over: Callable[[str], bool],
        lost: Callable[[SabotError], None],
    ) -> None:
        """`life` and `is_over`: the id of this process, and a function that tells whether a process has ended
        (`sabot.base.proc`). With them a start does not wait for the session of a process that has ended.
        """
        self.group = f"sabot.{app}.lease.{topic}"
        self.holder = f"{app}@{socket.gethostname()}:{os.getpid()}"
        self._app = app
        self._topic = topic
        self._life = life
        self._is_over = is_over
        self._tell_lost = lost
        self._error: SabotError | None = None  # the reason why the lease is lost
        self._session_ms = whole_number(kafka, "session.timeout.ms", _SESSION_MS)
        self._kafka = connection_of(kafka)
        self._link = link_of(broker, f"lease of app {app}", kafka)
        self._link.group = self.group
        self._admin = make_admin(self._link, kafka)
        self._consumer: Any = None
        self._follower = ""  # the worker that took the lease after the end of this session
        self._again = False  # a new session has begun, and our name has to be written again
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Takes the lease. Returns False if `give_up`, or `stopped()`, ended the wait.

        If another worker may be dead and still has the lease, blocks until the end of that worker's session; raises
        AppLocked if the worker is alive then. If the broker's ACLs forbid the group, logs a warning, and returns
        without a lease.
        """

        def is_stopped() -> bool:
            return stopped() or self._closing.is_set()

        try:
            if not self._is_free(is_stopped):
                return False
            self._join(is_stopped)
        except KafkaException as error:
            reason = error.args[0]
            self.release()
            if reason.code() not in FORBIDDEN:
                raise explain(reason, self._link, self._topic) from clean_cause(error)
            log.warning(
                "app %s: group %r is forbidden (%s), so nothing stops a second worker on topic %r; grant it Read",
                *(self._app, self.group, said(reason), self._topic),
            )
            return True
        except BaseException:
            self.release()
            raise
        if is_stopped():
            return False
        self._link.opened = True
        keep = watch_call(self._keep, f"the thread that keeps the lease of app {self._app}", self._lost)
        self._thread = threading.Thread(target=keep, name=f"kafka-lease-{self._app}", daemon=True)
        self._thread.start()
        return True

    def renew(self) -> None:
        """Checks that the lease is not lost; a thread keeps its session alive. Raises AppLocked."""
        if self._error is not None:
            raise self._error

    def left_s(self) -> float:
        """Returns 0.0 if the lease is not held or is lost, else `math.inf`. A process that was paused learns of the loss a moment later."""
        return 0.0 if self._error is not None or self._thread is None else math.inf

    def _lost(self, error: SabotError) -> None:
        self._error = error
        self._tell_lost(error)

    def _members(self) -> int:
        answer = self._answer(
            lambda seconds: self._admin.describe_consumer_groups([self.group], request_timeout=seconds)
        )
        return len(answer.members)

    def _noted(self) -> tuple[str, str]:
        """Returns the name of the holder, or of the last one, and the id of its process; both are "" if the lease was
        released.
        """
        request = [ConsumerGroupTopicPartitions(self.group, [TopicPartition(self._topic, 0)])]
        answer = self._answer(lambda seconds: self._admin.list_consumer_group_offsets(request, request_timeout=seconds))
        holder, _, life = (answer.topic_partitions[0].metadata or "").partition("\t")
        return holder, life

    def _answer(self, ask: Callable[[float], Any]) -> Any:
        """Returns the broker's answer about the group. Asks again while the broker is starting up. Raises
        KafkaException.
        """
        deadline = SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS
        while True:
            try:
                return ask(ANSWER_SECONDS)[self.group].result()
            except KafkaException as error:
                if error.args[0].code() not in ELECTING or SYSTEM_CLOCK.monotonic() > deadline:
                    raise
            self._closing.wait(_LOOK_SECONDS)

    def _is_free(self, stopped: Callable[[], bool]) -> bool:
        """Waits until nobody has the lease. Returns False if the wait was stopped. Raises AppLocked if a worker keeps
        the lease.
        """
        seconds = self._session_ms / 1000 + _MARGIN_SECONDS
        deadline, waits = SYSTEM_CLOCK.monotonic() + seconds, False
        while not stopped():
            if not self._members():
                return True
            holder, life = self._noted()
            if not holder or self._is_over(life):
                return True
            if SYSTEM_CLOCK.monotonic() > deadline:
                raise self._taken(holder)
            if not waits:
                told = "app %s: worker %s has topic %r; waiting up to %.0f s for the end of its session, in case it is dead"
                log.warning(told, self._app, holder, self._topic, seconds)
                waits = True
            self._closing.wait(_LOOK_SECONDS)
        return False

    def _join(self, stopped: Callable[[], bool]) -> None:
        """Joins the group as its static member, and writes the name of this worker into the offset's metadata. Raises
        AppLocked and KafkaException.
        """
        ours = {
            "group.id": self.group,
            "group.instance.id": "worker",
            "client.id": self.holder,
            "session.timeout.ms": self._session_ms,
            "heartbeat.interval.ms": max(1, self._session_ms // 5),
            "max.poll.interval.ms": 86_400_000,  # the heartbeats show that the process is alive
            "enable.auto.commit": False,
        }
        kafka = {name: value for name, value in self._kafka.items() if name != "client.id"}
        self._consumer = client_of(Consumer, self._link, kafka, ours)
        joined = threading.Event()

        def assigned(consumer: Any, _: list[Any]) -> None:
            self._quietly(partial(consumer.assign, []))  # this consumer reads nothing
            self._again = joined.is_set()
            joined.set()

        self._consumer.subscribe(
            [self._topic],
            on_assign=assigned,
            on_revoke=lambda consumer, _: self._quietly(consumer.unassign),
            on_lost=self._session_over,
        )
        deadline = SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS + self._session_ms / 1000
        while not joined.is_set():
            if stopped():
                return
            self._look(_LOOK_SECONDS)
            if SYSTEM_CLOCK.monotonic() > deadline:
                raise TransientError(
                    f"app {self._app}: group {self.group!r} on kafka://{self._link.address} could not be joined in time"
                )
        try:
            self._note(f"{self.holder}\t{self._life}", wait=True)
        except KafkaException:
            self._look(_LOOK_SECONDS)
            raise

    def _note(self, text: str, *, wait: bool) -> None:
        self._consumer.commit(offsets=[TopicPartition(self._topic, 0, 0, text)], asynchronous=not wait)

    def _look(self, seconds: float) -> None:
        """Handles an event of the client. Raises AppLocked if another worker is the member now, and KafkaException
        for a missing right.
        """
        event = self._consumer.poll(seconds)
        if self._follower:
            raise self._taken(self._follower)
        if self._again:
            self._again = False
            self._note(f"{self.holder}\t{self._life}", wait=False)
        error = None if event is None else event.error()
        if error is None:
            return
        if error.code() == KafkaError._FATAL:  # a static member has this one fatal error: it is fenced
            raise self._taken_over()
        if error.code() in FORBIDDEN:
            raise KafkaException(error)

    def _session_over(self, consumer: Any, _: list[Any]) -> None:
        """Called by the client after this process was paused, or the broker was unreachable. The client joins again
        when this function returns, and would fence a worker that has taken the lease meanwhile; so it unsubscribes if
        there is one.
        """
        while not self._closing.is_set():
            try:
                holder, life = self._noted()
            except KafkaException as error:
                log.debug("app %s: who has the lease is unknown: %s", self._app, said(error.args[0]))
                self._closing.wait(_LOOK_SECONDS)
                continue
            if holder and (holder, life) != (self.holder, self._life):
                self._follower = holder
                self._quietly(consumer.unsubscribe)
            break
        self._quietly(consumer.unassign)

    def _quietly(self, call: Callable[[], None]) -> None:
        """Makes a call within a callback of the client, and ignores its error: the call fails for a consumer that is
        fenced already, and the next poll raises that error too.
        """
        try:
            call()
        except KafkaException as error:
            log.debug("app %s: lease of topic %r: %s", self._app, self._topic, said(error.args[0]))

    def _keep(self) -> None:
        """Polls the client, in a thread of its own, until the lease is released or lost."""
        while not self._closing.wait(_LOOK_SECONDS):
            try:
                self._look(0)
            except KafkaException as error:
                log.warning("app %s: the lease of topic %r is gone: %s", self._app, self._topic, said(error.args[0]))
                return

    def _taken_over(self) -> AppLocked:
        """Returns the error for a lease that another worker has taken, which may not have noted its name yet."""
        holder, deadline = "", SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS
        while SYSTEM_CLOCK.monotonic() < deadline and not self._closing.is_set():
            try:
                holder, life = self._noted()
            except KafkaException as error:
                log.debug("app %s: the name of the other worker is unknown: %s", self._app, said(error.args[0]))
                break
            if holder and (holder, life) != (self.holder, self._life):
                return self._taken(holder)
            self._closing.wait(_LOOK_SECONDS)
        return self._taken(holder or "another one")

    def _taken(self, holder: str) -> AppLocked:
        return AppLocked(
            f"app {self._app}: another worker has topic {self._topic!r}: {holder}",
            hint="two workers without a state directory would each process all records: stop one, or give one another App id",
        )

    def give_up(self) -> None:
        """Makes a `take` that waits return False soon. Callable from any thread."""
        self._closing.set()

    def release(self) -> None:
        """Releases the lease, if it is held, so that the next worker need not wait. Blocks for up to 5 s if the
        broker is gone. May be called twice.
        """
        self._closing.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSE_SECONDS)
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        closer = threading.Thread(
            target=self._let_go, args=(consumer, thread is not None), name=f"kafka-lease-close-{self._app}", daemon=True
        )
        closer.start()
        closer.join(_CLOSE_SECONDS)

    def _let_go(self, consumer: Any, held: bool) -> None:
        try:
            if held:
                consumer.commit(offsets=[TopicPartition(self._topic, 0, 0, "")], asynchronous=False)
        except KafkaException as error:  # another worker has it, or the broker is gone: the session ends by itself
            log.debug("app %s: the lease could not be released: %s", self._app, said(error.args[0]))
        finally:
            consumer.close()
