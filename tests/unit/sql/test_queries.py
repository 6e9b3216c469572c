"""Queries over rows, with DuckDB's answers: what SQL means must not depend on whose rows they are."""

import datetime
import json
import random
from collections import Counter
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, files
from sabot.sql.syntax.text import SqlError
from sabot.testing import END, ScriptedSource
from tools.agent_tools import bounded, values
from tools.sql_tables import counted, ours, theirs, write_tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("tables"))


SAME = [
    "SELECT id, amount FROM orders",
    "SELECT * FROM customers",
    "SELECT id, amount + 1 AS more, -amount AS less, price * 2 AS twice FROM orders WHERE amount > 20",
    "SELECT id FROM orders WHERE amount IS NULL OR NOT (amount >= 0 AND price < 40.5)",
    "SELECT id FROM orders WHERE amount BETWEEN 10 AND 50 AND customer NOT IN (1, 2, 3)",
    "SELECT id, CASE WHEN amount > 100 THEN 'big' WHEN amount > 0 THEN 'small' ELSE 'none' END AS size FROM orders",
    "SELECT id, CASE customer WHEN 1 THEN 'one' WHEN 2 THEN 'two' END AS word FROM orders",
    "SELECT id, COALESCE(amount, 0) AS a, NULLIF(customer, 3) AS c FROM orders",
    "SELECT id, amount IS DISTINCT FROM customer AS d FROM orders",
    "SELECT id, UPPER(note) AS u, TRIM(note) AS t, SUBSTRING(note, 2, 2) AS s, note || '!' AS x FROM orders",
    "SELECT id FROM orders WHERE note LIKE '%s%' OR note LIKE 'a#_b' ESCAPE '#' OR note LIKE 'r__e%'",
    "SELECT id, CASE WHEN amount > 50 THEN 'x' ELSE NULLIF(REGEXP_EXTRACT(note, '^(.)', 1), '') END AS f FROM orders "
    "WHERE NULLIF(REGEXP_EXTRACT(note, '^(.)', 1), '') IN ('r', 's') OR amount > 20",
    "SELECT id, CAST(price AS BIGINT) % 7 AS r FROM orders WHERE price = ROUND(price, 0)",
    "SELECT id, amount / 2.5 AS q, ABS(amount) AS a, FLOOR(price) AS f, POWER(amount, 2) AS p FROM orders",
    "SELECT id, EXTRACT(SECOND FROM ts) AS s, EXTRACT(YEAR FROM ts) AS y FROM orders",
    "SELECT id FROM orders WHERE ts >= TIMESTAMP '2023-11-14 22:14:00' AND ts < '2023-11-14 22:14:10'",
    "SELECT customer, COUNT(*) AS n, SUM(amount) AS total, MIN(price) AS least, MAX(note) AS last FROM orders GROUP BY customer",
    "SELECT customer, COUNT(DISTINCT note) AS notes FROM orders GROUP BY customer",
    "SELECT customer, COUNT(*) FILTER (WHERE amount > 50) AS big FROM orders GROUP BY customer HAVING COUNT(*) > 30",
    "SELECT amount % 5 AS bucket, COUNT(*) AS n FROM orders WHERE amount > 0 GROUP BY amount % 5",
    "SELECT COUNT(*) AS n, AVG(price) AS mean FROM orders",
    "SELECT COUNT(*) + 1 AS n, SUM(amount) - MIN(amount) AS rest FROM orders",
    "SELECT DISTINCT customer FROM orders",
    "SELECT customer FROM orders GROUP BY customer",
    "SELECT n, COUNT(*) AS times FROM (SELECT customer, COUNT(*) AS n FROM orders GROUP BY customer) c GROUP BY n",
    "WITH big AS (SELECT * FROM orders WHERE amount > 100) SELECT customer, COUNT(*) AS n FROM big GROUP BY customer",
    "SELECT o.id, c.name FROM orders o JOIN customers c ON o.customer = c.id",
    "SELECT o.id, c.name FROM orders o, customers c WHERE o.customer = c.id AND o.amount > 10",
    "SELECT o.id, c.id, c.name FROM orders o LEFT JOIN customers c ON o.customer = c.id",
    "SELECT o.id, o.customer, c.id FROM customers c RIGHT JOIN orders o ON o.customer = c.id",
    "SELECT o.id, c.id FROM orders o FULL JOIN customers c ON o.customer = c.id",
    "SELECT o.id, c.name FROM orders o LEFT JOIN customers c ON o.customer = c.id AND c.name <> 'c3'",
    "SELECT c.name, COUNT(*) AS n FROM orders o JOIN customers c ON o.customer = c.id GROUP BY c.name",
    "SELECT a.id, b.id FROM orders a JOIN orders b ON a.customer = b.customer AND a.id < b.id WHERE a.amount = b.amount",
    "SELECT id FROM orders WHERE customer IN (SELECT id FROM customers WHERE name > 'c5')",
    "SELECT id, 'o' AS kind FROM orders UNION ALL SELECT id, 'c' FROM customers",
    "SELECT customer FROM orders UNION SELECT id FROM customers",
    "SELECT customer FROM orders INTERSECT SELECT id FROM customers",
    "SELECT customer FROM orders EXCEPT SELECT id FROM customers",
    "SELECT id FROM customers EXCEPT SELECT customer FROM orders",
    "SELECT note, customer FROM orders WHERE amount > 20 INTERSECT SELECT note, customer FROM orders WHERE price < 60",
    "SELECT note, customer FROM orders WHERE amount > 20 EXCEPT SELECT note, customer FROM orders WHERE amount IS NOT NULL",
    "SELECT note FROM orders EXCEPT SELECT 'red' UNION ALL SELECT note FROM orders INTERSECT SELECT CAST(NULL AS VARCHAR)",
    "SELECT COUNT(*) AS n FROM (SELECT customer, COUNT(*) AS n FROM orders GROUP BY customer EXCEPT SELECT id, 30 FROM customers) x",
    "SELECT customer, note, COUNT(*) AS n, SUM(amount) AS s, GROUPING(customer) AS g FROM orders "
    "GROUP BY GROUPING SETS ((customer, note), (customer), ())",
    "SELECT customer, note, COUNT(*) AS n, GROUPING(customer, note) AS g FROM orders GROUP BY ROLLUP (customer, note)",
    "SELECT customer, note, amount % 2 AS odd, MAX(price) AS p FROM orders GROUP BY CUBE (customer, note, amount % 2)",
    "SELECT customer, note, COUNT(customer) AS n FROM orders GROUP BY customer, ROLLUP (note)",
    "SELECT customer AS c, COALESCE(note, 'none') || '!' AS w, SUM(customer) AS s FROM orders GROUP BY ROLLUP (customer, note) "
    "HAVING COUNT(*) > 3",
    "SELECT customer, note, COUNT(*) AS n FROM orders GROUP BY ROLLUP (customer), CUBE (note)",
    "SELECT customer FROM orders GROUP BY ROLLUP (customer) ORDER BY GROUPING(customer) DESC, customer DESC LIMIT 3",
    "SELECT DISTINCT note FROM orders GROUP BY CUBE (customer, note)",
    "SELECT customer, COUNT(*) AS n, RANK() OVER (ORDER BY COUNT(*) DESC) AS r FROM orders GROUP BY ROLLUP (customer) "
    "QUALIFY r <= 3",
    "SELECT id, customer, price FROM (SELECT id, customer, price, ROW_NUMBER() OVER (PARTITION BY customer ORDER BY price DESC, id) AS n "
    "FROM orders) WHERE n <= 3",
    "SELECT id, n FROM (SELECT id, ROW_NUMBER() OVER (PARTITION BY customer ORDER BY id) AS n FROM orders) t WHERE n < 4",
    "SELECT id, customer, r FROM (SELECT id, customer, RANK() OVER (PARTITION BY customer ORDER BY note) AS r FROM orders "
    "WHERE note IS NOT NULL) t WHERE r <= 2",
    "SELECT id, SUM(amount) OVER (PARTITION BY customer ORDER BY ts ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) AS s FROM orders",
    "SELECT id, LAG(amount, 1) OVER (PARTITION BY customer ORDER BY ts) AS before FROM orders",
]


