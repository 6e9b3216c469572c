"""`sabot sql --attach APP`: the tables of an app as its newest checkpoint has them."""

import json
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from sabot import App
from sabot.cli import attached
from sabot.cli.attached import AttachedApp
from sabot.engine.checkpoint.inspection import AppCheckpoints
from sabot.engine.checkpoint.manifest import Manifest
from tools.agent_tools import write_lines
from tools.command_line import sabot_does, sabot_says

pytestmark = pytest.mark.usefixtures("warm_starts")

SCRIPT = """
SET 'sabot.state' = 'state';
CREATE TABLE orders (id BIGINT, account STRING, amount BIGINT) WITH ('connector' = 'files', 'path' = 'orders.ndjson');
CREATE VIEW totals AS
    SELECT UPPER(account) AS account, COUNT(*) AS n, SUM(amount) + 1 AS total FROM orders GROUP BY account HAVING COUNT(*) > 1;
CREATE VIEW best AS SELECT account, amount, place FROM
    (SELECT *, ROW_NUMBER() OVER (PARTITION BY account ORDER BY amount DESC) AS place FROM orders) WHERE place <= 2;
CREATE VIEW whole AS SELECT COUNT(*) AS n FROM orders;
CREATE VIEW large AS SELECT * FROM orders WHERE amount > 10;
CREATE TABLE sums (account STRING, n BIGINT, total BIGINT, PRIMARY KEY (account) NOT ENFORCED)
    WITH ('connector' = 'sqlite', 'url' = 'sqlite:sums.db', 'table-name' = 'kept_sums');
CREATE TABLE bests (account STRING, amount BIGINT, place BIGINT) WITH ('connector' = 'blackhole');
CREATE TABLE counts (n BIGINT) WITH ('connector' = 'files', 'path' = 'counts.ndjson');
CREATE TABLE larger (id BIGINT, account STRING, amount BIGINT) WITH ('connector' = 'blackhole');
INSERT INTO sums SELECT * FROM totals;
INSERT INTO bests SELECT * FROM best;
INSERT INTO counts SELECT * FROM whole;
INSERT INTO larger SELECT * FROM large;
CREATE TABLE pairs (account STRING, n BIGINT, amount BIGINT) WITH ('connector' = 'blackhole');
INSERT INTO pairs SELECT t.account, t.n, b.amount FROM totals t JOIN best b ON t.account = b.account;
"""
ORDERS = [{"id": n, "account": f"a{n % 4}" if n else "alone", "amount": n * 7 % 23} for n in range(40)]
TOTALS = {
    name.upper(): (n, sum(row["amount"] for row in ORDERS if row["account"] == name) + 1)
    for name, n in Counter(str(row["account"]) for row in ORDERS).items()
    if n > 1
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
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


def ask(sql: str, app: str = "shop.sql", *words: str) -> list[dict[str, object]]:
    done = sabot_says("sql", "--attach", app, "--format", "json", "-c", sql, *words)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith("as of checkpoint ")
    return [json.loads(line) for line in done.stdout.splitlines()]


def refusal(sql: str, app: str = "shop.sql") -> str:
    done = sabot_says("sql", "--attach", app, "-c", sql)
    assert done.exit_code == 1, done.stdout
    return done.stderr


def test_views_and_written_tables_have_the_rows_of_their_sink(shop: Path) -> None:
    for table in ("totals", "sums", "kept_sums"):
        assert {row["account"]: (row["n"], row["total"]) for row in ask(f"SELECT * FROM {table}")} == TOTALS
    with closing(sqlite3.connect(shop / "sums.db")) as db:
        assert {row[0]: row[1:] for row in db.execute("SELECT account, n, total FROM kept_sums")} == TOTALS
    assert ask("SELECT * FROM counts") == ask("SELECT * FROM whole") == [{"n": 40}]
    best = [
        {"account": name, "amount": amount, "place": place}
        for name in sorted({str(row["account"]) for row in ORDERS})
        for place, amount in enumerate(
            sorted((int(str(row["amount"])) for row in ORDERS if row["account"] == name), reverse=True)[:2], 1
        )
    ]
    for table in ("best", "bests"):
        assert ask(f"SELECT * FROM {table} ORDER BY account, place") == best


def test_tables_are_joined_grouped_and_filtered_as_others_are(shop: Path) -> None:
    (row,) = ask("SELECT t.account, t.total, b.amount FROM totals t JOIN best b ON t.account = UPPER(b.account) "
                 "WHERE b.place = 1 AND t.account = 'A1'")  # fmt: skip
    assert (row["total"], row["amount"]) == (TOTALS["A1"][1], max(r["amount"] for r in ORDERS if r["account"] == "a1"))
    made = sabot_says(
        "sql", "--attach", "shop.sql", "--format", "csv", "-c",
        "CREATE VIEW some AS SELECT account FROM totals WHERE account > 'A2'; SELECT COUNT(*) AS n FROM some; DESCRIBE totals",
    )  # fmt: skip
    assert made.stdout.splitlines()[:2] == ["n", "1"]
    assert "total,BIGINT" in made.stdout


def test_any_state_is_a_table_by_its_id(shop: Path) -> None:
    assert sorted(ask('SELECT account, n FROM "totals.group-1"'), key=str) == sorted(
        ({"account": name, "n": n} for name, n in Counter(str(row["account"]) for row in ORDERS).items()), key=str
    )
    assert ask('SELECT MAX(n) AS n FROM "totals.group-1"', "state") == ask('SELECT MAX(n) AS n FROM "totals.group-1"')


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("orders", "orders cannot be asked: it is read, and not kept"),
        ("large", "large cannot be asked: orders.ndjson is read, and not kept"),
        ("larger", "larger cannot be asked: orders.ndjson is read, and not kept"),
        (
            "pairs",
            "pairs cannot be asked: a join keeps the rows of its two tables, and no table of the joined ones: ask for "
            "these tables, and join them in the question",
        ),
        ("nothing", 'there is no table "nothing"'),
    ],
)
def test_a_table_that_is_not_kept_is_refused_with_those_that_are(shop: Path, table: str, why: str) -> None:
    said = refusal(f"SELECT * FROM {table}")
    assert said.splitlines()[0] == f"-c:1:15: {why}"
    assert said.splitlines()[-1].startswith("  hint: there are totals, best, whole, sums, kept_sums, bests, counts, ")


