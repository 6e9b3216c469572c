"""The screen on which one SELECT asks the tables of an app."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import pytest
from unit.web.test_console import MARKUP
from unit.web.test_job_screens import ask, enter

from sabot import App
from sabot.base.redaction import keep_secret
from sabot.cli.console_answers import fill
from sabot.errors import SabotError
from sabot.web import commands
from sabot.web.console import Console
from sabot.web.payloads import Payloads
from sabot.web.reader import LESS_MEMORY
from sabot.web.sql_questions import SqlAnswer, SqlQuestion
from tools.agent_tools import write_lines
from tools.command_line import sabot_does

pytestmark = pytest.mark.usefixtures("warm_starts")

SCRIPT = """
SET 'sabot.state' = 'state';
CREATE TABLE orders (id BIGINT, account STRING, note STRING, amount BIGINT) WITH ('connector' = 'files', 'path' = 'orders.ndjson');
CREATE VIEW totals AS SELECT account, COUNT(*) AS n, SUM(amount) AS total FROM orders GROUP BY account;
CREATE VIEW latest AS SELECT account, note FROM
    (SELECT *, ROW_NUMBER() OVER (PARTITION BY account ORDER BY id DESC) AS place FROM orders) WHERE place = 1;
CREATE TABLE a WITH ('connector' = 'blackhole'); INSERT INTO a SELECT * FROM totals;
CREATE TABLE b WITH ('connector' = 'blackhole'); INSERT INTO b SELECT * FROM latest;
"""
SECRET = "n0t-for-pages-55"
ORDERS = [{"id": n, "account": f"a{n % 5}", "note": f"{MARKUP} {SECRET}", "amount": n} for n in range(40)]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    write_lines(folder / "orders.ndjson", ORDERS)
    (folder / "shop.sql").write_text(SCRIPT)
    done = sabot_does(folder, "run", "shop.sql")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def shop(ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ended, tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


def answer(sql: str, *names: str, mode: str = "scrubbed", program: str = "shop.sql", most: int = 100) -> SqlAnswer:
    found = SqlAnswer()
    place = "state/checkpoints"
    fill(found, SqlQuestion(sql, [], program, place, mode, list(names), [], most, 0))
    return found


def refusal(sql: str, *names: str) -> str:
    with pytest.raises(SabotError) as caught:
        answer(sql, *names)
    return str(caught.value)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO a SELECT * FROM totals",
        "CREATE TABLE c (n BIGINT) WITH ('connector' = 'files', 'path' = 'c.ndjson')",
        "CREATE TABLE c WITH ('connector' = 'files', 'path' = 'c.ndjson') AS SELECT n FROM totals",
        "CREATE VIEW c AS SELECT 1",
        "SELECT n FROM totals; SELECT n FROM totals",
        "SELECT n FROM totals; INSERT INTO a SELECT * FROM totals",
        "SET 'sabot.state' = 'other'",
        "EXPLAIN SELECT n FROM totals",
        "SHOW VIEWS",
        "SHOW TABLES; SHOW TABLES",
        "SHOW TABLES LIKE 't%'",
        "-- nothing",
        "DROP VIEW totals",
    ],
)
def test_a_page_answers_one_select_and_nothing_else(shop: Path, sql: str) -> None:
    assert "a page answers one SELECT or SHOW TABLES, and no other statement" in refusal(sql, "n", "account", "total")


def test_show_tables_lists_what_can_be_asked(shop: Path) -> None:
    found = answer("SHOW TABLES", "account", "n")
    assert (found.rows, found.columns, found.hidden) == ([], [], ["note", "total"])
    assert found.tables["totals"] == ["account", "n"]
    assert "totals.group-1" in found.tables


def test_columns_that_may_not_be_shown_are_not_there(shop: Path) -> None:
    found = answer("SELECT * FROM totals WHERE account = 'a1'", "account", "n")
    assert found.rows == [{"account": "a1", "n": 8}]
    assert found.tables["totals"] == ["account", "n"]
    assert found.hidden == ["note", "total"]
    for text in (
        "SELECT total FROM totals",
        "SELECT t.total AS n FROM totals t",
        "SELECT n FROM totals ORDER BY total",
        "SELECT n FROM totals WHERE total > 3",
        "SELECT SUM(total) AS n FROM totals",
        "SELECT n FROM (SELECT total AS n FROM totals)",
    ):
        assert "the column total is hidden" in refusal(text, "account", "n")
        assert "--web-show total lets pages show its values" in refusal(text, "account", "n")
    assert answer("SELECT COUNT(*) AS rows_ FROM totals").rows == [{"rows_": 5}], (
        "the rows of a hidden table are counted"
    )
    assert "the column account is hidden" in refusal('SELECT account FROM "totals.group-1"', "n")
    assert answer('SELECT SUM(n) AS s FROM "totals.group-1"', "n", mode="scrubbed").rows == [{"s": 40}]
    assert answer("SELECT * FROM totals", "n", mode="none").rows == [{"hidden": True}] * 5


def test_no_function_gives_a_part_of_a_known_secret(shop: Path) -> None:
    keep_secret(SECRET)
    found = answer("SELECT RIGHT(note, 3) AS s, POSITION('n0t' IN note) AS p FROM latest LIMIT 1", mode="all")
    assert found.rows == [{"s": "***", "p": 0}]


def test_the_rows_of_an_answer_are_bounded(shop: Path) -> None:
    found = answer("SELECT account FROM totals", "account", most=3)
    assert (len(found.rows), found.more) == (3, True)
    found = answer("SELECT account, COUNT(*) AS n FROM totals GROUP BY account", "account", most=5)
    assert (len(found.rows), found.more) == (5, False)


def test_values_keep_their_digits_and_their_bytes(shop: Path) -> None:
    text = (
        "SELECT ENCODE(account, 'UTF-16') AS b, CAST('12345678901234567890.10' AS DECIMAL(38, 2)) AS d, n / 3E0 AS f, "
        "CAST(NULL AS BYTES) AS e FROM totals WHERE account = 'a1'"
    )
    (row,) = answer(text, "account", "n").rows
    assert row == {"b": "/v8AYQAx", "d": "12345678901234567890.10", "f": "2.6666666666666665", "e": None}


def test_without_the_program_states_are_asked(shop: Path) -> None:
    found = answer("SELECT account, n FROM \"totals.group-1\" WHERE account = 'a2'", mode="all", program="")
    assert found.rows == [{"account": "a2", "n": 8}]
    assert "there is no table" in refusal("SELECT * FROM nothing")


def address(form: str = "", **query: object) -> str:
    return f"/sql{form}?{urlencode(query)}"


async def test_the_page_asks_a_process_of_its_own(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_secret(SECRET)
    app = App("shop", state=str(shop / "state"))
    console = Console(app, port=0, payloads=Payloads("all"), program=("shop.sql",))
    try:
        browser = await enter(console, "act")
        status, page = await ask(
            browser, address(q="SELECT account, total, note FROM totals NATURAL JOIN latest WHERE account = 'a1'")
        )
        assert status == 200
        cells = [unescape(each) for each in re.findall(r"<td>(.*?)</td>", page)][:3]
        assert cells == ["a1", str(sum(range(1, 40, 5))), f"{MARKUP} ***"]
        assert MARKUP not in page
        assert "of one checkpoint: this is 1, written" in page
        found = json.loads(
            (await ask(browser, address(".json", q="SELECT account, n FROM totals ORDER BY account LIMIT 2")))[1]
        )
        assert found == [{"account": "a0", "n": "8"}, {"account": "a1", "n": "8"}]
        status, page = await ask(browser, address(q="SELECT nothing FROM totals"))
        assert (status, "there is no column" in page, "account, n, total" in page) == (200, True, True)
        monkeypatch.setattr(commands, "SECONDS", 0.0)
        status, page = await ask(browser, address())
        assert (status, "q=SHOW+TABLES" in page, "longer" in page) == (200, True, False), "none without a question"
        status, page = await ask(browser, address(".csv"))
        assert (status, "there is no question" in page) == (404, True)
        assert "the program takes longer than 0 s" in (await ask(browser, address(q="SELECT n FROM totals")))[1]
        reader = await enter(console, "read")
        assert (await ask(reader, address(q="SELECT n FROM totals")))[0] == 403
        assert (await ask(reader, address(".csv", q="SELECT n FROM totals")))[0] == 403
    finally:
        console.close()


def asked(sql: str, code: str, memory_bytes: int) -> subprocess.CompletedProcess[bytes]:
    """Asks a process, as the page does. `code`: what it runs."""
    question = SqlQuestion(sql, [], "shop.sql", "state/checkpoints", "scrubbed", ["account"], [], 100, memory_bytes)
    return subprocess.run(
        [sys.executable, "-c", code],
        input=msgspec.json.encode(question),
        stdout=subprocess.PIPE,
        env={**os.environ, **LESS_MEMORY},
    )


@pytest.mark.slow  # two seconds of a core
def test_a_question_that_needs_too_much_memory_is_refused_in_words_of_the_page(shop: Path) -> None:
    """The error of the step told the reader of a page to raise the limit of a process (ulimit -v)."""
    wide = ", ".join(f"REPEAT(account, 500000) AS x{i}" for i in range(150))  # 0.7 GB in all
    done = asked(f"SELECT {wide} FROM totals", "from sabot.cli.console_answers import main; main()", 400 << 20)
    assert done.returncode == 0
    found = msgspec.json.decode(done.stdout.splitlines()[-1], type=SqlAnswer)
    assert (found.problem, found.hint) == ("this needs more than 419.4 MB of memory", "ask for fewer rows or keys")


@pytest.mark.slow  # two seconds of a core
def test_the_folder_of_a_killed_question_goes_with_the_next_one(shop: Path) -> None:
    """It has links to files of the checkpoint, whose space would stay in use."""
    killed = "import os, sabot.cli.console_answers as c; c.kept_rows = lambda *_: os.kill(os.getpid(), 9); c.main()"
    assert asked("SELECT account FROM totals", killed, 1 << 40).returncode == -signal.SIGKILL
    (left,) = (shop / "state/checkpoints").glob("reading-*")
    assert len(answer("SELECT account FROM totals", "account").rows) == 5
    assert not left.exists()
