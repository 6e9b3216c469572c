"""kill -9, pauses and broker restarts against an exactly-once app on a real broker; then every result is counted.

    python tests/recovery/kill_dance.py --kills 20 --seed 1 --rows 200000 [--workers 3] [--broker HOST:PORT] [--keep]

A producer writes rows to a topic, in transactions of which some are aborted, while `sabot run dance_app:app` reads it and is killed,
at moments that the seed draws: as it starts, as it runs, right behind a checkpoint, when its output is on the way. Now and then a
worker is paused (SIGSTOP) first, a successor started on the same checkpoints as if on another host, and the paused one woken up again:
it has to end by itself. With --workers an app has so many processes, and its coordinator: what is killed is one of these, also while they
start, and what is paused goes on after a while, shorter or longer than the time-outs. The broker, if it is ours, is restarted twice: by
SIGTERM, and by kill -9. Then dance_verifier.py, which has no line of the engine, says what is lost and what is there too often.

The last line is JSON: expected, delivered, lost, duplicated, kills, input_topic, output_topic, and what else happened. Exit code 0:
nothing is lost or duplicated, no worker ended by itself, no woken one went on. --keep leaves topics, files and our broker as they are.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from dance_verifier import Result, committed, compare, delivered, expected

from tools.broker import Broker
from tools.leftovers import leftovers

HERE = Path(__file__).parent
SABOT = (sys.executable, "-P", "-c", "from sabot.cli import main; main()")
PARTITIONS = 4
CHUNK_ROWS = 200  # rows of one transaction of the producer
ABORTED = 0.1  # the share of transactions that are aborted
BASE_MS, STEP_MS = 1_790_000_000_000, 5  # event time of row n
PATIENCE = 120.0  # seconds until a checkpoint, the end of a woken worker or the next result must have come
WOKEN_SECONDS = 60.0  # until a worker that was paused has found out that the app is another's now
CHECKPOINT_SECONDS = 0.5
DEATHS = 5  # so many workers may end by themselves: then the dance is given up
SHARED = 0.3  # the share of workers that reach the checkpoints as from another host
MANNERS = {"starting": 3, "delivering": 5, "running": 4}  # when a worker is killed, and how often
COORDINATOR = 0.3  # of the processes of an app with workers, how often its coordinator is killed or paused
SUCCEEDED = 0.3  # how often a pause is that of a coordinator that has a successor meanwhile
# An edge between two workers is broken after 10 s without an answer, a process is taken for dead after 30 s.
PAUSE_SECONDS = (0.3, 5.0, 12.0, 35.0)


class Trouble(Exception):
    """The dance cannot go on, because something that must come did not come."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    limit = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > limit:
            raise Trouble(f"waited {patience:g} s in vain for {what}")
        time.sleep(0.002)
    return found


