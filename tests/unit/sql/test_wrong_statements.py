"""Wrong statements of the kinds that people write: each gives one error, with its place, a caret and a way out."""

import logging
import re

import pyarrow as pa
import pytest

from sabot import App, DataError, col
from sabot.connectors.memory import MemoryBroker
from sabot.engine.operators.rows.bad import _SQL_TYPES
from sabot.sql.syntax.text import SqlError
from sabot.sql.types import sql_type
from tools.agent_tools import bounded, values

TABLES = """
CREATE TABLE flights (
    carrier STRING, delay BIGINT, origin STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH ('connector' = 'kafka', 'topic' = 'flights', 'format' = 'json');
CREATE TABLE plain (id BIGINT, name STRING, at TIMESTAMP(3))
    WITH ('connector' = 'kafka', 'topic' = 'plain', 'format' = 'json');
CREATE TABLE rates (
    carrier STRING, rate DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts, PRIMARY KEY (carrier) NOT ENFORCED
) WITH ('connector' = 'kafka', 'topic' = 'rates', 'format' = 'json');
CREATE TABLE counts (carrier STRING, n BIGINT, PRIMARY KEY (carrier) NOT ENFORCED) WITH ('connector' = 'blackhole');
CREATE VIEW deduped AS SELECT * FROM flights QUALIFY ROW_NUMBER() OVER (PARTITION BY carrier ORDER BY delay, ts) = 1;
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
        "did you mean COUNT or COT or CONCAT?",
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
        "1:8: + of STRING and INT",
        "CAST(… AS DOUBLE), or AS BIGINT",
    ),
    (
        "SELECT ts + 1 FROM flights",
        "1:8: + of TIMESTAMP and INT",
        "a time and an interval: ts + INTERVAL '1' DAY",
    ),
    (
        "SELECT HOUR(carrier) FROM flights",
        "1:8: HOUR of STRING",
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
        "1:22: expected a comma or FROM, found origin",
        "columns have commas between them: SELECT a, b",
    ),
    (
        "SELECT COUNT(*) SUM(delay) FROM flights",
        "1:17: expected a comma or FROM, found a call of SUM",
        "columns have commas between them: SELECT a, b",
    ),
    (
        "SELECT COUNT(*) n 'UA' FROM flights",
        "1:19: expected a comma or FROM, found 'UA'",
        "columns have commas between them: SELECT a, b",
    ),
    (
        "SELECT COUNT(*) nulls, MAX(delay) FROM flights",
        "1:17: expected a comma or FROM, found nulls",
        "NULLS is a word of SQL, and a name in quotes: AS `nulls`",
    ),
    (
        "SELECT * FROM flights NATURAL JOIN UNNEST(SPLIT(carrier, ','))",
        "1:23: NATURAL JOIN takes tables, views and queries",
        "write JOIN … ON, or USING (column)",
    ),
    (
        "SELECT * FROM (SELECT delay AS d FROM flights) NATURAL JOIN plain",
        "1:15: the two tables of NATURAL JOIN have no column of one name",
        "JOIN … ON a.id = b.key",
    ),
    (
        "SELECT f.delay FROM flights f LEFT JOIN rates FOR SYSTEM_TIME AS OF f.ts AS r ON f.carrier > r.carrier",
        "1:21: AS OF needs ON a.key = b.key",
        "a column of each table that are equal",
    ),
    (
        "SELECT ts + INTERVAL delay MINUTES FROM flights",
        "1:28: expected a comma or FROM, found MINUTES",
        "delay * INTERVAL '1' MINUTE",
    ),
    (
        "SELECT ARRAY_AGG(carrier ORDER BY ts) FROM flights",
        "1:26: expected ) of ARRAY_AGG(…), found ORDER",
        "aggregates go by the order of event time; LISTAGG(x) WITHIN GROUP (ORDER BY y) by any other",
    ),
    (
        "SELECT carrier, RANK() OVER (ORDER BY SUM(delay)) FROM flights GROUP BY carrier",
        "1:17: a ranking needs a bound, unless it is by the event time, ascending",
        "SELECT * FROM (SELECT …, ROW_NUMBER() OVER (…) AS n FROM t) WHERE n <= 3",
    ),
    (
        "SELECT UNIX_TIMESTAMP(ts) FROM flights",
        "1:23: UNIX_TIMESTAMP takes a text, and this is TIMESTAMP(3)",
        "EXTRACT(EPOCH FROM ts) of a time",
    ),
    (
        "SELECT RAND(7) FROM flights",
        "1:8: RAND takes no argument, and there is 1",
        "RAND_INTEGER(10): 0 to 9; there are no seeds",
    ),
    (
        "SELECT carrier, NOW() FROM flights GROUP BY carrier",
        "1:17: NOW stands in a select list and in WHERE",
        "SELECT *, NOW() AS x FROM (SELECT …)",
    ),
    (
        "SELECT COUNT(*) FROM flights GROUP BY CURRENT_DATE",
        "1:39: CURRENT_DATE has another value at each moment, so it is no key of a GROUP BY",
        "GROUP BY TUMBLE(PROCTIME(), INTERVAL '1' MINUTE)",
    ),
    (
        "SELECT CHR(carrier) FROM flights",
        "1:8: CHR of STRING",
        "CHR(number)",
    ),
    (
        "SELECT MD5(delay) FROM flights",
        "1:8: MD5 of BIGINT",
        "CAST(… AS STRING)",
    ),
    (
        "SELECT DECODE(carrier, 'UTF-8') FROM flights",
        "1:8: DECODE of STRING and STRING",
        "DECODE(bytes, characters)",
    ),
    (
        "SELECT OVERLAY(carrier PLACING 'x') FROM flights",
        "1:35: expected FROM of OVERLAY, found )",
        "OVERLAY(text PLACING part FROM 3)",
    ),
    (
        "SELECT REGEXP_COUNT(carrier, carrier) FROM flights",
        "1:30: the pattern of REGEXP_COUNT is a constant string",
        'a column there needs a function of Python: app.register("f", function), or --functions module',
    ),
    (
        "SELECT ARRAY_SORT(delay) FROM flights",
        "1:19: ARRAY_SORT takes an array here, and this is BIGINT",
        "ARRAY[1, 2], or SPLIT(text, ',')",
    ),
    (
        "SELECT ARRAY_APPEND(SPLIT(carrier, ','), 1) FROM flights",
        "1:42: INT is no value of ARRAY<STRING>",
        "CAST(… AS STRING)",
    ),
    (
        "SELECT ARRAY_JOIN(ARRAY[delay, 1], ',') FROM flights",
        "1:8: ARRAY_JOIN of ARRAY<BIGINT>",
        "ARRAY_JOIN(array, separator[, text])",
    ),
    (
        "SELECT ARRAY_SLICE(SPLIT(carrier, ','), 'a') FROM flights",
        "1:41: a place in an array is a whole number, and this is STRING",
        "1 is the first element, -1 the last one",
    ),
    (
        "SELECT * FROM flights f JOIN (SELECT * FROM plain) FOR SYSTEM_TIME AS OF f.ts AS p ON f.carrier = p.name",
        "1:52: expected ON or USING behind the joined table, found FOR",
        "CREATE VIEW v AS SELECT …, and JOIN v FOR SYSTEM_TIME AS OF a.ts ON a.id = v.id",
    ),
    (
        "CREATE TABLE x (ts TIMESTAMP(3), WATERMARK FOR ts) WITH ('connector' = 'print')",
        "1:50: expected AS of WATERMARK FOR, found )",
        "WATERMARK FOR ts AS ts - INTERVAL '5' SECOND",
    ),
    (
        "SELECT MAX(delay) FROM TABLE(TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start",
        "1:97: GROUP BY needs both window_start and window_end",
        "GROUP BY window_start, window_end",
    ),
    (
        "SELECT carrier FROM flights LIMIT -1",
        "1:35: LIMIT takes a whole number, 0 or more",
        "LIMIT 10, or LIMIT :n with a parameter",
    ),
    (
        "CREATE TABLE x (a INT) WITH ('conector' = 'print')",
        "1:30: there is no option 'conector'",
        "did you mean connector?",
    ),
    (
        "SELECT f.carrier FROM flights f JOIN plain p ON f.carrier = p.name WHERE SUM(f.delay) > p.id",
        "1:74: the aggregate SUM has no value in a single row",
        "HAVING, behind GROUP BY, takes conditions on aggregates",
    ),
    (
        "SELECT * FROM TABLE(HOP(flights, DESCRIPTOR(ts), INTERVAL '1' HOUR, INTERVAL '2' HOUR))",
        "1:25: HOP needs TABLE flights",
        "HOP(TABLE flights, DESCRIPTOR(ts), INTERVAL '5' MINUTE, INTERVAL '10' MINUTE): the slide first, then the size",
    ),
    (
        "SELECT carrier FROM TABLE(SESSION(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY carrier, window_start, window_end",
        "1:95: sessions are grouped by the columns of their PARTITION BY, and by no others",
        "SESSION(TABLE t PARTITION BY carrier, DESCRIPTOR(ts), …): sessions of each of them",
    ),
    (
        "SELECT 1 FROM SESSION(TABLE flights PARTITION BY carrier, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY window_start, window_end",
        "1:103: these sessions are those of each carrier, which is not in GROUP BY",
        "GROUP BY carrier, window_start, window_end",
    ),
    (
        "SELECT COUNT(*) FROM TUMBLE(TABLE flights PARTITION BY carrier, DESCRIPTOR(ts), INTERVAL '1' HOUR)",
        "1:29: TUMBLE has no PARTITION BY",
        "leave it out, and write its columns in GROUP BY",
    ),
    (
        "SELECT TUMBLE(ts, INTERVAL '1' HOUR), COUNT(*) FROM flights GROUP BY carrier",
        "1:8: there is no function TUMBLE",
        "SELECT TUMBLE_START(ts, INTERVAL '1' HOUR), and GROUP BY TUMBLE(ts, INTERVAL '1' HOUR)",
    ),
    (
        "SELECT carrier, MEDIAN(delay) FROM flights GROUP BY carrier",
        "1:17: there is no function MEDIAN",
        "PERCENTILE(x, 0.5): the median; 0.9 in place of 0.5 is exceeded by a tenth of the values",
    ),
    (
        "SELECT PERCENTILE(delay) FROM flights",
        "1:8: PERCENTILE takes two arguments",
        "PERCENTILE(x, 0.5)",
    ),
    (
        "SELECT PERCENTILE(delay, 50) FROM flights",
        "1:26: the fraction of PERCENTILE is a constant number from 0 to 1",
        "0.5 is the median",
    ),
    (
        "SELECT CONVERT_TZ('2024-01-01 00:00:00', delay, 'UTC') FROM flights",
        "1:42: CONVERT_TZ takes a text, and this is BIGINT",
        "a name as 'Europe/Berlin', or an offset as '+08:00'",
    ),
    (
        "SELECT SUBSTRING(carrier, 1, -2) FROM flights",
        "1:30: a part of a text is not shorter than 0",
        "a length of 0 or more",
    ),
    (
        "SELECT ts - carrier FROM flights",
        "1:8: - of TIMESTAMP and STRING",
        "a time and an interval: ts + INTERVAL '1' DAY",
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
        "1:35: TUMBLE needs TABLE flights",
        "TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
    ),
    (
        "SELECT COUNT(*) FROM TUMBLE(flights, ts, '1 hour') GROUP BY window_start, window_end",
        "1:29: TUMBLE needs TABLE flights",
        "TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
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
        "1:13: table counts has 2 columns, and the query 1",
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
        "HAVING, behind GROUP BY, takes conditions on aggregates",
    ),
    (
        "SELECT delay * 2 AS twice FROM flights WHERE twice > 1",
        '1:46: there is no column "twice"',
        "WHERE does not know the names of the select list: write the expression, or a query outside",
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
        "a query as a value stands in WHERE, or in a select list without aggregates: group in FROM (SELECT … GROUP BY …)",
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
        "1:8: SUM of STRING",
        "it takes numbers",
    ),
    (
        "SELECT MAX(SUM(delay)) FROM flights GROUP BY origin",
        "1:12: an aggregate has no other aggregate inside",
        "MAX(x) of a query inside: FROM (SELECT SUM(…) AS x FROM t GROUP BY key)",
    ),
    (
        "SELECT COUNT(*) FROM flights GROUP BY GROUPING SETS (())",
        "1:39: GROUP BY has no expression",
        "without GROUP BY, all rows are one group",
    ),
    (
        "SELECT COUNT(*) FROM flights GROUP BY CUBE (carrier, delay, origin, 1, 2, 3, 4)",
        "1:39: this CUBE has 128 sets",
        "64 at most: GROUPING SETS names those that are needed",
    ),
    (
        "BEGIN TRANSACTION",
        "1:1: BEGIN is not supported",
        "a set of statements begins with EXECUTE STATEMENT SET BEGIN",
    ),
    (
        "USE CATALOG hive",
        "1:1: there is no catalog hive",
        "the only one is default_catalog.default_database: leave USE out",
    ),
    (
        "SELECT carrier FROM flights /*+ OPTION('path' = 'x.csv') */",
        "1:33: the hint OPTION is not supported",
        "OPTIONS('path' = 'other.json')",
    ),
    (
        "SELECT carrier FROM flights WHERE carrier SIMILAR TO '(U'",
        "1:35: the pattern of SIMILAR TO is not valid: missing ), unterminated subpattern",
        "'(a|b)%', '[a-z]+'",
    ),
    (
        "SELECT GROUPING(origin) FROM flights GROUP BY CUBE (carrier)",
        "1:17: GROUP BY does not have this argument of GROUPING",
        "GROUP BY CUBE (a, b): GROUPING(a)",
    ),
    (
        "SELECT ROW_NUMBER() OVER (ORDER BY delay) FROM flights",
        "1:8: a ranking needs a bound, unless it is by the event time, ascending",
        "SELECT * FROM (SELECT …, ROW_NUMBER() OVER (…) AS n FROM t) WHERE n <= 3",
    ),
    (
        "SELECT * FROM read_csv('a.csv')",
        "1:15: there is no table function read_csv",
        "a file has quotes: FROM 'flights.csv'",
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
        "did you mean kafka or faker?",
    ),
    (
        "CREATE TABLE x (a INT) WITH ('connector' = 'files', 'format' = 'csv')",
        "1:14: table x needs the option 'path'",
        "'path' = '…'",
    ),
    (
        "CREATE TABLE x (a INT) WITH ('connector' = 'files', 'path' = 'x', 'formt' = 'csv')",
        "1:67: there is no option 'formt'",
        "did you mean format?",
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
        "write sqlite:///absolute/path.db, sqlite:relative/path.db, duckdb:///absolute/path.duckdb, duckdb:relative/path.duckdb "
        "or postgresql://user@host/database",
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
        "there are partition, offset, timestamp, key, headers, headers.NAME",
    ),
    (
        "SELECT * EXCLUDE (origin) FROM flights",
        "1:18: expected ; or the end of the statement, found (",
        "name the columns that are wanted",
    ),
    (
        "SELECT * EXCEPT (origin) FROM flights",
        "1:17: expected SELECT, found (",
        "name the columns that are wanted; of two queries: WHERE NOT EXISTS (SELECT …)",
    ),
    (
        "SELECT DISTINCT ON (carrier) carrier, delay FROM flights",
        "1:8: DISTINCT ON is not supported",
        "QUALIFY ROW_NUMBER() OVER (PARTITION BY key ORDER BY x DESC) = 1",
    ),
    (
        "SELECT TOP 3 carrier FROM flights",
        "1:12: expected ; or the end of the statement, found 3",
        "ORDER BY … LIMIT n",
    ),
    (
        "SELECT carrier FROM flights WHERE delay > 10 && origin = 'JFK'",
        "1:46: '&' has no meaning in SQL",
        "conditions are joined by AND",
    ),
    (
        "SELECT carrier FROM flights WHERE delay == 10",
        "1:42: expected an expression, found =",
        "= compares",
    ),
    (
        "SELECT * FROM flights ASOF JOIN plain ON flights.origin = plain.name",
        "1:23: ASOF is not supported",
        "JOIN t FOR SYSTEM_TIME AS OF a.ts ON a.key = t.key",
    ),
    (
        "SELECT TIMESTAMPDIFF(HOURS, ts, ts) FROM flights",
        "1:22: expected one of YEAR, QUARTER, MONTH, WEEK, DAY, HOUR, MINUTE, SECOND, found HOURS",
        "did you mean HOUR?",
    ),
    (
        "SELECT COUNT(*) FILTER WHERE delay > 10 FROM flights GROUP BY carrier",
        "1:17: expected ; or the end of the statement, found FILTER",
        "FILTER (WHERE condition)",
    ),
    (
        "SELECT carrier FROM flights UNION ALL SELECT name, id FROM plain",
        "1:39: UNION of 1 and 2 columns",
        "both queries have the same columns; CAST(NULL AS …) stands for one",
    ),
    (
        "SELECT * FROM TABLE(HOP(TABLE flights, DESCRIPTOR(ts), INTERVAL '7' MINUTE, INTERVAL '1' HOUR))",
        "1:77: the size of HOP is no multiple of its slide",
        "a size of 56 minutes or 63 minutes for this slide; the slide stands first, then the size",
    ),
    (
        "SELECT COUNT(*) FROM TABLE(TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '-1' HOUR)) GROUP BY window_start, window_end",
        "1:66: a window of TUMBLE is longer than 0",
        "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
    ),
    (
        "SELECT COUNT(*) FROM TABLE(TUMBLE(TABLE flights, ts, INTERVAL '1' HOUR)) GROUP BY window_start, window_end",
        "1:50: TUMBLE needs DESCRIPTOR(column)",
        "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
    ),
    (
        "SELECT COUNT(*) FROM TABLE(TUMBLE(TABLE flights, DESCRIPTOR('ts'), INTERVAL '1' HOUR)) GROUP BY window_start, window_end",
        "1:61: expected a column, found 'ts'",
        "a name has no quotes, or `ts`",
    ),
    (
        "SELECT carrier, COUNT(*) FROM flights GROUP BY ALL",
        "1:48: GROUP BY ALL is not supported",
        "name the columns: GROUP BY a, b",
    ),
    (
        'SELECT carrier FROM flights WHERE carrier = "UA"',
        '1:45: there is no column "UA"',
        "a text has single quotes: 'UA'",
    ),
    (
        "SELECT [carrier] FROM flights",
        "1:8: expected an expression, found [",
        'ARRAY[1, 2] is an array; `x` and "x" quote a name',
    ),
    (
        "SELECT carrier FROM flights WITH (NOLOCK)",
        "1:29: hints of tables are not supported",
        "leave WITH (…) out",
    ),
    (
        "SELECT GETDATE() FROM flights",
        "1:8: there is no function GETDATE",
        "NOW(), or CURRENT_TIMESTAMP",
    ),
    (
        "SELECT DATEADD(hour, 1, ts) FROM flights",
        "1:8: there is no function DATEADD",
        "ts + INTERVAL '1' DAY",
    ),
    (
        "SELECT delay::text FROM flights",
        "1:15: there is no type TEXT",
        "STRING",
    ),
    (
        "SELECT carrier ILIKE 'u%' FROM flights",
        "1:22: expected ; or the end of the statement, found 'u%'",
        "LOWER(text) LIKE 'u%'",
    ),
    (
        "SELECT ts + INTERVAL '1 hour' FROM flights",
        "1:31: expected a unit behind INTERVAL '…', found FROM",
        "write INTERVAL '1' HOUR",
    ),
    (
        "SELECT * FROM flights, LATERAL (SELECT * FROM plain) AS p",
        "1:24: the query of LATERAL has no column that equals one outside",
        "LATERAL (SELECT x FROM b WHERE b.k = a.k ORDER BY x DESC LIMIT 3)",
    ),
    (
        "SELECT * FROM flights, LATERAL (SELECT * FROM plain WHERE id > delay) AS p",
        "1:59: the query of LATERAL is joined by equal columns only",
        "write a join",
    ),
    (
        "SELECT * FROM flights, LATERAL (SELECT * FROM plain WHERE id = delay LIMIT 3) AS p",
        "1:24: LIMIT of LATERAL has an ORDER BY, and ORDER BY a LIMIT",
        "LATERAL (SELECT x FROM b WHERE b.k = a.k ORDER BY x DESC LIMIT 3)",
    ),
    (
        "SELECT * FROM flights RIGHT JOIN LATERAL (SELECT * FROM plain WHERE id = delay) AS p ON TRUE",
        "1:15: LATERAL is joined by CROSS JOIN, or by LEFT JOIN … ON TRUE",
        "LATERAL (SELECT x FROM b WHERE b.k = a.k ORDER BY x DESC LIMIT 3)",
    ),
    (
        "SELECT * FROM LATERAL (SELECT * FROM plain) AS p",
        "1:15: LATERAL needs a table before it",
        "FROM a, LATERAL (SELECT … WHERE b.k = a.k)",
    ),
    (
        "SELECT * FROM flights PIVOT (AVG(delay) FOR carrier IN ('UA', 'AA'))",
        "1:23: PIVOT is not supported",
        "SUM(x) FILTER (WHERE kind = 'a') AS a, …",
    ),
    (
        "SELECT COUNT(DISTINCT carrier, ARRAY[delay]) FROM flights",
        "1:32: COUNT of several values takes no ARRAY<BIGINT>",
        "JSON_STRING(…) of it, or its parts",
    ),
    (
        "SELECT JSON_OBJECTAGG(delay VALUE carrier) FROM flights",
        "1:23: a key of JSON_OBJECTAGG is a text, and this is BIGINT",
        "CAST(… AS STRING)",
    ),
    (
        "SELECT JSON_OBJECTAGG(carrier) FROM flights",
        "1:30: expected VALUE of JSON_OBJECTAGG, found )",
        "JSON_OBJECTAGG(KEY k VALUE x)",
    ),
    (
        "SELECT carrier OVERLAPS carrier FROM flights",
        "1:8: OVERLAPS compares two spans of time",
        "(a, b) OVERLAPS (c, INTERVAL '1' HOUR)",
    ),
    (
        "SELECT (delay, delay) OVERLAPS (delay, delay) FROM flights",
        "1:9: OVERLAPS compares spans of time, and this is BIGINT",
        "(a, b) OVERLAPS (c, INTERVAL '1' HOUR)",
    ),
    (
        "SELECT TIMESTAMPADD(DAY, 1.5, ts) FROM flights",
        "1:26: the number of TIMESTAMPADD is a whole one, and this is DECIMAL(2, 1)",
        "CAST(… AS INT)",
    ),
    (
        "SELECT COUNT(DISTINCT delay) OVER (ORDER BY ts ROWS 3 PRECEDING) FROM flights",
        "1:8: DISTINCT of a frame with a begin has no value after each row",
        "ROWS UNBOUNDED PRECEDING, or GROUP BY of a window",
    ),
    (
        "SELECT SUM(delay) OVER (PARTITION BY carrier) FROM flights",
        "1:8: SUM OVER needs ORDER BY the event time, ascending",
        "SUM(…) OVER (… ORDER BY ts); for all rows of a key: JOIN (SELECT key, SUM(…) AS x FROM t GROUP BY key)",
    ),
    (
        "SELECT delay FROM flights WHERE carrier IN ('UA', 1)",
        "1:51: STRING and INT are never equal",
        "CAST(… AS STRING)",
    ),
    (
        "SELECT delay > 10 ? 'late' : 'early' FROM flights",
        "1:28: ':' has no meaning in SQL",
        "a parameter is :name; a choice is CASE WHEN … THEN … ELSE … END",
    ),
    (
        "SELECT carrier, FROM flights",
        "1:17: expected an expression, found FROM",
        "leave out the comma before FROM",
    ),
    (
        "SELECT carrier flights",
        '1:8: there is no column "carrier"',
        "SELECT … FROM table",
    ),
    (
        "SELECT FROM flights",
        "1:8: expected a column or an expression behind SELECT, found FROM",
        "SELECT * FROM …",
    ),
    (
        "SELECT carrier FROM flights ORDER carrier",
        "1:35: expected BY, found carrier",
        "write ORDER BY",
    ),
    (
        "SELECT carrier FROM flights HAVING COUNT(*) > 3 GROUP BY carrier",
        "1:49: expected ; or the end of the statement, found GROUP",
        "the clauses stand in this order: FROM, WHERE, GROUP BY, HAVING, QUALIFY, ORDER BY, LIMIT",
    ),
    (
        "SELECT carrier FROM flights WHERE delay + ANY (SELECT id FROM plain)",
        "1:43: ANY (SELECT …) is not supported",
        "it stands behind a comparison: x > ANY (SELECT …)",
    ),
    (
        "SELECT f.carrier FROM flights AS f JOIN plain AS p FOR SYSTEM_TIME AS OF f.delay ON f.origin = p.name",
        "1:74: delay is neither the event time nor PROCTIME()",
        "the event time is ts",
    ),
    (
        "SELECT a.origin FROM flights AS a JOIN flights AS b ON carrier = carrier",
        '1:56: "carrier" may be a.carrier or b.carrier',
        "write the name of the table before it",
    ),
    (
        "SELECT carrier->>'a' FROM flights",
        "1:16: expected an expression, found >",
        "JSON_VALUE(text, '$.name')",
    ),
    (
        "SELECT $1 FROM flights",
        "1:8: expected an expression, found $",
        "a parameter is :name",
    ),
    (
        "SELECT carrier INTO counts FROM flights",
        "1:16: expected ; or the end of the statement, found INTO",
        "INSERT INTO table SELECT …",
    ),
    (
        "SELECT MAX(delay, 3) FROM flights",
        "1:8: MAX takes one argument",
        "GREATEST(x, y)",
    ),
    (
        "SELECT GREATEST(delay, carrier) FROM flights",
        "1:8: GREATEST of BIGINT and STRING",
        "CAST(… AS STRING)",
    ),
    (
        "SELECT DATE_FORMAT(ts, '%Y-%m-%d') FROM flights",
        "1:24: Y of the pattern has no equivalent",
        "patterns are Java's: yyyy-MM-dd HH:mm:ss",
    ),
    (
        "COPY flights FROM 'flights.csv'",
        "1:1: COPY is not supported",
        "write CREATE TABLE … WITH ('connector' = 'files', 'path' = '…') and INSERT INTO",
    ),
    (
        "SHOW SCHEMAS",
        "1:6: expected TABLES, VIEWS, FUNCTIONS, MODELS, CONNECTORS, CATALOGS, DATABASES or CREATE TABLE behind SHOW, found SCHEMAS",
        "SHOW DATABASES",
    ),
    (
        "SHOW CURRENT MODULES",
        "1:14: expected CATALOG or DATABASE behind SHOW CURRENT, found MODULES",
        "SHOW CURRENT DATABASE: there is one catalog with one database",
    ),
    (
        "SELECT ELEMENT(ARRAY[delay]) FROM flights",
        "1:8: there is no function ELEMENT",
        "tags[1]: the first element",
    ),
    (
        "SELECT SUBSTRING(carrier, origin) FROM flights",
        "1:27: SUBSTRING takes a whole number here, and this is STRING",
        "CAST(x AS INT)",
    ),
    (
        "CREATE TABLE x (a INT, o TIMESTAMP_LTZ(3) METADATA FROM 'value.ingestion-timestamp') WITH ('connector' = 'kafka', 'topic' = 'x')",
        "1:24: there is no metadata 'value.ingestion-timestamp'",
        "a table with 'format' = 'json' reads it as a column of the records: ts_ms BIGINT",
    ),
    (
        "CREATE TABLE x (a INT, o STRING METADATA FROM 'value.source.table') WITH ('connector' = 'kafka', 'topic' = 'x')",
        "1:24: there is no metadata 'value.source.table'",
        "a table with 'format' = 'json' reads it as a column of the records: source ROW<`table` STRING>",
    ),
    (
        "CREATE TABLE x (a INT, p STRING METADATA FROM 'file.path') WITH ('connector' = 'kafka', 'topic' = 'x')",
        "1:24: there is no metadata 'file.path'",
        "a table of files has it: 'connector' = 'filesystem'",
    ),
    (
        "SELECT * FROM flights FOR SYSTEM_TIME AS OF ts",
        "1:45: FOR SYSTEM_TIME AS OF stands behind JOIN",
        "FROM a JOIN flights FOR SYSTEM_TIME AS OF a.ts ON a.id = flights.id",
    ),
    (
        "SHOW TABELS",
        "1:6: expected TABLES, VIEWS, FUNCTIONS, MODELS, CONNECTORS, CATALOGS, DATABASES or CREATE TABLE behind SHOW, found TABELS",
        "did you mean TABLES?",
    ),
    (
        "EXPLAIN ANALYZE SELECT * FROM flights",
        "1:9: ANALYZE is not supported",
        "EXPLAIN shows the plan; sabot run --web shows what a running app does",
    ),
    (
        "SET parallelism = 2",
        "1:5: expected an option ('name' = 'value') behind SET, found parallelism",
        "options have quotes: 'parallelism'",
    ),
    (
        "CREATE TABLE x (a INT b STRING) WITH ('connector' = 'print')",
        "1:23: expected ) behind the columns, found b",
        "columns have commas between them",
    ),
    (
        "CREATE TABLE x (a INT) WITH (connector = 'print')",
        "1:30: expected an option ('name' = 'value'), found connector",
        "options have quotes: 'connector'",
    ),
    (
        "CREATE TABLE x (a INT AUTO_INCREMENT) WITH ('connector' = 'print')",
        "1:23: expected ) behind the columns, found AUTO_INCREMENT",
        "leave it out: rows come with their values",
    ),
    (
        "CREATE TABLE x (a VARCHAR(MAX)) WITH ('connector' = 'print')",
        "1:27: expected a number, found MAX",
        "STRING has no bound",
    ),
    (
        "CREATE TABLE x (a INT) WITH ('connector' = 'kafka', 'topics' = 'x')",
        "1:14: table x needs the option 'topic'",
        "'topic' = '…', and there is 'topics'",
    ),
    (
        "CREATE INDEX i ON flights (carrier)",
        "1:8: expected TABLE, VIEW, FUNCTION or MODEL behind CREATE, found INDEX",
        "leave it out: the state of a query is found by its keys",
    ),
    (
        "INSERT INTO counts SELECT carrier, origin FROM flights",
        "1:36: column n of table counts is BIGINT, and the query gives STRING",
        "CAST(origin AS BIGINT)",
    ),
    (
        "INSERT INTO counts (n) SELECT delay FROM flights",
        "1:21: INSERT leaves out the column carrier, of the PRIMARY KEY",
        "give it a value",
    ),
    (
        "INSERT INTO counts SELECT * FROM plain",
        "1:13: table counts has 2 columns, and the query 3",
        "counts(carrier, n)",
    ),
    (
        "INSERT INTO counts SELECT carrier, 1 FROM flights ON CONFLICT DO NOTHING",
        "1:51: expected ; or the end of the statement, found ON",
        "leave ON CONFLICT out: a PRIMARY KEY in CREATE TABLE makes INSERT INTO an upsert",
    ),
    (
        "SELECT carrier, COUNT(*) AS n FROM flights GROUP BY carrier HAVING n > 3",
        '1:68: there is no column "n"',
        "HAVING does not know the names of the select list: write the expression, or a query outside",
    ),
    (
        "SELECT carrier FROM flights FOR UPDATE",
        "1:29: FOR UPDATE is not supported",
        "leave it out: there are no locks",
    ),
    (
        "INSERT OR REPLACE INTO counts SELECT carrier, delay FROM flights",
        "1:8: INSERT OR … is not supported",
        "write INSERT INTO: a PRIMARY KEY makes it an upsert",
    ),
    (
        "SELECT AVG(delay) FILTER (delay > 3) FROM flights",
        "1:27: expected WHERE of FILTER, found delay",
        "FILTER (WHERE condition)",
    ),
    (
        "SELECT NTILE(4) OVER (ORDER BY ts) FROM flights",
        "1:8: NTILE is no function of OVER",
        "there are the aggregates, LAG, LEAD, and ROW_NUMBER, RANK and DENSE_RANK",
    ),
    (
        "SELECT carrier FROM flights WHERE ts BETWEEN '2013-01-01' AND 'tomorrow'",
        "1:63: 'tomorrow' is no TIMESTAMP(3)",
        "'2024-05-17 12:30:00'",
    ),
    (
        "SELECT carrier FROM flights WHERE ts > 1357000000",
        "1:35: > of TIMESTAMP and INT",
        "a time: TIMESTAMP '2024-05-17 12:30:00', or TO_TIMESTAMP_LTZ(x, 3) of ms since 1970",
    ),
    (
        "SELECT f.* FROM flights AS f LEFT JOIN rates AS r ON f.carrier = r.carrier AND f.ts <= r.ts AND f.delay > r.rate",
        "1:97: LEFT JOIN by time takes equal columns, bounds of time, and conditions on one of the tables",
        "JOIN … ON a.id = b.id, and the condition in WHERE: rows without a partner are left out",
    ),
    (
        "WITH x AS SELECT carrier FROM flights SELECT * FROM x",
        "1:11: expected ( of WITH, found SELECT",
        "WITH x AS (SELECT …)",
    ),
    (
        "SELECT window_start FROM flights GROUP BY window_start",
        '1:43: there is no column "window_start"',
        "FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR)) has it",
    ),
    (
        "CREATE TABLE x (a INT,) WITH ('connector' = 'print')",
        "1:23: expected the name of a column, found )",
        "leave out the comma before )",
    ),
    (
        "CREATE TABLE x (a TIMESTAMP(3), WATERMARK FOR a AS a - 5 SECONDS) WITH ('connector' = 'print')",
        "1:58: expected ) behind the columns, found SECONDS",
        "INTERVAL '5' SECOND",
    ),
    (
        "SELECT carrier, COUNT(*) AS n FROM flights GROUP BY carrier EMIT ON WINDOW CLOSE",
        "1:61: the rows of this query are updated as rows come, and it has no window that closes",
        "GROUP BY window_start, window_end of a window; or without EMIT ON WINDOW CLOSE",
    ),
    (
        "SELECT /*+ STATE_TTL('flihgts' = '1d') */ carrier FROM flights",
        '1:12: FROM has no table "flihgts"',
        "did you mean flights?",
    ),
    (
        "SELECT carrier, COUNT(*) AS n FROM flights GROUP BY carrier LIMIT 10",
        "1:67: the rows of this query are updated and have no end, so there are no first ones without an order",
        "ORDER BY n DESC LIMIT 10: these rows, kept up to date",
    ),
    (
        "EXPLAIN CREATE VIEW v AS SELECT * FROM flights",
        "1:9: EXPLAIN takes a query, an INSERT, or a set of INSERTs",
        "EXPLAIN SELECT …, with the query of the view",
    ),
    (
        "SELECT * FROM deduped AS d JOIN rates FOR SYSTEM_TIME AS OF d.ts AS r ON d.carrier = r.carrier",
        "1:15: these rows are updated as others come, and FOR SYSTEM_TIME AS OF an event time takes final ones",
        "the first row by the event time is final (ROW_NUMBER() … ORDER BY ts, = 1); or join first, and rank the joined rows",
    ),
    (
        "SELECT SUM(delay) OVER (ORDER BY ts) FROM deduped",
        "1:8: over: the rows that come in are changes (updates and deletes of earlier ones), which it cannot take",
        "a ranking by the event time, a ranking within a window, and SELECT DISTINCT give final rows; or take this step first and rank "
        "last, into a table with a PRIMARY KEY",
    ),
    (
        "SELECT carrier FROM flights QUALIFY RANK() OVER (PARTITION BY carrier ORDER BY PROCTIME()) = 1",
        "1:80: the time of processing has no value in a row",
        "it may stand in a select list, in DESCRIPTOR, in FOR SYSTEM_TIME AS OF, and in ORDER BY of a ROW_NUMBER() that is bounded by "
        "= 1; compare by the event time",
    ),
    (
        "SELECT carrier FROM flights QUALIFY ROW_NUMBER() OVER (PARTITION BY carrier ORDER BY PROCTIME()) <= 2",
        "1:37: one row of each key is kept in the order of arrival",
        "WHERE n = 1; or ORDER BY the event time, or any column",
    ),
    (
        "SELECT /*+ STATE_TTL('plain' = '1d') */ name FROM plain QUALIFY ROW_NUMBER() OVER (ORDER BY PROCTIME()) = 1",
        "1:65: STATE_TTL counts event time, and these rows have none",
        "WATERMARK FOR ts AS ts - INTERVAL '5' SECOND in CREATE TABLE",
    ),
    (
        "SELECT carrier FROM flights QUALIFY ROW_NUMBER() OVER (ORDER BY PROCTIME() DESC) = 1",
        "1:37: the last row to arrive needs PARTITION BY",
        "PARTITION BY the key",
    ),
    (
        "SELECT carrier FROM flights WHERE delay > 'abc'",
        "1:35: 'abc' is no BIGINT",
        "a number; or CAST(… AS STRING) = '…', which compares the texts",
    ),
    (
        "SELECT carrier FROM flights QUALIFY ROW_NUMBER() OVER (PARTITION BY carrier ORDER BY delay) = 0",
        "1:37: ranks begin at 1, so no row has this one",
        "WHERE n <= 3, or n = 1",
    ),
    (
        "SELECT carrier FROM flights QUALIFY ROW_NUMBER() OVER (PARTITION BY carrier ORDER BY delay) > 2",
        "1:37: a ranking needs a bound, unless it is by the event time, ascending",
        "SELECT * FROM (SELECT …, ROW_NUMBER() OVER (…) AS n FROM t) WHERE n <= 3",
    ),
    (
        "SELECT ROW_NUMBER() OVER () AS n FROM flights",
        "1:8: ROW_NUMBER needs ORDER BY",
        "ROW_NUMBER() OVER (PARTITION BY key ORDER BY x)",
    ),
    (
        "SELECT carrier FROM TABLE(TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY carrier",
        "1:94: GROUP BY needs window_start and window_end",
        "GROUP BY …, window_start, window_end",
    ),
    (
        "SELECT f.delay FROM flights f JOIN rates FOR SYSTEM_TIME AS OF NOW() AS r ON f.carrier = r.carrier",
        "1:36: AS OF takes a column of time of the left table, behind JOIN or LEFT JOIN",
        "FOR SYSTEM_TIME AS OF a.ts, its event time, or PROCTIME()",
    ),
    (
        "SELECT delay FROM flights f SEMI JOIN rates r ON f.carrier = r.carrier",
        "1:29: expected ; or the end of the statement, found SEMI",
        "WHERE x IN (SELECT …), or NOT EXISTS (SELECT …)",
    ),
    (
        "SELECT LAST_VALUE(delay IGNORE NULLS) OVER (ORDER BY ts) FROM flights",
        "1:25: expected ) of LAST_VALUE(…), found IGNORE",
        "LAST_VALUE(x) FILTER (WHERE x IS NOT NULL)",
    ),
    (
        "SELECT carrier, SUM(delay > 15) FROM flights GROUP BY carrier",
        "1:17: SUM of BOOLEAN",
        "COUNT(*) FILTER (WHERE condition)",
    ),
    (
        "SELECT STRING(delay) FROM flights",
        "1:8: there is no function STRING",
        "CAST(x AS STRING)",
    ),
    (
        "SELECT REGEXP_LIKE(origin, '^J') FROM flights",
        "1:8: there is no function REGEXP_LIKE",
        "REGEXP(text, pattern)",
    ),
    (
        "SELECT SAFE_DIVIDE(delay, 2) FROM flights",
        "1:8: there is no function SAFE_DIVIDE",
        "x / NULLIF(y, 0)",
    ),
    (
        "SELECT TIMESTAMP_TRUNC(ts, HOUR) FROM flights",
        "1:8: there is no function TIMESTAMP_TRUNC",
        "FLOOR(ts TO HOUR)",
    ),
]
"""A statement, the place and the message of its error, and its hint."""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SELECT {}", "1:8: a number of 5,000 characters is more than any type holds"),
        ("SELECT delay FROM flights LIMIT {}", "a number of 5,000 characters is more than any type holds"),
        ("SELECT TIMESTAMPADD(DAY, {}, ts) FROM flights", "a number of 5,000 characters is more than any type holds"),
        ("SELECT '\ud800'", "1:9: this is one half of a surrogate pair, which is no character"),
        (
            "SELECT carrier AS `\udfff` FROM flights",
            "1:20: this is one half of a surrogate pair, which is no character",
        ),
    ],
)
def test_a_number_of_5000_digits_and_a_half_of_a_pair_are_errors_of_the_statement(text, words):
    """Python's bare errors came: of int(), and of an encoder of UTF-8."""
    app = App("wrong")
    app.sql(TABLES)
    with pytest.raises(SqlError, match=words):
        app.sql(text.format("9" * 5000))


