"""A script whose text changes goes on from a checkpoint: the state of its statements stays that of these statements."""

import asyncio
import sqlite3

import pytest

from sabot import App
from sabot.api.nodes.origin import StepOrigin
from sabot.connectors.memory import MemoryBroker
from sabot.errors import UserError
from sabot.sql.syntax.text import SqlError
from tools.agent_tools import until

TABLES = """
CREATE TABLE orders (id BIGINT, customer BIGINT, amount BIGINT) WITH ('connector' = 'memory', 'topic' = 'orders', 'format' = 'json');
CREATE TABLE paid (id BIGINT, price BIGINT) WITH ('connector' = 'memory', 'topic' = 'paid', 'format' = 'json');
CREATE TABLE refunds (id BIGINT, price BIGINT) WITH ('connector' = 'memory', 'topic' = 'refunds', 'format' = 'json');
CREATE TABLE totals WITH ('connector' = 'blackhole');
CREATE TABLE pairs WITH ('connector' = 'blackhole');
CREATE TABLE more WITH ('connector' = 'blackhole');
"""
TOTALS = "INSERT INTO totals SELECT customer, COUNT(*) AS n, SUM(amount) AS total FROM orders GROUP BY customer;"
PAIRS = "INSERT INTO pairs SELECT o.id, o.amount, p.price FROM orders AS o JOIN paid AS p ON o.id = p.id;"
ALIKE = (
    "INSERT INTO more SELECT customer, COUNT(*) AS n, SUM(amount) AS total FROM orders WHERE id > 3 GROUP BY customer;"
)


def script(*statements: str) -> str:
    return "EXPLAIN AGAINST 'state' STATEMENT SET BEGIN\n" + "\n".join(statements) + "\nEND"


def rows_read(app: App) -> int:
    inputs = [each["input"] for each in app.statistics()["streams"].values()]
    return sum(each.get("rows_in", 0) for each in inputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("changed")
    app = App("shop", broker="memory://changed", state=str(place / "state"))
    app.sql(TABLES + TOTALS + PAIRS)
    broker = MemoryBroker.get("memory://changed")

    async def run() -> None:
        await app.start()
        broker.publish("orders", [{"id": i, "customer": i % 3, "amount": i} for i in range(20)])
        broker.publish("paid", [{"id": i, "price": i} for i in range(0, 20, 2)])
        await until(lambda: rows_read(app) == 30, "the rows")
        await app.stop(drain=True)

    asyncio.run(run())
    return place


def verdicts(folder, monkeypatch, *statements: str) -> dict[str, str]:
    """The outcomes by the text of their steps, those of the steps that write changes left out."""
    monkeypatch.chdir(folder)
    app = App("shop", broker="memory://changed")
    app.sql(TABLES)
    found: dict[str, str] = {}
    for line in app.sql(script(*statements)).splitlines()[1:]:
        _, outcome, text = line.split(maxsplit=2)
        if not text.startswith("changelog"):
            found[text] = outcome
    return found


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    "statements",
    [
        (TOTALS, PAIRS),
        (PAIRS, TOTALS),
        (TOTALS.replace(" FROM", "\n    FROM").lower().replace("group by", "GROUP  BY"), PAIRS),
        (TOTALS.replace("AS n", "AS cnt").replace("FROM orders", "FROM orders AS x"), PAIRS.replace("o.", "a.").replace("AS o", "AS a")),
        (TOTALS.replace("SELECT customer,", "SELECT customer + 1 AS next,"), PAIRS.replace("p.price", "p.price, p.price * 2 AS twice")),
        (TOTALS.replace("GROUP", "WHERE id > 1 GROUP"), PAIRS),
    ],
    ids=["same", "reordered", "formatted", "renamed", "a column added", "filtered"],
)  # fmt: skip
def test_a_change_of_the_text_moves_no_state(folder, monkeypatch, statements):
    found = verdicts(folder, monkeypatch, *statements)
    assert sorted(text.split()[0] for text in found if text.startswith(("group", "join"))) == ["group", "join"]
    assert set(found.values()) <= {"keep", "migrate"}


