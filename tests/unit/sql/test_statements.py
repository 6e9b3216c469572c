"""SHOW, DESCRIBE, EXPLAIN, SET, CREATE TABLE LIKE and AS: statements about tables and plans."""

import asyncio
import json
from datetime import date, datetime, timedelta

import deltalake
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, col
from sabot.engine.runtime.watch.guarantees import guarantees_of
from sabot.sql.syntax.text import SqlError
from sabot.testing import MemoryBroker
from tools.iceberg_lake import lake_of, rows_in_lake, table_of

TABLES = """
CREATE TABLE flights (
    carrier STRING, delay BIGINT, ts TIMESTAMP(3), minutes AS delay * 60, clock AS PROCTIME(),
    WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH ('connector' = 'files', 'path' = 'flights.csv');
CREATE TABLE totals (carrier STRING, n BIGINT, PRIMARY KEY (carrier) NOT ENFORCED)
    WITH ('connector' = 'postgres', 'url' = 'postgresql://db/x', 'table-name' = 't', 'password' = 'hush');
CREATE VIEW late AS SELECT carrier, delay FROM flights WHERE delay > 10;
"""


@pytest.fixture
def app(tmp_path, monkeypatch) -> App:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flights.csv").write_text("carrier,delay,ts\nUA,20,2024-01-01T00:00:01\nAA,5,2024-01-01T00:01:02\n")
    app = App("shop")
    app.sql(TABLES)
    return app


def test_show_lists_tables_views_functions_and_columns(app):
    assert app.sql("SHOW TABLES").to_pydict() == {"table name": ["flights", "late", "totals"]}
    assert app.sql("SHOW VIEWS").to_pydict() == {"view name": ["late"]}
    assert {"UPPER", "COUNT"} <= set(app.sql("SHOW FUNCTIONS")["function name"].to_pylist())
    assert app.sql("SHOW COLUMNS FROM late").equals(app.sql("DESCRIBE late"))


def test_describe_says_the_type_the_key_and_the_origin_of_each_column(app):
    rows = {row.pop("name"): row for row in app.sql("DESCRIBE flights").to_pylist()}
    assert rows["ts"] == {"type": "TIMESTAMP(3)", "key": "", "extras": "", "watermark": "ts - 5000 ms"}
    assert rows["minutes"]["extras"] == "computed"
    assert rows["clock"]["type"] == "TIMESTAMP_LTZ(3)"
    assert app.sql("DESC totals")["key"].to_pylist() == ["PRIMARY KEY", ""]
    assert app.sql("DESCRIBE late")["type"].to_pylist() == ["STRING", "BIGINT"]


def test_show_create_hides_secrets(app):
    shown = app.sql("SHOW CREATE TABLE totals")
    assert shown.startswith("CREATE TABLE totals (carrier STRING")
    assert "'password' = '***'" in shown
    assert "hush" not in shown
    assert app.sql("SHOW CREATE VIEW late") == "CREATE VIEW late AS SELECT carrier, delay FROM flights WHERE delay > 10"


def test_explain_shows_the_plan_of_a_query_and_of_an_insert_without_running_it(app):
    assert "delay" in app.sql("EXPLAIN SELECT carrier FROM flights WHERE delay > 10")
    query = "SELECT carrier, COUNT(*) FROM flights GROUP BY carrier"
    assert "count()" in app.sql(f"EXPLAIN INSERT INTO totals {query}")
    assert "count()" in app.sql(f"EXPLAIN STATEMENT SET BEGIN INSERT INTO totals {query}; END")
    assert app.sql(f"EXPLAIN CHANGELOG {query}").endswith("result: rows are updated, by the key carrier")
    assert app.sql("EXPLAIN CHANGELOG SELECT * FROM late").endswith("result: rows are appended, and never change")
    stages = [json.loads(line) for line in app.sql(f"EXPLAIN JSON {query}").splitlines()]
    assert any("count()" in step["text"] for stage in stages for step in stage["steps"])
    assert app.spec.ends == []


def test_explain_against_a_checkpoint_says_which_state_goes_on(app, tmp_path):
    query = "SELECT carrier, COUNT(*) FROM flights GROUP BY carrier"
    tables = TABLES + (
        "CREATE TABLE kept (carrier STRING, n BIGINT, PRIMARY KEY (carrier) NOT ENFORCED) "
        "WITH ('connector' = 'sqlite', 'url' = 'sqlite:kept.db', 'table-name' = 'kept');"
    )
    first = App("shop", state="state")
    first.sql(f"{tables} INSERT INTO kept {query};")
    first.main()
    again = App("shop")
    again.sql(tables)
    said = again.sql(f"EXPLAIN AGAINST 'state' INSERT INTO kept {query}")
    assert "keep" in said.splitlines()[1]
    other = App("other")
    other.sql(tables)
    with pytest.raises(SqlError, match="made by app 'shop', not 'other'"):
        other.sql(f"EXPLAIN AGAINST 'state' INSERT INTO kept {query}")
    with pytest.raises(SqlError, match="nowhere holds no checkpoint"):
        again.sql(f"EXPLAIN AGAINST 'nowhere' INSERT INTO kept {query}")


