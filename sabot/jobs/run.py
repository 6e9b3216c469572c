"""The run of a job's function over its history, with its open effects. It does no I/O; the host of the job (`host`)
does that.

   deliver ──▶ turn ──▶ asks          one delivery (a result, an answer, a signal, a timer, a cancel), then until the function is quiet
   replay  =  the recorded deliveries in their order, then the host goes on with new ones

The function runs on a loop of its own (`loop.JobLoop`). So if it gets the same deliveries in the same order, it asks
for the same effects. If it asks for another effect than the journal has, the job is `blocked`.
"""

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

from sabot.base.present_job import PRESENT_JOB, PresentJob
from sabot.base.stored_names import stored_name
from sabot.errors import NonDeterminism, PolicyDenied, UserError, short_repr
from sabot.jobs.core import AWAITS_GUARD, DONE, OPEN, EffectState, drawing_from, drop, job_seed, question_token
from sabot.jobs.direct_io import watch_functions
from sabot.jobs.guard import (
    APART,
    Behalf,
    GuardVerdict,
    Price,
    decode_verdict,
    sent_arguments,
)
from sabot.jobs.history import PARKS_MS, TIMEOUT, WAITS_LONG, ContinueAs, Delivery, History
from sabot.jobs.loop import JobFuture, JobLoop, JobTimer
from sabot.jobs.masking import mask
from sabot.jobs.tree import first_of
from sabot.jobs.values import copied, pack, unpack, unpack_error
from sabot.jobs.verdicts import given_result, wanted_result
from sabot.journal.effects import RULES, EffectClass, EffectId, digest
from sabot.journal.entries import Answer, Cancel, EffectResult, Intent, Signal
from sabot.llm.arguments import REST, call_arguments, edited_arguments, recorded_arguments, whole
from sabot.llm.spec import RequestSpec
from sabot.llm.tools import Tool

ENDS = "ends of answers"
"""The name of the patch at which a job looks at how an answer of a model has ended (`JobRun.looks_at_ends`)."""
MOST_EFFECTS = 10_000
"""The most effects that one history may have. The limit keeps replays of a job short."""

PYTHON_MARK = " on Python "
"""The text that separates the version of a job's code from the version of Python that follows it, such as 3.12."""


