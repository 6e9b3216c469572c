"""The parser of expressions and types.

Operators bind as in Flink's parser (Calcite), from loose to tight: OR, AND, NOT, IS, comparisons, BETWEEN IN LIKE,
`+ -`, `* / % ||`, signs, and last `::`, `[…]` and fields.
"""

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, cast

from sabot.sql.syntax.cursor import NOT_AN_ALIAS, TokenCursor
from sabot.sql.syntax.text import Span, SqlFault, near_names
from sabot.sql.syntax.tokens import TokenKind
from sabot.sql.syntax.tree import (
    Alias,
    Argument,
    Between,
    Binary,
    Call,
    Case,
    Cast,
    Column,
    Constant,
    Derived,
    Descriptor,
    Exists,
    Expression,
    FieldAccess,
    FrameBound,
    In,
    Index,
    Interval,
    Is,
    Item,
    Items,
    Like,
    ModelArgument,
    Name,
    Parameter,
    Query,
    SelectBody,
    Sort,
    Star,
    Subquery,
    TableArgument,
    Type,
    TypedLiteral,
    TypeField,
    Unary,
    Window,
    WindowFrame,
    Word,
)

UNITS = ("YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND")
"""The units of intervals."""

CHAIN_MAX = 200
"""The number of operators that may follow each other without parentheses."""

_OR, _AND, _NOT, _IS, _COMPARE, _RANGE, _ADD, _MULTIPLY, _SIGN = 22, 24, 26, 28, 30, 32, 40, 60, 80
_SYMBOLS = {
    **dict.fromkeys(("=", "<>", "!=", "<", "<=", ">", ">="), _COMPARE),
    **dict.fromkeys(("+", "-"), _ADD),
    **dict.fromkeys(("*", "/", "%", "||"), _MULTIPLY),
}
_WITHOUT_PARENTHESES = frozenset(["CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP", "LOCALTIME", "LOCALTIMESTAMP"])
_EMPTY = {"ARRAY": "[]", "OBJECT": "{}"}
_EXTRACTED = (
    *UNITS,
    *("DOW", "DOY", "ISODOW", "ISOYEAR", "EPOCH", "MILLISECOND"),
    *("DECADE", "CENTURY", "MILLENNIUM"),
)


