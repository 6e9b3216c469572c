"""Names that Sabot has written to disk stay as they were: the steps of streams and their fields, windows, errors.

`stored_names.txt` holds them, a class a line with its fields in order. If a line is missing from today's code, checkpoints or journals
of users are not understood any more: give the class or the field its stored name in `sabot/base/stored_names.py`. A line that is only
in today's code is a new class or field: add it to the file.
"""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import sabot
import sabot.api.nodes
from sabot import col
from sabot.api.agent import AgentSpec
from sabot.api.aggregates import Aggregate
from sabot.api.expr import Expr
from sabot.api.nodes.joins import IntervalJoin
from sabot.api.nodes.node import Node
from sabot.api.nodes.patterns import Match
from sabot.api.windows import tumbling
from sabot.base import stored_names
from sabot.base.dataclass import dataclass
from sabot.base.stored_names import stored_field, stored_name
from sabot.engine.operators.windows.panes import stored_window, window_of
from sabot.engine.plan.paths import path_of
from sabot.llm import AgentRunError
from sabot.process import AgentError
from tools.source_tree import nodes_of, sources

FILE = Path(__file__).parent / "stored_names.txt"
NOT_BY_FIELDS = (
    Expr,
    Aggregate,
    AgentSpec,
)  # a digest has the texts of the first two; a step that feeds an agent has no state


def described(kind: type) -> str:
    names = [stored_field(kind, each.name) for each in fields(kind) if each.name != "origin"]  # no digest has it
    return f"{stored_name(kind)}: {' '.join(names)}".strip()


def subclasses(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def steps() -> set[type]:
    """The classes of all steps, and those of the values in their fields."""
    for module in pkgutil.iter_modules(sabot.api.nodes.__path__):
        importlib.import_module(f"sabot.api.nodes.{module.name}")
    found: set[type] = set()
    waiting: list[Any] = [*subclasses(Node)]
    while waiting:
        hint = waiting.pop()
        waiting += get_args(hint)
        if isinstance(hint, type) and is_dataclass(hint) and hint not in found and not issubclass(hint, NOT_BY_FIELDS):
            found.add(hint)
            waiting += [*get_type_hints(hint).values(), *hint.__subclasses__()]
    return {each for each in found if each.__module__.startswith("sabot.")}


def errors() -> set[str]:
    """The names on disk of all our errors: each may be the word of a failed effect, of an ended job, or of a dead letter."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in sources(".py").values()
        for node in nodes_of(path, ast.ClassDef)
    }
    found = {"SabotError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return {stored_names.CLASSES.get(name, name) for name in found}


def test_names_on_disk_are_those_of_the_versions_that_wrote_them() -> None:
    today = [f"step {each}" for each in sorted(map(described, steps()))] + [
        f"error {each}" for each in sorted(errors())
    ]
    kept = FILE.read_text().splitlines()
    gone = [each for each in kept if each not in today]
    assert gone == [], (
        "these are on disk: give the class or field of today its stored name in sabot/base/stored_names.py"
    )
    new = [each for each in today if each not in kept]
    assert new == [], "add these lines to tests/unit/stored_names.txt"
    assert today == kept, "sort the lines of tests/unit/stored_names.txt, the steps first"


@dataclass(frozen=True, eq=False)
class Old(Node):
    input: Node | None
    size: int


@dataclass(frozen=True, eq=False)
class New(Node):
    input: Node | None
    length: int


def test_a_renamed_step_is_found_in_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Old, New):
        monkeypatch.setattr(kind, "__module__", "sabot.api.nodes.rows")
    before = path_of(Old(None, 3), [])
    assert path_of(New(None, 3), []) != before
    monkeypatch.setitem(stored_names.CLASSES, "New", "Old")
    monkeypatch.setitem(stored_names.FIELDS, "New", {"length": "size"})
    assert path_of(New(None, 3), []) == before


@pytest.mark.parametrize(
    ("skip", "path"), [("past_last", "e4e0293feed77ab2"), ("none", "8b9076a564f433a0")], ids=["past_last", "none"]
)
def test_a_pattern_has_the_path_that_it_had_before_groups_and_reluctant_steps(skip: Any, path: str) -> None:
    """The digests are those of the code before `overlap` and `is_reluctant`, when a step's name was its first field."""
    pattern = sabot.pattern("low", col("x") < 2)
    pattern = pattern.then("more", col("x") > sabot.step("low").last("x") + 1, times=(1, None)).greedy().optional()
    pattern = pattern.then("high", col("x") >= 4).without(col("shop") == 1).within("30s")
    high = sabot.step("high")
    measures = (("n", high.count()), ("most", high.last("x")))
    node = Match(Old(None, 3), ("k",), pattern, skip, measures)
    assert path_of(node, ["00"]) == path
    shorter = sabot.pattern("low", col("x") < 2).reluctant()
    longer = sabot.pattern("low", col("x") < 2)
    assert path_of(replace(node, pattern=shorter), ["00"]) != path_of(replace(node, pattern=longer), ["00"])
    assert path_of(replace(node, overlap="begun"), ["00"]) != path


def test_a_join_by_time_has_the_path_that_it_had_before_its_pairs_could_have_the_time_of_the_left() -> None:
    node = IntervalJoin(Old(None, 3), Old(None, 4), ("k",), ("k",), lower_ms=0, upper_ms=5)
    assert path_of(replace(node, left_time=True), ["00", "01"]) == path_of(node, ["00", "01"])


def test_a_class_of_the_user_keeps_its_name() -> None:
    class AppLocked(Exception):
        pass

    assert stored_name(AppLocked) == "AppLocked"


def test_a_window_is_read_by_the_names_that_its_fields_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stored_names.FIELDS, "TumblingWindow", {"size_ms": "length_ms"})
    window = tumbling("5s", offset="1s")
    kind, values = stored_window(window)
    assert (kind, values) == ("TumblingWindow", {"length_ms": 5000, "offset_ms": 1000, "time": "event"})
    assert window_of({"window": [kind, values]}) == window
    assert window_of({"window": [kind, {"length_ms": 5000, "offset_ms": 1000}]}) == window


def test_an_error_that_was_renamed_is_written_as_before() -> None:
    assert (stored_name(AgentRunError), stored_name(AgentError)) == ("AgentError", "AgentError")
    assert not issubclass(AgentRunError, AgentError), "a run of a model, and a process, are caught apart"