def test_the_zone_of_the_session_is_that_of_the_last_set(app):
    hour, zone = "SELECT HOUR(TIMESTAMP_LTZ '2024-07-01 22:30:00Z') AS h", "'table.local-time-zone'"
    for text, expected in (("", 22), (f"SET {zone} = 'Europe/Berlin';", 0), ("", 0), (f"SET {zone} = 'utc';", 22)):
        assert app.sql(f"{text} {hour}").collect().to_pylist() == [{"h": expected}]
    app.sql(f"SET {zone} = 'Asia/Tokyo'")
    assert app.sql("SET").to_pylist() == [{"key": "table.local-time-zone", "value": "Asia/Tokyo"}]
    assert app.sql(f"RESET {zone}; {hour}").collect().to_pylist() == [{"h": 22}]


def test_a_view_from_before_set_is_one_of_the_new_zone(app):
    """The bounds of its windows stayed in UTC, and were shown on the clock of the zone: an hour or more too late."""
    windows = "TABLE(TUMBLE(TABLE flights, DESCRIPTOR(ts), INTERVAL '1' MINUTE)) GROUP BY window_start, window_end"
    app.sql(f"CREATE VIEW minutes AS SELECT window_start AS w FROM {windows}")
    app.sql("CREATE VIEW again AS SELECT DATE_FORMAT(w, 'HH:mm') AS m FROM minutes")
    app.sql("SET 'table.local-time-zone' = 'Asia/Tokyo'")
    assert app.sql("DESCRIBE minutes")["type"].to_pylist() == ["TIMESTAMP(3)"]
    assert app.sql("SELECT * FROM again").collect().to_pydict() == {"m": ["00:00", "00:01"]}


def test_a_view_that_cannot_be_bound_to_a_new_zone_is_said_and_gone(app):
    given = app.stream([{"x": 1}])
    app.sql("CREATE VIEW mine AS SELECT x FROM given; CREATE VIEW other AS SELECT delay FROM flights", given=given)
    with pytest.raises(SqlError, match="the view mine is dropped, as it cannot be bound to the new time zone"):
        app.sql("SET 'table.local-time-zone' = 'Asia/Tokyo'")
    assert app.sql("SHOW VIEWS").to_pydict() == {"view name": ["late", "other"]}
    assert app.sql("SELECT * FROM other").collect().num_rows == 2


def test_a_timestamp_is_written_into_a_table_as_an_instant_of_the_zone(app, tmp_path):
    app.sql(f"""
        SET 'table.local-time-zone' = 'Asia/Tokyo';
        CREATE TABLE days (at TIMESTAMP_LTZ(3), clock TIMESTAMP(3)) WITH
            ('connector' = 'files', 'path' = '{tmp_path}/days.parquet', 'format' = 'parquet');
        INSERT INTO days SELECT TIMESTAMP '2024-07-01 09:00:00', TIMESTAMP_LTZ '2024-07-01 00:00:00Z'
    """)
    asyncio.run(app.run())
    (row,) = pq.read_table(tmp_path / "days.parquet").to_pylist()
    assert (row["at"].isoformat(), row["clock"].isoformat()) == ("2024-07-01T00:00:00+00:00", "2024-07-01T09:00:00")


def test_set_alone_lists_what_was_set(app):
    app.sql("SET 'sabot.parallelism' = '2'; SET 'table.optimizer.x' = 'y'")
    assert app.settings.parallelism == 2
    assert app.sql("SET").to_pylist() == [
        {"key": "sabot.parallelism", "value": "2"},
        {"key": "table.optimizer.x", "value": "y"},
    ]
    app.sql("RESET")
    assert app.settings.parallelism == 1
    assert app.sql("SET").num_rows == 0
    with pytest.raises(SqlError, match="the name of this app is shop"):
        app.sql("SET 'pipeline.name' = 'x'")


def test_a_table_like_another_has_its_columns_and_options(app, tmp_path):
    (tmp_path / "other.csv").write_text("carrier,delay,ts,more\nUA,20,2024-01-01T00:00:01,x\n")
    app.sql("CREATE TABLE other (more STRING) WITH ('path' = 'other.csv') LIKE flights")
    names = app.sql("DESCRIBE flights")["name"].to_pylist()
    assert app.sql("DESCRIBE other")["name"].to_pylist() == [*names, "more"]
    with pytest.raises(SqlError, match="late is a view or a stream"):
        app.sql("CREATE TABLE x LIKE late")
    with pytest.raises(SqlError, match='there is no table "flihgts"'):
        app.sql("CREATE TABLE x LIKE flihgts")


