"""Files in the order of a column: rows that are written in any order come by their time, so none is late."""

import json
import random
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from pyarrow import parquet

import sabot
from sabot import App, UserError, files, tumbling
from sabot.connectors.files import sorted as sorting

START = datetime(2026, 5, 1, tzinfo=UTC)


def written(folder, count=500, each=120):
    """Files of rows in no order, with `n` as the number of their second."""
    numbers = list(range(count))
    random.Random(7).shuffle(numbers)
    rows = [{"n": n, "ts": (START + timedelta(seconds=n // 2)).isoformat()} for n in numbers]
    folder.mkdir(exist_ok=True)
    for start in range(0, count, each):
        lines = [json.dumps(row) for row in rows[start : start + each]]
        (folder / f"{start:04}.ndjson").write_text("\n".join(lines) + "\n")
    return rows


def rest(source, positions=None, max_rows=37):
    """All rows and bad payloads of a source from a position, and the position after each batch."""
    source.open(positions)
    rows, bad, places = [], [], []
    while (batch := source.read_batch(max_rows, 5)) is not None or not source.exhausted:
        if batch is not None:
            rows += batch.data.to_pylist()
            bad += [] if batch.bad is None else batch.bad["payload"].to_pylist()
            places.append((len(rows), len(bad), dict(batch.offsets)))
    source.close()
    return rows, bad, places


def test_no_row_of_sorted_files_is_late(tmp_path):
    written(tmp_path / "in")

    def counts(source):
        rows = App("counts").stream(source, time="ts", lateness="0s")
        return rows.window(tumbling("10s")).aggregate(n=sabot.count()).collect()["n"].to_pylist()

    assert counts(files(tmp_path / "in", sort="ts")) == [20] * 25
    assert sum(counts(files(tmp_path / "in"))) < 500


@pytest.mark.parametrize("run_bytes", [500, 20_000, 10**9])
def test_rows_of_the_same_time_keep_the_order_of_the_files(tmp_path, monkeypatch, run_bytes):
    monkeypatch.setattr(sorting, "_RUN_BYTES", run_bytes)
    monkeypatch.setattr(sorting, "_READ_ROWS", 50)
    rows = written(tmp_path / "in")
    found, _, _ = rest(files(tmp_path / "in", sort="ts"))
    assert found == sorted(rows, key=lambda row: row["ts"])


@pytest.mark.slow  # half a second of a core
def test_a_sorted_source_goes_on_at_each_of_its_positions(tmp_path, monkeypatch):
    monkeypatch.setattr(sorting, "_RUN_BYTES", 2000)
    written(tmp_path / "in", each=100)
    with open(tmp_path / "in" / "0100.ndjson", "a") as file:
        file.write("no json\n")
    with open(tmp_path / "in" / "0300.ndjson", "a") as file:
        file.write("nor this\n")
    rows, bad, places = rest(files(tmp_path / "in", sort="ts"))
    assert (len(rows), bad) == (500, [b"no json", b"nor this"])
    for read, buried, positions in places:
        assert rest(files(tmp_path / "in", sort="ts"), positions)[:2] == (rows[read:], bad[buried:])


def test_other_files_than_those_of_the_checkpoint_are_refused(tmp_path):
    written(tmp_path / "in")
    _, _, places = rest(files(tmp_path / "in", sort="ts"))
    (tmp_path / "in" / "9999.ndjson").write_text('{"n": 1, "ts": "2026-05-01"}\n')
    with pytest.raises(UserError, match="not those of the checkpoint"):
        rest(files(tmp_path / "in", sort="ts"), places[3][2])


def test_texts_are_sorted_as_the_times_that_they_stand_for(tmp_path):
    texts = ["2026-05-01T12:00+02:00", "2026-05-01 11:00", "2026-05-01", "2026-02-30", "soon", "2026-05-01T09:30:00.5Z"]
    (tmp_path / "rows.csv").write_text("ts\n" + "\n".join(texts) + "\n")
    found, _, _ = rest(files(tmp_path / "rows.csv", sort="ts"))
    assert [row["ts"] for row in found] == [texts[3], texts[4], texts[2], texts[5], texts[0], texts[1]]


def test_a_column_that_the_program_does_not_use_may_give_the_order(tmp_path):
    table = pa.table({"at": pa.array([3, 1, None, 2], pa.timestamp("ms")), "n": [3, 1, 0, 2]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    stream = App("order").stream(files(tmp_path / "rows.parquet", sort="at")).select("n")
    assert stream.collect()["n"].to_pylist() == [0, 1, 2, 3]


def test_a_column_without_times_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("ts,ok\nsoon,true\nlater,false\n")
    for column, says in [("time", "the columns are ts, ok"), ("ok", "ISO 8601"), ("ts", "none of 2 rows")]:
        with pytest.raises(UserError) as raised:
            App("order").stream(files(tmp_path / "rows.csv", sort=column)).collect()
        assert says in str(raised.value) + (raised.value.hint or ""), column


def test_the_types_of_sorted_files_can_be_inferred_from_more_records(tmp_path):
    (tmp_path / "rows.ndjson").write_text('{"t": 2, "x": 1}\n' + '{"t": 1, "x": 1.5}\n')
    stream = App("order").stream(files(tmp_path / "rows.ndjson", sort="t"), infer=10)
    assert stream.collect()["x"].to_pylist() == [1.5, 1.0]