@pytest.mark.one_in(12, "a hundredth of a second of a core each")
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


@pytest.mark.parametrize(
    ("statement", "marked"),
    [
        ("INSERT INTO counts SELECT carrier FROM flights", "counts"),
        ("INSERT INTO counts SELECT carrier, origin FROM flights", "origin"),
        ("INSERT INTO counts (n) SELECT delay FROM flights", "n"),
        ("INSERT INTO counts SELECT f.* FROM (SELECT carrier, origin FROM flights) AS f", "counts"),
        ("INSERT INTO counts VALUES ('UA', 'many')", "'many'"),
    ],
)
def test_an_insert_marks_what_does_not_fit(statement, marked):
    app = App("wrong")
    app.sql(TABLES)
    with pytest.raises(SqlError) as caught:
        app.sql(statement)
    _, line, caret, _ = str(caught.value).splitlines()
    assert line[caret.index("^") : caret.rindex("^") + 1] == marked


NO_CASTS = [
    ("CAST(ARRAY[r] AS STRING)", "ARRAY<ROW<x INT, y STRING>> cannot be cast to STRING"),
    ("CAST(a AS INT)", "ARRAY<INT> cannot be cast to INT"),
    ("CAST(r AS DECIMAL(9, 2))", "ROW<x INT, y STRING> cannot be cast to DECIMAL(9, 2)"),
    ("TRY_CAST(a AS DATE)", "ARRAY<INT> cannot be cast to DATE"),
]


