"""The player of recordings. It publishes their events again, or runs the code of today over their entries.

FAST, TIMED, STEP   events go to a bus: all at once, with the pauses that they had, or one by one
VERIFY              the code runs over all entries; nothing is called, and each difference is an error
FORK                the code runs over the first entries, and then goes on with real calls (`fork`)
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from sabot.agents.events.bus import EventBus, RuntimeEvent, RuntimeEventType
from sabot.agents.events.job_events import events_of
from sabot.agents.replay.fork import fork
from sabot.agents.replay.recording import Recording
from sabot.agents.replay.verification import JobCode, ReplayDifference, verified
from sabot.errors import UserError, short_repr


class ReplayMode(StrEnum):
    """The modes in which a recording is played."""

    FAST = "fast"
    TIMED = "timed"
    STEP = "step"
    VERIFY = "verify"
    FORK = "fork"


class ReplayPlayer:
    """A player of one recording. It publishes the recorded events to `event_bus`. With None it publishes nothing, and
    the events can be read with `step`.
    """

    def __init__(
        self,
        recording: Recording,
        event_bus: EventBus | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.recording = recording
        self.event_bus = event_bus
        self._sleep = sleep

    async def replay(
        self,
        mode: ReplayMode | str = ReplayMode.FAST,
        *,
        code: JobCode | None = None,
        at: int | None = None,
        answers: Mapping[str, Any] | None = None,
        model: str = "",
        prompt: str | None = None,
        no_wait: bool = False,
    ) -> Any:
        """Plays the recording to its end. Raises UserError for an unknown mode, for STEP (see `step`), and for VERIFY
        and FORK without the arguments that they need.

        - FAST and TIMED return the result in the last `final.result` event of the recording, or None if it has no such
          event.
        - VERIFY needs `code`, runs it over the entries, and returns a Verified. For a durable agent `code` is
          `code_of(spec)`. Raises ReplayDifference at the first difference.
        - FORK needs `code` and `at`, continues with `code` after step `at`, and returns a Forked. `fork` describes
          `at`, `answers`, `model`, `prompt`, `no_wait`, and the errors.
        """
        try:
            mode = ReplayMode(mode)
        except ValueError as error:
            raise UserError(f"mode={short_repr(mode)}", hint=f"one of {', '.join(ReplayMode)}") from error
        if mode is ReplayMode.STEP:
            raise UserError("steps are asked for one by one", hint="async for event in player.step(): …")
        if mode is ReplayMode.VERIFY:
            if code is None:
                raise UserError("VERIFY runs code over the recording", hint="replay(mode=ReplayMode.VERIFY, code=…)")
            found = verified(self.recording, code)
            if not found.same:
                raise ReplayDifference(f"job {found.job_id}, behind {found.steps} steps: {found.difference}")
            return found
        if mode is ReplayMode.FORK:
            if code is None or at is None:
                raise UserError(
                    "FORK runs code from a step on",
                    hint="replay(mode=ReplayMode.FORK, code=…, at=<the step's ordinal>)",
                )
            how: dict[str, Any] = {"answers": answers, "model": model, "prompt": prompt, "no_wait": no_wait}
            return await fork(self.recording, code, at=at, **how)
        result, events = None, await self._events()
        arrivals = self.recording.arrivals or [event.at for event in events]
        for number, event in enumerate(events):
            if mode is ReplayMode.TIMED and number:
                await self._sleep(max(arrivals[number] - arrivals[number - 1], 0.0))
            if self.event_bus is not None:
                await self.event_bus.publish(event)
            if event.type is RuntimeEventType.FINAL_RESULT:
                result = event.data.get("result")
        return result

    async def step(self) -> AsyncIterator[RuntimeEvent]:
        """Yields the events of the recording one by one. Nothing is published."""
        for event in await self._events():
            yield event

    async def _events(self) -> Sequence[RuntimeEvent]:
        return self.recording.events or await events_of(self.recording.entries)
