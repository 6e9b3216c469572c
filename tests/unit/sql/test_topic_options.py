"""The options of Flink's tables on topics: where reading begins and ends, silent partitions, and the Kafka client."""

import logging

import pytest

from sabot import App
from sabot.api.nodes.read import Read
from sabot.connectors.memory import MemoryBroker
from sabot.sql.syntax.text import SqlError
from tools.agent_tools import publish, records


@pytest.fixture
def app(memory_url: str) -> App:
    return App("rides", memory_url)


def table(
    *options: str, name: str = "rides", columns: str = "id BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts"
) -> str:
    given = ["'connector' = 'kafka'", f"'topic' = '{name}'", "'format' = 'json'", *options]
    return f"CREATE TABLE {name} ({columns}) WITH ({', '.join(given)});"


def read_of(app: App, text: str) -> Read:
    app.sql(text + "SELECT * FROM rides")
    return app.begun_streams[-1]


def refused(app: App, text: str) -> str:
    with pytest.raises(SqlError) as caught:
        app.sql(text)
    return str(caught.value)


def test_a_table_begins_and_ends_at_offsets_of_each_partition(app):
    for number in range(6):
        publish(app, "rides", [{"id": number}])
    offsets = "'scan.{0}.mode' = 'specific-offsets', 'scan.{0}.specific-offsets' = 'partition:0,offset:{1}'"
    found = app.sql(
        table(offsets.format("startup", 1), offsets.format("bounded", 4), columns="id BIGINT") + "SELECT id FROM rides"
    ).collect()
    assert found["id"].to_pylist() == [1, 2, 3]
    node = read_of(
        App("more"),
        table(
            "'scan.startup.mode' = 'specific-offsets', 'scan.startup.specific-offsets' = 'partition:1,offset:300; partition:0,offset:42'"
        ),
    )
    assert node.start == {0: 42, 1: 300}


@pytest.mark.parametrize("offsets", ["", "0:42", "partition:0,offset:-1", "partition:0,offset:1;partition:0,offset:2"])
def test_offsets_in_another_form_are_refused(app, offsets):
    given = f", 'scan.startup.specific-offsets' = '{offsets}'" if offsets else ""
    said = refused(app, table("'scan.startup.mode' = 'specific-offsets'" + given))
    assert (
        "'scan.startup.mode' = 'specific-offsets' needs 'scan.startup.specific-offsets', an offset of each partition"
        in said
    )
    assert "hint: 'scan.startup.specific-offsets' = 'partition:0,offset:42;partition:1,offset:300'" in said


def test_reading_does_not_end_at_the_offsets_of_a_group(app):
    said = refused(app, table("'scan.bounded.mode' = 'group-offsets'"))
    assert "reading cannot end at the offsets of a group" in said
    assert "'specific-offsets' with these offsets in 'scan.bounded.specific-offsets'" in said


def test_a_silent_partition_is_idle_after_the_time_that_the_table_or_the_session_says(app):
    assert read_of(app, table()).idle_ms == 30_000
    assert read_of(App("one"), table("'scan.watermark.idle-timeout' = '5 s'")).idle_ms == 5_000
    of_session = "SET 'table.exec.source.idle-timeout' = '2 min';"
    assert read_of(App("two"), of_session + table()).idle_ms == 120_000
    assert read_of(App("three"), of_session + table("'scan.watermark.idle-timeout' = '5000'")).idle_ms == 5_000
    assert read_of(App("four"), of_session + "RESET 'table.exec.source.idle-timeout';" + table()).idle_ms == 30_000
    never = read_of(App("five"), "SET 'table.exec.source.idle-timeout' = '0 ms';" + table())
    assert never.idle_ms > 50 * 365 * 86_400_000, "0 is for ever, as in Flink"
    computed = table(columns="s BIGINT, ts AS TO_TIMESTAMP_LTZ(s, 0), WATERMARK FOR ts AS ts")
    assert read_of(App("six"), of_session + computed).idle_ms == 120_000
    changes = (
        "CREATE TABLE rides (id BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts, PRIMARY KEY (id) NOT ENFORCED) WITH "
    )
    changes += "('connector' = 'upsert-kafka', 'topic' = 'rides', 'key.format' = 'json', 'value.format' = 'json');"
    assert read_of(App("seven"), of_session + changes).idle_ms == 120_000


