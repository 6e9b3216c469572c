"""Tables of files: CSV with a header and without one, as Flink writes it, and lines that are values as they are ('format' = 'raw')."""

import gzip
import logging

import pyarrow as pa
import pytest

from sabot import App, UserError, files
from sabot.sql.syntax.text import SqlError

CSV = "WITH ('connector' = 'filesystem', 'path' = 'in.csv', 'format' = 'csv')"
RAW = "WITH ('connector' = 'filesystem', 'path' = 'in.log', 'format' = 'raw')"
PLAIN = "id INT, s STRING"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(text, query="SELECT * FROM t", *, parallelism=1):
    app = App("files", parallelism=parallelism)
    app.sql(text)
    return [tuple(row.values()) for row in app.sql(query).materialize().collect().to_pylist()]


@pytest.mark.parametrize(
    ("columns", "content", "expected"),
    [
        (PLAIN, "1,a\n2,b\n", [(1, "a"), (2, "b")]),
        (PLAIN, "id,s\n1,a\n", [(1, "a")]),
        (PLAIN, "s,more,id\na,x,1\n", [(1, "a")]),
        (PLAIN, "1,a", [(1, "a")]),
        (PLAIN, "\n\n1,a\n", [(1, "a")]),
        (PLAIN, "\ufeff1,a\n", [(1, "a")]),
        (PLAIN, "\ufeffid,s\n1,a\n", [(1, "a")]),
        (PLAIN, '1,"a\n""b"""\n2,\n', [(1, 'a\n"b"'), (2, None)]),
        (PLAIN, "1,1\n2,2\n", [(1, "1"), (2, "2")]),
        ("s STRING, d DECIMAL(5, 2), u STRING", "x,1.50,\ny,,z\n", [("x", 1.5, None), ("y", None, "z")]),
        ("b BOOLEAN, s STRING", "true,x\n", [(True, "x")]),
        ("id INT", "7\n8\n", [(7,), (8,)]),
        ("id INT", "id\n8\n", [(8,)]),
        (f"{PLAIN}, more AS id + 1", "1,a\n", [(1, "a", 2)]),
    ],
)
def test_the_first_line_of_csv_is_a_row_if_it_has_a_value_for_each_column(here, columns, content, expected):
    """Files that Flink writes have no header: they were refused, since the first row was taken for names."""
    (here / "in.csv").write_text(content)
    found = rows(f"CREATE TABLE t ({columns}) {CSV}")
    assert [tuple(float(each) if hasattr(each, "quantize") else each for each in row) for row in found] == expected


@pytest.mark.parametrize("content", ["x,y\n1,a\n", "ID,S\n1,a\n", "1,a,b\n", "1\n", "s,1\n", ",a\n2,b\n"])
def test_a_first_line_that_is_neither_is_refused_with_the_option_that_says_it(here, content):
    (here / "in.csv").write_text(content)
    with pytest.raises(UserError, match=r"has no column '(id|s)' \(its header has .*'csv.header' = 'false'"):
        rows(f"CREATE TABLE t ({PLAIN}) {CSV}")


def test_texts_alone_need_the_option(here):
    (here / "in.csv").write_text("a,b\nc,\n")
    table = f"CREATE TABLE t (x STRING, y STRING) {CSV}"
    with pytest.raises(UserError, match="has no column 'x'"):
        rows(table)
    option = "'csv.header' = 'false')"
    assert rows(table[:-1] + ", " + option) == [("a", "b"), ("c", None)]
    (here / "in.csv").write_text("x,y\nc,d\n")
    assert rows(table[:-1] + ", 'csv.header' = 'true')") == [("c", "d")]
    assert rows(table[:-1] + ", " + option) == [("x", "y"), ("c", "d")]


def test_a_row_is_no_header_where_the_option_says_that_there_is_one(here):
    (here / "in.csv").write_text("1,a\n2,b\n")
    with pytest.raises(UserError, match="has no column 'id'"):
        rows(f"CREATE TABLE t ({PLAIN}) {CSV[:-1]}, 'csv.header' = 'true')")


