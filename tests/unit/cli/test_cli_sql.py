"""A file of SQL as an app: `sabot run pipeline.sql`, and the other commands that take an app."""

from pathlib import Path

import pytest

from sabot.cli import WrongUse, load_app
from tools.agent_tools import read_lines, write_lines
from tools.command_line import lines, sabot_does, sabot_says

pytestmark = pytest.mark.usefixtures("warm_starts")

TABLES = """
CREATE TABLE orders (account STRING, amount BIGINT) WITH ('connector' = 'files', 'path' = 'orders.ndjson');
CREATE TABLE totals (account STRING, total BIGINT, PRIMARY KEY (account) NOT ENFORCED)
    WITH ('connector' = 'sqlite', 'url' = 'sqlite:totals.db', 'table-name' = 'totals');
CREATE TABLE large (account STRING, amount BIGINT) WITH ('connector' = 'files', 'path' = 'large.ndjson');
"""
LARGE = "INSERT INTO large SELECT * FROM orders WHERE amount > 10;\n"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "orders.ndjson", [{"account": f"a{n % 3}", "amount": n} for n in range(20)])
    return tmp_path


def script(folder: Path, *parts: str, name: str = "shop.sql") -> str:
    (folder / name).write_text("".join(parts))
    return name


def test_a_file_of_sql_runs_as_an_app_and_goes_on_from_its_checkpoint(shop: Path) -> None:
    script(shop, TABLES, LARGE)
    for _ in range(2):
        done = sabot_does(shop, "run", "shop.sql", "--state", "state")
        assert done.returncode == 0, done.stderr
    assert [row["amount"] for row in read_lines(shop / "large.ndjson")] == list(range(11, 20))
    (checkpoint, *_) = lines("checkpoints", "list", "state", "--json")
    assert checkpoint["app"] == "shop"


def test_the_app_has_the_name_of_the_file_or_that_of_set(shop: Path) -> None:
    assert load_app(script(shop, TABLES, LARGE)).id == "shop"
    assert load_app(script(shop, "SET 'pipeline.name' = 'large-orders';", TABLES, LARGE)).id == "large-orders"


def test_set_changes_settings_by_our_names_and_by_flinks(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_app(
        script(
            shop,
            "SET 'sabot.parallelism' = '3'; SET 'execution.checkpointing.interval' = '3 min'; SET 'sabot.fresh' = 'true';",
            "SET 'state.checkpoints.dir' = 'kept'; SET 'sabot.kafka.security.protocol' = 'ssl';",
            "SET 'table.exec.mini-batch.enabled' = 'true'; SET 'sabot.version' = '7'; RESET 'sabot.version';",
        )
    ).settings
    assert (settings.parallelism, settings.checkpoint_interval, settings.fresh) == (3, 180, True)
    assert (settings.checkpoint_dir, settings.kafka, settings.version) == ("kept", {"security.protocol": "ssl"}, "")
    assert "SET 'table.exec.mini-batch.enabled' has no effect" in caplog.text


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("SET 'sabot.paralelism' = '2'", "1:5: there is no option 'sabot.paralelism'"),
        ("SET 'sabot.parallelism' = 'two'", "1:27: 'sabot.parallelism' is a whole number, and 'two' is none"),
        ("SET 'sabot.restart' = 'often'", "1:23: restart='often'"),
        ("SET 'execution.checkpointing.interval' = 'soon'", "1:42: 'soon' is no duration"),
        ("RESET 'nothing'", "1:7: there is no option 'nothing'"),
    ],
)
def test_a_wrong_option_is_shown_where_it_stands(shop: Path, statement: str, said: str) -> None:
    with pytest.raises(WrongUse) as error:
        load_app(script(shop, statement))
    assert error.value.message.startswith(f"shop.sql:{said}")


def test_all_errors_of_a_file_are_printed_with_their_lines(shop: Path) -> None:
    script(
        shop,
        TABLES,
        "INSERT INTO large\nSELECT acount, amount\nFROM orders;\nINSERT INTO nowhere SELECT * FROM orders;",
    )
    done = sabot_does(shop, "run", "shop.sql")
    assert done.returncode == 2
    shown = done.stderr.splitlines()
    assert shown[0].startswith('shop.sql:7:8: there is no column "acount"')
    assert shown[1:3] == ["  SELECT acount, amount", "         ^^^^^^"]
    assert 'shop.sql:9:13: there is no table "nowhere"' in shown


def test_a_query_without_a_table_to_go_to_is_refused(shop: Path) -> None:
    with pytest.raises(WrongUse, match="the rows of the last query go nowhere"):
        load_app(script(shop, TABLES, "SELECT * FROM orders"))
    with pytest.raises(WrongUse, match=r"nothing\.sql cannot be read"):
        load_app("nothing.sql")


@pytest.mark.slow  # half a second of a core
def test_plan_says_what_a_changed_script_keeps(shop: Path) -> None:
    script(shop, TABLES, "INSERT INTO totals SELECT account, SUM(amount) FROM orders GROUP BY account;")
    assert "sum(" in sabot_says("plan", "shop.sql").stdout
    done = sabot_does(shop, "run", "shop.sql", "--state", "state")
    assert done.returncode == 0, done.stderr
    script(shop, TABLES, LARGE, "INSERT INTO totals SELECT account, SUM(amount) FROM orders GROUP BY account;")
    assert [each["outcome"] for each in lines("plan", "shop.sql", "--against", "state", "--json")] == ["keep"]


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize("before", [True, False])
def test_a_script_calls_the_functions_of_a_module(shop: Path, before: bool) -> None:
    (shop / "udf.py").write_text(
        "from pathlib import Path\ndef twice(x: int) -> int:\n    return 2 * x\ndef _hidden(x):\n    return x\n"
    )
    script(shop, TABLES, "INSERT INTO large SELECT account, twice(amount) FROM orders WHERE amount > 17;")
    given = ["--functions", "udf"]
    done = sabot_does(shop, *(given if before else []), "run", "shop.sql", *([] if before else given))
    assert done.returncode == 0, done.stderr
    assert [row["amount"] for row in read_lines(shop / "large.ndjson")] == [36, 38]
    assert sabot_does(shop, "run", "shop.sql").returncode == 2
    done = sabot_does(shop, "sql", "--functions", "udf", "-c", "SELECT twice(amount) AS t FROM 'orders.ndjson' LIMIT 1")
    assert done.stdout.splitlines()[:2] == ["t", "0"]
