"""What a table of PostgreSQL cannot take: columns are refused at the start, values are dead letters, times are never another time."""

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from sabot import App, SqlSink, UserError
from sabot.connectors.memory import MemoryBroker
from sabot.testing import END, ScriptedSource


def query(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


async def passed(
    url: str, memory_url: str, folder: Path, data: dict[str, Any], **options: Any
) -> list[tuple[int, str]]:
    """Passes rows on to the table `t`, exactly once. Returns the number `n` of each dead letter, with its message."""
    rows = pa.record_batch({"n": range(len(next(iter(data.values())))), **data})
    app = App("app", memory_url, checkpoint_dir=folder / "checkpoints", restart="none")
    app.stream(ScriptedSource([rows, END], name="in"), dead_letter="refused", schema=rows.schema).to(
        SqlSink(url, "t", **options)
    )
    await app.run()
    return [
        (json.loads(letter.payload)["n"], dict(letter.headers)["sabot.message"].decode())
        for letter in MemoryBroker.get(memory_url).records("refused")
    ]


MOMENTS = {  # ms since 1970: what PostgreSQL has of it
    -1: "1969-12-31 23:59:59.999",
    253_402_300_800_000: "10000-01-01 00:00:00",
    -62_135_596_800_001: "0001-12-31 23:59:59.999 BC",
    -210_866_803_200_000: "4714-11-24 00:00:00 BC",
    9_224_318_015_999_999: "294276-12-31 23:59:59.999",
    2**63 - 1: None,
    -(2**63): None,
    -210_866_803_200_001: None,
    9_224_318_016_000_000: None,
}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
async def test_a_far_time_is_that_time_or_a_dead_letter(
    url: str, memory_url: str, tmp_path: Path, zone: str | None
) -> None:
    query(url, f"CREATE TABLE t (n bigint, at timestamp{'tz' if zone else ''})")
    letters = await passed(url, memory_url, tmp_path, {"at": pa.array(list(MOMENTS)).view(pa.timestamp("ms", zone))})
    there = query(url, f"SELECT n, at {'AT TIME ZONE ' + repr('UTC') if zone else ''} || '' FROM t ORDER BY n")
    assert there == [(n, text) for n, text in enumerate(MOMENTS.values()) if text is not None]
    assert [n for n, _ in letters] == [5, 6, 7, 8]
    assert all("column 'at'" in why and "PostgreSQL does not have" in why for _, why in letters)


@pytest.mark.parametrize("declared", ["date", "timestamp"])
async def test_a_far_day_is_that_day_or_a_dead_letter(url: str, memory_url: str, tmp_path: Path, declared: str) -> None:
    days = {-1: "1969-12-31", 2_932_897: "10000-01-01", -719_163: "0001-12-31 BC", -2_440_588: "4714-11-24 BC"}
    query(url, f"CREATE TABLE t (n bigint, at {declared})")
    ends = [*days, 2**31 - 1, -(2**31), 106_762_939, 106_762_940, 2_145_042_905, 2_145_042_906]
    letters = await passed(url, memory_url, tmp_path, {"at": pa.array(ends, pa.int32()).view(pa.date32())})
    there = query(url, "SELECT n, at::date || '' FROM t ORDER BY n")
    assert there[:4] == list(enumerate(days.values()))
    assert there[4:] == [(6, "294276-12-31")] + [(7, "294277-01-01"), (8, "5874897-12-31")] * (declared == "date")
    assert [n for n, _ in letters] == ([4, 5, 9] if declared == "date" else [4, 5, 7, 8, 9])


async def test_nanoseconds_are_rounded_down_before_1970_too(url: str, memory_url: str, tmp_path: Path) -> None:
    times = pa.array([-1, 1999, -1_000_000_000]).view(pa.timestamp("ns"))
    await passed(url, memory_url, tmp_path, {"at": times})
    assert [at for (at,) in query(url, "SELECT at FROM t ORDER BY n")] == [
        datetime(1969, 12, 31, 23, 59, 59, 999_999),
        datetime(1970, 1, 1, 0, 0, 0, 1),
        datetime(1969, 12, 31, 23, 59, 59),
    ]


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("declared", "values", "refused", "why"),
    [
        ("text", ["a", "b\0c", None, "d"], [1], r"column 'v': 'b\x00c' has the character U+0000"),
        ("jsonb", pa.array([["a"], ["\0"], ["\\u0000"], None]), [1], "has the character U+0000"),
        ("varchar(3)", ["abc", "abcd", "ü👍ß ", "    "], [1], "is longer than character varying(3)"),
        ("smallint", [1, 2**15, -(2**15), -(2**15) - 1], [1, 3], "does not fit into smallint"),
        ("bigint", pa.array([1, 2**63, 2**63 - 1], pa.uint64()), [1], "does not fit into bigint"),
        ("numeric(3, 1)", [99, 100, -100, None], [1, 2], "does not fit into numeric(3,1)"),
        ("numeric(3, 1)", pa.array([Decimal("99.9"), Decimal("100.0")]), [1], "numeric field overflow"),
        ("real", [1e39, 1.5, 1e-50, float("inf")], [0, 2], "is out of the range of real"),
        ("uuid", ["0b0f3c1e-54a5-4a3e-9b1f-5a5d1c3a9d10", "nobody"], [1], "invalid input syntax for type uuid"),
        ("int CHECK (v > 0)", [1, -1, 2, -2], [1, 3], "violates check constraint"),
        ("int UNIQUE", [1, 2, 1, 3], [2], "violates unique constraint"),
        ("text NOT NULL", ["a", None, "b"], [1], "violates not-null constraint"),
        ("int UNIQUE DEFERRABLE INITIALLY DEFERRED", [1, 2, 1, 3], [2], "violates unique constraint"),
        ("double precision", [2**53, 2**53 + 1, -(2**62)], [1], "has digits that double precision does not keep"),
        ("real", [2**24, 2**24 + 1, 2**62 + 1], [1, 2], "has digits that real does not keep"),
        ("real", pa.array([Decimal(2**70), Decimal(2**70 + 1)]), [1], "has digits that real does not keep"),
    ],
)
async def test_a_value_that_a_column_does_not_hold_is_a_dead_letter(
    url: str, memory_url: str, tmp_path: Path, declared: str, values: Any, refused: list[int], why: str
) -> None:
    query(url, f"CREATE TABLE t (n bigint, v {declared})")
    letters = await passed(url, memory_url, tmp_path, {"v": values})
    assert [n for n, _ in letters] == refused
    assert why in letters[0][1]
    assert [n for (n,) in query(url, "SELECT n FROM t ORDER BY n")] == [
        n for n in range(len(values)) if n not in refused
    ]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_row_that_is_refused_at_the_commit_is_a_dead_letter(
    url: str, memory_url: str, tmp_path: Path, delivery: Any
) -> None:
    """The sink was stuck for good: such a row passed each attempt, and no transaction with it could be committed."""
    query(url, "CREATE TABLE parents (id bigint PRIMARY KEY)")
    query(url, "INSERT INTO parents VALUES (1)")
    query(url, "CREATE TABLE t (n bigint PRIMARY KEY, up bigint REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
    app = App("app", memory_url, checkpoint_dir=tmp_path / "checkpoints", restart="none")
    rows = [{"n": n, "up": up} for n, up in enumerate([1, 2, None, 1, 3])]
    app.stream(rows, dead_letter="refused").upsert("n").to(SqlSink(url, "t"), delivery=delivery)
    await app.run()
    assert query(url, "SELECT n FROM t ORDER BY n") == [(0,), (2,), (3,)]
    letters = MemoryBroker.get(memory_url).records("refused")
    assert [json.loads(each.payload)["n"] for each in letters] == [1, 4]
    assert "violates foreign key constraint" in dict(letters[0].headers)["sabot.message"].decode()


@pytest.mark.parametrize(
    ("declared", "values", "message"),
    [
        ("integer", [1.0, 2.5], "its column v is integer, and double comes"),
        ("date", pa.array([0]).view(pa.timestamp("ms")), "its column v is date, and timestamp"),
        ("bigint", pa.array([Decimal("1.5")]), "its column v is bigint, and decimal"),
        ("boolean", [1, 2], "its column v is boolean, and int64 comes"),
        ("integer[]", [[1], [2]], "its column v is integer"),
    ],
)
async def test_a_column_that_would_be_cut_or_refused_is_named_at_the_start(
    url: str, memory_url: str, tmp_path: Path, declared: str, values: Any, message: str
) -> None:
    query(url, f"CREATE TABLE t (n bigint, v {declared})")
    assert message in SqlSink(url, "t").misfit(pa.record_batch({"v": values}).schema)  # `sabot plan --against` asks
    with pytest.raises(UserError, match=message):
        await passed(url, memory_url, tmp_path, {"v": values})


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("declared", "values"),
    [
        ("char(3)", ["a", "b", "a  ", "a "]),
        ("numeric(5,1)", pa.array([Decimal("1.24"), Decimal("2.00"), Decimal("1.18"), Decimal("1.16")])),
        ("timestamp", pa.array([1, 2000, 3, 4]).view(pa.timestamp("ns"))),
        ("text COLLATE folded", ["a", "b", "A", "a"]),
    ],
)
async def test_of_two_keys_that_are_equal_only_in_the_database_the_last_row_stays(
    url: str, memory_url: str, tmp_path: Path, declared: str, values: Any
) -> None:
    query(url, "CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    query(url, f"CREATE TABLE t (n bigint, k {declared} PRIMARY KEY)")
    assert await passed(url, memory_url, tmp_path, {"k": values}, keys=["k"]) == []
    assert [n for (n,) in query(url, "SELECT n FROM t ORDER BY n")] == [1, 3]


async def test_a_refused_row_of_a_table_written_at_least_once_is_a_dead_letter(
    url: str, memory_url: str, tmp_path: Path
) -> None:
    query(url, "CREATE TABLE t (n bigint, v int CHECK (v > 0))")
    app = App("app", memory_url, restart="none")
    rows = [{"n": n, "v": v} for n, v in enumerate([1, -1, 2])]
    app.stream(rows, dead_letter="refused").to(SqlSink(url, "t"), delivery="at_least_once")
    await app.run()
    assert query(url, "SELECT n FROM t ORDER BY n") == [(0,), (2,)]
    assert [json.loads(each.payload)["n"] for each in MemoryBroker.get(memory_url).records("refused")] == [1]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("before", "declared", "values", "there", "refused"),
    [
        # a number is a count of seconds for the server: 1.5 s were 25 minutes
        ("", "interval", pa.array([1500, -1], pa.duration("ms")), ["00:00:01.5", "-00:00:00.001"], []),
        ("", "interval", pa.array([-1, 2**62], pa.duration("ns")), ["-00:00:00.000001", "1281023:53:38.427387"], []),
        # the server cuts these texts
        ("", '"char"', pa.array(["a", "bc"]), ["a"], [1]),
        ("", "name", pa.array(["é" * 31, "é" * 32]), ["é" * 31], [1]),
        ("", "oid", pa.array([-1, 2**32 - 1, 2**32]), ["4294967295"], [0, 2]),
        # a domain has the bounds of its type
        ("CREATE DOMAIN r AS real; CREATE DOMAIN s AS r", "s", pa.array([2**24, 2**24 + 1]), ["1.6777216e+07"], [1]),
        ("CREATE DOMAIN v AS varchar(3) CHECK (VALUE <> 'no')", "v", pa.array(["yes", "nope", "no"]), ["yes"], [1, 2]),
    ],
)
async def test_a_value_is_the_same_in_a_column_of_a_rare_type_or_a_dead_letter(
    url: str,
    memory_url: str,
    tmp_path: Path,
    before: str,
    declared: str,
    values: Any,
    there: list[str],
    refused: list[int],
) -> None:
    if before:
        query(url, before)
    query(url, f"CREATE TABLE t (n bigint, v {declared})")
    letters = await passed(url, memory_url, tmp_path, {"v": values})
    assert [text for (text,) in query(url, "SELECT v::text FROM t ORDER BY n")] == there
    assert [n for n, _ in letters] == refused