class Expressions(TokenCursor):
    """The parser of expressions. The parser of queries derives from it, because each contains the other."""

    @abstractmethod
    def query(self) -> Query:
        """Reads a query."""

    def at_query(self, ahead: int = 0) -> bool:
        """Returns True if a query begins that many tokens behind the position, in parentheses or not."""
        while self.is_symbol("(", ahead):
            ahead += 1
        return self.peek(ahead).word in ("SELECT", "WITH", "VALUES")

    def expression(self, loosest: int = 0) -> Expression:
        """Reads an expression of operators that bind at least as tightly as `loosest`."""
        with self.level():
            left = self._prefixed()
            for _ in range(CHAIN_MAX):
                further = self._further(left, loosest)
                if further is None:
                    return left
                left = further
            raise SqlFault(self.token.span, f"more than {CHAIN_MAX} operators in a row", "group them by parentheses")

    def _prefixed(self) -> Expression:
        start = self.token.span
        if self.take_word("NOT"):
            return Unary("NOT", self.expression(_NOT), self.since(start))
        if self.is_symbol("-") or self.is_symbol("+"):
            sign = self.next().value
            return Unary(sign, self.expression(_SIGN), self.since(start))
        return self._suffixed(self._primary())

    def _further(self, left: Expression, loosest: int) -> Expression | None:
        token = self.token
        if token.kind is TokenKind.SYMBOL:
            binds = _SYMBOLS.get(token.value)
            if binds is None or binds < loosest:
                return None
            self.next()
            operator = "<>" if token.value == "!=" else token.value
            quantifier = self.token.word if self.is_symbol("(", 1) and self.at_query(2) else ""
            if (operator, quantifier) in _AS_IN:
                self.next()
                return In(left, self.subquery(), operator == "<>", self.since(left.span))
            if quantifier in _QUANTIFIED and operator in _COMPARED:
                every = self.next().word == "ALL"
                return _quantified(left, operator, every, self.subquery(), self.since(left.span))
            right = self.expression(binds + 1)
            return Binary(operator, left, right, left.span.to(right.span))
        word = token.word
        for name, binds in (("OR", _OR), ("AND", _AND)):
            if word == name:
                if binds < loosest:
                    return None
                self.next()
                right = self.expression(binds + 1)
                return Binary(name, left, right, left.span.to(right.span))
        if word == "IS" and loosest <= _IS:
            return self._is(left)
        if word == "AT" and self.is_word("AT", "TIME", "ZONE"):
            self.expect_word("AT", "TIME", "ZONE")
            zone = self.expression(_SIGN)
            return Binary("AT TIME ZONE", left, zone, left.span.to(zone.span))
        if word == "OVERLAPS" and loosest <= _COMPARE:
            self.next()
            right = self.expression(_COMPARE + 1)
            return Binary(word, left, right, left.span.to(right.span))
        negated = word == "NOT"
        if (self.peek().word if negated else word) in ("BETWEEN", "IN", "LIKE", "SIMILAR") and loosest <= _RANGE:
            if negated:
                self.next()
            return self._ranged(left, negated)
        return None

    def _is(self, left: Expression) -> Expression:
        self.next()
        negated = self.take_word("NOT")
        if self.take_word("DISTINCT"):
            self.expect_word("FROM")
            right = self.expression(_COMPARE)
            operator = "IS NOT DISTINCT FROM" if negated else "IS DISTINCT FROM"
            return Binary(operator, left, right, left.span.to(right.span))
        if self.token.word not in ("NULL", "TRUE", "FALSE", "UNKNOWN", "JSON"):
            self.expected("NULL, TRUE, FALSE, UNKNOWN or JSON", "behind IS")
        what = self.next().word
        if what == "JSON" and self.token.word in ("VALUE", "OBJECT", "ARRAY", "SCALAR"):
            what = f"JSON {self.next().word}"
        return Is(left, what, negated, self.since(left.span))

    def _ranged(self, left: Expression, negated: bool) -> Expression:
        if self.take_word("BETWEEN"):
            symmetric = self.take_word("SYMMETRIC")
            if not symmetric:
                self.take_word("ASYMMETRIC")
            lower = self.expression(_ADD)
            self.expect_word("AND", where="of BETWEEN")
            return Between(left, lower, self.expression(_ADD), negated, symmetric, self.since(left.span))
        if self.take_word("IN"):
            if self.is_symbol("(") and self.at_query(1):
                return In(left, self.subquery(), negated, self.since(left.span))
            values = self.in_parentheses(self.expression, "of IN")
            return In(left, values, negated, self.since(left.span))
        operator: Literal["LIKE", "SIMILAR TO"] = "LIKE"
        if not self.take_word("LIKE"):
            self.expect_word("SIMILAR", "TO")
            operator = "SIMILAR TO"
        if self.token.word in _QUANTIFIED and self.is_symbol("(", 1):
            joint = "AND" if self.token.word == "ALL" else "OR"
            hint = f"text LIKE 'a%' {joint} text LIKE 'b%'"
            raise SqlFault(self.token.span, f"{operator} {self.token.word} is not supported", hint)
        pattern = self.expression(_ADD)
        escape = self.expression(_ADD) if self.take_word("ESCAPE") else None
        return Like(operator, left, pattern, escape, negated, self.since(left.span))

    def _suffixed(self, operand: Expression) -> Expression:
        for _ in range(CHAIN_MAX):
            if self.take_symbol("::"):
                operand = Cast(operand, self.type(), False, self.since(operand.span))
            elif self.take_symbol("["):
                index = self.expression()
                self.expect_symbol("]")
                operand = Index(operand, index, self.since(operand.span))
            elif self.is_symbol("."):
                self.next()
                operand = FieldAccess(operand, self.expect_name("the name of a field"), self.since(operand.span))
            else:
                return operand
        raise SqlFault(self.token.span, f"more than {CHAIN_MAX} operators in a row")

    # -- primaries ----------------------------------------------------------------------------------------------------

    def _primary(self) -> Expression:
        token = self.token
        kind = token.kind
        if kind in (TokenKind.INTEGER, TokenKind.DECIMAL, TokenKind.FLOAT, TokenKind.STRING):
            self.next()
            kinds = {
                TokenKind.INTEGER: "integer",
                TokenKind.DECIMAL: "decimal",
                TokenKind.FLOAT: "float",
                TokenKind.STRING: "string",
            }
            return Constant(kinds[kind], token.value, token.span)
        if kind is TokenKind.PARAMETER:
            self.next()
            return Parameter(token.value, token.span)
        if self.is_symbol("("):
            return self._parenthesised()
        if self.is_symbol("*"):
            self.next()
            return Star((), token.span)
        if kind is TokenKind.NAME:
            special = _SPECIAL.get(token.word)
            if special is not None and (found := special(self)) is not None:
                return found
            if token.word in NOT_AN_ALIAS and not self.is_symbol("(", 1):
                self.expected("an expression")
        if kind in (TokenKind.NAME, TokenKind.QUOTED):
            return self.call() if self.is_symbol("(", 1) else self._column()
        self.expected("an expression")

    def _column(self) -> Expression:
        parts = [self.expect_name("a column")]
        while self.is_symbol("."):
            self.next()
            if self.take_symbol("*"):
                return Star(tuple(parts), self.since(parts[0].span))
            parts.append(self.expect_name("the name of a column"))
        return Column(tuple(parts), self.since(parts[0].span))

    def _parenthesised(self) -> Expression:
        start = self.token.span
        if self.at_query(1):
            return Subquery(self.subquery(), self.since(start))
        self.next()
        items = self.several(self.expression)
        self.expect_symbol(")", "that closes the parenthesis")
        return items[0] if len(items) == 1 else Items("ROW", items, self.since(start))

    def subquery(self) -> Query:
        """Reads a query in parentheses."""
        self.expect_symbol("(")
        query = self.query()
        self.expect_symbol(")", "behind the query")
        return query

    def _constant(self, kind: str) -> Expression:
        token = self.next()
        return Constant(kind, token.value, token.span)

    def _typed(self) -> Expression | None:
        """DATE '…', TIME '…', TIMESTAMP '…', TIMESTAMP_LTZ '…', X'…'."""
        if self.peek().kind is not TokenKind.STRING:
            return None
        token = self.next()
        text = self.next()
        type = cast(Literal["DATE", "TIME", "TIMESTAMP", "TIMESTAMP_LTZ", "X"], token.word)
        return TypedLiteral(type, text.value, self.since(token.span))

    def _interval(self) -> Expression | None:
        signed = self.is_symbol("-", 1) or self.is_symbol("+", 1)
        if self.peek(2 if signed else 1).kind is not TokenKind.STRING:
            if self.peek().kind is TokenKind.INTEGER:
                self.next()
                self.expected("a string", "behind INTERVAL", f"write INTERVAL '{self.token.value}' {self.peek().word}")
            return None
        start = self.next().span
        sign = self.next().value if signed else ""
        text = self.next().value
        inside = re.fullmatch(r"\s*(\d+)\s+([A-Za-z]+)\s*", text)
        if inside is not None and inside[2].upper().removesuffix("S") in UNITS:
            self.expected("a unit", "behind INTERVAL '…'", f"write INTERVAL '{inside[1]}' {inside[2].upper()}")
        unit = self._unit()
        to_unit = self._unit() if self.take_word("TO") else None
        return Interval(sign.replace("+", "") + text.strip(), unit, to_unit, self.since(start))

    def _unit(self) -> str:
        word = self.token.word
        unit = word[:-1] if word.endswith("S") else word
        if unit not in UNITS:
            self.expected(f"a unit ({', '.join(UNITS)})")
        self.next()
        if self.take_symbol("("):
            self.expect_integer("the precision of the unit")
            self.expect_symbol(")")
        return unit

    def _case(self) -> Expression:
        start = self.next().span
        operand = None if self.is_word("WHEN") else self.expression()
        branches = []
        while self.take_word("WHEN"):
            conditions = [self.expression()] if operand is None else self.several(self.expression)
            self.expect_word("THEN", where="of CASE")
            value = self.expression()
            branches += [(condition, value) for condition in conditions]
        if not branches:
            self.expected("WHEN", "of CASE")
        otherwise = self.expression() if self.take_word("ELSE") else None
        self.expect_word("END", where="of CASE")
        return Case(operand, tuple(branches), otherwise, self.since(start))

    def _cast(self) -> Expression:
        token = self.next()
        self.expect_symbol("(", f"behind {token.word}")
        operand = self.expression()
        self.expect_word("AS", where=f"of {token.word}")
        type = self.type()
        self.expect_symbol(")", f"of {token.word}")
        return Cast(operand, type, token.word == "TRY_CAST", self.since(token.span))

    def _exists(self) -> Expression | None:
        if not (self.is_symbol("(", 1) and self.at_query(2)):
            return None
        start = self.next().span
        return Exists(self.subquery(), self.since(start))

    def _bracketed(self) -> Expression | None:
        if not self.is_symbol("[", 1):
            return None
        token = self.next()
        self.next()
        items = () if self.is_symbol("]") else self.several(self.expression)
        self.expect_symbol("]", f"of {token.word}")
        return Items(cast(Literal["ARRAY", "MAP"], token.word), items, self.since(token.span))

    def _bare(self) -> Expression | None:
        if self.is_symbol("(", 1) or self.is_symbol(".", 1):
            return None
        name = self.expect_name("a function")
        return Call(name, (), name.span, parentheses=False)

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(self) -> Call:
        """Reads a call of a function, with FILTER, WITHIN GROUP and OVER."""
        name = self.expect_name("a function")
        self.expect_symbol("(")
        if name.text.upper() in _QUANTIFIED and self.at_query():
            hint = f"it stands behind a comparison: x > {name.text.upper()} (SELECT …)"
            raise SqlFault(name.span, f"{name.text.upper()} (SELECT …) is not supported", hint)
        if name.text.upper() in _QUANTIFIED and not name.quoted:
            raise SqlFault(name.span, f"{name.text.upper()} (…) is not supported", "x IN ('a', 'b')")
        special = _ARGUMENTS.get(name.text.upper()) if not name.quoted else None
        star = distinct = False
        arguments: tuple[Expression, ...] = ()
        if special is not None:
            try:
                arguments = special(self)
            except SqlFault as error:
                fault = error.fault
                raise SqlFault(fault.span, fault.message, fault.hint or _FORMS.get(name.text.upper(), "")) from error
        elif self.is_symbol("*") and self.is_symbol(")", 1):
            star = True
            self.next()
        elif not self.is_symbol(")"):
            distinct = self.take_word("DISTINCT")
            if not distinct and self.is_word("ALL") and not self.is_symbol(",", 1):
                self.take_word("ALL")
            arguments = self.several(self.argument)
            if name.text.upper() == "ARRAY_AGG" and any(self.is_word(each, "NULLS") for each in ("IGNORE", "RESPECT")):
                treatment = self.next()
                arguments = (*arguments, Word(treatment.word, self.expect_word("NULLS")))
        if self.is_word("AS"):
            hint = (
                "TRY_CAST(x AS INT)" if name.text.upper() == "SAFE_CAST" else "a value has its alias in the select list"
            )
            self.expected(")", f"of {name.text}(…)", hint)
        if self.is_word("IGNORE") or self.is_word("RESPECT"):
            hint = f"{name.text}(x) FILTER (WHERE x IS NOT NULL)"
            self.expected(")", f"of {name.text}(…)", hint)
        if self.is_word("ORDER"):
            hint = "aggregates go by the order of event time; LISTAGG(x) WITHIN GROUP (ORDER BY y) by any other"
            self.expected(")", f"of {name.text}(…)", hint)
        self.expect_symbol(")", f"of {name.text}(…)")
        order: tuple[Sort, ...] = ()
        if self.take_word("WITHIN", "GROUP"):
            self.expect_symbol("(", "behind WITHIN GROUP")
            order = self.order_by()
            self.expect_symbol(")", "of WITHIN GROUP")
        filter = None
        if self.is_word("FILTER") and self.is_symbol("(", 1):
            self.next()
            self.next()
            if not self.take_word("WHERE"):
                self.expected("WHERE", "of FILTER", "FILTER (WHERE condition)")
            filter = self.expression()
            self.expect_symbol(")", "of FILTER")
        over = self._over() if self.take_word("OVER") else None
        return Call(name, arguments, self.since(name.span), distinct, star, order, filter, over)

    def argument(self) -> Expression:
        """Reads an argument of a function: an expression, TABLE …, MODEL …, DESCRIPTOR(…), or name => one of these."""
        token = self.token
        if token.kind in (TokenKind.NAME, TokenKind.QUOTED) and self.is_symbol("=>", 1):
            name = self.expect_name("the name of an argument")
            self.next()
            return Argument(name, self.argument(), self.since(name.span))
        if self.is_word("TABLE") and (self.is_symbol("(", 1) or self.peek().kind in (TokenKind.NAME, TokenKind.QUOTED)):
            self.next()
            table = self.subquery() if self.is_symbol("(") else self.qualified("the name of a table")
            partition: tuple[Expression, ...] = ()
            if self.take_word("PARTITION"):
                self.expect_word("BY")
                partition = self._group_of_one_or_more()
            return TableArgument(table, partition, self.since(token.span))
        if self.is_word("MODEL") and self.peek().kind in (TokenKind.NAME, TokenKind.QUOTED):
            self.next()
            return ModelArgument(self.expect_name("the name of a model"), self.since(token.span))
        if self.is_word("DESCRIPTOR") and self.is_symbol("(", 1):
            self.next()
            columns = self.in_parentheses(lambda: self.expect_name("a column"), "of DESCRIPTOR")
            return Descriptor(columns, self.since(token.span))
        return self.expression()

    def _group_of_one_or_more(self) -> tuple[Expression, ...]:
        """The columns of PARTITION BY in an argument: in parentheses if there are several."""
        first = self.expression()
        return first.items if isinstance(first, Items) else (first,)

    def _over(self) -> Window:
        start = self.before
        if self.token.kind in (TokenKind.NAME, TokenKind.QUOTED):
            return Window(self.expect_name("the name of a window"), (), (), None, self.since(start))
        self.expect_symbol("(", "behind OVER")
        window = self.window(start)
        self.expect_symbol(")", "of OVER")
        return window

    def window(self, start: Span) -> Window:
        """Reads the inside of OVER (…)."""
        base = None
        if self.token.kind is TokenKind.NAME and not self.is_symbol(")") and self.token.word not in _OF_WINDOWS:
            base = self.expect_name("the name of a window")
        partition: tuple[Expression, ...] = ()
        if self.take_word("PARTITION"):
            self.expect_word("BY")
            partition = self.several(self.expression)
        order = self.order_by() if self.is_word("ORDER") else ()
        frame = self._frame() if self.token.word in ("ROWS", "RANGE") else None
        return Window(base, partition, order, frame, self.since(start))

    def order_by(self) -> tuple[Sort, ...]:
        """Reads ORDER BY and its entries."""
        self.expect_word("ORDER")
        self.expect_word("BY")
        return self.several(self._sort)

    def _sort(self) -> Sort:
        expression = self.expression()
        descending = self.take_word("DESC")
        if not descending:
            self.take_word("ASC")
        nulls = None
        if self.take_word("NULLS"):
            if self.token.word not in ("FIRST", "LAST"):
                self.expected("FIRST or LAST", "behind NULLS")
            nulls = self.next().word == "FIRST"
        return Sort(expression, descending, nulls, self.since(expression.span))

    def _frame(self) -> WindowFrame:
        token = self.next()
        if self.take_word("BETWEEN"):
            start = self._bound()
            self.expect_word("AND", where=f"of {token.word} BETWEEN")
            end = self._bound()
        else:
            start = self._bound()
            end = FrameBound("CURRENT ROW", None, start.span)
        return WindowFrame(cast(Literal["ROWS", "RANGE"], token.word), start, end, self.since(token.span))

    def _bound(self) -> FrameBound:
        start = self.token.span
        if self.take_word("CURRENT"):
            self.expect_word("ROW")
            return FrameBound("CURRENT ROW", None, self.since(start))
        amount = None if self.take_word("UNBOUNDED") else self.expression(_ADD)
        if self.token.word not in ("PRECEDING", "FOLLOWING"):
            self.expected("PRECEDING or FOLLOWING")
        kind = cast(Literal["PRECEDING", "FOLLOWING"], self.next().word)
        return FrameBound(kind, amount, self.since(start))

    # -- arguments with words between them ----------------------------------------------------------------------------

    def _word(self, words: tuple[str, ...]) -> Word:
        if self.token.word not in words:
            self.expected(f"one of {', '.join(words)}", hint=near_names(self.token.word, words))
        token = self.next()
        return Word(token.word, token.span)

    def _extract(self) -> tuple[Expression, ...]:
        unit = self._word(_EXTRACTED)
        self.expect_word("FROM", where="of EXTRACT")
        return unit, self.expression()

    def _trim(self) -> tuple[Expression, ...]:
        side = self._word(("BOTH", "LEADING", "TRAILING")) if self.token.word in _SIDES else None
        characters = None if self.is_word("FROM") else self.expression()
        if self.take_word("FROM"):
            side = side or Word("BOTH", self.before)
            return (side, self.expression()) if characters is None else (side, characters, self.expression())
        if side is not None or characters is None:
            self.expected("FROM", "of TRIM")
        return (characters,)

    def _substring(self) -> tuple[Expression, ...]:
        arguments = [self.expression()]
        if self.take_word("FROM"):
            arguments.append(self.expression())
            if self.take_word("FOR"):
                arguments.append(self.expression())
            return tuple(arguments)
        while self.take_symbol(","):
            arguments.append(self.expression())
        return tuple(arguments)

    def _position(self) -> tuple[Expression, ...]:
        part = self.expression(_ADD)
        if not self.take_symbol(","):
            self.expect_word("IN", where="of POSITION")
        return part, self.expression()

    def _overlay(self) -> tuple[Expression, ...]:
        arguments = [self.expression()]
        for word in ("PLACING", "FROM", "FOR"):
            if self.take_word(word) or (word != "FOR" and self.take_symbol(",")):
                arguments.append(self.expression())
            elif word != "FOR":
                self.expected(word, "of OVERLAY")
        return tuple(arguments)

    def _rounded(self) -> tuple[Expression, ...]:
        operand = self.expression()
        return (operand, self._word(UNITS)) if self.take_word("TO") else (operand,)

    def _with_unit(self) -> tuple[Expression, ...]:
        arguments: list[Expression] = [self._word(UNITS)]
        while self.take_symbol(","):
            arguments.append(self.expression())
        return tuple(arguments)

    def _json_value(self) -> tuple[Expression, ...]:
        """The arguments of JSON_VALUE: RETURNING, EMPTY and ERROR become arguments of these names."""
        arguments = self._json_path()
        start = self.token.span
        if self.take_word("RETURNING"):
            type = self.type()
            none = Constant("null", "NULL", start)
            arguments.append(Argument(Name("RETURNING", start), Cast(none, type, False, start), self.since(start)))
        return (*arguments, *self._on_events(default=True))

    def _on_events(self, *, default: bool) -> list[Expression]:
        """Reads what a function of JSON gives ON EMPTY and ON ERROR, as arguments of these names: a value, or ERROR.

        `default`: True for JSON_VALUE, which takes DEFAULT and a value; JSON_QUERY takes EMPTY ARRAY and EMPTY OBJECT.
        """
        found: list[Expression] = []
        for event in ("EMPTY", "ERROR"):
            start = self.token.span
            value: Expression | None = None
            # RETURNING BIGINT NULL ON EMPTY: the type has read the NULL
            if self.is_word("ON", event) and self.peek(-1).word == "NULL":
                value = Constant("null", "NULL", self.before)
            elif self.is_word("NULL", "ON", event):
                value = Constant("null", "NULL", self.next().span)
            elif self.is_word("ERROR", "ON", event):
                value = Word("ERROR", self.next().span)
            elif not default and any(self.is_word("EMPTY", kind, "ON", event) for kind in _EMPTY):
                value = Constant("string", _EMPTY[self.peek().word], self.expect_word("EMPTY", self.peek().word))
            elif default and self.take_word("DEFAULT"):
                value = self.expression()
                event = event if self.is_word("ON", event) else "ERROR"
            if value is not None:
                self.expect_word("ON", event)
                found.append(Argument(Name(event, start), value, self.since(start)))
        return found

    def _json_path(self) -> list[Expression]:
        arguments = [self.expression()]
        self.expect_symbol(",", "before the path")
        return [*arguments, self.expression()]

    def _json_exists(self) -> tuple[Expression, ...]:
        arguments = self._json_path()
        if not self.is_symbol(")"):
            if self.token.word not in ("TRUE", "FALSE", "UNKNOWN", "ERROR"):
                self.expected("TRUE, FALSE, UNKNOWN or ERROR", "of JSON_EXISTS")
            arguments.append(Word(self.token.word, self.next().span))
            self.expect_word("ON", "ERROR")
        return tuple(arguments)

    def _json_query(self) -> tuple[Expression, ...]:
        """The arguments of JSON_QUERY: WITH … WRAPPER becomes a word behind the path."""
        arguments = self._json_path()
        if self.is_word("RETURNING"):
            raise SqlFault(self.token.span, "RETURNING of JSON_QUERY is not supported", "it returns a STRING")
        start = self.token.span
        wrapper = "WITHOUT"
        if self.take_word("WITH"):
            wrapper = self.token.word if self.token.word in ("CONDITIONAL", "UNCONDITIONAL") else "UNCONDITIONAL"
            self.take_word(wrapper)
        if wrapper != "WITHOUT" or self.take_word("WITHOUT"):
            self.take_word("ARRAY")
            self.expect_word("WRAPPER", where="of JSON_QUERY")
        arguments.append(Word(wrapper, self.since(start)))
        return (*arguments, *self._on_events(default=False))

    def _json_object(self) -> tuple[Expression, ...]:
        """The arguments of JSON_OBJECT: keys and values by turns, and the word of … ON NULL."""
        arguments: list[Expression] = []
        while not self.is_symbol(")") and not self._on_null_follows():
            if arguments:
                self.expect_symbol(",", "of JSON_OBJECT")
            self.take_word("KEY")
            arguments.append(self.expression())
            self.expect_word("VALUE", where="of JSON_OBJECT")
            arguments.append(self.expression())
        return (*arguments, *self._on_null())

    def _json_array(self) -> tuple[Expression, ...]:
        arguments: list[Expression] = []
        while not self.is_symbol(")") and not self._on_null_follows():
            if arguments:
                self.expect_symbol(",", "of JSON_ARRAY")
            arguments.append(self.expression())
        return (*arguments, *self._on_null())

    def _json_arrayagg(self) -> tuple[Expression, ...]:
        return (self.expression(), *self._on_null())

    def _json_objectagg(self) -> tuple[Expression, ...]:
        self.take_word("KEY")
        key = self.expression()
        self.expect_word("VALUE", where="of JSON_OBJECTAGG")
        return (key, self.expression(), *self._on_null())

    def _on_null_follows(self) -> bool:
        return any(self.is_word(word, "ON", "NULL") for word in ("NULL", "ABSENT"))

    def _on_null(self) -> tuple[Expression, ...]:
        if not self._on_null_follows():
            return ()
        token = self.next()
        self.expect_word("ON")
        self.expect_word("NULL")
        return (Word(token.word, token.span),)

    # -- types --------------------------------------------------------------------------------------------------------

    def type(self) -> Type:
        """Reads a type, with its parameters and NOT NULL."""
        with self.level():
            start = self.token.span
            name = self.expect_name("a type")
            if name.quoted:
                raise SqlFault(name.span, "a type has no quotes")
            word = name.text.upper()
            if word == "DOUBLE":
                self.take_word("PRECISION")
            numbers: tuple[int, ...] = ()
            inner: tuple[Type, ...] = ()
            fields: tuple[TypeField, ...] = ()
            if word == "ROW" and (self.is_symbol("<") or self.is_symbol("(")):
                close = ">" if self.next().value == "<" else ")"
                fields = self.several(self._type_field)
                self.expect_symbol(close, "of ROW")
            elif word in ("ARRAY", "MAP", "MULTISET"):
                self.expect_symbol("<", f"behind {word}")
                inner = self.several(self.type)
                self.expect_symbol(">", f"of {word}")
            elif self.is_symbol("("):
                numbers = self.in_parentheses(lambda: self.expect_integer("a number"), f"of {word}")
            if word in ("TIMESTAMP", "TIME") and self.token.word in ("WITH", "WITHOUT"):
                begin = self.next().word
                local = "LOCAL " if self.take_word("LOCAL") else ""
                self.expect_word("TIME", "ZONE")
                word = f"{word} WITH {local}TIME ZONE" if begin == "WITH" else word
            nullable = not self.take_word("NOT", "NULL")
            if nullable:
                self.take_word("NULL")
            return Type(word, self.since(start), numbers, inner, fields, nullable)

    def _type_field(self) -> TypeField:
        name = self.expect_name("the name of a field")
        return TypeField(name, self.type())