@pytest.mark.one_in(9, "some hundredths of a second of a core each")
@pytest.mark.parametrize("text", SAME)
def test_the_answer_is_duckdbs(folder, text):
    found, expected = ours(folder, text), theirs(folder, text)
    assert counted(found) == counted(expected)
    assert len(found.column_names) == len(expected.column_names)


def test_integers_are_divided_towards_zero(folder):
    found = ours(folder, "SELECT amount / 7 AS q, amount % 7 AS r, MOD(amount, -4) AS m FROM orders WHERE amount < 0")
    expected = [
        (int(a / 7), a - int(a / 7) * 7, a - int(a / -4) * -4)
        for a in ours(folder, "SELECT amount FROM orders WHERE amount < 0")["amount"].to_pylist()
    ]
    assert Counter(tuple(row.values()) for row in found.to_pylist()) == Counter(expected)


def test_the_mean_of_integers_is_an_integer(folder):
    found = ours(folder, "SELECT AVG(amount) AS mean, AVG(amount) FILTER (WHERE id < 0) AS none FROM orders")
    amounts = [a for a in ours(folder, "SELECT amount FROM orders")["amount"].to_pylist() if a is not None]
    assert found.to_pylist() == [{"mean": sum(amounts) // len(amounts), "none": None}]
    assert found.schema.field("mean").type == pa.int64()


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    "window",
    [
        "TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '10' SECOND)",
        "HOP(TABLE orders, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '20' SECOND)",
        "CUMULATE(TABLE orders, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '20' SECOND)",
    ],
)
def test_windows_count_each_row_where_it_belongs(folder, window):
    found = ours(
        folder,
        f"SELECT customer, window_start, window_end, COUNT(*) AS n FROM TABLE({window}) GROUP BY customer, window_start, window_end",
    )
    assert found.num_rows > 0
    rows = theirs(folder, "SELECT customer, ts FROM orders").to_pylist()
    for each in found.to_pylist():
        start, end = each["window_start"].replace(tzinfo=None), each["window_end"].replace(tzinfo=None)
        inside = [row for row in rows if row["customer"] == each["customer"] and start <= row["ts"] < end]
        assert len(inside) == each["n"]


def test_a_window_of_a_windows_rows_is_the_same_window(folder):
    text = """
        SELECT MAX(n) AS most, starts, ends FROM (
            SELECT customer, COUNT(*) AS n, window_start AS starts, window_end AS ends
            FROM TABLE(HOP(TABLE orders, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '20' SECOND))
            GROUP BY customer, window_start, window_end
        ) c GROUP BY starts, ends
    """
    counts = ours(
        folder,
        "SELECT customer, window_start AS s, COUNT(*) AS n FROM TABLE(HOP(TABLE orders, DESCRIPTOR(ts), INTERVAL '5' SECOND, "
        "INTERVAL '20' SECOND)) GROUP BY customer, window_start, window_end",
    )
    expected: dict = {}
    for row in counts.to_pylist():
        expected[row["s"]] = max(expected.get(row["s"], 0), row["n"])
    assert {row["starts"]: row["most"] for row in ours(folder, text).to_pylist()} == expected


@pytest.mark.parametrize(
    "window", ["TUMBLE(ts, INTERVAL '10' SECOND)", "HOP(ts, INTERVAL '5' SECOND, INTERVAL '10' SECOND)"]
)
def test_the_time_of_an_old_window_is_the_event_time_of_its_rows(folder, window):
    kind, arguments = window.split("(", 1)
    inner = (
        f"SELECT customer, COUNT(*) AS n, {kind}_ROWTIME({arguments} AS t, {kind}_END({arguments} AS e FROM orders "
        f"GROUP BY customer, {window}"
    )
    rows = ours(folder, inner).to_pylist()
    assert rows
    assert all(row["e"] - row["t"] == datetime.timedelta(milliseconds=1) for row in rows)
    expected: Counter = Counter()
    for row in rows:
        expected[row["t"].replace(second=0, microsecond=0)] += row["n"]
    found = ours(
        folder,
        f"SELECT TUMBLE_START(t, INTERVAL '1' MINUTE) AS s, SUM(n) AS n FROM ({inner}) GROUP BY TUMBLE(t, INTERVAL '1' MINUTE)",
    )
    assert {row["s"]: row["n"] for row in found.to_pylist()} == expected


def test_sessions_by_the_old_functions(folder):
    text = (
        "SELECT customer, COUNT(*) AS n, SESSION_START(ts, INTERVAL '2' SECOND) AS s, SESSION_END(ts, INTERVAL '2' SECOND) AS e "
        "FROM orders WHERE customer IS NOT NULL GROUP BY customer, SESSION(ts, INTERVAL '2' SECOND)"
    )
    rows = theirs(folder, "SELECT customer, ts FROM orders WHERE customer IS NOT NULL ORDER BY ts").to_pylist()
    expected: Counter = Counter()
    by_customer: dict = {}
    for row in rows:
        by_customer.setdefault(row["customer"], []).append(row["ts"])
    for times in by_customer.values():
        length = 0
        for i, time in enumerate(times):
            length += 1
            if i + 1 == len(times) or (times[i + 1] - time).total_seconds() >= 2:
                expected[length] += 1
                length = 0
    assert Counter(ours(folder, text)["n"].to_pylist()) == expected


def test_a_join_by_time_keeps_pairs_within_the_bounds(folder):
    text = (
        "SELECT a.id, b.id FROM orders a JOIN orders b ON a.customer = b.customer "
        "WHERE b.ts BETWEEN a.ts - INTERVAL '1' SECOND AND a.ts + INTERVAL '2' SECOND"
    )
    plain = (
        "SELECT a.id, b.id FROM orders a JOIN orders b ON a.customer = b.customer "
        "WHERE b.ts BETWEEN a.ts - INTERVAL 1 SECOND AND a.ts + INTERVAL 2 SECOND"
    )
    app = App("plans")
    orders = app.stream(files(str(folder / "orders.parquet")), time="ts")
    assert "between -1 s and 2 s" in app.sql(text, orders=orders).explain()
    assert counted(ours(folder, text)) == counted(theirs(folder, plain))


@pytest.mark.parametrize(
    "condition",
    [
        "a.t < b.t",
        "b.t BETWEEN a.t - INTERVAL '0.001' SECOND AND a.t",
        "b.t - INTERVAL '0.001' SECOND > a.t AND b.t <= a.t + INTERVAL '0.002' SECOND",
    ],
)
def test_a_join_by_time_compares_all_digits_of_a_second(tmp_path, condition):
    rng = random.Random(condition)
    times = [sorted(1_700_000_000_000_000 + rng.randrange(6000) for _ in range(60)) for _ in "ab"]
    for name, micros in zip("ab", times, strict=True):
        table = pa.table({"id": range(60), "k": [i % 2 for i in range(60)], "t": pa.array(micros, pa.timestamp("us"))})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    text = f"SELECT a.id, b.id AS other FROM a JOIN b ON a.k = b.k AND {condition}"
    app = App("micros")
    answer = app.sql(
        text, **{name: app.stream(files(str(tmp_path / f"{name}.parquet")), time="t") for name in "ab"}
    ).collect()
    with duckdb.connect() as connection:
        for name in "ab":
            connection.execute(f"create view {name} as select * from '{tmp_path}/{name}.parquet'")
        assert counted(answer) == counted(connection.sql(text).to_arrow_table())


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_frame_of_range_has_all_rows_of_the_time_of_its_row(tmp_path, parallelism):
    rng = random.Random(3)
    rows = [{"k": rng.choice([None, 1, 2]), "x": rng.choice([None, 1, 5]), "ms": i // 3 * 1000} for i in range(200)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(
        table.append_column("ts", table["ms"].cast(pa.timestamp("ms"))), tmp_path / "t.parquet", row_group_size=7
    )
    text = """
        SELECT k, x, ts, SUM(x) OVER (PARTITION BY k ORDER BY ts) AS s, AVG(x * 1e0) OVER (ORDER BY ts RANGE UNBOUNDED PRECEDING) AS m,
            COUNT(*) OVER (PARTITION BY k ORDER BY ts RANGE CURRENT ROW) AS n, COUNT(x) FILTER (WHERE x > 1) OVER (w RANGE
            BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS f
        FROM t WINDOW w AS (ORDER BY ts)
    """
    app = App("range", parallelism=parallelism)
    answer = app.sql(text, t=app.stream(files(str(tmp_path / "t.parquet")), time="ts")).collect()
    with duckdb.connect() as connection:
        connection.execute(f"create view t as select * from '{tmp_path}/t.parquet'")
        assert counted(answer) == counted(connection.sql(text).to_arrow_table())


def thousand(form):
    return ", ".join(form.format(i=i, time=f"22:{i // 60:02}:{i % 60:02}") for i in range(1000))


@pytest.mark.slow  # a second of a core
@pytest.mark.parametrize(
    "condition",
    [
        "ts IN (" + thousand("'2023-11-14 {time}'") + ")",
        f"amount IN (NULL, {thousand('customer * {i}')})",
        f"(customer, amount) IN ({thousand('(3, {i})')})",
        f"GREATEST({thousand('amount + {i}')}) > 1050",
        f"CONCAT({thousand('note')}) <> ''",
    ],
    ids=["times", "expressions", "rows", "greatest", "texts"],
)
def test_a_list_may_have_a_thousand_values(folder, condition):
    text = f"SELECT id FROM orders WHERE {condition}"
    assert counted(ours(folder, text)) == counted(theirs(folder, text))


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("type", "stored", "number", "is_in"),
    [
        (pa.decimal128(5, 2), Decimal("1.00"), "1.005E0", False),
        (pa.decimal128(5, 2), Decimal("1.00"), "1.00E0", True),
        (pa.float32(), 0.1, "0.1", False),
        (pa.float32(), 0.5, "0.5", True),
        (pa.float32(), 0.1, "0.1E0", True),
        (pa.float64(), float("60.95074822430262511657903923"), "60.95074822430262511657903923", True),
    ],
)
def test_in_finds_a_number_of_another_kind_where_equality_does(type, stored, number, is_in):
    table = pa.table({"x": pa.array([stored], type)})
    for condition in (f"x = {number}", f"x IN ({number})", f"x IN ({number}, 7)"):
        app = App("numbers")
        stream = app.stream(table.to_pylist(), schema=table.schema)
        found = app.sql(f"SELECT x FROM t WHERE {condition}", t=stream).collect()
        assert found.num_rows == is_in, condition


def test_parameters_are_values_and_never_text(folder):
    found = ours(folder, "SELECT id FROM orders WHERE note = :note", note="' OR 1 = 1 --")
    assert found.num_rows == 0
    assert ours(folder, "SELECT id FROM orders WHERE amount > :least LIMIT :n", least=150, n=2).num_rows == 2


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("SELECT id FROM orders WHERE note LIKE :x AND amount > :n", {"x": "%b%", "n": 10}),
        (
            "SELECT id, n FROM (SELECT id, ROW_NUMBER() OVER (ORDER BY price, id) AS n FROM orders) r WHERE n <= :n",
            {"n": 3},
        ),
        (
            "SELECT id, REPLACE(note, :x, '+') AS r, LEFT(note, :n) AS l, SUBSTRING(note, :n) AS s FROM orders",
            {"x": "b", "n": 2},
        ),
        ("SELECT id FROM orders ORDER BY id LIMIT :n OFFSET :x", {"n": 3, "x": 2}),
        ("SELECT id FROM orders ORDER BY id LIMIT :n", {"n": 0}),
    ],
)
def test_a_parameter_may_stand_where_a_constant_does(folder, text, values):
    written = text
    for name, value in values.items():
        written = written.replace(f":{name}", repr(value))
    assert counted(ours(folder, text, **values)) == counted(theirs(folder, written))


