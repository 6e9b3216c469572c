"""Kills an app with durable agents, over and over, and counts what it did to the world: once, twice, or never.

    python benchmarks/agents/kill_effects.py --kills 200 --seed 1 [--journal sqlite|postgres|kafka] [--topics]

The app (killed/shop.py) reads orders from a file or a topic; its tools call a witness (`sabot.testing.Witness`), a process outside that
records what has really happened, and that drops connections and answers late as services do. Questions, also those about effects in
doubt, are answered from another process through the inbox, while the app lives and while it is dead. Each life ends by SIGKILL: at a
moment that the seed draws, at a step of its journal, of a call, of a checkpoint or of the delivery of its output (`sabot.steps`), or
after it was stopped (SIGSTOP) and another one was started beside it, which is refused; or some time after the server of its journal was
killed too, and started again. Rounds of --jobs orders follow one another until
there were so many kills; the last life of each ends by itself.

With --topics orders, what is settled and dead letters are topics of a broker, exactly once, and dead letters are sent back while all this
goes on. Where the journal is on a server too, checkpoints are kept as on another machine, and every life has a state of its own: the
worker that is started beside a stopped one takes over then; the stopped one wakes up, and has to end by itself, without an effect.

The last line is one JSON object: kills, jobs (orders), asked (unsafe effects that the orders call for; a payout for each row of a batch),
done (those that happened), twice (effects that had happened before), in_doubt (nobody knows, at the end), abandoned (not done, and not to
be done, as a person has said), lost = asked - done - in_doubt - abandoned, seconds; and beside them what else there was. Exit code 0:
nothing is lost or twice, each order has one answer, and no life ended by an error of its own, nor went on when its job was another's.

--variant plain (agents that are not durable) and assume_done (an effect in doubt counts as done) are broken on purpose: the first one does
things twice, the other one loses some. They show that these counts can be other than 0.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from killed import topics
from killed.shop import FAILED, LATE_SECONDS, LOCKED, UNSAFE, Failpoint, Order, World, expected, live, orders_of

from sabot.demos.person import Person
from sabot.engine.calls.effects import key_in_doubt
from sabot.jobs.values import unpack
from sabot.journal import open_reader
from sabot.journal.entries import EffectResult, Intent
from sabot.testing import Witness
from tools.broker import Broker
from tools.leftovers import leftovers
from tools.postgres import Postgres

PATIENCE = 120.0  # seconds that the last life of a round may take
MANNERS = {"moment": 4, "failpoint": 4, "pause": 2, "outage": 1}
OUTAGE_SECONDS = 3.0  # at most, that the server of the journal stays away; its start takes longer
WORKS = 0.7  # the share of kills at a moment that come when the app has started: on a busy machine that takes seconds
LONGEST = 2.5  # seconds of a life that is killed at a moment
LONGEST_ON_TOPICS = 5.0  # a client of a broker takes a second to begin
WOKEN_SECONDS = 60.0  # until a worker that was stopped has found out that its job is another's
FAILPOINTS = {  # by step: of how many the one is drawn at which a life ends
    "journal": 60,  # commits of the journal, and of letters
    "call": 40,  # a call is about to be made
    "outcome": 40,  # a call has come back, and nobody knows it yet
    "rename": 12,  # a part of a checkpoint, or of the output
    "append": 6,  # the output, and dead letters
    "sync": 8,
}
THINKS_SECONDS = 0.8  # at most, until a question is answered
WAITS_SECONDS = LATE_SECONDS + 1.0  # until somebody says that an effect was not done: what was sent may land late
ABANDONS = 0.2  # the share of effects in doubt that were not done, and are not to be done any more
VARIANTS = ("durable", "plain", "assume_done")
# What a life loads late, which is two seconds of the processor of each otherwise.
PRELOADED = (
    "numpy.ma",
    "pandas",
    "pyarrow.pandas_compat",
    "pyarrow.vendored.version",
    "rocksdict",
    "sabot.agents.durable.batch_operator",
    "sabot.agents.durable.kind",
    "sabot.connectors.redis.sink",
    "sabot.connectors.redis.source",
    "sabot.engine.operators.agents.kinds",
    "sabot.engine.operators.keyed.over_columns",
    "sabot.engine.runtime.agents.local_agents",
    "sabot.engine.runtime.agents.sinks",
    "sabot.engine.runtime.agents.source",
    "sabot.engine.runtime.agents.stream_feed",
    "sabot.engine.runtime.agents.unfinished",
    "sabot.engine.runtime.life.app_runner",
    "sabot.engine.runtime.life.kafka_lease",
    "sabot.engine.runtime.life.local_streams",
    "sabot.engine.runtime.life.requests",
    "sabot.engine.runtime.life.run",
    "sabot.journal.kafka",
    "sabot.journal.sqlite",
    "sabot.kafka.reader",
    "sabot.kafka.transactions",
    "sabot.kafka.writer",
    "sabot.llm.agent",
    "sabot.mcp.elicitation",
)


class Trouble(Exception):
    """It cannot go on: something that must come did not come."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Round:
    """Some orders, from the first life to the last one."""

    def __init__(
        self,
        world: World,
        address: str,
        numbers: range,
        dice: random.Random,
        witness: Witness,
        log: Path,
        server: "Server | None",
    ) -> None:
        """address: of the journal, for readers. server: of the journal, if it may be killed."""
        self.kills: Counter[str] = Counter()
        self.lives = self.refused = self.taken_over = self.went_on = self.errors = self.answers = self.doubts = 0
        self.redriven = self.outages = 0
        self._manners = {name: share for name, share in MANNERS.items() if name != "outage" or server is not None}
        self._server = server
        self.abandoned: set[tuple[str, int]] = set()  # tools and their orders
        self._processes: list[Any] = []
        self._world, self._numbers, self._dice, self._witness, self._log = world, numbers, dice, witness, log
        self._longest = LONGEST_ON_TOPICS if world.broker else LONGEST
        self.address = address
        world.folder.mkdir(parents=True)
        orders = orders_of(numbers)
        world.payouts.write_text("".join(f'{{"order": {number}}}\n' for number in numbers))
        self._came: dict[str, topics.Reader] = {}
        if world.broker:
            topics.make(world, orders)
            self._came = {name: topics.Reader(world.broker, world.topic(name)) for name in ("settled", "dead", "paid")}
        else:
            world.orders.write_text("".join(f"{json.dumps(order)}\n" for order in orders))

    def run(self, kills: int) -> None:
        """Lives until all orders are settled; after so many kills nobody is killed any more."""
        person = Person(self.address, self._decide)
        redriver = topics.Redriver(self._world) if self._world.broker else None
        if self._world.variant != "plain":
            person.start()
        try:
            while not self._live(may_kill=self.kills.total() < kills and not self._settled()):
                pass
        finally:
            for process in self._processes:  # one that is stopped would hold up our end
                process.kill()
            if self._world.variant != "plain":
                person.finish()
            if redriver is not None:
                redriver.finish()
                self.redriven = redriver.sent
        self.answers = person.answered

    def _decide(self, question: Intent) -> tuple[float, Callable[[], dict[str, Any]]]:
        """Orders are approved as they say. Effects in doubt are looked up: done, not done, or abandoned."""
        about = json.loads(bytes(question.body))  # type: ignore[arg-type]
        if question.name != "in_doubt":
            number = about["order"]
            return random.Random(number).uniform(0, THINKS_SECONDS), lambda: {"approved": Order(number).approved}
        key = key_in_doubt(question.job, about)

        def look_up() -> dict[str, Any]:
            self.doubts += 1
            found = self._witness.client.find(key)
            if found is not None:
                return {"outcome": "done", "result": found["number"]}
            drawn = random.Random(f"{self._world.seed} {question.token}").random()
            if drawn < ABANDONS and about["effect"] != "payout":  # of how many rows one is the question does not say
                self.abandoned.add((about["effect"], self._order_of(question.job, about["ordinal"])))
                return {"outcome": "abandon"}
            return {"outcome": "not_done"}

        return WAITS_SECONDS, look_up

    def _order_of(self, job: str, ordinal: int) -> int:
        """The order about which a call of a job is."""
        reader = open_reader(self.address)
        calls = [each for _, each in reader.read_jobs([job]) if isinstance(each, Intent) and each.kind == "call"]
        (number,), _ = next(unpack(each.body) for each in reversed(calls) if each.ordinal == ordinal)  # of the last run
        reader.close()
        return int(number)

    def _start(self, point: Failpoint | None) -> Any:
        process = CONTEXT.Process(target=live, args=(self._world, point, self._log))
        process.start()
        self._processes.append(process)
        self.lives += 1
        return process

    def _live(self, *, may_kill: bool) -> bool:
        """One life. -> whether it came to the end of the orders."""
        manner = self._dice.choices(list(self._manners), list(self._manners.values()))[0] if may_kill else "to the end"
        point = self._point() if manner == "failpoint" else None
        process = self._start(point)
        seconds = {"to the end": PATIENCE, "failpoint": self._longest}.get(
            manner, self._dice.uniform(0.05, self._longest)
        )
        if manner in ("pause", "outage") or (manner == "moment" and self._dice.random() < WORKS):
            self._begun(process)
        if manner == "outage":
            self._outage()
        if self._ends_within(process, seconds, settles=manner == "to the end"):
            return self._ended(process, f"{point}")
        if manner == "to the end":
            process.kill()
            raise Trouble(
                f"the last life did not end within {PATIENCE:g} s, without {self.unanswered()}:\n{self._last_words()}"
            )
        if manner == "pause":
            process = self._take_over(process) if self._world.shared else self._pause(process)
        process.kill()
        process.join()
        self.kills[manner] += 1
        return False

    def _settled(self) -> bool:
        """With topics: nothing is left to do, so a life that is killed would prove nothing."""
        return bool(self._world.broker) and not self.unanswered()

    def _outage(self) -> None:
        """The server of the journal is killed, and comes back after a while."""
        assert self._server is not None
        time.sleep(self._dice.uniform(0, 1.0))
        self._server.kill()
        time.sleep(self._dice.uniform(0, OUTAGE_SECONDS))
        self._server.start()
        self.outages += 1

    def _begun(self, process: Any) -> None:
        """Waits until it has started, or ended."""
        limit = time.monotonic() + PATIENCE
        while process.is_alive() and not self._world.mark(process.pid).exists() and time.monotonic() < limit:
            time.sleep(0.01)

    def _ends_within(self, process: Any, seconds: float, *, settles: bool) -> bool:
        """Whether it ended. settles: with topics it is told to, when all orders are settled."""
        if not (settles and self._world.broker):
            return bool(wait([process.sentinel], seconds))
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if wait([process.sentinel], 0.2):
                return True
            if self._settled():
                self._world.over.touch()
        return False

    def _ended(self, process: Any, point: str) -> bool:
        process.join()
        if process.exitcode == -signal.SIGKILL:
            self.kills["failpoint"] += 1
            return False
        if process.exitcode:
            self.errors += 1
            say(f"a life ended with {process.exitcode} ({point}):\n{self._last_words()}")
            if self.errors > 5:
                raise Trouble("too many lives ended by errors of their own")
        return process.exitcode == 0

    def _point(self) -> Failpoint:
        name = self._dice.choices(list(FAILPOINTS), [4, 3, 3, 2, 1, 1])[0]
        return Failpoint(name, self._dice.randint(1, FAILPOINTS[name]), self._dice.choice(["before", "after"]))

    def _pause(self, process: Any) -> Any:
        """The worker is stopped for a while; another one that is started beside it is refused. -> the worker"""
        os.kill(process.pid, signal.SIGSTOP)
        second = self._start(None)
        if not wait([second.sentinel], PATIENCE):
            second.kill()
            raise Trouble(f"a second worker was not refused:\n{self._last_words()}")
        second.join()
        if second.exitcode != LOCKED:
            raise Trouble(f"a second worker ended with {second.exitcode}:\n{self._last_words()}")
        self.refused += 1
        os.kill(process.pid, signal.SIGCONT)
        return process

    def _take_over(self, process: Any) -> Any:
        """The worker is stopped, and another one takes over; the stopped one wakes up, and has to end by itself. -> the other one"""
        os.kill(process.pid, signal.SIGSTOP)
        second = self._start(None)
        self._begun(second)
        os.kill(process.pid, signal.SIGCONT)
        if not wait([process.sentinel], WOKEN_SECONDS) or process.exitcode not in (FAILED, LOCKED):
            self.went_on += 1
            say(f"the woken one went on, or ended with {process.exitcode}:\n{self._last_words()}")
            process.kill()
        process.join()
        self.taken_over += 1
        wait([second.sentinel], self._dice.uniform(0.05, self._longest))
        return second

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-1500:] if self._log.exists() else ""

    def unanswered(self) -> list[int]:
        """Orders without an answer, or with two: each one is settled, or a dead letter, and each is paid out. With topics one that is not
        mended fails twice, as its letter was sent back, and the others are settled, whether or not they failed once.
        """
        if self._world.broker:
            for each in self._came.values():
                each.look()
            failed = [number for number in self._numbers if Order(number).fails]
            lost = [number for number in failed if not Order(number).mendable]
            settled = Counter(self._numbers) - Counter(lost)
            wanted = {"settled": settled, "dead": Counter(failed + lost), "paid": Counter(self._numbers)}
            return sorted(
                each for name in wanted for each in _wrong(self._came[name].orders(), wanted[name]).elements()
            )
        wanted_each, world = Counter(self._numbers), self._world
        found = _orders_in(world.settled) + _orders_in(world.dead), _orders_in(world.paid)
        return sorted(each for some in found for each in _wrong(some, wanted_each).elements())

    def in_doubt(self) -> int:
        """Unsafe effects of which the journal has an intent, no result, and the witness nothing."""
        if self._world.variant == "plain":
            return 0
        open_effects: set[tuple[str, int]] = set()
        reader = open_reader(self.address)
        for _, entry in reader.read():
            if isinstance(entry, Intent) and entry.name in UNSAFE:
                open_effects.add((entry.job, entry.ordinal))
            elif isinstance(entry, EffectResult):
                open_effects.discard((entry.job, entry.ordinal))
        reader.close()
        return len(open_effects)