def test_the_idle_time_of_a_session_does_not_touch_files_whose_times_are_computed(app, tmp_path):
    (tmp_path / "rides.json").write_text('{"s":0}\n')
    app.sql(f"""
        SET 'table.exec.source.idle-timeout' = '1 s';
        CREATE TABLE rides (s BIGINT, ts AS TO_TIMESTAMP_LTZ(s, 0), WATERMARK FOR ts AS ts)
            WITH ('connector' = 'filesystem', 'path' = '{tmp_path}/rides.json', 'format' = 'json')""")
    assert app.sql("SELECT s FROM rides").collect().num_rows == 1


def test_partitions_of_a_table_wait_for_each_other(app, caplog):
    drift = "'scan.watermark.alignment.group' = 'g', 'scan.watermark.alignment.max-drift' = '20 s'"
    with caplog.at_level(logging.WARNING):
        node = read_of(app, table(drift, "'scan.watermark.alignment.update-interval' = '1 s'"))
    assert node.max_drift_ms == 20_000
    assert "is about the partitions of this table, and not about other tables of the group" in caplog.text
    assert "the option 'scan.watermark.alignment.update-interval' has no effect" in caplog.text
    assert "'scan.watermark.alignment.group' needs the option 'scan.watermark.alignment.max-drift'" in refused(
        app, table(drift.split(", ")[0], name="b")
    )
    upserts = "CREATE TABLE c (id BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts, PRIMARY KEY (id) NOT ENFORCED) WITH "
    upserts += f"('connector' = 'upsert-kafka', 'topic' = 'c', 'key.format' = 'json', 'value.format' = 'json', {drift})"
    assert "the partitions of table c cannot wait for each other" in refused(app, upserts)


def test_options_of_event_time_need_a_watermark(app):
    said = refused(app, table("'scan.watermark.idle-timeout' = '5 s'", columns="id BIGINT"))
    assert "table rides has no event time" in said
    assert "hint: WATERMARK FOR" in said
    assert "'soon' is no duration" in refused(app, table("'scan.watermark.idle-timeout' = 'soon'"))
    assert "'soon' is no duration" in refused(app, "SET 'table.exec.source.idle-timeout' = 'soon'")


def test_the_time_between_looks_for_new_partitions_is_that_of_the_table(app):
    node = read_of(app, table("'scan.topic-partition-discovery.interval' = '10 s'"))
    assert node.source.broker == app.broker
    kafka = table(
        "'properties.bootstrap.servers' = 'localhost:9092'", "'scan.topic-partition-discovery.interval' = '{}'"
    )
    for text, seconds in (("10 s", 10.0), ("0", 36_500 * 86_400.0)):
        assert read_of(App(text), kafka.format(text)).source.source._check_seconds == seconds
    assert (
        read_of(
            App("by itself"), kafka.replace(", 'scan.topic-partition-discovery.interval' = '{}'", "")
        ).source.source._check_seconds
        == 30
    )


GROUP = "'properties.group.id' = 'g'"


def test_a_table_with_a_group_begins_at_its_offsets_as_in_flink(app, caplog):
    """It was read from its first record again, though Flink's default is 'group-offsets'."""
    assert read_of(app, table(GROUP)).start == "committed"
    assert read_of(App("two"), table(GROUP, "'scan.startup.mode' = 'earliest-offset'")).start == "earliest"
    assert read_of(App("three"), table()).start is None
    with caplog.at_level(logging.WARNING):
        assert read_of(App("four"), table(GROUP, "'properties.auto.offset.reset' = 'earliest'")).start == "committed"
        assert caplog.text == ""
        latest = table(GROUP, "'scan.startup.mode' = 'latest-offset'", "'properties.auto.offset.reset' = 'earliest'")
        assert read_of(App("five"), latest).start == "latest"
    assert "'properties.auto.offset.reset' has no effect, since 'scan.startup.mode' comes first" in caplog.text