@pytest.mark.parametrize("value", [-1, 2.0, True, "3"])
def test_a_limit_is_a_whole_number(folder, value):
    for clause in ("LIMIT :n", "ORDER BY id LIMIT :n", "ORDER BY id LIMIT 2 OFFSET :n"):
        with pytest.raises(SqlError, match="takes a whole number, 0 or more"):
            ours(folder, f"SELECT id FROM orders {clause}", n=value)


def test_tables_are_declared_read_and_written(tmp_path):
    (tmp_path / "flights.csv").write_text(
        "carrier,delay,ts\nUA,20,2024-01-01T00:00:01\nUA,40,2024-01-01T00:00:02\nAA,5,2024-01-01T00:01:02\n"
    )
    app = App("tables")
    made = app.sql(
        f"""
        CREATE TABLE flights (
            carrier STRING, delay INT, ts TIMESTAMP(3), minutes AS delay * 60, WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
        ) WITH ('connector' = 'filesystem', 'path' = '{tmp_path}/flights.csv', 'format' = 'csv');
        CREATE TABLE counts (carrier STRING, n BIGINT, total BIGINT)
            WITH ('connector' = 'files', 'path' = '{tmp_path}/out.parquet', 'format' = 'parquet');
        CREATE VIEW late AS SELECT * FROM flights WHERE delay > 10;
        INSERT INTO counts
            SELECT carrier, COUNT(*), SUM(minutes) FROM TABLE(TUMBLE(TABLE late, DESCRIPTOR(ts), INTERVAL '1' MINUTE))
            GROUP BY carrier, window_start, window_end;
        """
    )
    assert made is None
    app.main()
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [{"carrier": "UA", "n": 2, "total": 3600}]


