"""Template strings of Python 3.14 as SQL texts: each value becomes a parameter, and is never pasted into the text.

t"SELECT * FROM {flights} WHERE delay > {least}"     ->     SELECT * FROM flights WHERE delay > :least
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sabot.api.stream import Stream
from sabot.errors import UserError
from sabot.sql.syntax.text import Span, SqlText
from sabot.sql.syntax.tokens import TokenKind, tokens_of


class TemplateText(Protocol):
    """A template string (PEP 750): the texts between its values, and the values with the expressions they came from."""

    @property
    def strings(self) -> Sequence[str]: ...

    @property
    def interpolations(self) -> Sequence[Any]: ...


def text_of(template: TemplateText, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the text of a template, and `values` with those of the template. A stream stands for a table.

    Raises UserError for a value with a format or a conversion, and for one inside of quotes or of a comment.
    """
    given = dict(values)
    text, places = template.strings[0], []
    for value, after in zip(template.interpolations, template.strings[1:], strict=True):
        if value.conversion or value.format_spec:
            raise UserError(f"{{{value.expression}}}: a value in SQL has no format", hint="format it in Python before")
        name = _free_name(value.expression, value.value, given)
        given[name] = value.value
        mark = name if isinstance(value.value, Stream) else f":{name}"
        places.append((Span(len(text), len(text) + len(mark)), value.expression))
        text += mark + after
    found = {each.span for each in tokens_of(SqlText(text)) if each.kind in (TokenKind.NAME, TokenKind.PARAMETER)}
    for span, expression in places:
        if span not in found:
            raise UserError(
                f"{{{expression}}} stands inside of quotes, a comment or another word",
                hint=f"write {{{expression}}} alone, without quotes: a value is never pasted into the text",
            )
    return text, given


def _free_name(expression: str, value: Any, given: Mapping[str, Any]) -> str:
    """Returns a name that no other value has."""
    name = expression if expression.isidentifier() else "value"
    found, number = name, 0
    while found in given and given[found] is not value:
        found, number = f"{name}{number}", number + 1
    return found
