"""Durations, sizes and rates as users write them: one below zero is said to be that."""

from datetime import timedelta
from typing import Any

import pytest

from sabot import App, tumbling
from sabot.config import parse_bytes, parse_ms, parse_rate, parse_seconds
from sabot.errors import UserError


@pytest.mark.parametrize("value", ["-5m", " -0.5s ", -1, -0.1, timedelta(seconds=-1)])
def test_a_negative_duration_is_named_so(value: Any) -> None:
    with pytest.raises(UserError, match=r"^lateness: .* is a negative duration \(0 is the least\)$"):
        parse_seconds(value, name="lateness")
    with pytest.raises(UserError, match="is a negative duration"):
        parse_ms(value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("5x", "is no duration"),
        ("--5s", "is no duration"),
        (float("nan"), "is no finite"),
        (float("inf"), "is no finite"),
    ],
)
def test_what_is_none_is_not_taken_for_a_negative_one(value: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_seconds(value)


def test_a_negative_size_and_a_negative_rate_are_not_positive() -> None:
    for parsed, value in ((parse_bytes, "-5MB"), (parse_bytes, -5), (parse_rate, "-5/s"), (parse_rate, -0.5)):
        with pytest.raises(UserError, match="is not positive"):
            parsed(value)


def test_settings_of_apps_and_steps_say_that_a_duration_is_negative() -> None:
    app = App("shop")
    stream = app.stream("orders", schema={"k": "string", "ts": "int64"}, time="ts")
    for given in (
        lambda: app.stream("late", schema={"ts": "int64"}, time="ts", max_drift="-5m"),
        lambda: app.stream("late", schema={"ts": "int64"}, time="ts", lateness="-5m"),
        lambda: app.stream("late", schema={"ts": "int64"}, time="ts", idle="-5m"),
        lambda: stream.key_by("k").window(tumbling("-5m")),
        lambda: stream.join(stream, on="k", max_drift="-5m", between=("-1h", "1h")),
        lambda: App("other", checkpoint_interval="-5m"),
        lambda: App("other", restart="fixed(3, -5m)"),
    ):
        with pytest.raises(UserError, match="-5m' is a negative duration"):
            given()


def test_what_is_no_duration_is_told_the_units() -> None:
    with pytest.raises(UserError, match="no duration") as refused:
        parse_seconds("1 minute")
    assert refused.value.hint.endswith("us, ms, s, m, h, d")
