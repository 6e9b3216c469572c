"""Whole jobs as people write them for Flink, each with its data: tables over files and databases, views, several INSERTs. They run as
`sabot run` runs them, and each table that they write has the rows that DuckDB finds in the same data, or those that were worked out by
hand.

A file of `jobs/` has the script, then what DuckDB declares, then a query, or rows, for each table that is written:

    INSERT INTO totals …
    ---- duckdb
    CREATE VIEW orders AS SELECT * FROM read_json('orders.json', …);
    ---- totals.json
    SELECT …
    ---- rows counts.json
    1, ada
"""

import json
import random
import sqlite3
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from tools.agent_tools import write_lines
from tools.command_line import sabot_says

JOBS = sorted((Path(__file__).parent / "jobs").glob("*.sql"))
BEGIN = datetime(2024, 5, 1, tzinfo=UTC)
PLAIN, ISO = "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%f"


def moment(seconds, form=PLAIN):
    """Returns a time of the day of the jobs as a text; a form with a fraction of a second has milliseconds."""
    text = (BEGIN + timedelta(milliseconds=round(seconds * 1000))).strftime(form)
    return text[:-3] if form.endswith("%f") else text


def times(rng, count, hours, unit=0.1):
    """Returns different times within some hours, in seconds."""
    return [each * unit for each in sorted(rng.sample(range(int(hours * 3600 / unit)), count))]


def late_by(rng, rows, seconds):
    """Returns rows, whose first value is their time, in an order in which none comes more than so many seconds late."""
    return sorted(rows, key=lambda row: row[0] + rng.uniform(0, seconds * 0.9))


def write_json(folder, name, columns, rows, form=PLAIN):
    """Writes rows as lines of JSON. The first column is a time, in seconds."""
    names = columns.split()
    write_lines(
        folder / f"{name}.json", [dict(zip(names, (moment(at, form), *rest), strict=True)) for at, *rest in rows]
    )


# -- the data of each job ---------------------------------------------------------------------------------------------


def taxis(rng, folder):
    form = "%Y-%m-%dT%H:%M:%SZ"
    rides, fares = [], []
    for ride, begun in enumerate(times(rng, 150, 6, 1)):
        taxi, people, end = ride % 9, rng.randrange(1, 5), begun + rng.randrange(120, 4500)
        rides += [(begun, ride, taxi, True, people), (end, ride, taxi, False, people)]
        if ride % 13:
            paid = end + rng.randrange(0, 400)  # some of them later than five minutes behind the end
            fares.append((paid, ride, rng.choice(["card", "cash", None]), rng.randrange(20) / 4, 10.5))
    write_json(folder, "rides", "eventTime rideId taxiId isStart psgCnt", late_by(rng, rides, 60), form)
    write_json(folder, "fares", "eventTime rideId payMethod tip fare", late_by(rng, fares, 60), form)
    changes = [
        (at, taxi, 100 + 10 * turn + taxi)
        for taxi in range(8)
        for turn, at in enumerate((0, 9000 + taxi, 16000 + taxi))
    ]
    write_json(folder, "driver_changes", "eventTime taxiId driverId", sorted(changes), form)


def shop(rng, folder):
    skus = [f"sku-{n}" for n in range(8)]
    orders = []
    for n, at in enumerate(times(rng, 120, 4)):
        items = [
            {"sku": sku, "qty": rng.randrange(1, 6), "price": rng.randrange(100, 9000) / 100}
            for sku in rng.sample(skus, rng.randrange(1, 5))
        ]
        orders.append((at, f"o{n}", {"id": n % 17, "country": rng.choice(["NO", "SE", None])}, items if n % 11 else []))
    write_json(folder, "orders", "order_time order_id customer items", late_by(rng, orders, 30))
    with sqlite3.connect(folder / "products.db") as database:
        database.execute("CREATE TABLE products (sku TEXT PRIMARY KEY, category TEXT)")
        database.executemany(
            "INSERT INTO products VALUES (?, ?)", [(sku, "ab"[n % 2]) for n, sku in enumerate(skus[:-1])]
        )
    database.close()


def access_log(rng, folder):
    rows = []
    for at in times(rng, 400, 3, 1):
        path = rng.choice(["/", "/search", "/cart", "/item.html", "/img/a.png"])
        asked = (
            f"?lang=en&q={rng.choice(['red+shoes', 'HATS', '+blue+hat'])}"
            if path == "/search" and rng.random() < 0.8
            else ""
        )
        request = f"{rng.choice(['GET', 'GET', 'POST'])} {path}{asked} HTTP/1.1"
        status = rng.choice([200, 200, 200, 302, 404, 500, 503])
        size = rng.choice([0, 17, 4096, ""])
        agent = rng.choice(["Mozilla/5.0 (X11, Linux)", "GoogleBot/2.1", 'say "hi"'])
        quoted = '"' + agent.replace('"', '""') + '"'
        rows.append(
            (at, f"10.0.0.{rng.randrange(7)},{moment(at, '%d/%b/%Y:%H:%M:%S')},{request},{status},{size},{quoted}\n")
        )
    (folder / "access_log.csv").write_text("".join(line for _, line in late_by(rng, rows, 30)))


