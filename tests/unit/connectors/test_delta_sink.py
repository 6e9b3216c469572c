"""A table of Delta Lake as a sink, read back with deltalake, DuckDB and polars: types, columns, partitions, owners, errors."""

import contextlib
import datetime
import decimal
import json
import logging
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import polars
import pyarrow as pa
import pytest

from sabot import App, DeltaSink, DeltaSource, UserError, col
from sabot._cython.arrow.batch import Batch
from sabot.connectors.base import Track
from sabot.errors import AppLocked, TransientError
from sabot.testing import END, ScriptedSource
from tools.agent_tools import publish, started, until
from tools.losing_proxy import LosingProxy
from tools.secrets_planted import leaks, planted

TRACK = Track("app", "out", "one")
SCHEMA = pa.schema([("n", pa.int64()), ("day", pa.string())])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "lake" / "orders"


def batch(*numbers: int, day: str = "mon") -> pa.RecordBatch:
    return pa.record_batch({"n": list(numbers), "day": [day] * len(numbers)}, SCHEMA)


def claimed(table: Any, track: Track = TRACK, **options: Any) -> DeltaSink:
    sink = DeltaSink(table, **{"schema": SCHEMA, **options})
    sink.claim(track)
    return sink


def put(sink: DeltaSink, seq: int, *batches: pa.RecordBatch) -> None:
    sink.deliver(seq, [sink.fitting(each) for each in batches])


def rows(table: Path) -> list[dict[str, Any]]:
    """The rows, by deltalake's list of files and DuckDB's reader."""
    files = deltalake.DeltaTable(table).file_uris()
    if not files:
        return []
    found = duckdb.sql("SELECT * FROM read_parquet($1, hive_partitioning = true, union_by_name = true)", params=[files])
    return sorted(found.to_arrow_table().to_pylist(), key=lambda row: row["n"])


def commits(table: Path) -> list[dict[str, Any]]:
    """The actions of each commit, by their names."""
    logs = sorted((table / "_delta_log").glob("*.json"))
    return [
        {name: body for line in log.read_text().splitlines() for name, body in json.loads(line).items()} for log in logs
    ]


# -- commits ----------------------------------------------------------------------------------------------------------


def test_a_part_is_one_commit_whatever_its_batches(table: Path) -> None:
    sink = claimed(table)
    before = len(commits(table))
    put(sink, 1, batch(1, 2), batch(3), batch())
    put(sink, 1, batch(1, 2), batch(3), batch())
    assert len(commits(table)) == before + 1
    assert polars.read_delta(str(table)).sort("n").to_dicts() == [{"n": n, "day": "mon"} for n in (1, 2, 3)]


def test_the_log_has_the_number_of_the_part_beside_its_rows(table: Path) -> None:
    sink = claimed(table)
    put(sink, 7, batch(1))
    assert "add" in commits(table)[-1]
    assert deltalake.DeltaTable(table).transaction_version(TRACK.key) == 7


def test_other_writers_commit_in_between(table: Path) -> None:
    sink = claimed(table)
    for n in range(3):
        deltalake.write_deltalake(table, batch(100 + n), mode="append")
        put(sink, n + 1, batch(n))
    assert [row["n"] for row in rows(table)] == [0, 1, 2, 100, 101, 102]


