"""Tables of random rows, and what SQL over them returns: Sabot's answer and DuckDB's; files of such statements."""

import random
from collections import Counter
from decimal import Decimal
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from sabot import App, files

ROWS = 400


def write_tables(place):
    """Writes orders, customers and visits as Parquet files, and returns their folder."""
    rng = random.Random(7)
    base = 1_700_000_000_000
    orders = {
        "id": list(range(ROWS)),
        "customer": [rng.choice([None, *range(12)]) for _ in range(ROWS)],
        "amount": [rng.choice([None, rng.randrange(-50, 200)]) for _ in range(ROWS)],
        "price": [round(rng.uniform(-5, 90), 2) for _ in range(ROWS)],
        "note": [rng.choice([None, "a_b", "ab%", "Oslo", "rome ", ""]) for _ in range(ROWS)],
        "ts": [base + 250 * i for i in range(ROWS)],
    }
    customers = {
        "id": [*range(10), None],
        "name": [f"c{i}" for i in range(11)],
        "since": [base + 1000 * i for i in range(11)],
    }
    time = pa.timestamp("ms")
    of_orders = {
        "id": "int64",
        "customer": "int64",
        "amount": "int64",
        "price": "float64",
        "note": "string",
        "ts": time,
    }
    of_customers = {"id": "int64", "name": "string", "since": time}
    begun = 1_711_670_400_000  # 29 March 2024, two days before the clocks of Berlin are changed
    visits = {"id": list(range(ROWS)), "seen": [begun + 1_800_000 * i for i in range(ROWS)]}
    pq.write_table(
        pa.table(visits, schema=pa.schema([("id", "int64"), ("seen", pa.timestamp("ms", "UTC"))])),
        place / "visits.parquet",
    )
    kinds = {"orders": pa.schema(list(of_orders.items())), "customers": pa.schema(list(of_customers.items()))}
    for name, rows in (("orders", orders), ("customers", customers)):
        pq.write_table(pa.table(rows, schema=kinds[name]), place / f"{name}.parquet", row_group_size=64)
    return place


def ours(folder, text, **values):
    app = App("queries", parallelism=2)
    return app.sql(text, **given_tables(app, folder), **values).materialize().collect()


def given_tables(app, folder):
    """Returns the tables as streams of an app, by their names."""
    return {
        "orders": app.stream(files(str(folder / "orders.parquet")), time="ts", lateness="1s"),
        "customers": app.stream(files(str(folder / "customers.parquet")), time="since", lateness="1h"),
        "visits": app.stream(files(str(folder / "visits.parquet")), time="seen"),
    }


def theirs(folder, text):
    with duckdb.connect() as connection:
        for name in ("orders", "customers", "visits"):
            connection.execute(f"create view {name} as select * from '{folder}/{name}.parquet'")
        return connection.sql(text).to_arrow_table()


def counted(table):
    def value(each):
        return round(each, 9) if isinstance(each, float) else float(each) if isinstance(each, Decimal) else each

    columns = [[value(each) for each in table.column(i).to_pylist()] for i in range(table.num_columns)]
    return Counter(zip(*columns, strict=True))


class Record(NamedTuple):
    """A record of a file. `kind`: its first line."""

    place: str
    kind: str
    text: str
    rows: list[str]


def records(path):
    found, line = [], 1
    for block in path.read_text().split("\n\n"):
        lines = [each for each in block.split("\n") if not each.startswith("#")]
        if any(each.strip() for each in lines):
            kind, *rest = [each for each in lines if each.strip()]
            cut = next((i for i, each in enumerate(rest) if each.startswith("----")), len(rest))
            found.append(Record(f"{path.stem}:{line}", kind, "\n".join(rest[:cut]), rest[cut:]))
        line += block.count("\n") + 2
    return found


def shown(value):
    """Returns a value as the files have it."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return f"{value:.1f}"
    return str(value)
