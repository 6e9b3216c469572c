"""The description of an agent that `@app.agent(...)` makes: checked and immutable."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from sabot.api.expr import as_type
from sabot.calls import CallOptions, Retry
from sabot.config import NAME_BYTES, Duration, checked_name
from sabot.connectors.base import Delivery, Sink, Source, check_delivery, check_input, check_sink
from sabot.errors import UserError

__all__ = ["AGENT_OPTIONS", "AgentSpec", "OnError", "as_schema"]

OnError = Literal["fail", "retry", "skip"]

_POLICIES = ("fail", "retry", "skip")


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent as the user described it. `sink` is a topic, a Sink, another agent's function, or None."""

    agent_id: str
    func: Callable[..., Any]
    inputs: tuple[str | Source, ...]
    key: str | None = None
    sink: Any = None
    batch: bool = False
    schema: pa.Schema | None = None
    calls: CallOptions = field(default_factory=CallOptions)
    dead_letter: str | Sink = "{topic}.dlq"
    delivery: Delivery = None
    start: str | int = "earliest"
    on_timer: Callable[..., Any] | None = None
    topic_by_name: bool = False  # no topic was given: its name is the topic, unless another agent writes into it

    @classmethod
    def of(
        cls,
        agent_id: str,
        func: Callable[..., Any],
        topic: str | Source | list[str | Source] | None = None,
        *,
        name: str = "",
        key: str | None = None,
        sink: Any = None,
        batch: bool = False,
        schema: pa.Schema | dict[str, str] | None = None,
        concurrency: int = 1,
        timeout: Duration | None = None,
        on_error: OnError = "fail",
        retries: int = 3,
        backoff: Duration = "100ms",
        rate: str | float | None = None,
        dead_letter: str | Sink = "{topic}.dlq",
        delivery: Delivery = None,
        start: str | int = "earliest",
        on_timer: Callable[..., Any] | None = None,
    ) -> "AgentSpec":
        """Makes the description of the arguments that the user wrote. Raises UserError, which names the agent."""

        def refuse(what: str, hint: str = "") -> UserError:
            return UserError(f"agent {agent_id}: {what}", hint=hint)

        checked_name(agent_id, "agent id", longest=2 * NAME_BYTES + 1)
        if not callable(func):
            raise refuse(f"{func!r} is not callable", "put @app.agent(...) above a function")
        topics = topic if isinstance(topic, list | tuple) else [topic or name or getattr(func, "__name__", "")]
        if not topics or any(not isinstance(t, str | Source) or t == "" for t in topics):
            raise refuse(f"topic {topic!r}", "give a topic name, a Source, or a list of them")
        for each in topics:
            check_input(each, f"agent {agent_id}: topic", "")
        if len({t if isinstance(t, str) else t.name for t in topics}) != len(topics):
            raise refuse(f"topic {topic!r} names one topic twice")
        calls = CallOptions.of(
            f"agent {agent_id}",
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            on_error=on_error,
            policies=_POLICIES,
            rate=rate,
        )
        if on_error != "retry":
            calls = replace(calls, retry=Retry(0, calls.retry.backoff_s))
        check_delivery(delivery, f"agent {agent_id}")
        if batch and concurrency != 1:
            raise refuse(f"concurrency={concurrency}", "a batch agent takes one batch at a time")
        if batch and (inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func)):
            raise refuse("a batch agent cannot yield", "return one RecordBatch, or None")
        if on_timer is not None and not callable(on_timer):
            raise refuse(f"on_timer={on_timer!r} is no function")
        if on_timer is not None and (batch or key is None):
            raise refuse("on_timer=, and no key that timers belong to", "a record agent with key= has timers")
        if not isinstance(sink, str | Sink | None) and not callable(sink):
            raise refuse(f"sink {sink!r}", "a topic name, a Sink, or another agent's function")
        if isinstance(sink, str | Sink):
            check_sink(sink, f"agent {agent_id}: sink")
        check_sink(dead_letter, f"agent {agent_id}: dead_letter")
        return cls(
            agent_id=agent_id,
            func=func,
            inputs=tuple(topics),
            key=key,
            sink=sink,
            batch=batch,
            schema=None if schema is None else as_schema(schema, where=f"agent {agent_id}"),
            calls=calls,
            dead_letter=dead_letter,
            delivery=delivery,
            start=start,
            on_timer=on_timer,
            topic_by_name=topic is None,
        )

    @property
    def group_id(self) -> str:
        """The consumer group to which positions are committed, for tools that show the lag."""
        return f"{self.agent_id}-group"

    @property
    def topics(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(t if isinstance(t, str) else t.name for t in self.inputs)


AGENT_OPTIONS = sorted((AgentSpec.of.__kwdefaults__ or {}).keys() - {"name"})
"""The arguments of `@app.agent` beside topic and name."""


def as_schema(schema: pa.Schema | dict[str, str], *, where: str) -> pa.Schema:
    """A pa.Schema as it is, or {"name": type}, as in `arguments.schema_of`; the error names the column."""
    if isinstance(schema, pa.Schema):
        return schema
    fields = []
    for name, kind in schema.items():
        try:
            fields.append(pa.field(name, as_type(kind)))
        except (UserError, TypeError) as error:
            raise UserError(f"{where}: schema: column {name!r} has unknown type {kind!r}") from error
    return pa.schema(fields)