def test_files_of_partitions_and_compressed_ones_have_no_header_either(here):
    for day, content in (("2024-05-01", b"1;a\n"), ("2024-05-02", b"2;b\n3;c\n")):
        (here / "in" / f"day={day}").mkdir(parents=True)
        (here / "in" / f"day={day}" / "part-0.csv.gz").write_bytes(gzip.compress(content))
    (here / "in" / "day=2024-05-03").mkdir()
    (here / "in" / "day=2024-05-03" / "part-0.csv").write_text("s;id\nd;4\n")
    table = f"CREATE TABLE t ({PLAIN}, `day` STRING, f STRING METADATA FROM 'file.name') PARTITIONED BY (`day`) "
    table += "WITH ('connector' = 'filesystem', 'path' = 'in', 'format' = 'csv', 'csv.field-delimiter' = ';')"
    found = rows(table, "SELECT id, s, `day`, f FROM t", parallelism=2)
    assert sorted(found) == [
        (1, "a", "2024-05-01", "part-0.csv.gz"),
        (2, "b", "2024-05-02", "part-0.csv.gz"),
        (3, "c", "2024-05-02", "part-0.csv.gz"),
        (4, "d", "2024-05-03", "part-0.csv"),
    ]
    assert rows(table, "SELECT COUNT(*) AS n FROM t") == [(4,)]


def test_times_of_files_without_a_header_are_those_of_the_session(here):
    (here / "in.csv").write_text("1,2024-07-01 12:00:00,2024-07-01 12:00:00.5\n")
    table = f"CREATE TABLE t (id INT, at_ TIMESTAMP_LTZ(3), ts TIMESTAMP(3), WATERMARK FOR ts AS ts) {CSV}"
    found = rows(
        f"SET 'table.local-time-zone' = 'Europe/Berlin'; {table}",
        "SELECT id, CAST(at_ AS STRING) AS a, HOUR(ts) AS h FROM t",
    )
    assert found == [(1, "2024-07-01 12:00:00.000", 12)]


@pytest.mark.parametrize(
    "ending", ["ndjson", "jsonl", "json", "csv", "tsv", "csv.gz", "parquet", "pq", "arrow", "feather"]
)
def test_the_ending_of_a_path_names_the_format_of_what_is_written_too(here, ending):
    app = App("files")
    app.sql(f"CREATE TABLE o (id INT, s STRING) WITH ('connector' = 'filesystem', 'path' = 'o.{ending}')")
    app.sql("INSERT INTO o VALUES (1, 'a'), (2, 'b')")
    app.main()
    assert pa.Table.from_batches(App("read").stream(files(f"o.{ending}")).collect().to_batches()).to_pylist() == [
        {"id": 1, "s": "a"},
        {"id": 2, "s": "b"},
    ]


def test_a_table_without_a_header_is_written_and_read(here):
    (here / "in.csv").write_text("1,a\n2,b\n")
    out = "CREATE TABLE o (s STRING, u STRING) WITH ('connector' = 'filesystem', 'path' = 'out.csv', 'csv.header' = 'false'); "
    for _ in range(2):
        app = App("written")
        app.sql(f"CREATE TABLE t ({PLAIN}) {CSV}; {out} INSERT INTO o SELECT UPPER(s), CAST(id AS STRING) FROM t;")
        app.main()
    assert (here / "out.csv").read_text() == 2 * '"A","1"\n"B","2"\n'
    typed = "CREATE TABLE o (s STRING, n INT) WITH ('connector' = 'filesystem', 'path' = 'out.csv')"
    assert rows(typed, "SELECT s, n FROM o") == 2 * [("A", 1), ("B", 2)]


def test_a_file_without_a_header_goes_on_from_each_of_its_rows(here):
    (here / "in.csv").write_text("1,a\n2,b\n3,c\n")
    schema = pa.schema([("id", pa.int32()), ("s", pa.string())])

    def source():
        made = files("in.csv")
        made.file_format.declared = schema
        made.scan(schema, None)
        return made

    first, positions, found = source(), None, []
    while True:
        first.open(positions)
        batch = first.read_batch(1, 0.1)
        if batch is None:
            break
        found += batch.data.to_pylist()
        positions, first = first.positions(), source()
    assert found == [{"id": n, "s": s} for n, s in ((1, "a"), (2, "b"), (3, "c"))]


