"""The pages by which notebooks show apps and streams."""

from collections.abc import Callable

from sabot.errors import SabotError

FAILURES = (SabotError, OSError)
"""The errors of a plan that cannot be made yet. A notebook shows their text; other errors are bugs."""


def html(text: str) -> str:
    """Returns a text of several lines as HTML. The text is escaped, because it may contain names and values from
    outside.
    """
    from html import escape

    return f"<pre>{escape(text)}</pre>"


def page(heading: str, columns: str | None, draw: Callable[[], str], text: Callable[[], str]) -> str:
    """Returns a page of HTML: a heading, the columns, the drawing of a plan, and the plan as text, which is shown
    after a click.

    `columns`: a text with a line for each column, or None to leave it out. `draw`: a function that returns the plan
    as SVG. `text`: a function that returns the plan as text. If one of them raises an error of `FAILURES`, the page
    has the error's message instead of the plan.
    """
    from html import escape

    parts = [f"<b>{escape(heading)}</b>", "" if columns is None else html(columns)]
    try:
        parts += [draw(), f"<details><summary>The plan as text</summary>{html(text())}</details>"]
    except FAILURES as error:
        parts.append(html(str(error)))
    return "".join(parts)


def drawing_or_none(draw: Callable[[], str]) -> str | None:
    """Returns the drawing of a plan; None if the plan cannot be made yet (an error of `FAILURES`)."""
    try:
        return draw()
    except FAILURES:
        return None
