"""Columns that are inferred: what a float would merge, codes behind the sample, and fields that come later."""

import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot import App
from sabot._cython.text.json import JsonDecoder
from sabot._cython.text.split import may_have_codes
from sabot.codecs.csv_text import codes
from sabot.codecs.formats import Json
from sabot.codecs.json import JsonCodec, loses_digits
from sabot.connectors.files import files
from sabot.errors import UserError

LONG = [
    "9007199254740993",
    "-9007199254740995",
    "1234567890123456789",
    "12345678901234567891",
    "1" * 23,
]  # floats lose digits
KEPT = ["9007199254740992", "-12", "1152921504606846976", "100000000000000000000", "12345678901234567000"]
BEHIND_THE_SAMPLE = 120_000  # lines of ten bytes, more than the MiB by which the types of a CSV file are inferred


def written(folder: Path, kind: str, values: list[str]) -> Path:
    """Writes a file with the values, as they are written, in a column `id`."""
    file = folder / f"{len(list(folder.iterdir()))}.{kind}"
    if kind in ("csv", "tsv"):
        file.write_text("".join(f"{value}\n" for value in ["id", *values]))
    else:
        rows = [f'{{"id": {value}}}' for value in values]
        file.write_text("[" + ",".join(rows) + "]" if kind == "json" else "\n".join(rows))
    return file


def read(file: Path, **options: Any) -> tuple[Any, list[Any]]:
    """Returns the type and the values of the column `id`."""
    app = App("ids")
    found = app.stream(files(file), **options).collect()
    return found.schema.field("id").type, found["id"].to_pylist()


@pytest.mark.one_in(4, "one rule of all formats and lengths")
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("long", LONG)
@pytest.mark.parametrize("kind", ["csv", "tsv", "ndjson", "json"])
def test_an_id_that_floats_would_merge_is_no_float_beside_a_fraction(
    tmp_path: Path, kind: str, long: str, first: bool
) -> None:
    """Both were floats, so that two ids were one key in silence."""
    values = [long, "7", "0.5"] if first else ["0.5", "7", long]
    file = written(tmp_path, kind, values)
    if kind in ("csv", "tsv"):
        assert read(file) == (pa.string(), values)
    else:
        with pytest.raises(UserError, match=f"field 'id': {long} in one row, and a number with a fraction") as raised:
            read(file)
        kind_in_hint = raised.value.hint.split('"')[1]
        assert read(file, schema={"id": kind_in_hint})[1] == [Decimal(value) for value in values]
    assert read(file, schema={"id": "float64"})[1] == [float(value) for value in values]


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_an_integer_that_a_float_keeps_is_one_beside_a_fraction(tmp_path: Path, kind: str, kept: str) -> None:
    assert read(written(tmp_path, kind, [kept, "0.5"])) == (pa.float64(), [float(kept), 0.5])


def test_an_id_and_a_fraction_in_different_blocks_of_csv_are_texts(tmp_path: Path) -> None:
    file = written(tmp_path, "csv", [LONG[0], *["1"] * 600_000, "0.5"])
    kind, values = read(file, infer=600_002)
    assert (kind, values[0], values[-1]) == (pa.string(), LONG[0], "0.5")


def test_an_id_within_lists_and_structs_is_named_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.ndjson"
    file.write_text('{"o": {"ids": [1, 2]}}\n{"o": {"ids": [0.5, 12345678901234567891]}}\n')
    with pytest.raises(UserError, match=r"field 'o\.ids\[\]': 12345678901234567891 in one row"):
        App("ids").stream(files(file)).collect()


@pytest.mark.one_in(4, "a fifth of a second of a core each")
@pytest.mark.parametrize("long", LONG)
@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_an_id_behind_the_sample_of_a_float_column_is_a_dead_letter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, long: str
) -> None:
    common = ["0.5000000"] * (1000 if kind == "ndjson" else BEHIND_THE_SAMPLE)
    file = written(tmp_path, kind, [*common, long, *KEPT])
    assert read(file) == (pa.float64(), [*map(float, common), *map(float, KEPT)])
    assert 'schema_overrides={"id": "decimal128(38, 18)"}' in caplog.text
    assert read(file, schema_overrides={"id": "float64"})[1][-6] == float(long)


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_the_log_names_decimals_for_an_id_of_more_than_64_bits_behind_the_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """It named float64, with which two ids would be one."""
    file = written(tmp_path, kind, [*["555555555"] * (1000 if kind == "ndjson" else BEHIND_THE_SAMPLE), LONG[3]])
    assert read(file)[0] == pa.int64()
    assert 'schema_overrides={"id": "decimal128(38, 0)"}' in caplog.text
    assert read(file, schema_overrides={"id": "decimal128(38, 0)"})[1][-1] == Decimal(LONG[3])


@pytest.mark.one_in(4, "a fifth of a second of a core each")
@pytest.mark.parametrize("code", ["01234", "00", "-007", "+4930123", "0x1F", " 012 ", '"0123"'])
@pytest.mark.parametrize("other", ["555555555", "5.5000000"])
def test_a_code_behind_the_sample_of_a_column_of_numbers_is_a_dead_letter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: str, other: str
) -> None:
    """It was read as another number: two postcodes were one."""
    if "." in other and "x" in code:
        return  # which Arrow takes for no float
    file = written(tmp_path, "csv", [*[other] * BEHIND_THE_SAMPLE, code, "7"])
    kind, values = read(file)
    assert (kind == pa.float64(), len(values), values[-1]) == ("." in other, BEHIND_THE_SAMPLE + 1, 7)
    assert f"zeros, a sign or hexadecimal digits would be lost in {kind}" in caplog.text
    assert 'schema_overrides={"id": "string"}' in caplog.text
    assert read(file, schema_overrides={"id": "string"})[1][-2] == code.strip('"')


