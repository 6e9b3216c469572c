"""Statements in the words of other dialects: each gives one error, which marks the words and says what to write here."""

import pytest

from sabot import App
from sabot.sql.syntax.text import SqlError

TABLES = """
CREATE TABLE flights (
    carrier STRING, delay BIGINT, origin STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH ('connector' = 'kafka', 'topic' = 'flights', 'format' = 'json');
CREATE TABLE plain (id BIGINT, name STRING, tags ARRAY<STRING>, pos ROW<x DOUBLE, y DOUBLE>)
    WITH ('connector' = 'kafka', 'topic' = 'plain', 'format' = 'json');
CREATE TABLE counts (carrier STRING, n BIGINT, PRIMARY KEY (carrier) NOT ENFORCED) WITH ('connector' = 'blackhole');
"""

ELSEWHERE = [
    (
        "SELECT X'4' AS x FROM flights",
        "X'4'",
        "'4' is no binary literal",
        "X'0aff': two hexadecimal digits for each byte",
    ),
    (
        "SELECT x'4g' AS x FROM flights",
        "x'4g'",
        "'4g' is no binary literal",
        "X'0aff': two hexadecimal digits for each byte",
    ),
    (
        r"SELECT U&'\00' AS x FROM flights",
        r"U&'\00'",
        "U&'…' has a backslash without digits",
        r"\00E4, \+01F600, and \\ for a backslash",
    ),
    (r"SELECT U&'\DC00' AS x FROM flights", r"U&'\DC00'", r"\DC00 is no character", r"\+01F600 is one beyond FFFF"),
    (
        "SET 'table.exec.emit.early-fire.enabled' = 'true'",
        "'table.exec.emit.early-fire.enabled'",
        "a window gives its result once, when it closes",
        "GROUP BY FLOOR(ts TO HOUR), without a window, gives sums as they grow; CUMULATE gives them in steps",
    ),
    (
        "SELECT carrier AT TIME ZONE 'Europe/Berlin' FROM flights",
        "carrier",
        "AT TIME ZONE of STRING",
        "it takes a TIMESTAMP or a TIMESTAMP_LTZ: CAST(… AS TIMESTAMP(3))",
    ),
    (
        "SELECT ts AT TIME ZONE 'Berlin' FROM flights",
        "'Berlin'",
        "there is no time zone 'Berlin'",
        "'Europe/Berlin', '+08:00', 'UTC'",
    ),
    (
        "SELECT carrier FROM flights WHERE CURRENT_WATERMARK() < ts",
        "CURRENT_WATERMARK()",
        "CURRENT_WATERMARK takes the column of event time",
        "CURRENT_WATERMARK(ts)",
    ),
    (
        "SELECT CURRENT_WATERMARK(delay) FROM flights",
        "CURRENT_WATERMARK(delay)",
        "delay is not the event time of these rows, so it has no watermark",
        "WATERMARK FOR delay AS delay in CREATE TABLE",
    ),
    (
        "SELECT n, CURRENT_WATERMARK(ts) FROM (SELECT ts, COUNT(*) AS n FROM flights GROUP BY ts)",
        "CURRENT_WATERMARK(ts)",
        "ts is not the event time of these rows, so it has no watermark",
        "WATERMARK FOR ts AS ts in CREATE TABLE",
    ),
    (
        "SELECT carrier FROM flights WHERE carrier LIKE ANY ('U%', 'A%')",
        "ANY",
        "LIKE ANY is not supported",
        "text LIKE 'a%' OR text LIKE 'b%'",
    ),
    (
        "SELECT carrier FROM flights WHERE carrier LIKE ALL (ARRAY['U%'])",
        "ALL",
        "LIKE ALL is not supported",
        "text LIKE 'a%' AND text LIKE 'b%'",
    ),
    (
        "SELECT carrier FROM flights WHERE carrier = ANY (ARRAY['UA', 'AA'])",
        "ANY",
        "ANY (…) is not supported",
        "x IN ('a', 'b')",
    ),
    (
        "SELECT ROUND(delay, 1, 2) FROM flights",
        "ROUND(delay, 1, 2)",
        "ROUND takes 1 to 2 arguments, and there are 3",
        "ROUND(number[, digits])",
    ),
    (
        "SELECT SUBSTRING(carrier) FROM flights",
        "SUBSTRING(carrier)",
        "SUBSTRING takes 2 to 3 arguments, and there are 1",
        "SUBSTRING(text, start[, length])",
    ),
    (
        "SELECT CONCAT_WS(',') FROM flights",
        "CONCAT_WS(',')",
        "CONCAT_WS takes at least 2 arguments, and there are 1",
        "CONCAT_WS(separator, text, …)",
    ),
    (
        "SELECT SPLIT_INDEX(carrier, ',') FROM flights",
        "SPLIT_INDEX(carrier, ',')",
        "SPLIT_INDEX takes 3 arguments, and there are 2",
        "SPLIT_INDEX(text, separator, index)",
    ),
    (
        "SELECT DATE_FORMAT(ts) FROM flights",
        "DATE_FORMAT(ts)",
        "DATE_FORMAT takes 2 arguments, and there are 1",
        "DATE_FORMAT(time, pattern)",
    ),
    (
        "SELECT TIMESTAMPDIFF(ts, ts) FROM flights",
        "ts",
        "expected one of YEAR, QUARTER, MONTH, WEEK, DAY, HOUR, MINUTE, SECOND, found ts",
        "TIMESTAMPDIFF(DAY, start, end)",
    ),
    (
        "SELECT IF(delay > 3, 1) FROM flights",
        "IF(delay > 3, 1)",
        "IF takes 3 arguments, and there are 2",
        "IF(condition, x, y)",
    ),
    ("SELECT MOD(delay) FROM flights", "MOD(delay)", "MOD takes 2 arguments, and there are 1", "MOD(number, divisor)"),
    ("SELECT SUM() FROM flights", "SUM()", "SUM takes one argument", "SUM(x)"),
    (
        "SELECT LAG(delay, 1, 0, 5) OVER (ORDER BY ts) FROM flights",
        "LAG(delay, 1, 0, 5) OVER (ORDER BY ts)",
        "LAG takes 1 to 3 arguments",
        "LAG(x[, offset[, default]]) OVER (…)",
    ),
    ("SELECT EXTRACT(HOUR, ts) FROM flights", ",", "expected FROM of EXTRACT, found ,", "EXTRACT(HOUR FROM ts)"),
    (
        "SELECT TO_UNIXTIME(ts) FROM flights",
        "TO_UNIXTIME",
        "there is no function TO_UNIXTIME",
        "EXTRACT(EPOCH FROM ts)",
    ),
    (
        "SELECT FROM_UNIXTIME(ts) FROM flights",
        "ts",
        "FROM_UNIXTIME takes whole seconds, and this is TIMESTAMP(3)",
        "DATE_FORMAT(ts, 'yyyy-MM-dd HH:mm:ss') of a time",
    ),
    (
        "SELECT LEVENSHTEIN(carrier) FROM flights",
        "LEVENSHTEIN",
        "there is no function LEVENSHTEIN",
        'SHOW FUNCTIONS lists them; app.register("LEVENSHTEIN", function) adds one of Python',
    ),
    ("SELECT CONTAINS(carrier, 'U') FROM flights", "CONTAINS", "there is no function CONTAINS", "text LIKE '%part%'"),
    (
        "SELECT carrier RLIKE 'U.*' FROM flights",
        "'U.*'",
        "expected ; or the end of the statement, found 'U.*'",
        "REGEXP(text, pattern)",
    ),
    (
        "SELECT carrier REGEXP 'U' FROM flights",
        "'U'",
        "expected ; or the end of the statement, found 'U'",
        "REGEXP(text, pattern)",
    ),
    (
        "SELECT carrier GLOB 'U*' FROM flights",
        "'U*'",
        "expected ; or the end of the statement, found 'U*'",
        "text LIKE 'U%'",
    ),
    (
        "SELECT delay DIV 3 FROM flights",
        "3",
        "expected ; or the end of the statement, found 3",
        "a / b, which is a whole number for integers",
    ),
    (
        "SELECT delay // 3 FROM flights",
        "/",
        "expected an expression, found /",
        "a / b, which is a whole number for integers",
    ),
    ("SELECT delay ^ 2 FROM flights", "^", "expected ; or the end of the statement, found ^", "POWER(a, b)"),
    ("SELECT delay << 2 FROM flights", "<", "expected an expression, found <", "a * POWER(2, n)"),
    (
        "SELECT tags[0] FROM plain",
        "0",
        "the index of an array is a constant whole number, 1 or more",
        "the first element is array[1]; CROSS JOIN UNNEST(array) AS t (x) gives a row for each",
    ),
    ("SELECT pos['x'] FROM plain", "pos['x']", "ROW<x DOUBLE, y DOUBLE> has no elements", "row.x"),
    ("SELECT EXPLODE(tags) FROM plain", "EXPLODE", "there is no function EXPLODE", "CROSS JOIN UNNEST(array) AS t (x)"),
    (
        "SELECT id, tag FROM plain LATERAL VIEW EXPLODE(tags) t AS tag",
        "LATERAL VIEW",
        "LATERAL VIEW is not supported",
        "CROSS JOIN UNNEST(array) AS t (x)",
    ),
    ("SELECT unnest(tags) FROM plain", "unnest", "there is no function unnest", "CROSS JOIN UNNEST(array) AS t (x)"),
    ("SELECT LIST(name) FROM plain", "LIST", "there is no function LIST", "ARRAY_AGG(x)"),
    (
        "SELECT carrier, COUNT(*) FROM flights GROUP BY carrier ORDER BY COUNT(*) DESC NULLS",
        "",
        "expected FIRST or LAST behind NULLS, found the end of the text",
        "NULLS FIRST, or NULLS LAST",
    ),
    (
        "SELECT carrier, delay FROM flights ORDER BY delay LIMIT ALL",
        "ALL",
        "expected a whole number behind LIMIT, found ALL",
        "leave LIMIT ALL out",
    ),
    (
        "SELECT carrier FROM flights LIMIT 5, 10",
        ",",
        "expected ; or the end of the statement, found ,",
        "LIMIT 10 OFFSET 5",
    ),
    (
        "SELECT carrier FROM flights FETCH FIRST 5 ROWS WITH TIES",
        "TIES",
        "expected ONLY, found TIES",
        "RANK() OVER (ORDER BY x) AS n in a query inside, and WHERE n <= 5 outside",
    ),
    (
        "SELECT carrier FROM flights USING SAMPLE 10",
        "USING",
        "expected ; or the end of the statement, found USING",
        "WHERE MOD(id, 10) = 0",
    ),
    (
        "SELECT carrier, PERCENT_RANK() OVER (PARTITION BY carrier ORDER BY delay) FROM flights",
        "PERCENT_RANK() OVER (PARTITION BY carrier ORDER BY delay)",
        "PERCENT_RANK is no function of OVER",
        "there are the aggregates, LAG, LEAD, and ROW_NUMBER, RANK and DENSE_RANK",
    ),
    (
        "SELECT f.carrier FROM flights f ASOF JOIN plain p ON f.carrier = p.name",
        "ASOF",
        "expected ; or the end of the statement, found ASOF",
        "JOIN t FOR SYSTEM_TIME AS OF a.ts ON a.key = t.key",
    ),
    (
        "SELECT f.carrier FROM flights f JOIN plain p USING carrier",
        "carrier",
        "expected ( of USING, found carrier",
        "USING (carrier)",
    ),
    (
        "SELECT * FROM (SELECT carrier FROM flights",
        "",
        "expected ) behind the query, found the end of the text",
        "each ( has its )",
    ),
    (
        "SELECT carrier AS FROM flights",
        "flights",
        "expected ; or the end of the statement, found flights",
        "the clauses stand in this order: FROM, WHERE, GROUP BY, HAVING, QUALIFY, ORDER BY, LIMIT",
    ),
    ("SELECT DATE('2024-01-01')", "DATE", "there is no function DATE", "DATE '2024-05-17', or CAST(text AS DATE)"),
    ("SELECT CAST(delay AS UNSIGNED) FROM flights", "UNSIGNED", "there is no type UNSIGNED", "BIGINT"),
    ("SELECT SAFE_CAST(delay AS INT) FROM flights", "AS", "expected ) of SAFE_CAST(…), found AS", "TRY_CAST(x AS INT)"),
    (
        "SELECT COUNT(*) FROM flights WINDOW TUMBLING (SIZE 1 HOUR) GROUP BY carrier",
        "TUMBLING",
        "WINDOW TUMBLING is not supported",
        "FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start, window_end",
    ),
    (
        "CREATE TEMP TABLE t (a INT)",
        "TEMP",
        "expected TABLE, VIEW, FUNCTION or MODEL behind CREATE, found TEMP",
        "CREATE TABLE … WITH ('connector' = '…')",
    ),
    (
        "CREATE SOURCE s (a INT) WITH (connector = 'kafka')",
        "SOURCE",
        "expected TABLE, VIEW, FUNCTION or MODEL behind CREATE, found SOURCE",
        "CREATE TABLE … WITH ('connector' = '…')",
    ),
    (
        "CREATE FUNCTION f(x INT) RETURNS INT AS $$ return x $$",
        "(",
        "functions are not written in SQL",
        'a function of Python: app.register("f", function), or --functions module',
    ),
    (
        "SELECT * FROM flights.csv",
        "flights.csv",
        "there are no catalogs and databases",
        "a file has quotes: 'flights.csv'",
    ),
    (
        "SELECT * FROM read_csv('f.csv')",
        "read_csv",
        "there is no table function read_csv",
        "a file has quotes: FROM 'flights.csv'",
    ),
    ("SELECT STRUCT(1 AS a)", "AS", "expected ) of STRUCT(…), found AS", "a value has its alias in the select list"),
    (
        "SELECT MAP['a', 1, 'b']",
        "MAP['a', 1, 'b']",
        "a map has keys and values by turns",
        "MAP['a', 1, 'b', 2]",
    ),
    (
        "SELECT * REPLACE (delay + 1 AS delay) FROM flights",
        "(",
        "expected ; or the end of the statement, found (",
        "name the columns that are wanted",
    ),
    ("SELECT COLUMNS('d.*') FROM flights", "COLUMNS", "there is no function COLUMNS", "name the columns"),
    (
        "SELECT carrier FROM flights WHERE (carrier, delay) = ('UA', 3)",
        "(carrier, delay)",
        "a row of values stands before IN alone",
        "compare the columns one by one",
    ),
    (
        "SELECT carrier FROM flights f, LATERAL TABLE(split(f.carrier, ',')) AS t(x)",
        "split",
        "there is no table function split",
        "CROSS JOIN UNNEST(array) AS t (x), as of SPLIT(text, ',')",
    ),
    ("SELECT FIRST(delay) FROM flights", "FIRST", "there is no function FIRST", "FIRST_VALUE(x)"),
    (
        "SELECT carrier FROM flights MATCH_RECOGNIZE (ORDER BY ts PATTERN (A B) DEFINE A AS delay > 3)",
        "MATCH_RECOGNIZE (ORDER BY ts PATTERN (A B) DEFINE A AS delay > 3)",
        "MATCH_RECOGNIZE has the columns of PARTITION BY and MEASURES, and there are none",
        "MEASURES FIRST(A.x) AS x",
    ),
]
"""A statement, the text that its error marks, the message, and the hint."""


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(("statement", "marked", "message", "hint"), ELSEWHERE)
def test_words_of_another_dialect_give_the_words_of_this_one(statement, marked, message, hint):
    app = App("dialects")
    app.sql(TABLES)
    with pytest.raises(SqlError) as caught:
        app.sql(statement)
    first, line, caret, way_out = str(caught.value).splitlines()
    assert line[caret.index("^") : caret.rindex("^") + 1] == marked
    assert (first.split(": ", 1)[1], way_out) == (message, f"  hint: {hint}")
