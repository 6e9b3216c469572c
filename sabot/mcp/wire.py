"""Translations between the SDK and Sabot: the SDK's models into JSON, and its errors into errors that tell whether the
server has done a call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import mcp.types as types
import msgspec
from mcp import MCPError
from pydantic import BaseModel, TypeAdapter, ValidationError

from sabot.errors import SabotError, message_of
from sabot.mcp.config import McpConfig
from sabot.mcp.errors import (
    McpError,
    McpInvalidAnswer,
    McpInvalidArguments,
    McpRefused,
    McpResultTooLarge,
    McpUnavailable,
)
from sabot.mcp.transport import ITEMS, LOST, NOT_SENT, SESSION_OVER, TOO_LARGE

CLOSED = -32000
"""The SDK's code for a session that has ended. Servers also use it for errors of their own."""

_PAGES = 100  # the most pages of one list
_PIECE = 50  # items that are handled before the event loop gets a turn: some milliseconds
_MOST_WORDS = 1000  # the most characters of a server's message that an error shows
_BLOCK: TypeAdapter[BaseModel] = TypeAdapter(types.ContentBlock)
_ANSWERS = {"elicitation/create": types.ElicitResult, "sampling/createMessage": types.CreateMessageResult}
_OF_TOOLS = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")  # other fields may be ill

T = TypeVar("T")


def as_json(value: BaseModel) -> dict[str, Any]:
    """Converts a pydantic model of the MCP SDK, such as a message, into JSON values."""
    found: dict[str, Any] = value.model_dump(by_alias=True, mode="json", exclude_none=True)
    return found


async def all_pages(
    server: str, method: str, fetch: Callable[[str | None], Awaitable[Any]], config: McpConfig
) -> list[Any]:
    """Fetches all pages of a list, and returns their items as the server has sent them. They are JSON values that
    nobody has checked.

    - `method`: the method of the MCP SDK that fetches a page. The page has its items in the attribute of the same name
      without "list_": for "list_tools", `page.tools`. Items that the SDK did not get are in its `meta`.
    - `fetch`: an async function that gets the cursor of a page and returns the page. The first page has the cursor
      None.
    - `config`: the limits of the list.

    Raises McpResultTooLarge if the list exceeds a limit. The message contains the limit.
    """
    items = method.removeprefix("list_")
    most, most_bytes = config.max_listed, config.most_list_bytes
    found: list[Any] = []
    size = 0
    cursor: str | None = None
    for _ in range(_PAGES):
        page = await fetch(cursor)
        unchecked = (page.meta or {}).get(ITEMS, {}).get(items)
        for each in getattr(page, items) if unchecked is None else unchecked:
            found.append(told := as_json(each) if isinstance(each, BaseModel) else each)
            size += _size(told)
            if len(found) > most:
                raise McpResultTooLarge(
                    server, f"{method}: there are more than {most:,} {items}", hint="McpConfig(max_listed=…)"
                )
            if size > most_bytes:
                raise McpResultTooLarge(
                    server, f"{method}: there are more than {most_bytes:,} bytes", hint="McpConfig(max_list_bytes=…)"
                )
            if len(found) % _PIECE == 0:
                await asyncio.sleep(0)
        cursor = page.next_cursor
        if not cursor:  # some servers end a list by an empty one
            return found
    raise McpResultTooLarge(server, f"{method}: there are more than {_PAGES} pages")


def _size(value: Any) -> int:
    """Returns the number of bytes of a JSON value; roughly for one that cannot be encoded."""
    try:
        return len(msgspec.json.encode(value))
    except (UnicodeEncodeError, ValueError, OverflowError, RecursionError):
        return len(str(value))


def block_of(server: str, what: str, block: Any) -> dict[str, Any]:
    """Returns a block of the result of a tool. One of a kind that is not known, or with other fields than its kind should
    have, is kept as it is. Raises McpInvalidAnswer if it is no block, or is a text without a text. `what`: the name of
    the call.
    """
    match block:  # most blocks, and checked enough
        case {"type": "text", "text": str(), **others} if not others:
            return dict(block)
    try:
        return as_json(_BLOCK.validate_python(block, by_name=False))
    except ValidationError as error:
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(kind, str) and (kind != "text" or isinstance(block.get("text"), str)):
            return dict(block)
        raise McpInvalidAnswer(
            server, f"{what}: its answer is not what the protocol says: a block of its content: {first_wrong(error)}"
        ) from None


def told_tool(item: Any) -> dict[str, Any] | str:
    """Returns an entry of a server's list of tools with the fields that are used, or the reason why it is ill."""
    if not isinstance(item, Mapping):
        return "it is no object"
    used = {name: item[name] for name in _OF_TOOLS if item.get(name) is not None}
    try:
        return as_json(types.Tool.model_validate(used, by_name=False))
    except ValidationError as error:
        return f"it is not what the protocol says: {first_wrong(error)}"
    except (ValueError, RecursionError) as error:
        return f"it cannot be read: {message_of(error)}"