def test_updated_rows_need_a_key(tmp_path):
    app = App("keys")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    app.sql(f"CREATE TABLE t (a BIGINT, b BIGINT) WITH ('connector' = 'files', 'path' = '{tmp_path}/t.csv')")
    app.sql(
        "CREATE TABLE u (a BIGINT, n BIGINT) WITH ('connector' = 'sqlite', 'url' = 'sqlite:u.db', 'table-name' = 'u')"
    )
    app.sql("CREATE TABLE v (a BIGINT, n BIGINT) WITH ('connector' = 'memory', 'topic' = 'v', 'format' = 'avro')")
    for name in "uv":
        with pytest.raises(SqlError, match=rf"1:13: .*are updated, and table {name} has no PRIMARY KEY"):
            app.sql(f"INSERT INTO {name} SELECT a, COUNT(*) FROM t GROUP BY a")


@pytest.mark.parametrize("key", ["", ", PRIMARY KEY (a) NOT ENFORCED"])
def test_a_file_gets_the_rows_of_a_group_by_when_its_input_has_ended(tmp_path, key):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n2,2\n1,5\n")
    app = App("ended", broker="memory://ended")
    app.sql(f"""
        CREATE TABLE t (a BIGINT, b BIGINT) WITH ('connector' = 'files', 'path' = '{tmp_path}/t.csv');
        CREATE TABLE k (a BIGINT, b BIGINT) WITH ('connector' = 'memory', 'topic' = 'k', 'format' = 'json');
        CREATE TABLE u (a BIGINT, total BIGINT{key}) WITH ('connector' = 'files', 'path' = '{tmp_path}/u.ndjson');
        INSERT INTO u SELECT a, SUM(b) FROM t GROUP BY a""")
    with pytest.raises(SqlError, match="1:13: the rows of this query are updated, and table u can only add rows"):
        app.sql("INSERT INTO u SELECT a, SUM(b) FROM k GROUP BY a")
    app.main()
    found = [json.loads(line) for line in (tmp_path / "u.ndjson").read_text().splitlines()]
    assert sorted(map(tuple, map(dict.values, found))) == [(1, 7), (2, 2)]


