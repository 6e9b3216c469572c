"""The questions of MCP servers to people (elicitation): what a person is shown, and which answers fit."""

from collections.abc import Mapping
from typing import Any

from sabot.engine.calls.model_requests import JsonSchema
from sabot.errors import UserError, short_repr
from sabot.mcp.offers import clean, mismatch_with

_MARKS = {"server", "tool", "message"}  # the fields of every such question
_WORDS = ("accept", "decline", "cancel")


def shown_question(server: str, tool: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the payload of the question that a person is asked. It has either the field "schema", the JSON schema of
    the fields that the server asks for, or the field "url", an address that the person should visit. `server`, `tool`:
    their names. `params`: the parameters of the server's request.
    """
    payload: dict[str, Any] = {"server": server, "tool": tool, "message": clean(str(params.get("message", "")), 4000)}
    schema = params.get("requestedSchema")
    if params.get("mode") == "url" or schema is None:
        return {**payload, "url": clean(str(params.get("url", "")), 2000)}
    return {**payload, "schema": schema}


def reply_of(said: Mapping[str, Any], schema: JsonSchema | None) -> dict[str, Any]:
    """Converts a person's answer to a question of a server into the form that MCP defines. `schema`: the schema of the
    fields that the server has asked for; None if it has asked for none. `said`: the person's answer, in one of these
    forms:

    - {"approved": false} or {"action": "decline"}: the person declines.
    - The fields that the server has asked for, or {"content": fields}.
    - {"answer": value}, if the server has asked for a single field.
    """
    if said.get("action") in ("decline", "cancel"):
        return {"action": said["action"]}
    if said.get("approved") is False:
        return {"action": "decline"}
    if schema is None:
        return {"action": "accept"}
    fields = list(schema.get("properties", {}))
    content = said.get("content")
    if not isinstance(content, Mapping):
        content = {name: value for name, value in said.items() if name in fields or name not in ("approved", "action")}
    if len(fields) == 1 and list(content) == ["answer"]:
        content = {fields[0]: content["answer"]}
    return {"action": "accept", "content": dict(content)}


def fault_of_reply(said: Mapping[str, Any], schema: JsonSchema | None) -> str:
    """Returns why nobody knows whether a person's answer accepts a question of a server, or declines it; "" if it is clear.
    A form without required fields would take `{"action": "reject"}` for one that is sent empty. `schema`: as in `reply_of`.
    """
    fields = {} if schema is None else schema.get("properties", {})
    action = None if "action" in fields else said.get("action")
    approved = None if "approved" in fields else said.get("approved")
    if action is not None and action not in _WORDS:
        return f"action={short_repr(action)} is none of {', '.join(_WORDS)}"
    if approved is not None and not isinstance(approved, bool):
        return f"approved={short_repr(approved)} is neither true nor false"
    if action is not None and approved is not None and approved is not (action == "accept"):
        return f"action={short_repr(action)} and approved={approved} say two things"
    return ""


def check_reply(payload: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Checks a person's answer to a question. Does nothing if `payload`, the fields of the question, is not that of a
    question of a server. Raises UserError if the answer does not fit.
    """
    if not payload.keys() >= _MARKS or not payload.keys() & {"schema", "url"}:
        return
    schema, decline = payload.get("schema"), '{"approved": false} declines'
    asks = f"server {payload['server']} asks for"
    form = dict(schema) if isinstance(schema, Mapping) else None
    fault = fault_of_reply(said, form)
    if form is None and said.get("approved") is None and said.get("action") is None:
        fault = f"{short_repr(dict(said))} does not say it"
    if fault:
        raise UserError(
            f"{asks} {'a yes or no' if form is None else 'fields'}: {fault}",
            hint='{"approved": true}, or {"approved": false}'
            if form is None
            else f"an object with its fields; {decline}",
        )
    if form is None:
        return
    found = reply_of(said, form)
    if found["action"] != "accept":
        return
    fields, content = list(form.get("properties", {})), found["content"]
    unknown = [name for name in content if name not in fields]
    wrong = f"{unknown[0]!r} is none of them" if fields and unknown else mismatch_with(content, form)
    if wrong:
        raise UserError(
            f"{asks} the fields {', '.join(fields) or 'of its schema'}: {wrong}",
            hint=f"an object with these fields; {decline}",
        )