@dataclass(slots=True, eq=False)
class Ask(EffectState):
    """An effect that the function has requested, with the Python objects that belong to it.

    - `future`: the future, on the job's loop, that the function awaits; None for a patch or a timer.
    - `tool`, `args`, `kwargs`: for a call, the tool and its arguments.
    - `price`: for a call of a model, a function that returns the price of its tokens.
    - `timer`: for a sleep or a timeout, the timer on the job's loop.
    - `apart`: True if the effect is not counted in the job's own budget.
    - `earlier`: the ordinals of the earlier steps, if this is a step of a call that is made in several.
    """

    future: "asyncio.Future[Any] | None" = None
    tool: Tool | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    price: Price | None = None
    timer: JobTimer | None = None
    apart: bool = False
    earlier: tuple[int, ...] = ()

    def wanted_result(self) -> dict[str, Any]:
        return {} if self.tool is None else wanted_result(self.tool)

    def given_result(self, result: Any) -> Any:
        return result if self.tool is None else given_result(self.tool, result)

    def change(self, verdict: GuardVerdict, *, judged: bool = False) -> None:
        """Stores the guard's verdict, and makes its changes to the arguments: another model, a limit on tokens, and
        hidden texts. `digest` remains the digest of the original arguments. Raises UserError if the changes cannot be
        made.

        `judged`: True if a rule has looked at the arguments, or a person will. Then `body` gets the defaults of the
        parameters that the function has left out, so that the call is made with them after another start too.
        """
        self.verdict = verdict
        if self.args and isinstance(self.args[0], RequestSpec):
            self.args = (verdict.spec(self.args[0]), *self.args[1:])
        if not (judged or verdict.hide):
            return
        if self.guarded == "tool" and self.tool is not None:
            self._record_defaults()
            self.args, self.kwargs = sent_arguments(self.tool, self.args, self.kwargs, verdict.hide, judged=judged)
        elif verdict.hide:
            self.args, self.kwargs = mask((self.args, self.kwargs), verdict.hide)
        if verdict.hide:
            asked = unpack(self.body)
            shown = mask(asked, verdict.hide)
            if shown is not asked:
                self.body = pack(shown, f"arguments of {self.name}")

    def _record_defaults(self) -> None:
        """Adds the defaults of the parameters that the function has left out to `body`. Leaves out defaults that cannot
        be recorded, such as a client. All arguments have the names of their parameters then.
        """
        assert self.tool is not None
        found = call_arguments(self.tool, self.args, self.kwargs)
        given = call_arguments(self.tool, self.args, self.kwargs, filled=False)
        for name in [name for name in found if name not in given]:
            try:
                pack(found[name], name)
            except UserError:
                del found[name]
        shown = whole(found)
        if len(found) > len(given) or shown is not found:
            rest = shown.pop(REST, ())
            self.body = pack([rest, shown], f"arguments of {self.name}", sort=True)

    def restore(self, intent: Intent) -> None:
        """Gives the parameters that the function has left out the values with which the call was judged, as its INTENT
        entry has them. Raises UserError if the tool does not take them any more.
        """
        if self.tool is None or self.guarded != "tool" or intent.digest != self.digest or intent.body == self.body:
            return
        _, recorded = unpack(intent.body)  # type: ignore[arg-type]
        self.args, self.kwargs = recorded_arguments(self.tool, self.args, self.kwargs, recorded)
        self.body = intent.body  # type: ignore[assignment]

    def edit(self, changes: Any) -> None:
        """Changes the arguments of the call as the person wants it who approves it. `changes`: the arguments of the
        answer. Raises UserError if the tool does not take them.
        """
        if self.tool is None or not isinstance(changes, Mapping):
            raise UserError(f"{short_repr(changes)} are no arguments", hint='{"approved": true, "arguments": {…}}')
        self.args, self.kwargs = edited_arguments(self.tool, self.args, self.kwargs, changes)

    def hide(self, patterns: Sequence[str]) -> None:
        """Hides texts in the arguments that a person has changed."""
        assert self.tool is not None
        self.args, self.kwargs = sent_arguments(self.tool, self.args, self.kwargs, patterns, judged=True)


class Pieces(Protocol):
    """A receiver of the pieces of models' answers while the answers are being written."""

    async def wants_fragments(self, job_id: str) -> bool:
        """Returns True if anybody wants to receive the pieces of models' answers in this job."""

    def fragment(self, effect: EffectId, number: int, text: str, reasoning: str) -> None:
        """Receives a piece of a model's answer. `effect`: the call of the model. `number`: the number of the piece in
        that attempt, from 0. `text`, `reasoning`: the new text of the answer and of the model's reasoning.
        """