def test_another_place_for_partitions_without_an_offset_is_refused(app):
    said = refused(app, table(GROUP, "'properties.auto.offset.reset' = 'latest'"))
    assert "a partition without an offset of the group is read from its first record" in said
    assert "'scan.startup.mode' = 'latest-offset' for all partitions" in said


def test_changes_of_a_table_are_read_from_the_first_one(app):
    """'latest-offset' was ignored for them."""
    for connector, format in (
        ("kafka", "'format' = 'debezium-json'"),
        ("upsert-kafka", "'key.format' = 'json', 'value.format' = 'json'"),
    ):
        text = f"CREATE TABLE t (id BIGINT, PRIMARY KEY (id) NOT ENFORCED) WITH ('connector' = '{connector}', 'topic' = 't', {format}"
        said = refused(app, f"{text}, 'scan.startup.mode' = 'latest-offset')")
        assert "table t is read from its first record" in said
        assert "'earliest-offset'" in said
    publish(app, "t", [{"id": 1}])
    rows = app.sql(
        f"{text}, 'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset'); SELECT id FROM t"
    )
    assert rows.materialize().collect().to_pylist() == [{"id": 1}]


def test_settings_that_the_engine_needs_itself_are_refused_where_the_table_is_declared(app):
    said = refused(app, table("'properties.enable.auto.commit' = 'true'"))
    assert "table rides: enable.auto.commit='true' is not for users to set" in said


LOGIN = """org.apache.kafka.common.security.{0} required username="ada" password="it's a \\"secret\\"";"""
PLAIN, SCRAM = LOGIN.format("plain.PlainLoginModule"), LOGIN.format("scram.ScramLoginModule")


def logged_in(login: str, mechanism: str = "PLAIN", protocol: str = "SASL_SSL") -> str:
    quoted = login.replace("'", "''")
    names = {"security.protocol": protocol, "sasl.mechanism": mechanism, "bootstrap.servers": "localhost:9092"}
    given = [f"'properties.{name}' = '{value}'" for name, value in names.items() if value]
    return table(*given, f"'properties.sasl.jaas.config' = '{quoted}'", columns="id BIGINT")


@pytest.mark.parametrize(
    ("login", "mechanism"),
    [
        (PLAIN, "PLAIN"),
        (SCRAM, "SCRAM-SHA-256"),
        (SCRAM, "SCRAM-SHA-512"),
        (PLAIN.replace("org.apache", "org.apache.flink.kafka.shaded.org.apache"), "PLAIN"),
        (PLAIN.replace("required ", "required\n  ").rstrip(";"), "plain"),
    ],
)
def test_the_login_of_a_table_of_flink_is_that_of_the_client(app, login, mechanism):
    """It was taken where the table was declared, and refused by the client at the start."""
    settings = read_of(app, logged_in(login, mechanism)).source.source._kafka
    assert settings["sasl.username"] == "ada"
    assert settings["sasl.password"] == 'it\'s a "secret"'
    assert "sasl.jaas.config" not in settings
    assert "secret" not in app.sql("SHOW CREATE TABLE rides")


