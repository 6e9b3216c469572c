"""Changes of a table of PostgreSQL, decoded into columns. Real servers are in integration/test_postgres_types.py."""

import json
import struct
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from sabot._cython.binary.pgoutput import ChangeDecoder, ChangeRun, SentRelation, Truncate
from twins.pgoutput import COPY_BEGINS, COPY_ENDS, UNCHANGED, Wal, row, value

INSERT, UPDATE, DELETE = 0, 2, 3
COLUMNS = pa.schema([pa.field("id", pa.int32(), nullable=False), ("name", pa.string()), ("price", pa.decimal128(6, 2))])
KINDS = ["int4", "text", "decimal"]

ENDS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "bool": (pa.bool_(), [True, False]),
    "int2": (pa.int16(), [-(2**15), 2**15 - 1]),
    "int4": (pa.int32(), [-(2**31), 2**31 - 1]),
    "int8": (pa.int64(), [-(2**63), 2**63 - 1]),
    "oid": (pa.int64(), [0, 2**32 - 1]),
    "float4": (pa.float32(), [-3.4028234663852886e38, 2.0**-149, float("inf")]),
    "float8": (pa.float64(), [-1.7976931348623157e308, 5e-324, float("-inf")]),
    "decimal": (pa.decimal256(76, 38), [Decimal("-" + "9" * 38 + "." + "9" * 38), Decimal("1E-38"), Decimal(10**37)]),
    "numeric": (pa.string(), ["NaN", "-Infinity", "-0.00010", "0.000", "100000000", "1" + "0" * 100 + ".5"]),
    "text": (pa.string(), ["", "é" * 1000, "\x7f"]),
    "jsonb": (pa.string(), ["{}"]),
    "bytea": (pa.binary(), [b"", bytes(range(256))]),
    "uuid": (pa.string(), ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
    "date": (pa.date32(), [date.min, date(1969, 12, 31), date.max]),
    "time": (pa.time64("us"), [time.min, time.max]),
    "timestamp": (pa.timestamp("us"), [datetime.min, datetime(1970, 1, 1), datetime.max]),
    "timestamptz": (pa.timestamp("us", "UTC"), [datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]),
    "list int4": (pa.list_(pa.int32()), [[], [1, None, -(2**31)]]),
    "list decimal": (pa.list_(pa.decimal128(5, 1)), [[Decimal("-9999.9")]]),
    "vector": (pa.list_(pa.float32()), [[], [1.5, -0.25]]),
}


def decoder() -> ChangeDecoder:
    return ChangeDecoder(COLUMNS, KINDS, ["id"])


def wal() -> Wal:
    made = Wal(KINDS, COLUMNS.names, ["id"])
    made.describe()
    return made


def everything(given: ChangeDecoder, messages: list[bytes], max_rows: int = 1000) -> list[ChangeRun]:
    """All runs over the messages; tables are taken as they are."""
    runs, at = [], 0
    while at < len(messages):
        runs.append(given.decode(messages, at, max_rows))
        at = runs[-1].next
        if isinstance(stop := runs[-1].stop, SentRelation):
            given.use(stop.oid, range(len(COLUMNS)))
    return runs


def changes(runs: list[ChangeRun]) -> list[tuple[Any, ...]]:
    return [(each["__op"], *list(each.values())[:-1]) for run in runs for each in run.rows.to_pylist()]


@pytest.mark.parametrize("kind", ENDS)
def test_values_at_both_ends_of_their_types_are_exact(kind: str) -> None:
    data_type, values = ENDS[kind]
    made = ChangeDecoder(pa.schema([pa.field("x", data_type)]), [kind], [])
    chunks = [row([kind], [each]) for each in [*values, None]]
    chunks[0] = COPY_BEGINS + chunks[0]
    run = made.copy([*chunks, COPY_ENDS])
    run.rows.validate(full=True)
    assert run.bad == []
    assert run.rows.column(0).equals(pa.array([*values, None], data_type))
    assert run.rows.column(1).to_pylist() == [INSERT] * len(chunks)


