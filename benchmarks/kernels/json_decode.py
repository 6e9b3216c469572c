"""JSON decode on one core: NDJSON rows -> the wanted columns.

    python benchmarks/kernels/json_decode.py [--input FILE.ndjson] [--columns account,amount,ts] [--rows N]

Without --input it makes a seeded file of payments, 7 fields and about 122 bytes a row, and removes it at the end. The column
types are inferred from the first 1,000 rows. Figures: the best of several passes over the file in memory, in batches of
64 Ki rows from an Arrow binary array (as the Kafka source has them), from a list of bytes objects, and from the bytes of the
file. Checked: the sums (of text, the sum of the lengths) against msgspec over all rows.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.json import JsonDecoder, encode_rows, infer_schema

BATCH_ROWS = 65536


def make_file(path: Path, rows: int, seed: int = 7) -> None:
    """Payments of 10,000 accounts, as a JSON library writes them without spaces."""
    random_ = random.Random(seed)
    merchants = [f"m{i:05d}" for i in range(5000)]
    countries = ["DE", "FR", "US", "GB", "IT", "ES", "NL", "PL"]
    with path.open("w") as out:
        for i in range(rows):
            out.write(
                f'{{"txn_id":{i},"account":"A{random_.randrange(10_000):05d}",'
                f'"amount":{random_.lognormvariate(3.5, 1.2):.2f},"ts":{1_700_000_000_000 + i * 7},'
                f'"merchant":"{random_.choice(merchants)}","country":"{random_.choice(countries)}",'
                f'"is_online":{"true" if random_.random() < 0.3 else "false"}}}\n'
            )


def columns_of(lines: list[bytes], names: list[str]) -> pa.Schema:
    inferred = infer_schema(lines[:1000])
    missing = [name for name in names if name not in inferred.names]
    if missing:
        sys.exit(f"no field {missing[0]!r} in the first 1,000 rows; there are {', '.join(inferred.names)}")
    return pa.schema([inferred.field(name) for name in names])


def sums_by_msgspec(lines: list[bytes], names: list[str]) -> dict[str, float]:
    """The answer, by another JSON library."""
    decode = msgspec.json.Decoder().decode
    sums = dict.fromkeys(names, 0)
    for line in lines:
        row = decode(line)
        for name in names:
            value = row.get(name)
            sums[name] += len(value) if isinstance(value, str) else value or 0
    return sums


def sums(batches: list[pa.RecordBatch]) -> dict[str, float]:
    table = pa.Table.from_batches(batches)
    return {
        name: pc.sum(pc.utf8_length(column) if pa.types.is_string(column.type) else column).as_py() or 0
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def best_seconds(run: Callable[[], object], passes: int) -> float:
    seconds = []
    for _ in range(passes):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measure(data: bytes, names: list[str], passes: int) -> dict[str, object]:
    lines = data.splitlines()
    schema = columns_of(lines, names)
    decoder = JsonDecoder(schema)
    starts = range(0, len(lines), BATCH_ROWS)
    lists = [lines[start : start + BATCH_ROWS] for start in starts]
    arrays = [pa.array(part, pa.binary()) for part in lists]

    expected = sums_by_msgspec(lines, names)
    for decoded in (
        [decoder.decode(part) for part in arrays],
        [decoder.decode(part) for part in lists],
        [decoder.decode_lines(data)],
    ):
        assert not any(bad for _, bad in decoded), "the input has bad rows"
        got = sums([batch for batch, _ in decoded])
        for name in names:
            assert abs(got[name] - expected[name]) <= 1e-9 * abs(expected[name]), (name, got[name], expected[name])

    batches = [decoder.decode(part)[0] for part in arrays]
    seconds = best_seconds(lambda: [decoder.decode(part) for part in arrays], passes)
    rows = len(lines)
    return {
        "benchmark": "json_decode",
        "rows": rows,
        "bytes_per_row": round(len(data) / rows, 1),
        "columns": names,
        "rows_per_s": round(rows / seconds),
        "mb_per_s": round(len(data) / seconds / 1e6),
        "from_list_rows_per_s": round(rows / best_seconds(lambda: [decoder.decode(part) for part in lists], passes)),
        "from_lines_rows_per_s": round(rows / best_seconds(lambda: decoder.decode_lines(data), passes)),
        "encode_rows_per_s": round(rows / best_seconds(lambda: [encode_rows(batch) for batch in batches], passes)),
        "checked_against": "msgspec",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="an NDJSON file; a seeded one is made without it")
    parser.add_argument("--columns", default="account,amount,ts", help="the wanted fields, separated by commas")
    parser.add_argument("--rows", type=int, default=None, help="rows to read or make (default: all, or 500,000)")
    parser.add_argument("--passes", type=int, default=5, help="the best of this many passes counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.input
        if path is None:
            path = Path(folder) / "payments.ndjson"
            make_file(path, options.rows or 500_000)
        data = path.read_bytes()
    if options.rows is not None:
        data = b"".join(data.splitlines(keepends=True)[: options.rows])
    print(json.dumps(measure(data, options.columns.split(","), options.passes)))


if __name__ == "__main__":
    main()
