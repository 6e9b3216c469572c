"""The tokens of a SQL text."""

import re
from dataclasses import dataclass
from enum import Enum

from sabot.sql.syntax.text import Span, SqlFault, SqlText


class Kind(Enum):
    """The kind of a token."""

    NAME = "a name"  # without quotes: may be a keyword
    QUOTED = "a quoted name"
    STRING = "a string"
    INTEGER = "an integer"
    DECIMAL = "a number with a fraction"
    FLOAT = "a number with an exponent"
    PARAMETER = "a parameter"
    HINT = "a hint"
    SYMBOL = "a symbol"
    END = "the end of the text"


@dataclass(frozen=True, slots=True)
class Token:
    """A token. `value`: the name or the string without its quotes, the digits of a number, the text of a hint."""

    kind: Kind
    value: str
    span: Span

    @property
    def word(self) -> str:
        """The name in capitals if it may be a keyword, else an empty text."""
        return self.value.upper() if self.kind is Kind.NAME else ""

    def __str__(self) -> str:
        if self.kind is Kind.END:
            return str(self.kind.value)
        if self.kind is Kind.HINT:
            return "/*+ … */"
        form = {Kind.STRING: "'{}'", Kind.QUOTED: '"{}"', Kind.PARAMETER: ":{}"}.get(self.kind, "{}")
        return form.format(self.value)


_PATTERN = re.compile(
    r"""
    (?P<blank>\s+|--[^\n]*)
  | (?P<hint>/\*\+(?:[^*]|\*(?!/))*\*/)
  | (?P<comment>/\*(?:[^*]|\*(?!/))*\*/)
  | (?P<string>'(?:[^']|'')*')
  | (?P<tick>`(?:[^`]|``)+`)
  | (?P<quoted>"(?:[^"]|"")+")
  | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?P<exponent>[eE][+-]?\d+)?)
  | (?P<name>[^\W\d]\w*)
  | :(?P<parameter>[^\W\d]\w*)
  | (?P<symbol><>|!=|<=|>=|\|\||=>|::|[-+*/%(),.;=<>\[\]?{}|$^])
    """,
    re.VERBOSE,
)

_UNFINISHED = {
    "'": ("this string has no closing quote", "a quote inside a string is written twice: 'it''s'"),
    "`": ("this quoted name has no closing backtick", ""),
    '"': ("this quoted name has no closing quote", "a string has single quotes: 'text'; \"x\" quotes a name"),
    "/": ("this comment has no end", "end it with */"),
}


def tokens_of(text: SqlText) -> list[Token]:
    """Returns the tokens of a text, the last one of kind END. Raises SqlFault for a character that begins none."""
    tokens: list[Token] = []
    source, at = text.text, 0
    while at < len(source):
        match = _PATTERN.match(source, at)
        if match is None or (match.lastgroup == "symbol" and source.startswith("/*", at)):
            raise _unreadable(source, at)
        token = _token(match, Span(at, match.end()))
        if token is not None:
            if tokens and tokens[-1].span.end == at and _runs_on(tokens[-1], token):
                span = tokens[-1].span.to(token.span)
                raise SqlFault(span, f"{source[span.start : span.end]} is neither a number nor a name")
            tokens.append(token)
        at = match.end()
    tokens.append(Token(Kind.END, "", Span(len(source), len(source))))
    return tokens


def _token(match: re.Match[str], span: Span) -> Token | None:
    group, text = match.lastgroup, match.group()
    if group in ("blank", "comment"):
        return None
    if match["number"] is not None:
        if match["exponent"]:
            return Token(Kind.FLOAT, text, span)
        return Token(Kind.DECIMAL if "." in text else Kind.INTEGER, text, span)
    if group == "string":
        return Token(Kind.STRING, text[1:-1].replace("''", "'"), span)
    if group in ("tick", "quoted"):
        return Token(Kind.QUOTED, text[1:-1].replace(text[0] * 2, text[0]), span)
    if group == "hint":
        return Token(Kind.HINT, text[3:-2].strip(), span)
    if group == "parameter":
        return Token(Kind.PARAMETER, match["parameter"], span)
    return Token(Kind.NAME if group == "name" else Kind.SYMBOL, text, span)


def _runs_on(before: Token, token: Token) -> bool:
    numbers = (Kind.INTEGER, Kind.DECIMAL, Kind.FLOAT)
    return before.kind in numbers and token.kind in (Kind.NAME, *numbers)


def _unreadable(source: str, at: int) -> SqlFault:
    begin = source[at]
    if begin in _UNFINISHED:
        message, hint = _UNFINISHED[begin]
        end = source.find("\n", at)
        return SqlFault(Span(at, len(source) if end < 0 else end), message, hint)
    if begin in "‘’“”":
        return SqlFault(Span(at, at + 1), f"{begin} is a typographic quote", "a string has single quotes: 'text'")
    return SqlFault(Span(at, at + 1), f"{begin!r} has no meaning in SQL")
