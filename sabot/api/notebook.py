"""The pages by which notebooks show apps and streams."""

from collections.abc import Callable
from html import escape

from sabot.errors import SabotError

FAILURES = (SabotError, OSError)
"""The errors of a plan that cannot be made yet. A notebook shows their text; other errors are bugs."""


def html(text: str) -> str:
    """Returns a text of several lines as HTML. It is escaped, because it may contain names and values from outside."""
    return f"<pre>{escape(text)}</pre>"


def page(heading: str, columns: str | None, draw: Callable[[], str], text: Callable[[], str]) -> str:
    """Returns a heading, the columns, the drawing of a plan, and the plan as text that opens with a click.

    `columns`: a line for each, or None to leave them out. `draw`: returns the plan as SVG, and `text` as text. If they
    raise one of `FAILURES`, its message stands in their place.
    """
    parts = [f"<b>{escape(heading)}</b>", "" if columns is None else html(columns)]
    try:
        parts += [draw(), f"<details><summary>The plan as text</summary>{html(text())}</details>"]
    except FAILURES as error:
        parts.append(html(str(error)))
    return "".join(parts)


def drawing_or_none(draw: Callable[[], str]) -> str | None:
    """Returns the drawing, or None where the plan cannot be made yet, so that a notebook shows something else."""
    try:
        return draw()
    except FAILURES:
        return None