def test_a_login_as_it_stands_in_texts_for_java_is_taken_too(app):
    login = (
        r"org.apache.kafka.common.security.plain.PlainLoginModule required username=\"ada\" password=\"hidden word\";"
    )
    assert read_of(app, logged_in(login)).source.source._kafka["sasl.password"] == "hidden word"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (logged_in(PLAIN, "SCRAM-SHA-256"), "a login by PlainLoginModule, and 'properties.sasl.mechanism' = 'SCRAM-SHA-256'",
         "'properties.sasl.mechanism' = 'PLAIN'"),
        (logged_in(SCRAM, ""), "a login by ScramLoginModule, and no 'properties.sasl.mechanism'", "'SCRAM-SHA-256' or"),
        (logged_in(PLAIN, protocol=""), "table rides has a login that its connection does not use", "'SASL_SSL'"),
        (logged_in(PLAIN, protocol="SSL"), "table rides has a login that its connection does not use", "'SASL_SSL'"),
        (logged_in("a.PlainLoginModule required;"), "of PlainLoginModule has no username and password", "sasl.username"),
        (logged_in("ada:hunter2"), "'properties.sasl.jaas.config' in this form is not there", "'properties.sasl.password' for PLAIN"),
        (logged_in("a.b.OAuthBearerLoginModule required clientId=\"x\";"), "the login by OAuthBearerLoginModule is not there", "'oidc'"),
        (logged_in("com.sun.security.auth.module.Krb5LoginModule required useKeyTab=true;"), "the login by Krb5LoginModule is not there",
         "'properties.sasl.kerberos.principal'"),
        (table("'properties.ssl.truststore.location' = '/etc/trust.jks'"), "ssl.truststore.location is a setting of the Java client",
         "ssl.ca.location, a file with certificates in PEM"),
        (table("'properties.max.poll.records' = '500'"), "max.poll.records is a setting of the Java client", "leave it out"),
    ],
)  # fmt: skip
def test_a_login_that_cannot_be_is_refused_where_the_table_is_declared(app, text, message, hint):
    said = refused(app, text)
    assert message in said
    assert hint in said.split("hint: ")[1]
    assert '"secret' not in said.replace("\\", "")


META = "`partition` BIGINT METADATA VIRTUAL, at TIMESTAMP(3) METADATA FROM 'timestamp', k BYTES METADATA FROM 'key'"


def test_columns_of_metadata_have_the_types_that_they_declare(app):
    """A BIGINT was an INT, and a TIMESTAMP(3) a TIMESTAMP_LTZ(3), whatever the table declared."""
    publish(app, "rides", [{"id": 1}, {"id": 2}], key="k")
    columns = f"id BIGINT, {META}, unit STRING METADATA FROM 'headers.unit', WATERMARK FOR at AS at"
    text = "SET 'table.local-time-zone' = 'Asia/Tokyo';" + table(
        "'scan.bounded.mode' = 'latest-offset'", columns=columns
    )
    found = app.sql(text + "SELECT * FROM rides").collect()
    types = {name: str(found.schema.field(name).type) for name in found.schema.names}
    assert types == {"id": "int64", "partition": "int64", "at": "timestamp[ms]", "k": "binary", "unit": "string"}
    assert found["k"].to_pylist() == [b"k", b"k"]
    assert found["unit"].to_pylist() == [None, None]
    windows = "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(TABLE rides, DESCRIPTOR(at), INTERVAL '30' DAY)) GROUP BY window_start, window_end"
    assert sum(app.sql(windows).collect()["n"].to_pylist()) == 2
    (utc,) = (
        App("utc", app.broker)
        .sql(table("'scan.bounded.mode' = 'latest-offset'", columns=columns) + "SELECT at FROM rides LIMIT 1")
        .collect()["at"]
        .to_pylist()
    )
    assert (found["at"][0].as_py() - utc).total_seconds() == 9 * 3600, "the clock of the session, as CAST has it"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (table(columns="id BIGINT, t STRING METADATA FROM 'topic' VIRTUAL"), "there is no metadata 'topic'", "a table reads one topic"),
        (table(columns="id BIGINT, e INT METADATA FROM 'leader-epoch'"), "there is no metadata 'leader-epoch'", "leave the column out"),
        (table(columns="id BIGINT, m MAP<INT, STRING>"),
         "column m: names in JSON are texts, and the keys of this MAP are INT", "MAP<STRING"),
        (table(columns="id BIGINT, o STRING METADATA FROM 'offset'"), "the metadata 'offset' is BIGINT, and no STRING", "declare its type"),
        (table("'topic-pattern' = 'a.*'"), "a table reads one topic, and no pattern of topics", "UNION ALL"),
        (table().replace("'topic' = 'rides'", "'topic' = 'a;b'"), "a table reads one topic, and 'a;b' names several", "UNION ALL"),
        (table("'sink.partitioner' = 'fixed'"), "'sink.partitioner' = 'fixed': Kafka's partitioner places the rows", "'key.fields'"),
        (table("'json.encode.ignore-null-fields' = 'yes'"), "'json.encode.ignore-null-fields' cannot be 'yes'", "true, false"),
        (table("'json.encode.ignore-null-fields' = 'true'", columns="id BIGINT") + "INSERT INTO rides SELECT 1",
         "'json.encode.ignore-null-fields' = 'true' is not there: a field that is NULL is written as null", "with 'false'"),
        (table(columns="id BIGINT, p INT METADATA FROM 'partition'") + "INSERT INTO rides SELECT 1, 2",
         "table rides has 1 columns, and the query 2", "rides(id): METADATA is written too, but for 'partition', 'offset' and VIRTUAL"),
    ],
)  # fmt: skip
def test_what_tables_of_flink_have_and_these_have_not_is_refused_with_the_way_out(app, text, message, hint):
    said = refused(app, text)
    assert message in said
    assert hint in said.split("hint: ")[1]