def _wrong(found: Counter[int], wanted: Counter[int]) -> Counter[int]:
    return (found - wanted) + (wanted - found)


def _orders_in(path: Path) -> Counter[int]:
    return Counter(_order_of(json.loads(line)) for line in (path.read_text().splitlines() if path.exists() else []))


def _order_of(row: dict[str, Any]) -> int:
    """Of a settled order, or of a dead letter, which has the record as text."""
    return int(row["order"] if "order" in row else json.loads(row["payload"])["order"])


@dataclass(frozen=True)
class Server:
    """Of journals."""

    kill: Callable[[], object]
    start: Callable[[], object]


@dataclass(frozen=True)
class Homes:
    """journal: for the number of a round the address of a new one; "" for the app's own in SQLite. broker: of topics, or "". server: of
    journals, if it may be killed: not where the topics are there too, which others than the app read.
    """

    journal: Callable[[int], str]
    broker: str
    server: Server | None


@contextmanager
def homes(kind: str, folder: Path, *, topics: bool) -> Iterator[Homes]:
    with ExitStack() as opened:
        url, broker = "", Broker(folder / "broker")
        if topics or kind == "kafka":
            broker.start()
            opened.callback(broker.stop)
            url = broker.url
        if kind == "postgres":
            postgres = Postgres("fsync=on")
            opened.callback(postgres.remove)
            server = Server(partial(postgres.stop, kill=True), postgres.start)
            yield Homes(lambda _: str(opened.enter_context(postgres.database())), url, server)
        elif kind == "kafka":
            alone = None if topics else Server(broker.kill, broker.start)
            yield Homes(lambda number: f"{url}/kills-{number}", url if topics else "", alone)
        else:
            yield Homes(lambda _: "", url, None)


