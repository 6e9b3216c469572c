"""The run of a job's function over its history, with its open effects. It does no I/O; the host of the job (`host`)
does that.

   deliver ──▶ turn ──▶ asks          one delivery (a result, an answer, a signal, a timer, a cancel), then until the function is quiet
   replay  =  the recorded deliveries in their order, then the host goes on with new ones

The function runs on a loop of its own (`loop.JobLoop`). So if it gets the same deliveries in the same order, it asks
for the same effects. If it asks for another effect than the journal has, the job is `blocked`.
"""

import asyncio
import logging
import random
import uuid
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import msgspec

from sabot.base.present_job import PRESENT_JOB, PresentJob
from sabot.base.redaction import HIDDEN
from sabot.base.stored_names import stored_name
from sabot.engine.calls.arguments import call_arguments, leaves_out, plain_arguments, values_left_out
from sabot.engine.calls.edits import edited_arguments, recorded_arguments
from sabot.engine.calls.effects import RULES, EffectClass, EffectId, digest, may_call
from sabot.engine.calls.fields import MISSING_VALUE, REST
from sabot.engine.calls.judging import ValueCode
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.tool_context import ToolContext
from sabot.engine.calls.tools import Tool
from sabot.errors import NonDeterminism, PolicyDenied, UserError, short_repr
from sabot.jobs.answers import check_no_mask, edit_of, starred_in
from sabot.jobs.core import AWAITS_GUARD, DONE, OPEN, EffectState, drawing_from, drop, job_seed, question_token
from sabot.jobs.direct_io import watch_functions
from sabot.jobs.given_results import given_result, wanted_result
from sabot.jobs.guard import (
    APART,
    Behalf,
    Decision,
    GuardedCall,
    GuardVerdict,
    Price,
    decode_verdict,
    own_arguments,
    own_tool,
    sent_arguments,
)
from sabot.jobs.history import PARKS_MS, TIMEOUT, WAITS_LONG, ContinueAs, Delivery, History
from sabot.jobs.loop import JobFuture, JobLoop, JobTimer
from sabot.jobs.masking import mask
from sabot.jobs.shown_arguments import (
    added,
    changes_of,
    hidden_in,
    holds_mask,
    is_same,
    packed_by_name,
    shown_form,
    unseen,
    whole,
)
from sabot.jobs.tree import first_of
from sabot.jobs.values import UNCHANGEABLE, copied, copied_arguments, pack, unpack, unpack_error
from sabot.journal.entries import INLINE_BYTES, Answer, Cancel, EffectResult, Intent, Signal

_log = logging.getLogger(__name__)

