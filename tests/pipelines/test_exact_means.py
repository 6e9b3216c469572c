"""Means of integers, of any size: the float nearest to the exact mean, in whatever step they are computed."""

import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App, Stream, tumbling
from sabot.testing import END, ListSink, ScriptedSource, run

STEPS: dict[str, Callable[[Stream], Stream]] = {
    "window": lambda rows: rows.key_by("k").window(tumbling("1s")).aggregate(mean=sabot.mean("v")),
    "group": lambda rows: rows.group_by("k").aggregate(mean=sabot.mean("v")).changelog(),
    "after each row": lambda rows: rows.key_by("k").aggregate(mean=sabot.mean("v")),
    "over": lambda rows: rows.key_by("k").over(mean=sabot.mean("v"), preceding="1h"),
    "over changes": lambda rows: (
        rows.group_by("k", "n").aggregate(v=sabot.max("v")).group_by("k").aggregate(mean=sabot.mean("v")).changelog()
    ),
}
RANGES = {
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
    "eighths": (-(2**60), 2**60),
    "small": (-1000, 1000),
}


def groups(draw: random.Random, low: int, high: int) -> list[list[int]]:
    """Numbers of 60 groups; of every third one close to the middle between two floats."""
    made = []
    for number in range(60):
        values = [draw.randint(low, high) for _ in range(draw.randint(1, 9))]
        if number % 3 == 0:
            values = [min(max((each >> 8 << 8) + draw.choice([127, 128, 129]), low), high) for each in values]
        made.append(values)
    return made


@pytest.mark.one_in(6, "a tenth of a second of a core each")
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("numbers", RANGES)
def test_the_mean_of_integers_is_the_nearest_float(step: str, numbers: str) -> None:
    made = groups(random.Random(f"{step} {numbers}"), *RANGES[numbers])
    kind = pa.uint64() if numbers == "uint64" else pa.int64()
    rows = [(key, place, value) for key, values in enumerate(made) for place, value in enumerate(values)]
    columns: list[Any] = [pa.array(column) for column in zip(*((key, place) for key, place, _ in rows), strict=True)]
    batch = pa.record_batch(
        [*columns, pa.array([0] * len(rows)), pa.array([value for *_, value in rows], kind)], names=["k", "n", "t", "v"]
    )
    results = ListSink("results")

    def build(directory: Path) -> App:
        app = App("means", checkpoint_dir=directory)
        source = ScriptedSource([batch, END], name="in")
        STEPS[step](app.stream(source, schema=batch.schema, time="t")).to(results)
        return app

    run(build)
    last = {row["k"]: row["mean"] for row in results.rows if row["mean"] is not None}
    assert last == {key: float(Fraction(sum(values), len(values))) for key, values in enumerate(made)}
