"""Wrong statements of the kinds that people write: each gives one error, with its place, a caret and a way out."""

import pytest

from sabot import App
from sabot.sql.syntax.text import SqlError

TABLES = """
CREATE TABLE flights (
    carrier STRING, delay BIGINT, origin STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH ('connector' = 'kafka', 'topic' = 'flights', 'format' = 'json');
CREATE TABLE plain (id BIGINT, name STRING, at TIMESTAMP(3))
    WITH ('connector' = 'kafka', 'topic' = 'plain', 'format' = 'json');
CREATE TABLE counts (carrier STRING, n BIGINT, PRIMARY KEY (carrier) NOT ENFORCED) WITH ('connector' = 'blackhole');
"""

WRONG = [
    (
        "SELECT * FROM flihgts",
        '1:15: there is no table "flihgts"',
        "did you mean flights?",
    ),
    (
        "SELECT carier FROM flights",
        '1:8: there is no column "carier"',
        "did you mean carrier?",
    ),
    (
        "SELECT cout(*) FROM flights GROUP BY carrier",
        "1:8: there is no function cout",
        "did you mean COUNT or CONCAT?",
    ),
    (
        "SELECT UPER(carrier) FROM flights",
        "1:8: there is no function UPER",
        "did you mean UPPER or POWER?",
    ),
    (
        "SELECT carrier, delay, COUNT(*) FROM flights GROUP BY carrier",
        '1:17: column "delay" is neither in GROUP BY nor inside an aggregate',
        "add it to GROUP BY, or write MAX(delay)",
    ),
    (
        "SELECT carrier, COUNT(*) FROM flights",
        '1:8: column "carrier" is neither in GROUP BY nor inside an aggregate',
        "add it to GROUP BY, or write MAX(carrier)",
    ),
    (
        "SELECT carrier + 1 FROM flights",
        "1:8: + of STRING and BIGINT",
        "CAST(… AS DOUBLE), or AS BIGINT",
    ),
    (
        "SELECT ts + 1 FROM flights",
        "1:8: + of TIMESTAMP and BIGINT",
        "a time and an interval: ts + INTERVAL '1' DAY",
    ),
    (
        "SELECT HOUR(carrier) FROM flights",
        "1:8: dt.hour of STRING",
        "CAST(… AS TIMESTAMP(3))",
    ),
    (
        "SELECT CAST('abc' AS BIGINT) FROM flights",
        "1:8: 'abc' is no BIGINT",
        "TRY_CAST(… AS …) gives NULL for such values",
    ),
    (
        "SELECT LENGTH(carrier) FROM flights",
        "1:8: there is no function LENGTH",
        "CHAR_LENGTH(text)",
    ),
    (
        "SELECT STRING_AGG(carrier, ',') FROM flights",
        "1:8: there is no function STRING_AGG",
        "LISTAGG(text, ',')",
    ),
    (
        "SELECT DATEDIFF(ts, ts) FROM flights",
        "1:8: there is no function DATEDIFF",
        "TIMESTAMPDIFF(DAY, start, end)",
    ),
    (
        "SELECT f.carrier FROM flights AS f JOIN plain AS p ON f.carrier = p.nme",
        '1:69: p has no column "nme"',
        "did you mean name?",
    ),
    (
        "SELECT n FROM counts",
        "1:15: table counts can only be written: its connector has no rows to read",
        "read the table or the view that its rows come from",
    ),
    (
        "SELECT carrier + origin FROM flights",
        "1:8: + of two texts",
        "texts are joined by ||",
    ),
    (
        "SELECT * FROM flights WHERE carrier = 'UA",
        "1:39: this string has no closing quote",
        "a quote inside a string is written twice: 'it''s'",
    ),
    (
        "SELECT delay carrier origin FROM flights",
        "1:22: expected ; or the end of the statement, found origin",
        "did you mean JOIN?",
    ),
    (
        "SELEC * FROM flights",
        "1:1: SELEC begins no statement",
        "did you mean SELECT?",
    ),
    (
        "SELECT * FORM flights",
        "1:15: expected ; or the end of the statement, found flights",
        "did you mean FROM?",
    ),
    (
        "SELECT * FROM flights WERE delay > 1",
        "1:28: expected ; or the end of the statement, found delay",
        "did you mean WHERE?",
    ),
    (
        "SELECT ISNULL(delay, 0) FROM flights",
        "1:8: there is no function ISNULL",
        "IFNULL(x, y), or x IS NULL",
    ),
    (
        "SELECT DATE_TRUNC('hour', ts) FROM flights",
        "1:8: there is no function DATE_TRUNC",
        "FLOOR(ts TO HOUR)",
    ),
    (
        "SELECT * FROM flights WHERE carrier ILIKE 'u%'",
        "1:37: expected ; or the end of the statement, found ILIKE",
        "LOWER(text) LIKE 'u%'",
    ),
    (
        "SELECT * FROM flights WHERE carrier ~ 'U'",
        "1:37: '~' has no meaning in SQL",
        "REGEXP(text, pattern)",
    ),
    (
        "SELECT TUMBLE_START(ts, INTERVAL '1' HOUR), COUNT(*) FROM flights GROUP BY carrier",
        "1:8: there is no function TUMBLE_START",
        "GROUP BY TUMBLE(ts, INTERVAL '1' HOUR)",
    ),
    (
        "SELECT carrier, COUNT(*) FROM flights GROUP BY carrier EMIT CHANGES",
        "1:61: expected ON, found CHANGES",
        "leave EMIT CHANGES out: a query without a window gives its changes",
    ),
    (
        "SELECT window(ts, '1 hour'), COUNT(*) FROM flights GROUP BY window(ts, '1 hour')",
        "1:61: there is no function window",
        "FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start, window_end",
    ),
    (
        "SELECT COUNT(*) FROM TABLE(TUMBLE(flights, ts, INTERVAL '1' HOUR)) GROUP BY window_start, window_end",
        "1:28: TUMBLE needs TABLE t",
        "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL …)",
    ),
    (
        "SELECT COUNT(*) FROM TUMBLE(flights, ts, '1 hour') GROUP BY window_start, window_end",
        "1:22: TUMBLE needs TABLE t",
        "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL …)",
    ),
    (
        "SELECT COUNT(*) FROM TABLE(TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL 1 HOUR)) GROUP BY window_start, window_end",
        "1:75: expected a string behind INTERVAL, found 1",
        "write INTERVAL '1' HOUR",
    ),
    (
        "SELECT COUNT(*) FROM TABLE(TUMBLE(TABLE flights, DESCRIPTOR(ts))) GROUP BY window_start, window_end",
        "1:28: TUMBLE takes 1 intervals",
        "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
    ),
    (
        "SELECT COUNT(*) FROM TABLE(TUMBLE(TABLE plain, DESCRIPTOR(at), INTERVAL '1' HOUR)) GROUP BY window_start, window_end",
        "1:48: at is not the event time of the table",
        "declare it: WATERMARK FOR ts AS ts - INTERVAL '5' SECOND",
    ),
    (
        "INSERT INTO counts SELECT carrier FROM flights",
        "1:1: table counts has 2 columns, and the query 1",
        "counts(carrier, n)",
    ),
    (
        "INSERT INTO counts (carrier, m) SELECT carrier, COUNT(*) FROM flights GROUP BY carrier",
        '1:30: table counts has no column "m"',
        "there are carrier, n",
    ),
    (
        "INSERT INTO cuonts SELECT carrier, COUNT(*) FROM flights GROUP BY carrier",
        '1:13: there is no table "cuonts"',
        "did you mean counts?",
    ),
    (
        "INSERT counts SELECT carrier, COUNT(*) FROM flights GROUP BY carrier",
        "1:8: expected INTO behind INSERT, found counts",
        "did you mean INTO?",
    ),
    (
        "SELECT * FROM flights JOIN plain",
        "1:33: expected ON or USING behind the joined table, found the end of the text",
        "FROM a JOIN b ON a.id = b.id",
    ),
    (
        "SELECT * FROM flights JOIN plain ON flights.delay > plain.id",
        "1:15: a join needs a column of each table that are equal",
        "FROM a JOIN b ON a.id = b.id",
    ),
    (
        "SELECT * FROM flights WHERE COUNT(*) > 1",
        "1:29: the aggregate COUNT has no value in a single row",
        "write it in the select list or in HAVING",
    ),
    (
        "SELECT delay * 2 AS twice FROM flights WHERE twice > 1",
        '1:46: there is no column "twice"',
        "there are carrier, delay, origin, ts",
    ),
    (
        "UPDATE flights SET delay = 0",
        "1:1: UPDATE is not supported",
        "a stream's rows are not updated in place; write INSERT INTO a table with a PRIMARY KEY",
    ),
    (
        "DELETE FROM flights WHERE delay = 0",
        "1:1: DELETE is not supported",
        "a stream's rows are not deleted in place; write INSERT INTO a table with a PRIMARY KEY",
    ),
    (
        "MERGE INTO counts USING flights ON TRUE",
        "1:1: MERGE is not supported",
        "write INSERT INTO a table with a PRIMARY KEY",
    ),
    (
        "ALTER TABLE flights ADD COLUMN x INT",
        "1:1: ALTER is not supported",
        "write a new CREATE TABLE",
    ),
    (
        "CREATE STREAM s AS SELECT * FROM flights",
        "1:8: expected TABLE, VIEW, FUNCTION or MODEL behind CREATE, found STREAM",
        "write CREATE VIEW … AS SELECT …, or CREATE TABLE … WITH (…)",
    ),
    (
        "CREATE MATERIALIZED VIEW v AS SELECT * FROM flights",
        "1:8: CREATE MATERIALIZED … is not supported",
        "write CREATE TABLE … WITH (…) and INSERT INTO it",
    ),
    (
        "SELECT * FROM flights WHERE delay = NULL",
        "1:37: a comparison with NULL is never true",
        "write IS NULL or IS NOT NULL",
    ),
    (
        "SELECT * FROM flights ORDER BY delay",
        "1:32: ORDER BY of a stream without an end begins with its event time, ascending",
        "ORDER BY … LIMIT 10; of a group: ROW_NUMBER() OVER (PARTITION BY … ORDER BY …) and WHERE n <= 10",
    ),
    (
        "SELECT * FROM flights WHERE (delay, origin) NOT IN (SELECT id, name FROM plain)",
        "1:29: NOT IN of several columns is not supported",
        "write NOT EXISTS (SELECT …)",
    ),
    (
        "SELECT carrier, COUNT(*) FROM flights GROUP BY carrier HAVING COUNT(*) > (SELECT 5)",
        "1:74: this has no value here",
        "a query as a value stands in WHERE, or in a select list without aggregates",
    ),
    (
        "SELECT name FROM flights, plain",
        "1:18: a join needs a column of each table that are equal",
        "FROM a JOIN b ON a.id = b.id",
    ),
    (
        "SELECT carrier FROM flights GROUP carrier",
        "1:29: expected ; or the end of the statement, found GROUP",
        "did you mean GROUP BY?",
    ),
    (
        "SELECT ts + INTERVAL 5 MINUTES FROM flights",
        "1:22: expected a string behind INTERVAL, found 5",
        "write INTERVAL '5' MINUTES",
    ),
    (
        "SELECT SUM(carrier) FROM flights GROUP BY origin",
        "1:8: SUM of string",
        "it takes numbers",
    ),
    (
        "SELECT MAX(SUM(delay)) FROM flights GROUP BY origin",
        "1:12: the aggregate SUM has no value in a single row",
        "write it in the select list or in HAVING",
    ),
    (
        "SELECT carrier, COUNT(*) FROM flights GROUP BY ROLLUP (carrier)",
        "1:48: GROUPING SETS, CUBE and ROLLUP are not supported",
        "write UNION ALL of two queries",
    ),
    (
        "BEGIN TRANSACTION",
        "1:1: BEGIN is not supported",
        "a set of statements begins with EXECUTE STATEMENT SET BEGIN",
    ),
    (
        "USE default_database",
        "1:1: USE is not supported",
        "there are no catalogs and databases",
    ),
    (
        "SELECT ROW_NUMBER() OVER (ORDER BY delay) FROM flights",
        "1:8: a ranking needs a bound",
        "SELECT * FROM (SELECT …, ROW_NUMBER() OVER (…) AS n FROM t) WHERE n <= 3",
    ),
    (
        "SELECT * FROM read_csv('a.csv')",
        "1:15: there is no table function read_csv",
        "there are TUMBLE, HOP, CUMULATE, SESSION, ML_PREDICT",
    ),
    (
        "FROM flights SELECT carrier",
        "1:1: FROM begins no statement",
        "there are SELECT, WITH, VALUES, INSERT, CREATE, DROP, EXECUTE, SET, RESET, SHOW, EXPLAIN",
    ),
    (
        "SELECT carrier FROM flights UNION SELECT id FROM plain",
        "1:35: column carrier of UNION is STRING and BIGINT",
        "CAST(id AS STRING)",
    ),
    (
        "CREATE TABLE x (a INTT) WITH ('connector' = 'print')",
        "1:19: there is no type INTT",
        "did you mean INT or BIGINT?",
    ),
    (
        "CREATE TABLE x (a INT) WITH ('connector' = 'kafak', 'topic' = 'x')",
        "1:44: 'connector' cannot be 'kafak'",
        "did you mean kafka?",
    ),
    (
        "CREATE TABLE x (a INT) WITH ('connector' = 'files', 'format' = 'csv')",
        "1:14: table x needs the option 'path'",
        "'path' = '…'",
    ),
    (
        "CREATE TABLE x (a INT) WITH ('connector' = 'files', 'path' = 'x', 'formt' = 'csv')",
        "1:67: there is no option 'formt'",
        "did you mean format or format.type?",
    ),
    (
        "CREATE TABLE x (a INT) WITH ('connector' = 'files', 'path' = 'x', 'format' = 'cvs')",
        "1:78: 'format' cannot be 'cvs'",
        "did you mean csv?",
    ),
    (
        "CREATE TABLE x (a INT) WITH ('connector' = 'kafka', 'topic' = 'x', 'scan.startup.mode' = 'earlist')",
        "1:90: 'scan.startup.mode' cannot be 'earlist'",
        "did you mean earliest or earliest-offset?",
    ),
    (
        "CREATE TABLE x (a INT, WATERMARK FOR ts AS ts) WITH ('connector' = 'print')",
        '1:38: there is no column "ts"',
        "there is a",
    ),
    (
        "CREATE TABLE x (a DOUBLE, WATERMARK FOR a AS a) WITH ('connector' = 'print')",
        "1:41: a is DOUBLE, which is no event time",
        "declare it as TIMESTAMP(3): a TIMESTAMP(3)",
    ),
    (
        "CREATE TABLE x (a STRING, WATERMARK FOR a AS a) WITH ('connector' = 'kafka', 'topic' = 'x')",
        "1:41: a is STRING, which is no event time",
        "declare it as TIMESTAMP(3): a TIMESTAMP(3)",
    ),
    (
        "CREATE TABLE x (a INT) WITH ('connector' = 'sqlite', 'url' = 'hours.db', 'table-name' = 'hours')",
        "1:62: table hours: its database's address has no scheme",
        "write sqlite:///absolute/path.db, sqlite:relative/path.db or postgresql://user@host/database",
    ),
    (
        "CREATE TABLE x (a INT, PRIMARY KEY (b) NOT ENFORCED) WITH ('connector' = 'print')",
        '1:37: there is no column "b"',
        "there is a",
    ),
    (
        "CREATE TABLE x (a INT, b AS c + 1) WITH ('connector' = 'print')",
        '1:29: there is no column "c"',
        "there is a",
    ),
    (
        "CREATE TABLE x (a INT, o BIGINT METADATA FROM 'ofset') WITH ('connector' = 'kafka', 'topic' = 'x')",
        "1:24: there is no metadata 'ofset'",
        "there are partition, offset, timestamp, key, headers",
    ),
]
"""A statement, the place and the message of its error, and its hint."""


@pytest.mark.parametrize(("statement", "message", "hint"), WRONG)
def test_wrong_statement_gives_one_error_with_a_caret_and_a_way_out(statement, message, hint):
    app = App("wrong")
    app.sql(TABLES)
    with pytest.raises(SqlError) as caught:
        app.sql(statement)
    first, line, caret, way_out = str(caught.value).splitlines()
    assert (first, line, way_out) == (f"SQL:{message}", f"  {statement}", f"  hint: {hint}")
    column = int(message.split(":")[1])
    assert caret.startswith(" " * (column + 1) + "^")
