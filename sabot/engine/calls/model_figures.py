"""Figures of the engines of an event loop, for the metrics of the app that runs on it. An engine joins its loop at
its first call.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sabot.base.dataclass import dataclass
from sabot.base.metrics import Sample, Value, minus, plus

_COUNTERS = {  # by metric: the figure of `llm.middleware.CallFigures`
    "sabot_model_calls_total": "calls",
    "sabot_model_failures_total": "failed",
    "sabot_model_unasked_total": "unasked",
    "sabot_model_retries_total": "retries",
    "sabot_model_overloads_total": "overloads",
    "sabot_model_fallbacks_total": "fallbacks",
    "sabot_model_cost_dollars_total": "cost",
}
_TOKENS = ("input", "output", "cached", "reasoning")
_GAUGES = {  # by metric: the figure of `ExecutionEngine.statistics`
    "sabot_model_in_flight": "in_flight",
    "sabot_model_waiting": "waiting",
    "sabot_model_limit": "limit",
}

_Label = tuple[str, str]  # provider, model
_Totals = dict[tuple[str, _Label, str], Value]  # by metric, label and kind of tokens


_Counts = Callable[[], Mapping[str, Any]]  # returns the figures of `CallFigures`, and does not refer to the engine
_Statistics = Callable[[], dict[str, Any]]  # `ExecutionEngine.statistics`; while an engine has such a method, it exists


@dataclass(frozen=True, slots=True)
class _Member:
    """An owner of figures of models, with its label."""

    label: _Label
    counts: _Counts
    statistics: "weakref.WeakMethod[_Statistics]"


class _LoopEngines:
    """The engines (`llm.engine.ExecutionEngine`) that make calls of models on one event loop. `totals` also counts the
    calls of engines that were garbage-collected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: list[_Member] = []
        self._gone: _Totals = {}

    def add(self, statistics: _Statistics, label: _Label, counts: _Counts) -> None:
        with self._lock:
            self._sweep()
            self._members.append(_Member(label, counts, weakref.WeakMethod(statistics)))

    def _sweep(self) -> None:
        # read once: an engine may vanish any time
        there = [(each, each.statistics() is not None) for each in self._members]
        for member, is_there in there:
            if not is_there:
                _count(self._gone, member)
        self._members = [member for member, is_there in there if is_there]

    def totals(self) -> _Totals:
        with self._lock:
            totals = dict(self._gone)
            for member in self._members:
                _count(totals, member)
            return totals

    def figures(self) -> Iterator[tuple[_Label, dict[str, Any]]]:
        """Yields the figures of the engines that exist now."""
        for each in self._members:
            if (statistics := each.statistics()) is not None:
                yield each.label, statistics()


_loops: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopEngines]" = weakref.WeakKeyDictionary()


def join_loop(loop: asyncio.AbstractEventLoop, statistics: _Statistics, label: _Label, counts: _Counts) -> None:
    """Adds an engine to the engines of this event loop, whose figures `RunEngines` reads. `statistics`: the method
    `ExecutionEngine.statistics` of the engine, which this does not keep alive. `label`: the names of its provider and
    model. `counts`: a function that returns the engine's figures; it still works after the engine was
    garbage-collected.
    """
    _engines_of(loop).add(statistics, label, counts)


def _engines_of(loop: asyncio.AbstractEventLoop) -> _LoopEngines:
    return _loops.setdefault(loop, _LoopEngines())


class RunEngines:
    """The figures of all engines (`llm.engine.ExecutionEngine`) on the running event loop. An app makes this object
    when it starts. Any thread may read the figures.
    """

    def __init__(self) -> None:
        self._engines = _engines_of(asyncio.get_running_loop())
        self._before = self._engines.totals()

    def samples(self) -> Iterator[Sample]:
        """Yields the samples of the metrics `sabot_model_…`. Counters begin when this object is made: earlier calls on
        the same loop are subtracted. Each sample has two labels, the provider and the model. Samples of tokens have a
        third label, the kind of the tokens.
        """
        for (name, label, kind), value in self._engines.totals().items():
            before = self._before.get((name, label, kind))
            yield Sample(name, value if before is None else minus(value, before), *label, kind)
        for label, figures in self._engines.figures():
            for name, figure in _GAUGES.items():
                yield Sample(name, figures[figure], *label)

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Returns the figures of `ExecutionEngine.statistics` for the engines that exist now, each counted since the
        engine was made. The key is "PROVIDER MODEL": the names of the engine's first provider and of its model. The
        figures of several engines with the same key are summed.
        """
        found: dict[str, dict[str, Any]] = {}
        for label, figures in self._engines.figures():
            sums = found.setdefault(" ".join(label), {})
            for name, figure in figures.items():
                sums[name] = plus(sums[name], figure) if name in sums else figure
        return found


def _count(totals: _Totals, member: _Member) -> None:
    figures, label = member.counts(), member.label
    counted: list[tuple[str, str, Value]] = [(name, "", float(figures[each])) for name, each in _COUNTERS.items()]
    counted += [("sabot_model_tokens_total", kind, figures[f"{kind}_tokens"]) for kind in _TOKENS]
    counted.append(("sabot_model_attempt_seconds", "", figures["durations"]))
    for name, kind, value in counted:
        before = totals.get((name, label, kind))
        totals[name, label, kind] = value if before is None else plus(before, value)
