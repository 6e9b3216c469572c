"""Made rows: 'connector' = 'datagen' and 'faker' of SQL, and the source below them."""

import re
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pyarrow as pa
import pytest

from sabot import App
from sabot.clock import ManualClock
from sabot.connectors.datagen import GeneratedSource
from sabot.connectors.datagen.kinds import random_field, sequence_field, time_column
from sabot.connectors.datagen.source import BLOCK
from sabot.sql.syntax.text import SqlError
from tools.agent_tools import bounded

SCHEMA = pa.schema([("id", pa.int64()), ("x", pa.float64()), ("t", pa.timestamp("ms"))])


def made(rows: int | None, clock: ManualClock, per_second: int = 1000) -> GeneratedSource:
    fields = {
        "id": sequence_field(pa.int64(), 1, 2**40),
        "x": random_field(pa.float64(), least=0, most=1),
        "t": lambda dice, rows, times: time_column(times, pa.timestamp("ms")),
    }
    return GeneratedSource("made", SCHEMA, fields, rows=rows, per_second=per_second, clock=clock)


def all_rows(source: GeneratedSource) -> pa.Table:
    batches = []
    while not source.exhausted:
        batch = source.read_batch(1000, 0)
        assert batch is not None
        batches.append(batch.taken())
    return pa.Table.from_batches(batches, SCHEMA)


def test_a_restart_makes_the_same_rows_again_from_its_position_on() -> None:
    clock, number = ManualClock(), 2 * BLOCK + 100
    source = made(number, clock)
    source.open(None)
    clock.advance(100)
    whole = all_rows(source)
    assert whole["id"].to_pylist() == list(range(1, number + 1))
    assert len(set(whole["x"].to_pylist())) == number
    assert whole["t"][1000].as_py() == datetime.fromtimestamp(1_700_000_001, UTC).replace(tzinfo=None)
    for at in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 99):
        again = made(number, clock)
        again.recall(source.remember())
        again.open({("made", 0): at})
        clock.advance(100)
        assert all_rows(again).equals(whole.slice(at))


def test_rows_come_at_their_rate() -> None:
    clock = ManualClock()
    source = made(None, clock, per_second=100)
    source.open(None)
    assert source.read_batch(1000, 0) is None  # they come in groups of a twentieth of a second
    clock.advance("1s")
    batch = source.read_batch(1000, 0)
    assert batch is not None
    assert batch.taken().num_rows == 101
    assert source.read_batch(1000, 0) is None
    assert not source.exhausted
    source.close()


def test_a_slow_table_gives_each_row_at_its_time() -> None:
    clock = ManualClock()
    source = made(None, clock, per_second=1)
    source.open(None)
    first = source.read_batch(1000, 0)
    assert first is not None
    assert first.taken()["id"].to_pylist() == [1]
    assert source.read_batch(1000, 0) is None
    clock.advance("2s")
    second = source.read_batch(1000, 0)
    assert second is not None
    assert second.taken()["id"].to_pylist() == [2, 3]
    source.close()


def table(connector: str, columns: str, *options: str) -> App:
    app = App("made")
    given = "".join(f", {each}" for each in options)
    app.sql(f"CREATE TABLE t ({columns}) WITH ('connector' = '{connector}', 'rows-per-second' = '1000000'{given})")
    return app


def values(connector: str, type: str, *options: str, rows: int = 300) -> list[object]:
    app = table(connector, f"a {type}", f"'number-of-rows' = '{rows}'", *options)
    return app.sql("SELECT a FROM t").collect()["a"].to_pylist()


