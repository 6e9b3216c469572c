"""The parser: what it accepts, what it refuses and where, and that no token is lost in silence."""

from dataclasses import fields, is_dataclass

import pytest

from sabot.sql.syntax.parser import parse
from sabot.sql.syntax.text import Span, SqlError, SqlText
from sabot.sql.syntax.tokens import tokens_of
from sabot.sql.syntax.tree import Binary, Call, Explain, MatchRecognize, Query, Repeat, StatementSet

TEXTS = [
    "SELECT auction, 0.908 * price AS price, `dateTime` FROM bid WHERE MOD(auction, 123) = 0",
    "SELECT B.*, A.id total FROM auction AS A INNER JOIN bid B ON A.id = B.auction AND B.price >= 3 WHERE A.x IN (1, 2)",
    "SELECT count(*), count(DISTINCT a) FILTER (WHERE b < 3) FROM t GROUP BY DATE_FORMAT(ts, 'yyyy') HAVING max(a) > 1",
    "SELECT window_start FROM TABLE(HOP(TABLE bid, DESCRIPTOR(ts), INTERVAL '2' SECOND, INTERVAL '10' SECOND))",
    "SELECT SESSION_START(ts, INTERVAL '10' SECOND) FROM bid b GROUP BY k, SESSION(ts, INTERVAL '10' SECOND)",
    "SELECT * FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY a ORDER BY p DESC, t) AS n FROM bid) WHERE n <= 10",
    "SELECT sum(x) OVER (PARTITION BY k ORDER BY ts ROWS BETWEEN 5 PRECEDING AND CURRENT ROW) FROM t",
    "SELECT * FROM b JOIN s FOR SYSTEM_TIME AS OF b.p_time AS r ON mod(b.x, 10000) = r.k",
    "WITH a AS (SELECT 1 AS x FROM t), b (y) AS (SELECT x FROM a) SELECT * FROM a LEFT JOIN b ON a.x = b.y LIMIT 3",
    "SELECT a FROM t UNION ALL SELECT b FROM u UNION SELECT c FROM v",
    "SELECT CASE WHEN a = 1 THEN 'x' ELSE 'y' END, CAST(a AS DECIMAL(10, 2)), a::INT, EXTRACT(HOUR FROM ts) FROM t",
    "SELECT a IS NOT NULL, a NOT BETWEEN 1 AND 2, NOT b LIKE 'x%', c NOT IN (SELECT d FROM u), -a + 2 FROM t",
    "SELECT * FROM b MATCH_RECOGNIZE (PARTITION BY k ORDER BY ts MEASURES FIRST(A.p) AS x ONE ROW PER MATCH "
    "AFTER MATCH SKIP TO LAST B PATTERN (A B+ C*) WITHIN INTERVAL '10' SECOND DEFINE B AS B.p > LAST(B.p, 1)) AS m",
    "CREATE TABLE t (a BIGINT, r ROW<x INT, y STRING>, c AS a + 1, o BIGINT METADATA FROM 'offset' VIRTUAL, ts TIMESTAMP(3), "
    "WATERMARK FOR ts AS ts - INTERVAL '4' SECOND, PRIMARY KEY (a) NOT ENFORCED) PARTITIONED BY (a) WITH ('connector' = 'print')",
    "CREATE VIEW v (a, b) AS SELECT x, y FROM t",
    "INSERT INTO t (a, b) SELECT x, y FROM u",
    "EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT x FROM t; INSERT INTO b SELECT x FROM t; END",
    "EXPLAIN CHANGELOG SELECT a FROM t",
    "SET 'pipeline.name' = 'x'",
    "SHOW CREATE TABLE t",
    "DROP TABLE IF EXISTS t",
]

MAY_GO = {"AS", "INNER", "OUTER", "ASC", "ALL", "VIRTUAL", ";", "TABLE"}
"""The tokens without which a statement means the same; TABLE of `FROM TABLE(TUMBLE(…))`."""


def plain(node):
    """The tree as tuples, without positions and without the writing of names."""
    if isinstance(node, Span):
        return None
    if isinstance(node, tuple):
        return tuple(plain(each) for each in node)
    if is_dataclass(node):
        return (type(node).__name__, *(plain(getattr(node, each.name)) for each in fields(node)))
    return node