def test_other_errors_keep_their_hints(shop: Path) -> None:
    assert refusal("SELECT Totl FROM totals").splitlines()[::3] == [
        '-c:1:8: there is no column "Totl"',
        "  hint: did you mean total?",
    ]


def test_a_view_that_has_changed_since_the_checkpoint_is_refused(shop: Path) -> None:
    (shop / "shop.sql").write_text(SCRIPT.replace("FROM orders GROUP BY", "FROM orders WHERE amount > 3 GROUP BY"))
    assert "has no table of 'group by account" in refusal("SELECT * FROM totals")
    assert "the app has changed since" in refusal("SELECT * FROM sums")
    assert ask("SELECT n FROM whole") == [{"n": 40}]
    (shop / "shop.sql").write_text(SCRIPT.replace("SUM(amount) + 1", "SUM(amount) + 2"))
    assert {row["account"]: row["total"] for row in ask("SELECT * FROM totals")} == {
        name: total + 1 for name, (_, total) in TOTALS.items()
    }, "what is computed after the group is that of the program"
    assert "the app has changed since" in refusal("SELECT * FROM sums") or ask("SELECT * FROM sums")
    (shop / "shop.sql").write_text("SET 'pipeline.name' = 'other';" + SCRIPT)
    assert "was made by app 'shop', not 'other'" in refusal("SELECT * FROM totals")


def test_a_checkpoint_that_is_removed_while_it_is_read_changes_nothing(shop: Path) -> None:
    app = App("reader", restart="none")
    shop_app = AttachedApp("shop.sql")
    streams = shop_app.streams(app, "")
    shutil.rmtree(shop / "state" / "checkpoints" / "files")
    assert streams["whole"].collect().to_pylist() == [{"n": 40}], "its files were linked"


def test_a_checkpoint_that_is_removed_before_its_files_are_linked_is_replaced_by_the_newest(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = AppCheckpoints(shop / "state" / "checkpoints").manifest()
    given: list[int] = []

    class Removed(AppCheckpoints):
        """Gives a checkpoint first that the app removes at this moment."""

        def manifest(self, checkpoint_id: int | None = None) -> Manifest:
            found = super().manifest(checkpoint_id)
            given.append(found.checkpoint_id)
            if len(given) > 1:
                return found
            gone = {path: file.__class__(file.size, file.sha256, 77, "gone") for path, file in found.contents.items()}
            return Manifest(99, 0, found.describe, found.tasks, contents=gone, place=found.place)

    monkeypatch.setattr(attached, "find_checkpoints", lambda word, state: Removed(shop / "state" / "checkpoints"))
    assert ask("SELECT n FROM whole") == [{"n": 40}]
    assert set(given) == {newest.checkpoint_id}


PROGRAM = """
import sabot

app = sabot.App("counted", state="state")
orders = app.stream(sabot.files("orders.ndjson"))
counts = orders.group_by("account").aggregate(n=sabot.count())
counts.upsert("account").to(sabot.SqlSink("sqlite:counts.db", "counts_of_python"))
app.register("orders", orders)
app.sql("CREATE VIEW last_orders AS SELECT account, id FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY account ORDER BY id DESC) "
        "AS place FROM orders) WHERE place = 1")
app.sql("CREATE TABLE nowhere (account STRING, id BIGINT) WITH ('connector' = 'blackhole'); INSERT INTO nowhere SELECT * FROM last_orders")
"""


def test_an_app_of_python_is_asked_by_the_names_of_its_sinks_and_views(shop: Path) -> None:
    (shop / "counted_shop.py").write_text(PROGRAM)
    shutil.rmtree(shop / "state")
    assert sabot_does(shop, "run", "counted_shop:app").returncode == 0
    counts = Counter(str(row["account"]) for row in ORDERS)
    assert {row["account"]: row["n"] for row in ask("SELECT * FROM counts_of_python", "counted_shop:app")} == counts
    last = {str(row["account"]): row["id"] for row in ORDERS}
    assert {row["account"]: row["id"] for row in ask("SELECT * FROM last_orders", "counted_shop:app")} == last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fresh"], "--fresh is about the app of --attach"),
        (["--state", "state"], "--state is about the app of --attach"),
        (["--attach", "nowhere"], "there is no directory nowhere"),
    ],
)
def test_options_without_an_app_are_refused(words: list[str], said: str) -> None:
    done = sabot_says("sql", *words, "-c", "SELECT 1")
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
