"""The events of a job that a customer may see: `ExecutionHandle.public_events`, and the same as server-sent events.

   events of the job ─▶ the fields of _SHOWN ─▶ text that the customer does not have yet ─▶ id, by which he comes back

A type or field that is not in _SHOWN is left out, so what is added to the events later stays private.

The id of an event is the place behind it: the last recorded event, and for each answer that is being written its attempt,
the number of characters so far, and their checksum (`3/1/tool.end;4.1.120.7c0ab3f1`). So a listener that comes back goes
on within an answer, also when the answer was recorded meanwhile or the process was restarted.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgspec

from sabot.agents.events.bus import RuntimeEvent, RuntimeEventType
from sabot.agents.kernel.jobs import is_agent_result
from sabot.base.checks import TEXTS, check
from sabot.errors import SabotError, UserError, short_repr

_TYPE = RuntimeEventType

_EFFECT = ("ordinal", "attempt")
_SHOWN: dict[RuntimeEventType, tuple[str, ...]] = {
    _TYPE.JOB_STARTED: (),
    _TYPE.JOB_STATUS_CHANGED: ("status",),
    _TYPE.MODEL_DONE: _EFFECT,
    _TYPE.TOOL_START: (*_EFFECT, "tool"),
    _TYPE.TOOL_END: (*_EFFECT, "tool"),
    _TYPE.TOOL_ERROR: (*_EFFECT, "tool"),
    _TYPE.ACTION_REQUIRED: ("ordinal",),
    _TYPE.ACTION_RESOLVED: ("ordinal",),
    _TYPE.ACTION_EXPIRED: ("ordinal",),
    _TYPE.ACTION_CANCELLED: ("ordinal",),
    _TYPE.JOB_COMPLETED: (),
    _TYPE.JOB_FAILED: (),
    _TYPE.JOB_CANCELLED: (),
    _TYPE.FINAL_RESULT: (),
    _TYPE.FINAL_ERROR: (),
}
"""The public types of events, and the fields of their data that are public. `model.token` is made from the texts of
answers.
"""

_STATUSES = ("running", "waiting_action")  # "blocked" concerns the program, not who waits for its job
_PLACE = re.compile(r"([^;]{0,200})((?:;\d{1,9}\.\d{1,9}\.\d{1,9}\.[0-9a-f]{8}){0,100})", re.ASCII)


@dataclass(slots=True)
class _Shown:
    """The part of an answer that a listener has: its attempt, the number of characters, and their checksum."""

    attempt: int
    size: int = 0
    sum: int = 0

    def add(self, text: str) -> None:
        self.size += len(text)
        self.sum = crc32(text.encode(), self.sum)

    def begins(self, text: str) -> bool:
        """Returns True if the text begins with what the listener has."""
        return len(text) >= self.size and crc32(text[: self.size].encode()) == self.sum


@dataclass(slots=True)
class ListenerPlace:
    """A place in the public stream of a job.

    - `last`: the id, without that of the job, of the last recorded event that the listener has; "" for none.
    - `answers`: by the ordinal of the effect, the part that the listener has of each answer that is not recorded.
    """

    last: str = ""
    answers: dict[int, _Shown] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str | None) -> "ListenerPlace":
        """Returns the place that an id names. The id comes from a customer, so any text is accepted: one that names no
        place is a place that no stream has.
        """
        found = _PLACE.fullmatch(text or "")
        if found is None:
            return cls("no place")
        place = cls(found[1])
        for each in filter(None, found[2].split(";")):
            ordinal, attempt, size, sum_ = each.split(".")
            place.answers[int(ordinal)] = _Shown(int(attempt), int(size), int(sum_, 16))
        return place

    def __str__(self) -> str:
        answers = (f";{at}.{each.attempt}.{each.size}.{each.sum:08x}" for at, each in self.answers.items())
        return self.last + "".join(answers)


@dataclass(frozen=True, slots=True)
class Disclosure:
    """The choices of a program about the public events of a job.

    - `arguments`: for a tool, the names of the arguments that are public.
    - `answers`: True if the texts of the model's answers and the result of the job are public.
    - `is_agent`: True if the job runs an Agent, whose result is the text of its last answer. None if that is not known before
      its end.
    """

    arguments: Mapping[str, tuple[str, ...]]
    answers: bool | None
    is_agent: bool | None

    @classmethod
    def of(cls, arguments: object, answers: object, *, is_agent: bool | None) -> "Disclosure":
        """Checks the arguments of `public_events`, and returns them. Raises UserError."""
        named: dict[str, tuple[str, ...]] = {}
        if arguments is not None:
            if not isinstance(arguments, Mapping):
                raise UserError(
                    f"public_events: arguments={short_repr(arguments)}", hint='arguments={"refund": ["order"]}'
                )
            for tool, names in arguments.items():
                named[tool] = tuple(check(f"public_events: arguments[{tool!r}]", names, TEXTS))
        if answers is not None and not isinstance(answers, bool):
            raise UserError(f"public_events: answers={short_repr(answers)}", hint="True, False or None")
        return cls(named, is_agent if answers is None else answers, is_agent)

    def data(self, event: RuntimeEvent) -> dict[str, Any]:
        """Returns the public data of a recorded event whose type is in _SHOWN."""
        said = event.data
        data = {name: said[name] for name in _SHOWN[event.type] if name in said}
        if event.type is _TYPE.MODEL_DONE and "error" in said:
            data["failed"] = True
        elif event.type is _TYPE.TOOL_START and isinstance(given := said.get("arguments"), Mapping):
            names = self.arguments.get(said["tool"], ())
            if shown := {name: given[name] for name in names if name in given}:
                data["arguments"] = shown
        elif event.type is _TYPE.FINAL_RESULT:
            value = said.get("result")
            form = said.get("form", "")
            of_agent = is_agent_result(value, form) if form or self.is_agent is None else self.is_agent
            if of_agent if self.answers is None else self.answers:
                data["result"] = value.get("content", "") if of_agent and isinstance(value, Mapping) else value
        return data


class _Teller:
    """Makes the public events of one listener from the events of a job (`ExecutionHandle.events`), which it gets in
    order and from the first one on.
    """

    def __init__(self, job_id: str, place: ListenerPlace, disclosure: Disclosure) -> None:
        """Makes a teller. `place` is where the listener goes on."""
        self._job_id = job_id
        self._place = place
        self._disclosure = disclosure
        self._skips = place.last != ""  # until the last event that the listener has
        # by answer that the listener has in part: the beginning of its pieces, until it is as long as what he has
        self._again = dict.fromkeys(place.answers, "")

    def public(self, event: RuntimeEvent) -> list[RuntimeEvent]:
        """Returns the public events that follow from an event of the job."""
        name = event.event_id.removeprefix(f"{self._job_id}/")
        if self._skips:
            self._skips = name != self._place.last
            return []
        own = self._disclosure.answers and "agent" not in event.data  # not the result of a tool, which another agent is
        if event.type is _TYPE.MODEL_TOKEN:
            return self._piece(event) if own else []
        if event.type not in _SHOWN:
            return []
        if event.type is _TYPE.JOB_STATUS_CHANGED and event.data.get("status") not in _STATUSES:
            return []
        made = []
        if event.type is _TYPE.MODEL_DONE:
            if own and not {"error", "summary"} & event.data.keys():
                made = self._rest(event, _text(event.data.get("content")))
            self._place.answers.pop(event.data["ordinal"], None)
        self._place.last = name
        return [*made, self._event(event, event.type, self._disclosure.data(event))]

    def _piece(self, event: RuntimeEvent) -> list[RuntimeEvent]:
        ordinal, attempt, text = event.data["ordinal"], event.data["attempt"], event.data["text"]
        shown = self._place.answers.get(ordinal)
        if shown is None or attempt > shown.attempt:
            return self._anew(event, text)
        if attempt < shown.attempt:
            return []
        if ordinal not in self._again:
            return self._more(event, text)
        text = self._again[ordinal] + text
        if len(text) < shown.size:
            self._again[ordinal] = text
            return []
        del self._again[ordinal]
        return self._rest(event, text)

    def _rest(self, event: RuntimeEvent, text: str) -> list[RuntimeEvent]:
        """Returns the events for the part of an answer that the listener does not have. `text` is the answer, from its
        beginning on.
        """
        shown = self._place.answers.get(event.data["ordinal"])
        if shown is None or not shown.begins(text):
            return self._anew(event, text)
        return self._more(event, text[shown.size :])

    def _anew(self, event: RuntimeEvent, text: str) -> list[RuntimeEvent]:
        """Returns the events for an answer of which the listener has nothing, or another attempt."""
        ordinal, attempt = event.data["ordinal"], event.data["attempt"]
        before = self._place.answers.get(ordinal)
        self._place.answers[ordinal] = _Shown(attempt)
        self._again.pop(ordinal, None)
        return self._more(event, text, resets=before is not None and before.size > 0)

    def _more(self, event: RuntimeEvent, text: str, *, resets: bool = False) -> list[RuntimeEvent]:
        if not text and not resets:
            return []
        ordinal = event.data["ordinal"]
        shown = self._place.answers[ordinal]
        shown.add(text)
        data = {"text": text, "ordinal": ordinal, "attempt": shown.attempt} | ({"reset": True} if resets else {})
        return [self._event(event, _TYPE.MODEL_TOKEN, data)]

    def _event(self, event: RuntimeEvent, kind: RuntimeEventType, data: Mapping[str, Any]) -> RuntimeEvent:
        return RuntimeEvent(kind, self._job_id, data, str(self._place), event.at)


async def public_events(
    job_id: str,
    events: AsyncGenerator[RuntimeEvent, None],
    recorded: Callable[[str], Awaitable[list[RuntimeEvent]]],
    after: str | None,
    disclosure: Disclosure,
) -> AsyncGenerator[RuntimeEvent, None]:
    """Yields the public events of a job, as `ExecutionHandle.public_events` describes them. `events` yields all events
    of the job, and `recorded` returns the recorded ones.
    """
    place = ListenerPlace.of(after)
    async with aclosing(events):
        if place.last:
            known = await recorded(job_id)
            if all(each.event_id != f"{job_id}/{place.last}" for each in known):
                place = ListenerPlace()
        teller = _Teller(job_id, place, disclosure)
        async for event in events:
            for each in teller.public(event):
                yield each


async def server_sent(events: AsyncGenerator[RuntimeEvent, None], pause_s: float) -> AsyncGenerator[bytes, None]:
    """Yields public events in the form of server-sent events, and a comment whenever none has come for `pause_s`
    seconds. Ends without an error where `events` raises one of Sabot's, because the program learns of it from the job.
    """
    asking: asyncio.Task[RuntimeEvent] | None = None
    try:
        while True:
            asking = asking or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([asking], timeout=pause_s)
            if not done:
                yield b": \n\n"  # so that proxies keep the connection, and the server sees that it is broken
                continue
            try:
                event = asking.result()
            except (StopAsyncIteration, SabotError):
                return
            finally:
                asking = None
            data = msgspec.json.encode(event.data, enc_hook=str)
            yield b"id: %s\nevent: %s\ndata: %s\n\n" % (event.event_id.encode(), event.type.encode(), data)
    finally:
        if asking is not None:
            asking.cancel()
            await asyncio.wait([asking])
        await events.aclose()


def _text(content: Any) -> str:
    """Returns the text of an answer's content: a text, or a list of parts."""
    if isinstance(content, list):
        return "".join(str(each.get("text") or "") for each in content if isinstance(each, Mapping))
    return content if isinstance(content, str) else ""