def sensors(rng, folder):
    begin = int(datetime(2024, 3, 30, tzinfo=UTC).timestamp())
    rows = []
    for device in ("d1", "d2", "d3"):
        for at in times(rng, 160, 72, 1):
            row = {
                "device": device,
                "temperature": rng.randrange(-80, 240) / 8,
                "battery": rng.randrange(100),
                "ts": (begin + int(at)) * 1000,
            }
            rows += [(at, row)] * rng.choice([1, 1, 1, 2])
    write_lines(folder / "readings.json", [row for _, row in late_by(rng, rows, 600)])


def trades(rng, folder):
    rows = []
    for n, at in enumerate(times(rng, 500, 2)):
        symbol, price, qty = rng.choice("ABCDE"), rng.randrange(10_0000, 90_0000) / 10_000, rng.randrange(1, 90)
        currency = rng.choice(["USD", "EUR", "JPY"])
        rows.append((at, f"{n};{symbol};{price:.4f};{qty};{currency};{moment(at)}\n"))
    (folder / "trades.csv").write_text("".join(line for _, line in late_by(rng, rows, 20)))
    rates = [(0, "USD", 1)]
    rates += [(at, rng.choice(["EUR", "JPY"]), rng.randrange(500_000, 1_500_000) / 1e6) for at in times(rng, 12, 2)]
    write_json(folder, "fx", "valid_from currency rate", rates)


def cards(rng, folder):
    rows = []
    for n, at in enumerate(times(rng, 300, 60)):
        near = [at + 20 * i for i in range(rng.choice([1, 1, 1, 5]))]
        card = f"c{rng.randrange(12)}"
        for i, each in enumerate(near):
            kind, amount = rng.choice(["pay", "pay", "refund"]), rng.choice([155.5, 160, 200.25, 20.01])
            rows.append((each + n / 10_000, 10 * n + i, card, amount, rng.choice(["Oslo", "Rome", None]), kind))
    rows.sort()
    write_json(folder, "payments", "ts id card amount city kind", late_by(rng, rows, 60))
    (folder / "blocked.csv").write_text("card,reason\nc3,stolen\nc4,expired\nc7,lost\nc3,lost\n,stolen\n")


def ads(rng, folder):
    shown, clicked = [], []
    for n, at in enumerate(times(rng, 400, 2)):
        visitor, ad = f"v{rng.randrange(40)}", f"ad{rng.randrange(6)}"
        shown.append((at, ad, f"campaign {int(ad[2:]) % 3}", rng.choice(["NO", "SE", None]), visitor))
        if rng.random() < 0.3 and visitor != "v7":
            clicked.append((at + rng.uniform(0, 180) + n / 10_000, ad, visitor))
    bought = [(at, n, f"v{rng.randrange(40)}", rng.randrange(400) / 4) for n, at in enumerate(times(rng, 60, 2.3))]
    write_json(folder, "impressions", "shown_at ad_id campaign country visitor", late_by(rng, shown, 15), f"{ISO}Z")
    write_json(folder, "clicks", "clicked_at ad_id visitor", late_by(rng, clicked, 15), f"{ISO}Z")
    write_json(folder, "purchases", "bought_at purchase_id visitor amount", late_by(rng, bought, 15), f"{ISO}Z")


def outbox(rng, folder):
    rows = []
    for n, at in enumerate(times(rng, 300, 10)):
        if n % 5 == 0:
            plan = rng.choice([{}, {"plan": {}}, {"plan": {"tier": "gold"}}, {"plan": {"tier": "silver"}}])
            who = rng.randrange(15)
            rows.append((at, n, "customer", json.dumps({"id": who, "name": f'n"{who}'} | plan)))
        else:
            more = rng.choice(
                [{}, {"coupon": None}, {"coupon": "x"}, {"tags": []}, {"tags": ["new", "b"]}, {"tags": ["old"]}]
            )
            made = {"customer": rng.randrange(12), "amount": rng.choice(["12.50", "99.99", "80", "7.005"])} | more
            rows.append((at, n, "purchase", json.dumps(made)))
    write_json(folder, "outbox", "ts id kind payload", late_by(rng, rows, 120))


def games(rng, folder):
    rows = []
    for at in times(rng, 350, 50):
        bonus = rng.choice([None, {}, {"speed": 5}, {"combo": 2, "speed": 1}, {"secret": 9}])
        player = rng.randrange(14)
        country = ["NO", "SE", None][player % 3]
        rows.append((at, f"p{player}", country, rng.choice(["chess", "go fish"]), rng.randrange(1000), bonus))
    write_json(folder, "scores", "at_ player country game points bonus", late_by(rng, rows, 5))