ENDS = "ends of answers"
"""The name of the patch at which a job looks at how an answer of a model has ended (`JobRun.looks_at_ends`)."""
_HALF = 8  # bytes of a digest

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
    - `decoded`: True if the arguments were decoded from the words of a model. Another run of the job decodes them anew,
      and what the types of the tool add by themselves, such as a new id, may be another one then.
    - `refused`: the verdict that forbids another attempt, because a later program makes another call of it; else None.
    """

    future: "asyncio.Future[Any] | None" = None
    tool: Tool | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    price: Price | None = None
    timer: JobTimer | None = None
    apart: bool = False
    earlier: tuple[int, ...] = ()
    decoded: bool = False
    refused: GuardVerdict | None = None

    def wanted_result(self) -> dict[str, Any]:
        if self.tool is None:
            return {}
        try:
            with ValueCode(self.name):
                return wanted_result(self.tool)
        except UserError as error:  # the code of its type calls a tool; the person is asked all the same
            _log.warning("the question whether %s was done names no type of its result: %s", self.name, error)
            return {}

    def given_result(self, result: Any) -> Any:
        return result if self.tool is None else given_result(self.tool, result)

    def change(self, verdict: GuardVerdict, call: GuardedCall | None = None) -> None:
        """Stores the guard's verdict, and makes its changes to the arguments: another model, a limit on tokens, and
        hidden texts. `digest` remains the digest of the original arguments. Raises UserError if the changes cannot be
        made.

        `call`: the call on which the guard has decided, if a rule has looked at its arguments, or a person will. Then
        `body` gets all arguments by name, also those that the function has left out, so that the call is made with
        them after another start too.
        """
        self.verdict = verdict
        if self.args and isinstance(self.args[0], RequestSpec):
            self.args = (verdict.spec(self.args[0]), *self.args[1:])
        if call is None and not verdict.hide:
            return
        with ValueCode(self.name):
            seen = None if call is None else call.arguments
            self._change_arguments(verdict.hide, seen)
            if seen is not None and verdict.decision is Decision.ASK:
                if names := unseen(seen):
                    self.verdict = _not_shown(self.verdict, names)
                if HIDDEN.encode() in self.body:
                    hidden = tuple(dict.fromkeys(hidden_in(seen, unpack(self.body)[1])))
                    self.verdict = msgspec.structs.replace(self.verdict, hidden=hidden)

    def _change_arguments(self, hide: Sequence[str], seen: Mapping[str, Any] | None) -> None:
        if self.guarded == "tool" and self.tool is not None:
            self._record_names(seen)
            self.args, self.kwargs = sent_arguments(self.tool, self.args, self.kwargs, hide, seen)
        elif hide:
            self.args, self.kwargs = mask((self.args, self.kwargs), hide)
        if hide:
            asked = unpack(self.body)
            shown = mask(asked, hide)
            if shown is not asked:
                self.body = pack(shown, f"arguments of {self.name}")

    def record_defaults(self) -> None:
        """Puts the defaults that the function has left out into `body`, if they have not been put there with the verdict.
        If nobody knows after a crash whether the call was made, the same call is made again, with the same idempotency
        key, although a later program may have other defaults. Leaves the body as it is if it would be long.
        """
        assert self.tool is not None
        found = plain_arguments(self.tool, self.args, self.kwargs)
        if not found and (found is not None or not leaves_out(self.tool, self.args, self.kwargs)):
            return
        if found is not None and UNCHANGEABLE.issuperset(map(type, found.values())):
            self.body = pack([(), found], "", sort=True)
            return
        with suppress(UserError), ValueCode(self.name):
            found = call_arguments(self.tool, self.args, self.kwargs)
            for name in values_left_out(self.tool, self.args, self.kwargs, found):
                try:
                    pack(found[name], name)
                except UserError:
                    del found[name]
            body = packed_by_name(found, f"arguments of {self.name}")
            if len(body) <= INLINE_BYTES:
                self.body = body

    def _record_names(self, seen: Mapping[str, Any] | None) -> None:
        """Puts all arguments into `body`, by the names of their parameters and with all of their fields: also defaults, and
        what a `functools.partial` gives. Leaves out values that cannot be recorded, such as a client. `seen`: the
        arguments at which a rule has looked, if one has.
        """
        assert self.tool is not None
        assert self.verdict is not None
        found = call_arguments(self.tool, self.args, self.kwargs) if seen is None else {**seen}
        are_named = not self.args and found.keys() == self.kwargs.keys()
        for name in () if are_named else values_left_out(self.tool, self.args, self.kwargs, found):
            try:
                pack(found[name], name)
            except UserError:
                del found[name]
        if not are_named or whole(found) is not found:
            self.body = packed_by_name(found, f"arguments of {self.name}")
        self.verdict = msgspec.structs.replace(self.verdict, named=True)

    def restore(self, intent: Intent) -> str:
        """Gives the parameters that the function has left out the values with which the call was judged, as its INTENT
        entry has them. If the words of a model say the arguments, all of them get the recorded values. Raises UserError
        if the tool does not take them any more.

        Returns the first parameter or field that the entry does not have although the call would get it, with its value:
        a later program has added it, and neither a rule nor a person has seen it. Returns "" if there is none. Entries of
        earlier versions do not tell.
        """
        with ValueCode(self.name):
            return self._restored(intent)

    def _restored(self, intent: Intent) -> str:
        if self.tool is None or intent.digest != self.digest or (self.guarded != "tool" and not self.decoded):
            return ""
        told = self.verdict is not None and self.verdict.named
        if intent.body == self.body and not told:
            return ""
        rest, recorded = unpack(intent.body)  # type: ignore[arg-type]
        now = own_arguments(self.tool, self.args, self.kwargs)
        left_out = values_left_out(self.tool, self.args, self.kwargs, now)
        changed = {
            name: each if name in left_out else changes
            for name, each in recorded.items()
            if (changes := self._changes(name, now, left_out, each)) is not MISSING_VALUE
        }
        self.args, self.kwargs = recorded_arguments(self.tool, self.args, self.kwargs, recorded, changed)
        if self.tool.parameters is None:
            now = own_arguments(self.tool, self.args, self.kwargs)
            if masked := next((name for name in changed if holds_mask(now.get(name))), ""):
                raise UserError(
                    f"it was judged with a secret in {masked}, which no journal has, and the program has another one now"
                )
            self.args, self.kwargs = sent_arguments(self.tool, self.args, self.kwargs, (), now)
        self.body = intent.body  # type: ignore[assignment]
        return self._added(now, recorded | ({REST: rest} if rest else {})) if told else ""

    def _changes(self, name: str, now: Mapping[str, Any], left_out: Collection[str], recorded: Any) -> Any:
        """Returns the parts of a recorded argument that are others now; MISSING_VALUE if there are none. The function leaves
        it out, or leaves out fields of it, and the defaults were others; or it gives it by place, and the parameters had
        another order. All others are a part of the digest.
        """
        if name not in now:
            return recorded
        value, hide = now[name], self.verdict.hide if self.verdict is not None else ()
        if name not in left_out and not (self.decoded or self.args) and whole(value) is value:
            return MISSING_VALUE
        hide = () if name in left_out else hide
        try:
            shown = mask(shown_form(value), hide)
            # earlier versions recorded a value in the form in which it is packed alone, which may hide fields
            alone = mask(unpack(pack(value, name, sort=True)), hide)
        except UserError:  # a default that cannot be recorded
            return recorded
        return (
            MISSING_VALUE
            if any(is_same(each, recorded) for each in (shown, alone))
            else changes_of(value, shown, recorded)
        )

    def _added(self, now: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
        hide = self.verdict.hide if self.verdict is not None else ()
        for name, each in now.items():
            with suppress(UserError):  # nobody can record it
                shown = mask(shown_form(each), hide)
                if found := added(shown, recorded.get(name, MISSING_VALUE), name):
                    return found
        return ""

    def adds_to(self, history: History, ordinal: int) -> str:
        """Returns the first parameter or field of this step of a call that an earlier step lacks, with its value: a later
        program, or another version of the server, has added it, so nobody has seen it who has approved that step. Returns ""
        if there is none.

        `ordinal`: that of the earlier step, which `history` has if it was made before the last start.
        """
        intent, answer = history.intents.get(ordinal), history.approval(ordinal)
        verdict = None if intent is None else decode_verdict(intent.note)
        if self.tool is None or intent is None or verdict is None or not verdict.named:
            return ""
        rest, seen = unpack(intent.body)  # type: ignore[arg-type]
        seen |= {REST: rest} if rest else {}
        known = _merged(seen, None if answer is None else edit_of(answer))
        now = call_arguments(self.tool, self.args, self.kwargs)
        own = self.tool.parameters.json.get("properties", {}) if self.tool.parameters is not None else now
        with ValueCode(self.name):  # the answers to questions of a server are no parameters of its tool
            return self._added({name: each for name, each in now.items() if name in own}, known)

    def edit(self, changes: Any) -> None:
        """Changes the arguments of the call as the person wants it who approves it. `changes`: the arguments of the
        answer. Raises UserError if the tool does not take them.
        """
        if self.tool is None or not isinstance(changes, Mapping):
            raise UserError(f"{short_repr(changes)} are no arguments", hint='{"approved": true, "arguments": {…}}')
        with ValueCode(self.name):
            self.args, self.kwargs = edited_arguments(self.tool, self.args, self.kwargs, changes)

    def check_edit(self, changes: Any) -> None:
        """Raises UserError if the changes that a person wants have `***` where the question hides a value."""
        if self.verdict is None or not isinstance(changes, Mapping):
            return
        shown = unpack(self.body)[1]
        hidden = starred_in(shown) if self.verdict.hidden is None else self.verdict.hidden
        check_no_mask(changes, shown, hidden)

    def hide(self, patterns: Sequence[str]) -> None:
        """Hides texts in the arguments that a person has changed."""
        assert self.tool is not None
        seen = own_arguments(self.tool, self.args, self.kwargs)
        self.args, self.kwargs = sent_arguments(self.tool, self.args, self.kwargs, patterns, seen)

    def copied_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns copies of the arguments for one call, since the tool may change them. Raises UserError if an object
        cannot be copied.
        """
        args, kwargs = self.args, self.kwargs
        if UNCHANGEABLE.issuperset(map(type, args)) and UNCHANGEABLE.issuperset(map(type, kwargs.values())):
            return args, {**kwargs}
        with ValueCode(self.name):
            return copied_arguments(args, kwargs, self.name)