_SPECIAL: dict[str, Callable[[Expressions], Expression | None]] = {
    "NULL": lambda parser: parser._constant("null"),
    "TRUE": lambda parser: parser._constant("boolean"),
    "FALSE": lambda parser: parser._constant("boolean"),
    "CASE": Expressions._case,
    "CAST": Expressions._cast,
    "TRY_CAST": Expressions._cast,
    "EXISTS": Expressions._exists,
    "INTERVAL": Expressions._interval,
    "ARRAY": Expressions._bracketed,
    "MAP": Expressions._bracketed,
    **dict.fromkeys(("DATE", "TIME", "TIMESTAMP", "TIMESTAMP_LTZ", "X"), Expressions._typed),
    **dict.fromkeys(_WITHOUT_PARENTHESES, Expressions._bare),
}
"""Words that begin an expression of their own form; the parser returns None where the word is a name here."""

_ARGUMENTS: dict[str, Callable[[Expressions], tuple[Expression, ...]]] = {
    "EXTRACT": Expressions._extract,
    "TRIM": Expressions._trim,
    "SUBSTRING": Expressions._substring,
    "POSITION": Expressions._position,
    "OVERLAY": Expressions._overlay,
    "FLOOR": Expressions._rounded,
    "CEIL": Expressions._rounded,
    "CEILING": Expressions._rounded,
    "TIMESTAMPADD": Expressions._with_unit,
    "TIMESTAMPDIFF": Expressions._with_unit,
    "JSON_VALUE": Expressions._json_value,
    "JSON_EXISTS": Expressions._json_exists,
    "JSON_QUERY": Expressions._json_query,
    "JSON_OBJECT": Expressions._json_object,
    "JSON_ARRAY": Expressions._json_array,
    "JSON_ARRAYAGG": Expressions._json_arrayagg,
    "JSON_OBJECTAGG": Expressions._json_objectagg,
}
"""Functions whose arguments have words between them."""

