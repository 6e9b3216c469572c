"""Stories of a durable agent, and what must hold of each of their records: see `test_durable_property`."""

import asyncio
import contextlib
import itertools
import json
import sqlite3
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from pipelines.test_durable_agents import crash, figures

from sabot import App
from sabot.agents import Budget, Effect
from sabot.connectors.memory import MemoryBroker
from sabot.errors import AgentFailed, EffectError, IllegalTransition, LetterRefused
from sabot.llm import BudgetExceeded, ExecutionEngine, RequestSpec, ScriptedProvider, tool
from sabot.testing import ManualClock
from tools.agent_tools import PATIENCE, checkpoint, crash_image, manifests, until

OPS = [
    "read",
    "put",
    "pay",
    "lost",
    "unsent",
    "refused",
    "sleep",
    "nap",
    "ask",
    "wait",
    "late",
    "two",
    "think",
    "child",
    "again",
    "raise",
    "broken",
]
ERRORS = {"DataError", "InputChanged", "MailboxFull"}  # of records that began no run
fresh = itertools.count()


class Story:
    """A world that outlives the lives of an app: what was published, what was really made, and what the app has told of it."""

    def __init__(self, setup: dict[str, Any], folder: Path) -> None:
        self.setup, self.folder, self.home = setup, folder, folder / "life0"
        self.url = f"memory://story{next(fresh)}"
        self.broker = MemoryBroker.get(self.url)
        self.clock = ManualClock(1_000_000.0)
        self.life, self.crashes, self.fuse, self.broken = 0, 0, 0, True
        self.app: Any = None
        self.failed = False
        self.burnt: tuple[int, int] | None = None
        self.ghosts: set[tuple[str, int]] = set()  # told by a life that was over
        self.records: list[tuple[Any, int]] = []  # of each offset the job and the content
        self.contents: list[dict[str, Any]] = []
        self.made: defaultdict[str, list[str]] = defaultdict(list)  # the key of each call that came through
        self.thought: list[str] = []  # what a model was really asked
        self.told: set[str] = set()  # what reads have said
        self.mended: set[str] = set()  # where a function went on that had failed before
        self.lost: set[str] = set()
        self.begun: list[int] = []  # contents, in the order of their first run
        self.cancelled: set[str] = set()
        self.sent_back: list[tuple[Any, int]] = []

    # -- the app ------------------------------------------------------------------------------------------------------------

    async def act(self, life: int, kind: str, what: str, how: str, effect: Effect) -> str:
        self.burn(life)
        if how == "unsent" and what not in self.lost:
            self.lost.add(what)
            raise ConnectionResetError("before it was sent")
        self.made[what].append(effect.key)
        await asyncio.sleep(0)
        self.burn(life)
        if how == "lost" and what not in self.lost:
            self.lost.add(what)
            raise ConnectionResetError("after it was sent")
        if how == "refused":
            raise ValueError("no")
        return f"{kind} {what}"

    def burn(self, life: int) -> None:
        """The process dies here, if the fuse has burnt down."""
        if life == self.life and self.fuse:
            self.fuse -= 1
            if not self.fuse:
                self.image()
        if life != self.life:
            raise ConnectionError("of a life that is over")

    def image(self) -> None:
        """What a crash at this moment leaves on the disk; what the app does from now on has not happened."""
        old, self.life, self.fuse = self.home, self.life + 1, 0
        self.crashes += 1
        self.home = self.folder / f"life{self.life}"
        crash_image(old / "checkpoints", self.home / "checkpoints")
        (self.home / "journal").mkdir()
        databases = (sqlite3.connect(home / "journal" / "journal.db") for home in (old, self.home))
        with contextlib.closing(next(databases)) as source, contextlib.closing(next(databases)) as target:
            source.backup(target)
        self.burnt = len(self.topic("answers")), len(self.topic("tickets.dlq"))

    def build(self) -> App:
        life, setup = self.life, self.setup
        most, exhausted = setup.get("budget") or (10**9, "deny")  # that nobody reaches
        budgets = [Budget("shop", max_calls_monthly=most, exhausted=exhausted, warn_at=1)]
        app = App("shop", self.url, state=str(self.home), checkpoint_interval=3600, clock=self.clock, budgets=budgets)

        async def think(spec: RequestSpec) -> str:
            self.burn(life)
            what = spec.messages[-1].text
            self.thought.append(what)
            await asyncio.sleep(0)
            self.burn(life)
            return f"thought {what}"

        engine = ExecutionEngine(ScriptedProvider(think), retries=0, patience=0)

        @tool(effect="read")
        async def read(what: str) -> str:
            self.burn(life)
            self.told.add(said := f"read {what} {len(self.told)}")
            return said

        @tool(effect="idempotent")
        async def put(what: str, before: Any, effect: Effect) -> str:
            return await self.act(life, "put", what, "", effect)

        @tool(effect="unsafe")
        async def pay(what: str, before: Any, how: str, effect: Effect) -> str:
            return await self.act(life, "pay", what, how, effect)

        async def work(ctx: Any, n: Any, message: dict[str, Any]) -> list[Any]:
            said = list(message.get("said", ()))
            before = len(said)
            for place, op in enumerate(message["do"], before):
                what = f"{n}.{place}"
                # What a child says may change with its next run, and an effect with other arguments is another effect.
                last = [each for each in said[-1:] if isinstance(each, str) and each.startswith(("read", "put", "pay"))]
                try:
                    match op:
                        case "read":
                            said.append(await ctx.call(read, what))
                        case "put":
                            said.append(await ctx.call(put, what, last))
                        case "pay" | "lost" | "unsent" | "refused":
                            said.append(await ctx.call(pay, what, last, op))
                        case "two":
                            halves = ctx.call(pay, f"{what}a", 0, "lost"), ctx.call(pay, f"{what}b", 0, "pay")
                            said.append(await asyncio.gather(ctx.call(read, what), *halves))
                        case "think":
                            said.append((await ctx.llm(engine).complete(what)).content)
                        case "sleep" | "nap":
                            said.append(await ctx.sleep(3600 if op == "sleep" else 0.5))
                        case "ask":
                            said.append((await ctx.ask("confirm", {"what": what})).approved)
                        case "wait":
                            said.append(await ctx.wait("go"))
                        case "late":
                            async with asyncio.timeout(60):
                                await ctx.wait("never")
                        case "child":
                            ops = [
                                each for each in message["do"][place - before + 1 :] if each not in ("child", "again")
                            ]
                            said.append(await ctx.child(helper, {"key": message.get("key"), "n": what, "do": ops}))
                        case "again":
                            rest = message["do"][place - before + 1 :]
                            ctx.continue_as({**message, "do": rest, "said": [*said, "again"]})
                        case "raise":
                            raise RuntimeError("always")
                        case "broken" if self.broken and what not in self.mended:
                            raise RuntimeError("not today")
                        case "broken":
                            self.mended.add(what)  # a job that went on here does so whenever it runs again
                            said.append("mended")
                except BudgetExceeded:
                    said.append("over")
                except EffectError as error:
                    said.append(error.type)
                except TimeoutError:
                    said.append("late")
            return said

        helping: dict[str, Any] = {"key": "key"} if setup["child_key"] else {}

        @app.agent("helps", durable=True, on_error="skip", concurrency=2, **helping)
        async def helper(ctx: Any) -> Any:
            return await work(ctx, ctx.message["n"], ctx.message)

        async def handle(ctx: Any) -> Any:
            n = ctx.message["n"]
            if life == self.life and n not in self.begun:
                self.begun.append(n)
            count = (await ctx.state().get("count") or 0) + 1
            await ctx.state().put("count", count)
            return {"n": n, "key": ctx.message.get("key"), "count": count, "said": await work(ctx, n, ctx.message)}

        options = {name: setup[name] for name in setup if name not in ("child_key", "then", "budget")}
        sink: Any = "answers"
        if then := setup.get("then"):
            keyed: dict[str, Any] = {"key": "key"} if then["key"] else {}

            @app.agent(sink="answers", durable=True, concurrency=2, **keyed)
            async def after(ctx: Any) -> Any:
                told = ctx.message
                return {**told, "after": await work(ctx, f"{told['n']}'", {"key": told["key"], "do": then["do"]})}

            sink = after
        app.agent("tickets", name="handle", sink=sink, durable=True, **options)(handle)
        return app

    async def start(self) -> None:
        self.app, self.failed = self.build(), False
        await self.app.start()
        await until(lambda: manifests(self.home / "checkpoints"))  # without one a crash would leave nothing

    async def over(self, crashes: bool) -> None:
        """The end of a life, and the next one."""
        if crashes and self.burnt is None:
            self.image()
        if self.burnt is not None:
            await crash(self.app)
            for topic, before in zip(("answers", "tickets.dlq"), self.burnt, strict=True):
                self.ghosts |= {(topic, offset) for offset in range(before, len(self.topic(topic)))}
            self.burnt = None
        else:
            with contextlib.suppress(AgentFailed):
                await self.app.stop()
            self.life += 1
        await self.start()

    # -- what is seen from outside --------------------------------------------------------------------------------------------

    def topic(self, name: str) -> list[Any]:
        return list(self.broker.records(name))

    def real(self, name: str) -> list[Any]:
        return [each for each in self.topic(name) if (name, each.offset) not in self.ghosts]

    def seen(self) -> tuple[Any, ...]:
        told = self.app.statistics()
        self.failed = told["agents"]["shop.handle"]["state"] == "failed"
        works = [each for name, each in told["operators"].items() if name in ("shop.handle", "shop.after")]
        fields = "rows", "parked", "running", "mailbox_rows", "blocked"
        counts = {name: sum(work[name] for work in works) for name in fields}
        counts |= {f"all {name}": told["jobs"][name] for name in ("running", "parked", "waiting")}
        lag = [each for source in told["sources"].values() for each in source["lag"].values()]
        return any(counts.values()) or any(lag), counts, lag, told["jobs"]["journal"], len(self.told), len(self.begun)

    async def settle(self, calm: int = 4) -> None:
        """Until nothing has moved for some milliseconds: what is drawn, and never what is right, depends on it."""
        last, same = None, 0
        for _ in range(500):
            same, last = (same + 1 if (now := self.seen()) == last else 0), now
            if same == calm or self.burnt or self.failed:
                break
            await asyncio.sleep(0.001)
        if self.burnt:
            await self.over(True)

    # -- what happens -----------------------------------------------------------------------------------------------------------

    def send(self, content: int, payload: Any = None, headers: Any = (), job: Any = None) -> None:
        payload = json.dumps(self.contents[content]).encode() if payload is None else payload
        offset = len(self.records)
        of_id = self.contents[content].get("id") if "job_id" in self.setup else None
        self.records.append((offset if job is None and of_id is None else of_id if job is None else job, content))
        self.broker.publish("tickets", [payload], headers=list(headers))

    def record(self, drawn: dict[str, Any]) -> int:
        """The number of a content that no record had before. An agent that fails at a record never gets beyond one that always fails."""
        if self.setup["on_error"] == "fail":
            drawn = {**drawn, "do": [op for op in drawn["do"] if op != "raise"], "id": f"own{len(self.contents)}"}
        made = {**drawn, "n": len(self.contents)}
        self.contents.append({name: value for name, value in made.items() if value is not None})
        return len(self.contents) - 1

    def job_of(self, headers: dict[str, bytes]) -> Any:
        place = headers["sabot.job"].decode().rpartition("/")[2]
        return place.removeprefix("id=") if "=" in place else int(place)

    def send_back(self, letter: Any, change: str) -> None:
        headers = dict(letter.headers)
        own = letter.headers[: [name for name, _ in letter.headers].index("sabot.topic")]
        _, content = self.records[int(headers["sabot.offset"])]
        job = self.job_of(headers) if "sabot.job" in headers else None
        payload = letter.payload
        if change != "unchanged":
            content = self.record(json.loads(payload) | ({"key": "c"} if change == "key" else {}))
            payload = None
        elif headers["sabot.error"].decode() not in ERRORS:
            self.sent_back.append((job, int(headers["sabot.run"])))
        self.send(content, payload, own, job)

    async def answer(self) -> None:
        """What people say to open questions; of a call in doubt, what is true."""
        for action in await self.app.actions.find():
            reply: dict[str, Any] = {"approved": True}
            if action.type == "in_doubt":
                what = action.payload["arguments"][0][0]
                reply = {"outcome": "done", "result": f"pay {what}"} if what in self.made else {"outcome": "not_done"}
            with contextlib.suppress(LetterRefused):
                await self.app.actions.resolve(action.resume_token, reply)

    async def signal(self) -> None:
        for job in await self.app.jobs.find(statuses=["running", "waiting_action"]):
            for effect in job.open:
                if effect.kind == "wait" and effect.name == "go":
                    with contextlib.suppress(LetterRefused, IllegalTransition):
                        await self.app.jobs.signal(job.job_id, "go", "went", token=f"{job.job_id} {effect.ordinal}")

    async def cancel(self, number: int) -> None:
        found = await self.app.jobs.find(statuses=["running", "waiting_action"])
        if open_jobs := [job for job in found if not job.job_id.startswith("shop.after")]:
            job = open_jobs[number % len(open_jobs)].job_id
            with contextlib.suppress(LetterRefused, IllegalTransition):
                self.cancelled.add(self.job_of({"sabot.job": job.partition("~")[0].encode()}))
                await self.app.jobs.cancel(job, "enough")

    async def step(self, name: str, drawn: Any) -> None:
        match name:
            case "publish":
                for each in drawn:
                    self.send(self.record(each))
            case "twin" if self.contents:  # the same once more, or another one under the same id
                like, same = drawn
                like %= len(self.contents)
                self.send(like if same and "job_id" in self.setup else self.record(self.contents[like]))
            case "back":
                letters = self.real("tickets.dlq")
                for number, change in drawn if letters else ():
                    change = "unchanged" if self.setup["on_error"] == "fail" else change
                    self.send_back(letters[-1 - number % len(letters)], change)
            case "cancel":
                await self.cancel(drawn)
            case "answer":
                await self.answer()
            case "signal":
                await self.signal()
            case "advance":
                self.clock.advance(drawn)
            case "mend":
                self.broken = drawn
            case "checkpoint" if not self.failed and not self.burnt:
                await checkpoint(self.app)
            case "restart" if not self.burnt:
                await self.over(drawn)
            case "fuse":
                self.fuse = drawn

    async def finish(self) -> None:
        """All is mended and answered, until nothing is left to do."""
        self.broken, self.fuse = False, 0
        last = self.record({"key": "z", "id": f"z{len(self.contents)}", "do": []})
        self.send(last)
        limit = asyncio.get_running_loop().time() + PATIENCE
        while self.seen()[0] or not any(each.value["n"] == last for each in self.real("answers")):
            assert asyncio.get_running_loop().time() < limit, f"not idle: {self.seen()}"
            await self.answer()
            await self.signal()
            self.clock.advance(3600)
            await self.settle()
            if self.failed:
                await self.over(False)

    async def tell(self, steps: list[Any]) -> None:
        try:
            await self.story(steps)
        except BaseException:
            with contextlib.suppress(Exception):
                await self.app.stop()
            raise
        await self.app.stop()

    async def story(self, steps: list[Any]) -> None:
        await self.start()
        for calm, (name, drawn) in steps:
            if calm or self.burnt or self.failed:
                await self.settle()
            if self.failed:
                await self.over(False)
            await self.step(name, drawn)
        await self.settle()
        await self.finish()
        before = self.runs()
        again = [letter for letter in self.last_letters() if self.setup["on_error"] != "fail"]
        for letter in again:
            self.send_back(letter, "unchanged")
        await self.finish()
        jobs = {self.job_of(dict(letter.headers)) for letter in again}
        for job in jobs - self.cancelled:  # a later run of a cancelled job has no letter, and the earlier letter is old
            what = f"{job}, which was sent back, to run"  # its letter may be told after its row has ended
            await until(lambda job=job: self.runs()[job] == before[job] + 1 or job in self.results(), what)
        self.check()
        await checkpoint(self.app)  # what is read is what is durable
        for told in await self.app.jobs.find():
            assert told.ended, f"{told.job_id} is {told.status}"
            if told.job_id.startswith("shop.after/"):
                assert "~" in told.job_id or told.status == "succeeded", f"{told.job_id} is {told.status}"
                continue
            job = self.job_of({"sabot.job": told.job_id.partition("~")[0].encode()})
            assert "~" in told.job_id or (told.status == "succeeded") == (job in self.results()), (
                f"{told.job_id} is {told.status}"
            )
        await self.check_use()
        answers, letters = self.real("answers"), self.real("tickets.dlq")
        await self.over(False)
        await self.finish()
        assert self.real("answers")[:-1] == answers, "a clean restart has told a result again"
        assert self.real("tickets.dlq") == letters, "a clean restart has told a dead letter again"
        assert figures(self.app)["duplicates"] == 0

    # -- what must hold -----------------------------------------------------------------------------------------------------------

    def run_letters(self) -> list[Any]:
        return [each for each in self.real("tickets.dlq") if dict(each.headers)["sabot.error"].decode() not in ERRORS]

    def last_letters(self) -> list[Any]:
        """Of each job that has failed, the letter of its last run."""
        results = self.results()
        by_run = sorted(self.run_letters(), key=lambda each: int(dict(each.headers)["sabot.run"]))
        last = {self.job_of(dict(each.headers)): each for each in by_run}
        return [each for job, each in last.items() if job not in results]

    def runs(self) -> Counter[Any]:
        found: Counter[Any] = Counter()
        for each in self.run_letters():
            headers = dict(each.headers)
            found[self.job_of(headers)] = max(found[self.job_of(headers)], int(headers["sabot.run"]))
        return found

    def results(self) -> dict[Any, list[Any]]:
        jobs_of = {content: job for job, content in self.records}
        found: dict[Any, list[Any]] = {}
        for each in self.real("answers"):
            found.setdefault(jobs_of[each.value["n"]], []).append(each.value)
        return found

    def check(self) -> None:
        results, runs = self.results(), self.runs()
        errors: defaultdict[int, Counter[Any]] = defaultdict(Counter)
        for each in self.real("tickets.dlq"):
            headers = dict(each.headers)
            errors[int(headers["sabot.offset"])][headers["sabot.error"].decode(), headers.get("sabot.run")] += 1
        ran: defaultdict[Any, set[int]] = defaultdict(set)
        refused: defaultdict[Any, set[str]] = defaultdict(set)
        for offset, (job, content) in enumerate(self.records):
            told = {error for error, _ in errors[offset]}
            assert all(count <= 1 + self.crashes for count in errors[offset].values()), f"{errors[offset]} of {offset}"
            if ("key" in self.setup and "key" not in self.contents[content]) or (
                "job_id" in self.setup and job == offset
            ):
                assert told == {"DataError"}, f"record {offset} has no key: {told}"
            elif told - ERRORS or any(each["n"] == content for each in results.get(job, ())):
                ran[job].add(content)
        for offset, (job, content) in enumerate(self.records):
            told = {error for error, _ in errors[offset]}
            if self.crashes and "MailboxFull" in told and len(told) > 1:
                told.remove("MailboxFull")  # there was room when the record was read again
            if told in ({"DataError"}, {"MailboxFull"}):
                continue
            if content in ran.get(job, ()):
                assert not told & ERRORS, f"record {offset} of job {job} was refused: {told}"
            elif job in ran or job not in self.cancelled:
                assert told <= {"InputChanged"}, f"record {offset} of job {job}: {told}"
                refused[job, content] |= told
        assert all(refused.values()), f"neither refused nor run: {refused}"
        for job, contents in ran.items():
            (content,) = contents
            do = self.contents[content]["do"]
            answers = results.get(job, [])
            assert len(answers) <= 1 + self.crashes
            assert all(each == answers[0] for each in answers), f"two results of {job}: {answers}"
            assert not (answers and "raise" in do)
            assert answers or "raise" in do or job in self.cancelled, f"no result of {job}"
            for each in answers[:1]:
                self.check_said(each["n"], do, each["said"])
                if then := self.setup.get("then"):
                    self.check_said(f"{each['n']}'", then["do"], each["after"])
        for job, run in self.sent_back:
            assert runs[job] > run or job in results or job in self.cancelled, (
                f"job {job} was sent back, and nothing followed"
            )
        for what, keys in self.made.items():
            assert len(set(keys)) == 1, f"{what} was made with the keys {keys}"
        if "key" in self.setup:
            for key in {each.get("key") for each in self.contents}:
                counts = sorted({each["count"] for told in results.values() for each in told if each["key"] == key})
                assert counts == list(range(1, len(counts) + 1)), f"key {key}: {counts}"
                own = {content for offset, (job, content) in enumerate(self.records) if job == offset}
                begun = [n for n in self.begun if self.contents[n].get("key") == key and n in own]
                assert begun == sorted(begun), f"key {key} began in the order {begun}"

    @property
    def denies(self) -> bool:
        return (self.setup.get("budget") or (0, ""))[1] == "deny"

    async def check_use(self) -> None:
        used = (await self.app.accounts.used("shop"))["monthly"].calls
        assert used == len(self.thought) or (self.life and used > len(self.thought)), (
            f"{used} of {len(self.thought)} requests count"
        )
        assert not self.denies or used <= self.setup["budget"][0], f"{used} requests"

    def check_said(self, n: Any, do: list[str], said: list[Any]) -> None:
        assert len(said) == len(do)
        for place, (op, now) in enumerate(zip(do, said, strict=True)):
            what = f"{n}.{place}"
            read = now[0] if op == "two" else now
            match op:
                case "read" | "two":
                    assert read in self.told, f"{op} {what}: {now}"
                    assert read.startswith(f"read {what} "), f"{op} {what}: {now}"
                    assert op == "read" or now[1:] == [f"pay {what}a", f"pay {what}b"], f"{op} {what}: {now}"
                case "put" | "pay" | "lost" | "unsent":
                    assert now == f"{'put' if op == 'put' else 'pay'} {what}", f"{op} {what}: {now}"
                    assert what in self.made, f"{what} was not made"
                case "think":
                    assert now == f"thought {what}" or (now == "over" and (self.denies or self.life)), (
                        f"{op} {what}: {now}"
                    )
                    assert now == "over" or what in self.thought, f"{what} was not asked"
                case "refused":  # if the call is in doubt, nobody knows what the shop had said
                    assert now in ("ValueError", f"pay {what}"), f"{op} {what}: {now}"
                case _ if op != "child":
                    known = {"wait": "went", "ask": True, "again": "again", "broken": "mended", "late": "late"}
                    assert now == known.get(op), f"{op} {what}: {now}"