def _merged(value: Any, changes: Any) -> Any:
    """Returns the recorded form of a value with the changes of a person, which name the fields that they change."""
    if changes is None or not (isinstance(value, Mapping) and isinstance(changes, Mapping)):
        return value if changes is None else changes
    return {**value, **{name: _merged(value.get(name), each) for name, each in changes.items()}}


def _stricter(recorded: str, today: str) -> str:
    """Returns the class by which a call that may have been made is repeated or not: that of today's tool, or the recorded one
    if a later program has declared a class that allows more. The service got the call under the recorded class.
    """
    if recorded == today or may_call(today, recorded):
        return today
    # the tool of today has no function that looks the call up
    return EffectClass.UNSAFE if recorded == EffectClass.RECONCILABLE else recorded


def _is_decided(ask: Ask) -> bool:
    """Returns True if no policy has to decide on a call any more: it was denied, or it is a child that has begun."""
    if not ask.recorded or ask.verdict is None:
        return ask.recorded and ask.kind == "child"
    decision = ask.verdict.decision
    return decision is Decision.DENY or (ask.kind == "child" and decision is not Decision.ASK)


_MOST_UNSEEN = 5  # names in the reason of a question


def _not_shown(verdict: GuardVerdict, names: Sequence[str]) -> GuardVerdict:
    """Returns the verdict with the names of the attributes that the tool gets and the question does not show. Values are
    left out: they may be secrets.
    """
    more = [f"{len(names) - _MOST_UNSEEN} more"] if len(names) > _MOST_UNSEEN else []
    said = f"the tool also gets what is no field, and is not shown: {', '.join([*names[:_MOST_UNSEEN], *more])}"
    return msgspec.structs.replace(verdict, reason="; ".join(filter(None, (verdict.reason, said))))


