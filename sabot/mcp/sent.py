"""A call on its way to a server, and the time that it has."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sabot.mcp.config import McpConfig
from sabot.mcp.errors import McpTimeout
from sabot.mcp.results import McpResult
from sabot.mcp.wire import responses_of


@dataclass(slots=True, eq=False)
class SentCall:
    """A call under way. `seconds`: the time for the server's answer. `asked`: questions that were not passed on yet. `asks`: done when
    there are any.
    """

    name: str
    seconds: float
    left: float  # seconds altogether
    ends: float = 0.0  # when they are over, by the loop's clock
    deadline: asyncio.Timeout | None = None
    task: "asyncio.Task[McpResult] | None" = None
    asks: "asyncio.Future[None] | None" = None
    forget: asyncio.TimerHandle | None = None
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: "dict[str, asyncio.Future[Any]]" = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def in_time(self, server: str, config: McpConfig) -> AsyncIterator[None]:
        """Limits the time of the code inside. Raises McpTimeout."""
        now = asyncio.get_running_loop().time
        self.ends = now() + self.left
        try:
            async with asyncio.timeout(min(self.seconds, self.left)) as self.deadline:
                yield
        except TimeoutError:
            words, hint = f"within {self.seconds:g} s", "timeout= gives it longer"
            if self.deadline is not None and (self.deadline.when() or 0) >= self.ends:
                words = f"within {config.most_seconds(self.seconds):g} s, though it reported progress"
                hint = "McpConfig(max_call_time=…) gives it longer"
            raise McpTimeout(server, f"{self.name} did not answer {words}", hint=hint) from None
        finally:
            self.left, self.deadline = max(0.0, self.ends - now()), None

    def go_on(self, answers: Mapping[str, Any]) -> None:
        """Gives the server the answers to its questions."""
        if self.forget is not None:
            self.forget.cancel()
        responses = responses_of({key: each for key, each in answers.items() if key in self.asked})
        for key in responses:
            self.asked.pop(key)
            if not self.answers[key].done():
                self.answers[key].set_result(responses[key])
        self.asks = None if self.asked else self.asks
