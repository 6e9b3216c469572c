"""From what a program asks to the request that is sent, and from the answer back to the type that was asked for."""

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from sabot.errors import UserError
from sabot.llm.errors import MalformedAnswer
from sabot.llm.messages import messages_of
from sabot.llm.results import Completion
from sabot.llm.schema import Mismatch, Schema
from sabot.llm.spec import RequestSpec
from sabot.llm.tools import Tool

__all__ = ["request_of", "with_output"]

_FIELDS = frozenset(RequestSpec.__struct_fields__) - {"messages", "output"}
_SHOWN_CHARACTERS = 2000  # of an answer, in an error


def request_of(prompt: Any, output: Any, fields: Mapping[str, Any]) -> tuple[RequestSpec, Schema | None]:
    """prompt: a text, a ChatMessage, a list of them, or a RequestSpec. output: what the answer is to be (`Schema`), or None. fields: of the
    RequestSpec, in place of what it has; `tools` may be tools. Raises UserError.
    """
    schema = None if output is None else _schema(output)
    if schema is not None:
        fields = {"output_name": schema.name, **fields, "output": schema.json}
    if unknown := fields.keys() - _FIELDS - {"output"}:
        raise UserError(f"{sorted(unknown)[0]!r} is no field of a request", hint=", ".join(sorted(_FIELDS)))
    if "tools" in fields:
        tools = tuple(each.schema if isinstance(each, Tool) else each for each in fields["tools"])
        fields = {**fields, "tools": tools}
    if isinstance(fields.get("stop"), list):
        fields = {**fields, "stop": tuple(fields["stop"])}
    if isinstance(prompt, RequestSpec):
        return (msgspec.structs.replace(prompt, **fields) if fields else prompt), schema
    return RequestSpec(messages=messages_of(prompt), **fields), schema


def with_output(answer: Completion, schema: Schema | None) -> Completion:
    """The answer with its `output`, unless it calls tools. Raises MalformedAnswer where it does not match."""
    if schema is None or answer.tool_calls:
        return answer
    where: dict[str, Any] = {"provider": answer.provider, "model": answer.model, "request_id": answer.request_id}
    try:
        return msgspec.structs.replace(answer, output=schema.decode(answer.content))
    except Mismatch as error:
        cut = "was cut off at max_tokens" if answer.finish_reason == "length" else "does not match"
        text = answer.content[:_SHOWN_CHARACTERS]
        raise MalformedAnswer(f"the answer {cut}: {error}", text=text, **where) from error


def _schema(output: Any) -> Schema:
    """Schemas of types are kept: making one takes longer than all else that an engine does for a call."""
    if isinstance(output, Schema):
        return output
    if isinstance(output, Mapping):
        columns = tuple(output.items())
        return _of_columns(columns) if all(isinstance(kind, str) for _, kind in columns) else Schema(output)
    return _of_type(output) if isinstance(output, Hashable) else Schema(output)


_of_type = lru_cache(128, typed=True)(Schema)


@lru_cache(128)
def _of_columns(columns: tuple[tuple[str, Any], ...]) -> Schema:
    return Schema(dict(columns))