def test_a_table_like_another_with_a_connector_of_its_own_takes_no_options(app):
    app.sql("CREATE TABLE topic WITH ('connector' = 'kafka', 'topic' = 'flights') LIKE flights")
    assert (
        app.sql("DESCRIBE topic").column("name").to_pylist() == app.sql("DESCRIBE flights").column("name").to_pylist()
    )
    assert "read flights:" in app.sql("EXPLAIN SELECT carrier FROM topic")


def test_a_table_as_a_query_is_written_when_the_app_runs(app, tmp_path):
    app.sql(
        "CREATE TABLE copy WITH ('connector' = 'files', 'path' = 'copy.parquet') AS SELECT carrier, delay * 2 AS d FROM late"
    )
    app.main()
    assert pq.read_table(tmp_path / "copy.parquet").to_pylist() == [{"carrier": "UA", "d": 40}]


def test_a_topic_of_a_broker_of_its_own_takes_a_format(app):
    app.sql("""
        CREATE TABLE topic (carrier STRING) WITH (
            'connector' = 'kafka', 'topic' = 'late', 'format' = 'json', 'properties.bootstrap.servers' = 'localhost:9092'
        )
    """)
    assert "write late" in app.sql("EXPLAIN INSERT INTO topic SELECT carrier FROM flights")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (
            "SELECT window_start AS t, COUNT(*) AS n FROM TABLE(TUMBLE(TABLE s, DESCRIPTOR(t), INTERVAL '1' MINUTE)) "
            "GROUP BY window_start, window_end",
            [{"t": datetime(2026, 1, 1), "n": 2}, {"t": datetime(2026, 1, 1, 0, 1), "n": 1}],
        ),
        (
            "SELECT x, SUM(x) OVER (PARTITION BY k ORDER BY t RANGE BETWEEN INTERVAL '1' MINUTE PRECEDING AND CURRENT ROW) "
            "AS y FROM s",
            [{"x": 1, "y": 1}, {"x": 2, "y": 3}, {"x": 4, "y": 6}],
        ),
        (
            "SELECT * FROM s MATCH_RECOGNIZE (PARTITION BY k ORDER BY t MEASURES B.x AS x ONE ROW PER MATCH "
            "AFTER MATCH SKIP PAST LAST ROW PATTERN (A B) DEFINE A AS A.x < 2)",
            [{"k": "a", "x": 2}],
        ),
    ],
)
def test_a_stream_may_get_its_event_time_before_sql_reads_it(query, expected):
    texts = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:30Z", "2026-01-01T00:01:20Z"]
    rows = [{"k": "a", "x": 2**n, "at": at} for n, at in enumerate(texts)]
    app = App("later")
    timed = app.stream(rows).with_columns(t=col("at").str.to_datetime()).with_time("t").filter(col("x") > 0)
    assert app.sql(query, s=timed).collect().to_pylist() == expected


def test_a_time_on_the_clocks_of_a_zone_is_no_event_time_of_sql():
    app = App("later")
    rows = app.stream([{"t": datetime(2026, 1, 1), "x": 1}]).with_time("t", time_zone="Europe/Berlin")
    with pytest.raises(SqlError, match="SUM OVER needs ORDER BY the event time") as refused:
        app.sql("SELECT SUM(x) OVER (ORDER BY t) AS y FROM s", s=rows)
    assert "ORDER BY ts), once its table has a TIMESTAMP as event time: WATERMARK FOR ts" in str(refused.value)


def test_a_topic_is_read_on_from_the_offsets_of_a_group_of_flink_which_goes_on(memory_url):
    broker = MemoryBroker.get(memory_url)
    broker.publish("clicks", [{"n": 1}, {"n": 2}, {"n": 3}])
    broker.commit("flink-job", "clicks", {0: 1})
    app = App("clicks", broker=memory_url)
    app.sql("""
        CREATE TABLE clicks (n BIGINT) WITH (
            'connector' = 'kafka', 'topic' = 'clicks', 'properties.group.id' = 'flink-job',
            'scan.startup.mode' = 'group-offsets', 'scan.bounded.mode' = 'latest-offset', 'format' = 'json'
        );
        CREATE TABLE copy (n BIGINT) WITH ('connector' = 'kafka', 'topic' = 'copy', 'properties.group.id' = 'flink-job');
        INSERT INTO copy SELECT n FROM clicks
    """)
    app.main()
    assert [record.value for record in broker.records("copy")] == [{"n": 2}, {"n": 3}]
    assert broker.committed("flink-job", "clicks") == {0: 3}


