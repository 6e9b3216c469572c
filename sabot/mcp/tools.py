"""The tools of MCP servers as tools of Sabot, and the answers to the questions of these servers.

A call of a tool is one effect of an agent. If the server asks something before it answers, there are three effects: the
call up to the question; the question, which a person or a model answers; and the rest of the call with the answer. So
the journal of a durable agent has each of them, even if a person takes days to answer.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from sabot.base.config import Secret
from sabot.engine.calls.effects import RULES, EffectClass, effect_class
from sabot.engine.calls.errors import BudgetExceeded, ModelError, TurnLimitExceeded
from sabot.engine.calls.messages import ChatMessage, Image, Part, Text, system
from sabot.engine.calls.model_requests import RequestSpec, present_context
from sabot.engine.calls.names import note_tool
from sabot.engine.calls.options import Retry
from sabot.engine.calls.tools import UNTRUSTED, InDoubt, Tool, ToolCaller, as_tool
from sabot.errors import EffectError, UserError, short_repr
from sabot.llm.direct import DirectCaller, DirectTools
from sabot.llm.requests import words_of_end
from sabot.mcp.config import McpConfig, SessionKey
from sabot.mcp.elicitation import fault_of_reply, reply_of, shown_question
from sabot.mcp.errors import McpConnectionLost, McpRefused, McpTimeout
from sabot.mcp.offers import Offer, OfferedArguments, mismatch_with
from sabot.mcp.results import McpResult

if TYPE_CHECKING:
    from sabot.llm.engine import ExecutionEngine
    from sabot.mcp.connection import OnProgress

Ask = Callable[[str, Mapping[str, Any], float], Awaitable[Mapping[str, Any] | None]]
"""A coroutine function that asks a person. It is called with the kind of the question, its payload, and the seconds to
wait. It returns the answer as a dict, or None if there is none."""

_ANSWERS, _STATE = "$answers", "$state"  # additional arguments of all steps but the first
_ANSWERED_WRONG = 3  # how often a person is asked until an answer matches the server's schema
_HOTTEST = 2  # the highest temperature that vendors accept
_REFUSED = -1  # the code of MCP for a request that the user declines


CallStep = Callable[[SessionKey, str, Mapping[str, Any], Mapping[str, Any]], Awaitable[McpResult]]
"""The type of `McpServerPool._step`."""


class RemoteTool:
    """A tool of a server, as an object that can be called. A call uses the server's session for the tenant and the user
    of the caller. If the caller has none, it uses the session `key`. `of_server`: the names of the server and of its tool.
    `expects`: as in `McpConnection.call`.
    """

    def __init__(
        self,
        step: CallStep,
        forget: Callable[[SessionKey, str], None],
        key: SessionKey,
        name: str,
        expects: str,
        timeout_s: float | None,
        questions: "ServerQuestions",
        progress: "OnProgress | None" = None,
    ) -> None:
        self.__name__ = name
        self.of_server, self.expects = (key.server, name), expects
        self._step = step
        self._forget = forget
        self._key = key
        self._name = name
        self._options: dict[str, Any] = {"expects": expects, "timeout_s": timeout_s, "progress": progress}
        self._questions = questions
        self._lost = set[str]()  # states of calls of which a person was asked whether they were done

    # A tool may have a parameter of any name, also `self`: ours are positional only.
    async def __call__(self, /, **arguments: Any) -> McpResult:
        """Calls the tool for a caller that is not an agent, and returns its answer. Raises McpError."""
        context = present_context()
        site = DirectCaller(DirectTools(context), context)

        async def make(given: Mapping[str, Any], goes_on: bool) -> Any:
            return await self._once(self._key, False, goes_on, given, **given)

        return await self._talk(site, self._key, make, arguments, McpResult())

    async def converse(self, tool: Tool, site: ToolCaller, arguments: Mapping[str, Any]) -> McpResult:
        """Makes the call for an agent, and returns the result. If the server asks a question first, a person or a model
        is asked, and the call is repeated with the answer. If nobody can answer the question, the server gets an error
        as its answer.

        `site`: the object that makes each step of the call an effect of the agent. Raises McpError, or the error that
        `site.make` raises in place of it. If the server asks too often, this is McpRefused.
        """
        key = replace(self._key, scope=site.scope or self._key.scope, principal=site.principal or self._key.principal)
        repeatable = RULES[tool.effect].repeatable

        async def make(given: Mapping[str, Any], goes_on: bool) -> Any:
            step = replace(tool, func=partial(self._once, key, repeatable, goes_on, given), converse=None)
            return await site.make(step, given)

        known = "is assumed to be done" if tool.in_doubt == "assume_done" else "was done, as a person has confirmed"
        unknown = McpResult.from_person(f"The call {known}. Its result is not known. Do not make the call again.")
        return await self._talk(site, key, make, arguments, unknown)

    async def _talk(
        self,
        site: ToolCaller,
        key: SessionKey,
        make: Callable[[Mapping[str, Any], bool], Awaitable[Any]],
        arguments: Mapping[str, Any],
        unknown: McpResult,
    ) -> McpResult:
        """Makes the steps of a call, and returns its result. `make`: makes one step. It is called with the arguments of
        the tool and those of the step, and True if the step goes on with answers. `unknown`: the result of a call that
        was done, and whose result nobody knows.
        """
        given: dict[str, Any] = {}
        answered: list[tuple[Any, Any]] = []  # the questions of this call, each with its answer
        earlier: list[tuple[Any, Any]] = []  # … of the call that had to begin anew
        for _ in range(self._questions.most + 1):
            if clash := given.keys() & arguments.keys():
                named = ", ".join(sorted(clash))
                raise McpRefused(
                    key.server, f"{self._name} asks, and the answer cannot be sent beside its parameter {named}"
                )
            said = await make({**arguments, **given}, bool(given))
            if said is None:
                return unknown
            result = said if isinstance(said, McpResult) else msgspec.convert(said, McpResult)
            arguments = {**arguments, **result.changed}  # what a person has changed holds for all steps
            if result.restart and not result.questions:
                given, earlier, answered = {}, earlier + answered, []
                continue
            if not result.questions:
                return result
            answers: dict[str, Any] = {}
            try:
                for name, question in result.questions.items():
                    known = next((each for each in earlier if each[0] == question), None)
                    if known is None:
                        known = question, await self._questions.answer(site, key.server, self._name, question)
                    else:
                        earlier.remove(known)  # a server that asks the same once more wants another answer
                    answered.append(known)
                    answers[name] = known[1]
            except (Exception, asyncio.CancelledError):  # not if a durable job is parked: it goes on later
                self._forget(key, result.state)
                raise
            given = {_ANSWERS: answers, _STATE: result.state}
            if result.restart:
                if any(each.get("result", {}).get("action") != "accept" for each in answers.values()):
                    raise McpRefused(key.server, f"{self._name} was not done: nobody visits the address that it names")
                given, answered = {}, []
        raise McpRefused(key.server, f"{self._name} asked more than {self._questions.most} times")

    async def _once(
        self, key: SessionKey, repeatable: bool, goes_on: bool, asked: Mapping[str, Any], /, **arguments: Any
    ) -> McpResult:
        """Makes one step of a call. `repeatable`: True if it does no harm to make the call twice. `goes_on`: True if the
        step has answers to questions of the server. `asked`: the arguments that the agent has given; `arguments` are
        those that the policy and a person have made of them.
        """
        more: dict[str, Any] = {}
        if goes_on:  # else arguments with these names are the tool's own: no model can make up an answer of a person
            state = arguments.pop(_STATE)
            more = {"answers": arguments.pop(_ANSWERS), "state": state, "may_repeat": repeatable or state in self._lost}
        try:
            result = await self._step(key, self._name, arguments, self._options | more)
        except (McpConnectionLost, McpTimeout):
            # If this step is made once more, a person has said that the call was not done: then it may begin anew.
            if more:
                self._lost.add(more["state"])
            raise
        if not result.questions and not result.restart:
            return result
        given = {name: _named(asked.get(name), each) for name, each in arguments.items()}
        changed = {name: each for name, each in given.items() if name not in asked or each != asked[name]}
        return msgspec.structs.replace(result, changed=changed)


def _named(asked: Any, value: Any) -> Any:
    """Returns the value with the names of the secrets in place of their texts, for the journal. `asked`: the value as the
    agent has given it, with these names.
    """
    if isinstance(asked, Secret):
        return asked if value == asked.read() else value
    if isinstance(asked, Mapping) and isinstance(value, Mapping):
        return {name: _named(asked.get(name), each) for name, each in value.items()}
    if isinstance(asked, list | tuple) and isinstance(value, list | tuple) and len(asked) == len(value):
        return [*map(_named, asked, value)]
    return value


# -- questions --------------------------------------------------------------------------------------------------------


class ServerQuestions:
    """The part of a pool that gets answers to questions of servers, from a person or from a model. `most`: the most
    questions that a server may ask in one call.
    """

    def __init__(self, config: McpConfig, sampling: "ExecutionEngine | None", ask: Ask | None) -> None:
        self.most = config.max_questions
        self._tokens = config.max_sampling_tokens
        self._timeout_s = config.seconds("question_timeout")
        self._sampling = sampling
        self._ask = ask

    async def answer(self, site: ToolCaller, server: str, tool: str, question: Mapping[str, Any]) -> dict[str, Any]:
        """Asks a person or a model a question of a server, and returns the answer as a dict with the key "result" or
        "error". Such answers can be passed to `McpConnection.call`.

        `site`: the object that makes the question an effect of the agent that calls the tool. `server`, `tool`: their
        names, which the person sees. `question`: a dict with "method" and "params".
        """
        method, params = question["method"], question["params"]
        if method == "sampling/createMessage":
            return {"method": method, **await self._sampled(site, params)}
        if method == "elicitation/create":
            return {"method": method, "result": await self._elicited(site, server, tool, params)}
        return {"method": method, "error": {"code": -32601, "message": "nobody answers this"}}

    async def _sampled(self, site: ToolCaller, params: Mapping[str, Any]) -> dict[str, Any]:
        if self._sampling is None:
            return _refusal("no model answers servers: McpServerPool(sampling=engine) lets one")
        try:
            said = await site.complete(self._sampling, _request_of(params, self._tokens))
        except (ModelError, BudgetExceeded, TurnLimitExceeded, EffectError, UserError) as error:
            return _refusal(error.message)
        if said.finish_reason == "content_filter":
            return _refusal(words_of_end(said))
        stopped = "maxTokens" if said.finish_reason == "length" else "endTurn"
        text = {"type": "text", "text": said.content}
        return {"result": {"role": "assistant", "content": text, "model": said.model or "model", "stopReason": stopped}}

    async def _elicited(self, site: ToolCaller, server: str, tool: str, params: Mapping[str, Any]) -> dict[str, Any]:
        payload = shown_question(server, tool, params)
        schema = payload.get("schema")
        for _ in range(_ANSWERED_WRONG):
            kind = "confirm" if schema is None else "input"
            reply = await site.ask(kind, payload, self._timeout_s)
            if reply is None and self._ask is not None:
                said = await self._ask(kind, payload, self._timeout_s)
                reply = ("resolved", said) if said is not None else None
            if reply is None or reply[0] != "resolved":
                return {"action": "cancel"}
            found, wrong = reply_of(reply[1], schema), fault_of_reply(reply[1], schema)
            if schema is None:
                return {"action": "cancel"} if wrong else found
            if not wrong and found.get("action") != "accept":
                return found
            wrong = wrong or mismatch_with(found["content"], schema)
            if not wrong:
                return found
            payload = {**payload, "wrong": wrong}
        return {"action": "cancel"}


def _refusal(words: str) -> dict[str, dict[str, int | str]]:
    return {"error": {"code": _REFUSED, "message": words[:500]}}


def _request_of(params: Mapping[str, Any], most_tokens: int) -> RequestSpec:
    """Converts a server's request for an answer of a model (sampling) into a RequestSpec. `params`: the request. The
    model that the server prefers is ignored; the engine's own model is used. `most_tokens`: the most tokens of the
    answer. Raises UserError for a request that is not valid.
    """
    messages = [_message_of(each) for each in params.get("messages", ())]
    prompt, tokens, heat = params.get("systemPrompt"), params.get("maxTokens", most_tokens), params.get("temperature")
    if not messages:
        raise UserError("a model is not asked without a message")
    if tokens < 1:
        raise UserError(f"a model is not asked for {tokens} tokens")
    if heat is not None and not 0 <= heat <= _HOTTEST:
        raise UserError(f"a model is not asked at temperature {heat:g}")
    return RequestSpec(
        messages=tuple([system(prompt), *messages] if prompt else messages),
        max_tokens=min(int(tokens), most_tokens),
        temperature=heat,
        stop=tuple(params.get("stopSequences") or ()),
    )


def _message_of(message: Mapping[str, Any]) -> ChatMessage:
    blocks = message["content"] if isinstance(message["content"], list) else [message["content"]]
    parts: list[Part] = []
    for block in blocks:
        if block.get("type") == "text":
            parts.append(Text(block["text"]))
        elif block.get("type") == "image" and message["role"] == "user":
            try:
                data = base64.b64decode(block["data"], validate=True)
            except binascii.Error as error:
                raise UserError("an image that is not in base64") from error
            parts.append(Image(data=data, media_type=block["mimeType"]))
        else:
            raise UserError(f"a model is not asked with {short_repr(block.get('type'))}")
    if all(isinstance(each, Text) for each in parts):
        return ChatMessage(message["role"], "".join(each.text for each in parts if isinstance(each, Text)))
    return ChatMessage(message["role"], tuple(parts))


# -- tools ------------------------------------------------------------------------------------------------------------


def checked_effects(
    server: str, effects: str | Mapping[str, str] | None, offers: Mapping[str, Offer]
) -> dict[str, str]:
    """Returns the effect classes that the user has given, by the names of the tools. Tools without such a class are not
    in the dict.

    `effects`: a class for all tools, or classes by name, with "*" for all others. `offers`: the tools of the server.
    Raises UserError for an unknown class, an unknown tool, and the class "reconcilable".
    """
    said = {"*": effects} if isinstance(effects, str) else dict(effects or {})
    if unknown := sorted(said.keys() - offers.keys() - {"*"}):
        raise UserError(
            f"MCP server {server}: effects= names {', '.join(unknown)}, which it does not offer",
            hint=f"it offers {', '.join(sorted(offers)) or 'none'}",
        )
    for name, word in said.items():
        if effect_class(word) is EffectClass.RECONCILABLE:
            raise UserError(
                f"MCP server {server}: effects={{{name!r}: {word!r}}}",
                hint="a tool of yours around it can be reconcilable: @tool(reconcile=…)",
            )
    return {name: said.get(name, said.get("*", "")) for name in offers if name in said or "*" in said}


def tool_of(
    offer: Offer,
    remote: RemoteTool,
    *,
    effect: str,
    trust_annotations: bool,
    in_doubt: InDoubt,
    timeout_s: float | None,
    retries: int | None,
    labels: Collection[str],
    name: str,
    other_names: tuple[str, ...],
) -> Tool:
    """Returns the offered tool as a Tool for agents.

    - `offer`: the tool that the server offers. `remote`: the object that calls it.
    - `effect`: the effect class that the user has declared, or "" for none. Then it is the class that the server's
      hints propose if `trust_annotations` is True, else "unsafe".
    - `in_doubt`, `labels`: as in the decorator `tool`. The label "untrusted" is added,
      unless the server says that the tool has no access to the open world.
    - `timeout_s`: the time limit of one attempt in seconds.
    - `retries`: how often a failed call is repeated. If None, once if the effect class allows it, else never.
    - `name`: the name for models (`offers.names_of`). `other_names`: those of `offers.other_names_of`.
    """
    by_hint = trust_annotations and not effect
    kind = offer.proposed if by_hint else effect_class(effect or "unsafe")
    world = frozenset[str]() if offer.open_world is False else frozenset({UNTRUSTED})
    made = Tool(
        remote,
        name,
        kind,
        None,
        in_doubt if kind is EffectClass.UNSAFE else "ask",
        timeout_s,
        Retry(int(RULES[kind].repeatable) if retries is None else retries),
        False,
        True,
        retries is not None,
        frozenset(labels) | world,
        OfferedArguments(name, offer.description, offer.schema, offer.output, remote.of_server[0]),
        remote.converse,
    )
    made = as_tool(made, effect=kind)
    made = replace(made, by_hint=by_hint and kind is not EffectClass.UNSAFE, other_names=other_names)
    note_tool(made)
    return made
