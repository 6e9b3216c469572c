"""A cursor over the tokens of a text, on which the parser stands."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from sabot.sql.syntax.text import Span, SqlFault, SqlText, near_names
from sabot.sql.syntax.tokens import SqlToken, TokenKind, tokens_of
from sabot.sql.syntax.tree import Hint, Name

T = TypeVar("T")

NESTING_MAX = 60
"""The number of levels to which expressions and queries may be nested."""

NOT_AN_ALIAS = frozenset(
    {
        "AND",
        "ANTI",
        "AS",
        "ASC",
        "BETWEEN",
        "CASE",
        "CROSS",
        "DEFINE",
        "DESC",
        "ELSE",
        "EMIT",
        "END",
        "EXCEPT",
        "FETCH",
        "FILTER",
        "FOR",
        "FROM",
        "FULL",
        "GROUP",
        "HAVING",
        "IN",
        "INNER",
        "INTERSECT",
        "INTO",
        "IS",
        "JOIN",
        "LATERAL",
        "LEFT",
        "LIKE",
        "LIMIT",
        "MATCH_RECOGNIZE",
        "MINUS",
        "NATURAL",
        "NOT",
        "NULLS",
        "OFFSET",
        "ON",
        "OR",
        "ORDER",
        "OUTER",
        "OVER",
        "PARTITION",
        "PATTERN",
        "QUALIFY",
        "RANGE",
        "RIGHT",
        "ROWS",
        "SELECT",
        "SEMI",
        "SET",
        "SIMILAR",
        "SKIP",
        "TABLESAMPLE",
        "THEN",
        "UNION",
        "USING",
        "VALUES",
        "WHEN",
        "WHERE",
        "WINDOW",
        "WITH",
        "WITHIN",
    }
)
"""The words that are not read as an alias without AS, nor as a column without quotes: they begin a clause."""

_GIVEN = "leave it out: rows come with their values"

_ELSEWHERE = {
    "CHANGES": "leave EMIT CHANGES out: a query without a window gives its changes",
    "ILIKE": "LOWER(text) LIKE 'u%'",
    **dict.fromkeys(("RLIKE", "REGEXP"), "REGEXP(text, pattern)"),
    "GLOB": "text LIKE 'U%'",
    "DIV": "a / b, which is a whole number for integers",
    "ASOF": "JOIN t FOR SYSTEM_TIME AS OF a.ts ON a.key = t.key",
    **dict.fromkeys(("SEMI", "ANTI"), "WHERE x IN (SELECT …), or NOT EXISTS (SELECT …)"),
    "SAMPLE": "WHERE MOD(id, 10) = 0",
    "TIES": "RANK() OVER (ORDER BY x) AS n in a query inside, and WHERE n <= 5 outside",
    **dict.fromkeys(("TEMP", "SOURCE", "SINK", "EXTERNAL"), "CREATE TABLE … WITH ('connector' = '…')"),
    **dict.fromkeys(("EXCLUDE", "REPLACE"), "name the columns that are wanted"),
    "EXCEPT": "name the columns that are wanted; of two queries: WHERE NOT EXISTS (SELECT …)",
    "TOP": "ORDER BY … LIMIT n",
    "PERCENT": "LIMIT takes a number of rows",
    "FILTER": "FILTER (WHERE condition)",
    "APPLY": "CROSS JOIN UNNEST(array), or JOIN … ON",
    "MAX": "STRING has no bound",
    "INTO": "INSERT INTO table SELECT …",
    "CONFLICT": "leave ON CONFLICT out: a PRIMARY KEY in CREATE TABLE makes INSERT INTO an upsert",
    "DUPLICATE": "leave ON DUPLICATE KEY out: a PRIMARY KEY in CREATE TABLE makes INSERT INTO an upsert",
    "INDEX": "leave it out: the state of a query is found by its keys",
    **dict.fromkeys(("AUTO_INCREMENT", "IDENTITY", "DEFAULT", "UNIQUE", "CHECK", "REFERENCES", "GENERATED"), _GIVEN),
}
"""What to write for words of other dialects: the word that was found, or the one before or behind it."""

_SYMBOLS_ELSEWHERE = {
    "==": "= compares",
    "//": "a / b, which is a whole number for integers",
    "<<": "a * POWER(2, n)",
    ">>": "a / POWER(2, n)",
    "^": "POWER(a, b)",
    "->": "JSON_VALUE(text, '$.name')",
    "[": 'ARRAY[1, 2] is an array; `x` and "x" quote a name',
    "$": "a parameter is :name",
    "?": "a parameter is :name",
}
"""What to write for symbols of other dialects: the symbol that was found, or it behind the one before."""

_ORDER = "the clauses stand in this order: FROM, WHERE, GROUP BY, HAVING, QUALIFY, ORDER BY, LIMIT"

_FORMS = {
    "an expression": "a column, a value such as 1 or 'text', or a call such as UPPER(name)",
    ")": "each ( has its )",
    "; or the end of the statement": _ORDER,
    "FIRST or LAST": "NULLS FIRST, or NULLS LAST",
    "a table": "FROM table, or FROM (SELECT …) AS t",
    "SELECT": "SELECT … FROM …",
}
"""What stands in a place, for errors that have no other way out."""

CLAUSES = ("FROM", "WHERE", "GROUP BY", "HAVING", "ORDER BY", "LIMIT", "UNION", "JOIN", "LEFT JOIN", "QUALIFY", "EMIT")
"""The words that begin a clause."""


class TokenCursor:
    """A position in the tokens of a text. Methods that expect a token raise SqlFault for any other one."""

    def __init__(self, text: SqlText) -> None:
        self.text = text
        self.tokens = tokens_of(text)
        self.at = 0
        self._depth = 0

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def token(self) -> SqlToken:
        """The token at the position."""
        return self.tokens[self.at]

    def peek(self, ahead: int = 1) -> SqlToken:
        """Returns the token that many places behind the position."""
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def is_word(self, *words: str) -> bool:
        """Returns True if these keywords stand here, one after the other."""
        if self.tokens[self.at].word != words[0]:
            return False
        return len(words) == 1 or all(self.peek(i).word == word for i, word in enumerate(words))

    @property
    def at_end(self) -> bool:
        """True if all tokens have been taken."""
        return self.token.kind is TokenKind.END

    def is_symbol(self, symbol: str, ahead: int = 0) -> bool:
        """Returns True if this symbol stands here, or that many places behind."""
        token = self.peek(ahead) if ahead else self.tokens[self.at]
        return token.value == symbol and token.kind is TokenKind.SYMBOL

    # -- taking -------------------------------------------------------------------------------------------------------

    def next(self) -> SqlToken:
        """Returns the token at the position, and moves behind it."""
        token = self.token
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def take_word(self, *words: str) -> bool:
        """Moves behind these keywords if they stand here. Returns True if they did."""
        if not self.is_word(*words):
            return False
        self.at += len(words)
        return True

    def take_symbol(self, symbol: str) -> bool:
        """Moves behind this symbol if it stands here. Returns True if it did."""
        if not self.is_symbol(symbol):
            return False
        self.at += 1
        return True

    def expect_word(self, *words: str, where: str = "") -> Span:
        """Moves behind these keywords, and returns where they were."""
        start = self.token.span
        for word in words:
            if not self.take_word(word):
                self.expected(word, where)
        return start.to(self.before)

    def expect_symbol(self, symbol: str, where: str = "") -> Span:
        """Moves behind this symbol, and returns where it was."""
        if not self.take_symbol(symbol):
            self.expected(symbol, where)
        return self.before

    def expect_name(self, what: str) -> Name:
        """Returns the name here, quoted or not, and moves behind it. `what`: for the message, "the name of a table"."""
        if self.token.kind not in (TokenKind.NAME, TokenKind.QUOTED):
            text = self.token.kind is TokenKind.STRING
            self.expected(what, hint=f"a name has no quotes, or `{self.token.value}`" if text else "")
        token = self.next()
        return Name(token.value, token.span, token.kind is TokenKind.QUOTED)

    def expect_string(self, what: str) -> SqlToken:
        """Returns the string here, and moves behind it."""
        if self.token.kind is not TokenKind.STRING:
            hint = "a text has single quotes: 'text'" if self.token.kind is TokenKind.QUOTED else ""
            self.expected(what, hint=hint)
        return self.next()

    def expect_integer(self, what: str) -> int:
        """Returns the integer here, and moves behind it."""
        if self.token.kind is not TokenKind.INTEGER:
            self.expected(what)
        return int(self.next().value)

    def qualified(self, what: str) -> tuple[Name, ...]:
        """Returns the names here that have dots between them."""
        parts = [self.expect_name(what)]
        while self.take_symbol("."):
            parts.append(self.expect_name(f"{what} behind the dot"))
        return tuple(parts)

    def table_name(self) -> tuple[Name, ...]:
        """Returns the name of a table here, or the path of a file, which is a string."""
        if self.token.kind is TokenKind.STRING:
            path = self.next()
            return (Name(path.value, path.span, True),)
        return self.qualified("a table")

    def several(self, one: Callable[[], T]) -> tuple[T, ...]:
        """Returns what `one` reads, once and again behind each comma."""
        read = [one()]
        while self.take_symbol(","):
            read.append(one())
        return tuple(read)

    def in_parentheses(self, one: Callable[[], T], where: str) -> tuple[T, ...]:
        """Returns what `one` reads between parentheses, with commas."""
        self.expect_symbol("(", where)
        read = self.several(one)
        self.expect_symbol(")", where)
        return read

    def hints(self) -> tuple[Hint, ...]:
        """Returns the hints of the comment /*+ … */ here, if there is one."""
        if self.token.kind is not TokenKind.HINT:
            return ()
        token = self.next()
        inside = self.text.of(token.span)
        blank = SqlText(" " * (token.span.start + 3) + inside[3:-2], self.text.name)
        return _Hints(blank).read()

    # -- spans and errors ---------------------------------------------------------------------------------------------

    @property
    def before(self) -> Span:
        """Where the last token stands that was taken."""
        return self.tokens[max(0, self.at - 1)].span

    def since(self, start: Span) -> Span:
        """Returns the range from `start` to the last token that was taken."""
        return start.to(self.before)

    @contextmanager
    def level(self) -> Iterator[None]:
        """Counts a level of nesting. Raises SqlFault beyond `NESTING_MAX`."""
        if self._depth >= NESTING_MAX:
            hint = "give parts a name: WITH part AS (SELECT …)"
            raise SqlFault(self.token.span, f"this is nested deeper than {NESTING_MAX} levels", hint)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def expected(self, what: str, where: str = "", hint: str = "") -> NoReturn:
        """Raises SqlFault: something else was expected here."""
        token = self.token
        context = f" {where}" if where else ""
        hint = hint or self.elsewhere(what)
        if not hint:
            wanted = [what] if what.isupper() else CLAUSES
            for wrong in (token, self.tokens[max(0, self.at - 1)]):
                hint = hint or (near_names(wrong.word, wanted) if wrong.word not in CLAUSES else "")
        hint = hint or _FORMS.get(what, "")
        raise SqlFault(token.span, f"expected {what}{context}, found {token}", hint)

    def elsewhere(self, what: str) -> str:
        """Returns the hint for a word or a symbol of another dialect here; empty for any other. `what`: see `expected`."""
        token, before = self.token, self.tokens[max(0, self.at - 1)]
        for each in (token, before, self.peek()):
            if each.word in _ELSEWHERE:
                return _ELSEWHERE[each.word]
        if before.kind is TokenKind.SYMBOL and before.value == "," and (token.word or token.value == ")"):
            return f"leave out the comma before {token}"
        if token.kind is TokenKind.SYMBOL:
            found = [before.value + token.value, token.value]
            return next((_SYMBOLS_ELSEWHERE[each] for each in found if each in _SYMBOLS_ELSEWHERE), "")
        if what == "BY":
            return f"write {before.word} BY"
        ends = any(self.is_word(*each.split()) for each in CLAUSES)
        return _ORDER if ends and what.startswith(";") else ""


class _Hints(TokenCursor):
    """The parser of the inside of /*+ … */."""

    def read(self) -> tuple[Hint, ...]:
        found = []
        while not self.at_end:
            name = self.expect_name("the name of a hint")
            options = self.in_parentheses(self._option, f"of the hint {name.text}") if self.is_symbol("(") else ()
            found.append(Hint(name, options, self.since(name.span)))
            self.take_symbol(",")
        return tuple(found)

    def _option(self) -> tuple[str, str]:
        key = self._text("an option of the hint")
        return (key, self._text("the value of the option")) if self.take_symbol("=") else (key, "")

    def _text(self, what: str) -> str:
        if self.token.kind is TokenKind.STRING:
            return self.next().value
        return ".".join(part.text for part in self.qualified(what))
