"""The tokens of a SQL text."""

import re
from dataclasses import dataclass
from enum import Enum

from sabot.sql.syntax.text import Span, SqlFault, SqlText


class TokenKind(Enum):
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
class SqlToken:
    """A token. `value`: the name or the string without its quotes, the digits of a number, the text of a hint.

    `word`: the name in capitals if it may be a keyword, else an empty text. The parser reads it several times at each
    token, so it is made once.
    """

    kind: TokenKind
    value: str
    span: Span
    word: str = ""

    def __str__(self) -> str:
        if self.kind is TokenKind.END:
            return str(self.kind.value)
        if self.kind is TokenKind.HINT:
            return "/*+ … */"
        form = {TokenKind.STRING: "'{}'", TokenKind.QUOTED: '"{}"', TokenKind.PARAMETER: ":{}"}.get(self.kind, "{}")
        return form.format(self.value)


_PATTERN = re.compile(
    r"""
    (?P<blank>\s+|--[^\n]*)
  | (?P<hint>/\*\+(?:[^*]|\*(?!/))*\*/)
  | (?P<comment>/\*(?:[^*]|\*(?!/))*\*/)
  | (?P<string>'(?:[^']|'')*')
  | (?P<unicode>[uU]&'(?:[^']|'')*')
  | (?P<tick>`(?:[^`]|``)+`)
  | (?P<quoted>"(?:[^"]|"")+")
  | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?P<exponent>[eE][+-]?\d+)?)
  | (?P<name>[^\W\d]\w*)
  | :(?P<parameter>[^\W\d]\w*)
  | (?P<symbol><>|!=|<=|>=|\|\||=>|::|[-+*/%(),.;=<>\[\]?{}|$^])
    """,
    re.VERBOSE,
)

_ESCAPE = re.compile(r"\\(?:([0-9A-Fa-f]{4})|\+([0-9A-Fa-f]{6})|\\|)")
_MOST_DIGITS = 400  # of a number as it is written; a DOUBLE may have 309 before its point
_UNFINISHED = {
    "'": ("this string has no closing quote", "a quote inside a string is written twice: 'it''s'"),
    "`": ("this quoted name has no closing backtick", ""),
    '"': ("this quoted name has no closing quote", "a string has single quotes: 'text'; \"x\" quotes a name"),
    "/": ("this comment has no end", "end it with */"),
}


def tokens_of(text: SqlText) -> list[SqlToken]:
    """Returns the tokens of a text, the last one of kind END. Raises SqlFault for a character that begins none."""
    tokens: list[SqlToken] = []
    source, at = text.text, 0
    try:
        source.encode()
    except UnicodeEncodeError as error:
        message = "this is one half of a surrogate pair, which is no character"
        raise SqlFault(Span(error.start, error.start + 1), message, "write the character itself") from None
    while at < len(source):
        match = _PATTERN.match(source, at)
        if match is None or (match.lastgroup == "symbol" and source.startswith("/*", at)):
            raise _unreadable(source, at)
        end = match.end()
        if match.lastgroup not in ("blank", "comment"):
            token = _token(match, Span(at, end))
            if tokens and tokens[-1].span.end == at and _runs_on(tokens[-1], token):
                span = tokens[-1].span.to(token.span)
                raise SqlFault(span, f"{source[span.start : span.end]} is neither a number nor a name")
            tokens.append(token)
        at = end
    tokens.append(SqlToken(TokenKind.END, "", Span(len(source), len(source))))
    return tokens


def _token(match: re.Match[str], span: Span) -> SqlToken:
    group, text = match.lastgroup, match.group()
    if group == "name":
        return SqlToken(TokenKind.NAME, text, span, text.upper())
    if match["number"] is not None:
        if len(text) > _MOST_DIGITS:
            raise SqlFault(span, f"a number of {len(text):,} characters is more than any type holds")
        if match["exponent"]:
            return SqlToken(TokenKind.FLOAT, text, span)
        return SqlToken(TokenKind.DECIMAL if "." in text else TokenKind.INTEGER, text, span)
    if group == "string":
        return SqlToken(TokenKind.STRING, text[1:-1].replace("''", "'"), span)
    if group == "unicode":
        return SqlToken(TokenKind.STRING, _unescaped(text[3:-1].replace("''", "'"), span), span)
    if group in ("tick", "quoted"):
        return SqlToken(TokenKind.QUOTED, text[1:-1].replace(text[0] * 2, text[0]), span)
    if group == "hint":
        return SqlToken(TokenKind.HINT, text[3:-2].strip(), span)
    if group == "parameter":
        return SqlToken(TokenKind.PARAMETER, match["parameter"], span)
    return SqlToken(TokenKind.SYMBOL, text, span)


def _unescaped(text: str, span: Span) -> str:
    """Returns the text of U&'…', in which \\00E4 and \\+01F600 are characters, and two backslashes one."""

    def character(found: re.Match[str]) -> str:
        digits = found[1] or found[2]
        if digits is None and found[0] != "\\\\":
            raise SqlFault(span, "U&'…' has a backslash without digits", "\\00E4, \\+01F600, and \\\\ for a backslash")
        code = ord("\\") if digits is None else int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise SqlFault(span, f"\\{digits} is no character", "\\+01F600 is one beyond FFFF")
        return chr(code)

    return _ESCAPE.sub(character, text)


def _runs_on(before: SqlToken, token: SqlToken) -> bool:
    numbers = (TokenKind.INTEGER, TokenKind.DECIMAL, TokenKind.FLOAT)
    return before.kind in numbers and token.kind in (TokenKind.NAME, *numbers)


_ELSEWHERE = {
    "~": "REGEXP(text, pattern)",
    "&": "conditions are joined by AND",
    "@": "a parameter is :name",
    "!": "NOT, or <> for unequal",
    ":": "a parameter is :name; a choice is CASE WHEN … THEN … ELSE … END",
    "#": "a comment begins with --",
}
"""What to write for operators of other dialects."""


def _unreadable(source: str, at: int) -> SqlFault:
    begin = source[at]
    if begin in _UNFINISHED:
        message, hint = _UNFINISHED[begin]
        end = source.find("\n", at)
        return SqlFault(Span(at, len(source) if end < 0 else end), message, hint)
    if begin in "‘’“”":
        return SqlFault(Span(at, at + 1), f"{begin} is a typographic quote", "a string has single quotes: 'text'")
    return SqlFault(Span(at, at + 1), f"{begin!r} has no meaning in SQL", _ELSEWHERE.get(begin, ""))