class Inflow(threading.Thread):
    """Writes rows until so many are committed. A chunk whose commit failed may be there or not: its rows are not sent again.

    Rows have growing numbers, and growing event times. An account is always in one partition. It writes what `allow` lets it,
    at `rate` rows a second; None: as fast as it can.
    """

    def __init__(self, broker: str, topic: str, rows: int, seed: int, *, accounts: int = 50) -> None:
        super().__init__(name="inflow", daemon=True)
        self._settings = {
            "bootstrap.servers": broker,
            "transactional.id": f"inflow-{topic}",
            "transaction.timeout.ms": 60_000,
            "metadata.recovery.strategy": "none",
            "linger.ms": 2,
            "compression.type": "lz4",
            "log_level": 0,
        }
        self._topic = topic
        self._rows = rows
        self._random = random.Random(f"rows {seed}")
        self._accounts = [f"acc{number}" for number in range(accounts)]
        self._allowed = threading.Condition()
        self._limit = 0
        self.rate: float | None = None
        self.chunk_rows = CHUNK_ROWS
        self.next_row = 0
        self.committed = 0
        self.error: BaseException | None = None
        self.stopping = False

    def allow(self, rows: int) -> None:
        """The producer may commit so many rows from now on."""
        with self._allowed:
            self._limit = min(self._rows, rows)
            self._allowed.notify()

    def stop(self) -> None:
        with self._allowed:
            self.stopping = True
            self._allowed.notify()

    def run(self) -> None:
        try:
            producer = self._producer()
            due = time.monotonic()
            while self._may_go_on():
                rows = self.chunk_rows
                try:
                    if self._send(producer, self._chunk(rows), abort=self._random.random() < ABORTED):
                        self.committed += rows
                except (KafkaException, BufferError):
                    producer = self._producer()
                if self.rate is not None:
                    due = max(due + rows / self.rate, time.monotonic() - 0.2)
                    time.sleep(max(0.0, due - time.monotonic()))
            ticks = [(at, f"tick{at}", self._row(f"tick{at}", tick=True)) for at in range(PARTITIONS)]
            while not self._ticked(producer, ticks):
                producer = self._producer()
        except BaseException as error:  # the main thread asks for it
            self.error = error

    def _may_go_on(self) -> bool:
        with self._allowed:
            while not self.stopping and self._limit <= self.committed < self._rows:
                self._allowed.wait()
            return not self.stopping and self.committed < self._rows

    def _producer(self) -> Producer:
        limit = time.monotonic() + PATIENCE
        while True:
            producer = Producer(self._settings)
            try:
                producer.init_transactions(10)
                return producer
            except KafkaException:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.2)

    def _row(self, account: str, *, tick: bool = False) -> bytes:
        number, self.next_row = self.next_row, self.next_row + 1
        ts = BASE_MS + number * STEP_MS + (3_600_000 if tick else 0)  # a tick: windows before it are over
        amount = 1 if tick else self._random.randrange(1000)
        return b'{"n":%d,"account":"%s","amount":%d,"ts":%d}' % (number, account.encode(), amount, ts)

    def _chunk(self, rows: int) -> list[tuple[int, str, bytes]]:
        picked = [self._random.randrange(len(self._accounts)) for _ in range(rows)]
        return [(at % PARTITIONS, self._accounts[at], self._row(self._accounts[at])) for at in picked]

    def _send(self, producer: Producer, rows: list[tuple[int, str, bytes]], *, abort: bool) -> bool:
        """-> whether the rows are committed."""
        producer.begin_transaction()
        for partition, account, payload in rows:
            producer.produce(self._topic, payload, account, partition=partition)
            producer.poll(0)
        if producer.flush(60):
            raise BufferError("the broker takes no rows")
        if abort:
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(60)
        return not abort

    def _ticked(self, producer: Producer, ticks: list[tuple[int, str, bytes]]) -> bool:
        try:
            return self._send(producer, ticks, abort=False)
        except (KafkaException, BufferError):  # they may be there or not: a tick that comes twice does no harm
            return False


class Place:
    """Where workers run: the folder, the topics, the broker, what they are told."""

    def __init__(
        self,
        folder: Path,
        broker: str,
        *,
        delivery: str = "",
        environment: dict[str, str] | None = None,
        processes: int = 1,
    ) -> None:
        """processes: of each app, beside its coordinator; 1: all of it is one process."""
        name = uuid.uuid4().hex[:8]
        self.folder = folder
        self.broker = broker
        self.input_topic, self.output_topic = f"dance-{name}-in", f"dance-{name}-out"
        self.checkpoints = folder / "checkpoints"
        self.processes = processes
        self._environment = {
            **os.environ,
            "DANCE_ID": f"dance-{name}",
            "DANCE_IN": self.input_topic,
            "DANCE_OUT": self.output_topic,
            **({"DANCE_DELIVERY": delivery} if delivery else {}),
            **(environment or {}),
        }
        self._workers: list[Worker] = []

    def make_topics(self, **config: str) -> None:
        admin = AdminClient({"bootstrap.servers": self.broker, "log_level": 2})
        made = admin.create_topics(
            [
                NewTopic(topic, PARTITIONS, 1, config={"retention.ms": "-1", **config})
                for topic in (self.input_topic, self.output_topic)
            ]
        )
        for future in made.values():
            future.result(60)

    def delete_topics(self) -> None:
        admin = AdminClient({"bootstrap.servers": self.broker, "log_level": 2})
        there = admin.list_topics(timeout=60).topics
        mine = {self.input_topic, f"{self.input_topic}.dlq", self.output_topic} & there.keys()
        for future in admin.delete_topics(sorted(mine)).values():
            future.result(60)

    def close(self) -> None:
        """No worker is left behind, however it ends."""
        for worker in self._workers:
            if worker.alive:
                worker.kill()

    def completed(self) -> set[str]:
        """The manifests that there are; a checkpoint is complete when it has one."""
        try:
            return {name for name in os.listdir(self.checkpoints / "checkpoints") if name.endswith(".json")}
        except FileNotFoundError:
            return set()

    def worker(self, state: str, *, parallelism: int = 1, shared: bool = False) -> "Worker":
        """shared: the checkpoints lie where no lock keeps a second worker out, as on a file system that hosts share."""
        words = [*SABOT, "run", "dance_app:app", "--broker", f"kafka://{self.broker}", "--loglevel", "warning"]
        words += ["--state", str(self.folder / f"state-{state}")]
        words += ["--checkpoint-interval", str(CHECKPOINT_SECONDS), "--parallelism", str(parallelism)]
        if self.processes > 1:
            words += ["--workers", str(self.processes), "--restart", "fixed(1000, 200ms)"]
        environment = dict(self._environment)
        if shared:
            environment["DANCE_SHARED"] = str(self.checkpoints)
        else:
            words += ["--checkpoint-dir", str(self.checkpoints)]
        log = self.folder / f"worker-{len(self._workers):03d}.log"
        self._workers.append(Worker(self, words, environment, log))
        return self._workers[-1]


