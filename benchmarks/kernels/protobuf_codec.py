"""Protobuf payloads to columns and back on one core, beside JSON with the same records, and the library of Protobuf.

    python benchmarks/kernels/protobuf_codec.py [--columns account,amount,ts] [--rows N] [--passes N]

Card transactions (make_txns.py), 7 fields, in batches of 64 Ki rows of an Arrow binary array, as the Kafka source has them. Rates are rows
per second of the processor's time, the best of several passes, in which the ways take turns:

    protobuf, json    the wanted columns; `protobuf_over_json` is how many times as fast Protobuf is
    protobuf_all, json_all    all 7 columns
    protobuf_framed   the wanted columns of payloads with Confluent's header
    nested    an order with a submessage, a list of messages and a map: all of it
    nested_without_map, json_nested    the same payloads without reading the map, and JSON that has none
    protobuf_encode, json_encode    7 columns to payloads
    library, library_encode    an object per record with google.protobuf (upb), of the first 20,000 rows, and lists of the wanted fields

Checked: every way gives the drawn rows, and the library reads our payloads, and we its.
"""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from sabot._cython.text.json import JsonDecoder, encode_rows
from sabot.codecs.protobuf import ProtobufCodec, ProtobufEncoder, arrow_schema

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
from avro_codec import COLUMNS, best, drawn, each_dropped, main, records, summary
from make_txns import SCHEMA

LIBRARY_ROWS = 20_000