class JobRun:
    """The run of one job's function in memory. It belongs to the event loop of the job's host (`JobHost`).

    - `open`: the effects that the function has requested and that have no result, by ordinal.
    - `new`: the requested effects that the host has not handled yet. The host removes each when it handles it.
    - `gone`: effects that were withdrawn because the function no longer awaits them, such as questions, timers and
      children. The host removes each when it handles it.
    - `cancels`: the CANCEL entries that were delivered.
    - `late`: the message of a TimeoutError if the attempt has taken longer than its time limit; else "".
    - `labels`: the labels of the input and of all results that the function has received (see `Behalf.labels`).
    - `blocked`: the error if the function has requested another effect than its recorded history has; else None.
    """

    def __init__(
        self,
        job_id: str,
        history: History,
        *,
        key: bytes,
        code: str = "",
        pieces: Pieces | None = None,
        seed: bytes = b"",
    ) -> None:
        """Makes a run.

        - `history`: the history that is replayed first.
        - `key`: the key of the journal, from which digests and tokens are made.
        - `code`: the version of the function that will run.
        - `pieces`: receives the pieces of models' answers; None for no receiver.
        - `seed`: the seed of the random numbers; b"" to make it from `key` as `job_seed` does. It has to be given if
          the job was recorded with another key.
        """
        self.job_id = job_id
        self.history = history
        self.code = code
        self.pieces = pieces
        self.blocked: NonDeterminism | None = None
        self.labels = set(history.begin.labels)
        self.open: dict[int, Ask] = {}
        self.new: deque[Ask] = deque()
        self.gone: deque[Ask] = deque()
        self.cancels: list[Cancel] = []
        self.late = ""
        watch_functions()
        self.loop = JobLoop(  # type: ignore[abstract]  # it takes the methods that it refuses from a table
            job_id, on_timer=self._timer_set, on_timer_gone=self._timer_gone
        )
        self.loop.now = max(history.begin.at_ms, history.tried_ms) / 1000  # from which timers of this attempt count
        self._told_ms = self._last_ms = history.begin.at_ms
        self.key = key
        self._asked = history.base  # the ordinal of the last ask
        self._matches = history.attempt > 1  # asks are matched by what they ask, not by their ordinal
        self._unmatched = dict(history.intents)
        # Of attempts before this one: each is delivered when its effect is asked.
        self._kept = history.deliveries[: history.kept]
        self._undelivered = deque(history.deliveries[history.kept :])
        self._by_timer: dict[JobTimer, Ask] = {}
        self._signals: dict[str, deque[Signal]] = {}
        self._patches: dict[str, bool] = {}
        self._seed = seed or job_seed(history.seed, job_id, history.runs, key)
        self._drawn: dict[bytes, random.Random] = {}  # the generators of random numbers, by their seeds

    # -- its turn -----------------------------------------------------------------------------------------------------

    def start(self, function: Callable[["JobRun"], Coroutine[Any, Any, Any]]) -> None:
        """Starts the function, and delivers to it everything that its history has recorded. Effects that have no
        result then are in `open` and `new`, and the host continues with them. If the function does not match its
        history, sets `blocked`. `function`: a function that returns the coroutine of the job.
        """
        before = PRESENT_JOB.set(self.present)
        try:
            self.loop.start(function(self))
        finally:
            PRESENT_JOB.reset(before)
        self.loop.repeats = self.history.said >= 0
        self.loop.run_until_quiet()
        self.deliver(self._next_recorded())
        self.loop.repeats = False
        if self.blocked is None and self._unmatched and not self._matches:
            intent = next(iter(self._unmatched.values()))
            self._block(intent, "the function does not ask for it")
        if self.history.end is not None and not (self.finished and all(ask.recorded for ask in self.new)):
            self._block(None, "the function goes on")

    def _next_recorded(self) -> Delivery | None:
        """Returns the next recorded delivery. Returns None if no delivery can be made now, or if the job is blocked.

        Deliveries that remain from earlier attempts of the job come first, each as soon as the function has requested
        its effect. Deliveries of this attempt follow, in the order in which they were recorded.
        """
        if self.blocked is not None:
            return None
        for at, entry in enumerate(self._kept):
            if isinstance(entry, Signal | Cancel) or entry.ordinal in self.open:
                return self._kept.pop(at)
        if not self._undelivered:
            return None
        entry = self._undelivered.popleft()
        self.loop.repeats = (
            len(self.history.deliveries) - self.history.kept - len(self._undelivered) <= self.history.said
        )
        if not self._matches and isinstance(entry, EffectResult | Answer) and entry.ordinal > self._asked:
            self._block(self.history.intents.get(entry.ordinal), "the function has not asked for it yet")
            return None
        return entry

    def deliver(self, entry: Delivery | None) -> None:
        """Delivers an entry to the function, and runs the function until it waits again. Then delivers the recorded
        entries that can follow, in the same way. Does nothing if `entry` is None.
        """
        loop = self.loop
        while entry is not None:
            passed_ms, self._last_ms = max(0, entry.at_ms - self._last_ms), entry.at_ms
            back = entry.at_ms < self._told_ms  # the clock was set back between two lives: time goes on from there
            loop.now = loop.now + passed_ms / 1000 if back else max(loop.now, entry.at_ms / 1000)
            self._told_ms = max(self._told_ms, entry.at_ms)
            loop.run_until_quiet(partial(self._tell, entry))
            entry = self._next_recorded() if self._kept or self._undelivered else None

    def _tell(self, entry: Delivery) -> None:
        match entry:
            case EffectResult(ordinal=0):
                self.late = unpack_error(entry.body).message  # type: ignore[arg-type]
                self.loop.main.cancel(self.late)
                return
            case Signal():
                self._signal(entry)
                return
            case Cancel():
                self.cancels.append(entry)
                self.loop.main.cancel(entry.reason)
                return
        ask = self.open.pop(entry.ordinal, None)
        if ask is None:
            return
        ask.enter(DONE)
        if isinstance(entry, EffectResult):
            self.labels.update(entry.labels)
            if ask.tool is not None and ask.tool.labels and entry.outcome != stored_name(PolicyDenied):
                self.labels.update(ask.tool.labels)  # a denied call has told the function nothing
        if ask.timer is not None:
            self._by_timer.pop(ask.timer, None)
            self.loop.fire(ask.timer)
        future = ask.future
        if future is None or future.done():
            return
        if isinstance(entry, Answer):
            future.set_result(entry)
        elif entry.outcome == "ok":
            future.set_result(unpack(entry.body) if entry.body else None)  # type: ignore[arg-type]
        else:
            error = unpack_error(entry.body)  # type: ignore[arg-type]
            error.effect = f"{ask.name} (effect {ask.ordinal} of job {self.job_id})"
            future.set_exception(error)

    def _signal(self, signal: Signal) -> None:
        for ask in self.open.values():
            if ask.kind == "wait" and ask.name == signal.name and not ask.dropped:
                del self.open[ask.ordinal]
                assert ask.future is not None
                ask.future.set_result(signal)
                return
        self._signals.setdefault(signal.name, deque()).append(signal)

    # -- what the function asks ---------------------------------------------------------------------------------------

    def call(
        self,
        tool: Tool,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        body: bytes,
        *,
        model: str = "",
        price: Price | None = None,
        steps: list[int] | None = None,
    ) -> "asyncio.Future[Any]":
        """Requests a call of a tool. Returns the future of the result.

        - `args`, `kwargs`: the arguments. The call gets copies, so the function may change the originals afterwards.
        - `body`: the packed arguments.
        - `steps`: for a step of a call that is made in several, the ordinals of the earlier steps. That of this step is
          added.
        - `model`: the name of the model if the call asks one; the first argument is then the RequestSpec.
        - `price`: for a call of a model, a function that returns the price of its tokens.
        """
        args, kwargs = copied((args, kwargs), f"arguments of {tool.name}")
        ask = self._ask("call", tool.name, body, effect_class=tool.effect, body=body)
        ask.tool, ask.args, ask.kwargs, ask.model, ask.price = tool, args, kwargs, model, price
        ask.retries, ask.in_doubt = tool.retry.retries, tool.in_doubt
        if steps is not None:
            ask.earlier = tuple(steps)
            steps.append(ask.ordinal)
        assert ask.future is not None
        return ask.future

    def is_recorded(self, name: str, body: bytes) -> bool:
        """Returns True if the history already has the call that the function is about to request. `name`: the name of
        the tool. `body`: the packed arguments.
        """
        asked, recorded = digest(self.key, "call", name, body), self._unmatched
        return any(each.digest == asked for each in recorded.values()) if self._matches else self._asked + 1 in recorded

    def asks_anew(self, name: str, body: bytes) -> bool:
        """Returns True if an earlier attempt of the job got an answer to this request of a model and could not use it,
        so that the model is asked again. `name`, `body`: the name of the effect, and the packed request.
        """
        return bool(self.history.unread) and digest(self.key, "call", name, body) in self.history.unread

    def has_passed(self, name: str) -> bool:
        """Returns True if the history shows that the job has passed this place without a call that the present version
        makes here. It was recorded by an earlier version of Sabot, which recorded no such calls. `name`: the name of
        the tool.
        """
        if self._matches:  # a new call takes no place of another one
            return False
        recorded = self._unmatched.get(self._asked + 1)
        if recorded is None:
            return self.history.end is not None
        return (recorded.kind, recorded.name, recorded.effect_class) != ("call", name, EffectClass.LOCAL)

    def looks_at_ends(self) -> bool:
        """Returns True if the job has to look at the end of the answer of a model that it has got. Returns False if the
        journal shows that an earlier version of Sabot, which did not, has passed this place. Unlike `patched`, it
        depends on nothing but what the function has asked next: results of other calls may be recorded already.
        """
        if self._matches:  # a call that is not made again is left in the journal
            return True
        recorded = self._unmatched.get(self._asked + 1)
        chosen = self.history.end is None if recorded is None else (recorded.kind, recorded.name) == ("patch", ENDS)
        if chosen:
            self._ask("patch", ENDS, b"", awaited=False)
        return chosen

    def question(self, kind: str, body: bytes, timeout_s: float | None) -> "asyncio.Future[Answer]":
        """Asks a person a question. Returns the future of the answer. `kind`: the type of the question. `body`: its
        payload as JSON. `timeout_s`: the number of seconds that the person has for the answer; None for no limit.
        """
        due_ms = 0 if timeout_s is None else round((self.loop.now + timeout_s) * 1000)
        ask = self._ask("ask", kind, body, body=body, due_ms=due_ms)
        assert ask.future is not None
        return ask.future

    def wait(self, name: str) -> "asyncio.Future[Signal]":
        """Requests the next signal of this name. Returns the future of the signal. If such a signal has arrived
        before and was not used yet, the future is done at once.
        """
        ask = self._ask("wait", name, b"")
        assert ask.future is not None
        if (waiting := self._signals.get(name)) and ask.ordinal in self.open:
            del self.open[ask.ordinal]
            ask.future.set_result(waiting.popleft())
        return ask.future

    def child(self, agent_id: str, body: bytes, message: Any) -> "asyncio.Future[Any]":
        """Requests a child, which is a job of the agent `agent_id`. Returns the future of the child's output.
        `message`: the input of the child. `body`: the packed input, which a replay compares with the recorded one.
        """
        ask = self._ask("child", agent_id, body, body=body)
        ask.args = (message,)
        assert ask.future is not None
        return ask.future

    def patched(self, name: str) -> bool:
        """Returns True if the job has to run the new code at this place (`ctx.patched`). Returns False if the journal
        shows that the job has already passed this place with the old code.
        """
        if name in self._patches:
            return self._patches[name]
        next_one = self.history.intents.get(self._asked + 1)
        recorded = self._unmatched.values() if self._matches else [next_one] if next_one is not None else []
        if any((intent.kind, intent.name) == ("patch", name) for intent in recorded):
            chosen = True
        else:
            recorded_more = self._undelivered or self._kept or self._unmatched
            chosen = not recorded_more and self.history.end is None
        if chosen:
            self._ask("patch", name, b"", awaited=False)
        self._patches[name] = chosen
        return chosen

    def now_ms(self) -> int:
        """Returns the time of the last delivery, in milliseconds since 1970; before the first delivery, the time at
        which the history began. A replay returns the same time at the same place of the function, so the arguments of
        effects may depend on it.
        """
        return self._told_ms

    def uuid(self, name: str = "") -> uuid.UUID:
        """Returns the next random id of this name, the same in every replay."""
        return uuid.UUID(int=self.random(name, "uuid").getrandbits(128), version=4)

    def random(self, name: str = "", kind: str = "random") -> random.Random:
        """Returns the generator of random numbers of this name. It gives the same numbers in every replay. `kind`:
        "random" for the numbers of the function, "uuid" for its ids.
        """
        seed = drawing_from(self._seed, kind, name)
        if seed not in self._drawn:
            self._drawn[seed] = random.Random(seed)
        return self._drawn[seed]

    def _timer_set(self, timer: JobTimer) -> None:
        due_ms = round(timer.when() * 1000)
        length = b"%d" % (due_ms - round(self.loop.now * 1000))
        ask = self._ask("sleep", "" if timer.sleeps else TIMEOUT, length, due_ms=due_ms, awaited=False)
        ask.timer = timer
        self._by_timer[timer] = ask

    def _timer_gone(self, timer: JobTimer) -> None:
        ask = self._by_timer.pop(timer, None)
        if ask is not None and self.open.pop(ask.ordinal, None) is not None:
            ask.dropped = True
            self.gone.append(ask)

    def _ask(
        self,
        kind: str,
        name: str,
        arguments: bytes,
        *,
        effect_class: str = "",
        body: bytes = b"",
        due_ms: int = 0,
        awaited: bool = True,
    ) -> Ask:
        if (
            self.loop.dead
            or asyncio._get_running_loop() is not self.loop
            or self._asked - self.history.base >= MOST_EFFECTS
        ):
            raise self._refusal(effect_words(kind, name))
        asked = digest(self.key, kind, name, arguments)
        intent, ordinal = self._recorded(kind, name, asked, effect_class)
        ask = Ask(ordinal, kind, name, effect_class, asked, body, due_ms=due_ms, apart=APART.get())
        if kind == "ask":
            ask.token = question_token(self.key, self.job_id, ordinal)
        if intent is not None:
            ask.phase, ask.due_ms, ask.token = OPEN, intent.due_ms, intent.token
            ask.verdict = decode_verdict(intent.note)
            ask.attempt = self.history.attempt_of(intent)
            if ordinal in self.history.approvals and self.history.approval(ordinal) is None:
                ask.token = self.history.approvals[ordinal].token
        if awaited:
            ask.future = JobFuture(self.loop, partial(self._abandoned, ordinal))
        if kind != "patch":
            self.open[ordinal] = ask
        self.new.append(ask)
        return ask

    def _recorded(self, kind: str, name: str, asked: bytes, effect_class: str) -> tuple[Intent | None, int]:
        """Finds the recorded INTENT entry for the effect that the function requests now. Returns the entry and the
        ordinal of the effect. The entry is None if the effect is new. If the history has another effect at this
        place, sets `blocked`.
        """
        if self._matches:
            for ordinal, intent in self._unmatched.items():
                if (intent.kind, intent.name, intent.digest) == (kind, name, asked):
                    del self._unmatched[ordinal]
                    self._asked = max(self._asked, ordinal)
                    return intent, ordinal
            self.history.last_ordinal += 1
            self._asked = max(self._asked, self.history.last_ordinal)
            return None, self.history.last_ordinal
        self._asked += 1
        ordinal = self._asked
        recorded = self._unmatched.pop(ordinal, None)
        if recorded is None:
            return None, ordinal
        checked = RULES[effect_class].checked if effect_class else kind != "sleep"  # it may change meanwhile
        if (recorded.kind, recorded.name) != (kind, name) or (checked and recorded.digest != asked):
            self._block(recorded, f"the function asks for {effect_words(kind, name)}" + _same(recorded, kind, name))
        return recorded, ordinal

    def _refusal(self, what: str) -> BaseException:
        """Returns the error that the function gets if it requests an effect and may not do so now. `what`: the words
        that name the effect.
        """
        if self.loop.dead:
            return asyncio.CancelledError(f"{what}: the job is parked or over")
        if asyncio._get_running_loop() is not self.loop:
            return UserError(
                f"job {self.job_id}: {what} was asked outside of the job's turn",
                hint="ask in the agent's own function, not in a thread or a step",
            )
        return UserError(
            f"job {self.job_id} has asked for {MOST_EFFECTS:,} effects",
            hint="ctx.continue_as(input) begins a new history",
        )

    def _abandoned(self, ordinal: int) -> None:
        """Handles an effect whose future was cancelled, so that the function awaits it no longer."""
        if (ask := self.open.get(ordinal)) is None:
            return
        stays_open = drop(ask)
        if not stays_open:
            del self.open[ordinal]
        if not stays_open or ordinal in self.history.not_made:
            self.gone.append(ask)

    def _block(self, intent: Intent | None, what: str) -> None:
        if self.blocked is None:
            old, new = self.history.begin.code, self.code
            hint = "bring the old code back; or guard what is new with ctx.patched('…') and start again"
            if old.rpartition(PYTHON_MARK)[2] != new.rpartition(PYTHON_MARK)[2]:
                hint = f"another Python may make tasks in another order: let open jobs end under the old one; or {hint}"
            step = "its end" if intent is None else f"step {intent.ordinal}, {effect_words(intent.kind, intent.name)}"
            self.blocked = NonDeterminism(
                f"job {self.job_id}: at {step}, {what}; the journal was written by version {old!r}, this is {new!r}",
                hint=hint,
            )

    # -- what the host looks at ---------------------------------------------------------------------------------------

    @property
    def last_asked(self) -> int:
        """The ordinal of the last effect that the function has requested."""
        return self._asked

    @property
    def behalf(self) -> Behalf:
        """The tenant, the actor and the session for which the job runs. The labels are those of all data that the job
        has received so far, and not only those of its input.
        """
        begin = self.history.begin
        return Behalf(begin.scope, begin.principal, tuple(sorted(self.labels)), begin.session)

    @cached_property
    def present(self) -> PresentJob:
        """The facts about the job that its model calls, its log lines and those of its effects contain."""
        begin = self.history.begin
        return PresentJob(self.job_id, first_of(self.job_id), begin.scope, begin.principal, begin.session)

    @property
    def finished(self) -> bool:
        """True if the function has ended, or was stopped because it did something forbidden."""
        return self.loop.main.done() or self.loop.refused is not None

    def stuck(self) -> UserError:
        """Returns the error with which a job fails if its function has not ended and awaits no effect. The function
        then awaits something that nobody can deliver.
        """
        return UserError(
            f"job {self.job_id} waits for something that nobody will give it",
            hint="await effects of ctx; what is awaited beside them belongs into ctx.step(f, …)",
        )

    def may_park(self, now_s: float) -> bool:
        """Returns True if all open effects of the job take long, so that it need not remain in memory. These effects
        take long: questions, waits for signals, children, calls about which a person was asked, and timers that are
        due in more than PARKS_MS. `now_s`: the present time in seconds since 1970.
        """
        for each in self.open.values():
            if each.kind == "sleep":
                if each.due_ms - now_s * 1000 <= PARKS_MS:
                    return False
            elif each.phase is AWAITS_GUARD or not (each.kind in WAITS_LONG or each.token):
                return False
        return True

    def outcome(self) -> tuple[Any, BaseException | None]:
        """Returns a pair: the value that the function has returned and None, or None and the error with which the
        function has ended. May only be called once `finished` is True.
        """
        if self.loop.refused is not None:
            return None, self.loop.refused
        forgotten = None if self.history.end else self.loop.forgotten  # what an older version has ended well stays so
        try:
            value = self.loop.main.result()
            return (None, forgotten) if forgotten else (value, None)
        except asyncio.CancelledError as error:
            return None, TimeoutError(self.late) if self.late and not self.cancels else error
        except ContinueAs as error:
            return None, forgotten or error
        except BaseException as error:  # whatever the function let out is its outcome
            return None, error

    def discard(self) -> None:
        """Ends the coroutines of the job, and breaks the reference cycles of its objects (`JobLoop.discard`)."""
        self.loop.discard()
        for ask in self.open.values():
            if ask.future is not None:
                ask.future.cancel()  # of a dead loop: nobody hears of it
                ask.future = None  # which knows the job
        self._by_timer.clear()


def effect_words(kind: str, name: str) -> str:
    """Returns the words that name an effect in messages: its kind and its name, such as "call refund"."""
    if (kind, name) == ("sleep", TIMEOUT):
        return "time-out"
    return f"{kind} {name}" if name else kind


def _same(intent: Intent, kind: str, name: str) -> str:
    return " with other arguments" if (intent.kind, intent.name) == (kind, name) else ""