_FORMS = {
    "EXTRACT": "EXTRACT(HOUR FROM ts)",
    "TIMESTAMPADD": "TIMESTAMPADD(DAY, 1, ts)",
    "TIMESTAMPDIFF": "TIMESTAMPDIFF(DAY, start, end)",
    "TRIM": "TRIM(text), TRIM(BOTH 'x' FROM text)",
    "POSITION": "POSITION('a' IN text)",
    "OVERLAY": "OVERLAY(text PLACING part FROM 3)",
    **dict.fromkeys(("FLOOR", "CEIL", "CEILING"), "FLOOR(number), FLOOR(ts TO HOUR)"),
    **dict.fromkeys(("JSON_VALUE", "JSON_QUERY", "JSON_EXISTS"), "JSON_VALUE(text, '$.name')"),
    "JSON_OBJECT": "JSON_OBJECT(KEY 'a' VALUE x)",
    "JSON_ARRAY": "JSON_ARRAY(x, y)",
    "JSON_ARRAYAGG": "JSON_ARRAYAGG(x)",
    "JSON_OBJECTAGG": "JSON_OBJECTAGG(KEY k VALUE x)",
}
"""How the functions of `_ARGUMENTS` are written."""


def _quantified(left: Expression, operator: str, every: bool, query: Query, span: Span) -> Expression:
    """Returns `left operator ALL (query)`, or ANY, by the number of rows, of those that are not NULL, and the extreme value.

    x > ALL (q)  CASE WHEN n = 0 THEN TRUE  WHEN NOT x > max THEN FALSE WHEN values < n THEN NULL ELSE x > max END
    x > ANY (q)  CASE WHEN n = 0 THEN FALSE WHEN x > min THEN TRUE      WHEN values < n THEN NULL ELSE x > min END
    """
    if operator in ("=", "<>"):  # = ALL is <= ALL and >= ALL, and <> ANY is its opposite
        below, above = (_quantified(left, each, True, query, span) for each in ("<=", ">="))
        equal = Binary("AND", below, above, span)
        return equal if every else Unary("NOT", equal, span)
    first = Constant("integer", "1", span), Constant("integer", "0", span)
    truth = {each: Constant("boolean", str(each).upper(), span) for each in (True, False)}
    rows, values = (_value_of(query, "COUNT", star=star) for star in (True, False))
    extreme = _value_of(query, "MAX" if every == operator.startswith(">") else "MIN")
    compared = Binary(operator, left, extreme, span)
    branches = (
        (Binary("=", rows, first[1], span), truth[every]),
        (Unary("NOT", compared, span) if every else compared, truth[not every]),
        (Binary("<", values, rows, span), Constant("null", "NULL", span)),
    )
    return Case(None, branches, compared, span)