def test_a_copy_without_rows_is_its_signature_and_its_end() -> None:
    assert decoder().copy([COPY_BEGINS + COPY_ENDS]).rows.num_rows == 0
    assert decoder().copy([]).rows.num_rows == 0


def test_changes_of_a_key_are_its_row_or_that_it_has_none() -> None:
    log = wal()
    log.begin()
    log.insert(1, "ada", "1.5")
    log.update(1, "grace", None)
    log.update(2, "grace", None, old=(1, None, None))
    log.delete(2, None, None)
    log.commit()
    runs = everything(decoder(), log.sent)
    assert changes(runs) == [
        (INSERT, 1, "ada", Decimal("1.50")),
        (UPDATE, 1, "grace", None),
        (DELETE, 1, None, None),
        (INSERT, 2, "grace", None),
        (DELETE, 2, None, None),
    ]
    assert (runs[-1].position, runs[-1].taken) == (log.lsn + 5, 0)
    (transaction,) = runs[-1].transactions
    assert (transaction.first, transaction.lsn, transaction.xid) == (0, log.lsn, log.lsn)
    assert transaction.time == 946_684_801_000_000


def test_with_the_whole_old_row_only_a_changed_key_is_removed_and_unchanged_values_come_from_it() -> None:
    log = wal()
    log.begin()
    log.update(1, UNCHANGED, "2", old=(1, "long", "1"), mark=b"O")
    log.update(2, UNCHANGED, "2", old=(1, "long", "1"), mark=b"O")
    log.update(2, UNCHANGED, "2", old=(2, None, "1"), mark=b"O")
    log.delete(2, "long", "2", mark=b"O")
    log.commit()
    assert changes(everything(decoder(), log.sent)) == [
        (UPDATE, 1, "long", Decimal(2)),
        (DELETE, 1, None, None),
        (INSERT, 2, "long", Decimal(2)),
        (UPDATE, 2, None, Decimal(2)),
        (DELETE, 2, None, None),
    ]


def test_an_old_row_that_is_a_key_gives_its_key_and_no_null_in_place_of_a_value() -> None:
    """A large value of a key comes so; one of another column is nowhere in the log."""
    log = Wal(["text", "text", "decimal"], COLUMNS.names, ["id"])
    log.describe()
    log.begin()
    log.update(UNCHANGED, "ada", "2", old=("long", None, None), mark=b"K")
    log.update("2", UNCHANGED, "3", old=("long", None, None), mark=b"K")
    log.commit()
    made = ChangeDecoder(COLUMNS.set(0, pa.field("id", pa.string(), nullable=False)), ["text", *KINDS[1:]], ["id"])
    runs = everything(made, log.sent)
    assert changes(runs) == [(UPDATE, "long", "ada", Decimal(2)), (DELETE, "long", None, None)]
    assert [(bad.column, bad.reason.split(": ", 1)[1]) for run in runs for bad in run.bad] == [
        (
            "name",
            "the update has not the value, since it did not change it; ALTER TABLE … REPLICA IDENTITY FULL makes the server send it",
        )
    ]


def test_an_unchanged_value_that_is_nowhere_is_a_bad_row() -> None:
    log = wal()
    log.begin()
    log.update(1, UNCHANGED, "2")
    log.insert(2, "b", "NaN")
    log.insert(3, "c", "3")
    log.insert(4, b"\xff", "3")
    log.insert(None, "d", "3")
    log.delete(None, None, None)
    log.commit()
    run = everything(decoder(), log.sent)[-1]
    assert changes([run]) == [(INSERT, 3, "c", Decimal(3))]
    assert [(bad.row, bad.message, bad.column, bad.reason.split(": ", 1)[1]) for bad in run.bad] == [
        (
            0,
            2,
            "name",
            "the update has not the value, since it did not change it; ALTER TABLE … REPLICA IDENTITY FULL makes the server send it",
        ),
        (0, 3, "price", "NaN is no decimal number"),
        (1, 5, "name", "the text is not UTF-8"),
        (1, 6, "id", "null in a column that has no nulls"),
        (1, 7, "id", "a deletion has no value of this key: it is no column of the replica identity"),
    ]
    assert [json.loads(bad.payload) for bad in run.bad[1:3]] == [
        {"id": "2", "name": "b", "price": "NaN"},
        {"id": "4", "name": "\ufffd", "price": "3"},
    ]


