"""What goes wrong is heard: errors of calls, in the log of a program that is one app.

An agent with `skip` went on over a thousand errors without a word, and the user's traceback stood nowhere.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sabot import App, files
from sabot.base.logs import set_up_logging
from sabot.engine.calls.error_log import EVERY_S, ErrorLog
from sabot.testing import ListSink, ManualClock
from tools.agent_tools import publish, records, started, until


def fails(n: int) -> None:
    raise ValueError(f"bad {n}")


def caught(n: int) -> ValueError:
    try:
        fails(n)
    except ValueError as error:
        return error
    raise AssertionError


def test_an_error_has_its_traceback_once_a_place_and_then_a_line_with_the_count_in_ten_seconds(caplog: Any) -> None:
    clock = ManualClock()
    heard = ErrorLog("agent score", clock)
    for n in range(1000):
        heard.add(caught(n), f"orders[0]@{n}", "it is a dead letter")
    heard.add(KeyError("price"), "orders[0]@1000", "it is a dead letter")
    assert [line.getMessage() for line in caplog.records] == [
        "agent score: ValueError: bad 0; orders[0]@0; it is a dead letter",
        "agent score: KeyError: 'price'; orders[0]@1000; it is a dead letter",
    ]
    assert "fails(n)" in caplog.text
    clock.advance(EVERY_S)
    heard.add(caught(1001), "orders[0]@1001", "it is a dead letter")
    heard.add(caught(1002), "orders[0]@1002", "it is a dead letter")
    said = "agent score: 1000 more errors ValueError in 10 s, the last one: ValueError: bad 1001; orders[0]@1001; it is a dead letter"
    assert [line.getMessage() for line in caplog.records[2:]] == [said]
    heard.flush()
    assert "agent score: 1 more errors ValueError" in caplog.records[-1].getMessage()
    assert caplog.text.count("Traceback") == 1


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("policy", ["skip", "retry"])
async def test_an_agent_that_goes_on_says_what_went_wrong(
    memory_url: str, caplog: Any, policy: Any, batch: bool
) -> None:
    app = App("heard", memory_url)

    if batch:

        @app.agent(
            "orders", batch=True, on_error=policy, backoff="1ms", **({"retries": 1} if policy == "retry" else {})
        )
        async def score(batch: Any, ctx: Any) -> None:
            raise ValueError("no price")
    else:

        @app.agent("orders", on_error=policy, backoff="1ms", **({"retries": 1} if policy == "retry" else {}))
        async def score(ctx: Any) -> None:
            raise ValueError("no price")

    publish(app, "orders", [{"n": n} for n in range(5)])
    async with started(app):
        await until(lambda: len(records(app, "orders.dlq")) == 5, "dead letters")
    told = [line for line in caplog.records if line.name == "sabot.engine.calls.error_log"]
    assert told[0].getMessage().startswith(f"agent {next(iter(app.agent_runtime.agents))}: ValueError: no price; ")
    assert "orders[0]@0" in told[0].getMessage()
    assert told[0].exc_text
    assert 'raise ValueError("no price")' in caplog.text
    assert caplog.text.count("Traceback") == 1
    assert "crew.py" not in caplog.text


@pytest.fixture
def unconfigure(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it for a process that has not set up logging."""
    level = logging.getLogger("sabot").level
    yield lambda: monkeypatch.setattr(logging.root, "handlers", [])
    logging.getLogger("sabot").setLevel(level)


def test_a_script_s_main_logs_as_the_command_does(tmp_path: Path, capsys: Any, unconfigure: Any) -> None:
    unconfigure()
    (tmp_path / "in.ndjson").write_text('{"n": 1}\n')
    app = App("script")

    @app.agent(files(tmp_path / "in.ndjson"), on_error="skip", dead_letter=ListSink("letters"))
    async def score(ctx: Any) -> None:
        raise ValueError("no price")

    app.main()
    said = capsys.readouterr().err
    assert " WARNING sabot.engine.calls.error_log: agent " in said
    assert ": ValueError: no price; " in said
    assert 'raise ValueError("no price")' in said


def test_log_lines_as_json_are_an_object_each(capsys: Any, unconfigure: Any) -> None:
    unconfigure()
    set_up_logging("info", "json")
    try:
        fails(3)
    except ValueError:
        logging.getLogger("sabot.test").exception("the %s broke", "first\nline")
    logging.getLogger("sabot.test").debug("not this")
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert {key: said[key] for key in ("level", "logger", "message")} == {
        "level": "error",
        "logger": "sabot.test",
        "message": "the first\nline broke",
    }
    assert "ValueError: bad 3" in said["traceback"]
    assert said["time"].endswith("+00:00")
