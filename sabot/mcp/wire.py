"""Translations between the SDK and Sabot: the SDK's models into JSON, and its errors into errors that tell whether the
server has done a call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, TypeVar

import mcp.types as types
import msgspec
from mcp import MCPError
from pydantic import BaseModel, ValidationError

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
from sabot.mcp.transport import LOST, NOT_SENT, SESSION_OVER, TOO_LARGE, UNREADABLE

CLOSED = -32000
"""The SDK's code for a session that has ended. Servers also use it for errors of their own."""

_PAGES = 100  # the most pages of one list
_PIECE = 50  # items that are handled before the event loop gets a turn: some milliseconds
_MOST_WORDS = 1000  # the most characters of a server's message that an error shows
_ANSWERS = {"elicitation/create": types.ElicitResult, "sampling/createMessage": types.CreateMessageResult}

T = TypeVar("T")


def as_json(value: BaseModel) -> dict[str, Any]:
    """Returns a pydantic model of the SDK, such as a message or a part of one, as JSON values."""
    found: dict[str, Any] = value.model_dump(by_alias=True, mode="json", exclude_none=True)
    return found


async def all_pages(
    server: str, method: str, fetch: Callable[[str | None], Awaitable[Any]], config: McpConfig
) -> list[dict[str, Any]]:
    """Returns the items of all pages of a list as JSON.

    - `method`: the method of the SDK's session that returns a page, such as `list_tools` for pages with `tools`.
    - `fetch`: a function of a cursor that returns the page; the cursor of the first page is None.

    Raises McpResultTooLarge, whose message names the bound.
    """
    items = method.removeprefix("list_")
    most, most_bytes = config.max_listed, config.most_list_bytes
    found: list[dict[str, Any]] = []
    size = 0
    cursor: str | None = None
    for _ in range(_PAGES):
        page = await fetch(cursor)
        for each in getattr(page, items):
            found.append(told := as_json(each))
            size += len(msgspec.json.encode(told))
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
        if cursor is None:
            return found
    raise McpResultTooLarge(server, f"{method}: there are more than {_PAGES} pages")


def check_encoded(server: str, what: str, value: object) -> None:
    """Checks that a value can be sent as JSON in UTF-8; a text with half a surrogate pair cannot. Raises
    McpInvalidArguments if not. `what`: the call that it is for.
    """
    try:
        msgspec.json.encode(value)
    except (UnicodeEncodeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise McpInvalidArguments(server, f"{what} cannot be sent: {message_of(error)}") from None


def recordable(server: str, what: str, value: T) -> T:
    """Returns `value`, which a server has sent, if a journal can keep it. Raises McpInvalidAnswer if not, for example
    for an integer of more than 64 bits. `what`: the call that it answers.
    """
    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, ValueError, RecursionError) as error:
        raise McpInvalidAnswer(server, f"{what}: it has what cannot be recorded: {message_of(error)}") from None
    return value


def responses_of(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the answers to a server's questions as objects of the SDK, by key. `answers`: for each key, the method of the
    question, and the result or the error, as JSON.
    """
    return {
        key: types.ErrorData.model_validate(each["error"])
        if "error" in each
        else _ANSWERS[each["method"]].model_validate(each["result"])
        for key, each in answers.items()
    }


def check_granted(server: str, what: str, answers: Mapping[str, Any]) -> None:
    """Checks the answers to a server's questions. Raises McpRefused if one of them is a refusal: in versions of the
    protocol since 2026-07-28 a refusal cannot be sent, and the server does not wait for it.
    """
    for each in answers.values():
        if "error" in each:
            words, number = each["error"]["message"], each["error"]["code"]
            raise McpRefused(server, f"{what} asks for {each['method']}, which was refused: {words}", number)


def is_closed(error: MCPError) -> bool:
    """Returns True if the error means that the session has ended."""
    return bool(error.code == CLOSED and str(error.message) == "Connection closed")


def is_lost(error: MCPError) -> bool:
    """Returns True if the error means that the answer was lost: the server may have done the request, but no answer will come."""
    broke = "the connection broke" in str(error.message)
    ended = error.code == CLOSED and str(error.message).startswith("SSE stream") and not _too_large(error)
    return bool(error.code == LOST or broke or ended or is_closed(error))


def _too_large(error: MCPError) -> bool:
    words = str(error.message)
    says = words.startswith(("SSE stream failed", "Failed to parse JSON")) and "byte" in words
    return bool(error.code == TOO_LARGE or says)


def may_pass(error: BaseException | None) -> bool:
    """Returns True if the error that has kept a session from being opened may pass, so that another try may succeed."""
    return any(isinstance(each, MCPError) and each.code in (NOT_SENT, LOST) for each in errors_in(error))


def refusal(server: str, what: str, error: MCPError, config: McpConfig) -> McpError:
    """Returns the McpError to raise for a request that has failed with `error`: the server has answered with this
    error, or the request was not sent. `what`: the request, for the message.
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
    if error.code == UNREADABLE:
        return McpInvalidAnswer(server, f"{what}: {words}")
    return McpRefused(server, f"{what}: {words}", error.code)


def unsent(error: SabotError, server: str = "") -> McpUnavailable:
    """Returns a McpUnavailable for a call that was not sent because an earlier step has failed with `error`, whose
    message it takes over. `server`: the name of the server if `error` does not have it.
    """
    server = error.server if isinstance(error, McpError) else server
    return McpUnavailable(server, error.message.removeprefix(f"MCP server {server}: "), hint=error.hint)


def first_wrong(error: ValidationError) -> str:
    """Returns a text that describes the first fault in a message of a server, with its place in the message."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{first['msg']} at {'.'.join(map(str, first['loc']))}"[:300]


def errors_in(error: BaseException | None) -> Sequence[BaseException]:
    """Returns the errors in a group and in its inner groups; for any other error a list with that error; for None an
    empty list.
    """
    if isinstance(error, BaseExceptionGroup):
        return [inner for each in error.exceptions for inner in errors_in(each)]
    return [] if error is None else [error]


def reason_of(error: BaseException) -> str:
    """Returns the reason why a session has ended, as a text. `error`: the error with which it ended."""
    return "; ".join(f"{type(each).__name__}: {message_of(each)}"[:300] for each in errors_in(error)) or "it was closed"


def client_version() -> str:
    """Returns the version of the client that servers see."""
    try:
        return metadata.version("sabot")
    except metadata.PackageNotFoundError:  # run from the source tree
        return "0"