def test_a_statement_before_with_equal_state_does_not_take_that_of_another_one(folder, monkeypatch):
    found = verdicts(folder, monkeypatch, ALIKE.replace("WHERE id > 3 ", ""), TOTALS, PAIRS)
    assert sorted(found.values()) == ["keep", "keep", "new"]
    found = verdicts(folder, monkeypatch, ALIKE, TOTALS, PAIRS)
    assert sorted(found.values()) == ["keep", "keep", "new"]


@pytest.mark.slow  # half a second of a core
async def test_a_checkpoint_with_ids_that_were_counted_over_the_whole_script_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broker = MemoryBroker.get("memory://old-ids")

    async def run(statements: str, rows: int) -> None:
        app = App("shop", broker="memory://old-ids", state="state")
        app.sql(TABLES + statements)
        await app.start()
        broker.publish("orders", [{"id": i, "customer": i % 3, "amount": i} for i in range(rows)])
        broker.publish("paid", [{"id": i, "price": i} for i in range(rows)])
        await until(lambda: rows_read(app) == 2 * rows, "the rows")
        await app.stop()

    def said(*statements: str) -> dict[str, str]:
        app = App("shop", broker="memory://old-ids")
        app.sql(TABLES)
        lines = [line.split(maxsplit=1) for line in app.sql(script(*statements)).splitlines()[1:]]
        return {name: outcome for name, outcome in lines if name.rpartition(".")[2].startswith(("group", "join"))}

    with monkeypatch.context() as before:
        before.setattr(StepOrigin, "prefix", "")
        await run(ALIKE + TOTALS + PAIRS, 6)
    now = said(PAIRS, TOTALS, ALIKE)
    for id, then in {"totals.group-1": "group-2", "more.group-1": "group-1", "pairs.join-1": "join-"}.items():
        assert f"the checkpoint calls it {then}" in now[id]
    await run(PAIRS + TOTALS + ALIKE, 4)
    assert {name: outcome.split()[0] for name, outcome in said(ALIKE, PAIRS, TOTALS).items()} == {
        "totals.group-1": "keep", "more.group-1": "keep", "pairs.join-1": "keep",
    }  # fmt: skip


def test_a_changed_filter_keeps_the_state_of_its_statement_though_a_new_one_has_the_old_text(folder, monkeypatch):
    monkeypatch.chdir(folder)
    filtered, old = TOTALS.replace("GROUP", "WHERE id > 1 GROUP"), TOTALS.replace("totals", "more")
    app = App("shop", broker="memory://changed")
    app.sql(TABLES)
    lines = app.sql(script(old, filtered, PAIRS)).splitlines()[1:]
    groups = [line.split(maxsplit=2)[:2] for line in lines if ".group-" in line.split()[0]]
    assert groups == [["more.group-1", "new"], ["totals.group-1", "keep"]]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("WHERE id > 1 GROUP", "WHERE id > 1 (at SQL:2:91) is new: for rows from here on; --refill totals.group-1 applies"),
        ("WHERE id > 1 AND amount <> 7 GROUP", "WHERE id > 1 (at SQL:2:91) AND amount <> 7 (at SQL:2:102) is new"),
        ("GROUP", ""),
    ],
)  # fmt: skip
def test_a_changed_filter_is_named_with_what_becomes_of_the_rows_so_far(folder, monkeypatch, where, said):
    found = verdicts(folder, monkeypatch, TOTALS.replace("GROUP", where), PAIRS)
    (text,) = [text for text in found if text.startswith("group")]
    assert said in text
    assert ("WHERE" in text) == bool(said)