def test_a_part_of_a_topic_between_two_timestamps_is_read_as_in_flink(memory_url):
    broker = MemoryBroker.get(memory_url)
    for n in range(6):
        broker.publish("clicks", [{"n": n}], timestamp=1000 * n)
    part = """
        CREATE TABLE clicks (n BIGINT) WITH (
            'connector' = 'kafka', 'topic' = 'clicks', 'format' = 'json', 'scan.startup.mode' = 'timestamp',
            'scan.bounded.mode' = 'timestamp', 'scan.bounded.timestamp-millis' = '4000' {}
        );
        SELECT n FROM clicks
    """
    app = App("part", broker=memory_url)
    found = app.sql(part.format(", 'scan.startup.timestamp-millis' = '2000'")).collect()
    assert found.column("n").to_pylist() == [2, 3]
    for wrong in ("", ", 'scan.startup.timestamp-millis' = '-1'"):
        with pytest.raises(SqlError, match=r"needs 'scan\.startup\.timestamp-millis', ms since 1970"):
            App("part", broker=memory_url).sql(part.format(wrong))


@pytest.mark.parametrize("format", ["json", "csv", "parquet"])
def test_a_timestamp_has_the_digits_of_its_declaration_whatever_the_file_has(tmp_path, format):
    path = tmp_path / f"times.{format}"
    texts = ["2024-01-01T00:00:01.123999", "1969-12-31T23:59:59.999500"]
    if format == "parquet":
        pq.write_table(pa.table({"ts": pa.array(texts).cast(pa.timestamp("us"))}), path)
    else:
        path.write_text(
            "ts\n" + "\n".join(texts) if format == "csv" else "\n".join(f'{{"ts": "{each}"}}' for each in texts)
        )
    app = App("times")
    app.sql(
        f"CREATE TABLE times (ts TIMESTAMP(3)) WITH ('connector' = 'files', 'path' = '{path}', 'format' = '{format}')"
    )
    found = app.sql("SELECT ts FROM times").collect()
    assert found.column("ts").to_pylist() == [
        datetime(2024, 1, 1, 0, 0, 1, 123000), datetime(1969, 12, 31, 23, 59, 59, 999000)
    ]  # fmt: skip


def test_a_password_in_an_address_is_not_shown():
    app = App("shown")
    app.sql(
        "CREATE TABLE c (id BIGINT) WITH ('connector' = 'jdbc', 'url' = 'postgresql://ada:planted@db/x', 'table-name' = 't')"
    )
    shown = app.sql("SHOW CREATE TABLE c")
    assert "planted" not in shown
    assert "'url' = 'postgresql://db/x'" in shown


def test_partitions_of_a_topic_are_warned_of(caplog):
    app = App("partitions")
    app.sql(
        "CREATE TABLE p (id BIGINT, d STRING) PARTITIONED BY (d) WITH ('connector' = 'kafka', 'topic' = 'p', 'format' = 'json')"
    )
    assert "table p: PARTITIONED BY has no effect" in caplog.text
    caplog.clear()
    app.sql(
        "CREATE TABLE f (id BIGINT, d STRING) PARTITIONED BY (d) WITH ('connector' = 'files', 'path' = 'f', 'format' = 'parquet')"
    )
    assert caplog.text == ""


@pytest.mark.parametrize("format", ["parquet", "csv", "json"])
async def test_a_partitioned_table_of_files_is_read_back(app, format):
    lake = f"""
        CREATE TABLE lake (id BIGINT, day DATE, code STRING) PARTITIONED BY (day, code)
            WITH ('connector' = 'filesystem', 'path' = 'lake/', 'format' = '{format}');
    """
    app.sql(lake + "INSERT INTO lake VALUES (1, DATE '2026-11-22', '007'), (2, CAST(NULL AS DATE), 'x')")
    await app.run()
    later = App("later")
    later.sql(lake)
    rows = later.sql("SELECT day, id, code FROM lake").collect().to_pylist()
    assert sorted(rows, key=lambda row: row["id"]) == [
        {"day": date(2026, 11, 22), "id": 1, "code": "007"},
        {"day": None, "id": 2, "code": "x"},
    ]


PARTED = """
    CREATE TABLE lake (id BIGINT, day DATE, code STRING) PARTITIONED BY (day, code)
        WITH ('connector' = 'filesystem', 'path' = 'lake', 'format' = 'json');
"""