def tree(text):
    return plain(tuple(parse(SqlText(text))))


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("text", TEXTS, ids=[text[:30] for text in TEXTS])
def test_a_token_that_is_deleted_is_missed(text):
    whole = tree(text)
    for token in tokens_of(SqlText(text))[:-1]:
        shorter = text[: token.span.start] + " " + text[token.span.end :]
        try:
            changed = tree(shorter)
        except SqlError:
            continue
        assert changed != whole or str(token).upper() in MAY_GO, f"{token} is read by nobody: {shorter}"


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
@pytest.mark.parametrize("text", TEXTS, ids=[text[:30] for text in TEXTS])
def test_a_token_that_is_replaced_is_noticed(text):
    whole = tree(text)
    tokens = tokens_of(SqlText(text))[:-1]
    for token in tokens:
        for other in ("zzz", "7", "'q'", ",", ")"):
            if other == text[token.span.start : token.span.end]:
                continue
            changed = text[: token.span.start] + other + text[token.span.end :]
            try:
                found = tree(changed)
            except SqlError:
                continue
            assert found != whole or str(token).upper() in MAY_GO, f"{token} may be {other}: {changed}"


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("SELECT a,, b FROM t", "1:10", "expected an expression, found ,"),
        ("SELECT a FROM t LIMIT 10 WHERE b", "1:26", "found WHERE"),
        ("SELCT a FROM t", "1:1", "did you mean SELECT"),
        ("SELECT a FORM t", "1:15", "did you mean FROM?"),
        ("SELECT a FROM t WHERE", "1:22", "found the end of the text"),
        ("SELECT 'abc FROM t", "1:8", "no closing quote"),
        ("SELECT (a FROM t", "1:11", "closes the parenthesis"),
        ("SELECT INTERVAL 10 SECOND FROM t", "1:17", "write INTERVAL '10' SECOND"),
        ("SELECT 1a FROM t", "1:8", "neither a number nor a name"),
        ("SELECT “a” FROM t", "1:8", "typographic quote"),
        ("SELECT a\nFROM t JOIN u", "2:14", "expected ON or USING"),
        ("UPDATE t SET a = 1", "1:1", "UPDATE is not supported"),
        ("CREATE TABLE t (a INT, PRIMARY KEY (a) ENFORCED) WITH ('x' = 'y')", "1:40", "never ENFORCED"),
        ("WITH RECURSIVE x AS (SELECT 1 FROM t) SELECT * FROM x", "1:6", "recursive"),
        ("SELECT a FROM t NATURAL CROSS JOIN u", "1:25", "expected JOIN"),
        ("SELECT /* no end", "1:8", "this comment has no end"),
        ("CREATE FUNCTION f", "1:18", "expected AS"),
        ("INSERT INTO t", "1:14", "expected SELECT or VALUES"),
        ("SELECT $ FROM t", "1:8", "expected an expression"),
        ("SELECT a FROM t #", "1:17", "has no meaning in SQL"),
    ],
)
def test_an_error_has_its_position_and_says_what_to_write(text, position, message):
    with pytest.raises(SqlError) as caught:
        parse(SqlText(text, "x.sql"))
    shown = str(caught.value)
    assert shown.startswith(f"x.sql:{position}: ")
    assert message in shown
    assert "^" in shown


def test_all_statements_are_read_and_each_error_is_told():
    with pytest.raises(SqlError) as caught:
        parse(SqlText("SELECT a FROM t;\nSELECT FROM t;\nSELECT b FROM u;\nDROP t"))
    assert [fault.message for fault in caught.value.faults] == [
        "expected a column or an expression behind SELECT, found FROM",
        "expected TABLE, VIEW, FUNCTION or MODEL behind DROP, found t",
    ]


def test_operators_bind_as_in_flink():
    def shape(text):
        (query,) = parse(SqlText(f"SELECT {text} FROM t"))
        assert isinstance(query, Query)

        def show(node):
            if isinstance(node, Binary):
                return f"({show(node.left)} {node.operator} {show(node.right)})"
            return SqlText(f"SELECT {text} FROM t").of(node.span)

        return show(query.body.items[0].expression)

    assert shape("a OR b AND c = d + e * f") == "(a OR (b AND (c = (d + (e * f)))))"
    assert shape("a - b - c") == "((a - b) - c)"
    assert shape("a || b || c = d") == "(((a || b) || c) = d)"


def test_a_keyword_is_a_name_where_no_clause_begins():
    (query,) = parse(SqlText("SELECT a AS `select`, b AS value, date, t.window FROM t AS t"))
    assert [item.alias.text if item.alias else None for item in query.body.items] == ["select", "value", None, None]


def test_statements_of_their_own_kinds():
    found = parse(
        SqlText("EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT 1 FROM t; END; EXPLAIN JSON SELECT 1 FROM t")
    )
    assert isinstance(found[0], StatementSet)
    assert isinstance(found[1], Explain)
    assert found[1].kind == "JSON"


def test_the_pattern_of_match_recognize():
    text = "SELECT * FROM t MATCH_RECOGNIZE (PATTERN (A B{2,3}? (C | D)*) DEFINE A AS A.x > 1)"
    (query,) = parse(SqlText(text))
    match = query.body.source
    assert isinstance(match, MatchRecognize)
    first, second, third = match.pattern.patterns
    assert first.name.text == "A"
    assert isinstance(second, Repeat)
    assert (second.least, second.most, second.greedy) == (2, 3, False)
    assert (third.least, third.most) == (0, None)


def test_hints_are_read():
    (query,) = parse(SqlText("SELECT /*+ STATE_TTL('a' = '1d', 'b' = '2d') */ a FROM t"))
    (hint,) = query.body.hints
    assert (hint.name.text, hint.options) == ("STATE_TTL", (("a", "1d"), ("b", "2d")))


def test_a_deep_text_is_refused_and_not_a_crash():
    for deep in ("(" * 5000 + "a" + ")" * 5000, "NOT " * 5000 + "a", "a" + " + a" * 5000, "-" * 4999 + "1"):
        with pytest.raises(SqlError):
            parse(SqlText(f"SELECT {deep} FROM t"))


def test_a_call_keeps_what_stands_around_it():
    (query,) = parse(SqlText("SELECT LISTAGG(a, ',') WITHIN GROUP (ORDER BY b DESC) FROM t"))
    call = query.body.items[0].expression
    assert isinstance(call, Call)
    assert call.order[0].descending
