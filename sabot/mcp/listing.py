"""Lists of what a server offers: bounded, and read piece by piece, so that the loop goes on meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from sabot.mcp.config import McpConfig
from sabot.mcp.errors import McpResultTooLarge
from sabot.mcp.offers import Offer, offer_of
from sabot.mcp.wire import as_json

_PAGES = 100
_PIECE = 50  # items that are looked at before others go on: some milliseconds


async def all_pages(
    server: str, method: str, fetch: Callable[[str | None], Awaitable[Any]], config: McpConfig
) -> list[dict[str, Any]]:
    """Returns the items of all pages as JSON.

    `method`: the method of the SDK's session, such as `list_tools`, whose pages have `tools`. `fetch`: returns a page by its cursor. Raises
    McpResultTooLarge, which names the bound.
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


async def offers_of(listed: Sequence[dict[str, Any]], most_chars: int) -> tuple[dict[str, Offer], dict[str, str]]:
    """Returns the tools that can be offered, by name, and the reasons why others are left out."""
    offers: dict[str, Offer] = {}
    left_out: dict[str, str] = {}
    for number, told in enumerate(listed):
        if number % _PIECE == _PIECE - 1:
            await asyncio.sleep(0)
        offer = offer_of(told, most_chars)
        name = str(told["name"])[:100]
        if isinstance(offer, Offer) and name not in offers:
            offers[offer.name] = offer
        else:
            left_out[name] = offer if isinstance(offer, str) else "its name is offered twice"
    return offers, left_out