def tickets(rng, folder):
    (folder / "steps.csv").write_text(
        "2,open,cy,2024-05-01 08:55:00\n"
        "1,open,ada,2024-05-01 09:00:00\n"
        "1,work,ada,2024-05-01 09:10:00\n"
        "1,closed,bo,2024-05-01 09:20:00\n"
        "2,closed,cy,2024-05-01 09:30:00\n"
        "1,open,bo,2024-05-01 09:40:00\n"
        "1,work,bo,2024-05-01 09:50:00\n"
        "3,open,,2024-05-01 10:00:30\n"
        "2,note,bo,2024-05-01 10:00:00\n"
        "1,closed,bo,2024-05-01 10:05:00\n"
        "1,closed,bo,2024-05-01 10:10:00\n"
        "4,open,cy,2024-05-01 10:20:00\n"
        "2,closed,cy,2024-05-01 10:25:00\n"
        "1,open,bo,2024-05-01 10:30:00\n"
        "4,closed,cy,2024-05-01 10:40:00\n"
        "1,closed,ada,2024-05-01 10:45:00\n"
        "3,closed,ada,2024-05-01 10:50:00\n"
        "3,open,ada,2024-05-01 11:10:30\n"
        "3,note,cy,2024-05-01 11:20:00\n"
    )


DATA = {each.__name__: each for each in (taxis, shop, access_log, sensors, trades, cards, ads, outbox, games, tickets)}


# -- the answers ------------------------------------------------------------------------------------------------------


def parts(path):
    """Returns the parts of a file of `jobs/` by their names; that of the script is ""."""
    found, name = {"": []}, ""
    for line in path.read_text().splitlines():
        if line.startswith("---- "):
            name = line.removeprefix("---- ")
            found[name] = []
        else:
            found[name].append(line)
    return {name: "\n".join(lines).strip() for name, lines in found.items()}


def value(each):
    if isinstance(each, float | Decimal):
        return round(float(each), 9)
    return each.replace(tzinfo=None) if isinstance(each, datetime) else each


def counted(rows):
    return Counter(tuple(map(value, row)) for row in rows)


def as_table(connection, folder, name, columns):
    """Returns the query of DuckDB that reads a table which a job has written. `columns`: the types of its columns, by their names."""
    typed = ", ".join(f"{column!r}: {str(type)!r}" for column, type in columns.items())
    if name.endswith(".json"):
        return f"SELECT * FROM read_json('{name}', columns = {{{typed}}})"
    if name.endswith(".csv"):
        return f"SELECT * FROM read_csv('{name}', header = true, columns = {{{typed}}})"
    if name.endswith(".db"):
        table = name.removesuffix(".db")
        with sqlite3.connect(folder / name) as database:
            rows = database.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
        database.close()
        fields = ", ".join(f"{column} {type}" for column, type in columns.items())
        connection.execute(f"CREATE TABLE written_{table} ({fields})")
        connection.executemany(
            f"INSERT INTO written_{table} VALUES ({', '.join('?' * len(columns))})", rows or [[None] * len(columns)]
        )
        return f"SELECT * FROM written_{table}"
    names = ", ".join(columns)
    return f"SELECT {names} FROM read_parquet('{name}/**/*.parquet', hive_partitioning = true, hive_types_autocast = false)"


@pytest.fixture(params=JOBS, ids=[path.stem for path in JOBS])
def job(request, tmp_path, monkeypatch):
    """The parts of a file of `jobs/`, whose script has run in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    DATA[request.param.stem](random.Random(request.param.stem), tmp_path)
    found = parts(request.param)
    (tmp_path / "job.sql").write_text(found.pop(""))
    done = sabot_says("run", "job.sql")
    assert done.exit_code == 0, done.stderr
    return found


@pytest.mark.slow  # half a second of a core each
def test_a_job_writes_the_rows_of_a_second_implementation(job, tmp_path):
    with duckdb.connect() as connection:
        connection.execute(job.pop("duckdb", ""))
        for name, text in job.items():
            if name.startswith("rows "):
                rows = [json.loads(line) for line in (tmp_path / name.removeprefix("rows ")).read_text().splitlines()]
                found = [", ".join("NULL" if each is None else str(each) for each in row.values()) for row in rows]
                assert sorted(found) == sorted(text.split("\n"))
                continue
            expected = connection.sql(text)
            columns = dict(zip(expected.columns, expected.types, strict=True))
            rows = expected.fetchall()
            written = connection.sql(as_table(connection, tmp_path, name, columns)).fetchall()
            assert counted(written) == counted(rows), name
            assert len(rows) > 1, f"{name} has too few rows to compare"
