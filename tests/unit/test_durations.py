"""Durations, sizes and rates as users write them: one below zero is said to be that."""

import importlib
import inspect
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from sabot import App, tumbling
from sabot.base.config import parse_bytes, parse_ms, parse_rate, parse_seconds
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
    assert refused.value.hint.endswith("us, ms, s, m, min, h, d, w")


# -- one rule for all public signatures ----------------------------------------------------------------------------------

ROOMS = ("", ".agents", ".journal", ".kafka", ".llm", ".mcp", ".process", ".state", ".testing")
DURATION = re.compile(
    r"(timeout|interval|grace|grace_period|patience|backoff|delay|ttl|lease|poll|retention|lateness|idle|dedupe|max_age|stable_after"
    r"|emit_every|slide|gap|max_drift|task_duration|idle_suspend|keep_for|seconds|secs)$"
)
NO_SETTINGS = {  # what is found, and not given by a user: figures of what was, and what the engine tells implementers in seconds
    "App.collect(seconds)",  # given by `stream.collect`, which the engine calls
    "ExitStatus(cpu_seconds)",
    "JobRecord(ran_seconds)",
    "Journal.wait_durable(timeout)",
    "RecordSender.reach(seconds)",
    "RedisSignalChannel.wait(seconds)",  # a `SignalChannel`, as programs write them too
    *("AgentMetrics(uptime_secs)", "HealthMonitor.record_request(seconds)", "HealthSnapshot(cpu_seconds)"),
    *(f"HealthSnapshot(latency_{each}_secs)" for each in ("mean", "p50", "p99")),
    *("ProcessUsage(cpu_seconds)", "ResourceReport(cpu_seconds)", "TaskResult(seconds)", "WarmPoolStatus(ages_secs)"),
    "Simulation(seconds)",  # what one took
    "ManualClock.set(seconds)",  # a time of day
    "KafkaSource.read_batch(timeout)",
    "FileSource.read_batch(timeout)",
    "ScriptedSource.read_batch(timeout)",
    "Source.read_batch(timeout)",
}


def public() -> Iterator[tuple[str, Any]]:
    """What users call: functions, classes, and the methods of these; each once."""
    seen = set[int]()
    for room in ROOMS:
        module = importlib.import_module(f"sabot{room}")
        for name in module.__all__:
            found = getattr(module, name)
            if id(found) in seen or not (inspect.isclass(found) or inspect.isfunction(found)):
                continue
            seen.add(id(found))
            yield name, found
            if inspect.isclass(found):
                methods = ((each, getattr(made, "__func__", made)) for each, made in vars(found).items())
                yield from (
                    (f"{name}.{each}", made)
                    for each, made in methods
                    if inspect.isfunction(made) and not each.startswith("_")
                )


def takes_durations(target: Any, name: str, annotation: str) -> bool:
    """Whether a text is taken: as the annotation says, or, where a class keeps what it is given as seconds, as it does."""
    if "timedelta" in annotation or annotation in ("str", "<class 'str'>"):
        return True
    if not inspect.isclass(target):
        return False
    try:
        needed = {each.name for each in inspect.signature(target).parameters.values() if each.default is each.empty}
        return bool(getattr(target(**(dict.fromkeys(needed - {"other"}, "x") | {name: "7s"})), name) == 7.0)
    except (TypeError, UserError):
        return False


def test_every_duration_that_a_user_gives_may_be_a_text_or_a_number_of_seconds() -> None:
    wrong, walked = set(), 0
    for name, target in public():
        try:
            signature = inspect.signature(target)
        except ValueError:  # of a class in C
            continue
        for parameter in signature.parameters.values():
            if not DURATION.search(parameter.name) or parameter.annotation is bool:
                continue
            walked += 1
            if not takes_durations(target, parameter.name, str(parameter.annotation)):
                wrong.add(f"{name}({parameter.name})")
    assert walked > 100, "too little was found"
    assert wrong == NO_SETTINGS


def test_a_number_that_is_no_number_of_seconds_says_its_unit() -> None:
    """A bare number is seconds; what takes milliseconds, and nothing else, is called so."""
    for name, target in public():
        with_ms = [each for each in (getattr(target, "__annotations__", {}) or {}) if each.endswith("_ms")]
        for each in with_ms:
            assert "timedelta" not in str(target.__annotations__[each]), f"{name}({each}) is a number of milliseconds"
