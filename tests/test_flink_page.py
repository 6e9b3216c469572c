"""The page `coming-from/flink-sql.md`: the parser and the binder say of each text what the page says.

Not among the tests of the room: CREATE MODEL loads a room of the agents.
"""

import re
from typing import get_args

import pytest

from sabot import App
from sabot.sql.functions import AGGREGATES, FUNCTIONS, MOMENTS
from sabot.sql.syntax import tree
from sabot.sql.syntax.parser import parse
from sabot.sql.syntax.text import SqlError, SqlText
from tools.source_tree import PROJECT

PAGE = (PROJECT / "docs/coming-from/flink-sql.md").read_text()
KAFKA = "WITH ('connector' = 'kafka', 'topic' = 'x', 'format' = 'json')"
TABLES = f"""
CREATE TABLE t (i INT, l BIGINT, d DOUBLE, m DECIMAL(10, 2), s STRING, b BOOLEAN, y BYTES, dt DATE, ts TIMESTAMP(3),
    a ARRAY<INT>, r ROW<x INT, z STRING>, p AS PROCTIME(), WATERMARK FOR ts AS ts) {KAFKA};
CREATE TABLE u (i INT, s STRING, d DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) {KAFKA};
CREATE TABLE rates (s STRING, rate DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts, PRIMARY KEY (s) NOT ENFORCED)
    WITH ('connector' = 'upsert-kafka', 'topic' = 'r', 'key.format' = 'json', 'value.format' = 'json');
CREATE TABLE q (k INT PRIMARY KEY NOT ENFORCED, v STRING)
    WITH ('connector' = 'jdbc', 'url' = 'jdbc:sqlite:q.db', 'table-name' = 'q');
CREATE TABLE o (s STRING, n BIGINT) WITH ('connector' = 'blackhole');
CREATE TABLE days (n BIGINT, s STRING) PARTITIONED BY (s) WITH ('connector' = 'filesystem', 'path' = 'days', 'format' = 'json');
"""
STANDS_FOR = {
    "PAIRS": "(SELECT l.i, l.window_time AS e FROM (SELECT * FROM HOURS) AS l JOIN (SELECT * FROM HOURS) AS r ON l.i = r.i AND SAME)",
    "WITH (…)": KAFKA.replace("'x'", "'new'"),
    "HOURS": "TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR))",
    "BOUNDS": "window_start, window_end",
    "SAME": "l.window_start = r.window_start AND l.window_end = r.window_end",
}
STATEMENTS = ("Tables", "Writing and plans", "Queries", "Windows", "Joins, arrays and patterns")
ROW = re.compile(r"^\| (`.*`) \| (yes|no|other)\b(?:: (.*))? \|$")


def rows_of_the_page():
    """Yields the section, the text, and the verdict of each row."""
    for section in PAGE.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("| `")]
        for line in lines:
            found = ROW.match(line)
            assert found is not None, line
            assert found[3] or found[2] != "other", "a difference has words"
            for text in found[1].strip("`").split("`, `"):
                yield title, text.replace("\\|", "|"), found[2]


def statement_of(section, text):
    if section not in STATEMENTS:
        return f"SELECT s, {text} AS o FROM t" + " GROUP BY s" * (section == "Aggregates")
    for short, whole in STANDS_FOR.items():
        text = text.replace(short, whole)
    return text


ROWS = list(rows_of_the_page())


def test_the_page_has_all_sections():
    sections = {section for section, _, _ in ROWS}
    assert sections.issuperset(STATEMENTS)
    assert len(sections) == 14
    assert len(ROWS) > 380


def test_each_function_has_a_row_of_the_page():
    texts = " ".join(text.upper() for _, text, verdict in ROWS if verdict != "no")
    assert [name for name in (*FUNCTIONS, *AGGREGATES, *MOMENTS) if not re.search(rf"\b{name}\b", texts)] == []


def test_each_statement_has_a_row_of_the_page():
    taken = (statement_of(place, text) for place, text, verdict in ROWS if verdict != "no")
    kinds = {type(statement) for text in taken for statement in parse(SqlText(text))}
    assert {*get_args(tree.Statement)} - kinds == {tree.CreateFunction}, (
        "CREATE FUNCTION takes what a program has registered"
    )


@pytest.mark.parametrize("section", sorted({section for section, _, _ in ROWS}))
def test_what_runs_unchanged_is_taken_and_what_does_not_is_refused(section):
    """One app has all texts of a section, which name no table of another one but those above."""
    app, wrong = App("flink"), []
    app.sql(TABLES)
    for place, text, verdict in ROWS:
        if place != section:
            continue
        if section in STATEMENTS and text.startswith(("CREATE", "DROP", "SET", "RESET")):
            app = App("flink")
            app.sql(TABLES)
        try:
            app.sql(statement_of(section, text))
            found = verdict if verdict != "no" else "yes"
        except SqlError as error:
            found = "no" if all(fault.hint for fault in error.faults) else f"no, without a hint: {error}"
        if found != verdict:
            wrong.append((text, verdict, found))
    assert wrong == []
