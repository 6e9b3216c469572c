"""The parser of queries: SELECT, FROM and its joins, MATCH_RECOGNIZE, UNION, WITH."""

from itertools import combinations, product
from math import prod
from typing import cast

from sabot.sql.syntax.cursor import CLAUSES, NOT_AN_ALIAS
from sabot.sql.syntax.expressions import UNITS, Expressions
from sabot.sql.syntax.text import SqlFault, near_names
from sabot.sql.syntax.tokens import TokenKind
from sabot.sql.syntax.tree import (
    Alias,
    Alternatives,
    Body,
    Call,
    Constant,
    Derived,
    Expression,
    Item,
    JoinSource,
    MatchRecognize,
    Name,
    Pattern,
    Query,
    Repeat,
    SelectBody,
    SetOperation,
    Sort,
    Source,
    Succession,
    TableFunction,
    TableName,
    ValuesBody,
    Variable,
    Window,
)

_JOINS = ("JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "NATURAL")
_MOST_SETS = 64  # of a GROUP BY; each is a GROUP BY of its own
_BEGINNINGS = (TokenKind.NAME, TokenKind.QUOTED, TokenKind.STRING, TokenKind.INTEGER, TokenKind.DECIMAL)
_UNNEST = "CROSS JOIN UNNEST(array) AS t (x)"
_NO_ALIAS = {
    "ASOF": "JOIN t FOR SYSTEM_TIME AS OF a.ts ON a.key = t.key",
    "PIVOT": "SUM(x) FILTER (WHERE kind = 'a') AS a, …",
    "UNPIVOT": "UNION ALL of a query for each column",
}
"""Words of other dialects behind a table, and what to write instead."""


class Queries(Expressions):
    """The parser of queries."""

    def query(self) -> Query:
        """Reads a query: WITH, its body, ORDER BY, LIMIT, OFFSET."""
        with self.level():
            start = self.token.span
            tables: tuple[tuple[Alias, Query], ...] = ()
            if self.take_word("WITH"):
                if self.is_word("RECURSIVE"):
                    raise SqlFault(self.token.span, "recursive queries are not supported", "write each level as a join")
                tables = self.several(self._common_table)
            body = self._body()
            order = self.order_by() if self.is_word("ORDER") else ()
            limit = offset = None
            for _ in range(2):
                if limit is None and self.take_word("LIMIT"):
                    if self.is_word("ALL"):
                        self.expected("a whole number", "behind LIMIT", "leave LIMIT ALL out")
                    limit = self.expression()
                elif offset is None and self.take_word("OFFSET"):
                    offset = self.expression()
                    self.take_word("ROWS") or self.take_word("ROW")
            if limit is not None and self.is_symbol(","):
                self.expected("; or the end of the statement", hint="LIMIT 10 OFFSET 5")
            if limit is None and self.take_word("FETCH"):
                limit = self._fetch()
            return Query(tables, body, order, limit, offset, self.since(start))

    def _fetch(self) -> Expression:
        start = self.token.span
        self.take_word("FIRST") or self.expect_word("NEXT")
        one = self.token.word in ("ROW", "ROWS")
        limit: Expression = Constant("integer", "1", start) if one else self.expression()
        self.take_word("ROWS") or self.expect_word("ROW")
        if self.is_word("WITH", "TIES"):
            self.next()
        self.expect_word("ONLY")
        return limit

    def _common_table(self) -> tuple[Alias, Query]:
        name = self.expect_name("the name of a table in WITH")
        columns = self.in_parentheses(self.column_name, "of the columns") if self.is_symbol("(") else ()
        self.expect_word("AS", where=f"behind {name.text}")
        if not self.is_symbol("("):
            self.expected("(", "of WITH", f"WITH {name.text} AS (SELECT …)")
        return Alias(name, columns), self.subquery()

    def column_name(self) -> Name:
        """Reads the name of a column."""
        return self.expect_name("the name of a column")

    # -- bodies -------------------------------------------------------------------------------------------------------

    def _body(self) -> Body:
        left = self._intersected()
        while self.token.word in ("UNION", "EXCEPT", "MINUS"):
            operator = "EXCEPT" if self.token.word == "MINUS" else self.token.word
            self.next()
            every = self._all()
            right = self._intersected()
            left = SetOperation(operator, every, left, right, self.since(left.span))
        return left

    def _intersected(self) -> Body:
        left = self._simple()
        while self.take_word("INTERSECT"):
            every = self._all()
            right = self._simple()
            left = SetOperation("INTERSECT", every, left, right, self.since(left.span))
        return left

    def _all(self) -> bool:
        if self.take_word("ALL"):
            return True
        self.take_word("DISTINCT")
        return False

    def _simple(self) -> Body:
        if self.is_word("SELECT"):
            return self._select()
        if self.is_word("VALUES"):
            start = self.next().span
            rows = self.several(self._row)
            return ValuesBody(rows, self.since(start))
        if self.is_symbol("(") and self.at_query():
            return self.subquery()
        self.expected("SELECT")

    def _row(self) -> tuple[Expression, ...]:
        if self.is_symbol("("):
            return self.in_parentheses(self.expression, "of a row")
        return (self.expression(),)

    def _select(self) -> SelectBody:
        start = self.expect_word("SELECT")
        hints = self.hints()
        distinct = self.take_word("DISTINCT")
        if distinct and self.is_word("ON") and self.is_symbol("(", 1):
            hint = "QUALIFY ROW_NUMBER() OVER (PARTITION BY key ORDER BY x DESC) = 1"
            raise SqlFault(self.before.to(self.token.span), "DISTINCT ON is not supported", hint)
        if not distinct:
            self.take_word("ALL")
        if self.is_word("FROM"):
            self.expected("a column or an expression", "behind SELECT", "SELECT * FROM …")
        items = self.several(self.item)
        self._check_commas(items[-1])
        source = self._from() if self.take_word("FROM") else None
        where = self.expression() if self.take_word("WHERE") else None
        group, sets = self._group() if self.take_word("GROUP", "BY") else ((), ())
        having = self.expression() if self.take_word("HAVING") else None
        windows = self.several(self._named_window) if self.take_word("WINDOW") else ()
        qualify = self.expression() if self.take_word("QUALIFY") else None
        emit = self.expect_word("EMIT", "ON", "WINDOW", "CLOSE") if self.is_word("EMIT") else None
        return SelectBody(
            distinct, items, source, where, group, having, windows, qualify, hints, emit, self.since(start), sets
        )

    def _check_commas(self, last: Item) -> None:
        """Raises SqlFault if an entry follows the last one of a select list without a comma."""
        token, what = self.token, "a comma or FROM"
        if token.word in NOT_AN_ALIAS and (self.is_symbol(",", 1) or self.peek().word == "FROM"):
            self.expected(what, hint=f"{token.word} is a word of SQL, and a name in quotes: AS `{token.value}`")
        begins = token.kind in _BEGINNINGS and (token.word not in NOT_AN_ALIAS or token.word == "CASE")
        called = token.kind is TokenKind.SYMBOL and token.value == "(" and last.alias is not None
        if not (begins or called) or self.elsewhere(what) or near_names(self.peek(-1).word, CLAUSES):
            return
        hint = "columns have commas between them: SELECT a, b"
        if (unit := token.word.removesuffix("S")) in UNITS:
            hint = f"{self.peek(-1).value} * INTERVAL '1' {unit}"
        if called and last.alias is not None:
            raise SqlFault(last.alias.span, f"expected {what}, found a call of {last.alias.text}", hint)
        self.expected(what, hint=hint)

    def item(self) -> Item:
        """Reads an entry of a select list, with its alias."""
        expression = self.expression()
        alias = self._alias_name()
        return Item(expression, alias, self.since(expression.span))

    def _alias_name(self) -> Name | None:
        if self.take_word("AS"):
            return self.expect_name("an alias")
        if self.token.kind is TokenKind.QUOTED or (
            self.token.kind is TokenKind.NAME and self.token.word not in NOT_AN_ALIAS
        ):
            return self.expect_name("an alias")
        return None

    def _group(self) -> tuple[tuple[Expression, ...], tuple[tuple[Expression, ...], ...]]:
        """Returns all expressions of GROUP BY, and the sets of them, each for groups of its own; () if there is one."""
        if self.is_word("ALL") and not self.is_symbol(".", 1):
            raise SqlFault(self.token.span, "GROUP BY ALL is not supported", "name the columns: GROUP BY a, b")
        start = self.token.span
        elements = self.several(self._group_element)
        every = tuple(each for element in elements for some in element for each in some)
        if not every:
            raise SqlFault(self.since(start), "GROUP BY has no expression", "without GROUP BY, all rows are one group")
        if all(len(element) == 1 for element in elements):
            return every, ()
        number = prod(map(len, elements))
        if number > _MOST_SETS:
            raise SqlFault(self.since(start), f"GROUP BY has {number} sets", f"{_MOST_SETS} at most: name those needed")
        return every, tuple(tuple(each for some in chosen for each in some) for chosen in product(*elements))

    def _group_element(self) -> tuple[tuple[Expression, ...], ...]:
        """Reads an expression, or GROUPING SETS, ROLLUP or CUBE; returns its sets."""
        with self.level():
            if self.is_word("GROUPING", "SETS"):
                self.expect_word("GROUPING", "SETS")
                sets = self.in_parentheses(self._grouping_set, "of GROUPING SETS")
                return tuple(each for some in sets for each in some)
            if self.token.word in ("ROLLUP", "CUBE") and self.is_symbol("(", 1):
                word, start = self.token.word, self.next().span
                items = self.in_parentheses(self._several_in_parentheses, f"of {word}")
                if word == "CUBE" and 2 ** len(items) > _MOST_SETS:
                    hint = f"{_MOST_SETS} at most: GROUPING SETS names those that are needed"
                    raise SqlFault(self.since(start), f"this CUBE has {2 ** len(items)} sets", hint)
                taken = (
                    [range(number) for number in range(len(items), -1, -1)]
                    if word == "ROLLUP"
                    else [some for size in range(len(items), -1, -1) for some in combinations(range(len(items)), size)]
                )
                return tuple(tuple(each for i in some for each in items[i]) for some in taken)
            return ((self.expression(),),)

    def _grouping_set(self) -> tuple[tuple[Expression, ...], ...]:
        nested = self.is_word("GROUPING", "SETS") or self.token.word in ("ROLLUP", "CUBE")
        return self._group_element() if nested else (self._several_in_parentheses(),)

    def _several_in_parentheses(self) -> tuple[Expression, ...]:
        """Reads `a`, `(a, b)` or `()`."""
        if not self.is_symbol("("):
            return (self.expression(),)
        if self.is_symbol(")", 1):
            self.next()
            self.next()
            return ()
        return self.in_parentheses(self.expression, "of a set")

    def _named_window(self) -> tuple[Name, Window]:
        name = self.expect_name("the name of a window")
        if name.text.upper() in ("TUMBLING", "HOPPING", "SESSION"):
            hint = "FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start, window_end"
            raise SqlFault(name.span, f"WINDOW {name.text.upper()} is not supported", hint)
        start = self.expect_word("AS")
        self.expect_symbol("(")
        window = self.window(start)
        self.expect_symbol(")", "of WINDOW")
        return name, window

    # -- FROM ---------------------------------------------------------------------------------------------------------

    def _from(self) -> Source:
        left = self._joined()
        while self.take_symbol(","):
            right = self._joined()
            left = JoinSource("COMMA", left, right, None, (), self.since(left.span))
        return left

    def _joined(self) -> Source:
        left = self._table()
        while self.token.word in _JOINS:
            left = self._join(left)
        if self.is_word("LATERAL", "VIEW"):
            raise SqlFault(self.expect_word("LATERAL", "VIEW"), "LATERAL VIEW is not supported", _UNNEST)
        return left

    def _join(self, left: Source) -> Source:
        start = self.token.span
        natural = self.take_word("NATURAL")
        kind = "INNER"
        if self.token.word in ("LEFT", "RIGHT", "FULL"):
            kind = self.next().word
            if self.token.word in ("SEMI", "ANTI"):
                word = "IN (SELECT …)" if self.token.word == "SEMI" else "NOT EXISTS (SELECT …)"
                raise SqlFault(self.token.span, f"{kind} {self.token.word} JOIN is not supported", f"write {word}")
            self.take_word("OUTER")
        elif self.token.word == "INNER" or (self.token.word == "CROSS" and not natural):
            kind = self.next().word
        self.expect_word("JOIN")
        right = self._table()
        lateral = isinstance(right, Derived | TableFunction) and right.lateral
        if natural and (lateral or not self._needs_condition(right) or getattr(right, "as_of", None) is not None):
            raise SqlFault(
                start.to(right.span),
                "NATURAL JOIN takes tables, views and queries",
                "write JOIN … ON, or USING (column)",
            )
        on: Expression | None = None
        using: tuple[Name, ...] = ()
        if kind != "CROSS" and not natural:
            if self.take_word("ON"):
                on = self.expression()
            elif self.take_word("USING"):
                if not self.is_symbol("("):
                    self.expected("(", "of USING", f"USING ({self.token})")
                using = self.in_parentheses(self.column_name, "of USING")
            elif not (isinstance(right, TableFunction) and right.lateral) and self._needs_condition(right):
                hint = "FROM a JOIN b ON a.id = b.id"
                if self.is_word("FOR"):
                    hint = "CREATE VIEW v AS SELECT …, and JOIN v FOR SYSTEM_TIME AS OF a.ts ON a.id = v.id"
                self.expected("ON or USING", "behind the joined table", hint)
        return JoinSource(kind, left, right, on, using, self.since(left.span), natural)

    def _needs_condition(self, right: Source) -> bool:
        return not (isinstance(right, TableFunction) and right.call.name.text.upper() == "UNNEST")

    def _table(self) -> Source:
        with self.level():
            source = self._table_itself()
            while self.is_word("MATCH_RECOGNIZE"):
                source = self._match(source)
            return source

    def _table_itself(self) -> Source:
        start = self.token.span
        lateral = self.take_word("LATERAL")
        if self.is_symbol("("):
            if self.at_query():
                query = self.subquery()
                return Derived(query, self._alias(), lateral, self.since(start))
            self.next()
            source = self._from()
            self.expect_symbol(")", "behind the joined tables")
            return source
        if self.is_word("TABLE") and self.is_symbol("(", 1):
            self.next()
            self.next()
            call = self._function_of_table()
            self.expect_symbol(")", "of TABLE(…)")
            return TableFunction(call, self._alias(), lateral, False, self.since(start))
        if self.token.kind is TokenKind.NAME and self.is_symbol("(", 1):
            call = self._function_of_table()
            ordinality = bool(self.is_word("WITH", "ORDINALITY") and self.expect_word("WITH", "ORDINALITY"))
            return TableFunction(call, self._alias(), lateral, ordinality, self.since(start))
        if self.token.kind is TokenKind.NAME and self.token.word in NOT_AN_ALIAS:
            self.expected("a table")
        parts = self.table_name()
        hints = self.hints()
        as_of = None
        if self.is_word("FOR", "UPDATE"):
            raise SqlFault(self.token.span, "FOR UPDATE is not supported", "leave it out: there are no locks")
        if self.take_word("FOR"):
            self.expect_word("SYSTEM_TIME", "AS", "OF")
            as_of = self.expression()
        alias = self._alias()
        if not hints:
            hints = self.hints()
        if as_of is None and self.take_word("FOR"):
            self.expect_word("SYSTEM_TIME", "AS", "OF")
            as_of = self.expression()
        if self.is_word("TABLESAMPLE"):
            raise SqlFault(self.token.span, "TABLESAMPLE is not supported", "WHERE MOD(id, 10) = 0")
        if self.is_word("WITH") and self.is_symbol("(", 1):
            raise SqlFault(self.token.span, "hints of tables are not supported", "leave WITH (…) out")
        return TableName(parts, alias, as_of, hints, self.since(start))

    def _function_of_table(self) -> Call:
        if not self.is_symbol("(", 1):
            self.next()
            self.expected("(", "behind the name of the table function")
        call = self.call()
        if call.over is not None or call.filter is not None or call.order or call.distinct or call.star:
            raise SqlFault(call.span, f"{call.name.text}(…) is a table here: no OVER, FILTER, DISTINCT or *")
        return call

    def _alias(self) -> Alias | None:
        word = self.token.word
        if word in _NO_ALIAS and (self.peek().word == "JOIN" or self.is_symbol("(", 1)):
            raise SqlFault(self.token.span, f"{word} is not supported", _NO_ALIAS[word])
        name = self._alias_name()
        if name is None:
            return None
        columns = self.in_parentheses(self.column_name, "of the columns") if self.is_symbol("(") else ()
        return Alias(name, columns)

    # -- MATCH_RECOGNIZE ----------------------------------------------------------------------------------------------

    def _match(self, input: Source) -> Source:
        start = self.expect_word("MATCH_RECOGNIZE")
        self.expect_symbol("(")
        partition: tuple[Expression, ...] = ()
        if self.take_word("PARTITION"):
            self.expect_word("BY")
            partition = self.several(self.expression)
        order: tuple[Sort, ...] = self.order_by() if self.is_word("ORDER") else ()
        measures = self.several(self._measure) if self.take_word("MEASURES") else ()
        if self.take_word("ALL"):
            hint = "ONE ROW PER MATCH, with a measure for each value that is wanted"
            raise SqlFault(self.before, "ALL ROWS PER MATCH is not supported", hint)
        if self.take_word("ONE"):
            self.expect_word("ROW", "PER", "MATCH")
            if self.token.word in ("SHOW", "OMIT"):
                raise SqlFault(self.token.span, f"{self.token.word} EMPTY MATCHES is not supported", "leave it out")
        skip, skip_to = self._skip()
        self.expect_word("PATTERN", where="of MATCH_RECOGNIZE")
        self.expect_symbol("(", "behind PATTERN")
        pattern = self._pattern()
        self.expect_symbol(")", "of PATTERN")
        within = self.expression() if self.take_word("WITHIN") else None
        if self.is_word("SUBSET"):
            hint = "a function without a variable goes over all rows: SUM(price)"
            raise SqlFault(self.token.span, "SUBSET is not supported", hint)
        define = self.several(self._definition) if self.take_word("DEFINE") else ()
        self.expect_symbol(")", "of MATCH_RECOGNIZE")
        span = self.since(start)
        return MatchRecognize(
            input, partition, order, measures, skip, skip_to, pattern, within, define, self._alias(), span
        )

    def _measure(self) -> Item:
        self._refuse_semantics()
        return self.item()

    def _refuse_semantics(self) -> None:
        if self.token.word in ("FINAL", "RUNNING") and self.peek().kind is TokenKind.NAME:
            raise SqlFault(
                self.token.span,
                f"{self.token.word} is not supported",
                "leave it out: measures see the whole match, and conditions the rows up to the current one",
            )

    def _skip(self) -> tuple[str, Name | None]:
        if not self.take_word("AFTER"):
            return "PAST LAST ROW", None
        self.expect_word("MATCH", "SKIP")
        if self.take_word("PAST"):
            self.expect_word("LAST", "ROW")
            return "PAST LAST ROW", None
        self.expect_word("TO")
        if self.take_word("NEXT", "ROW"):
            return "TO NEXT ROW", None
        side = f" {self.next().word}" if self.token.word in ("FIRST", "LAST") else ""
        return f"TO{side}", self.expect_name("a variable of the pattern")

    def _definition(self) -> tuple[Name, Expression]:
        name = self.expect_name("a variable of the pattern")
        self.expect_word("AS", where=f"behind {name.text}")
        self._refuse_semantics()
        return name, self.expression()

    def _pattern(self) -> Pattern:
        with self.level():
            start = self.token.span
            options = [self._succession()]
            while self.take_symbol("|"):
                options.append(self._succession())
            return options[0] if len(options) == 1 else Alternatives(tuple(options), self.since(start))

    def _succession(self) -> Pattern:
        start = self.token.span
        parts = [self._repeated()]
        while self.token.kind in (TokenKind.NAME, TokenKind.QUOTED) or self.is_symbol("("):
            parts.append(self._repeated())
        return parts[0] if len(parts) == 1 else Succession(tuple(parts), self.since(start))

    def _repeated(self) -> Pattern:
        start = self.token.span
        pattern: Pattern
        if self.is_symbol("^"):
            raise SqlFault(start, "anchors are not supported", "a pattern may begin at any row")
        if self.is_word("PERMUTE") and self.is_symbol("(", 1):
            raise SqlFault(start, "PERMUTE is not supported", "write the alternatives: (A B | B A)")
        if self.take_symbol("("):
            pattern = self._pattern()
            self.expect_symbol(")", "of PATTERN")
        else:
            name = self.expect_name("a variable of the pattern")
            pattern = Variable(name, name.span)
        least_most = self._quantifier()
        if least_most is None:
            return pattern
        greedy = not self.take_symbol("?")
        return Repeat(pattern, *least_most, greedy, self.since(start))

    def _quantifier(self) -> tuple[int, int | None] | None:
        for symbol, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take_symbol(symbol):
                return cast(tuple[int, int | None], bounds)
        if not self.take_symbol("{"):
            return None
        start = self.before
        if self.is_symbol("-"):
            raise SqlFault(start, "{- … -} is not supported", "write the variable alone: a match is one row")
        least = 0 if self.is_symbol(",") else self.expect_integer("the number of repetitions")
        most: int | None = least
        if self.take_symbol(","):
            most = None if self.is_symbol("}") else self.expect_integer("the number of repetitions")
        self.expect_symbol("}", "of the repetition")
        if most is not None and most < max(least, 1):
            raise SqlFault(self.since(start), "the upper bound is below the lower one, or 0")
        return least, most