async def test_an_insert_may_name_the_partition_of_its_rows(app, tmp_path):
    for insert in (
        "PARTITION (day = '2024-5-17', code = 'a') VALUES (1), (2)",
        "PARTITION (code = 'b') SELECT 3, DATE '2024-05-18'",
        "PARTITION (Code = 'c') (day, id) SELECT DATE '2024-05-19', 4",
    ):
        app = App("parted")
        app.sql(PARTED + f"INSERT INTO lake {insert}")
        await app.run()
    found = {
        str(each.parent.relative_to(tmp_path / "lake")): each.read_text()
        for each in (tmp_path / "lake").rglob("part-*")
    }
    assert found == {
        "day=2024-05-17/code=a": '{"id":1}\n{"id":2}\n',
        "day=2024-05-18/code=b": '{"id":3}\n',
        "day=2024-05-19/code=c": '{"id":4}\n',
    }


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
async def test_several_statements_write_one_table_of_files(app, tmp_path, delivery):
    """The start was refused, with a hint for programs in Python: two sinks write the same file."""
    app.sql(
        "SET 'sabot.state' = 'kept';"
        + PARTED.replace("'json'", f"'json', 'sink.delivery-guarantee' = '{delivery}'")
        + """
        EXECUTE STATEMENT SET BEGIN
            INSERT INTO lake PARTITION (day = '2024-05-17', code = 'a') VALUES (1), (2);
            INSERT INTO lake PARTITION (day = '2024-05-17', code = 'b') VALUES (3);
        END;
        INSERT INTO lake VALUES (4, DATE '2024-05-17', 'a');
        """
    )
    await app.run()
    rows = {each.name: [] for each in (tmp_path / "lake/day=2024-05-17").iterdir()}
    for each in (tmp_path / "lake").rglob("part-*"):
        rows[each.parent.name] += [json.loads(line)["id"] for line in each.read_text().splitlines()]
    assert {name: sorted(ids) for name, ids in rows.items()} == {"code=a": [1, 2, 4], "code=b": [3]}


@pytest.mark.parametrize(
    ("insert", "message", "hint"),
    [
        ("PARTITION (id = 1) SELECT DATE '2024-05-17', 'a'", "table lake is not PARTITIONED BY id", "there are day, code"),
        ("PARTITION (code = 'a', code = 'b') SELECT 1", "code has two values", "name it once"),
        ("PARTITION (code = 'a') (id, code) SELECT 1, 'b'", "code has two values", "name it once"),
        ("PARTITION (day = 'x') SELECT 1, 'a'", "'x' is no DATE", "TRY_CAST"),
        ("PARTITION (code = id) SELECT 1, DATE '2024-05-17'", 'there is no column "id"', ""),
        ("PARTITION (code) SELECT 1, DATE '2024-05-17', 'a'", "expected = behind the column of PARTITION", "come from the query"),
        ("PARTITION (code = 'a') SELECT 1", "table lake has 3 columns, and the query 2", "lake(id, day, code)"),
    ],
)  # fmt: skip
def test_a_partition_that_cannot_be_is_refused_with_the_way_out(app, insert, message, hint):
    with pytest.raises(SqlError) as caught:
        app.sql(PARTED + f"INSERT INTO lake {insert}")
    assert message in str(caught.value)
    assert hint in str(caught.value).split("hint: ")[1]


def test_the_one_catalog_and_database_are_shown(app):
    assert app.sql("SHOW CURRENT CATALOG").to_pydict() == {"current catalog name": ["default_catalog"]}
    assert app.sql("SHOW CURRENT DATABASE").to_pydict() == {"current database name": ["default_database"]}
    assert app.sql("SHOW CATALOGS").to_pydict() == {"catalog name": ["default_catalog"]}
    assert app.sql("SHOW DATABASES LIKE 'default%'").to_pydict() == {"database name": ["default_database"]}


async def test_a_script_writes_into_a_delta_table_with_its_partitions_and_new_columns(app):
    app.sql("""
        CREATE TABLE lake (carrier STRING, delay BIGINT) PARTITIONED BY (carrier)
            WITH ('connector' = 'delta', 'table-path' = 'lake');
        INSERT INTO lake SELECT carrier, delay FROM flights;
    """)
    await app.run()
    found = deltalake.DeltaTable("lake")
    assert found.metadata().partition_columns == ["carrier"]
    assert sorted(row["delay"] for row in found.to_pyarrow_table().to_pylist()) == [5, 20]
    later = App("later")
    later.sql(TABLES)
    later.sql("""
        CREATE TABLE lake (carrier STRING, minutes BIGINT) WITH ('connector' = 'delta', 'path' = 'lake', 'evolve' = 'true');
        INSERT INTO lake SELECT carrier, minutes FROM flights;
    """)
    await later.run()
    rows = polars.read_delta("lake").sort("delay", "minutes").rows()
    assert rows == [("AA", None, 300), ("UA", None, 1200), ("AA", 5, None), ("UA", 20, None)]