def message_types() -> tuple[Any, Any]:
    """Txn, with the columns of a transaction, and Order, which holds one and is nested."""
    kinds = descriptor_pb2.FieldDescriptorProto
    types = {pa.int64(): kinds.TYPE_INT64, pa.string(): kinds.TYPE_STRING, pa.float64(): kinds.TYPE_DOUBLE}
    file = descriptor_pb2.FileDescriptorProto(name="txn.proto", package="bench", syntax="proto3")
    txn = file.message_type.add(name="Txn")
    for number, field in enumerate(SCHEMA, start=1):
        txn.field.add(name=field.name, number=number, type=types.get(field.type, kinds.TYPE_BOOL), label=1)
    order = file.message_type.add(name="Order")
    entry = order.nested_type.add(name="MarksEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=1)
    entry.field.add(name="value", number=2, type=kinds.TYPE_INT64, label=1)
    order.field.add(name="first", number=1, type=kinds.TYPE_MESSAGE, label=1, type_name=".bench.Txn")
    order.field.add(name="others", number=2, type=kinds.TYPE_MESSAGE, label=3, type_name=".bench.Txn")
    order.field.add(name="marks", number=3, type=kinds.TYPE_MESSAGE, label=3, type_name=".bench.Order.MarksEntry")
    order.field.add(name="sizes", number=4, type=kinds.TYPE_SINT32, label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bench.{name}")) for name in ("Txn", "Order")
    )


TXN, ORDER = message_types()


def nested(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Orders: each holds its own transaction, those of two rows behind it, two marks and three sizes."""
    schema, rows = arrow_schema(ORDER), batch.num_rows
    fields = list(batch.schema)
    first = pa.StructArray.from_arrays(batch.columns, fields=fields)
    doubled = pa.concat_arrays([first, first])
    others = pa.ListArray.from_arrays(
        pa.array(range(0, 2 * rows + 1, 2), pa.int32()), doubled, type=schema.field("others").type
    )
    keys = pa.array(["speed", "weight"] * rows)
    marks = pa.MapArray.from_arrays(pa.array(range(0, 2 * rows + 1, 2), pa.int32()), keys, pa.array(range(2 * rows)))
    sizes = pa.ListArray.from_arrays(
        pa.array(range(0, 3 * rows + 1, 3), pa.int32()),
        pa.array(range(3 * rows), pa.int32()),
        type=schema.field("sizes").type,
    )
    return pa.RecordBatch.from_arrays([first, others, marks.cast(schema.field("marks").type), sizes], schema=schema)


def library_read(payloads: list[bytes], names: list[str]) -> dict[str, list[Any]]:
    read = TXN.FromString
    found = [read(payload) for payload in payloads]
    return {name: [getattr(each, name) for each in found] for name in names}


def library_written(rows: list[Any]) -> list[bytes]:
    return [TXN(**row).SerializeToString() for row in rows]


def measure(rows: int, names: list[str], passes: int) -> dict[str, Any]:
    batches = drawn(rows)
    encoder, framing = ProtobufEncoder(TXN), ProtobufEncoder(TXN, schema_id=7)
    some, all_columns = ProtobufCodec(TXN, columns=names), ProtobufCodec(TXN)
    framed = ProtobufCodec(TXN, columns=names, framed=True)
    json_some, json_all = JsonDecoder(COLUMNS.empty_table().select(names).schema), JsonDecoder(COLUMNS)
    payloads = [records(encoder.encode(batch)) for batch in batches]
    with_header = [records(framing.encode(batch)) for batch in batches]
    texts = [encode_rows(batch) for batch in batches]
    few = payloads[0].column(0).slice(0, LIBRARY_ROWS).to_pylist()
    rows_of_few = batches[0].slice(0, len(few)).to_pylist()

    for batch, plain, headed, text in zip(batches, payloads, with_header, texts, strict=True):
        for found, bad in (all_columns.decode(plain), json_all.decode(text)):
            assert not bad, bad[0]
            assert found.equals(batch), "the decoded rows are not the drawn ones"
        for found, bad in (some.decode(plain), framed.decode(headed), json_some.decode(text)):
            assert not bad, bad[0]
            assert found.equals(batch.select(names)), "the decoded columns are not the drawn ones"
    assert library_written(rows_of_few) == few, "the payloads are not those of the library"
    assert library_read(few, names) == {name: [row[name] for row in rows_of_few] for name in names}, (
        "the library reads others"
    )

    orders = nested(batches[0])
    order_codec = ProtobufCodec(ORDER)
    order_payloads = records(ProtobufEncoder(ORDER).encode(orders))
    found, bad = order_codec.decode(order_payloads)
    assert found.equals(orders), "the decoded orders are not the drawn ones"
    assert not bad, bad[0]
    without_map = orders.drop_columns("marks")
    some_of_orders = ProtobufCodec(ORDER, columns=without_map.schema.names)
    found, bad = some_of_orders.decode(order_payloads)
    assert found.equals(without_map), "the decoded orders without their maps are not the drawn ones"
    order_texts, json_orders = encode_rows(without_map), JsonDecoder(without_map.schema)

    figures = best(
        {
            "protobuf": (rows, lambda: each_dropped(some.decode, payloads)),
            "json": (rows, lambda: each_dropped(json_some.decode, texts)),
            "protobuf_all": (rows, lambda: each_dropped(all_columns.decode, payloads)),
            "json_all": (rows, lambda: each_dropped(json_all.decode, texts)),
            "protobuf_framed": (rows, lambda: each_dropped(framed.decode, with_header)),
            "nested": (orders.num_rows, lambda: order_codec.decode(order_payloads)),
            "nested_without_map": (orders.num_rows, lambda: some_of_orders.decode(order_payloads)),
            "json_nested": (orders.num_rows, lambda: json_orders.decode(order_texts)),
            "protobuf_encode": (rows, lambda: each_dropped(encoder.encode, batches)),
            "json_encode": (rows, lambda: each_dropped(encode_rows, batches)),
            "library": (len(few), lambda: library_read(few, names)),
            "library_encode": (len(few), lambda: library_written(rows_of_few)),
        },
        passes,
    )
    return {
        **summary("protobuf", rows, names, figures, [each.column(0) for each in payloads], texts),
        "protobuf_over_library": round(figures["protobuf"] / figures["library"], 1),
        "checked_against": "the drawn rows, and google.protobuf",
    }


if __name__ == "__main__":
    main(__doc__, measure)