@pytest.mark.parametrize(("cast", "message"), NO_CASTS)
def test_a_cast_that_there_is_not_is_refused_in_words_of_sql(cast, message):
    """It said: Unsupported cast from list<item: int32> to utf8 using function cast_string."""
    app = App("wrong")
    row = pa.struct([("x", pa.int32()), ("y", pa.string())])
    rows = pa.table({"a": pa.array([[1]], pa.list_(pa.int32())), "r": pa.array([{"x": 1, "y": "b"}], row)})
    with pytest.raises(SqlError) as caught:
        app.sql(f"SELECT {cast} AS v FROM g", g=app.stream(rows))
    first, *_ = str(caught.value).splitlines()
    assert first == f"SQL:1:8: {message}"


def test_an_error_of_a_row_calls_types_as_describe_does() -> None:
    """Both have a table of names, since the room of steps is below that of SQL."""
    types = [pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64()]
    types += [pa.float32(), pa.float64(), pa.string(), pa.date32()]
    types += [pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC")]
    assert {str(type): sql_type(type) for type in types} | {"decimal128": "DECIMAL"} == {**_SQL_TYPES}
    assert sql_type(pa.decimal128(10, 2)).replace("DECIMAL", "decimal128") == str(pa.decimal128(10, 2))


ROWS = pa.table({"k": ["a", "a", "b"], "s": ["5", "x", "7"], "n": [2**63 - 1, 1, 3]})
AT_RUN_TIME = [
    (
        "SELECT k, CAST(s AS BIGINT) AS v FROM g",
        "SQL:1:1: column 'v': column 's': 'x' is no BIGINT; ",
        "(TRY_CAST gives NULL for such values)",
    ),
    ("SELECT k FROM g WHERE k <> '' AND\n CAST(s AS INT) > 5", "SQL:2:2: column 's': 'x' is no INT; ", "(TRY_CAST"),
    ("SELECT CAST(s AS TIMESTAMP(3)) AS t FROM g", "SQL:1:1: column 't': column 's': '5' is no TIMESTAMP(3); ", ""),
    ("SELECT CAST(n * 1.5 AS INT) AS i FROM g", "SQL:1:1: column 'i': 13835058055282163710.0 is no INT; ", ""),
    ("SELECT CAST(CAST(n AS DOUBLE) AS DECIMAL(5, 2)) AS i FROM g", "SQL:1:1: column 'i': 9.223372036854776e+18 is no DECIMAL(5, 2); ", ""),
    ("SELECT CAST(s || ': is no INT' AS INT) AS i FROM g", "SQL:1:1: column 'i': '5: is no INT' is no INT; ", "(TRY_CAST"),
    ("SELECT CAST(n AS INT) AS i FROM g", "SQL:1:1: column 'i': column 'n': 9223372036854775807 is no INT; ", ""),
    (
        "SELECT k, SUM(n) AS t FROM g GROUP BY k",
        "SQL:1:1: a sum is more than BIGINT holds: its key is k='a' ",
        "(SUM(CAST(x AS DOUBLE)), or of a wider DECIMAL)",
    ),
    ("SELECT JSON_OBJECTAGG('k' VALUE n) AS j FROM g", "SQL:1:1: column 'j': the key 'k' comes twice in one object of JSON", "(FILTER"),
    ("SELECT JSON_OBJECTAGG(NULLIF(k, 'a') VALUE n) AS j FROM g", "SQL:1:1: column 'j': a key is NULL in one object", "(FILTER"),
    ("SELECT TIMESTAMPADD(YEAR, n * 5000, DATE '2024-01-01') AS j FROM g WHERE n < 9", "SQL:1:1: column 'j': 2024-01-01 00:00:00 and", ""),
    ("SELECT JSON_VALUE(s, '$.x' ERROR ON ERROR) AS j FROM g", "SQL:1:1: column 'j': no scalar at '$.x' of 'x'; ", "(NULL ON"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "begin", "hint"), AT_RUN_TIME)
def test_an_error_of_a_row_says_its_place_in_the_script_and_the_words_of_sql(text, begin, hint):
    """They began with the words of the step in Python, and said what to write there."""
    app = App("rows")
    stream = app.sql(text, g=app.stream(ROWS))
    with pytest.raises(DataError) as error:
        (stream.materialize() if stream.changes else stream).collect()
    said = str(error.value)
    assert said.startswith(begin), said
    assert hint in said
    assert not re.search(r"col\(|\bint64\b|strict=|\.cast\(|str\.", said), said


async def test_dead_letters_of_a_script_have_its_places(memory_url, caplog):
    app = App("rows", broker=memory_url)
    rows = app.stream("rows", schema={"s": "string"}, until="now", on_error="dead_letter")
    app.sql("SELECT s,\n CAST(s AS INT) AS v FROM g WHERE s <> ''", g=rows).to("checked")
    MemoryBroker.get(memory_url).publish("rows", [{"s": text} for text in ("1", "x", "2")])
    with caplog.at_level(logging.WARNING, logger="sabot"):
        await bounded(app.run())
    assert [each["v"] for each in values(app, "checked")] == [1, 2]
    (line,) = [line for line in caplog.messages if "the first one" in line]
    assert line.startswith("SQL:1:1: select s, v = ")
    assert line.endswith("'x' is no INT; rows[0]@1"), line


def test_an_error_of_a_step_of_python_says_python():
    rows = App("rows").stream(ROWS)
    with pytest.raises(DataError, match=r"^select v = col\(\"s\"\).*'x' is no int64.*strict=False"):
        rows.select(v=col("s").cast("int64")).collect()