def dance(options: argparse.Namespace, folder: Path, home: Homes) -> dict[str, Any]:
    dice = random.Random(f"kills {options.seed}")
    began = time.monotonic()
    kills: Counter[str] = Counter()
    rounds: list[Round] = []
    unanswered: list[int] = []
    in_doubt = 0
    with Witness(folder / "witness.db", seconds=1.0) as witness:
        while not rounds or kills.total() < options.kills:
            first = len(rounds) * options.jobs
            numbers = range(first, first + options.jobs)
            where = folder / f"round-{len(rounds)}"
            journal = home.journal(len(rounds))
            world = World(where, witness.url, journal, options.seed, options.variant, home.broker)
            address = {"sqlite": str(where / "state"), "postgres": f"{journal}?app=shop"}.get(options.journal, journal)
            each = Round(world, address, numbers, dice, witness, folder / f"round-{len(rounds)}.log", home.server)
            rounds.append(each)
            each.run(options.kills - kills.total())
            kills += each.kills
            unanswered += each.unanswered()
            in_doubt += each.in_doubt()
            say(
                f"round {len(rounds)}: {kills.total()} of {options.kills} kills, {each.lives} lives, {each.answers} answers"
            )
        wanted = expected(range(len(rounds) * options.jobs), mended=options.topics)
        effects = [
            (effect.name, order)
            for name in UNSAFE
            for effect in witness.effects(name)
            for order in (
                effect.arguments if name == "payout" else [effect.arguments]
            )  # one payout is of a whole batch
        ]
    happened = Counter(effects)
    # An order that was sent back may be abandoned in its first run and done in the next one, whose calls have other keys.
    abandoned = sum(len(each.abandoned - happened.keys()) for each in rounds)
    done = len(wanted & happened)
    figures = {
        "kills": kills.total(),
        "jobs": len(rounds) * options.jobs,
        "asked": wanted.total(),
        "done": done,
        "twice": happened.total() - len(happened),
        "lost": wanted.total() - done - in_doubt - abandoned,
        "in_doubt": in_doubt,
        "abandoned": abandoned,
        "seconds": round(time.monotonic() - began, 1),
        "not_asked": len(happened.keys() - wanted.keys()),
        "unanswered": len(unanswered),
        "by_manner": dict(kills),
        "lives": sum(each.lives for each in rounds),
        "refused_while_paused": sum(each.refused for each in rounds),
        "taken_over_while_paused": sum(each.taken_over for each in rounds),
        "went_on": sum(each.went_on for each in rounds),
        "outages": sum(each.outages for each in rounds),
        "redriven": sum(each.redriven for each in rounds),
        "errors": sum(each.errors for each in rounds),
        "answers": sum(each.answers for each in rounds),
        "doubts": sum(each.doubts for each in rounds),
        "requests": dict(sum((witness.requests(name) for name in UNSAFE), Counter())),
    }
    return figures


