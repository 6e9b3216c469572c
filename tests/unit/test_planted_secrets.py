"""A password that is planted in each option and address, also in misspelt ones, comes out on none of the surfaces."""

import io
import logging
from collections.abc import Callable, Iterator

import pytest

from sabot import App, DeltaSink, SqlSink, UserError
from sabot.base.redaction import HIDDEN, holds_secret, keep_settings, redacted, scrubbed, shown_setting
from sabot.engine.runtime.watch.run_record import shown_settings
from sabot.errors import SabotError
from sabot.kafka import KafkaSink, KafkaSource
from sabot.kafka.registry import Registry
from sabot.mcp.config import McpServerSpec
from tools.secrets_planted import leaks, planted, printed

NAMES = [
    *("password", "pasword", "passwrd", "passwort", "passphrase", "secret", "secert", "token", "tokne", "credentials"),
    *(
        "credentails",
        "api-key",
        "api_key",
        "apikey",
        "apiky",
        "access_token",
        "authorization",
        "Authorisation",
        "cookie",
    ),
    *("sasl.password", "sasl.pasword", "sasl.jaas.config", "sasl.nobody.knows", "ssl.key.password", "ssl.kee.password"),
    *("ssl.keystore.pasword", "oauthbearer.client.secret", "basic.auth.user.info", "connection_string", "sslpassword"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SECERT_ACCES_KY", "sas_token", "sas", "pw", "pass", "creds", "signature"),
]
"""Names of secrets, as people write them."""

PLACES = [
    *("{}", "properties.{}", "sabot.kafka.{}", "storage.{}", "key.avro-confluent.{}", "avro-confluent.{}"),
    *("restart-strategy.{}", "cluster.{}"),
]
"""Where such a name stands among the options of a table, or of SET."""

ADDRESSES = [
    *("postgresql://ada:{}@db/x", "postgresql://db/x?password={}", "postgresql://db/x?pasword={}&sslmode=require"),
    *("postgresql://db/x?sslpassword={}", "jdbc:postgresql://ada:{}@db/x", "jdbc:postgresql://db/x?user=a&password={}"),
    *(
        "jdbc:sqlserver://db;user=ada;password={}",
        "jdbc:oracle:thin:ada/{}@//db:1521/x",
        "jdbc:mysql://db/x?pasword={}",
    ),
    *(
        "kafka://ada:{}@b:9092",
        "redis://:{}@cache:6379/0",
        "https://ada:{}@registry",
        "https://store/x?X-Amz-Signature={}",
    ),
    *(
        "https://store/x?X-Amz-Credential={}&X-Amz-Date=1",
        "az://box/x?sig={}",
        "s3://KEY:{}@bucket/x",
        "https://h/?token={}",
    ),
    *(
        "https://h/?access_token={}",
        "host=db user=ada password={}",
        "host=db pasword={}",
        "Server=db;Pwd={};Database=x",
    ),
    "Endpoint=sb://x/;SharedAccessKeyName=n;AccountKey={}",
]

HARMLESS = {
    **{
        "key.format": "json",
        "key.fields": "id",
        "value.fields-include": "ALL",
        "connector": "kafka",
        "topic": "passengers",
    },
    **{
        "properties.bootstrap.servers": "a:1",
        "properties.security.protocol": "SASL_SSL",
        "scan.startup.mode": "earliest",
    },
    **{"properties.ssl.ca.location": "/ca.pem", "properties.sasl.mechanism": "PLAIN", "path": "s3://bucket/section=1"},
    **{
        "max_tokens": 100,
        "secure": "true",
        "url": "jdbc:postgresql://db/x?sslmode=require",
        "table-name": "broken_tokens",
    },
    **{"password": "${env:PGPASSWORD}", "partition": "secretary=7"[:9], "properties.ssl.key.location": "/key"},
}


def answers(app: App, *statements: str) -> Iterator[str]:
    for each in statements:
        try:
            yield str(app.sql(each))
        except SabotError as error:
            yield printed(error)


def of_a_table(name: str, value: str, url: str = "u") -> Iterator[str]:
    """What SQL says about a table with this option, right, misspelt, and in a statement that is cut off or wrong."""
    option = f"'{name}' = '{value}'"
    connectors = (
        "'kafka', 'topic' = 't', 'format' = 'json'",
        f"'jdbc', 'table-name' = 't', 'url' = '{url}'",
        "'delta', 'path' = 'd'",
    )
    for connector in connectors:
        table = f"CREATE TABLE t (a INT) WITH ('connector' = {connector}, {option}"
        yield from answers(
            App("shop"),
            *(
                f"{table})",
                "SHOW CREATE TABLE t",
                "DESCRIBE t",
                "SHOW TABLES",
                "EXPLAIN SELECT * FROM t",
                "SELECT b FROM t",
            ),
            *(
                "INSERT INTO t SELECT 'x' AS a",
                "CREATE TABLE l WITH ('nothing' = 'x') LIKE t",
                table,
                table[:-1],
                f"{table}))",
            ),
            *(f"CREATE TABEL t (a INT) WITH ({option})", f"CREATE TABLE t (a INT) WITH\n({name}\n= '{value}', b)"),
            *(
                f"SELECT * FROM t /*+ OPTIONS({option}) */",
                f"CREATE MODEL m WITH ({option})",
                f"SHOW CREATE VIEW t WITH ({option})",
            ),
        )


def of_set(name: str, value: str) -> Iterator[str]:
    yield from answers(
        App("shop"), f"SET '{name}' = '{value}'", "SET", f"SET '{name}' = '{value}' x", f"RESET '{name}'"
    )


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    text, root = io.StringIO(), logging.getLogger("sabot")
    handler, level = logging.StreamHandler(text), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("name", NAMES)
def test_the_value_of_a_secret_option_is_hidden_also_of_a_misspelt_one(name: str) -> None:
    for place in PLACES:
        secret = planted("")
        assert (
            leaks(redacted({place.format(name): secret}), scrubbed(str(redacted({place.format(name): secret})))) == []
        )
    assert holds_secret("Authorization", b"Bearer x")
    assert not holds_secret("key", b"x")


@pytest.mark.one_in(18, "a hundredth of a second of a core each")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_no_statement_of_sql_shows_a_secret_option(name: str, place: str, log: io.StringIO) -> None:
    secret = planted("")
    assert leaks(*of_set(place.format(name), secret), log.getvalue()) == []
    if place in PLACES[:2]:
        assert leaks(*of_a_table(place.format(name), secret), log.getvalue()) == []


@pytest.mark.one_in(9, "a fifth of a second of a core each")
@pytest.mark.parametrize("address", ADDRESSES)
def test_no_surface_shows_the_secret_of_an_address(address: str, log: io.StringIO) -> None:
    url = address.format(planted(""))
    surfaces: list[Callable[[], object]] = [
        lambda: redacted({"url": url, "inner": {"path": url}}),
        lambda: shown_setting("url", url),
        lambda: SqlSink(url, "t").address,
        lambda: DeltaSink(url).name if "://" in url else "",  # else it is the path of a folder
        lambda: Registry(url).address,
        lambda: App("shop", url),
        lambda: KafkaSink("t", url),
        lambda: KafkaSource("t", url),
        lambda: shown_settings(App("shop", checkpoint_dir=url).settings),
        lambda: McpServerSpec(name="m", url=url).where,
        lambda: App("shop").stream("in").to(SqlSink(url, "t")),
    ]
    for name in ("url", "path", "topic", "urll", "table-name"):
        assert leaks(*of_a_table(name, url), *of_a_table("x", "y", url), *of_set("sabot.checkpoint_dir", url)) == []
    for surface in surfaces:
        try:
            said = repr(surface())
        except (SabotError, TypeError, AttributeError) as error:
            said = printed(error)
        assert leaks(said) == []
    assert leaks(log.getvalue()) == []


@pytest.mark.parametrize("name", NAMES)
def test_no_client_shows_a_secret_setting(name: str, log: io.StringIO) -> None:
    secret = planted("")
    surfaces: list[Callable[[], object]] = [
        lambda: KafkaSource("t", "kafka://b:9092", **{name: secret}),
        lambda: KafkaSink("t", "kafka://b:9092", **{name: secret}),
        lambda: App("shop", kafka={name: secret}).settings.kafka and None,
        lambda: DeltaSink("s3://bucket/x", storage_options={name: secret}).name,
        lambda: McpServerSpec(name="m", command=["x"], environment={name: secret}),
        lambda: App("shop", **{name.replace(".", "_").replace("-", "_"): secret}),
    ]
    for surface in surfaces:
        try:
            said = repr(surface())
        except (SabotError, TypeError, ValueError) as error:
            said = printed(error)
        assert leaks(said) == [], said
    keep_settings({name: secret})
    assert leaks(scrubbed(f"the driver said: {secret} is wrong")) == []
    assert leaks(log.getvalue()) == []


def test_what_is_no_secret_is_shown() -> None:
    assert redacted(HARMLESS) == HARMLESS


def test_show_create_keeps_the_statement_and_hides_the_password_of_an_address_of_jdbc() -> None:
    app = App("shop")
    app.sql(
        "CREATE TABLE t (a INT) WITH ('connector' = 'jdbc', 'url' = 'jdbc:postgresql://ada:planted@db/x', 'table-name' = 't')"
    )
    assert app.sql("SHOW CREATE TABLE t") == (
        "CREATE TABLE t (a INT) WITH ('connector' = 'jdbc', 'url' = 'jdbc:postgresql://db/x', 'table-name' = 't')"
    )


def test_set_hides_the_value_of_a_misspelt_option() -> None:
    app = App("shop")
    app.sql("SET 'sabot.kafka.sasl.pasword' = 'planted'")
    assert app.sql("SET").to_pylist() == [{"key": "sabot.kafka.sasl.pasword", "value": HIDDEN}]


def test_the_caret_of_an_error_stands_below_its_place_although_a_secret_was_cut_out_before_it() -> None:
    with pytest.raises(UserError) as error:
        App("shop").sql("CREATE TABLE t (a INT) WITH ('connector'='jdbc', 'password'='a long planted word', oops)")
    line, caret = str(error.value).split("\n")[1:3]
    assert "'password'='***', oops)" in line
    assert line[caret.index("^") : caret.rindex("^") + 1] == "oops"


def test_a_condition_of_a_view_is_no_option() -> None:
    app = App("shop")
    app.sql(
        "CREATE TABLE t (key STRING, secret STRING) WITH ('connector' = 'memory', 'topic' = 't', 'format' = 'json')"
    )
    app.sql("CREATE VIEW v AS SELECT * FROM t WHERE secret = 'a' AND key = 'b'")
    assert "secret = 'a' AND key = 'b'" in app.sql("SHOW CREATE VIEW v")