BAD = {
    "numeric digits": ("decimal", value("numeric", "10000.00"), "the number has more digits than its type"),
    "numeric scale": (
        "decimal",
        value("numeric", "1.001"),
        "the number has more digits behind the point than its type",
    ),
    "numeric weight": ("decimal", struct.pack(">HhHHH", 1, 32767, 0, 0, 1), "the number has more digits than its type"),
    "numeric -inf": ("decimal", value("numeric", "-Infinity"), "-Infinity is no decimal number"),
    "numeric inf": ("decimal", value("numeric", "Infinity"), "Infinity is no decimal number"),
    "date": ("date", struct.pack(">i", 2**31 - 1), "the date is infinite"),
    "date before": ("date", struct.pack(">i", -(2**31)), "the date is infinite"),
    "time": ("time", struct.pack(">q", 86_400_000_000), "the time 24:00:00 is not within a day"),
    "timestamp": ("timestamp", struct.pack(">q", -(2**63)), "the time is infinite"),
    "timestamp after": ("timestamptz", struct.pack(">q", 2**63 - 1), "the time is infinite"),
    "late": (
        "timestamp",
        struct.pack(">q", 2**63 - 946_684_800_000_000),
        "the time is after the year 294246, the last one in microseconds",
    ),
    "list": (
        "list int4",
        struct.pack(">iii4i", 2, 0, 23, 1, 1, 1, 1),
        "the array has 2 dimensions, and a list has one",
    ),
    "item": ("list decimal", value("list numeric", ["1", "NaN"]), "NaN is no decimal number"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_arrow_lacks_makes_its_row_bad_and_no_other(name: str) -> None:
    kind, data, reason = BAD[name]
    data_type = pa.decimal128(6, 2) if kind == "decimal" else ENDS[kind][0]
    made = ChangeDecoder(pa.schema([("n", pa.int32()), ("x", data_type)]), ["int4", kind], [])
    good = ENDS[kind][1][0] if kind != "decimal" else "1.25"
    run = made.copy([row(["int4", kind], [1, good]), row(["int4", kind], [2, data]), row(["int4", kind], [3, good])])
    assert run.rows.column(0).to_pylist() == [1, 3]
    run.rows.validate(full=True)
    ((bad),) = run.bad
    assert (bad.row, bad.column, bad.reason) == (1, "x", f"column x: {reason}")


BROKEN = {
    "size": ("int4", b"\0\0\0", "a value has 3 bytes, and its type 4"),
    "numeric": ("decimal", b"\0\0\0\0\0", "it ends within a numeric"),
    "digits": ("decimal", struct.pack(">HhHH", 1, 0, 0, 0), "it ends within the digits of a numeric"),
    "digit": ("decimal", struct.pack(">HhHHH", 1, 0, 0, 0, 10000), "a digit of a numeric is above 9999"),
    "sign": ("decimal", struct.pack(">HhHH", 0, 0, 1, 0), "the sign of a numeric is none"),
    "time": ("time", struct.pack(">q", -1), "a time is outside of a day"),
    "dimensions": ("list int4", struct.pack(">iii", -1, 0, 23), "an array has -1 dimensions"),
    "items": ("list int4", struct.pack(">iiiii", 1, 0, 23, 1 << 30, 1), "it ends within an item of an array"),
    "jsonb": ("jsonb", b"\2{}", "jsonb is not of version 1"),
    "vector": ("vector", struct.pack(">hh", -1, 0), "it ends within the numbers of a vector"),
    "range": ("range int4", b"\2\xff\xff\xff\xff", "the length of a bound of a range is negative"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bytes_that_no_server_sends_are_an_error_with_their_place(name: str) -> None:
    kind, data, reason = BROKEN[name]
    data_type = pa.string() if kind == "range int4" else pa.decimal128(6, 2) if kind == "decimal" else ENDS[kind][0]
    made = ChangeDecoder(pa.schema([("x", data_type)]), [kind], [])
    good = row([kind], [None])
    with pytest.raises(ValueError, match=r"message 1 of COPY, byte \d+: " + reason):
        made.copy([good, row([kind], [data])])
    assert made.copy([good]).rows.num_rows == 1


@pytest.mark.parametrize("max_rows", [1, 2, 3, 1000])
def test_a_run_goes_on_behind_each_row_in_one_connection_and_in_the_next(max_rows: int) -> None:
    log = wal()
    for number in range(3):
        log.begin()
        log.insert(number, "a", "1")
        log.update(number + 10, "b", "1", old=(number, None, None))
        log.insert(99, "bad", "NaN")
        log.update(number + 10, "c", "1")
        log.commit()
    whole = everything(decoder(), log.sent)
    expected = [(change[0], change[1]) for change in changes(whole)]
    assert len(expected) == 12
    assert sum(len(run.bad) for run in whole) == 3
    runs = everything(decoder(), log.sent, max_rows)
    assert changes(runs) == changes(whole)
    assert all(run.rows.num_rows + len(run.bad) <= max_rows for run in runs)
    position, seen, letters = 0, 0, 0
    for run in runs:
        position = run.position or position
        seen += run.rows.num_rows
        letters += len(run.bad)
        other = decoder()
        other.begin(position, run.taken)
        assert other.decode([]).taken == run.taken
        rest = everything(other, log.sent, max_rows)
        assert changes(rest) == changes(whole)[seen:]
        assert sum(len(each.bad) for each in rest) == 3 - letters


def test_tables_and_truncations_stop_a_run_for_the_caller() -> None:
    log = wal()
    log.begin()
    log.insert(1, "a", "1")
    log.truncate(log.relation, options=3)
    log.insert(2, "b", "1")
    log.commit()
    made = decoder()
    first = made.decode(log.sent)
    assert isinstance(first.stop, SentRelation)
    assert (first.next, first.stop.schema, first.stop.table, first.stop.identity) == (1, "public", "orders", "d")
    assert first.stop.columns == [("id", 25, -1, True), ("name", 25, -1, False), ("price", 25, -1, False)]
    made.use(first.stop.oid, [0, 1, 2])
    second = made.decode(log.sent, first.next)
    assert isinstance(second.stop, Truncate)
    assert (second.stop.relations, second.stop.cascade, second.stop.restart) == ([log.relation], True, True)
    assert (second.rows.num_rows, second.taken, second.position) == (1, 1, 0)
    third = made.decode(log.sent, second.next)
    assert (third.rows.num_rows, third.stop, third.position) == (1, None, log.lsn + 5)


def test_other_tables_columns_and_messages_are_passed_over() -> None:
    log, other = wal(), Wal(["text"], ["x"], [], relation=7)
    other.sent = log.sent
    log.begin()
    other.insert("x")
    other.truncate(7)
    log.send(b"O" + struct.pack(">Q", 1) + b"origin\0")
    log.send(b"Y" + struct.pack(">I", 1) + b"public\0mood\0")
    log.send(b"M\1" + struct.pack(">Q", 1) + b"prefix\0" + struct.pack(">i", 2) + b"hi")
    log.insert(1, "a", "1")
    log.commit()
    made = ChangeDecoder(
        pa.schema([("price", pa.decimal128(6, 2)), pa.field("id", pa.int32())]), ["decimal", "int4"], ["id"]
    )
    stop = made.decode(log.sent).stop
    assert isinstance(stop, SentRelation)
    made.use(stop.oid, [1, -1, 0])
    made.ignore(7)
    run = made.decode(log.sent, 1)
    assert run.rows.to_pylist() == [{"price": Decimal(1), "id": 1, "__op": INSERT}]
    assert run.next == len(log.sent)


def test_columns_that_a_table_did_not_have_yet_are_null() -> None:
    log = Wal(["int4"], ["id"], ["id"])
    log.describe()
    log.begin()
    log.insert(1)
    log.insert(2)
    log.delete(1)
    log.commit()
    made = decoder()
    made.use(log.relation, [0])
    run = made.decode(log.sent, 1)
    run.rows.validate(full=True)
    assert changes([run]) == [(INSERT, 1, None, None), (INSERT, 2, None, None), (DELETE, 1, None, None)]
    with pytest.raises(ValueError, match="it has no column for id, which is a key"):
        made.use(log.relation, [1])


def test_each_message_cut_at_each_byte_is_an_error_that_names_it_and_changes_nothing() -> None:
    log = wal()
    log.begin()
    log.insert(1, "ada", "1.5")
    log.update(2, UNCHANGED, None, old=(1, "ada", "1.5"), mark=b"O")
    log.delete(2, None, None)
    log.truncate(log.relation)
    log.send(b"O" + struct.pack(">Q", 1) + b"origin\0")
    log.send(b"Y" + struct.pack(">I", 1) + b"public\0mood\0")
    log.send(b"M\1" + struct.pack(">Q", 1) + b"prefix\0" + struct.pack(">i", 2) + b"hi")
    log.commit()
    expected = changes(everything(decoder(), log.sent))
    assert len(expected) == 4
    for number, message in enumerate(log.sent):
        made = decoder()
        before = everything(made, log.sent[:number])
        for size in range(len(message)):
            with pytest.raises(ValueError, match=r"message 0 \([A-Z?][a-z]*\), byte \d+: "):
                made.decode([message[:size]])
        with pytest.raises(ValueError, match="there are bytes after its end"):
            made.decode([message + b"\0"])
        assert changes([*before, *everything(made, log.sent[number:])]) == expected


def test_messages_out_of_order_are_refused() -> None:
    log = wal()
    log.begin()
    log.insert(1, "a", "1")
    log.commit()
    with pytest.raises(ValueError, match=r"message 0 \(Insert\), byte 25: it is outside of a transaction"):
        decoder().decode(log.sent[2:])
    with pytest.raises(
        ValueError, match=r"message 1 \(Insert\), byte 26: no Relation message came before for relation 16384"
    ):
        decoder().decode(log.sent[1:])
    with pytest.raises(ValueError, match="a transaction begins within another one"):
        decoder().decode([log.sent[1], log.sent[1]])
    with pytest.raises(ValueError, match="it is no XLogData"):
        decoder().decode([b"k" + bytes(30)])
    made = decoder()
    made.use(16384, [0, 1, -1, 2])
    with pytest.raises(ValueError, match="a tuple has 3 columns, and its relation 4"):
        made.decode(log.sent[1:])


def test_a_decoder_is_not_made_of_kinds_and_keys_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="column x: there is no kind 'list list int4'"):
        ChangeDecoder(pa.schema([("x", pa.int32())]), ["list list int4"], [])
    with pytest.raises(TypeError, match="column x: values of the kind 'int8' do not go into a column of int32"):
        ChangeDecoder(pa.schema([("x", pa.int32())]), ["int8"], [])
    with pytest.raises(ValueError, match="the keys y are no columns"):
        ChangeDecoder(pa.schema([("x", pa.int32())]), ["int4"], ["y"])
    with pytest.raises(ValueError, match="column x is no key, and has to be nullable"):
        ChangeDecoder(pa.schema([pa.field("x", pa.int32(), nullable=False)]), ["int4"], [])
    with pytest.raises(ValueError, match="`places` are columns of our 3, each at most once"):
        decoder().use(1, [0, 1, 1])
    with pytest.raises(TypeError, match="a message must be bytes, not bytearray"):
        decoder().copy([bytearray(b"x")])  # type: ignore[list-item]