async def test_a_memory_table_without_a_key_takes_each_change_as_a_row(memory_url):
    """Its reader declares `op`; a table with a PRIMARY KEY has the rows as they are now, and no op."""
    app, source = App("memory", broker=memory_url), ScriptedSource([[{"a": 1}], [{"a": 1}, {"a": 2}], END])
    app.sql(
        """
        CREATE TABLE log (a BIGINT, n BIGINT) WITH ('connector' = 'memory', 'topic' = 'log');
        CREATE TABLE kept (a BIGINT, n BIGINT, PRIMARY KEY (a) NOT ENFORCED) WITH ('connector' = 'memory', 'topic' = 'kept');
        CREATE VIEW counted AS SELECT a, COUNT(*) AS n FROM t GROUP BY a;
        INSERT INTO log SELECT * FROM counted;
        INSERT INTO kept SELECT * FROM counted;
        """,
        t=app.stream(source),
    )
    await bounded(app.run())
    assert values(app, "log") == [
        {"op": "insert", "a": 1, "n": 1},
        {"op": "update_before", "a": 1, "n": 1},
        {"op": "update_after", "a": 1, "n": 2},
        {"op": "insert", "a": 2, "n": 1},
    ]
    assert values(app, "kept") == [{"a": 1, "n": 1}, {"a": 1, "n": 2}, {"a": 2, "n": 1}]


