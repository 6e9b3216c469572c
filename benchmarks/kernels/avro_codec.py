"""Avro payloads to columns and back on one core, beside JSON with the same records, and fastavro.

    python benchmarks/kernels/avro_codec.py [--columns account,amount,ts] [--rows N] [--passes N]

Card transactions (make_txns.py), 7 fields, in batches of 64 Ki rows of an Arrow binary array, as the Kafka source has them: 121 bytes a
row as JSON, 33 as Avro. Rates are rows per second of the processor's time, the best of several passes, in which the ways take turns:

    avro, json        the wanted columns; `avro_over_json` is how many times as fast Avro is
    avro_all, json_all    all 7 columns
    avro_ids          the wanted columns of payloads with Confluent's header, of two schemas that take turns, one of them older
    avro_encode, json_encode    7 columns to payloads
    fastavro, fastavro_encode   a dict per record with fastavro, of the first 20,000 rows

Checked: every way gives the drawn rows, and fastavro's payloads are ours, byte for byte.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa

from sabot._cython.text.json import JsonDecoder, encode_rows
from sabot.codecs.avro import AvroCodec, AvroEncoder, avro_schema

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
from make_txns import SCHEMA, Transactions

BATCH_ROWS = 65536
FASTAVRO_ROWS = 20_000
COLUMNS = pa.schema([field.with_nullable(False) for field in SCHEMA])
AVRO = avro_schema(COLUMNS, "Transaction")
OLDER = {**AVRO, "fields": [each if each["name"] != "country" else {**each, "name": "land"} for each in AVRO["fields"]]}


def drawn(rows: int) -> list[pa.RecordBatch]:
    transactions, batches, left = Transactions(7), [], rows
    for number in range(rows):
        chunk = transactions.chunk(number)
        for start in range(0, chunk.num_rows, BATCH_ROWS):
            batch = chunk.slice(start, min(BATCH_ROWS, left))
            batches.append(pa.RecordBatch.from_arrays(batch.columns, schema=COLUMNS))
            left -= batch.num_rows
            if not left:
                return batches
    return batches


def records(payloads: pa.Array) -> pa.RecordBatch:
    return pa.record_batch([payloads], names=["payload"])


def by_turns(first: pa.RecordBatch, second: pa.RecordBatch) -> pa.RecordBatch:
    """Every second payload of each."""
    joined = pa.concat_arrays([first.column(0), second.column(0)])
    rows = first.num_rows
    return records(joined.take(pa.array([row + row % 2 * rows for row in range(rows)])))


def fastavro_read(payloads: list[bytes], schema: Any) -> list[Any]:
    return [fastavro.schemaless_reader(io.BytesIO(payload), schema, None) for payload in payloads]


def fastavro_written(rows: list[Any], schema: Any) -> list[bytes]:
    made = []
    for row in rows:
        file = io.BytesIO()
        fastavro.schemaless_writer(file, schema, row)
        made.append(file.getvalue())
    return made


def each_dropped(convert: Callable[[Any], object], parts: list[Any]) -> None:
    """Converts all parts; each result is dropped before the next is made, as a pipeline does."""
    for each in parts:
        convert(each)


def best(ways: dict[str, tuple[int, Callable[[], object]]], passes: int) -> dict[str, int]:
    """Rows per second of each way, in its fastest pass."""
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(passes):
        for name, (_, run) in ways.items():
            started = time.process_time()
            run()
            seconds[name] = min(seconds[name], time.process_time() - started)
    return {name: round(rows / seconds[name]) for name, (rows, _) in ways.items()}


def summary(
    kind: str, rows: int, names: list[str], figures: dict[str, int], payloads: list[pa.Array], texts: list[pa.Array]
) -> dict[str, Any]:
    """What both benchmarks of a codec print; payloads, texts: the rows in its format, and in JSON."""
    return {
        "benchmark": f"{kind}_codec",
        "rows": rows,
        "columns": names,
        f"{kind}_bytes_per_row": round(sum(each.nbytes for each in payloads) / rows - 4, 1),
        "json_bytes_per_row": round(sum(each.nbytes for each in texts) / rows - 4, 1),
        **{f"{name}_rows_per_s": rate for name, rate in figures.items()},
        f"{kind}_over_json": round(figures[kind] / figures["json"], 2),
        f"{kind}_all_over_json_all": round(figures[f"{kind}_all"] / figures["json_all"], 2),
    }


def measure(rows: int, names: list[str], passes: int) -> dict[str, Any]:
    batches = drawn(rows)
    encoder, schema = AvroEncoder(AVRO), fastavro.parse_schema(AVRO)
    avro = [records(encoder.encode(batch)) for batch in batches]
    texts = [encode_rows(batch) for batch in batches]
    news, olds = AvroEncoder(AVRO, schema_id=7), AvroEncoder(OLDER, schema_id=6)
    turns = [
        by_turns(
            records(news.encode(batch)),
            records(olds.encode(batch.rename_columns([each["name"] for each in OLDER["fields"]]))),
        )
        for batch in batches
    ]
    some, all_columns = AvroCodec(AVRO, columns=names), AvroCodec(AVRO)
    written = {6: json.dumps(OLDER), 7: json.dumps(AVRO)}
    with_ids = AvroCodec(AVRO, schema_of=written.__getitem__, columns=names)
    json_some, json_all = JsonDecoder(COLUMNS.empty_table().select(names).schema), JsonDecoder(COLUMNS)
    few = avro[0].column(0).slice(0, FASTAVRO_ROWS).to_pylist()
    rows_of_few = batches[0].slice(0, len(few)).to_pylist()

    for batch, payloads, text, mixed in zip(batches, avro, texts, turns, strict=True):
        for found, bad in (all_columns.decode(payloads), json_all.decode(text)):
            assert not bad, bad[0]
            assert found.equals(batch), "the decoded rows are not the drawn ones"
        for found, bad in (some.decode(payloads), with_ids.decode(mixed), json_some.decode(text)):
            assert not bad, bad[0]
            assert found.equals(batch.select(names)), "the decoded columns are not the drawn ones"
    assert fastavro_written(rows_of_few, schema) == few, "the payloads are not those of fastavro"
    assert fastavro_read(few, schema) == rows_of_few, "fastavro does not read the drawn rows"

    figures = best(
        {
            "avro": (rows, lambda: each_dropped(some.decode, avro)),
            "json": (rows, lambda: each_dropped(json_some.decode, texts)),
            "avro_all": (rows, lambda: each_dropped(all_columns.decode, avro)),
            "json_all": (rows, lambda: each_dropped(json_all.decode, texts)),
            "avro_ids": (rows, lambda: each_dropped(with_ids.decode, turns)),
            "avro_encode": (rows, lambda: each_dropped(encoder.encode, batches)),
            "json_encode": (rows, lambda: each_dropped(encode_rows, batches)),
            "fastavro": (len(few), lambda: fastavro_read(few, schema)),
            "fastavro_encode": (len(few), lambda: fastavro_written(rows_of_few, schema)),
        },
        passes,
    )
    return {
        **summary("avro", rows, names, figures, [each.column(0) for each in avro], texts),
        "checked_against": "the drawn rows, and fastavro",
    }


def main(about: str | None, measure: Callable[[int, list[str], int], dict[str, Any]]) -> None:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", default="account,amount,ts", help="the wanted fields, separated by commas")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--passes", type=int, default=7, help="the best of this many passes counts")
    options = parser.parse_args()
    print(json.dumps(measure(options.rows, options.columns.split(","), options.passes)))


if __name__ == "__main__":
    main(__doc__, measure)
