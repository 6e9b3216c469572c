"""What Prometheus sees of an app: names, labels, numbers that add up, over HTTP, while it runs and over restarts."""

import asyncio
import contextlib
import gc
import http.client
import itertools
import json
import platform
import re
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

import sabot
from sabot import App
from sabot.base.metrics import Durations, Metrics, Sample
from sabot.connectors.base import Sink
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.connectors.memory import MemoryBroker
from sabot.errors import MissingExtra, UserError
from sabot.kafka.client import BrokerLink
from sabot.llm import ExecutionEngine, MemoryCache, Price, PriceTable, RateLimited, ScriptedProvider
from sabot.testing import ManualClock
from tools.agent_tools import checkpoint, manifest_files, processed, publish, started, state_of, until

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def figures(text: str) -> Figures:
    """(name, labels) -> value; fails where a sample stands twice."""
    found: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def read(app: App) -> Figures:
    return figures(app.agent_runtime.runner.watch.metrics.text())


def at(now: Figures, name: str, **labels: str) -> float:
    return now[name, frozenset(labels.items())]


def names(now: Figures) -> set[str]:
    return {name for name, _ in now}


def counters(now: Figures) -> Figures:
    return {key: value for key, value in now.items() if key[0].endswith(("_total", "_bucket", "_count", "_sum"))}


def assert_none_went_back(before: Figures, after: Figures) -> None:
    assert {key: (value, after.get(key)) for key, value in counters(before).items() if after.get(key, -1) < value} == {}


@pytest.fixture
def app(memory_url: str) -> App:
    return App("shop", memory_url, state="memory")


def sorting_out(app: App) -> None:
    """An agent that skips what is not positive, and one behind it that takes its results."""

    @app.agent()
    async def second(ctx):
        await ctx.state().put("last", ctx.message)

    @app.agent("orders", sink=second, on_error="skip")
    async def first(ctx):
        if ctx.message <= 0:
            raise ValueError("not positive")
        return ctx.message * 2


async def test_the_figures_of_agents_add_up(app: App) -> None:
    sorting_out(app)

    @app.agent("orders", name="copy", sink="copies", batch=True, schema={"n": "int64"})
    def copy(batch, ctx):
        return batch

    publish(app, "orders", [1, -1, 2, 3, 0])
    async with started(app):
        await until(lambda: processed(app, "second") == 3, "the results")
        await until(lambda: app.statistics()["agents"]["shop.copy"]["dead_letters"] == 5, "rows that are no objects")
        await checkpoint(app)  # ships the dead letters
        now = read(app)
    shop = {"app": "shop"}
    assert at(now, "sabot_records_in_total", **shop, operator="shop.first", topic="orders") == 5
    assert at(now, "sabot_records_out_total", **shop, operator="shop.first", topic="shop.second") == 3
    assert at(now, "sabot_records_in_total", **shop, operator="shop.second", topic="shop.first") == 3
    assert at(now, "sabot_agent_errors_total", **shop, operator="shop.first") == 2
    assert at(now, "sabot_agent_errors_total", **shop, operator="shop.second") == 0
    assert at(now, "sabot_agent_errors_total", **shop, operator="shop.copy") == 5
    assert at(now, "sabot_dead_letters_total", **shop, operator="shop.first", topic="orders") == 2
    assert at(now, "sabot_dead_letters_total", **shop, operator="shop.copy", topic="orders") == 5
    assert at(now, "sabot_records_out_total", **shop, operator="shop.copy", topic="copies") == 0
    assert at(now, "sabot_batch_seconds_count", **shop, operator="shop.first") == 1
    assert at(now, "sabot_channel_rows", **shop, operator="shop.first", topic="orders") == 0
    assert at(now, "sabot_channel_rows", **shop, operator="sink", topic="copies") == 0
    assert at(now, "sabot_consumer_lag", **shop, operator="shop.first", topic="orders", partition="0") == 0
    assert at(now, "sabot_state_keys", **shop, operator="agents") == 1
    assert at(now, "sabot_state_bytes", **shop, operator="agents") > 0
    assert at(now, "sabot_checkpoint_failed_total", **shop) == 0
    assert at(now, "sabot_checkpoint_seconds", **shop) > 0
    assert at(now, "sabot_checkpoint_timestamp_seconds", **shop) > 1_700_000_000
    assert at(now, "sabot_dead_letter_reasons_total", **shop, operator="shop.first", topic="", reason="ValueError") == 2
    assert at(now, "sabot_calls_total", **shop, operator="shop.first") == 5
    assert at(now, "sabot_calls_in_flight", **shop, operator="shop.first") == 0
    assert at(now, "sabot_call_seconds_total", **shop, operator="shop.first") > 0
    assert at(now, "sabot_task_seconds_total", **shop, operator="agents", state="idle") > 0