def test_lines_are_values_as_they_are(here):
    (here / "in.log").write_bytes(b'[INFO] "a", 1\r\n\n  {"x": 1}\n\xc3\xa4 \r')
    expected = ['[INFO] "a", 1', "", '  {"x": 1}', "ä "]
    assert rows(f"CREATE TABLE t (line STRING) {RAW}") == [(each,) for each in expected]
    assert rows(f"CREATE TABLE t (line BYTES) {RAW}") == [(each.encode(),) for each in expected]
    table = f"CREATE TABLE t (line STRING, n STRING METADATA FROM 'file.name', size_ AS CHAR_LENGTH(line)) {RAW}"
    assert rows(table, "SELECT n, COUNT(*) AS n2, MAX(size_) AS m FROM t GROUP BY n") == [("in.log", 4, 13)]
    assert rows(table, "SELECT COUNT(*) AS n FROM t") == [(4,)]


def test_a_line_that_is_no_text_is_a_dead_letter_with_its_place(here, caplog):
    (here / "in.log").write_bytes(b"one\n\xff\xfe\nthree\n")
    with caplog.at_level(logging.WARNING):
        assert rows(f"CREATE TABLE t (line STRING) {RAW}") == [("one",), ("three",)]
    assert "not UTF-8" in caplog.text


def test_lines_of_a_folder_are_written_and_read(here):
    (here / "in").mkdir()
    (here / "in" / "a.log").write_text("one\n")
    (here / "in" / "b.txt").write_text("two\nthree")
    app = App("lines")
    app.sql("""
        CREATE TABLE t (line STRING) WITH ('connector' = 'filesystem', 'path' = 'in', 'format' = 'raw');
        CREATE TABLE o (line STRING) WITH ('connector' = 'filesystem', 'path' = 'out.txt', 'format' = 'raw');
        INSERT INTO o SELECT UPPER(line) FROM t;
    """)
    app.main()
    assert sorted((here / "out.txt").read_text().splitlines()) == ["ONE", "THREE", "TWO"]


@pytest.mark.parametrize(
    ("value", "words"), [("U&'a\\000Ab'", "a value has a line break"), ("CAST(NULL AS STRING)", "is null")]
)
def test_a_value_that_is_no_line_is_a_dead_letter(here, caplog, value, words):
    app = App("lines")
    app.sql(
        f"CREATE TABLE o (line STRING) {RAW.replace('in.log', 'out.log')}; INSERT INTO o VALUES ('x'), ({value}), ('y')"
    )
    app.main()
    assert (here / "out.log").read_text() == "x\ny\n"
    assert words in caplog.text


@pytest.mark.parametrize(
    "columns", ["a STRING, b STRING", "a INT", "c AS 1", "a STRING, b STRING METADATA FROM 'file.name', d BYTES"]
)
def test_a_file_of_lines_has_one_column(here, columns):
    with pytest.raises(SqlError, match="'format' = 'raw' is for one column of STRING or BYTES"):
        App("lines").sql(f"CREATE TABLE t ({columns}) {RAW}")


@pytest.mark.parametrize(
    ("option", "format"),
    [
        ("'csv.header' = 'true'", "parquet"),
        ("'csv.header' = 'false'", "json"),
        ("'csv.field-delimiter' = ';'", "arrow"),
        ("'raw.charset' = 'UTF-8'", "csv"),
        ("'evolve' = 'true'", "json"),
    ],
)
def test_an_option_of_another_format_is_refused_where_it_stands(here, option, format):
    name = option.split(" ")[0]
    words = f"'connector' = 'filesystem', 'path' = 'out', 'format' = '{format}', {option}"
    with pytest.raises(SqlError, match=f"there is no option {name}"):
        App("a").sql(f"CREATE TABLE t (a STRING) WITH ({words}); INSERT INTO t SELECT 'a'")


def test_the_ending_of_a_path_tells_the_format_of_its_options(here):
    with pytest.raises(SqlError, match=r"there is no option 'csv.header'"):
        rows("CREATE TABLE t (a STRING) WITH ('connector' = 'files', 'path' = 'in.parquet', 'csv.header' = 'true')")