_Given = tuple[Tool, tuple[Any, ...], Mapping[str, Any]]
"""A tool, and the arguments of its call."""


def _fixed_arguments(func: "partial[Any]", kwargs: Mapping[str, Any]) -> bytes:
    """Returns the packed values that a `functools.partial` gives and the caller does not. Leaves out those that cannot be
    recorded, such as a client. Returns b"" if none is left.
    """
    places: list[tuple[Any, Any]] = [*enumerate(func.args), *sorted(func.keywords.items())]
    fixed: list[list[Any]] = []
    for place, value in places:
        if place not in kwargs:
            with suppress(UserError):
                fixed.append([place, pack(value, f"argument {place}", sort=True)])
    return pack(fixed, "arguments of a partial") if fixed else b""


def _is_stored(intent: Intent, body: bytes, given: _Given | None) -> bool:
    """Returns True if an INTENT entry has the arguments for which the function asks, as `Ask.change` stores them.
    `body`: the packed arguments. `given`: the arguments of a tool; None for other effects.
    """
    what, verdict, forms = f"arguments of {intent.name}", decode_verdict(intent.note), [body]
    if given is not None:
        tool, args, kwargs = given
        _, recorded = unpack(intent.body)  # type: ignore[arg-type]
        asked, left_out = call_arguments(tool, args, kwargs), values_left_out(tool, args, kwargs)
        if tool.parameters is None:
            asked = {name: each for name, each in asked.items() if name not in left_out}
        found = {**recorded, **asked}
        rest, named = found.get(REST, ()), {name: each for name, each in found.items() if name != REST}
        # earlier versions left out what the objects hide
        forms += [packed_by_name(found, what), pack([rest, named], what, sort=True)]
    if verdict is not None and verdict.hide:
        forms = [pack(mask(unpack(each), verdict.hide), what) for each in forms]
    return intent.body in forms