def test_a_changed_column_that_a_state_needs_is_named_with_what_becomes_of_the_rows_so_far(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orders.csv").write_text("customer,amount\n1,2\n12,5\n")
    count = """
        INSERT INTO totals SELECT customer + 10 AS k, SUM(x) AS s FROM (SELECT customer, amount AS x FROM 'orders.csv')
        GROUP BY customer + 10
    """
    app = App("shop", state="state")
    app.sql("CREATE TABLE totals WITH ('connector' = 'blackhole');" + count)
    asyncio.run(app.run())

    def said(old: str, new: str) -> str:
        app = App("shop", state="state")
        app.sql("CREATE TABLE totals WITH ('connector' = 'blackhole')")
        return app.sql(f"EXPLAIN AGAINST 'state' {count.replace(old, new)}")

    assert " was " not in said("k,", "k, SUM(x) + 1 AS t,")
    assert " was " not in said("customer, amount AS x", "customer, amount + 1 AS y, amount AS x")
    text = said("customer + 10", "customer + 20")
    assert "k was customer + 10, is customer + 20: for rows from here on; --refill totals.group-1" in text
    assert "x was amount, is customer: for rows from here on" in said("amount AS x", "customer AS x")


def test_a_filter_that_the_checkpoint_has_is_named_in_words_of_sql(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orders.csv").write_text("customer,amount,note\n1,2,a\n1,5,b\n")
    count = "INSERT INTO totals SELECT customer, COUNT(*) AS n, SUM(amount) FROM 'orders.csv' {} GROUP BY customer"
    app = App("shop", state="state")
    app.sql("CREATE TABLE totals WITH ('connector' = 'blackhole');" + count.format("WHERE amount > 3 AND note <> 'x'"))
    asyncio.run(app.run())

    def said(statement: str) -> str:
        app = App("shop", state="state")
        app.sql("CREATE TABLE totals WITH ('connector' = 'blackhole')")
        plan = app.sql(f"EXPLAIN AGAINST 'state' {statement}")
        return next(line for line in plan.splitlines() if line.startswith("totals.group-1 "))

    assert "WHERE" not in said(count.format("WHERE amount > 3 AND note <> 'x'"))
    assert "WHERE note <> 'x' is gone: for rows from here on" in said(count.format("WHERE amount > 3"))
    assert "WHERE was amount > 3, is amount > 4 (at SQL:1:" in said(count.format("WHERE amount > 4 AND note <> 'x'"))
    less = said(count.format("WHERE amount > 3 AND note <> 'x'").replace(", SUM(amount)", ""))
    assert 'sum(col("amount")) int64 is gone: the program no longer has it; a table into which it was written' in less


def test_a_source_that_is_read_before_the_others_takes_no_position_of_theirs(folder, monkeypatch):
    found = verdicts(
        folder, monkeypatch,
        "INSERT INTO more SELECT r.id, p.price FROM refunds AS r JOIN paid AS p ON r.id = p.id;", PAIRS, TOTALS,
    )  # fmt: skip
    assert sorted(found.values()) == ["keep", "keep", "new"]


def test_an_aggregate_is_added_and_the_others_go_on(folder, monkeypatch):
    found = verdicts(folder, monkeypatch, TOTALS.replace(" FROM", ", MAX(amount) AS big FROM"), PAIRS)
    text, outcome = next((text, outcome) for text, outcome in found.items() if text.startswith("group"))
    assert outcome == "migrate"
    assert "big is new" in text


def test_another_group_by_is_refused_with_its_place(folder, monkeypatch):
    found = verdicts(folder, monkeypatch, ALIKE, TOTALS.replace("customer", "id"), PAIRS)
    text = next(text for text, outcome in found.items() if outcome == "refuse")
    assert "key customer is gone (int64); key id is new (int64)" in text
    assert "(at SQL:3:20)" in text


def test_a_statement_that_is_gone_is_named(folder, monkeypatch):
    found = verdicts(folder, monkeypatch, TOTALS)
    gone = sorted(text for text, outcome in found.items() if outcome == "drop")
    assert "this program has no such operator in INSERT INTO pairs" in gone[0]
    assert gone[1] == "read paid (this program does not read it)"


async def test_a_start_that_would_lose_state_says_where_and_what_to_do(folder):
    app = App("shop", broker="memory://changed", state=str(folder / "state"))
    app.sql(TABLES + TOTALS.replace("customer", "id") + PAIRS)
    with pytest.raises(UserError) as error:
        await app.run()
    said = str(error.value)
    assert "key id is new (int64) (at SQL:8:20)" in said
    assert "--drop totals.group-1" in said
    assert "or leave the old statement, and write the changed one beside it, into another table" in said


def test_explain_takes_the_agents_into_which_a_script_writes(folder, monkeypatch):
    monkeypatch.chdir(folder)
    app = App("shop", broker="memory://changed")

    @app.agent()
    async def check(order: dict) -> None:
        return None

    app.sql(TABLES)
    app.register("check", check)
    insert = "INSERT INTO check SELECT id, amount FROM orders WHERE amount > 3"
    assert "agent" in app.sql(f"EXPLAIN {insert}")
    said = app.sql(script(TOTALS, PAIRS, f"{insert};"))
    assert "agent shop.check (it begins at its start=)" in said
    assert "keep     join inner" in said


def test_explain_against_knows_the_other_statements_of_the_app(folder, monkeypatch):
    monkeypatch.chdir(folder)
    app = App("shop", broker="memory://changed")
    app.sql(TABLES + TOTALS)
    said = app.sql(f"EXPLAIN AGAINST 'state' {PAIRS}")
    assert "drop" not in said
    with pytest.raises(SqlError, match="nowhere holds no checkpoint"):
        app.sql(f"EXPLAIN AGAINST 'nowhere' {PAIRS}")


HOURS = """
CREATE TABLE flights (carrier STRING, delay BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts)
    WITH ('connector' = 'files', 'path' = '{path}', 'format' = 'csv');
CREATE TABLE hours (carrier STRING, start TIMESTAMP(3), n BIGINT{column}, PRIMARY KEY (carrier, start) NOT ENFORCED)
    WITH ('connector' = 'sqlite', 'url' = 'sqlite:hours.db', 'table-name' = 'hours');
"""
PER_HOUR = """INSERT INTO hours SELECT carrier, CAST(window_start AS TIMESTAMP(3)), COUNT(*){aggregate}
FROM TABLE(TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY carrier, window_start, window_end"""


def hours(
    path: str = "flights.csv", column: str = "", aggregate: str = "", state: str | None = None
) -> tuple[App, str]:
    app = App("hours", state=state)
    app.sql(HOURS.format(path=path, column=column))
    return app, PER_HOUR.format(aggregate=aggregate)


async def test_an_aggregate_is_added_to_a_windowed_insert_into_a_table_with_a_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("hours.db") as made:
        made.execute("CREATE TABLE hours (carrier TEXT, start TEXT, n, worst, PRIMARY KEY (carrier, start))")
    topic = "'connector' = 'memory', 'topic' = 'flights', 'format' = 'json'"
    tables = HOURS.replace("'connector' = 'files', 'path' = '{path}', 'format' = 'csv'", topic)
    broker = MemoryBroker.get("memory://worst")

    async def run(column: str, aggregate: str, first: int) -> str:
        app = App("hours", broker="memory://worst", state="state")
        app.sql(tables.format(column=column))
        insert = PER_HOUR.format(aggregate=aggregate)
        said = str(app.sql(f"EXPLAIN AGAINST 'state' {insert}")) if first else ""
        app.sql(insert)
        await app.start()
        rows = [{"carrier": "UA", "delay": i, "ts": f"2024-01-01T{i:02}:30:00"} for i in range(first, first + 4)]
        broker.publish("flights", rows)
        await until(lambda: rows_read(app) == len(rows), "the rows")
        await app.stop(drain=True)
        return said

    await run("", "", 0)
    said = await run(", worst BIGINT", ", MAX(delay)", 4)
    *steps, table = said.splitlines()[1:]
    assert [line.split()[1] for line in steps] == ["migrate", "keep", "add"]
    assert "table hours" in table
    assert "mixed: rows from before this start are those of an earlier program, or are missing" in table
    with sqlite3.connect("hours.db") as made:
        found = made.execute("SELECT substr(start, 12, 2), n, worst FROM hours ORDER BY start").fetchall()
    assert found == [(f"{i:02}", 1, None if i < 4 else i) for i in range(8)]


async def test_rows_that_are_final_keep_no_state_for_the_key_of_their_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flights.csv").write_text("carrier,delay,ts\nUA,1,2024-01-01T00:30:00\nUA,2,2024-01-01T00:40:00\n")
    app = App("last", state="state")
    app.sql(
        HOURS.format(path="flights.csv", column="").replace("(carrier, start)", "(carrier)")
        + "INSERT INTO hours SELECT carrier, ts, delay FROM flights"
    )
    plan = app.sql("EXPLAIN INSERT INTO hours SELECT carrier, ts, delay FROM flights")
    assert "upsert by carrier, whose rows the sink keeps" in plan
    await app.run()
    with sqlite3.connect("hours.db") as made:
        assert made.execute("SELECT carrier, n FROM hours").fetchall() == [("UA", 2)]
    assert app.sql("EXPLAIN AGAINST 'state' INSERT INTO hours SELECT carrier, ts, delay FROM flights").count("\n") == 0


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("absolute", [False, True])
async def test_another_path_of_the_same_file_goes_on_from_its_position(tmp_path, monkeypatch, absolute):
    monkeypatch.chdir(tmp_path)
    first, others = "carrier,delay,ts\nUA,1,2024-01-01T00:30:00\n", "AA,2,2024-01-01T01:30:00\n"
    (tmp_path / "flights.csv").write_text(first)
    app, insert = hours(state="state")
    app.sql(insert)
    await app.run()
    path = str(tmp_path / "flights.csv") if absolute else "./flights.csv"
    app, insert = hours(path=path)
    assert "drop" not in app.sql(f"EXPLAIN AGAINST 'state' {insert}")
    app, insert = hours(path=path, state="state")
    app.sql(insert)
    await app.run()
    assert rows_read(app) == 0, "the file has been read"
    (tmp_path / "others.csv").write_text(first + others)
    app, insert = hours(path="others.csv")
    assert "this program does not read it, but others.csv" in app.sql(f"EXPLAIN AGAINST 'state' {insert}")


TYPED = """
CREATE TABLE sales (customer BIGINT, price {kind}) WITH ('connector' = 'memory', 'topic' = 'sales', 'format' = 'json');
CREATE TABLE means WITH ('connector' = 'blackhole');
INSERT INTO means SELECT customer, {made} AS m FROM sales GROUP BY customer;
"""


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("made", "was", "now", "said"),
    [
        ("CAST(AVG(CAST(price AS DOUBLE)) AS DOUBLE)", "DECIMAL(10, 2)", "DECIMAL(10, 4)", ""),
        ("COUNT(DISTINCT price)", "DECIMAL(10, 2)", "DECIMAL(10, 4)", r"of decimal128\(10, 2\), is .* of decimal128\(10, 4\)"),
        ("COUNT(DISTINCT price)", "BIGINT", "DOUBLE", "of int64, is .* of double"),
        ("SUM(price)", "INT", "BIGINT", ""),
    ],
)  # fmt: skip
def test_a_column_of_another_type_moves_no_state_that_depends_on_it(tmp_path, made, was, now, said):
    name = f"typed-{made}-{was}"

    async def run(kind: str) -> None:
        app = App("shop", broker=f"memory://{name}", state=str(tmp_path / "state"))
        app.sql(TYPED.format(kind=kind, made=made))
        await app.start()
        try:
            MemoryBroker.get(f"memory://{name}").publish("sales", [{"customer": 1, "price": 1}])
            await until(lambda: rows_read(app) == 1, "the row")
        finally:
            await app.stop()

    asyncio.run(run(was))
    if said:
        with pytest.raises(UserError, match=f"m was .*{said}.*--drop"):
            asyncio.run(run(now))
    else:
        asyncio.run(run(now))
