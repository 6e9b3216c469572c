"""The answers of an app to the probes /healthz and /ready."""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from sabot.base.metrics import Health
from sabot.base.probes import Page, page_of
from sabot.base.threads import call_on_loop
from sabot.engine.runtime.app_spec import AppSpec
from sabot.errors import SabotError
from sabot.kafka import lost_brokers

_ANSWER_SECONDS = 5.0  # for the event loop to answer a probe


def liveness(
    app_id: str, failure: SabotError | None, loop: asyncio.AbstractEventLoop | None, health: Health | None
) -> Page:
    """Answers whether this process is healthy: the event loop answers, nothing has ended the run for good, and all
    child processes live. `failure`: the error that has ended the run, unless another one follows. Waits for the loop.
    """
    why, answered = "" if failure is None else failure.message, threading.Event()
    if loop is None or loop.is_closed():
        why = why or "the event loop has ended"
    else:
        call_on_loop(loop, answered.set)
        if not answered.wait(_ANSWER_SECONDS):
            why = why or f"the event loop has not answered for {_ANSWER_SECONDS:g} s: a function blocks it"
    report: dict[str, Any] = {}
    if health is not None:
        lacks, report["processes"] = health.liveness()
        why = why or lacks
    return page_of({"app": app_id, "healthy": not why, "why": why, **report}, good=not why)


def readiness(
    app: AppSpec,
    failed: SabotError | None,
    why: str,
    checkpoint_id: int | None,
    figures: Mapping[str, Any] | None,
    health: Health | None,
) -> Page:
    """Answers whether the app is ready: everything is open and works. The app is not ready during a start or a
    stop, and after the failure of an agent. `why`: the reason if it does not run, else "". `figures`: the figures of the run.
    """
    why = why if failed is None else failed.message
    if broken := [name for name, agent in app.agents.items() if agent.error is not None]:
        why = why or f"agents have failed: {', '.join(broken)}"
    report: dict[str, Any] = {"checkpoint": checkpoint_id}
    if lost := lost_brokers():  # rows that were read are processed, so the app is ready all the same
        report["broker"] = lost
    if figures is not None and (outages := _outages(figures)):
        report["registry"] = outages
    if health is not None:
        lacks, report["processes"] = health.readiness()
        why = why or lacks
    return page_of({"app": app.id, "ready": not why, "why": why, **report}, good=not why)


def _outages(figures: Mapping[str, Any]) -> list[str]:
    """Returns the reasons why sources wait for a schema registry. The app is ready all the same, because rows that it
    has read are processed.
    """
    inputs = [*figures.get("sources", {}).values(), *(task["input"] for task in figures["streams"].values())]
    return sorted({each["registry"] for each in inputs if each.get("registry")})