def check_encoded(server: str, what: str, value: object) -> None:
    """Raises McpInvalidArguments if the value cannot be sent as JSON. An example is a text with half of a surrogate
    pair, which UTF-8 cannot encode. `what`: the name of the call, for the message.
    """
    try:
        msgspec.json.encode(value)
    except (UnicodeEncodeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise McpInvalidArguments(server, f"{what} cannot be sent: {message_of(error)}") from None


def recordable(server: str, what: str, value: T) -> T:
    """Returns `value`, which comes from a server. Raises McpInvalidAnswer if a journal cannot record it, for example
    because it is nested too deep. `what`: the name of the call, for the message.
    """
    try:
        msgspec.json.encode(value)
    except (ValueError, RecursionError) as error:
        raise McpInvalidAnswer(server, f"{what}: it has what cannot be recorded: {message_of(error)}") from None
    return value


def responses_of(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the answers to a server's questions into objects of the MCP SDK, and returns them by the keys of the
    questions.

    `answers`: a dict by the keys of the questions. Each value is a dict with "method", the method of the question, and
    either "result" or "error".
    """
    return {
        key: types.ErrorData.model_validate(each["error"])
        if "error" in each
        else _ANSWERS[each["method"]].model_validate(each["result"])
        for key, each in answers.items()
    }


def check_granted(server: str, what: str, answers: Mapping[str, Any]) -> None:
    """Raises McpRefused if one of the answers to a server's questions is an error, which means that the question was
    refused. The protocol since version 2026-07-28 has no message for a refusal, so the call has to end. `what`: the
    name of the call, for the message.
    """
    for each in answers.values():
        if "error" in each:
            words, number = each["error"]["message"], each["error"]["code"]
            raise McpRefused(server, f"{what} asks for {each['method']}, which was refused: {words}", number)


def state_unknown(error: McpRefused) -> bool:
    """Returns True if the server does not know, or accepts no longer, the state with which a call should continue. The
    server has done nothing then. The SDK's server forgets all states when it ends, and each after ten minutes.
    """
    return error.number == types.INVALID_PARAMS and "requeststate" in error.message.lower().replace(" ", "")


def visits_wanted(error: McpRefused) -> dict[str, dict[str, Any]]:
    """Returns the questions of a server that has refused a call until a person has visited addresses, by their keys, in
    the form of `McpResult.questions`. The server has done nothing then. Returns {} for any other error.
    """
    told = error.data.get("elicitations") if isinstance(error.data, Mapping) else None
    if error.number != types.URL_ELICITATION_REQUIRED or not isinstance(told, list):
        return {}
    return {
        f"visit{number}": {"method": "elicitation/create", "params": {**each, "mode": "url"}}
        for number, each in enumerate(told, 1)
        if isinstance(each, Mapping)
    }


def asks_as_before(error: McpRefused) -> bool:
    """Returns True if a tool of the SDK's server has failed because it sent a request to the client, as tools do for
    versions of the protocol before 2026-07-28. In a session of that version the SDK refuses such requests.
    """
    return error.number == types.INVALID_REQUEST and "no back-channel" in error.message


_GARBLED = ("Failed to parse JSON response", "Failed to parse SSE message")  # the SDK's words for what is no answer


def is_closed(error: MCPError) -> bool:
    """Returns True if the error means that the session has ended."""
    return bool(error.code == CLOSED and str(error.message) == "Connection closed")


def is_lost(error: MCPError) -> bool:
    """Returns True if the error means that the answer was lost: the server may have done the request, but no whole answer
    will come.
    """
    broke = "the connection broke" in str(error.message)
    ended = error.code == CLOSED and str(error.message).startswith("SSE stream") and not _too_large(error)
    garbled = str(error.message).startswith(_GARBLED) and not _too_large(error)
    return bool(error.code == LOST or broke or ended or garbled or is_closed(error))


def _too_large(error: MCPError) -> bool:
    words = str(error.message)
    says = words.startswith("SSE stream failed") and "byte" in words
    return bool(error.code == TOO_LARGE or says or words.startswith(f"{_GARBLED[0]}: more than "))


def may_pass(error: BaseException | None) -> bool:
    """Returns True if another try to open a session may succeed after this error: the server could not be reached, or
    the connection broke.
    """
    return any(isinstance(each, MCPError) and each.code in (NOT_SENT, LOST) for each in errors_in(error))


def refusal(server: str, what: str, error: MCPError, config: McpConfig) -> McpError:
    """Returns the McpError for a request that has failed with `error`, which is the server's answer or an error of the
    transport. Its class shows whether the answer was too long, the request was not sent, or the server has refused the
    request. `what`: the name of the request, for the message.
    """
    words = str(error.message)[:_MOST_WORDS]
    if _too_large(error):
        lists = what.startswith("list_")
        most, setting = (config.most_list_bytes, "max_list_bytes") if lists else (config.most_bytes, "max_result_bytes")
        return McpResultTooLarge(
            server,
            f"{what}: its answer is longer than {most:,} bytes, and was not kept: {words}",
            hint=f"McpConfig({setting}=…)",
        )
    if error.code in (NOT_SENT, SESSION_OVER):
        return McpUnavailable(server, words)
    return McpRefused(server, f"{what}: {words}", error.code, data=error.data)


def unsent(error: SabotError, server: str = "") -> McpUnavailable:
    """Returns a McpUnavailable for a call that was not sent because an earlier step has failed with `error`. It has the
    message and the hint of `error`. `server`: the name of the server, used if `error` is not a McpError.
    """
    server = error.server if isinstance(error, McpError) else server
    return McpUnavailable(server, error.message.removeprefix(f"MCP server {server}: "), hint=error.hint)


def first_wrong(error: ValidationError) -> str:
    """Returns a text that describes the first fault in a message of a server, with its place in the message."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{first['msg']} at {'.'.join(map(str, first['loc']))}"[:300]


def errors_in(error: BaseException | None) -> Sequence[BaseException]:
    """Returns a list of errors: for a group, the errors in it and in its inner groups; for another error, only that
    error; for None, no error.
    """
    if isinstance(error, BaseExceptionGroup):
        return [inner for each in error.exceptions for inner in errors_in(each)]
    return [] if error is None else [error]


def reason_of(error: BaseException) -> str:
    """Returns the reason why a session has ended, as a text. `error`: the error with which it ended."""
    return "; ".join(f"{type(each).__name__}: {message_of(each)}"[:300] for each in errors_in(error)) or "it was closed"
