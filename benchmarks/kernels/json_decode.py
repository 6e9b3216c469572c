"""JSON decode on one core: NDJSON rows -> the wanted columns.

    python benchmarks/kernels/json_decode.py [--input FILE.ndjson] [--columns account,amount,ts] [--rows N]

Without --input it makes a file of card transactions (make_txns.py), 7 fields and about 122 bytes a row, and removes it at the
end. The column types are inferred from the first 1,000 rows. Figures: the best of several passes, of the file's bytes in blocks
of 4 MiB (`rows_per_s`), and over its first million rows in batches of 64 Ki rows: of an Arrow binary array (as the Kafka source
has them), of a list of bytes objects, and the way back. Checked: every value of a sample from all over the file against msgspec,
and the number of rows.
"""

import argparse
import json
import mmap
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from sabot._cython.text.json import JsonDecoder, encode_rows
from sabot.codecs.json import infer_schema

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
from make_txns import write_txns

BLOCK_BYTES = 4 << 20
BATCH_ROWS = 65536
SINGLE_ROWS = 1_000_000
SAMPLED_BLOCKS = 8
SAMPLED_ROWS = 10_000


def blocks_of(data: memoryview, rows: int | None) -> tuple[list[memoryview], int]:
    """The data cut behind the first line ending past each BLOCK_BYTES, at most `rows` lines of it; and how many lines."""
    blocks, count, start = [], 0, 0
    while start < len(data) and (rows is None or count < rows):
        stop = min(start + BLOCK_BYTES, len(data))
        ends = np.flatnonzero(np.frombuffer(data[start:stop], np.uint8) == ord("\n"))
        if len(ends) == 0 and stop < len(data):
            sys.exit(f"a line at byte {start} is longer than {BLOCK_BYTES} bytes")
        if rows is not None and count + len(ends) > rows:
            ends = ends[: rows - count]
        count += len(ends)
        if stop < len(data) or count == rows:
            stop = start + int(ends[-1]) + 1
        elif data[-1] != ord("\n"):
            count += 1  # the last line without its ending
        blocks.append(data[start:stop])
        start = stop
    return blocks, count


def lines_of(block: memoryview) -> list[bytes]:
    return bytes(block).splitlines()


def columns_of(lines: list[bytes], names: list[str]) -> pa.Schema:
    inferred = infer_schema(lines[:1000])
    missing = [name for name in names if name not in inferred.names]
    if missing:
        sys.exit(f"no field {missing[0]!r} in the first 1,000 rows; there are {', '.join(inferred.names)}")
    return pa.schema([inferred.field(name) for name in names])


def check(decoder: JsonDecoder, lines: list[bytes]) -> None:
    """All values are what another JSON library reads, whichever way the rows come in."""
    decode = msgspec.json.Decoder().decode
    rows = [decode(line) for line in lines]
    expected = {name: [row.get(name) for row in rows] for name in decoder.schema.names}
    for batch, bad in (decoder.decode_lines(b"\n".join(lines)), decoder.decode(lines), decoder.decode(pa.array(lines))):
        assert not bad, bad[0]
        assert batch.to_pydict() == expected, "the decoded values are not those of msgspec"


def best_rate(rows: int, run: Callable[[], object], passes: int) -> int:
    seconds = []
    for _ in range(passes):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return round(rows / min(seconds))


def measure(data: memoryview, names: list[str], limit: int | None, passes: int) -> dict[str, object]:
    blocks, rows = blocks_of(data, limit)
    if not rows:
        sys.exit("the input has no rows")
    decoder = JsonDecoder(columns_of(lines_of(blocks[0]), names))
    for block in blocks[:: max(len(blocks) // SAMPLED_BLOCKS, 1)]:
        check(decoder, lines_of(block)[:SAMPLED_ROWS])

    def run_lines() -> int:
        """The rows decoded; each batch is dropped before the next block, as a pipeline does."""
        return sum(decoder.decode_lines(block)[0].num_rows for block in blocks)

    assert run_lines() == rows, "the input has bad or blank rows"
    rate = best_rate(rows, run_lines, passes)

    lines: list[bytes] = []
    for block in blocks:
        lines += lines_of(block)
        if len(lines) >= SINGLE_ROWS:
            break
    single = min(len(lines), SINGLE_ROWS)
    lists = [lines[start:stop] for start, stop in pairwise([*range(0, single, BATCH_ROWS), single])]
    arrays = [pa.array(part, pa.binary()) for part in lists]
    batches = [decoder.decode(part)[0] for part in arrays]
    size = sum(len(block) for block in blocks)
    return {
        "benchmark": "json_decode",
        "rows": rows,
        "bytes_per_row": round(size / rows, 1),
        "columns": names,
        "rows_per_s": rate,
        "mb_per_s": round(rate * size / rows / 1e6),
        "from_array_rows_per_s": best_rate(single, lambda: [decoder.decode(part) for part in arrays], passes),
        "from_list_rows_per_s": best_rate(single, lambda: [decoder.decode(part) for part in lists], passes),
        "encode_rows_per_s": best_rate(single, lambda: [encode_rows(batch) for batch in batches], passes),
        "checked_against": "msgspec",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="an NDJSON file; a seeded one is made without it")
    parser.add_argument("--columns", default="account,amount,ts", help="the wanted fields, separated by commas")
    parser.add_argument("--rows", type=int, default=None, help="rows to read or make (default: all, or 1,000,000)")
    parser.add_argument("--passes", type=int, default=5, help="the best of this many passes counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.input
        if path is None:
            path = Path(folder) / "txns.ndjson"
            write_txns(path, options.rows or 1_000_000)
        if path.stat().st_size == 0:
            sys.exit(f"{path} is empty")
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        figures = measure(data, options.columns.split(","), options.rows, options.passes)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