def test_codes_in_columns_of_texts_are_no_dead_letters(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,plz,t\n" + '1,"01234","a, 007"\n' * 60_000 + "2,00777,x\n")
    rows = App("plz").stream(files(tmp_path / "a.csv")).collect()
    assert (len(rows), rows["n"].to_pylist()[-1], rows["plz"].to_pylist()[-1]) == (60_001, 2, "00777")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from(["01", "1", "+5", "-07", "0x1", "a", "", "0.5", " 02 ", "x,05", 'q"0', "1\n03"]),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
    ),
    st.sampled_from(",;|"),
    st.booleans(),
)
def test_no_code_in_a_wanted_field_is_missed(rows: list[list[str]], delimiter: str, quoted: bool) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL).writerows(rows)
    for field in range(3):
        there = len(codes(pa.array([row[field] for row in rows]))) > 0
        wanted = bytes(number == field for number in range(3))
        found = may_have_codes(text.getvalue().encode(), delimiter.encode(), wanted)
        assert found or not there
        if not quoted and not any(mark in text.getvalue() for mark in '"'):
            assert found == there


@settings(max_examples=100, deadline=None)
@given(
    st.integers(-(10**22), 10**22)
    | st.integers(10**14, 10**18)
    | st.floats(1e15, 1e21).map(lambda x: int(Decimal(repr(x))))
)
def test_the_decoder_and_the_inference_agree_on_integers_that_floats_lose(number: int) -> None:
    decoder = JsonDecoder(pa.schema([("v", pa.float64())]), ["v"])
    rows, bad = decoder.decode([json.dumps({"v": number}).encode()])
    assert bool(bad) == loses_digits(number)
    assert rows.num_rows == 0 or rows["v"].to_pylist() == [float(number)]


# -- fields and columns that come later ---------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "its columns lack" in each.getMessage()]


def test_a_new_column_of_a_later_file_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It was left out without a word."""
    for name, text in {"1": "a,b\n1,2\n", "2": "a,b,c\n3,4,5\n", "3": "c,b,a\n6,7,8\n"}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    rows = App("later").stream(files(tmp_path / "*.csv")).collect()
    assert rows.to_pylist() == [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 8, "b": 7}]
    (warning,) = warnings(caplog)
    assert f"file {tmp_path / '2.csv'} has a column 'c'" in warning
    caplog.clear()
    App("declared").stream(files(tmp_path / "*.csv"), schema={"a": "int64"}).collect()
    assert warnings(caplog) == []


@pytest.mark.parametrize("ending", ["parquet", "arrow", "arrows"])
def test_a_new_column_or_field_of_a_later_file_of_columns_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    import pyarrow.parquet as pq

    tables = [pa.table({"a": [1], "s": [{"x": 1}]}), pa.table({"a": [2], "s": [{"x": 1, "y": 2}], "b": [{"q": 1}]})]
    for number, table in enumerate(tables):
        path = tmp_path / f"{number}.{ending}"
        if ending == "parquet":
            pq.write_table(table, path)
        else:
            with (pa.ipc.new_file if ending == "arrow" else pa.ipc.new_stream)(path, table.schema) as writer:
                writer.write_table(table)
    assert len(App("later").stream(files(tmp_path)).select("a").collect()) == 2
    assert [each.split(" that ")[0].split(" has a column ")[1] for each in warnings(caplog)] == ["'s.y'", "'b'"]


@pytest.mark.parametrize("kind", ["ndjson", "json"])
def test_a_new_field_of_json_behind_the_sample_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    rows = ['{"id": 1, "o": {"x": 1}, "l": [{"y": 1}], "unused": 0}'] * 1000
    rows += ['{"id": 2, "o": {"x": 1, "n": 2}, "l": [{"z": 1}], "new": {"k": 1}, "unused": 0}'] * 2
    file = tmp_path / f"a.{kind}"
    file.write_text("[" + ",".join(rows) + "]" if kind == "json" else "\n".join(rows))
    found = App("later").stream(files(file)).select("id", "o", "l").collect()
    assert (len(found), found["o"].to_pylist()[-1]) == (1002, {"x": 1})
    named = {each.split(" has a field ")[1].split(" that ")[0] for each in warnings(caplog)}
    assert (len(warnings(caplog)), named) == (3, {"'new'", "'o.n'", "'l[].z'"})


def test_a_new_field_of_a_topic_is_named_and_a_restored_codec_refuses_what_it_would_merge(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = JsonCodec(name="orders")
    assert first.decode(records([b'{"v": 0.5}']))[0].to_pylist() == [{"v": 0.5}]
    again = Json().codec("orders", None, None, first.text).another()
    rows, bad = again.decode(records([b'{"v": 1, "w": 2}', b'{"v": 9007199254740993}', b'{"w": 3}']))
    assert (rows.to_pylist(), [each.row for each in bad]) == ([{"v": 1.0}, {"v": None}], [1])
    again.decode(records([b'{"w": 2}']))
    assert [each.split(": it is")[0] for each in warnings(caplog)] == [
        "stream orders: the records have a field 'w' that its columns lack, as they were inferred from earlier rows"
    ]


def test_at_most_ten_new_fields_are_named(caplog: pytest.LogCaptureFixture) -> None:
    codec = JsonCodec(name="orders")
    codec.decode(records([b'{"by_user": {"a": 1}}']))
    codec.decode(records([json.dumps({"by_user": {f"user{n}": 1 for n in range(50)}}).encode()]))
    assert len(warnings(caplog)) == 10
    assert "the records have more such fields, which are left out too" in caplog.text


def records(payloads: list[bytes]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"payload": pa.array(payloads, pa.binary())})