async def test_a_script_writes_into_an_iceberg_table_with_its_partitions_and_new_columns(app, tmp_path):
    lake = lake_of(tmp_path)
    catalog = f"""'connector' = 'iceberg', 'catalog-name' = 'default', 'catalog-type' = 'jdbc', 'uri' = 'jdbc:{lake["uri"]}',
        'warehouse' = '{lake["warehouse"]}', 'catalog-database' = 'db'"""
    app.sql(f"""
        CREATE TABLE lake (carrier STRING, delay BIGINT) PARTITIONED BY (carrier) WITH ({catalog});
        INSERT INTO lake SELECT carrier, delay FROM flights;
    """)
    await app.run()
    found = table_of(lake, "db.lake")
    assert [field.name for field in found.spec().fields] == ["carrier"]
    assert sorted(found.scan().to_arrow()["delay"].to_pylist()) == [5, 20]
    later = App("later")
    later.sql(TABLES)
    later.sql(f"""
        CREATE TABLE more (carrier STRING, minutes BIGINT) WITH ({catalog}, 'catalog-table' = 'lake', 'evolve' = 'true');
        INSERT INTO more SELECT carrier, minutes FROM flights;
    """)
    await later.run()
    rows = sorted((str(row["delay"]), row["minutes"]) for row in rows_in_lake(lake, "db.lake"))
    assert rows == [("20", None), ("5", None), ("None", 300), ("None", 1200)]


@pytest.mark.parametrize(
    ("options", "often"),
    [
        ("'connector' = 'delta', 'path' = 'lake'", ""),
        ("'connector' = 'delta', 'path' = 'lake', 'gather' = '10 min'", ", at most once in 600 s"),
        ("'connector' = 'iceberg', 'catalog-type' = 'rest', 'uri' = 'http://127.0.0.1:1'", ", at most once in 60 s"),
        ("'connector' = 'iceberg', 'catalog-type' = 'rest', 'uri' = 'http://127.0.0.1:1', 'gather' = '0 s'", ""),
    ],
)
def test_a_table_of_a_lake_gathers_commits_as_its_option_says(app, tmp_path, options, often):
    app.configure(state=str(tmp_path / "state"))
    app.sql(f"CREATE TABLE lake (delay BIGINT) WITH ({options}); INSERT INTO lake SELECT delay FROM flights")
    edges = guarantees_of(app.plan(), app.spec.ends, app.settings)
    (said,) = [each.guarantee for each in edges if each.way == "out" and "lake" in each.name]
    assert said == f"exactly once: it stores the number of the last part in one step with the rows{often}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("'catalog-type' = 'rest', 'write.upsert.enabled' = 'true'", "rows of a table of Iceberg are not replaced"),
        ("'catalog-type' = 'rest', 'gather' = 'soon'", "'soon' is no duration"),
        ("'catalog-type' = 'hadoop'", "'catalog-type' cannot be 'hadoop'"),
        ("'catalog-database' = 'db'", "needs the option 'catalog-type'"),
        ("'catalog-type' = 'rest', 'warehose' = 'lake'", "there is no option 'warehose'"),
    ],
)
def test_options_of_an_iceberg_table_that_cannot_be_are_refused(app, options, said):
    with pytest.raises(SqlError, match=said):
        app.sql(f"CREATE TABLE lake (delay BIGINT) WITH ('connector' = 'iceberg', {options})")


@pytest.mark.parametrize(
    ("without", "columns", "watermark", "key"),
    [
        ("", ["carrier", "delay", "ts", "minutes", "clock"], "ts - 5000 ms", ""),
        ("(EXCLUDING GENERATED)", ["carrier", "delay", "ts"], "ts - 5000 ms", ""),
        ("(EXCLUDING WATERMARKS)", ["carrier", "delay", "ts", "minutes", "clock"], "", ""),
        ("(EXCLUDING ALL INCLUDING GENERATED)", ["carrier", "delay", "ts", "minutes", "clock"], "", ""),
    ],
)
def test_like_leaves_out_what_it_excludes(app, without, columns, watermark, key):
    app.sql(
        f"CREATE TABLE other WITH ('connector' = 'files', 'path' = 'o.csv', 'format' = 'csv') LIKE flights {without}"
    )
    rows = {row["name"]: row for row in app.sql("DESCRIBE other").to_pylist()}
    assert list(rows) == columns
    assert rows["ts"]["watermark"] == watermark


