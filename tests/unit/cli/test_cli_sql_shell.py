"""`sabot sql`: statements from -c, from a file, and typed at a terminal."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot._cython.arrow.batch import Batch
from sabot.cli import sql_program
from sabot.cli.sql import is_complete
from sabot.errors import UserError
from tools.command_line import ENV, SABOT, child, sabot_does, sabot_says

pytestmark = pytest.mark.usefixtures("warm_starts")

SECONDS = 60.0
TOTALS = "SELECT carrier, COUNT(*) AS n FROM 'flights.csv' GROUP BY carrier"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flights.csv").write_text("carrier,delay\nUA,20\nAA,5\nUA,40\n")
    return tmp_path


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize("format", ["csv", "json"])
def test_a_query_whose_reader_has_seen_enough_ends_with_0(folder: Path, format: str) -> None:
    """`sabot sql … | head` ended with 1 and a BrokenPipeError."""
    (folder / "n.csv").write_text("n\n" + "".join(f"{n}\n" for n in range(200_000)))
    words = [*SABOT, "sql", "--format", format, "-c", "SELECT * FROM 'n.csv'"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV) as query:
        assert query.stdout is not None
        assert query.stderr is not None
        query.stdout.readline()
        query.stdout.close()
        assert b"BrokenPipe" not in query.stderr.read()
    assert query.returncode == 0


def test_a_query_of_a_file_is_printed_as_a_table(folder: Path) -> None:
    done = sabot_says("sql", "-c", TOTALS)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == ["carrier  n", "UA       2", "AA       1", "(2 rows)"]


def test_rows_are_printed_as_json_and_as_csv(folder: Path) -> None:
    rows = [json.loads(line) for line in sabot_says("sql", "--format", "json", "-c", TOTALS).stdout.splitlines()]
    assert sorted(row["n"] for row in rows) == [1, 2]
    assert sabot_says("sql", "--format", "csv", "-c", TOTALS).stdout.splitlines()[0] == "carrier,n"
    none = "SELECT carrier, delay FROM 'flights.csv' WHERE delay > 100"
    assert sabot_says("sql", "--format", "csv", "-c", none).stdout.splitlines() == ["carrier,delay"]
    changes = sabot_says("sql", "--changes", "-c", TOTALS).stdout.splitlines()
    assert {json.loads(line)["op"] for line in changes} == {"insert"}


def test_times_and_arrays_are_printed_as_texts(folder: Path) -> None:
    (folder / "rides.csv").write_text("ts,day,fare\n2024-05-17T12:30:00.250,2024-05-17,2\n,,\n")
    text = """
        CREATE TABLE rides (ts TIMESTAMP(3), day DATE, fare INT)
            WITH ('connector' = 'files', 'path' = 'rides.csv', 'format' = 'csv');
        SELECT ts, CAST(ts AS TIMESTAMP_LTZ(3)) AS at, day, CAST(ts AS TIME(3)) AS clock, ts - ts AS none FROM rides"""
    first, second = sabot_says("sql", "--format", "json", "-c", text).stdout.splitlines()
    assert json.loads(first) == {
        "ts": "2024-05-17T12:30:00.25",
        "at": "2024-05-17T12:30:00.25Z",
        "day": "2024-05-17",
        "clock": "12:30:00.25",
        "none": "0:00:00",
    }
    assert set(json.loads(second).values()) == {None}
    lines = sabot_says("sql", "--format", "csv", "-c", text).stdout.splitlines()
    assert lines[1:] == ["2024-05-17T12:30:00.25,2024-05-17T12:30:00.25Z,2024-05-17,12:30:00.25,0:00:00", ",,,,"]
    lists = text.split("SELECT")[0] + 'SELECT ARRAY_AGG(ts) AS every, MAX(fare) AS "a, b" FROM rides WHERE fare = 2'
    assert sabot_says("sql", "--format", "csv", "-c", lists).stdout.splitlines() == [
        'every,"a, b"',
        '"[""2024-05-17T12:30:00.25""]",2',
    ]
    assert json.loads(sabot_says("sql", "--format", "json", "-c", lists).stdout)["every"] == ["2024-05-17T12:30:00.25"]


def test_bytes_are_base64_at_every_depth(folder: Path) -> None:
    text = "SELECT X'ff00' AS b, ARRAY[X'ff', X'6162'] AS l, ROW(X'fe', 1) AS r, MAP['k', X'fd'] AS m, MAP['k', DATE '2024-01-02'] AS d"
    (row,) = sabot_says("sql", "--format", "json", "-c", text).stdout.splitlines()
    assert json.loads(row) == {
        "b": "/wA=", "l": ["/w==", "YWI="], "r": {"EXPR$0": "/g==", "EXPR$1": 1}, "m": {"k": "/Q=="}, "d": {"k": "2024-01-02"},
    }  # fmt: skip
    _, line = sabot_says("sql", "--format", "csv", "-c", text).stdout.splitlines()
    assert line.startswith('/wA=,"[""/w=="",""YWI=""]",')


def test_a_limit_of_groups_takes_any_of_them_when_the_input_has_ended(folder: Path) -> None:
    (row,) = sabot_says("sql", "--format", "json", "-c", f"{TOTALS} LIMIT 1").stdout.splitlines()
    assert json.loads(row) in ({"carrier": "UA", "n": 2}, {"carrier": "AA", "n": 1})
    assert len(sabot_says("sql", "--format", "json", "-c", f"{TOTALS} LIMIT 9").stdout.splitlines()) == 2


@pytest.mark.slow  # half a second of a core
def test_rows_are_written_as_parquet_into_a_pipe(folder: Path) -> None:
    with child(
        *SABOT, "sql", "--format", "parquet", "-c", TOTALS, cwd=folder, env=ENV, stdout=open("out", "wb")
    ) as run:
        assert run.wait(SECONDS) == 0
    assert pq.read_table(io.BytesIO((folder / "out").read_bytes())).num_rows == 2


def test_a_file_runs_its_statements_one_after_the_other(folder: Path) -> None:
    (folder / "copy.sql").write_text(
        "CREATE TABLE copy (carrier STRING) WITH ('connector' = 'files', 'path' = 'copy.ndjson');\n"
        "INSERT INTO copy SELECT carrier FROM 'flights.csv' WHERE delay > 10;\n"
        "SELECT COUNT(*) AS n FROM copy;"
    )
    done = sabot_says("sql", "copy.sql")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == ["n", "2", "(1 row)"]


@pytest.mark.one_in(4, "a process each")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-c", "SELECT carier FROM 'flights.csv'"], 1, '-c:1:8: there is no column "carier"'),
        (["-c", "SELECT * FROM 'none.csv'"], 1, "-c:1:15: file 'none.csv' cannot be read"),
        (["--format", "xml", "-c", "SET"], 2, "--format xml: there is no such form"),
        (["none.sql"], 2, "none.sql cannot be read"),
    ],
)
def test_errors_have_a_place_and_an_exit_code(folder: Path, words: list[str], code: int, said: str) -> None:
    done = sabot_does(folder, "sql", *words)
    assert (done.returncode, done.stderr.splitlines()[0].removeprefix("sabot: ")[: len(said)]) == (code, said)


def test_a_result_that_is_updated_for_ever_keeps_no_more_than_a_few_changes_of_each_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sql_program, "_CHANGES_MAX", 10)
    result = sql_program._KeptResult(None, updated=True)
    for n in range(1, 200):
        before = [{"op": "update_before", "k": k, "n": n - 1} for k in "abc" if n > 1]
        now = [{"op": "update_after" if n > 1 else "insert", "k": k, "n": n} for k in "abc"]
        result.write(Batch(pa.RecordBatch.from_pylist([*before, *now])))
    assert result.rows().to_pylist() == [{"k": k, "n": 199} for k in "abc"]
    assert result.table().num_rows < 30


def test_a_view_over_a_file_that_is_gone_stops_only_statements_that_read_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = sql_program.SqlProgram()
    program.run("CREATE VIEW late AS SELECT * FROM 'flights.csv' WHERE delay > 10;")
    (folder / "flights.csv").unlink()
    program.run("SELECT 7 AS x;")
    assert capsys.readouterr().out.splitlines()[:2] == ["x", "7"]
    with pytest.raises(UserError, match=r"file 'flights\.csv' cannot be read"):
        program.run("SELECT * FROM late;")
    program.run("DROP VIEW late; SELECT 8 AS x;")
    with pytest.raises(UserError, match='there is no table "late"'):
        program.run("SHOW CREATE VIEW late;")


def test_a_statement_is_complete_at_its_semicolon() -> None:
    assert is_complete("SELECT 1;")
    assert is_complete("SELECT 1; -- done")
    assert is_complete("SELECT § ;"), "the parser names the wrong character"
    for begun in ("SELECT 1", "SELECT ';", "SELECT 1 -- ;", "/* ;"):
        assert not is_complete(begun)


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, folder: Path) -> None:
        pid, self._file = pty.fork()
        if pid == 0:
            os.chdir(folder)
            env = {**os.environ, **ENV, "TERM": "vt100", "SABOT_HISTORY": "history", "COLUMNS": "200"}
            os.execve(SABOT[0], [*SABOT, "sql"], env)
        self.pid = pid
        self._shown = ""

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def interrupt(self, pattern: str) -> None:
        """Presses Ctrl-C each second until the terminal shows this: readline misses one between its prompt and its wait."""
        for _ in range(int(SECONDS)):
            self.type("\x03")
            for _ in range(10):
                if re.search(pattern, self._read(0.1)):
                    return
        raise AssertionError(self._shown)

    def until(self, pattern: str) -> str:
        """Waits until the terminal shows this, and returns all that came before and with it."""
        limit = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self._shown, re.DOTALL)):
            assert time.monotonic() < limit, self._shown
            self._read(0.5)
        before, self._shown = self._shown[: found.end()], self._shown[found.end() :]
        return before

    def _read(self, seconds: float) -> str:
        """Waits for output no longer than this, and returns all that was not yet looked for."""
        if select.select([self._file], [], [], seconds)[0]:
            self._shown += os.read(self._file, 65536).decode(errors="replace").replace("\r", "")
        return self._shown

    def end(self) -> int:
        """Returns the exit code."""
        limit = time.monotonic() + SECONDS
        while time.monotonic() < limit:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if select.select([self._file], [], [], 0.1)[0]:
                try:
                    os.read(self._file, 65536)
                except OSError:
                    continue
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("the shell does not end")


@pytest.mark.slow  # a second of a core
def test_a_session_at_a_terminal(folder: Path) -> None:
    terminal = Terminal(folder)
    terminal.until("sabot> ")
    terminal.type("CREATE VIEW late AS\nSELECT * FROM 'flights.csv'\nWHERE delay > 10;\n")
    terminal.until(r"\.\.\.> .*sabot> ")
    terminal.type("\x1b[A")  # the whole statement comes back
    terminal.until("CREATE VIEW late AS SELECT \\* FROM 'flights.csv' WHERE delay > 10;")
    terminal.type("\x15\\d\n")
    assert "late" in terminal.until(r"\(1 row\)\s*sabot> ")
    terminal.type("SELECT COUNT(*) AS n FROM lat\t;\n")
    shown = terminal.until(r"\(1 row\)\s*sabot> ")
    assert re.search(r"\nn\n2\n", shown), "the name is completed"
    assert "rows in" not in shown, "the result says how many rows it has"
    terminal.type("SELECT nothing FROM late;\n")
    shown = terminal.until(r"hint: .*sabot> ")
    assert 'SQL:1:8: there is no column "nothing"' in shown
    assert "         ^^^^^^^\n" in shown
    terminal.type("\\timing\n")
    terminal.until(r"timing is on.*sabot> ")
    terminal.type("\\c\n")
    terminal.until(r"each change.*sabot> ")
    terminal.type("SELECT carrier, COUNT(*) AS n FROM late GROUP BY carrier;\n")
    terminal.until(r'"op":"insert".*\d s\s*sabot> ')
    terminal.type("\\c\n")
    terminal.until(r"results are tables.*sabot> ")
    terminal.type("CREATE TABLE t (a BIGINT) WITH ('connector' = 'memory', 'topic' = 't');\n")
    terminal.until("sabot> ")
    terminal.type("SELECT a FROM t;\n")
    terminal.until("Ctrl-C ends the query")
    terminal.type("\x03")  # ends the query, and not the shell
    terminal.until(r"\(0 rows\).*sabot> ")
    terminal.type("help\n")
    terminal.until(r"the columns of one.*sabot> ")
    terminal.type("half a statement\n")
    terminal.until(r"\.\.\.> ")
    terminal.interrupt("sabot> ")
    terminal.type("\\q\n")
    assert terminal.end() == 0
    assert "SELECT nothing FROM late;" in (folder / "history").read_text()