def is_number(low: float, high: float) -> object:
    return lambda value: low <= value <= high


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("type", "options", "right"),
    [
        ("TINYINT", (), is_number(-128, 127)),
        ("INT", ("'fields.a.min' = '5'", "'fields.a.max' = '7'"), is_number(5, 7)),
        ("BIGINT", (), is_number(-(2**63), 2**63 - 1)),
        ("FLOAT", ("'fields.a.min' = '0.5'", "'fields.a.max' = '1'"), is_number(0.5, 1)),
        ("DOUBLE", ("'fields.a.max' = '-1'",), lambda x: x <= -1),
        ("DECIMAL(10, 2)", ("'fields.a.max' = '9.99'",), lambda x: Decimal(0) <= x <= Decimal("9.99") and x.as_tuple().exponent == -2),
        ("DECIMAL(38, 0)", (), is_number(0, 10**18)),
        ("BOOLEAN", (), lambda x: x in (True, False)),
        ("STRING", (), lambda x: re.fullmatch("[0-9a-f]{100}", x)),
        ("VARCHAR(7)", (), lambda x: re.fullmatch("[0-9a-f]{7}", x)),
        ("STRING", ("'fields.a.length' = '4'", "'fields.a.var-len' = 'true'"), lambda x: re.fullmatch("[0-9a-f]{1,4}", x)),
        ("BYTES", ("'fields.a.length' = '3'",), lambda x: len(x) == 3),
        ("DATE", (), lambda x: isinstance(x, date)),
        ("TIME", (), lambda x: isinstance(x, time)),
        ("TIMESTAMP(0)", ("'fields.a.max-past' = '1 d'",), lambda x: x.microsecond == 0),
        ("TIMESTAMP_LTZ(3)", (), lambda x: x.tzinfo is not None),
        ("ARRAY<INT>", ("'fields.a.element.max' = '9'", "'fields.a.length' = '2'"), lambda x: len(x) == 2 and max(x) <= 9),
        ("ROW<p INT, q STRING>", ("'fields.a.q.length' = '2'",), lambda x: list(x) == ["p", "q"] and len(x["q"]) == 2),
    ],
)  # fmt: skip
def test_random_values_are_within_their_bounds(type, options, right) -> None:
    found = values("datagen", type, *options)
    assert len(found) == 300
    assert all(right(each) for each in found)
    assert len({str(each) for each in found}) > 1 or type in ("DATE", "TIME", "TIMESTAMP_LTZ(3)")


@pytest.mark.parametrize("type", ["TINYINT", "BIGINT", "DOUBLE", "DECIMAL(5, 2)", "STRING"])
def test_a_sequence_ends_the_table(type) -> None:
    found = values("datagen", type, "'fields.a.kind' = 'sequence'", "'fields.a.start' = '-2'", "'fields.a.end' = '3'")
    assert [int(each) for each in found] == [-2, -1, 0, 1, 2, 3]


def test_a_part_of_the_values_is_null() -> None:
    found = values("datagen", "INT", "'fields.a.null-rate' = '0.25'", rows=4000)
    assert 900 < found.count(None) < 1100


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("#{number.numberBetween ''1'',''4''}", "[123]"),
        ("#{number.randomDouble ''2'',''1'',''2''}", r"[12](\.\d{1,2})?"),
        ("#{Number.random_digit}", r"\d"),
        ("#{Options.option ''a'',''b, c''}", "a|b, c"),
        ("#{Name.first_name}-#{name.lastName}", "[A-Z][a-z]+-[A-Z][a-z]+"),
        ("#{regexify ''(one|two|(three){2}){1,2}[x-z]?''}", "(one|two|threethree){1,2}[x-z]?"),
        (r"#{regexify ''\d{3}-[^a-z0-9]\w+''}", r"\d{3}-[^a-z0-9]\w{1,5}"),
        ("#{numerify ''A##?''}", r"A\d\d\?"),
        ("#{bothify ''##??''}", r"\d\d[a-z][a-z]"),
        ("#{Internet.emailAddress}", r"[a-z]+\.[a-z]+@[a-z.]+"),
        ("#{Internet.ipV4Address}", r"\d+\.\d+\.\d+\.\d+"),
        ("#{bool.bool}", "true|false"),
        ("#{date.past ''5'',''DAYS''}", r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"),
        ("#{Lorem.sentence}", r"[a-z]+( [a-z]+){5}\."),
        ("it is #{unknown.thing}", r"it is unknown\.thing \d+"),
        ("plain", "plain"),
    ],
)
def test_an_expression_gives_texts_of_its_kind(text, pattern) -> None:
    found = values("faker", "STRING", f"'fields.a.expression' = '{text}'")
    assert [each for each in found if not re.fullmatch(pattern, str(each))] == []


@pytest.mark.parametrize(
    ("type", "text", "kind"),
    [
        ("INT", "#{number.numberBetween ''1'',''4''}", int),
        ("SMALLINT", "1#{number.randomDigit}", int),
        ("DOUBLE", "#{number.randomDouble ''2'',''1'',''2''}", float),
        ("DECIMAL(5, 2)", "#{commerce.price ''1'',''9''}", Decimal),
        ("BOOLEAN", "#{bool.bool}", bool),
        ("TIMESTAMP(3)", "#{date.future ''5'',''1'',''MINUTES''}", datetime),
        ("TIMESTAMP_LTZ(6)", "#{date.past ''5'',''SECONDS''}", datetime),
        ("DATE", "#{date.birthday ''18'',''20''}", date),
        ("TIMESTAMP(0)", "#{date.between ''2024-01-01'',''2024-01-02''}", datetime),
    ],
)
def test_an_expression_has_the_type_of_its_column(type, text, kind) -> None:
    found = values("faker", type, f"'fields.a.expression' = '{text}'")
    assert {kind} == {each.__class__ for each in found}