def test_like_without_options_needs_a_connector_and_without_constraints_has_no_key(app):
    with pytest.raises(SqlError, match="table other has no connector"):
        app.sql("CREATE TABLE other LIKE totals (EXCLUDING OPTIONS)")
    app.sql("CREATE TABLE other LIKE totals (INCLUDING ALL EXCLUDING CONSTRAINTS OVERWRITING OPTIONS)")
    assert app.sql("DESCRIBE other")["key"].to_pylist() == ["", ""]
    with pytest.raises(
        SqlError, match="expected CONSTRAINTS, GENERATED, METADATA, OPTIONS, PARTITIONS, WATERMARKS or ALL"
    ):
        app.sql("CREATE TABLE third LIKE totals (EXCLUDING KEYS)")


async def test_a_table_is_read_with_the_options_of_a_hint(app, tmp_path):
    (tmp_path / "other.csv").write_text("carrier,delay,ts\nBA,1,2024-01-01T00:00:01\n")
    app.sql("CREATE TABLE out (a STRING) WITH ('connector' = 'files', 'path' = 'out.json')")
    app.sql("""
        INSERT INTO out
        SELECT carrier FROM flights UNION ALL SELECT carrier FROM flights /*+ OPTIONS('path' = 'other.csv') */ AS o
        UNION ALL SELECT carrier FROM default_catalog.default_database.flights /*+ OPTIONS('path' = 'other.csv') */
    """)
    await app.run()
    assert sorted((tmp_path / "out.json").read_text().split()) == [f'{{"a":"{x}"}}' for x in ("AA", "BA", "BA", "UA")]
    with pytest.raises(SqlError, match="late is a view or a stream, which has no options"):
        app.sql("SELECT carrier FROM late /*+ OPTIONS('path' = 'other.csv') */")
    with pytest.raises(SqlError, match="x is a query of WITH, which has no options"):
        app.sql("WITH x AS (SELECT 1 AS a) SELECT a FROM x /*+ OPTIONS('path' = 'other.csv') */")
    with pytest.raises(SqlError, match="'paht'"):
        app.sql("SELECT carrier FROM flights /*+ OPTIONS('paht' = 'other.csv') */")


def test_the_names_of_the_one_catalog_and_database_may_be_written(app):
    app.sql("USE CATALOG default_catalog; USE default_database; USE `default_catalog`.default_database;")
    app.sql("CREATE VIEW default_catalog.default_database.v AS SELECT carrier FROM default_database.flights")
    assert app.sql("DESCRIBE v")["name"].to_pylist() == ["carrier"]
    assert app.sql("SELECT v.carrier FROM default_catalog.default_database.v").schema.names == ["carrier"]
    with pytest.raises(SqlError, match="there are no catalogs and databases"):
        app.sql("SELECT carrier FROM hive.flights")


async def test_a_set_of_statements_may_begin_with_begin(app, tmp_path):
    app.sql("""
        CREATE TABLE one (a STRING) WITH ('connector' = 'files', 'path' = 'one.json');
        CREATE TABLE two (a STRING) WITH ('connector' = 'files', 'path' = 'two.json');
        BEGIN STATEMENT SET;
        INSERT INTO one SELECT carrier FROM flights;
        INSERT INTO two SELECT 'x' || carrier FROM flights;
        END;
    """)
    await app.run()
    assert (tmp_path / "one.json").read_text().split() == ['{"a":"UA"}', '{"a":"AA"}']
    assert (tmp_path / "two.json").read_text().split() == ['{"a":"xUA"}', '{"a":"xAA"}']


def test_hints_that_choose_a_join_of_flink_have_no_effect(app, caplog):
    query = "SELECT /*+ BROADCAST(l), STATE_TTL('f' = '1d') */ f.carrier FROM flights f JOIN late l ON f.carrier = l.carrier"
    assert app.sql(query).schema.names == ["carrier"]
    assert "the hint BROADCAST has no effect: it chooses how Flink joins" in caplog.messages


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("a%", ["a", "ab", "a.c", "a\nb"]),
        ("a_", ["ab"]),
        ("(a|x)(b|y)?", ["a", "ab", "xy"]),
        ("[a-c]{1,2}", ["a", "ab"]),
        ("a.c", ["a.c"]),
        ("a!%", []),
        ("[^a-w]y", ["xy"]),
        ("", [""]),
    ],
)
def test_similar_to_matches_the_whole_text(pattern, matches):
    app = App("similar")
    texts = ["a", "ab", "a.c", "xy", "a\nb", "", None]
    rows = app.stream([{"t": each} for each in texts], schema={"t": str})
    escape = " ESCAPE '!'" if "!" in pattern else ""
    found = app.sql(f"SELECT t FROM r WHERE t SIMILAR TO '{pattern}'{escape}", r=rows)
    others = app.sql(f"SELECT t FROM r WHERE t NOT SIMILAR TO '{pattern}'{escape}", r=rows)
    assert [row["t"] for row in found.collect().to_pylist()] == matches
    assert [row["t"] for row in others.collect().to_pylist()] == [
        t for t in texts if t is not None and t not in matches
    ]