def test_two_apps_write_one_table_at_the_same_time(table: Path) -> None:
    sinks = [claimed(table, Track(f"app{n}", "out", "one")) for n in range(2)]

    def write(sink: DeltaSink, first: int) -> None:
        for n in range(10):
            put(sink, n + 1, batch(first + n))

    threads = [threading.Thread(target=write, args=(sink, 100 * number)) for number, sink in enumerate(sinks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["n"] for row in rows(table)] == [*range(10), *range(100, 110)]


def test_who_lost_the_track_between_its_look_and_its_commit_is_refused(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = claimed(table)
    write = deltalake.write_deltalake

    def writes_late(*args: Any, **options: Any) -> None:
        claimed(table)
        write(*args, **options)

    monkeypatch.setattr(deltalake, "write_deltalake", writes_late)
    with pytest.raises(AppLocked):
        put(sink, 1, batch(1))
    with pytest.raises(AppLocked):
        sink.claim(TRACK)
    assert rows(table) == []


@pytest.mark.parametrize("error", ["conflict", "time-out"])
def test_answers_that_are_lost_lose_and_repeat_nothing(
    table: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """A store that has taken an entry of the log, and whose answer is lost, is asked again by its driver, and says that there is one."""
    write, lost = deltalake.write_deltalake, iter(range(10))

    def loses_its_answer(*args: Any, **options: Any) -> None:
        write(*args, **options)
        if next(lost, None) is not None:
            raise (
                OSError("timed out")
                if error == "time-out"
                else deltalake.exceptions.CommitFailedError("version exists")
            )

    monkeypatch.setattr(deltalake, "write_deltalake", loses_its_answer)
    sink = claimed(table)
    for seq in range(1, 15):
        if error == "time-out" and seq <= 10:
            with pytest.raises(TransientError, match="timed out"):
                put(sink, seq, batch(seq))  # the engine delivers the part again
        put(sink, seq, batch(seq))
    assert [row["n"] for row in rows(table)] == list(range(1, 15))


def test_a_table_whose_making_has_lost_its_answer_is_claimed(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = deltalake.DeltaTable.create

    def made_by_another_try(*args: Any, **options: Any) -> Any:
        create(*args, **options)
        return create(*args, **options)

    monkeypatch.setattr(deltalake.DeltaTable, "create", made_by_another_try)
    put(claimed(table), 1, batch(1))
    assert [row["n"] for row in rows(table)] == [1]


def test_a_claim_of_a_table_that_was_just_made_is_tried_again(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes the table first, and commits before our claim does."""
    create, commit, tries = deltalake.DeltaTable.create, deltalake.DeltaTable.create_write_transaction, []

    def another_is_first(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(deltalake.DeltaTable, "create", create)
        claimed(table, Track("another", "out", "one"))
        return create(*args, **options)

    def conflicts(*args: Any, **options: Any) -> None:
        tries.append(args)
        if len(tries) == 1:
            raise deltalake.exceptions.CommitFailedError("another came before")
        commit(*args, **options)

    monkeypatch.setattr(deltalake.DeltaTable, "create", another_is_first)
    monkeypatch.setattr(deltalake.DeltaTable, "create_write_transaction", conflicts)
    put(claimed(table), 1, batch(1))
    assert len(tries) == 2
    assert [row["n"] for row in rows(table)] == [1]


@pytest.mark.parametrize("where", ["disk", "store"])
def test_a_folder_that_this_process_may_not_read_is_an_error_and_not_waited_for(
    table: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    claimed(table).close()

    def refuses(*args: Any, **options: Any) -> Any:  # the text of deltalake 1.6
        raise OSError(
            "Kernel error -> Generic LocalFileSystem error\n Unable to open file\n Permission denied (os error 13)"
        )

    monkeypatch.setattr(deltalake, "DeltaTable", refuses)
    monkeypatch.setattr(refuses, "create", refuses, raising=False)
    sink = DeltaSink(table if where == "disk" else "s3://lake/orders", schema=SCHEMA)
    with pytest.raises(UserError if where == "disk" else TransientError, match="Permission denied") as told:
        sink.claim(TRACK)
    assert "change the owner or the mode" in told.value.hint


def test_the_token_is_there_behind_checkpoints_of_the_log_whose_entries_are_removed(table: Path) -> None:
    claimed(table)
    deltalake.DeltaTable(table).alter.set_table_properties({"delta.checkpointInterval": "5"})
    sink = claimed(table)
    for seq in range(1, 13):
        put(sink, seq, batch(seq))
    assert list((table / "_delta_log").glob("*.checkpoint.parquet"))
    last = json.loads((table / "_delta_log" / "_last_checkpoint").read_text())["version"]
    for entry in (table / "_delta_log").glob("*.json"):
        if int(entry.stem) < last:
            entry.unlink()
    later = DeltaSink(table, schema=SCHEMA)
    token = later.claim(TRACK)
    assert token is not None
    assert (token.seq, token.incarnation) == (12, "one")
    put(later, 12, batch(12))
    put(later, 13, batch(13))
    assert [row["n"] for row in rows(table)] == list(range(1, 14))


@pytest.mark.parametrize("option", ["AWS_S3_ALLOW_UNSAFE_RENAME=true", "conditional_put=disabled"])
def test_a_store_that_is_told_to_overwrite_entries_of_the_log_is_refused(option: str) -> None:
    name, _, value = option.partition("=")
    sink = DeltaSink("s3://lake/orders", schema=SCHEMA, storage_options={name: value})
    with pytest.raises(UserError, match=f"storage_options= has {name}"):
        sink.claim(TRACK)
    with pytest.raises(UserError, match=f"storage_options= has {name}"):
        sink.open()


def test_a_table_that_forgets_application_transactions_is_refused(table: Path) -> None:
    claimed(table)
    name = "delta.setTransactionRetentionDuration"
    deltalake.DeltaTable(table).alter.set_table_properties({name: "interval 1 days"}, raise_if_not_exists=False)
    with pytest.raises(UserError, match=f"forgets application transactions after interval 1 days .{name}"):
        claimed(table)


@pytest.mark.parametrize("mode", ["name", "id"])
def test_a_table_with_column_mapping_takes_rows(table: Path, mode: str) -> None:
    mapping = {"delta.columnMapping.mode": mode}
    deltalake.write_deltalake(table, pa.table(batch(0)), partition_by=["day"], configuration=mapping)
    put(claimed(table), 1, batch(1), batch(2, day="tue"))
    found = pa.table(deltalake.DeltaTable(table).scan().read_all()).to_pylist()
    assert sorted(found, key=lambda row: row["n"]) == [
        {"n": 0, "day": "mon"},
        {"n": 1, "day": "mon"},
        {"n": 2, "day": "tue"},
    ]
    more = pa.schema([*SCHEMA, ("more", pa.int64())])
    evolving = DeltaSink(table, schema=more, evolve=True)
    evolving.claim(TRACK)
    with pytest.raises(UserError, match="Column mapping is not supported"):
        evolving.deliver(2, [evolving.fitting(pa.record_batch({"n": [3], "day": ["x"], "more": [1]}, more))])


def test_a_table_that_was_removed_meanwhile_is_not_half_made(table: Path) -> None:
    sink = claimed(table)
    put(sink, 1, batch(1))
    shutil.rmtree(table)
    with pytest.raises(UserError, match=r"Invalid table version|File not found"):
        put(sink, 2, batch(2))
    assert not list(table.glob("_delta_log/*.json"))


def test_at_least_once_there_is_a_commit_for_each_flush(table: Path) -> None:
    sink = DeltaSink(table, schema=SCHEMA)
    sink.open()
    for n in range(5):
        sink.write(Batch(batch(n)))
    assert rows(table) == []
    sink.flush()
    sink.flush()
    assert [row["n"] for row in rows(table)] == list(range(5))
    assert len(commits(table)) == 2
    sink.close()


def test_at_least_once_enough_rows_are_committed_before_the_flush(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.connectors.lake.sink._WAITING_BYTES", 100)
    sink = DeltaSink(table, schema=SCHEMA)
    sink.open()
    for n in range(50):
        sink.write(Batch(batch(n)))
    assert len(commits(table)) > 5
    sink.close()


# -- columns ----------------------------------------------------------------------------------------------------------

NOON = datetime.datetime(2026, 3, 1, 12, 0, 0, 250)
UTC = datetime.UTC
BERLIN = pa.timestamp("ms", "Europe/Berlin")


TYPES: dict[str, tuple[Any, Any]] = {  # the values that are written, and the value that is read
    "bool": (pa.array([True]), True),
    "int8": (pa.array([-128], pa.int8()), -128),
    "int16": (pa.array([-(2**15)], pa.int16()), -(2**15)),
    "int32": (pa.array([-(2**31)], pa.int32()), -(2**31)),
    "int64": (pa.array([-(2**63)], pa.int64()), -(2**63)),
    "uint8": (pa.array([255], pa.uint8()), 255),
    "uint16": (pa.array([2**16 - 1], pa.uint16()), 2**16 - 1),
    "uint32": (pa.array([2**32 - 1], pa.uint32()), 2**32 - 1),
    "uint64": (pa.array([2**64 - 1], pa.uint64()), decimal.Decimal(2**64 - 1)),
    "halffloat": (pa.array([1.5], pa.float32()).cast(pa.float16()), 1.5),
    "float": (pa.array([float("inf")], pa.float32()), float("inf")),
    "double": (pa.array([5e-324]), 5e-324),
    "decimal128(38, 2)": (pa.array([decimal.Decimal("9" * 36 + ".99")]), decimal.Decimal("9" * 36 + ".99")),
    "date32[day]": (pa.array([datetime.date(1, 1, 1)]), datetime.date(1, 1, 1)),
    "date64[ms]": (pa.array([NOON.date()], pa.date64()), NOON.date()),
    "timestamp[ns]": (pa.array([1_999], pa.timestamp("ns")), datetime.datetime(1970, 1, 1, microsecond=1)),
    "timestamp[ms, tz=Europe/Berlin]": (pa.array([0], BERLIN), datetime.datetime(1970, 1, 1, tzinfo=UTC)),
    "string": (pa.array(["ü\0"]), "ü\0"),
    "large_string": (pa.array(["ü"], pa.large_string()), "ü"),
    "dictionary": (pa.array(["a"]).dictionary_encode(), "a"),
    "null": (pa.array([None]), None),
    "binary": (pa.array([b"\xff\0"]), b"\xff\0"),
    "fixed_size_binary[3]": (pa.array([b"abc"], pa.binary(3)), b"abc"),
    "list<item: uint8>": (pa.array([[1, None]], pa.list_(pa.uint8())), [1, None]),
    "struct<a: uint8>": (pa.array([{"a": 1}], pa.struct([("a", pa.uint8())])), {"a": 1}),
    "map<string, int32>": (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())), [("k", 1)]),
    "decimal256(60, 2)": (pa.array([decimal.Decimal("9" * 58 + ".99")], pa.decimal256(60, 2)), None),
    "time64[us]": (pa.array([0], pa.time64("us")), None),
    "duration[s]": (pa.array([0], pa.duration("s")), None),
}


def test_each_type_of_the_table_in_the_documents_is_read_back_as_it_was(table: Path) -> None:
    text = (
        (Path(__file__).parents[3] / "docs" / "sinks.md")
        .read_text()
        .partition("| Arrow | Delta |")[2]
        .partition("\n#")[0]
    )
    lines = re.findall(r"^\| (`[^|]+`) \| `?([^|`]+)`? \|$", text, re.MULTILINE)
    shown = {name: kind for given, kind in lines for name in re.findall("`([^`]+)`", given)}
    assert shown.keys() == TYPES.keys()
    kept = [name for name, kind in shown.items() if kind != "refused at the start"]
    data = pa.record_batch({"n": [1], **{name: TYPES[name][0] for name in kept}})
    put(claimed(table, schema=data.schema), 1, data)
    made = deltalake.DeltaTable(table)
    assert {field.name: kind_of(field.type) for field in made.schema().fields if field.name != "n"} == {
        name: shown[name] for name in kept
    }
    expected = [{"n": 1, **{name: TYPES[name][1] for name in kept}}]
    assert pa.table(made.to_pyarrow_table()).to_pylist() == expected
    source = DeltaSource(table)
    source.open(None)
    batch = source.read_batch(10, 0.0)
    assert batch is not None
    assert batch.taken().to_pylist() == expected
    source.close()


def kind_of(found: Any) -> str:
    """The name of a type of a table of Delta Lake, as the documents write it."""
    match found.type:
        case "array":
            return f"array<{kind_of(found.element_type)}>"
        case "map":
            return f"map<{kind_of(found.key_type)}, {kind_of(found.value_type)}>"
        case "struct":
            return f"struct<{', '.join(f'{each.name}: {kind_of(each.type)}' for each in found.fields)}>"
    return str(found.type)


@pytest.mark.parametrize(
    "kind",
    [*(TYPES[name][0].type for name in ("time64[us]", "duration[s]", "decimal256(60, 2)")), pa.list_(pa.duration("s"))],
)
def test_a_type_that_delta_does_not_have_is_refused_before_the_start(table: Path, kind: pa.DataType) -> None:
    with pytest.raises(UserError, match=r"column 'v' of type .* cannot be written as Delta") as refused:
        DeltaSink(table).check_types(pa.schema([("v", kind)]))
    assert "drop('v')" in refused.value.hint


def test_a_decimal_of_256_bits_is_one_of_128_if_its_digits_are(table: Path) -> None:
    data = pa.record_batch({"n": [1], "v": pa.array([decimal.Decimal("1.50")], pa.decimal256(10, 2))})
    put(claimed(table, schema=data.schema), 1, data)
    found = pa.table(deltalake.DeltaTable(table).to_pyarrow_table())
    assert (found.schema.field("v").type, found.column("v").to_pylist()) == (
        pa.decimal128(10, 2),
        data.column(1).to_pylist(),
    )


def test_an_option_that_cannot_be_is_refused_by_name(table: Path) -> None:
    """overwrite="no" removed all rows, as every text but the empty one is true."""
    with pytest.raises(UserError, match="DeltaSink: overwrite='no'"):
        DeltaSink(table, overwrite="no")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"DeltaSink: schema=.*pa\.schema\("):
        DeltaSink(table, schema={"n": "int64"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="DeltaSink: gather"):
        DeltaSink(table, gather="soon")


@pytest.mark.parametrize(
    ("track", "said"), [(TRACK, 'gather="1m" makes them'), (None, 'checkpoint_interval="1m" makes them')]
)
def test_many_small_commits_are_told_once_with_what_helps(
    table: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, track: Track | None, said: str
) -> None:
    monkeypatch.setattr("sabot.connectors.lake.sink.SMALL_COMMITS", 3)
    sink = DeltaSink(table, schema=SCHEMA)
    if track is not None:
        sink.claim(track)
    else:
        sink.open()
    for seq in range(1, 8):
        if track is not None:
            put(sink, seq, batch(seq))
        else:
            sink.write(Batch(batch(seq)))
            sink.flush()
        assert len([line for line in caplog.messages if "gets small files: 3 commits" in line]) == int(seq >= 3)
    assert said in caplog.text


def test_large_or_rare_commits_are_not_told(
    table: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sabot.connectors.lake.sink.SMALL_COMMITS", 2)
    for name, most in (("SMALL_BYTES", 10), ("SMALL_SECONDS", 0.0)):
        with monkeypatch.context() as changed:
            changed.setattr(f"sabot.connectors.lake.sink.{name}", most)
            sink = claimed(table, Track("app", name, "one"))
            for seq in range(1, 5):
                put(sink, seq, batch(seq))
    assert "small files" not in caplog.text


def test_a_value_beyond_the_type_is_refused_before_it_is_in_a_checkpoint(table: Path) -> None:
    far = pa.record_batch({"v": pa.array([2**62], pa.timestamp("s"))})
    with pytest.raises(UserError, match=r"column v: .* out of"):
        claimed(table, schema=far.schema).fitting(far)


def test_columns_that_do_not_come_are_null(table: Path) -> None:
    claimed(table)
    put(claimed(table, schema=pa.schema([("n", pa.int32())])), 1, pa.record_batch({"n": pa.array([5], pa.int32())}))
    assert rows(table) == [{"n": 5, "day": None}]


WIDER = [
    (pa.int32(), pa.int64()),
    (pa.float32(), pa.float64()),
    (pa.int64(), pa.string()),
    (pa.timestamp("us", "UTC"), pa.timestamp("us")),
    (pa.decimal128(10, 2), pa.decimal128(10, 3)),
    (pa.list_(pa.int32()), pa.list_(pa.int64())),
    (pa.struct([("a", pa.int32())]), pa.struct([("a", pa.int32()), ("b", pa.int32())])),
]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(("there", "given"), WIDER, ids=str)
@pytest.mark.parametrize("evolve", [False, True])
def test_a_column_of_a_narrower_type_ends_the_start(
    table: Path, there: pa.DataType, given: pa.DataType, evolve: bool
) -> None:
    claimed(table, schema=pa.schema([("v", there)]))
    before = len(commits(table))
    with pytest.raises(UserError, match=r"its column v is .*, which does not hold") as refused:
        claimed(table, schema=pa.schema([("v", given)]), evolve=evolve)
    assert "cast" in refused.value.hint
    assert len(commits(table)) == before  # it has not claimed the track


@pytest.mark.parametrize(
    ("there", "given"),
    [*((wide, narrow) for narrow, wide in WIDER[:2]), (pa.decimal128(20, 0), pa.int64()), (pa.decimal128(12, 3), pa.decimal128(10, 2))],
    ids=str,
)  # fmt: skip
def test_a_column_of_a_wider_type_takes_the_rows(table: Path, there: pa.DataType, given: pa.DataType) -> None:
    claimed(table, schema=pa.schema([("v", there)]))
    values = pa.array([7], pa.int8()).cast(given)
    put(claimed(table, schema=pa.schema([("v", given)])), 1, pa.record_batch({"v": values}))
    assert deltalake.DeltaTable(table).to_pyarrow_table().column("v").to_pylist() == [7]


def test_a_missing_column_ends_the_start_and_evolve_adds_it(table: Path) -> None:
    put(claimed(table), 1, batch(1))
    more = pa.schema([*SCHEMA, ("seats", pa.uint8())])
    with pytest.raises(UserError, match=r"has no column seats \(int16\)") as refused:
        claimed(table, schema=more)
    assert "evolve=True" in refused.value.hint
    sink = claimed(table, schema=more, evolve=True)
    put(sink, 2, pa.record_batch({"n": [2], "day": ["tue"], "seats": pa.array([4], pa.uint8())}))
    assert rows(table) == [{"n": 1, "day": "mon", "seats": None}, {"n": 2, "day": "tue", "seats": 4}]


def test_a_column_that_comes_in_the_middle_of_a_part_is_added_for_all_of_it(table: Path) -> None:
    sink = claimed(table, evolve=True)
    wider = pa.record_batch({"n": [2], "more": ["x"]})
    put(sink, 1, batch(1), wider, batch(3))
    found = [
        {"n": 1, "day": "mon", "more": None},
        {"n": 2, "day": None, "more": "x"},
        {"n": 3, "day": "mon", "more": None},
    ]
    assert rows(table) == found


def test_names_that_differ_only_by_case_are_refused(table: Path) -> None:
    claimed(table)
    with pytest.raises(UserError, match="differ only by case"):
        claimed(table, schema=pa.schema([("N", pa.int64())]), evolve=True)
    with pytest.raises(UserError, match="two columns of one name"):
        claimed(table.parent / "other", schema=pa.schema([("n", pa.int64()), ("N", pa.int64())]))


def test_a_column_that_needs_a_value_is_checked_before_the_checkpoint(table: Path) -> None:
    deltalake.DeltaTable.create(table, pa.schema([pa.field("n", pa.int64(), nullable=False), ("day", pa.string())]))
    sink = claimed(table)
    with pytest.raises(UserError, match="column n is NOT NULL in the table, and a row has no value"):
        sink.fitting(pa.record_batch({"n": pa.array([1, None], pa.int64())}))
    with pytest.raises(UserError, match="column n is NOT NULL, and the rows do not have it"):
        claimed(table, schema=pa.schema([("day", pa.string())]))
    put(sink, 1, batch(4))
    assert rows(table) == [{"n": 4, "day": "mon"}]


def test_a_rule_of_the_table_that_a_row_breaks_ends_the_app_with_the_row(table: Path) -> None:
    claimed(table)
    deltalake.DeltaTable(table).alter.add_constraint({"positive": "n > 0"})
    sink = claimed(table)
    put(sink, 1, batch(1))
    with pytest.raises(UserError, match=r"1 rows failed validation check.*-5.*mon"):
        put(sink, 2, batch(2, -5))
    assert rows(table) == [{"n": 1, "day": "mon"}]


# -- partitions, and the first start ------------------------------------------------------------------------------------


def test_rows_are_in_the_folders_of_their_partitions(table: Path) -> None:
    sink = claimed(table, partition_by=["day"])
    put(sink, 1, batch(1), batch(2, day="a/b c"), pa.record_batch({"n": [3], "day": [None]}, SCHEMA))
    assert len(list(table.glob("day=*/*.parquet"))) == 3
    found = polars.read_delta(str(table)).sort("n").to_dicts()
    assert found == [{"n": 1, "day": "mon"}, {"n": 2, "day": "a/b c"}, {"n": 3, "day": None}]
    put(claimed(table), 2, batch(4, day="tue"))  # the partitions of an existing table need not be said
    assert (table / "day=tue").is_dir()


def test_an_empty_text_that_delta_would_make_null_is_refused_before_the_checkpoint(table: Path) -> None:
    for sink in (claimed(table, partition_by=["day"]), claimed(table)):
        with pytest.raises(UserError, match="an empty text in column day, by which the table is partitioned"):
            put(sink, 1, batch(1, day=""))
    put(claimed(table), 1, batch(1, day="mon"), batch(2, day=None))


def test_other_partitions_than_those_of_the_table_are_refused(table: Path) -> None:
    claimed(table, partition_by=["day"])
    with pytest.raises(UserError, match="is partitioned by day, and partition_by= says n"):
        claimed(table, partition_by=["n"])
    with pytest.raises(UserError, match="partition_by names 'hour', but the rows have n, day"):
        DeltaSink(table, partition_by=["hour"]).check_types(SCHEMA)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("exactly", [False, True])
def test_a_fresh_start_adds_to_the_table_or_begins_empty(
    table: Path, overwrite: bool, exactly: bool, caplog: pytest.LogCaptureFixture
) -> None:
    put(claimed(table), 1, batch(1))
    caplog.set_level(logging.INFO)
    sink = DeltaSink(table, schema=SCHEMA, overwrite=overwrite)
    sink.start_afresh()
    if exactly:
        assert (sink.known(TRACK) is None) == overwrite
        sink.claim(TRACK)
        put(sink, 2, batch(2))
    else:
        sink.open()
        sink.write(Batch(batch(2)))
        sink.flush()
    assert [row["n"] for row in rows(table)] == ([2] if overwrite else [1, 2])
    assert (
        "are removed, as overwrite= says" if overwrite else "adds to them (overwrite=True begins empty)"
    ) in caplog.text
    sink.close()
    later = DeltaSink(table, schema=SCHEMA, overwrite=overwrite)  # a restart from a checkpoint
    later.claim(TRACK)
    assert [row["n"] for row in rows(table)] == ([2] if overwrite else [1, 2])


def test_a_table_without_known_columns_is_not_made(table: Path) -> None:
    with pytest.raises(UserError, match="does not exist, and its columns are not known") as refused:
        DeltaSink(table).claim(TRACK)
    assert "schema=pa.schema" in refused.value.hint


# -- whole apps ---------------------------------------------------------------------------------------------------------


async def test_a_stream_is_in_the_table_when_the_app_has_ended(table: Path, tmp_path: Path) -> None:
    app = App("orders", state=str(tmp_path / "state"))
    source = ScriptedSource([batch(1, 2), batch(3, day="tue"), END], schema=SCHEMA)
    app.stream(source).with_columns(double=col("n") * 2).to(DeltaSink(table, partition_by=["day"]))
    await app.run()
    assert [(row["n"], row["double"]) for row in rows(table)] == [(1, 2), (2, 4), (3, 6)]


def test_changes_are_refused_with_the_way_out(table: Path) -> None:
    app = App("orders", state="memory")
    changes = app.stream(ScriptedSource([batch(1), END], schema=SCHEMA)).upsert("n")
    with pytest.raises(UserError, match="final") as refused:
        changes.to(DeltaSink(table))
    assert "materialize" in str(refused.value.hint)


async def test_results_of_an_agent_become_rows(memory_url: str, table: Path, tmp_path: Path) -> None:
    app = App("orders", broker=memory_url, state=str(tmp_path / "state"))

    @app.agent("orders", sink=DeltaSink(table, schema=SCHEMA))
    async def large(ctx: Any) -> dict[str, Any]:
        return {"n": ctx.message["n"], "day": "mon", "unknown": 1}

    publish(app, "orders", [{"n": n} for n in range(3)])
    async with started(app):
        await until(lambda: len(rows(table)) == 3)
    assert rows(table) == [{"n": n, "day": "mon"} for n in range(3)]


# -- object stores, secrets, the missing package ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"aws_endpoint_url": f"http://{host}:{port}", "aws_region": "us-east-1", "aws_allow_http": "true"}
    server.stop()


@pytest.mark.slow  # the server of the store takes seconds to import
def test_a_table_in_s3(s3: dict[str, str]) -> None:
    from pyarrow import fs

    options = {**s3, "aws_access_key_id": "any", "aws_secret_access_key": "anyone"}
    where = s3["aws_endpoint_url"].removeprefix("http://")
    fs.S3FileSystem(access_key="any", secret_key="anyone", region="us-east-1", scheme="http", endpoint_override=where,
                    allow_bucket_creation=True).create_dir("lake")  # fmt: skip
    sink = claimed("s3://lake/orders", storage_options=options)
    put(sink, 1, batch(1, 2))
    put(sink, 1, batch(1, 2))
    later = claimed("s3://lake/orders", storage_options=options)
    put(later, 2, batch(3))
    with pytest.raises(AppLocked):
        put(sink, 3, batch(4))
    found = deltalake.DeltaTable("s3://lake/orders", storage_options=options).to_pyarrow_table()
    assert sorted(found.column("n").to_pylist()) == [1, 2, 3]
    with pytest.raises(TransientError, match="NoSuchBucket"):
        claimed("s3://none/orders", storage_options=options)


@pytest.mark.slow  # as above
def test_a_store_whose_answers_to_commits_are_lost_has_each_row_once(s3: dict[str, str]) -> None:
    """deltalake asks again by itself, and hears that the entry is there: it may be its own or that of another process."""
    from pyarrow import fs

    where = s3["aws_endpoint_url"].removeprefix("http://")
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "anyone"}
    fs.S3FileSystem(access_key="any", secret_key="anyone", region="us-east-1", scheme="http", endpoint_override=where,
                    allow_bucket_creation=True).create_dir("losing")  # fmt: skip
    count, lost = iter(range(1000)), []

    def loses(method: str, path: str) -> bool:
        is_commit = method == "PUT" and "_delta_log" in path and path.partition("?")[0].endswith(".json")
        if not is_commit or next(count) % 2:  # the next try of deltalake is answered
            return False
        lost.append(path)
        return True

    with LosingProxy(where, loses) as proxy:
        options = {**s3, **keys, "aws_endpoint_url": f"http://{proxy.address}"}
        sink = DeltaSink("s3://losing/orders", schema=SCHEMA, storage_options=options)
        again(lambda: sink.claim(TRACK))
        for seq in range(1, 9):
            again(lambda seq=seq: put(sink, seq, batch(seq)))
        later = DeltaSink("s3://losing/orders", schema=SCHEMA, storage_options=options)
        again(lambda: later.claim(TRACK))
        with pytest.raises(AppLocked):
            again(lambda: put(sink, 9, batch(9)))
        again(lambda: put(later, 8, batch(8)))
    assert len(lost) > 5
    found = deltalake.DeltaTable("s3://losing/orders", storage_options={**s3, **keys}).to_pyarrow_table()
    assert sorted(found.column("n").to_pylist()) == list(range(1, 9))


def again(call: Callable[[], object]) -> None:
    """Calls until it succeeds, as the engine does after a TransientError."""
    for _ in range(20):
        with contextlib.suppress(TransientError):
            call()
            return
    raise AssertionError("20 tries have failed")


def test_secrets_of_the_store_are_in_no_message(caplog: pytest.LogCaptureFixture) -> None:
    secret = planted("/+")
    options = {
        "aws_endpoint_url": "http://127.0.0.1:9",
        "aws_region": "us-east-1",
        "aws_allow_http": "true",
        "aws_access_key_id": "any",
        "aws_secret_access_key": secret,
        "max_retries": "0",
    }
    sink = DeltaSink(f"s3://any:{secret}@lake/orders", schema=SCHEMA, storage_options=options)
    with pytest.raises(UserError) as refused:
        sink.claim(TRACK)
    assert not leaks(f"{refused.value}{refused.value.__cause__!r}{sink.name}{sink.address}{caplog.text}")
    sink = DeltaSink("s3://lake/orders", schema=SCHEMA, storage_options=options)
    with pytest.raises(TransientError, match="table s3://lake/orders cannot be reached") as away:
        sink.claim(TRACK)
    assert "storage_options=" in away.value.hint
    assert not leaks(f"{away.value}{away.value.__cause__!r}{caplog.text}")


def test_without_the_package_the_error_names_the_extra(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(UserError, match="Delta Lake needs an optional package") as refused:
        DeltaSink(table)
    assert "sabot[delta]" in refused.value.hint