def test_a_view_is_one_step_however_often_it_is_read(folder):
    app = App("views")
    orders = app.stream(files(str(folder / "orders.parquet")), time="ts")
    app.sql("CREATE VIEW totals AS SELECT customer, COUNT(*) AS n FROM orders GROUP BY customer", orders=orders)
    both = app.sql("SELECT a.n FROM totals a JOIN totals b ON a.customer = b.customer")
    assert both.explain().count("count()") == 1


def test_a_costly_call_of_where_and_of_the_select_list_is_computed_once(folder):
    app = App("once")
    orders = app.stream(files(str(folder / "orders.parquet")), time="ts")
    call = "REGEXP_EXTRACT(note, '^(.)', 1)"
    plan = app.sql(
        f"SELECT id, {call.lower()} || '!' AS f FROM orders WHERE {call} IS NOT NULL", orders=orders
    ).explain()
    assert plan.count("regexp_extract") == 1
    other = call.replace("^", "x")
    plan = app.sql(f"SELECT id, {other} AS f FROM orders WHERE {call} IS NOT NULL", orders=orders).explain()
    assert plan.count("regexp_extract") == 2


def test_the_sink_is_chosen_by_the_ending(tmp_path):
    app = App("endings")
    (tmp_path / "x.csv").write_text("a\n1\n")
    app.sql(f"CREATE TABLE x (a BIGINT) WITH ('connector' = 'files', 'path' = '{tmp_path}/x.csv')")
    app.sql(f"CREATE TABLE y (a BIGINT) WITH ('connector' = 'files', 'path' = '{tmp_path}/y.parquet')")
    app.sql("INSERT INTO y SELECT a FROM x")
    app.main()
    assert pq.read_table(tmp_path / "y.parquet").to_pylist() == [{"a": 1}]


NULLS = "SET default_null_order = 'NULLS_FIRST_ON_ASC_LAST_ON_DESC'"


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("order", ["amount", "amount DESC", "amount NULLS LAST", "amount DESC NULLS FIRST", "note, id"])
def test_null_is_the_smallest_value_of_an_order(folder, order):
    text = f"SELECT id, n FROM (SELECT id, ROW_NUMBER() OVER (PARTITION BY customer ORDER BY {order}, id) AS n FROM orders) WHERE n <= 2"
    with duckdb.connect() as connection:
        connection.execute(NULLS)
        connection.execute(f"create view orders as select * from '{folder}/orders.parquet'")
        expected = connection.sql(text).to_arrow_table()
    assert counted(ours(folder, text)) == counted(expected)