def test_rows_and_arrays_have_expressions_of_their_own() -> None:
    found = values(
        "faker",
        "ROW<city STRING, codes ARRAY<STRING>>",
        "'fields.a.city.expression' = '#{Address.city}'",
        "'fields.a.codes.expression' = '#{numerify ''#''}'",
        "'fields.a.codes.length' = '2'",
        "'fields.a.null-rate' = '0.5'",
    )
    rows = [each for each in found if each is not None]
    assert 0 < len(rows) < 300
    assert all(re.fullmatch(r"\d\d", "".join(each["codes"])) and each["city"].isalpha() for each in rows)


@pytest.mark.parametrize(
    ("connector", "columns", "options", "message"),
    [
        ("datagen", "a INT", ("'fields.a.kind' = 'sequential'",), "'fields.a.kind' cannot be 'sequential'"),
        ("datagen", "a INT", ("'fields.a.kind' = 'sequence'",), "needs the option 'fields.a.start'"),
        ("datagen", "a TINYINT", ("'fields.a.max' = '300'",), "no values for column a TINYINT: there are no values from -128 to 300"),
        ("datagen", "a INT", ("'fields.b.max' = '3'",), "there is no option 'fields.b.max'"),
        ("datagen", "a INT", ("'number-of-rows' = '0'",), "'number-of-rows' is a whole number above 0"),
        ("datagen", "a INT", ("'fields.a.null-rate' = '2'",), "'fields.a.null-rate' is between 0 and 1"),
        ("datagen", "a DATE", ("'fields.a.kind' = 'sequence'", "'fields.a.start' = '1'", "'fields.a.end' = '2'"), "numbers or texts"),
        ("faker", "a INT", (), "needs the option 'fields.a.expression'"),
        ("faker", "a INT", ("'fields.a.expression' = '#{name.firstName}'",), "no values for column a INT: Failed to parse"),
        ("faker", "a STRING", ("'fields.a.expression' = '#{name'",), "has no closing brace"),
        ("faker", "a STRING", ("'fields.a.expression' = '#{regexify ''(a''}'",), "missing ), unterminated subpattern"),
        ("faker", "a STRING", ("'fields.a.expression' = '#{date.past ''5'',''WEEKS''}'",), "there is no unit 'WEEKS'"),
        ("faker", "a STRING", ("'fields.a.expression' = '#{number.numberBetween ''5''}'",), "does not take 1 arguments"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_when_the_table_is_declared(connector, columns, options, message) -> None:
    with pytest.raises(SqlError, match=re.escape(message)):
        table(connector, columns, *options)


@pytest.mark.slow  # half a second of a core
def test_long_values_are_made_few_at_a_time() -> None:
    fields = {"a": random_field(pa.string(), length=1_000_000)}
    schema = pa.schema([("a", pa.string())])
    source = GeneratedSource("long", schema, fields, rows=40, per_second=1, row_bytes=1_000_000)
    assert source.made(0).num_rows == 16
    app = table("datagen", "a STRING, b BYTES", "'number-of-rows' = '40'", "'fields.a.length' = '1000000'")
    assert app.sql("SELECT CHAR_LENGTH(a) AS n FROM t").collect()["n"].to_pylist() == [1_000_000] * 40


def test_a_time_of_the_past_has_a_unit() -> None:
    with pytest.raises(SqlError, match="'yesterday' is no duration"):
        table("datagen", "a TIMESTAMP(3)", "'fields.a.max-past' = 'yesterday'")


async def test_made_rows_are_windowed_by_their_own_time(tmp_path) -> None:
    app = table(
        "datagen",
        "id INT, t TIMESTAMP(3), WATERMARK FOR t AS t - INTERVAL '1' SECOND",
        "'number-of-rows' = '5000'",
    )
    counts = app.sql(
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(t), INTERVAL '1' SECOND)) GROUP BY window_start, window_end"
    )
    rows: list[dict[str, int]] = []
    counts.to(rows)
    await bounded(app.run())
    assert sum(row["n"] for row in rows) == 5000