async def test_an_app_has_just_these_names_and_labels(app: App) -> None:
    sorting_out(app)
    publish(app, "orders", [0, 1])
    async with started(app):
        await until(lambda: processed(app, "second") == 1)
        await checkpoint(app)
        now = read(app)
    labels: dict[str, set[str]] = {}
    for name, where in now:
        labels.setdefault(name, set()).update(label for label, _ in where)
    rows = {"app", "operator", "topic"}
    assert labels == {
        "sabot_records_in_total": rows,
        "sabot_records_out_total": rows,
        "sabot_dead_letters_total": rows,
        "sabot_agent_errors_total": {"app", "operator"},
        "sabot_batch_seconds_bucket": {"app", "operator", "le"},
        "sabot_batch_seconds_count": {"app", "operator"},
        "sabot_batch_seconds_sum": {"app", "operator"},
        "sabot_channel_rows": rows,
        "sabot_consumer_lag": {*rows, "partition"},
        "sabot_checkpoint_seconds": {"app"},
        "sabot_checkpoint_bytes": {"app"},
        "sabot_checkpoint_failed_total": {"app"},
        "sabot_checkpoint_sync_seconds": {"app", "operator"},
        "sabot_checkpoint_alignment_seconds": {"app", "operator"},
        "sabot_build_info": {"app", "version", "python", "program"},
        "sabot_restarts_total": {"app"},
        "sabot_state_bytes": {"app", "operator"},
        "sabot_state_keys": {"app", "operator"},
        "sabot_task_seconds_total": {"app", "operator", "state"},
        "sabot_checkpoint_timestamp_seconds": {"app"},
        "sabot_dead_letter_reasons_total": {*rows, "reason"},
        "sabot_calls_total": {"app", "operator"},
        "sabot_call_seconds_total": {"app", "operator"},
        "sabot_calls_in_flight": {"app", "operator"},
        "sabot_calls_limit": {"app", "operator"},
    }


def test_an_app_that_never_ran_has_figures_too(app: App) -> None:
    shop = frozenset({("app", "shop")})
    build = shop | {("version", sabot.__version__), ("python", platform.python_version()), ("program", "")}
    assert read(app) == {
        ("sabot_build_info", build): 1,
        ("sabot_checkpoint_failed_total", shop): 0,
        ("sabot_restarts_total", shop): 0,
    }


async def test_a_failed_agent_is_counted_and_its_unread_rows_are_lag(app: App) -> None:
    @app.agent("orders")
    async def check(ctx):
        raise ValueError("no such order")

    publish(app, "orders", [{"n": 1}])
    async with started(app):
        await until(lambda: state_of(app, "check") == "failed")
        publish(app, "orders", [{"n": 2}] * 10)
        where = {"app": "shop", "operator": "shop.check", "topic": "orders"}

        def known() -> float:  # its source may read some more rows ahead
            now = read(app)
            return at(now, "sabot_records_in_total", **where) + at(now, "sabot_consumer_lag", **where, partition="0")

        await until(lambda: known() == 11)
        now = read(app)
    assert at(now, "sabot_agent_errors_total", app="shop", operator="shop.check") == 1
    assert at(now, "sabot_dead_letters_total", app="shop", operator="shop.check", topic="orders") == 0