def test_two_computed_columns_of_a_ranking_are_two_columns(folder):
    text = (
        "SELECT id, n FROM (SELECT id, ROW_NUMBER() OVER (PARTITION BY customer + 1 ORDER BY price * 2 DESC, id) AS n "
        "FROM orders) WHERE n BETWEEN 1 AND 2"
    )
    assert counted(ours(folder, text)) == counted(theirs(folder, text))


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("how", ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"])
def test_using_makes_one_column_of_two(folder, how):
    text = f"SELECT * FROM orders {how} (SELECT id AS customer, name FROM customers) c USING (customer)"
    expected = theirs(folder, text).select(["customer", "id", "amount", "price", "note", "ts", "name"])
    found = ours(folder, text)
    assert found.column_names == expected.column_names
    assert counted(found) == counted(expected)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("how", ["LEFT", "RIGHT", "FULL"])
def test_conditions_of_an_outer_join_are_about_one_table(folder, how):
    text = (
        f"SELECT o.id, o.customer, c.id, c.name FROM orders o {how} JOIN customers c "
        "ON o.customer = c.id AND o.amount > 20 AND o.price < 80 AND c.name <> 'c3' AND c.name <> 'c4'"
    )
    assert counted(ours(folder, text)) == counted(theirs(folder, text))


def test_a_union_has_the_wider_type_of_each_column(folder):
    found = ours(folder, "SELECT id AS x, NULL AS y FROM orders UNION ALL SELECT price, note FROM orders")
    assert found.schema.types == [pa.float64(), pa.string()]
    with pytest.raises(SqlError, match="column id of UNION is BIGINT and STRING"):
        ours(folder, "SELECT id FROM orders UNION ALL SELECT note FROM orders")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT id FROM orders WHERE id = 'x'", "'x' is no BIGINT"),
        ("SELECT id FROM orders WHERE ts > 'soon'", r"'soon' is no TIMESTAMP\(3\)"),
        ("SELECT o.id FROM orders o JOIN customers c ON o.id = c.name", "BIGINT and STRING are never equal"),
        ("SELECT id FROM orders o JOIN customers c ON o.customer = c.id", '"id" may be o.id or c.id'),
    ],
)
def test_an_error_of_types_speaks_of_sql(folder, text, message):
    with pytest.raises(SqlError, match=message):
        ours(folder, text)


@pytest.mark.one_in(18, "some hundredths of a second of a core each")
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("aggregate", "lower"), [("MAX", "2.000"), ("MIN", "2.000"), ("MAX", "1.999")])
def test_the_greatest_of_each_window_by_bounds_of_time_is_a_ranking(seed, aggregate, lower):
    """Many rows stand at the very start of a window, and so in two windows of the condition; values are equal, or NULL."""
    draw = random.Random(seed)
    times = sorted(draw.choice([0, 1, 999, 1000, 1999, 2000]) + 2000 * draw.randrange(6) for _ in range(60))
    bids = pa.table(
        {
            "id": range(60),
            "p": pa.array([draw.choice([None, 1, 2, 3, 4]) for _ in times], pa.int64()),
            "ts": pa.array(times, pa.timestamp("ms")),
        }
    )
    app = App("highest", parallelism=draw.choice([1, 2]))
    until = "b.ts < m.until" if lower == "1.999" else "b.ts <= m.until"
    text = f"""
        SELECT b.id, b.p, b.ts, m.best, m.until FROM bids b JOIN (
            SELECT {aggregate}(p) AS best, window_end AS until
            FROM TABLE(TUMBLE(TABLE bids, DESCRIPTOR(ts), INTERVAL '2' SECOND)) GROUP BY window_start, window_end
        ) m ON b.p = m.best WHERE b.ts >= m.until - INTERVAL '2' SECOND AND {until} AND b.id <> 7
    """
    found = app.sql(text, bids=app.stream(bids, time="ts"))
    assert ("join" in found.explain(), "top 1" in found.explain()) == (lower == "2.000", True)
    want = duckdb.sql(f"""
        SELECT b.id, b.p, b.ts, m.best, m.until FROM bids b JOIN (
            SELECT {aggregate}(p) AS best, time_bucket(INTERVAL 2 SECOND, ts, TIMESTAMP '1970-01-01') + INTERVAL 2 SECOND AS until
            FROM bids GROUP BY ALL
        ) m ON b.p = m.best WHERE b.ts >= m.until - INTERVAL 2 SECOND AND {until} AND b.id <> 7
    """).fetchall()
    rows = [tuple(row.values()) for row in found.collect().to_pylist()]
    assert sorted((*row[:-1], row[-1].replace(tzinfo=None)) for row in rows) == sorted(want)