class Pieces(Protocol):
    """A receiver of the pieces of models' answers while the answers are being written."""

    async def wants_fragments(self, job_id: str) -> bool:
        """Returns True if anybody wants to receive the pieces of models' answers in this job."""

    def fragment(self, effect: EffectId, number: int, text: str, reasoning: str, agent: str = "") -> None:
        """Receives a piece of a model's answer. `effect`: the call of the model. `number`: the number of the piece in
        that attempt, from 0. `text`, `reasoning`: the new text of the answer and of the model's reasoning. `agent`: the
        name of the agent that asked as a tool of another one, or "".
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
    - `input`: the message of the job, the key of its record, and the metadata of its request.
    - `lost_policy`: words for the policy that the job must have and that is not there; "" if it may go on. The job is blocked
      at a call that may still be made, since other rules or none would decide on it.
    - `form`: what has made the output (`entries.End.form`). The owner says so when the function has ended.
    """

    lost_policy = ""
    form = ""

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
        self.input: tuple[Any, bytes | None, Mapping[str, Any]] = (None, None, {})
        self.open: dict[int, Ask] = {}
        self.new: deque[Ask] = deque()
        self.gone: deque[Ask] = deque()
        self.cancels: list[Cancel] = []
        self.late = ""
        watch_functions()
        self.loop = JobLoop(  # type: ignore[abstract]  # it takes the methods that it refuses from a table
            job_id, on_timer=self._timer_set, on_timer_gone=self._timer_gone
        )
        self._told_ms = self._last_ms = history.began_ms
        self.key, self.salt = key, history.begin.salt
        self._asked = history.base  # the ordinal of the last ask
        self._matches = history.attempt > 1  # asks are matched by what they ask, not by their ordinal
        self._unmatched = dict(history.intents)
        self._replayed = False  # the function has got all that is recorded
        self._is_over = False  # it has ended, and so have the tasks that it has left behind
        # Of attempts before this one: each is delivered when its effect is asked.
        self._kept = history.deliveries[: history.kept]
        self._undelivered = deque(history.deliveries[history.kept :])
        # Timers of this attempt count from here. What it keeps may be later, if the clock was set back before the attempt.
        kept_ms = max((each.at_ms for each in self._kept), default=0)
        self.loop.now = max(history.begin.at_ms, history.tried_ms, kept_ms) / 1000
        # the effects that attempts before this one have got the outcomes of; attempts of earlier versions do not look at it
        self._settled = {
            each.ordinal for each in self._kept if history.keeps and isinstance(each, EffectResult | Answer)
        }
        self._by_timer: dict[JobTimer, Ask] = {}
        self._signals: dict[str, deque[Signal]] = {}
        self._patches: dict[str, bool] = {}
        self._seed = seed or job_seed(history.seed, job_id, history.runs, key)
        self._drawn: dict[bytes, random.Random] = {}  # the generators of random numbers, by their seeds
        self._present: PresentJob | None = None

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
        self._end_tasks()
        self.deliver(self._next_recorded())
        self.loop.repeats = False
        self._replayed = True
        self._end_tasks()
        if self.blocked is None and self._unmatched and not self._matches:
            intent = next(iter(self._unmatched.values()))
            self._block(intent, "the function does not ask for it")
        if self.history.end is not None and not (self.finished and all(ask.recorded for ask in self.new)):
            self._block(None, "the function goes on")
        if self.lost_policy:
            self._check_policy()

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
            passed_ms, self._last_ms = entry.at_ms - self._last_ms, entry.at_ms
            back = entry.at_ms < self._told_ms  # the clock was set back between two lives: time goes on from there
            if not back:
                loop.now, self._told_ms = max(loop.now, entry.at_ms / 1000), entry.at_ms
            elif passed_ms > 0:
                loop.now += passed_ms / 1000
            loop.run_until_quiet(partial(self._tell, entry))
            if loop.main.done():
                self._end_tasks()
            entry = self._next_recorded() if self._kept or self._undelivered else None
        if self.lost_policy and self._replayed:
            self._check_policy()

    def _check_policy(self) -> None:
        """Blocks the job at the first call that may still be made, or be made again, if the policy that decides on it is not
        there. That is every call without a result, but for those that were denied, and the children that have begun, which are
        jobs of their own. So an approval, a repeated attempt and a changed argument wait for the policy too.
        """
        if self.blocked is not None or self.history.end is not None:
            return
        for ask in self.new:
            if ask.guarded is None or ask.ordinal not in self.open or _is_decided(ask):
                continue
            self.blocked = NonDeterminism(
                f"job {self.job_id}: at step {ask.ordinal}, {effect_words(ask.kind, ask.name)}: {self.lost_policy}",
                hint="give the app or kernel the policy= of before; for a job whose request names none, policy=PolicyEngine([]) says that "
                "no rule is meant",
            )
            return

    def _end_tasks(self) -> None:
        """Cancels the tasks that the function has left behind, once, as soon as the function has ended. From then on the job
        makes nothing new: what waits for an approval is withdrawn, and a call under way goes on to its end.

        Earlier versions let these tasks go on. A history with effects that came behind the end of the function is replayed
        as it was made, and the tasks are cancelled at its end.
        """
        loop = self.loop
        behind = self._unmatched and not self._replayed
        if self._is_over or behind or loop.refused is not None or not loop.main.done():
            return
        self._is_over = True
        if loop.has_tasks:
            loop.run_until_quiet(loop.cancel_all)

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
                self.history.cancelled = True
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
        said: str | None = None,
    ) -> "asyncio.Future[Any]":
        """Requests a call of a tool. Returns the future of the result.

        - `args`, `kwargs`: the arguments. The call gets copies, so the function may change the originals afterwards.
        - `body`: the packed arguments.
        - `said`: the arguments as a model has written them, from which `kwargs` were decoded. By them the call is found
          in the history: the types of a tool may add a new id or the present time in each run.
        - `steps`: for a step of a call that is made in several, the ordinals of the earlier steps. That of this step is
          added.
        - `model`: the name of the model if the call asks one; the first argument is then the RequestSpec.
        - `price`: for a call of a model, a function that returns the price of its tokens.
        """
        args, kwargs = copied_arguments(args, kwargs, f"arguments of {tool.name}")
        if isinstance(tool.func, partial):
            tool = own_tool(tool)
        named = None if model else (tool, args, kwargs)
        fixed = _fixed_arguments(tool.func, kwargs) if isinstance(tool.func, partial) else b""
        ask = self._ask(
            "call", tool.name, body, effect_class=tool.effect, body=body, given=named, said=said, fixed=fixed
        )
        ask.decoded = said is not None
        ask.tool, ask.args, ask.kwargs, ask.model, ask.price = tool, args, kwargs, model, price
        ask.retries, ask.in_doubt = tool.retry.retries, tool.in_doubt
        if steps is not None:
            ask.earlier = tuple(steps)
            steps.append(ask.ordinal)
        assert ask.future is not None
        return ask.future

    def recall(self, tool: Tool, args: tuple[Any, ...]) -> "asyncio.Future[Any] | None":
        """Requests a call by which Sabot itself reads something for the job, and which no rule decides on. Returns the future
        of the result, or None if the history shows that the job has passed this place in an earlier version of Sabot, which
        read nothing here. `tool`: of the class "local".
        """
        here = self._unmatched.values() if self._matches else [each for each in self._next_places() if each]
        passed = bool(here) or (not self._matches and self.history.end is not None)
        if passed and all((each.kind, each.name) != ("recall", tool.name) for each in here):
            return None
        body = pack([args, {}], f"arguments of {tool.name}", sort=True)
        ask = self._ask("recall", tool.name, body, effect_class=tool.effect, body=body, given=(tool, args, {}))
        ask.tool, ask.args, ask.kwargs = tool, args, {}
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

    def has_called(self, name: str) -> bool:
        """Returns True if the history has a call of this name where the function is about to make one."""
        recorded = None if self._matches else self._unmatched.get(self._asked + 1)
        return recorded is not None and (recorded.kind, recorded.name) == ("call", name)

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
        given: "_Given | None" = None,
        said: str | None = None,
        fixed: bytes = b"",
    ) -> Ask:
        if (
            self.loop.dead
            or asyncio._get_running_loop() is not self.loop
            or self._asked - self.history.base >= MOST_EFFECTS
        ):
            raise self._refusal(effect_words(kind, name))
        if self._is_over:  # a task that was left behind gets no answer, and is dropped with the job
            return Ask(0, kind, name, effect_class, b"", body, future=JobFuture(self.loop))
        if said is None and not fixed:
            asked = digest(self.key, kind, name, arguments)
        else:
            words = None if said is None else said.encode(errors="surrogatepass")
            asked = self._as_recorded(kind, name, words, body, fixed)
        if self._unmatched and body:
            asked = self._as_stored(kind, name, asked, body, given, decoded=said is not None)
        intent, ordinal = self._recorded(kind, name, asked, effect_class)
        ask = Ask(ordinal, kind, name, effect_class, asked, body, due_ms=due_ms, apart=APART.get())
        if kind == "ask":
            ask.token = question_token(self.key, self.job_id, ordinal)
        if intent is not None:
            ask.phase, ask.due_ms, ask.token = OPEN, intent.due_ms, intent.token
            ask.verdict = decode_verdict(intent.note)
            ask.attempt = self.history.attempt_of(intent)
            if ask.attempt and effect_class and intent.effect_class:
                ask.effect_class = _stricter(intent.effect_class, effect_class)
            if ordinal in self.history.approvals and self.history.approval(ordinal) is None:
                ask.token = self.history.approvals[ordinal].token
        if awaited:
            ask.future = JobFuture(self.loop, partial(self._abandoned, ordinal))
        if kind != "patch":
            self.open[ordinal] = ask
        self.new.append(ask)
        return ask

    def _as_recorded(self, kind: str, name: str, said: bytes | None, body: bytes, fixed: bytes) -> bytes:
        """Returns the digest of a call for which a model has asked, or of a partial: that of the model's own words `said`,
        or else of the arguments, of which the second half is that of the values `fixed`. In a journal of an earlier version
        it is that of the decoded arguments, and of none that a partial gives.
        """
        own = asked = digest(self.key, kind, name, body if said is None else said)
        if fixed:
            asked = own[:_HALF] + digest(self.key, kind, name, fixed)[:_HALF]
        if not self._unmatched:
            return asked
        # one pass for all: effects come in the order in which they were recorded, so the first entry is mostly it
        forms = (asked, own) if said is None else (asked, own, digest(self.key, kind, name, body))
        for each in self._next_places():
            if each is None:
                continue
            # if a rule has looked at the values of the partial, they are in the entry, and `Ask.restore` compares them
            judged = fixed and not self._matches and each.note and each.body != body
            if each.digest in forms or (judged and each.digest[:_HALF] == own[:_HALF]):
                return each.digest
        return asked

    def _next_places(self) -> Iterable[Intent | None]:
        """Returns the entries of the history, one of which may be that of the effect that the function requests next."""
        return self._unmatched.values() if self._matches else [self._unmatched.get(self._asked + 1)]

    def _as_stored(
        self, kind: str, name: str, asked: bytes, body: bytes, given: "_Given | None", *, decoded: bool
    ) -> bytes:
        """Returns the digest of an effect by which the history has it. In a journal that is `asked`, the digest of the
        arguments of the function. A recording has digests of the stored arguments (`_is_stored`): with the defaults that
        rules have seen, and without hidden texts. The call of a model follows from its answer, which is recorded before
        it: at its place in the history it is the same call, whatever its types have added to it.
        """
        for intent in self._next_places():
            if intent is None or (intent.kind, intent.name) != (kind, name):
                continue
            if intent.digest == asked:
                break
            stored = intent.body
            of_stored = isinstance(stored, bytes) and digest(self.key, kind, name, stored) == intent.digest
            if of_stored and ((decoded and not self._matches) or _is_stored(intent, body, given)):
                return intent.digest
        return asked

    def _recorded(self, kind: str, name: str, asked: bytes, effect_class: str) -> tuple[Intent | None, int]:
        """Finds the recorded INTENT entry for the effect that the function requests now. Returns the entry and the
        ordinal of the effect. The entry is None if the effect is new. If the history has another effect at this
        place, sets `blocked`.
        """
        if self._matches:
            equal = (
                ordinal
                for ordinal, intent in self._unmatched.items()
                if (intent.kind, intent.name, intent.digest) == (kind, name, asked)
            )
            ordinal = next(equal, 0)
            if ordinal and self._settled and ordinal not in self._settled:
                # an earlier attempt has asked for it once more, and has got it: the first one is not made beside that
                ordinal = next((each for each in equal if each in self._settled), ordinal)
            if ordinal:
                intent = self._unmatched.pop(ordinal)
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
        if (ask := self.open.get(ordinal)) is None or (self._is_over and ask.kind == "child"):
            return  # the end of the job decides on children (`JobTree.leave`)
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

    @property
    def present(self) -> PresentJob:
        """The facts about the job that its model calls, its log lines and those of its effects contain."""
        if self._present is None:  # no `cached_property`, which takes a lock that costs a short job more
            begin = self.history.begin
            self._present = PresentJob(self.job_id, first_of(self.job_id), begin.scope, begin.principal, begin.session)
        return self._present

    def tool_context(self) -> ToolContext[Any]:
        """Returns what a tool that this job calls is told about the job. The message is a copy, since the function of
        the job has the original.
        """
        (message, key, metadata), begin = self.input, self.history.begin
        return ToolContext(
            scope=begin.scope or begin.agent.rpartition(".")[0],
            principal=begin.principal,
            session=begin.session,
            job=self.job_id,
            key=key,
            message=copied(message, "the message of the job"),
            metadata=copied(dict(metadata), "the metadata of the job"),
            labels=frozenset(self.labels),
        )

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
