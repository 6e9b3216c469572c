"""Prints the results of commands: aligned columns for people, JSON for programs."""

from collections.abc import Sequence
from datetime import UTC, datetime
from json import dumps
from typing import Any

import typer

from sabot.base.redaction import visible


def columns(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints one line per row, each column as wide as its widest cell. Control characters in cells are escaped (`plain`)."""
    lines = [[plain(str(cell)) for cell in row] for row in [titles, *rows]]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def plain(text: str) -> str:
    """Returns the text on one line, with control characters escaped by `visible`."""
    return visible(text, lines=False)


def json_line(value: Any) -> None:
    """Prints the value as JSON on one line."""
    typer.echo(dumps(value, ensure_ascii=False))


def shortened(text: str, width: int) -> str:
    """Returns the text on one line, cut to at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def moment(ms: int) -> str:
    """Returns a time, in milliseconds since 1970, as a date and time in UTC; as `N ms` if Python has no such year."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(" ", "milliseconds").removesuffix("+00:00") + "Z"
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"