@pytest.mark.parametrize("batch", [False, True])
async def test_a_batch_lasts_from_its_arrival_to_the_end_of_its_last_call(memory_url: str, batch: bool) -> None:
    clock = ManualClock()
    app = App("shop", memory_url, clock=clock)
    schema = {"schema": {"n": "int64"}} if batch else {}

    @app.agent("orders", batch=batch, **schema)
    def work(message, *ctx):
        rows = message.num_rows if ctx else 1
        clock.advance(0.2 * rows)

    publish(app, "orders", [{"n": 1}, {"n": 2}, {"n": 3}])
    async with started(app):
        await until(lambda: processed(app, "work") == 3)
        now = read(app)
        publish(app, "orders", [{"n": 4}])
        await until(lambda: processed(app, "work") == 4)
        later = read(app)
    where = {"app": "shop", "operator": "shop.work"}
    assert at(now, "sabot_batch_seconds_count", **where) == 1
    assert at(now, "sabot_batch_seconds_sum", **where) == pytest.approx(0.6)
    assert at(now, "sabot_batch_seconds_bucket", **where, le="0.5") == 0
    assert at(now, "sabot_batch_seconds_bucket", **where, le="1.0") == 1
    assert at(later, "sabot_batch_seconds_bucket", **where, le="0.25") == 1
    assert at(later, "sabot_batch_seconds_bucket", **where, le="+Inf") == 2
    assert at(later, "sabot_batch_seconds_sum", **where) == pytest.approx(0.8)


async def test_a_batch_has_ended_when_slow_calls_on_other_lanes_have(app: App) -> None:
    """With several lanes rows do not end in order; no batch may be counted before as many rows have ended as came with it."""
    gate = asyncio.Event()

    @app.agent("orders", concurrency=4)
    async def work(ctx):
        if ctx.message == "slow":
            await gate.wait()

    publish(app, "orders", ["slow", 1, 2, 3, 4, 5])
    async with started(app):
        await until(lambda: processed(app, "work") >= 4)
        assert at(read(app), "sabot_batch_seconds_count", app="shop", operator="shop.work") == 0
        gate.set()
        await until(lambda: at(read(app), "sabot_batch_seconds_count", app="shop", operator="shop.work") == 1)
        assert processed(app, "work") == 6


async def test_a_batch_ends_while_later_ones_wait(app: App) -> None:
    gates = {1: asyncio.Event(), 2: asyncio.Event()}

    @app.agent("orders")
    async def work(ctx):
        await gates[ctx.message].wait()

    async with started(app):
        for number in (1, 2):
            publish(app, "orders", [number])
            await until(lambda rows=number: app.statistics()["operators"]["shop.work"]["rows"] == rows)
        gates[1].set()
        await until(lambda: app.statistics()["operators"]["shop.work"]["batches"] == 1)
        assert app.statistics()["operators"]["shop.work"]["rows"] == 1
        gates[2].set()
        await until(lambda: app.statistics()["operators"]["shop.work"]["batches"] == 2)


# --- over HTTP


async def test_the_figures_are_served_while_the_app_runs_and_no_longer(app: App) -> None:
    sorting_out(app)
    app.configure(metrics_port=0)
    publish(app, "orders", [1, 2])
    async with started(app):
        await until(lambda: processed(app, "second") == 2)
        port = app.statistics()["metrics"]["port"]
        with await asyncio.to_thread(urlopen, f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            text = answer.read().decode()
        assert app.statistics()["metrics"] == {"scrapes": 1, "port": port}
    now = figures(text)
    assert at(now, "sabot_records_in_total", app="shop", operator="shop.first", topic="orders") == 2
    assert "# HELP sabot_records_in_total " in text
    assert "# TYPE sabot_batch_seconds histogram" in text
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=60).connect()
    assert app.statistics()["metrics"]["port"] == 0


async def asked(port: int, path: str, method: str = "GET") -> tuple[int, Any]:
    """Status and body of a page."""

    def ask() -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read().decode()
            return answer.status, json.loads(body) if answer.headers["Content-Type"] == "application/json" else body
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def test_health_and_readiness_are_told_beside_the_figures(app: App) -> None:
    @app.agent("orders", on_error="fail")
    async def work(ctx: Any) -> None:
        raise ValueError("no luck")

    app.configure(metrics_port=0)
    async with started(app):
        port = app.statistics()["metrics"]["port"]
        assert await asked(port, "/healthz") == (200, {"app": "shop", "healthy": True, "why": ""})
        assert await asked(port, "/ready?verbose") == (
            200,
            {"app": "shop", "ready": True, "why": "", "checkpoint": 0},
        )
        assert (await asked(port, "/metrics", "HEAD")) == (200, "")
        status, body = await asked(port, "/")
        assert (status, body) == (404, "there is /healthz, /metrics, /ready\n")
        assert (await asked(port, "/metrics", "POST"))[0] == 501
        publish(app, "orders", [1])
        await until(lambda: state_of(app, "work") == "failed")
        status, report = await asked(port, "/ready")
        assert (status, report["ready"], report["why"]) == (503, False, "agents have failed: shop.work")