@pytest.mark.parametrize(
    ("query", "expected", "final"),
    [
        ("SELECT k, v, n FROM ({rows} ORDER BY p) AS n FROM t) WHERE n = 1", [(1, "a", 1), (2, "b", 1)], True),
        (
            "SELECT k, v FROM t QUALIFY ROW_NUMBER() OVER (PARTITION BY k ORDER BY PROCTIME()) <= 1",
            [(1, "a"), (2, "b")],
            True,
        ),
        ("SELECT k, v, n FROM ({rows} ORDER BY p DESC) AS n FROM t) WHERE 1 = n", [(1, "d", 1), (2, "b", 1)], False),
        ("SELECT k, v FROM ({rows} ORDER BY ts) AS n FROM t) WHERE n = 1", [(1, "c"), (2, "b")], True),
        (
            "SELECT k, v, n FROM ({rows} ORDER BY ts) AS n FROM t) WHERE n BETWEEN 1 AND 2",
            [(1, "a", 2), (1, "c", 1), (2, "b", 1)],
            True,
        ),
        ("SELECT k, v FROM ({rows} ORDER BY ts DESC) AS n FROM t) WHERE n = 1", [(1, "d"), (2, "b")], False),
        ("SELECT k, v FROM ({rows} ORDER BY v) AS n FROM t) WHERE n = 1", [(1, "a"), (2, "b")], False),
    ],
)
def test_first_rows_by_event_time_or_by_arrival_are_final(tmp_path, query, expected, final):
    (tmp_path / "t.csv").write_text(
        "k,v,ts\n1,a,2024-01-01 00:00:05\n2,b,2024-01-01 00:00:01\n1,c,2024-01-01 00:00:02\n1,d,2024-01-01 00:00:09\n"
    )
    app = App("firsts")
    app.sql(
        "CREATE TABLE t (k BIGINT, v STRING, ts TIMESTAMP(3), p AS PROCTIME(), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) "
        f"WITH ('connector' = 'filesystem', 'path' = '{tmp_path / 't.csv'}', 'format' = 'csv')"
    )
    rows = "SELECT k, v, ROW_NUMBER() OVER (PARTITION BY k"
    stream = app.sql(query.format(rows=rows))
    assert stream.changes is not final
    found = (stream if final else stream.materialize()).collect().to_pylist()
    assert sorted(tuple(row.values()) for row in found) == expected


def test_a_text_column_of_event_time_is_compared_with_the_text_of_a_time_as_a_time(tmp_path, caplog):
    """'2024-01-01T08:00:00' > '2024-01-01 08:10:00' as texts: a T is greater than a space."""
    (tmp_path / "a.csv").write_text("k,ts\n" + "".join(f"{i},2024-01-01T08:{i:02}:00\n" for i in range(0, 60, 10)))

    def found(condition, **options):
        app = App("times")
        rows = app.stream(files(str(tmp_path / "a.csv")), schema={"k": "int64", "ts": "string"}, **options)
        return app.sql(f"SELECT k FROM t WHERE {condition}", t=rows).materialize().collect()["k"].to_pylist()

    assert found("ts > '2024-01-01 08:10:00'", time="ts") == [20, 30, 40, 50]
    assert found("'2024-01-01 08:10' >= ts", time="ts") == [0, 10]
    assert found("ts BETWEEN '2024-01-01 08:10:00' AND '2024-01-01 08:20:00'", time="ts") == [10, 20]
    assert found("ts IN ('2024-01-01 08:10:00')", time="ts") == [10]
    assert "character by character" not in caplog.text
    assert len(found("ts > '2024-01-01 08:09:59'")) == 6
    assert "col(\"ts\") is a text and is compared with '2024-01-01 08:09:59' character by character" in caplog.text
    assert "CAST(… AS TIMESTAMP(3))" in caplog.text
    assert found("ts IN ('2024-01-01 08:20', '2024-01-01 08:30')") == []
    assert "col(\"ts\") is a text and is compared with '2024-01-01 08:20' character by character" in caplog.text
    caplog.clear()
    assert len(found("ts > '2024-01-01'")) == 6
    assert found("k < 20 AND ts <> 'never 08:10'") == [0, 10]
    assert caplog.text == ""


def test_the_greatest_unsigned_number_is_compared_with_a_decimal():
    """A DECIMAL of 19 digits did not hold it: the row was a dead letter of the join."""
    app = App("unsigned")
    some = app.stream([{"u": 2**64 - 1}, {"u": 7}], schema={"u": "uint64"})
    decimals = app.stream([{"d": Decimal("18446744073709551615.00")}], schema={"d": "decimal(24, 2)"})
    found = app.sql("SELECT u FROM a JOIN b ON a.u = b.d", a=some, b=decimals).materialize().collect()
    assert found["u"].to_pylist() == [2**64 - 1]
