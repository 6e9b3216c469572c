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
from sabot.base.checks import check_called
from sabot.errors import DataError, UserError, short_repr
from sabot.llm.agent import Agent, AgentResult
from sabot.llm.conversation import Conversation

_SESSION = "conversation"
_BRACES = "{text} is a field; {{ and }} are braces"


def agent_function(
    agent: Agent,
    *,
    prompt: str | Callable[[Any], object] | None,
    reply: Callable[[Any, AgentResult], Any] | None,
    session: bool,
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
        return _plain(result) if reply is None else reply(message, result)

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


def _plain(result: AgentResult) -> Any:
    """Converts the result of an agent run to the result of the durable agent, if the user has given no `reply`
    function. This is the typed output as plain Python data, or {"content": text} if the agent has no output type.
    """
    return {"content": result.content} if result.output is None else msgspec.to_builtins(result.output)
