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
from sabot.base.options import answers_wrong_options
from sabot.errors import UserError, short_repr


class ReplayMode(StrEnum):
    """The modes of `ReplayPlayer.replay`.

    - FAST: publishes all recorded events at once.
    - TIMED: publishes them with the pauses that they had.
    - STEP: yields them one by one (`ReplayPlayer.step`).
    - VERIFY: runs code over the recorded results, and compares what it does with the recording.
    - FORK: runs code over the recorded results up to a step, and then continues with real calls.
    """

    FAST = "fast"
    TIMED = "timed"
    STEP = "step"
    VERIFY = "verify"
    FORK = "fork"


@answers_wrong_options
class ReplayPlayer:
    """A player of one recording. `replay` publishes the recorded events to `event_bus`; with None they are not
    published. `step` yields them.
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
        """Plays the recording in one of these modes, and returns a value that depends on the mode:

        - FAST and TIMED publish the recorded events. The returned value is the result in the last `final.result` event
          of the recording, or None if it has no such event.
        - VERIFY runs `code` over the recorded results without calling anything, and returns a Verified. For a durable
          agent, `code` is `code_of(agent.spec)`. Raises ReplayDifference at the first difference.
        - FORK runs `code` over the recorded results up to step `at`, continues with real calls, and returns a Forked.
          The function `fork` describes the other arguments and the errors.

        Raises UserError in these cases:

        - The mode is unknown, or is STEP (use `step` instead).
        - VERIFY has no `code`, or FORK lacks `code` or `at`.
        - The mode is VERIFY or FORK, and the recording was not made from a journal.
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
                raise ReplayDifference(f"job {found.job_id}, behind {found.steps} steps: {found.words}")
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
        """Yields the events of the recording one by one, without publishing them."""
        for event in await self._events():
            yield event

    async def _events(self) -> Sequence[RuntimeEvent]:
        return self.recording.events or await events_of(self.recording.entries)