async def test_clients_that_send_nothing_take_few_threads_and_keep_nobody_away(app: App) -> None:
    app.configure(metrics_port=0)
    async with started(app):
        port, before = app.statistics()["metrics"]["port"], threading.active_count()
        silent = []
        try:
            for _ in range(80):
                silent.append(made := socket.socket())
                made.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    await asyncio.to_thread(made.connect, ("127.0.0.1", port))
            status, text = await asked(port, "/metrics")
            assert (status, "sabot_" in text) == (200, True)
            assert threading.active_count() <= before + 68, "64 connections, and the threads of this test"
        finally:
            for each in silent:
                each.close()


async def test_an_event_loop_that_is_blocked_is_not_healthy(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.engine.runtime.watch.probes._ANSWER_SECONDS", 0.05)
    sorting_out(app)
    app.configure(metrics_port=0)
    async with started(app):
        port = app.statistics()["metrics"]["port"]
        found: list[Any] = []

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            found.append((answer.status, json.loads(answer.read())["why"]))
            connection.close()

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()  # on the loop, which is blocked by this
    assert found == [(503, "the event loop has not answered for 0.05 s: a function blocks it")]


async def test_a_port_that_is_taken_is_an_error_that_names_it_and_nothing_stays_open(app: App, memory_url: str) -> None:
    taken = Metrics("other", lambda: [])
    port = taken.serve(0)
    sorting_out(app)
    app.configure(metrics_port=port)
    try:
        with pytest.raises(UserError, match=f"127.0.0.1:{port}"):
            await app.run()
    finally:
        taken.close()
    assert state_of(app, "first") == "stopped"
    async with started(app):  # the port is free now
        assert app.statistics()["metrics"]["port"] == port


def test_a_port_that_cannot_be_is_refused(app: App) -> None:
    with pytest.raises(UserError, match="65536"):
        app.configure(metrics_port=65536)


async def test_without_the_package_the_error_says_what_to_install(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    app.configure(metrics_port=0)

    @app.agent("in")
    async def look(ctx: Any) -> None: ...

    with pytest.raises(MissingExtra, match=r"--metrics-port.*pip install 'sabot\[metrics\]'"):
        await app.run()


# --- over restarts


async def test_no_counter_goes_back_when_an_older_checkpoint_is_restored(tmp_path: Path, memory_url: str) -> None:
    app = App("shop", memory_url, state="memory", checkpoint_dir=tmp_path)
    sorting_out(app)
    publish(app, "orders", [0, 1])
    async with started(app):
        await until(lambda: processed(app, "second") == 1)
        first = await checkpoint(app)
        publish(app, "orders", [-1, -2, 2, 3])
        await until(lambda: processed(app, "second") == 3)
        await checkpoint(app)
        running = read(app)
    stopped = read(app)
    for newer in manifest_files(tmp_path):
        if int(newer.name.split("-")[0]) > first:
            newer.unlink()
    seen = []
    async with started(app):
        assert app.agent_runtime.runner.restored_from == first
        seen.append(read(app))
        await until(lambda: processed(app, "second") == 3, "the rows after the first checkpoint, again")
        await checkpoint(app)
        seen.append(read(app))
    seen.append(read(app))
    for before, after in itertools.pairwise([running, stopped, *seen]):
        assert_none_went_back(before, after)
    last = seen[-1]
    assert app.statistics()["agents"]["shop.first"]["errors"] == 3  # of the job as restored: 1, then 2 again
    assert at(last, "sabot_agent_errors_total", app="shop", operator="shop.first") == 5  # of the process
    assert at(last, "sabot_dead_letters_total", app="shop", operator="shop.first", topic="orders") == 5
    assert at(last, "sabot_records_in_total", app="shop", operator="shop.first", topic="orders") == 10
    assert at(last, "sabot_records_out_total", app="shop", operator="shop.first", topic="shop.second") == 5


async def test_the_counters_of_a_delivery_do_not_go_back_with_the_next_run(tmp_path: Path, memory_url: str) -> None:
    """They were those of one run: gone between two, and 0 at the begin of the second."""
    app = App("shop", memory_url, state=tmp_path / "state")

    @app.agent("orders", sink=NdjsonSink(tmp_path / "out.ndjson"), delivery="exactly_once")
    async def keep(ctx):
        return {"n": ctx.message}

    seen = []
    for number in (1, 2):
        async with started(app):
            seen.append(read(app))
            publish(app, "orders", [number])
            await until(lambda number=number: processed(app, "keep") == number)
        seen.append(read(app))
    for before, after in itertools.pairwise(seen):
        assert_none_went_back(before, after)
    (delivered,) = [value for (name, _), value in seen[-1].items() if name == "sabot_delivered_records_total"]
    assert delivered == 2


async def test_readiness_names_a_broker_that_does_not_answer(app: App) -> None:
    """Only the log told why an app that is ready has read nothing for an hour."""
    app.configure(metrics_port=0)
    sorting_out(app)
    link = BrokerLink("127.0.0.1:1", "sink of topic 't'")
    link.opened = True
    link.reason = "Connection refused"
    async with started(app):
        port = app.statistics()["metrics"]["port"]
        link.down()
        status, report = await asked(port, "/ready")
        assert (status, report["ready"]) == (200, True), "rows that were read are processed"
        assert re.fullmatch(
            r"it has not answered for \d+ s: Connection refused", report["broker"]["kafka://127.0.0.1:1"]
        )
        link.up()
        assert "broker" not in (await asked(port, "/ready"))[1]


async def test_the_port_stays_open_while_the_app_waits_to_restart(tmp_path: Path, memory_url: str) -> None:
    """It was closed between two runs: Prometheus saw an app that was down, Kubernetes killed it, and with 0 the port changed."""
    app = App("shop", memory_url, state=tmp_path / "state", restart="fixed(1, 2s)", metrics_port=0)
    sink = FailsOnce()
    app.stream("orders", schema={"n": "int64"}).to(sink)
    publish(app, "orders", [{"n": 1}])
    running = asyncio.create_task(app.run())
    await until(lambda: app.statistics()["metrics"]["port"] > 0)
    port = app.statistics()["metrics"]["port"]
    await until(lambda: app.agent_runtime.runner.status.restarts == 1)
    assert await asked(port, "/healthz") == (200, {"app": "shop", "healthy": True, "why": ""})
    status, report = await asked(port, "/ready")
    assert (status, report["ready"]) == (503, False)
    assert "no room" in report["why"]
    await until(lambda: sink.rows == 1, "the run after the restart")
    status, text = await asked(port, "/metrics")
    assert (status, at(figures(text), "sabot_restarts_total", app="shop")) == (200, 1)
    app.request_stop()
    await running
    assert app.statistics()["metrics"]["port"] == 0


class FailsOnce(Sink):
    """A sink that refuses the first rows."""

    name = "fails once"

    def __init__(self) -> None:
        self.rows, self.failed = 0, False

    def open(self) -> None:
        """Nothing to open."""

    def write(self, batch: Any) -> None:
        if not self.failed:
            self.failed = True
            raise RuntimeError("no room")
        self.rows += batch.num_rows

    def flush(self) -> None:
        """Nothing to flush."""

    def close(self) -> None:
        """Nothing to close."""


async def test_gauges_go_with_the_app_and_counters_stay(app: App) -> None:
    sorting_out(app)
    publish(app, "orders", [1])
    async with started(app):
        await until(lambda: processed(app, "second") == 1)
        assert {"sabot_channel_rows", "sabot_consumer_lag", "sabot_state_keys"} <= names(read(app))
    assert not {"sabot_channel_rows", "sabot_consumer_lag", "sabot_state_keys"} & names(read(app))
    assert at(read(app), "sabot_records_in_total", app="shop", operator="shop.first", topic="orders") == 1


# --- from other threads


@pytest.mark.slow  # a second of a core, or more
async def test_scraping_from_other_threads_is_safe_while_the_app_starts_runs_and_stops(
    tmp_path: Path, memory_url: str
) -> None:
    app = App("shop", memory_url, state=str(tmp_path / "state"), checkpoint_interval=0.05)
    sorting_out(app)
    over = threading.Event()
    errors: list[BaseException] = []
    scrapes = [0, 0]

    def scrape(me: int) -> None:
        before: Figures = {}
        try:
            while not over.is_set():
                now = read(app)
                app.statistics()
                assert_none_went_back(before, now)
                before = now
                scrapes[me] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=scrape, args=(me,)) for me in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        for begin in (0, 2_000):
            publish(app, "orders", list(range(begin, begin + 2_000)))
            async with started(app):
                await until(lambda wanted=begin + 1_999: processed(app, "second") == wanted)
                await until(lambda: errors or min(scrapes) > 5)
    finally:
        over.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert errors == []
    assert min(scrapes) > 5
    assert at(read(app), "sabot_records_in_total", app="shop", operator="shop.first", topic="orders") == 4_000
    assert at(read(app), "sabot_agent_errors_total", app="shop", operator="shop.first") == 1


# --- statistics


async def test_everything_that_lives_long_is_reached_from_the_statistics_of_the_app(app: App) -> None:
    @app.agent("orders", sink="copies")
    async def copy(ctx):
        await ctx.state().put("n", ctx.message)
        return ctx.message

    publish(app, "orders", [1, 2, 3])
    async with started(app):
        await until(lambda: processed(app, "copy") == 3)
        await checkpoint(app)
        now = app.statistics()
    assert now["app"] == "shop"
    assert now["agents"]["shop.copy"]["messages_processed"] == 3
    source, sink, operator = now["sources"]["shop.copy/orders"], now["sinks"]["copies"], now["operators"]["shop.copy"]
    assert (source["rows_in"], source["ended"], source["lag"]) == (3, False, {"orders[0]": 0})
    assert (source["channel"]["rows_total"], source["channel"]["rows"]) == (3, 0)
    assert (sink["rows_out"], sink["waiting"], sink["channel"]["rows_total"]) == (3, 0, 3)
    assert (operator["rows"], operator["rows_out"], operator["batches"]) == (0, 3, 1)
    assert now["gate"]["inputs"] == 1
    assert now["gate"]["barriers_total"] == 1
    assert now["checkpoints"]["completed"] == 1
    assert now["state"]["keys"] == 1
    assert now["broker"]["rows_total"] == 6
    after = app.statistics()
    assert (after["operators"], after["gate"], after["state"]) == ({}, {}, {})
    assert after["sources"]["shop.copy/orders"]["rows_in"] == after["sinks"]["copies"]["rows_out"] == 3, (
        "the last figures"
    )


async def test_the_lag_of_a_file_is_in_bytes_under_its_path(tmp_path: Path, memory_url: str) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text('{"n": 1}\n{"n": 2}\n')
    app = App("files", memory_url)
    seen: list[Figures] = []

    @app.agent(NdjsonSource(path), batch=True, schema={"n": "int64"})
    def show(batch: pa.RecordBatch, ctx):
        seen.append(read(app))

    await app.run()
    where = {"app": "files", "operator": "files.show", "topic": str(path)}
    assert at(read(app), "sabot_records_in_total", **where) == 2
    assert "sabot_consumer_lag" not in names(read(app))
    assert seen


# --- the parts


def test_samples_that_agree_in_their_labels_are_added_up() -> None:
    """Two sinks of one name, as when one topic and one file are called the same: a scrape may name a series once."""
    durations = Durations()
    durations.add(0.3)
    metrics = Metrics("shop", lambda: [])
    metrics.follow(
        lambda: [
            Sample("sabot_channel_rows", 2, "sink", "out"),
            Sample("sabot_channel_rows", 3, "sink", "out"),
            Sample("sabot_batch_seconds", durations.read(), "a"),
            Sample("sabot_batch_seconds", durations.read(), "a"),
        ]
    )
    now = figures(metrics.text())
    assert at(now, "sabot_channel_rows", app="shop", operator="sink", topic="out") == 5
    assert at(now, "sabot_batch_seconds_count", app="shop", operator="a") == 2
    assert at(now, "sabot_batch_seconds_sum", app="shop", operator="a") == pytest.approx(0.6)


def test_figures_of_workers_have_their_number_and_a_name_is_still_one_family() -> None:
    durations = Durations()
    durations.add(0.3)
    metrics = Metrics("shop", lambda: [Sample("sabot_records_in_total", 1, "read-1/2", "orders")])
    metrics.follow(
        lambda: [
            Sample("sabot_records_in_total", 2, "read-1/0", "orders", worker="1"),
            Sample("sabot_records_in_total", 3, "read-1/1", "orders", worker="2"),
            Sample("sabot_batch_seconds", durations.read(), "a", worker="2"),
            Sample("sabot_worker_memory_bytes", 7, worker="2"),
        ]
    )
    text = metrics.text()
    now = figures(text)
    where = {"app": "shop", "topic": "orders"}
    assert at(now, "sabot_records_in_total", **where, operator="read-1/0", worker="1") == 2
    assert at(now, "sabot_records_in_total", **where, operator="read-1/1", worker="2") == 3
    assert at(now, "sabot_records_in_total", **where, operator="read-1/2") == 1
    assert at(now, "sabot_batch_seconds_bucket", app="shop", operator="a", worker="2", le="0.5") == 1
    assert at(now, "sabot_worker_memory_bytes", app="shop", worker="2") == 7
    assert text.count("# TYPE sabot_records_in_total counter") == 1


def test_a_duration_on_a_bound_belongs_to_it_and_none_is_too_long() -> None:
    durations = Durations()
    for seconds in (0.0, 0.0005, 0.00051, 10.0, 1e9):
        durations.add(seconds)
    counts = dict(zip(Durations.BOUNDS, durations.read()[:-1], strict=True))
    assert {bound: count for bound, count in counts.items() if count} == {0.0005: 2, 0.001: 1, 10.0: 1, float("inf"): 1}
    assert durations.statistics() == {"count": 5, "seconds_total": pytest.approx(1e9 + 10.00101)}


def test_a_name_with_quotes_and_line_breaks_is_one_label() -> None:
    metrics = Metrics('a "b"\n\\c', lambda: [Sample("sabot_state_keys", 1)])
    assert at(figures(metrics.text()), "sabot_state_keys", app='a "b"\n\\c', operator="") == 1


async def test_an_app_with_agents_and_streams_has_the_figures_of_both(app: App) -> None:
    """Those of the streams were lost: the agents' took their place."""
    app.stream("numbers", schema={"n": "int64"}).to("copies")

    @app.agent("words")
    async def say(ctx: Any) -> None:
        """Nothing."""

    async with started(app):
        now = read(app)
    assert at(now, "sabot_records_in_total", app="shop", operator="read-1/0", topic="numbers") == 0
    assert at(now, "sabot_records_in_total", app="shop", operator="shop.say", topic="words") == 0


async def test_agents_and_streams_that_feed_each_other_have_figures_of_what_goes_between(app: App) -> None:
    @app.agent()
    async def double(ctx: Any) -> Any:
        return {"n": 2 * ctx.message["n"]} if ctx.message["n"] else {"n": "nothing"}

    app.stream("numbers", schema={"n": "int64"}).to(double)
    app.stream(double, schema={"n": "int64"}).to("doubled")
    publish(app, "numbers", [{"n": 0}, {"n": 1}, {"n": 2}])
    async with started(app):
        reader = app.statistics()["streams"]
        task = next(name for name, figures in reader.items() if "shop.double[0]" in figures["input"].get("lag", {}))
        letters = {"app": "shop", "operator": task, "topic": "shop.double"}
        await until(lambda: at(read(app), "sabot_dead_letters_total", **letters) == 1)
        now = read(app)
    assert at(now, "sabot_records_in_total", app="shop", operator="shop.double", topic="shop.double") == 3
    assert at(now, "sabot_channel_rows", app="shop", operator="shop.double", topic="shop.double") == 0
    assert at(now, "sabot_records_in_total", app="shop", operator=task, topic="shop.double") == 3


# --- models


async def test_the_engines_that_an_app_asks_have_figures_and_no_counter_goes_back(memory_url: str) -> None:
    prices = PriceTable({"model-1": Price("1000000", "2000000")}, version="1")

    def engine_of(answers: Any) -> ExecutionEngine:
        provider = ScriptedProvider(answers, name="vendor", model="model-1")
        return ExecutionEngine(provider, prices=prices, cache=MemoryCache(), retries=1, backoff=0)

    busy = [RateLimited("slow")]
    engine = engine_of(lambda spec: busy.pop() if busy and spec.messages[-1].text == "busy" else "yes")
    await engine.complete("before the app runs")

    app = App("shop", memory_url)

    @app.agent("orders", sink="answers")
    async def ask(ctx):
        return (await engine.complete(ctx.message)).content

    @app.agent("more", sink="answers")
    async def ask_another(ctx):
        answer = await engine_of("1234").complete("12345678")  # an engine for each message, which is then gone
        return answer.content

    where = {"app": "shop", "provider": "vendor", "model": "model-1"}
    publish(app, "orders", ["one", "one", "busy"])
    publish(app, "more", [1, 2])
    async with started(app):
        await until(lambda: len(MemoryBroker.get(memory_url).records("answers")) == 5)
        now = read(app)
        assert list(app.statistics()["engines"]) == ["vendor model-1"]
        running = app.statistics()["engines"]["vendor model-1"]
    gc.collect()
    later = read(app)
    assert running["limit"] >= 1
    counted = {
        "sabot_model_calls_total": 4,
        "sabot_model_failures_total": 0,
        "sabot_model_unasked_total": 1,
        "sabot_model_retries_total": 1,
        "sabot_model_overloads_total": 1,
        "sabot_model_fallbacks_total": 0,
        "sabot_model_cost_dollars_total": 14,
        "sabot_model_attempt_seconds_count": 5,
    }
    for figures_then in (now, later):
        assert {name: at(figures_then, name, **where) for name in counted} == counted
        tokens = {
            kind: at(figures_then, "sabot_model_tokens_total", **where, kind=kind) for kind in ("input", "output")
        }
        assert tokens == {"input": 6, "output": 4}
    assert at(now, "sabot_model_in_flight", **where) == 0
    assert "sabot_model_in_flight" not in {name for name, _ in later}
    assert app.statistics()["engines"]["vendor model-1"]["calls"] >= 3, "the last run's"
    async with started(app):
        publish(app, "orders", ["two"])  # without a checkpoint the others are read again
        await until(lambda: len(MemoryBroker.get(memory_url).records("answers")) == 11)
        again = read(app)
    assert_none_went_back(later, again)
    assert at(again, "sabot_model_calls_total", **where) == 7, "two by engines that are gone, and the new one"


async def test_an_app_that_asks_no_model_has_no_figures_of_models(app: App) -> None:
    sorting_out(app)
    async with started(app):
        assert [name for name, _ in read(app) if "model" in name] == []
        assert app.statistics()["engines"] == {}


def test_opentelemetry_has_the_figures_of_prometheus_under_the_same_names_and_labels() -> None:
    durations = Durations()
    for seconds in (0.0001, 0.02, 60.0):
        durations.add(seconds)
    samples = [
        Sample("sabot_records_in_total", 3, "a.read", "rows"),
        Sample("sabot_records_in_total", 4, "a.read", "rows"),
        Sample("sabot_consumer_lag", 7, "a.read", "rows", "0"),
        Sample("sabot_batch_seconds", durations.read(), "a.read"),
        Sample("sabot_consumer_lag", 1, "a.read", "rows", "1", worker="2"),
    ]
    metrics = Metrics("a", lambda: samples)
    reader = InMemoryMetricReader()
    metrics.observe(MeterProvider([reader]))
    (resource,) = reader.get_metrics_data().resource_metrics
    (scope,) = resource.scope_metrics
    found = {
        (metric.name, frozenset(point.attributes.items())): point.value
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    assert found == figures(metrics.text())
    assert len(found) == 1 + 2 + len(Durations.BOUNDS) + 2
    rising = {metric.name for metric in scope.metrics if getattr(metric.data, "is_monotonic", False)}
    assert rising == {name for name, _ in found} - {"sabot_consumer_lag"}


async def test_an_app_gives_its_figures_to_opentelemetry_while_it_runs() -> None:
    reader = InMemoryMetricReader()
    app = App("seen", state="memory")

    @app.agent("inputs")
    async def read(ctx: Any) -> None:
        """Nothing to do."""

    app.observe_metrics(MeterProvider([reader]))
    async with started(app):
        await app.send("inputs", 1)
        await until(lambda: processed(app, "read") == 1)
        (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
    (rows,) = [metric for metric in scope.metrics if metric.name == "sabot_records_in_total"]
    assert [(point.value, point.attributes["operator"]) for point in rows.data.data_points] == [(1, "seen.read")]


def test_a_quantile_of_durations_is_within_their_bucket() -> None:
    durations = Durations()
    assert Durations.quantile(durations.read(), 0.5) is None
    for _ in range(90):
        durations.add(0.008)
    for seconds in (*[1.5] * 9, 1000.0):
        durations.add(seconds)
    found = [Durations.quantile(durations.read(), part) for part in (0.5, 0.95, 0.99, 1.0)]
    assert found == pytest.approx([0.005 + 0.005 * 50 / 90, 1.0 + 1.5 * 5 / 9, 2.5, 120.0])