def test_options_of_json_that_change_nothing_are_taken_or_said_to_have_no_effect(app, caplog):
    publish(app, "rides", [{"id": 1}])
    quiet = (
        "'json.encode.decimal-as-plain-number' = 'true'",
        "'json.encode.ignore-null-fields' = 'true'",
        "'sink.partitioner' = 'default'",
    )
    more = (
        "'json.map-null-key.mode' = 'DROP'",
        "'json.decode.json-parser.enabled' = 'false'",
        "'scan.bounded.mode' = 'latest-offset'",
    )
    with caplog.at_level(logging.WARNING):
        found = app.sql(
            table(*quiet, *more, "'sink.semantic' = 'at-least-once'", columns="id BIGINT") + "SELECT id FROM rides"
        ).collect()
    assert found["id"].to_pylist() == [1]
    assert [record.getMessage() for record in caplog.records] == [
        "table rides: the option 'json.map-null-key.mode' has no effect",
        "table rides: the option 'json.decode.json-parser.enabled' has no effect",
    ]


async def test_a_time_in_json_is_a_text_and_its_key_is_found_again(app, memory_url):
    """A TIME was refused in plain JSON. It has all of its digits in keys, payloads and rows within them, and a deletion finds its row."""
    broker = MemoryBroker.get(memory_url)
    for topic in ("shifts", "copies"):
        broker.create_topic(topic)
    for micros in (1, 2):
        at = f"09:05:00.00000{micros}"
        broker.publish("shifts", [{"at": at, "n": micros, "inner": {"ends": "17:00:00.25"}}], key=f'{{"at":"{at}"}}')
    broker.publish("shifts", [None], key='{"at":"09:05:00.000001"}')
    for name in ("shifts", "copies"):
        app.sql(
            f"CREATE TABLE {name} (at TIME(6), n BIGINT, inner ROW<ends TIME(3)>, PRIMARY KEY (at) NOT ENFORCED) WITH ('connector' = "
            f"'upsert-kafka', 'topic' = '{name}', 'key.format' = 'json', 'value.format' = 'json', 'scan.bounded.mode' = 'latest-offset')"
        )
    app.sql("INSERT INTO copies SELECT * FROM shifts")
    await app.run()
    last = {record.key: record.payload for record in records(app, "copies")}
    assert last[b'{"at":"09:05:00.000002"}'] == b'{"at":"09:05:00.000002","n":2,"inner":{"ends":"17:00:00.25"}}'
    assert last.get(b'{"at":"09:05:00.000001"}') is None


def test_bytes_in_json_are_said_to_be_no_base64(app, caplog):
    with caplog.at_level(logging.WARNING):
        app.sql(table(columns="id BIGINT, data BYTES"))
    assert "table rides: BYTES of column data are UTF-8 in JSON, and not base64 as in Flink" in caplog.text
