"""`sabot sql --attach APP`: a question that names keys reads the rows of these keys, and answers as the whole table would."""

import datetime
import decimal
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App
from sabot.api.nodes.read import Read
from sabot.api.nodes.rows import Filter
from sabot.cli import sql_program
from sabot.cli.asked_keys import keys_in
from sabot.connectors.rows import RowsSource
from sabot.engine.checkpoint.saved_tables import SavedTable
from sabot.engine.operators.expressions.compiled import compile_predicate
from sabot.sql.scope import node_of
from tools.command_line import sabot_does, sabot_says

pytestmark = pytest.mark.usefixtures("warm_starts")

DAY = datetime.date(2024, 5, 1)
ROWS = pa.table(
    {
        "flag": [None if n % 7 == 0 else n % 2 == 0 for n in range(60)],
        "tiny": pa.array([n % 5 - 2 for n in range(60)], pa.int8()),
        "whole": pa.array([n % 11 * 10**15 for n in range(60)], pa.int64()),
        "money": pa.array([decimal.Decimal(n % 6) / 4 for n in range(60)], pa.decimal128(10, 2)),
        "word": [None if n % 9 == 0 else f"w'{n % 8}" for n in range(60)],
        "bytes_": pa.array([b"ab"[n % 2 :] for n in range(60)], pa.binary()),
        "day_": [DAY + datetime.timedelta(n % 3) for n in range(60)],
        "moment": pa.array([datetime.datetime(2024, 5, 1, n % 5) for n in range(60)], pa.timestamp("ms")),
        "instant": pa.array([datetime.datetime(2024, 5, 1, n % 5) for n in range(60)], pa.timestamp("ms", "UTC")),
        "clock_": pa.array([datetime.time(n % 6) for n in range(60)], pa.time32("s")),
        "real_": [n % 4 / 2 for n in range(60)],
        "v": list(range(60)),
    }
)
KEYS = [name for name in ROWS.column_names if name != "v"]


