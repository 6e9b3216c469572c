"""The screen of models, tools, child processes and MCP servers: everything outside of the app that agents call or run."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from sabot.base.figures import CalledFigures, EngineFigures, ToolCalls
from sabot.base.metrics import Durations
from sabot.engine.calls.names import SERVERS
from sabot.engine.runtime.watch.app_rates import rate_of
from sabot.engine.runtime.watch.figure_rings import FigureRings, Tick
from sabot.jobs.history import ASKS
from sabot.process.tree import below, facts_of
from sabot.web.screen import Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp

if TYPE_CHECKING:
    from sabot.mcp.pool import McpServerFacts, McpServerPool

_MOST_CHILDREN = 500
_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_STATES = {"R": "running", "S": "waiting", "D": "waiting for a device", "Z": "ended", "T": "stopped", "I": "idle"}


@dataclass(frozen=True)
class CallCounts:
    """The calls of a model or a tool since the start. `kind`: model or tool. `rate`: calls a second in the last ten seconds. `seconds`: the
    mean time of an attempt in these seconds, or since the start if there was none; `p50`, `p95`, `p99`: the times that so many percent of
    these attempts did not exceed, about. `limit`: the calls that may be in flight, of models.
    `overloads`: attempts that were turned away (429). A value that is not known, or does not exist, is None.
    """

    kind: str
    name: str
    calls: int
    rate: float
    in_flight: int
    seconds: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    failed: int
    unknown: int | None = None
    limit: int | None = None
    waiting: int | None = None
    retries: int | None = None
    overloads: int | None = None
    fallbacks: int | None = None
    tokens: int | None = None
    dollars: float | None = None


@dataclass(frozen=True)
class ChildFigures:
    """A process below that of the app. `depth`: 1 for its own children. `cpu`: the part of a processor that it has used since the last
    look, or None at the first one. `memory_bytes`: resident.
    """

    pid: int
    depth: int
    program: str
    state: str
    memory_bytes: int
    cpu: float | None


class ModelScreens:
    """The facts of the screen. Used by the thread of the server."""

    def __init__(self, app: ShownApp) -> None:
        self._app = app
        self._cpu: dict[int, tuple[float, float]] = {}  # by process: the time of the last look, and the CPU seconds
        self._children: tuple[int, list[ChildFigures]] = (0, [])
        self._first: dict[str, dict[str, str]] = {}  # of each server the digests of the tools at the first look

    def group(self) -> ScreenGroup:
        """Returns the screen."""
        return ScreenGroup({"models": Screen("Models", "/models", ("models",), self._facts, self._about, self._rows)})

    def _facts(self, query: Query) -> dict[str, Any]:
        wanted = query.get("q", "").casefold()
        calls = [each for each in call_figures(self._app.figures) if wanted in each.name.casefold()]
        return {
            "models": [each for each in calls if each.kind == "model"],
            "tools": [each for each in calls if each.kind == "tool"],
            "children": [each for each in self._processes() if wanted in each.program.casefold()],
            "servers": [each for each in self._servers() if wanted in each[0].name.casefold()],
            "live": self._app.here,
        }

    async def _about(self, query: Query) -> dict[str, Any]:
        return {}

    def _rows(self, query: Query) -> Rows:
        if query.get("of") == "processes":
            return [asdict(each) for each in self._processes()]
        return [asdict(each) for each in call_figures(self._app.figures)]

    def _processes(self) -> list[ChildFigures]:
        """Returns the processes below this one, as of the last tick; none if the app runs elsewhere."""
        tick = self._app.figures.last
        if not self._app.here or self._app.live is None:
            return []
        if self._children[0] != tick.number:
            self._children = tick.number, list(self._looked_at(tick))
        return self._children[1]

    def _looked_at(self, tick: Tick) -> Iterator[ChildFigures]:
        depths, seen = {os.getpid(): 0}, dict[int, tuple[float, float]]()
        for pid, _ in zip(below(os.getpid()), range(_MOST_CHILDREN), strict=False):
            facts = facts_of(pid)
            if facts is None:
                continue
            depths[pid] = depths.get(facts.parent, 0) + 1
            seen[pid] = tick.steady, facts.cpu_seconds
            before, seconds = self._cpu.get(pid, (tick.steady, 0.0))
            cpu = max(0.0, facts.cpu_seconds - seconds) / (tick.steady - before) if tick.steady > before else None
            state = _STATES.get(facts.state, facts.state)
            yield ChildFigures(pid, depths[pid], facts.program, state, facts.memory_bytes, cpu)
        self._cpu = seen

    def _servers(self) -> "list[tuple[McpServerFacts, list[str]]]":
        """Returns the MCP servers of the pools of this process; none if the app runs elsewhere. With each, its tools that say
        something else of themselves than at the first look, or that are new, or gone.
        """
        if not self._app.here or self._app.live is None:
            return []
        found = []
        for pool in list(SERVERS):
            for each in cast("McpServerPool", pool).servers():
                if each.sessions:
                    self._first.setdefault(each.name, dict(each.tools))
                first = self._first.get(each.name, {})
                changed = sorted(name for name in {*first, *each.tools} if first.get(name) != each.tools.get(name))
                found.append((each, changed if each.sessions else []))
        return sorted(found, key=lambda line: (line[0].name, line[0].way))


def call_figures(figures: FigureRings) -> list[CallCounts]:
    """Returns the figures of the models that were called, then those of the tools of durable agents."""
    before, now = figures.span
    span = now.steady - before.steady
    found = [
        _of_model(name, each, before.figures.engines.get(name, EngineFigures()), span)
        for name, each in sorted(now.figures.engines.items())
    ]
    tools = now.figures.jobs.tools.keys() - {ASKS}  # which jobs count in the same way
    return found + [_of_tool(name, now, before, span) for name in sorted(tools)]


def _of_model(name: str, now: EngineFigures, old: EngineFigures, span: float) -> CallCounts:
    counted = {
        each: getattr(now, each)
        for each in ("calls", "in_flight", "failed", "limit", "waiting", "retries", "overloads", "fallbacks")
    }
    rate, tokens = rate_of(old.calls, now.calls, span), now.input_tokens + now.output_tokens
    return CallCounts("model", name, rate=rate, tokens=tokens, dollars=now.cost, **counted, **_times(now, old))


def _of_tool(name: str, after: Tick, before: Tick, span: float) -> CallCounts:
    now, old = (each.figures.jobs.tools.get(name, ToolCalls()) for each in (after, before))
    counted = {each: getattr(now, each) for each in ("calls", "in_flight", "failed", "unknown")}
    return CallCounts("tool", name, rate=rate_of(old.calls, now.calls, span), **counted, **_times(now, old))


def _times(now: CalledFigures, old: CalledFigures) -> dict[str, Any]:
    """Returns the mean and the percentiles of the calls that have ended between two readings, else of all calls; None if none has ended."""
    durations = now.durations or (0.0,)  # a record of an earlier version has none
    before = old.durations or (0.0,) * len(durations)
    lately = [max(0.0, last - first) for last, first in zip(durations, before, strict=True)]
    figures = lately if any(lately[:-1]) else durations
    count = sum(figures[:-1])
    parts = {name: Durations.quantile(figures, part) if count else None for name, part in _PERCENTILES.items()}
    return {"seconds": figures[-1] / count if count else None, **parts}
