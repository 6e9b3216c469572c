"""What servers send in place of the answers that their documents describe, one row for each shape, and what becomes of
it. `test_answer_shapes` sends each of them by each API to each surface.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sabot.llm import Completion, ToolCall, assistant

MOST_TOKENS = 77  # `max_tokens` of each agent and request of the table
ERASE = ToolCall("call_1", "erase", '{"folder": "/"}')
LOOK = ToolCall("call_2", "look", '{"city": "Rome"}')


@dataclass(frozen=True)
class Sent:
    """One answer in the forms in which servers send it: as a whole, and as the events of a stream."""

    whole: Any
    events: Any

    def form(self, *, stream: bool) -> Any:
        return self.events if stream else self.whole


@dataclass(frozen=True)
class Shape:
    """A shape of an answer, and what becomes of it.

    - `sent`: the first answer by API ("chat", "responses", "messages"), or one for all of them: a `Sent`, or what a
      `FakeModelServer` sends in both forms. APIs that are left out have no such shape.
    - `then`: the answers to the further requests; the last one to all that follow.
    - `gives`: the beginning of the answer, or a pattern of "ErrorClass: message", where the agent has tools.
    - `column`: the same for `map_llm`, whose requests have no tools; None for the same as `gives`, and "" if the shape
      is not sent there.
    - `made`: the tool calls that are made. `told`: what the model gets to read about the first answer, in the results
      of its calls. `asked`: the number of requests; 0 if it does not matter.
    """

    sent: Mapping[str, Any] | Any
    gives: str = "done"
    column: str | None = None
    then: Sequence[Any] = ("done",)
    made: Sequence[tuple[str, Mapping[str, Any]]] = ()
    told: str = ""
    asked: int = 0
    output: Any = None
    of: Sequence[str] = field(default=("chat", "responses", "messages"))

    def answer(self, api: str, number: int, *, stream: bool) -> Any:
        """The answer to the request of this number, beginning with 0."""
        if number:
            return self.then[min(number, len(self.then)) - 1]
        sent = self.sent[api] if isinstance(self.sent, dict) and api in self.sent else self.sent
        return sent.form(stream=stream) if isinstance(sent, Sent) else sent

    def is_of(self, api: str) -> bool:
        return api in (self.sent if isinstance(self.sent, dict) else self.of)


CALLS_A_TOOL = "MalformedAnswer: .*the answer calls the tool"

SHAPES: dict[str, Shape] = {
    "a plain answer": Shape("It is Rome.", "It is Rome.", asked=1),
    "calls of tools": Shape(
        assistant("I look.", ERASE, LOOK),
        column=CALLS_A_TOOL,
        made=[("erase", {"folder": "/"}), ("look", {"city": "Rome"})],
        told="erased /",
        asked=2,
    ),
    "a filtered answer": Shape(
        Completion(message=assistant("So"), finish_reason="content_filter"), gives="So", column="ContentFiltered: "
    ),
}
"""The rows of the table, by their names, which the model gets as the prompt."""