EXACT = [name for name in KEYS if name != "real_"]
VIEWS = {
    "by_all": f"SELECT {', '.join(EXACT)}, COUNT(*) AS n FROM r GROUP BY {', '.join(EXACT)}",
    "by_word": "SELECT word, COUNT(*) AS n, SUM(v) AS s FROM r GROUP BY word",
    "by_real": "SELECT real_, COUNT(*) AS n FROM r GROUP BY real_",
    "by_two": "SELECT word, tiny, COUNT(*) AS n FROM r GROUP BY word, tiny HAVING COUNT(*) > 0",
    "parted": "SELECT word, n, COUNT(*) AS c FROM by_word GROUP BY word, n",
    "shown": "SELECT UPPER(word) AS word, word AS raw, tiny, n + 1 AS m FROM by_two",
    "best": "SELECT word, v FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY word ORDER BY v DESC) AS p FROM r) WHERE p <= 2",
    "newest": "SELECT word, v FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY word ORDER BY instant DESC) AS p FROM r) WHERE p = 1",
    "all_rows": "SELECT COUNT(*) AS n FROM r",
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    pq.write_table(ROWS, folder / "rows.parquet")
    script = (
        "SET 'sabot.state' = 'state'; SET 'parallelism.default' = '2'; SET 'table.local-time-zone' = 'Asia/Tokyo';\n"
    )
    script += "CREATE TABLE r WITH ('connector' = 'files', 'path' = 'rows.parquet');\n"
    for name, query in VIEWS.items():
        script += f"CREATE VIEW {name} AS {query};\n"
        script += (
            f"CREATE TABLE to_{name} WITH ('connector' = 'blackhole'); INSERT INTO to_{name} SELECT * FROM {name};\n"
        )
    (folder / "kept.sql").write_text(script)
    done = sabot_does(folder, "run", "kept.sql")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def ask(kept: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that asks twice, by key and of the whole table, compares the answers, and returns the answer and the rows that were
    read for each.
    """
    monkeypatch.chdir(kept)
    counts: list[int] = []
    read = SavedTable.read_batch

    def counted(table: SavedTable, max_rows: int, timeout: float):
        batch = read(table, max_rows, timeout)
        counts.append(0 if batch is None else batch.data.num_rows)
        return batch

    monkeypatch.setattr(SavedTable, "read_batch", counted)

    def answer(sql: str) -> tuple[list[dict[str, object]], int]:
        counts.clear()
        done = sabot_says("sql", "--attach", "kept.sql", "--format", "json", "-c", sql)
        assert done.exit_code == 0, done.stderr
        return sorted(map(json.loads, done.stdout.splitlines()), key=str), sum(counts)

    def asked(sql: str) -> tuple[list[dict[str, object]], int, int]:
        found, rows = answer(sql)
        with monkeypatch.context() as patch:
            patch.setattr(sql_program, "read_asked_keys", lambda ends: None)
            whole, all_rows = answer(sql)
        assert found == whole
        return found, rows, all_rows

    return asked


# Each type of keys: what a question may say, and how many keys it names; 0 for none that are known.
SAID = {
    "flag": [("flag = TRUE", 1), ("flag", 0), ("flag IS NULL", 1), ("FALSE = flag", 1)],
    "tiny": [
        *(("tiny = -1", 1), ("CAST(1 AS BIGINT) = tiny", 1), ("tiny = CAST('1' AS TINYINT)", 1), ("tiny IN (1, 2)", 2)),
        *(
            ("tiny = 1.0", 1),
            ("tiny = 1.5", 0),
            ("tiny = 1000", 0),
            ("tiny IN (1, 1000)", 0),
            ("tiny > 1", 0),
            ("tiny <> 1", 0),
        ),
        *(("tiny + 1 = 1", 0), ("tiny = 1 OR v = 12", 0), ("tiny = 1 AND v = 12", 1), ("tiny = CAST(1 AS DOUBLE)", 0)),
    ],
    "whole": [
        ("whole = 3000000000000000", 1),
        ("whole IN (1000000000000000, 5)", 2),
        ("whole = v", 0),
        ("whole = 3E15", 0),
    ],
    "money": [
        *(("money = 0.5", 1), ("money = 1", 1), ("money = 0.250 OR money = 0.75", 2), ("money = 0.255", 0)),
        *(("money = CAST(0.5 AS DOUBLE)", 0), ("money IN (0.25, 1)", 2)),
    ],
    "word": [
        *(("word = 'w''3'", 1), ("word IN ('w''3', 'none') AND v > 1 AND word <> 'w''4'", 2), ("word IS NULL", 1)),
        *(
            ("word IS NULL OR word = 'w''1'", 2),
            ("UPPER(word) = 'W''3'", 0),
            ("NOT word = 'w''3'", 0),
            ("word = UPPER('w')", 1),
        ),
        *(("word IN ('w''3', 'w''4') AND word = 'w''3'", 2), ("word IS NOT DISTINCT FROM 'w''1'", 0)),
    ],
    "bytes_": [("bytes_ = CAST('ab' AS BYTES)", 1)],
    "day_": [
        ("day_ = DATE '2024-05-02'", 1),
        ("day_ = '2024-05-02'", 1),
        ("day_ = TIMESTAMP '2024-05-02 00:00:00'", 0),
    ],
    "moment": [
        *(("moment = TIMESTAMP '2024-05-01 03:00:00'", 1), ("moment = TIMESTAMP '2024-05-01 03:00:00.000000'", 1)),
        *(("moment = '2024-05-01 03:00:00'", 1), ("moment = TIMESTAMP '2024-05-01 03:00:00.000001'", 0)),
    ],
    "instant": [
        *(("instant = TO_TIMESTAMP_LTZ(1714532400000, 3)", 1), ("instant = TIMESTAMP_LTZ '2024-05-01 03:00:00Z'", 1)),
        *(("instant = TIMESTAMP '2024-05-01 03:00:00'", 1), ("instant = '2024-05-01 05:00:00+02:00'", 1)),
        *(
            ("instant IN (TIMESTAMP_LTZ '2024-05-01 03:00:00Z', '2024-05-01 04:00:00')", 2),
            ("instant = DATE '2024-05-01'", 0),
        ),
        *(
            ("instant = TIMESTAMP '2024-05-01 03:00:00.000001'", 0),
            ("CAST(instant AS STRING) = '2024-05-01 03:00:00'", 0),
        ),
    ],
    "clock_": [("clock_ = TIME '03:00:00'", 1), ("clock_ IN (TIME '01:00:00', TIME '03:00:00')", 2)],
    "real_": [("real_ = 0.5", 0), ("real_ = CAST(0.5 AS DOUBLE)", 0), ("real_ IS NULL", 1)],
}
IN_BERLIN = [  # of the key `instant`, where the session has the clock of Berlin
    *(
        ("instant = '2024-05-01 03:00:00'", 1),
        ("instant = TIMESTAMP '2024-05-01 03:00:00'", 1),
        ("instant = DATE '2024-05-01'", 1),
    ),
    *(
        ("instant IN ('2024-05-01 03:00:00', TIMESTAMP '2024-05-01 04:00:00')", 2),
        ("instant = TO_TIMESTAMP_LTZ(0, 3)", 1),
    ),
    *(("instant = '2024-05-01 03:00:00Z' OR instant IS NULL", 2), ("CAST(instant AS DATE) = DATE '2024-05-01'", 0)),
]
FURTHER = [
    (["word", "tiny"], "word = 'w''1' AND tiny = 1", 1),
    (["word", "tiny"], "word IN ('w''1', 'w''2') AND tiny IN (0, 1)", 4),
    (["word", "tiny"], "(word = 'w''1' AND tiny = 1) OR (tiny = 2 AND word = 'w''2')", 2),
    (["word", "tiny"], "word = 'w''1'", 0),
    (["word", "tiny"], "word = 'w''1' OR tiny = 1", 0),
    ([], "word = 'w''1'", 0),
]


@pytest.mark.parametrize(
    ("keys", "where", "count"),
    [*(([name], *said) for name, all_said in SAID.items() for said in all_said), *FURTHER],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_keys_of_a_question_are_those_of_all_rows_that_it_keeps(keys: list[str], where: str, count: int) -> None:
    check_keys(App("asked"), keys, where, count)


@pytest.mark.parametrize(("where", "count"), IN_BERLIN)
def test_constants_of_a_question_are_on_the_clock_of_the_session(where: str, count: int) -> None:
    app = App("asked")
    app.sql("SET 'table.local-time-zone' = 'Europe/Berlin'")
    check_keys(app, ["instant"], where, count)


def check_keys(app: App, keys: list[str], where: str, count: int) -> None:
    """Finds the keys that a question asks for. They are `count` (0: not known), and those of all rows that it keeps."""
    node = node_of(app.sql(f"SELECT * FROM r WHERE {where}", r=app.stream(RowsSource(ROWS, "r"))))
    predicates = []
    while not isinstance(node, Read):
        predicates += [node.predicate] if isinstance(node, Filter) else []
        (node,) = node.inputs
    schema = pa.schema([ROWS.schema.field(name) for name in keys])
    found = keys_in(predicates, schema)
    assert len(found) == (count or 1)
    assert all(found) == (count > 0)
    kept = ROWS.combine_chunks().to_batches()[0]
    for each in predicates:
        kept = kept.filter(compile_predicate(each, kept.schema)(kept))
    named = [{name: value.as_py() for name, value in key.items()} for key in found]
    assert all(row in named for row in kept.select(keys).to_pylist()) or not count


ALL = ("flag = TRUE AND tiny = 2 AND whole = 4000000000000000 AND money = 1.0 AND word = 'w''4' AND bytes_ = CAST('ab' AS BYTES) AND "
       "day_ = DATE '2024-05-02' AND moment = TIMESTAMP '2024-05-01 04:00:00' AND clock_ = TIME '04:00:00' "
       "AND instant = TO_TIMESTAMP_LTZ(1714536000000, 3)")  # fmt: skip


@pytest.mark.one_in(4, "half a second of a core each")
@pytest.mark.parametrize(
    ("table", "where", "rows_read"),
    [
        ("by_all", ALL, 1),
        ("by_all", ALL.replace("TO_TIMESTAMP_LTZ(1714536000000, 3)", "'2024-05-01 04:00:00Z'"), 1),
        ("by_word", "word IS NULL OR word = 'w''1'", 2),
        ("by_word", "word = 'none'", 0),
        ("by_two", "word IN ('w''1', 'w''2') AND tiny IN (0, 1)", 4),
        ("parted", "word = 'w''1' AND n = 7", 1),
        ("shown", "raw = 'w''1' AND tiny = 1 AND m > 0", 1),
        ("best", "word = 'w''2'", 2),
        ("newest", "word = 'w''2'", 1),
        ("shown", "word = 'W''1' AND tiny = 1", None),
        ("by_real", "real_ = 0.5", None),
        ("all_rows", "n = 60", None),
    ],
)
def test_only_the_rows_of_the_named_keys_are_read(ask, table: str, where: str, rows_read: int | None) -> None:
    found, rows, all_rows = ask(f"SELECT * FROM {table} WHERE {where}")
    assert rows == (all_rows if rows_read is None else rows_read)
    assert len(found) == (rows if rows_read is not None else 1)


def test_a_table_that_is_read_twice_gives_the_keys_of_both(ask) -> None:
    found, rows, _ = ask("SELECT a.n, b.n AS m FROM by_word a JOIN by_word b ON a.n = b.n "
                         "WHERE a.word = 'w''1' AND b.word = 'w''2'")  # fmt: skip
    assert (len(found), rows) == (1, 2)
    found, rows, whole = ask("SELECT word, n FROM by_word WHERE word = 'w''1' UNION ALL SELECT word, n FROM by_word")
    assert (len(found), rows) == (10, whole)


def test_rows_that_are_written_are_read_by_key_too(ask, tmp_path: Path) -> None:
    done = f"CREATE TABLE copy (n BIGINT) WITH ('connector' = 'files', 'path' = '{tmp_path}/n.ndjson'); "
    _, rows, whole = ask(done + "INSERT INTO copy SELECT n FROM by_word WHERE word = 'w''1'")
    assert rows == 1 < whole