def _value_of(query: Query, function: str, *, star: bool = False) -> Subquery:
    """Returns an aggregate of the one column of a query, as a query in the place of a value."""
    span, body = query.span, query.body
    if isinstance(body, SelectBody) and len(body.items) > 1:
        raise SqlFault(span, "a query behind ALL or ANY has one column")
    if isinstance(body, SelectBody) and not query.order and query.limit is None and _is_plain(body):
        (item,) = body.items
        source, inner, tables = body, item.expression, query.tables
    else:
        name = Name("value", span, True)
        made = Derived(query, Alias(Name("values", span, True), (name,)), False, span)
        source = SelectBody(False, (), made, None, (), None, (), None, (), None, span)
        inner, tables = Column((name,), span), ()
    call = Call(Name(function, span), () if star else (inner,), span, star=star)
    return Subquery(Query(tables, replace(source, items=(Item(call, None, span),)), (), None, None, span), span)


def _is_plain(body: SelectBody) -> bool:
    """Returns True for SELECT column FROM … WHERE …, whose rows an aggregate in the place of the column sees."""
    item = body.items[0].expression
    grouped = body.group or body.having is not None or body.qualify is not None or body.distinct or body.sets
    return len(body.items) == 1 and isinstance(item, Column) and not grouped and body.emit_on_close is None


_COMPARED = ("=", "<>", "<", "<=", ">", ">=")
_AS_IN = (("=", "ANY"), ("=", "SOME"), ("<>", "ALL"))
_QUANTIFIED = ("ANY", "SOME", "ALL")
_SIDES = ("BOTH", "LEADING", "TRAILING")
_OF_WINDOWS = ("PARTITION", "ORDER", "ROWS", "RANGE")