CLOCKED = """
CREATE TABLE made (
    id INT, seen AS CURRENT_TIMESTAMP, day AS CAST(LOCALTIMESTAMP AS DATE), chance AS CAST(RAND() * 2 AS INT),
    WATERMARK FOR seen AS seen - INTERVAL '5' SECONDS, PRIMARY KEY (id)
) WITH ('connector' = 'faker', 'number-of-rows' = '3', 'fields.id.expression' = '#{number.numberBetween ''1'',''9''}',
        'fields.day.expression' = '#{date.past ''1'',''DAYS''}');
"""


def test_computed_columns_have_the_clock_and_chance_of_the_moment_at_which_a_row_is_read(caplog):
    app = App("clocked")
    app.sql(CLOCKED)
    rows = app.sql("SELECT * FROM made").collect()
    assert rows.schema.names == ["id", "seen", "day", "chance"]
    assert [str(each) for each in rows.schema.types] == ["int32", "timestamp[ms, tz=UTC]", "date32[day]", "int32"]
    assert {row["seen"].date() - row["day"] for row in rows.to_pylist()} <= {timedelta(0), timedelta(1)}
    assert {row["chance"] for row in rows.to_pylist()} <= {0, 1}
    assert "seen is the clock of the moment at which a row is read" in caplog.text
    assert "'fields.day.expression' has no effect: the column is computed" in caplog.text
    window = "TABLE(TUMBLE(TABLE made, DESCRIPTOR(seen), INTERVAL '1' DAY))"
    found = app.sql(f"SELECT SUM(n) AS n FROM (SELECT COUNT(*) AS n FROM {window} GROUP BY window_start, window_end)")
    assert found.collect().to_pylist() == [{"n": 3}]


def test_flinks_client_sets_options_without_quotes(app, caplog):
    app.sql("SET parallelism.default=2; SET execution.type = batch; SET table.local-time-zone=UTC")
    assert app.sql("SET").to_pydict() == {
        "key": ["execution.type", "parallelism.default", "table.local-time-zone"],
        "value": ["batch", "2", "UTC"],
    }
    assert "execution.type" in caplog.text


def test_an_insert_narrows_integers_and_refuses_a_number_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = App("narrow")
    app.sql("CREATE TABLE o (n INT) WITH ('connector' = 'files', 'path' = 'o.ndjson')")
    app.sql("INSERT INTO o SELECT SUM(n) FROM (VALUES (1, 2), (1, 3)) AS v (k, n) GROUP BY k")
    asyncio.run(app.run())
    assert (tmp_path / "o.ndjson").read_text() == '{"n":5}\n'


LOOKED_UP = """
CREATE TABLE orders (id INT, rate STRING, p AS PROCTIME()) WITH ('connector' = 'files', 'path' = 'o.csv', 'format' = 'csv');
CREATE TABLE rates (rate STRING, x INT, q AS PROCTIME()) WITH ('connector' = 'files', 'path' = 'r.csv', 'format' = 'csv');
"""


@pytest.mark.parametrize("point", ["o.p", "PROCTIME()", "q"])
def test_a_lookup_takes_any_form_of_the_time_of_processing(point, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o.csv").write_text("id,rate\n1,a\n")
    (tmp_path / "r.csv").write_text("rate,x\na,7\n")
    app = App("looked")
    app.sql(LOOKED_UP)
    text = f"SELECT o.id, r.x, p IS NOT NULL AS seen FROM orders o LEFT JOIN rates FOR SYSTEM_TIME AS OF {point} AS r ON o.rate = r.rate"
    assert [(row["id"], row["seen"]) for row in app.sql(text).collect().to_pylist()] == [(1, True)]


def test_show_takes_a_pattern_of_names():
    app = App("shown")
    app.sql(
        "CREATE TABLE ab (x INT, xy INT, z INT) WITH ('connector' = 'blackhole'); CREATE TABLE b (x INT) WITH ('connector' = 'print')"
    )
    assert app.sql("SHOW TABLES LIKE 'a%'")["table name"].to_pylist() == ["ab"]
    assert app.sql("SHOW TABLES NOT LIKE 'a_'")["table name"].to_pylist() == ["b"]
    assert app.sql("SHOW COLUMNS FROM ab LIKE 'x%'")["name"].to_pylist() == ["x", "xy"]
    with pytest.raises(SqlError, match="expected the pattern of names, such as 'a%'"):
        app.sql("SHOW TABLES LIKE a")
