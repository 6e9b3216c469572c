"""Makes the file of card transactions that the pipeline benchmarks read: NDJSON, about 122 bytes a line.

    python benchmarks/pipelines/make_txns.py [--rows N] [--out FILE.ndjson] [--seed S]

    {"txn_id":0,"account":"acc417","amount":23.5,"ts":1699999999211,"merchant":"m8213","country":"DE","is_online":false}

Event time rises 0.5 ms a row, and each row is up to 2 s late. Accounts are Zipf 1.2 over acc0 (the most frequent) to acc99999,
amounts lognormal with two decimals: nine in ten above 10. The first rows of a longer file with the same seed are the same.
Memory stays at one chunk of rows. Checked: the file, read back, has the rows that were drawn. Without --out it is made in a
temporary folder and removed, which leaves the figure.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.text.json import JsonDecoder, encode_rows

ACCOUNTS = 100_000
CHUNK_ROWS = 1 << 18
START_MS = 1_700_000_000_000
DISORDER_MS = 2_000
ZIPF = 1.2
MERCHANTS = 10_000
COUNTRIES = ["DE", "FR", "US", "GB", "IT", "ES", "NL", "PL"]
SCHEMA = pa.schema(
    [
        ("txn_id", pa.int64()),
        ("account", pa.string()),
        ("amount", pa.float64()),
        ("ts", pa.int64()),
        ("merchant", pa.string()),
        ("country", pa.string()),
        ("is_online", pa.bool_()),
    ]
)


def _names(prefix: str, count: int) -> pa.Array:
    return pa.array([f"{prefix}{i}" for i in range(count)])


class Transactions:
    """Draws chunk after chunk; a chunk depends on the seed and its number only."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        weights = np.arange(1, ACCOUNTS + 1, dtype=np.float64) ** -ZIPF
        self.cumulative = np.cumsum(weights) / weights.sum()
        self.accounts = _names("acc", ACCOUNTS)
        self.merchants = _names("m", MERCHANTS)
        self.countries = pa.array(COUNTRIES)

    def chunk(self, number: int, rows: int = CHUNK_ROWS) -> pa.RecordBatch:
        """The first `rows` rows of chunk `number`."""
        random = np.random.default_rng([self.seed, number])
        ids = np.arange(CHUNK_ROWS) + number * CHUNK_ROWS
        account = np.searchsorted(self.cumulative, random.random(CHUNK_ROWS), side="right").clip(max=ACCOUNTS - 1)
        columns = [
            ids,
            self.accounts.take(pa.array(account)),
            np.rint(random.lognormal(4.0, 1.2, CHUNK_ROWS) * 100) / 100,
            START_MS + ids // 2 - random.integers(0, DISORDER_MS, CHUNK_ROWS, endpoint=True),
            self.merchants.take(pa.array(random.integers(0, MERCHANTS, CHUNK_ROWS))),
            self.countries.take(pa.array(random.integers(0, len(COUNTRIES), CHUNK_ROWS))),
            random.random(CHUNK_ROWS) < 0.3,
        ]
        return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=SCHEMA).slice(0, rows)


def write_txns(path: str | Path, rows: int, seed: int = 7) -> dict[str, float]:
    """Writes `rows` transactions to `path`. -> their number, bytes, and sum of amounts."""
    drawn = Transactions(seed)
    amount = 0.0
    with open(path, "wb") as out:
        for number, start in enumerate(range(0, rows, CHUNK_ROWS)):
            batch = drawn.chunk(number, min(CHUNK_ROWS, rows - start))
            amount += pc.sum(batch.column("amount")).as_py()
            lines = pa.ListArray.from_arrays(pa.array([0, batch.num_rows], pa.int32()), encode_rows(batch))
            out.write(pc.binary_join(lines, b"\n")[0].as_buffer())
            out.write(b"\n")
        return {"rows": rows, "bytes": out.tell(), "amount": amount}


def check(path: Path, written: dict[str, float], seed: int) -> None:
    """The file has as many rows as were written, with that sum, and the first chunk's rows are those drawn."""
    decoder = JsonDecoder(SCHEMA)
    rows, amount, rest = 0, 0.0, b""
    with path.open("rb") as file:
        while block := file.read(1 << 25):
            lines, newline, rest = (rest + block).rpartition(b"\n")
            batch, bad = decoder.decode_lines(lines + newline)
            assert not bad, bad[0]
            if rows == 0:
                first = batch.slice(0, min(batch.num_rows, CHUNK_ROWS))
                assert first.equals(Transactions(seed).chunk(0, first.num_rows)), "the rows read are not the rows drawn"
            rows += batch.num_rows
            amount += pc.sum(batch.column("amount")).as_py() or 0.0
    assert rest == b"", "the last line is cut off"
    assert rows == written["rows"], (rows, written)
    assert abs(amount - written["amount"]) <= 1e-9 * written["amount"], (amount, written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="where the file goes; without it the file is removed")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.out or Path(folder) / "txns.ndjson"
        started = time.perf_counter()
        written = write_txns(path, options.rows, options.seed)
        seconds = time.perf_counter() - started
        check(path, written, options.seed)
    figures = {
        "benchmark": "make_txns",
        **written,
        "seed": options.seed,
        "bytes_per_row": round(written["bytes"] / max(options.rows, 1), 1),
        "seconds": round(seconds, 3),
        "rows_per_s": round(options.rows / seconds),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