async def test_times_without_a_zone_are_those_of_utc_whatever_the_zone_of_the_session(
    url: str, memory_url: str, tmp_path: Path
) -> None:
    """They were taken for times of the zone that the database or the user has: 12:00 became 03:00 in Tokyo."""
    query(url, f"ALTER DATABASE \"{url.rpartition('/')[2]}\" SET timezone = 'Asia/Tokyo'")
    query(url, "CREATE TABLE t (n bigint, at timestamptz, day timestamptz, clock timetz, far timestamptz)")
    data = {
        "at": pa.array([datetime(2024, 7, 1, 12)], pa.timestamp("us")),
        "day": pa.array([datetime(2024, 7, 1).date()]),
        "clock": pa.array([datetime(2024, 7, 1, 12, 30).time()]),
        "far": pa.array([253_402_300_800], pa.timestamp("s")),
    }
    assert not await passed(url, memory_url, tmp_path, data)
    found = query(
        url,
        "SELECT at AT TIME ZONE 'UTC' || '', day AT TIME ZONE 'UTC' || '', clock || '', far AT TIME ZONE 'UTC' || '' FROM t",
    )
    assert found == [("2024-07-01 12:00:00", "2024-07-01 00:00:00", "12:30:00+00", "10000-01-01 00:00:00")]


@pytest.mark.parametrize("keys", [[], ["n"]])
async def test_a_table_with_policies_or_an_identity_takes_what_it_may(
    url: str, memory_url: str, tmp_path: Path, keys: list[str]
) -> None:
    """COPY refuses a table with row-level security, and INSERT an identity column: the sink was stuck for good."""
    role = f"r{url.rpartition('/')[2]}"[:40]
    query(url, "CREATE TABLE t (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int)")
    query(url, "ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    query(url, "CREATE POLICY small ON t USING (v < 10) WITH CHECK (v < 10)")
    query(url, f'CREATE ROLE "{role}" LOGIN; GRANT ALL ON t TO "{role}"; GRANT ALL ON SCHEMA public TO "{role}"')
    try:
        given = {"keys": keys} if keys else {}
        letters = await passed(url.replace("sabot@", f"{role}@", 1), memory_url, tmp_path, {"v": [1, 20, 3]}, **given)
        assert query(url, "SELECT n, v FROM t ORDER BY n") == [(0, 1), (2, 3)]
        assert [n for n, _ in letters] == [1]
        assert "row-level security policy" in letters[0][1]
    finally:
        query(url, f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')