CONTEXT = multiprocessing.get_context("forkserver")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=200, help="of a round")
    parser.add_argument("--journal", choices=["sqlite", "postgres", "kafka"], default="sqlite")
    parser.add_argument("--variant", choices=VARIANTS, default="durable")
    parser.add_argument(
        "--topics", action="store_true", help="orders come from a topic, and dead letters are sent back"
    )
    parser.add_argument("--rows", type=int, help="a short run: one kill for so many thousands of rows, and 20 jobs")
    parser.add_argument("--keep", action="store_true", help="leave all files where they are")
    options = parser.parse_args()
    if options.rows:
        options.kills, options.jobs = max(1, options.rows // 10_000), 20
    leftovers()  # nothing of this outlives it
    CONTEXT.set_forkserver_preload(["killed.shop", *PRELOADED])
    folder = Path(tempfile.mkdtemp(prefix="sabot-kills-"))
    if not options.keep:
        leftovers().folder(folder)
    with homes(options.journal, folder, topics=options.topics) as home:
        figures = dance(options, folder, home)
    if options.keep:
        say(f"all files are in {folder}")
    print(json.dumps(figures))
    bad = ("twice", "lost", "in_doubt", "not_asked", "unanswered", "errors", "went_on")
    sys.exit(any(figures[name] for name in bad))


if __name__ == "__main__":
    main()
