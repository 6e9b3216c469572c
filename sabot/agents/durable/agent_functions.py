"""The function of a durable agent that runs a `sabot.llm.Agent` for each record. `app.llm_agent` uses it.

With `session=True` each key has one conversation over all its records. The conversation is part of the keyed state, and
is written when a job succeeds.
"""

import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

import msgspec

from sabot.agents.durable.context import DurableContext
from sabot.base.arrays import dumped_model, typed_fields
from sabot.base.checks import check_called
from sabot.engine.calls.judging import RefusingJudge, with_judge
from sabot.engine.calls.schema import Mismatch
from sabot.errors import DataError, UserError, message_of, short_repr
from sabot.jobs.values import in_order, plain_in_order
from sabot.llm.agent import Agent, AgentResult
from sabot.llm.columns import FINISH_REASON
from sabot.llm.conversation import Conversation

_SESSION = "conversation"
_BRACES = "{text} is a field; {{ and }} are braces"


def agent_function(
    agent: Agent,
    *,
    prompt: str | Callable[[Any], object] | None,
    reply: Callable[[Any, AgentResult], Any] | None,
    session: bool,
    typed: bool = False,
) -> Callable[[DurableContext], Any]:
    """Returns the function of a durable agent that runs `agent` for each record. Raises UserError if `prompt` or
    `reply` is an async function.

    - `prompt`: a template such as "Summarize: {text}", which is filled with the fields of the record, or a function
      that gets the record's decoded value and returns the prompt. With None the prompt is the value itself if it is a
      text, and otherwise its field "prompt", "text" or "question".
    - `reply`: a function that gets the record's decoded value and the AgentResult, and returns the result of the
      durable agent. With None the result is the output of `agent`.
    - `session`: True if all records with the same key belong to one conversation, which is kept in the state of the
      key. With False each record begins a new conversation.
    - `typed`: True if the dates, bytes and Decimals of an output are to keep their types, for a sink whose format has
      them. With False they become text, as in JSON.
    """
    check_called(f"agent {agent.name!r}", prompt=prompt, reply=reply)

    async def run(ctx: DurableContext) -> Any:
        message = ctx.message
        said = _prompt_of(message, prompt)
        state = ctx.state() if session else None
        kept = None if state is None else await state.get(_SESSION)
        conversation = Conversation() if kept is None else Conversation.from_bytes(kept)
        result = await agent.run(said, conversation=conversation, effects=ctx.llm(agent.engine))
        if state is not None:
            await state.put(_SESSION, conversation.to_bytes())
        if reply is not None:
            return reply(message, result)
        if agent.output is None:
            marks = {FINISH_REASON: result.finish_reason} if agent.allow_cut else {}
            return {"content": result.content, **marks}
        return plain_output(result.output, typed=typed)

    run.__name__ = run.__qualname__ = agent.name
    return run


def check_template(prompt: str, where: str) -> None:
    """Raises UserError if no record can fill the template `prompt`, because a brace is not closed, or because the
    text in braces is no name of a field, as in '{"a": 1}'. `where` names the owner of the template in the error
    message.
    """
    try:
        fields = [field for _, field, _, _ in Formatter().parse(prompt) if field is not None]
        wrong = next((field for field in fields if not re.match(r"\w+", field)), None)
    except ValueError as error:
        raise UserError(f"{where}: the prompt {short_repr(prompt)}: {error}", hint=_BRACES) from error
    if wrong is not None:
        raise UserError(
            f"{where}: the prompt {short_repr(prompt)}: {{{wrong}}} is not a field of a record", hint=_BRACES
        )


def _prompt_of(message: Any, prompt: str | Callable[[Any], object] | None) -> object:
    if callable(prompt):
        return prompt(message)
    if prompt is not None:
        try:
            return prompt.format_map(message) if isinstance(message, Mapping) else prompt.format(message)
        except (KeyError, IndexError, AttributeError) as error:
            raise DataError(f"the prompt {short_repr(prompt)} needs {error}, which the record does not have") from error
    if isinstance(message, str):
        return message
    if isinstance(message, Mapping):
        for field in ("prompt", "text", "question"):
            if isinstance(message.get(field), str):
                return message[field]
    raise DataError('a record is not a prompt: it is not a text, and has no field "prompt", "text" or "question"')


def sample_of(agent: Agent, *, typed: bool) -> tuple[Any, str] | None:
    """Returns a value as the durable agent emits them, and the name of its type (`AgentSpec.sample`); None if only an
    answer of the model can show one. `typed`: as in `agent_function`.

    Raises UserError for a type whose values cannot be written at all.
    """
    output = agent.output
    if output is None:
        return {"content": "", **({FINISH_REASON: "stop"} if agent.allow_cut else {})}, "None"
    refused: list[str] = []

    def refuse(said: str, fix: str) -> UserError:
        refused.append(said)
        return UserError(f"agent {agent.name}: the type {output.name} {said}", hint=fix)

    try:
        # validators and serializers are code of the user: an example that nobody has answered must call no tool or model
        value = with_judge(lambda: plain_output(output.example(), typed=typed), RefusingJudge(refuse))()
        return None if value is None or refused else (value, output.name)
    except Mismatch:  # the type has conditions that its schema does not tell
        return None
    except Exception as error:
        if refused:
            return None
        if isinstance(error, DataError):
            said = f"agent {agent.name}: {error.message}"
            raise UserError(said, hint="reply= makes of each answer what can be written") from error
        raise


def plain_output(output: Any, *, typed: bool) -> Any:
    """Converts the typed output of an agent run to plain Python values, in the same way in every process. `typed`: as in
    `agent_function`. Raises DataError if the user's type does not allow it, such as a model with a serializer that
    fails.
    """
    try:
        if typed:
            return typed_fields(in_order(dumped_model(output, "python")))
        return msgspec.to_builtins(in_order(output), enc_hook=plain_in_order)
    except Exception as error:  # a serializer is code of the user
        kind = type(output).__qualname__
        raise DataError(f"the output of type {kind} cannot be written: {message_of(error)}") from error