class Worker:
    """One `sabot run`, its log in a file."""

    def __init__(self, place: Place, words: list[str], environment: dict[str, str], log: Path) -> None:
        self._place = place
        self.log = log
        self.known = place.completed()
        self.began = time.monotonic()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                words, cwd=HERE, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])

    def wait_for_checkpoint(self) -> bool:
        """Waits for a checkpoint that was not there before. -> False where the worker has ended"""

        def new() -> bool:
            return bool(self._place.completed() - self.known) or not self.alive

        wait_until(new, f"a checkpoint of {self.log.name}:\n{self.last_words()}")
        self.known |= self._place.completed()
        return self.alive

    def members(self) -> list[int]:
        """The pids of its worker processes, also of those that only start, in the order of their start."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").glob("*"):
            with suppress(OSError):  # the thread, or the child, has ended meanwhile
                for pid in map(int, (task / "children").read_text().split()):
                    if b"run-worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found.append(pid)
        return sorted(found)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Stops the worker in good order. -> its exit code"""
        self.process.terminate()
        return self.process.wait(PATIENCE)


class Dance:
    def __init__(self, place: Place, inflow: Inflow, broker: Broker, options: argparse.Namespace) -> None:
        self._place = place
        self._inflow = inflow
        self._broker = broker
        self._random = random.Random(f"dance {options.seed}")
        self._rows: int = options.rows
        self._kills: int = options.kills
        self._quota = self._rows / (self._kills + 1)
        pauses = self._kills // 5 if options.pauses is None else options.pauses
        self._pauses = set(self._random.sample(range(self._kills), min(pauses, self._kills)))
        restarts = min(2, self._kills) if broker.ours else 0
        self._restarts = dict(
            zip(self._random.sample(range(self._kills), restarts), ("SIGTERM", "kill -9"), strict=False)
        )
        self._restarted: set[int] = set()
        self._pause_seconds = [each for each in PAUSE_SECONDS if each <= options.longest_pause]
        self.kills = self.killed_members = self.paused = self.died = self.woken_went_on = 0

    def figures(self) -> dict[str, int]:
        return {
            "kills": self.kills,
            "killed_members": self.killed_members,
            "pauses": self.paused,
            "broker_restarts": len(self._restarted),
            "died": self.died,
            "woken_went_on": self.woken_went_on,
        }

    def run(self) -> None:
        self._inflow.rate = self._quota / 2
        self._inflow.start()
        while self.kills < self._kills:
            self._live()

    def _live(self) -> None:
        """Runs one worker, or one and its successor, until it is killed. An app of several processes loses some of them before."""
        shared = self.kills in self._pauses or self._random.random() < SHARED
        worker = self._worker(shared=shared)
        while True:
            number = self.kills
            self._inflow.allow(int(self._quota * (number + 1)))
            restart = self._restarts.get(number)
            if restart is not None and number not in self._restarted:
                self._restarted.add(number)
                self._restart_broker(worker, restart)
            if number in self._pauses:
                self._pauses.discard(number)
                worker = self._pause(worker) if self._succeeds(shared=shared) else self._stand_still(worker)
            manner = self._random.choices(list(MANNERS), list(MANNERS.values()))[0]
            self._await_moment(worker, manner)
            if not worker.alive:
                self._mourn(worker)
                return
            if self._dies(number):
                break
            self._kill_member(worker)
        age = time.monotonic() - worker.began
        worker.kill()
        self.kills += 1
        say(f"kill {self.kills} of {self._kills}: {manner}, {age:.2f} s old, {self._inflow.committed} rows sent")

    def _succeeds(self, *, shared: bool) -> bool:
        """Whether a pause is one in which a successor starts."""
        return shared and (self._place.processes == 1 or self._random.random() < SUCCEEDED)

    def _dies(self, number: int) -> bool:
        """Whether the process that was started is killed, and not one of its workers; the last one is."""
        return self._place.processes == 1 or number == self._kills - 1 or self._random.random() < COORDINATOR

    def finish(self) -> dict[str, int]:
        """Lets all rows in and all results out, and stops in good order. -> what the verifier says"""
        self._inflow.allow(self._rows)
        worker = self._worker()
        self._inflow.join(PATIENCE * 5)
        if self._inflow.error is not None or self._inflow.is_alive():
            raise Trouble(f"the producer did not come to its end: {self._inflow.error!r}")
        wanted = expected(committed(self._place.broker, self._place.input_topic))
        say(f"all rows are sent: {wanted.total()} results are to come")
        limit, most = time.monotonic() + PATIENCE, -1
        while not self._complete(wanted, count := self._delivered()):
            if not worker.alive:
                self._mourn(worker)
                worker = self._worker()
            if count > most:
                most, limit = count, time.monotonic() + PATIENCE
            if time.monotonic() > limit:
                say(f"no more results come:\n{worker.last_words()}")
                break
            time.sleep(0.5)
        if worker.alive and (code := worker.stop()):
            say(f"the last worker ended with exit code {code}:\n{worker.last_words()}")
            self.died += 1
        return compare(wanted, delivered(committed(self._place.broker, self._place.output_topic)))

    def _delivered(self) -> int:
        return sum(1 for _ in committed(self._place.broker, self._place.output_topic))

    def _complete(self, wanted: "Counter[Result]", count: int) -> bool:
        """Counting is quick; that so many are there does not say that it is these."""
        return count >= wanted.total() and not wanted - delivered(
            committed(self._place.broker, self._place.output_topic)
        )

    def _worker(self, *, shared: bool = False) -> Worker:
        """Its state lies where one of those before left it, or nowhere: the checkpoint is what counts."""
        parallelism = self._random.choice([1, 1, 2, 3])
        return self._place.worker(self._random.choice(["a", "b"]), parallelism=parallelism, shared=shared)

    def _kill_member(self, worker: Worker) -> None:
        """Kills one of the processes of an app, which goes on."""
        which, members = self._random.random(), worker.members()
        if not members:
            return  # there are none yet, or none between two epochs
        at = int(which * len(members))
        with suppress(ProcessLookupError):
            os.kill(members[at], signal.SIGKILL)
        self.kills += 1
        self.killed_members += 1
        say(f"kill {self.kills} of {self._kills}: process {at + 1} of {len(members)}")

    def _stand_still(self, worker: Worker) -> Worker:
        """Pauses one of the processes of an app for a while. -> the same app"""
        self._await_moment(worker, self._random.choice(list(MANNERS)))
        seconds, coordinator = self._random.choice(self._pause_seconds), self._random.random() < COORDINATOR
        members = wait_until(lambda: worker.members() or not worker.alive, "a worker process")
        if members is True:
            return worker
        at = self._random.randrange(len(members))
        pid = worker.process.pid if coordinator else members[at]
        say(f"{'the coordinator' if coordinator else f'process {at + 1}'} is paused for {seconds:g} s")
        self.paused += 1
        with suppress(ProcessLookupError):  # the coordinator may end it meanwhile
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
        return worker

    def _await_moment(self, worker: Worker, manner: str) -> None:
        if manner == "starting":
            time.sleep(self._random.uniform(0, 2.0))
            return
        for _ in range(self._random.choice([1, 1, 2, 3])):
            if not worker.wait_for_checkpoint():
                return
        time.sleep(self._random.uniform(0, 0.04 if manner == "delivering" else 1.0))

    def _pause(self, paused: Worker) -> Worker:
        """-> the successor, with a checkpoint of its own; the paused one was woken up after that, and has ended."""
        self._await_moment(paused, self._random.choice(["delivering", "running"]))
        if not paused.alive:
            self._mourn(paused)
            return self._worker(shared=True)
        paused.pause()
        self.paused += 1
        say("paused one; its successor starts")
        successor = self._place.worker(f"after-{paused.log.stem}", shared=True)
        try:
            went_on = successor.wait_for_checkpoint()
        finally:
            paused.wake()
        if not went_on:
            self._mourn(successor)
        try:
            code = paused.process.wait(WOKEN_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
            paused.kill()
        if code == 0:
            self.woken_went_on += 1
            say(f"the woken one went on:\n{paused.last_words()}")
        else:
            say(f"the woken one ended with code {code}: {paused.last_words().splitlines()[-1:]}")
        return successor

    def _restart_broker(self, worker: Worker, manner: str) -> None:
        self._await_moment(worker, "delivering")
        say(f"broker down: {manner}")
        if manner == "SIGTERM":
            self._broker.stop()
        else:
            assert self._broker.folder is not None
            os.kill(int((self._broker.folder / "pid").read_text()), signal.SIGKILL)
        time.sleep(self._random.uniform(0, 3))
        self._broker.start()
        say("broker up")
        if not worker.wait_for_checkpoint():
            say("the worker did not live through it")

    def _mourn(self, worker: Worker) -> None:
        self.died += 1
        say(f"a worker ended by itself, with code {worker.process.returncode}:\n{worker.last_words()}")
        if self.died > DEATHS:
            raise Trouble("workers end by themselves")


def dance(folder: Path, broker: Broker, options: argparse.Namespace) -> dict[str, Any]:
    address = broker.url.removeprefix("kafka://")
    place = Place(folder, address, delivery=options.delivery, processes=options.workers)
    place.make_topics()
    say(f"broker {address}, topics {place.input_topic} and {place.output_topic}, files in {folder}")
    inflow = Inflow(address, place.input_topic, options.rows, options.seed)
    run = Dance(place, inflow, broker, options)
    began = time.monotonic()
    try:
        run.run()
        found = run.finish()
    finally:
        inflow.stop()
        place.close()
    outcome = {
        **found,
        **run.figures(),
        "input_topic": place.input_topic,
        "output_topic": place.output_topic,
        "rows": inflow.committed,
        "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1),
        "broker": address,
    }
    if not options.keep:
        place.delete_topics()
    return outcome


def passed(outcome: dict[str, Any]) -> bool:
    return not any(outcome[trouble] for trouble in ("lost", "duplicated", "died", "woken_went_on"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pauses", type=int, help="default: one for five kills")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes of each app")
    parser.add_argument("--longest-pause", type=float, default=PAUSE_SECONDS[-1], metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument(
        "--broker", metavar="HOST:PORT", help="a running one, which is then not restarted; default: our own"
    )
    parser.add_argument("--delivery", choices=["exactly_once", "at_least_once"], default="")
    parser.add_argument("--keep", action="store_true", help="leave topics, files and our broker as they are")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sabot-dance-"))
    if not options.keep:
        leftovers().folder(folder)
    if options.broker:
        broker = Broker(url=f"kafka://{options.broker.removeprefix('kafka://')}")
    else:
        (folder / "broker").mkdir()
        broker = Broker(folder / "broker", keep=options.keep)
        broker.start()
    try:
        outcome = dance(folder, broker, options)
    except Trouble as trouble:
        sys.exit(f"kill_dance: {trouble}")
    finally:
        if options.keep:
            say(f"kept: {folder}, broker {broker.url}")
        else:
            if broker.ours:
                broker.stop()
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(outcome))
    sys.exit(not passed(outcome))


if __name__ == "__main__":
    main()
