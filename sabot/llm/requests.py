"""Converts a prompt with its fields into a request, and the text of an answer into the output type of the caller."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from sabot.base.checks import Of, Whole, check, is_number
from sabot.engine.calls.decoded import with_form
from sabot.engine.calls.errors import ContentFiltered, MalformedAnswer, ModelError
from sabot.engine.calls.messages import messages_of
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.schema import Mismatch, Schema
from sabot.errors import UserError, short_repr
from sabot.llm.results import Completion

_FIELDS = frozenset(RequestSpec.__struct_fields__) - {"messages", "output"}
_NOT_OPTIONS = {
    "max_tokens": "max_tokens=",
    "messages": "the prompt has all messages",
    "model": "model=",
    # OpenAI's chat completions, and servers and proxies with the same API
    "best_of": "one request has one answer: complete_many([prompt, prompt])",
    "max_completion_tokens": "max_tokens=",
    "models": "fallback= of the engine",
    "n": "one request has one answer: complete_many([prompt, prompt])",
    "n_predict": "max_tokens=",
    # OpenAI's responses
    "conversation": "the prompt has all messages",
    "input": "the prompt has all messages",
    "instructions": "a message system(…)",
    "max_output_tokens": "max_tokens=",
    "previous_response_id": "the prompt has all messages",
    "prompt": "the prompt has all messages",
    # Anthropic
    "system": "a message system(…)",
}
"""Names that are refused in `options`, because policies and budgets judge their values, with the argument to use in
place of each. Names are compared in lower case, because some servers ignore case.
"""

WHOLE_OUTPUT = "a part of an answer has no type: leave output= out, or allow_cut"

_HINTS = {
    "length": "give a higher max_tokens=; or shorten the prompt, if the context window of the model is full",
    "pause_turn": "send answer.message back after the other messages, and the model goes on",
}
_SHOWN_CHARACTERS = 2000  # of an answer, in `MalformedAnswer.text`


def request_of(prompt: Any, output: Any, fields: Mapping[str, Any]) -> tuple[RequestSpec, Schema | None]:
    """Returns the request for a prompt, and the schema of its output, which is None for text.

    - `prompt`: a text, a ChatMessage, a list of them, or a RequestSpec.
    - `output`: the type of the answer (see `Schema`), or None for text.
    - `fields`: fields of the RequestSpec. If `prompt` is a RequestSpec, they replace its fields. The field `tools` may
      contain Tools.

    Raises UserError for fields that are not valid, and for `options` that policies and budgets could not check.
    """
    schema = None if output is None else _schema(output)
    if schema is not None:
        fields = {"output_name": schema.name, **fields, "output": schema.json}
    if unknown := fields.keys() - _FIELDS - {"output"}:
        raise UserError(f"{sorted(unknown)[0]!r} is no field of a request", hint=", ".join(sorted(_FIELDS)))
    if "tools" in fields:
        tools = tuple(getattr(each, "schema", each) for each in fields["tools"])  # a Tool has a ToolSchema
        fields = {**fields, "tools": tools}
    if isinstance(fields.get("stop"), list):
        fields = {**fields, "stop": tuple(fields["stop"])}
    if isinstance(prompt, RequestSpec):
        spec = msgspec.structs.replace(prompt, **fields) if fields else prompt
    else:
        spec = RequestSpec(messages=messages_of(prompt), **fields)
    check_request(spec)
    return spec, schema


def check_request(spec: RequestSpec) -> None:
    """Raises UserError for values that no request can have (a negative `max_tokens`, say, would increase a budget), and for
    `options` that policies and budgets could not check.
    """
    check("a request: model", spec.model, Of(str, "its name"))
    if spec.max_tokens is not None:
        check("a request: max_tokens", spec.max_tokens, Whole(1))
    if spec.seed is not None:
        check("a request: seed", spec.seed, Whole(-(2**63), 2**63 - 1))
    for name in ("temperature", "top_p"):
        value = getattr(spec, name)
        if value is not None and not (is_number(value) and 0 <= value < math.inf):
            raise UserError(f"a request: {name}={short_repr(value)}", hint="a number from 0 up, or None")
    for name in spec.options or ():
        meant = _NOT_OPTIONS.get(str(name).lower())
        if meant is not None:
            raise UserError(f"options={{{name!r}: …}}: policies and budgets would not see it", hint=meant)


def words_of_end(answer: Completion, max_tokens: int | None = None) -> str:
    """Returns why an answer is not what the model wanted to say, or "" if it is. `max_tokens`: that of the request."""
    reason = answer.finish_reason
    if reason == "content_filter":
        text = answer.content[:_SHOWN_CHARACTERS]
        words = f", or the model has refused: {text}" if text.strip() else ""
        return f"a filter of the provider held the answer back{words}"
    if reason == "length":
        return f"the answer was cut off at max_tokens{'' if max_tokens is None else f'={max_tokens}'}"
    if answer.tool_calls:
        return ""
    if reason == "pause_turn":
        return "the vendor has paused the answer, which is not complete"
    if reason != "stop" and not answer.content.strip():
        return f"the answer is empty, and has ended with {reason!r}"
    return ""


def error_of_end(answer: Completion, max_tokens: int | None = None) -> ModelError | None:
    """Returns the error of an answer that is not what the model wanted to say: ContentFiltered if a filter held it back
    or the model refused to answer; MalformedAnswer if it was cut off, if the vendor has paused it, or if it is empty
    and did not end with "stop". Returns None for any other answer. `max_tokens`: that of the request, for the message.
    """
    words, reason = words_of_end(answer, max_tokens), answer.finish_reason
    if not words:
        return None
    where: dict[str, Any] = {"provider": answer.provider, "model": answer.model, "request_id": answer.request_id}
    if reason == "content_filter":
        return ContentFiltered(words, **where)
    return MalformedAnswer(words, text=answer.content[:_SHOWN_CHARACTERS], hint=_HINTS.get(reason, ""), **where)


def with_output(answer: Completion, schema: Schema | None, *, looks_at_end: bool = True) -> Completion:
    """Decodes the text of an answer by the schema, and returns a copy of the answer with the decoded value as its
    `output`. Returns the answer itself if `schema` is None or if the answer calls tools. Raises MalformedAnswer if the
    text does not match the schema or was cut off, and ContentFiltered if the model has refused to answer.
    `looks_at_end`: False to decode the text of such answers too. `answer.output`: what a journal has of the value that was
    decoded first (`calls.decoded`), or None.
    """
    if schema is None or answer.tool_calls:
        return answer
    if looks_at_end and (wrong := error_of_end(answer)) is not None:
        raise wrong
    where: dict[str, Any] = {"provider": answer.provider, "model": answer.model, "request_id": answer.request_id}
    try:
        value = schema.decode(answer.content)
        if answer.output is not None:  # of a journal
            value = with_form(value, answer.output)
        return msgspec.structs.replace(answer, output=value)
    except Mismatch as error:
        text = answer.content[:_SHOWN_CHARACTERS]
        raise MalformedAnswer(f"the answer does not match: {error}", text=text, **where) from error


def declared_schema(spec: RequestSpec) -> Schema | None:
    """Returns the schema of the `output` of a request: that of the type for which it was made in this process, if that is
    known, because a type may want more than its JSON schema tells. Returns None for text.
    """
    if spec.output is None:
        return None
    return known_schema(spec) or Schema(spec.output)


def known_schema(spec: RequestSpec) -> Schema | None:
    """Returns the schema of the type for which the `output` of a request was made in this process, or None."""
    return None if spec.output is None else _DECLARED.get(_key_of(spec.output_name, spec.output))


_DECLARED: WeakValueDictionary[tuple[str, bytes], Schema] = WeakValueDictionary()


def _key_of(name: str, schema: Any) -> tuple[str, bytes]:
    return name, msgspec.json.encode(schema)


def _schema(output: Any) -> Schema:
    """Returns the schema of an output. Schemas are cached, because making one takes longer than the rest of a call."""
    if isinstance(output, Schema):
        return output
    if isinstance(output, Mapping):
        columns = tuple(output.items())
        return _of_columns(columns) if all(isinstance(kind, str) for _, kind in columns) else Schema(output)
    try:
        return _of_type(output)
    except TypeError:  # it has no hash, as an `Annotated` with a field of pydantic
        return _made(output)


def _made(output: Any) -> Schema:
    schema = Schema(output)
    _DECLARED[_key_of(schema.name, schema.json)] = schema
    return schema


_of_type = lru_cache(128, typed=True)(_made)


@lru_cache(128)
def _of_columns(columns: tuple[tuple[str, Any], ...]) -> Schema:
    return Schema(dict(columns))
