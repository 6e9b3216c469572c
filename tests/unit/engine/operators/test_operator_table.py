"""What the modules of operators say of steps and of their state is found by the kind of either."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from sabot.api.nodes.node import Node
from sabot.engine.operators.layout.operator_table import planner_of, reader_of
from sabot.errors import UserError
from tools.source_tree import sources


def modules() -> Iterator[ModuleType]:
    """Those of operators that have a table of their own."""
    for name, path in sources(".py").items():
        text = path.read_text()
        if name.startswith("engine/operators/") and ("\nPLANNERS" in text or "\nSTATE_READERS" in text):
            yield importlib.import_module("sabot." + name.removesuffix(".py").replace("/", "."))


def test_each_step_is_placed_by_the_module_that_says_so() -> None:
    said = {node: place for module in modules() for node, place in getattr(module, "PLANNERS", {}).items()}
    assert len(said) > 30
    assert {node: planner_of(node) for node in said} == said


def test_each_kind_of_state_is_read_by_the_module_that_says_so() -> None:
    said = {kind: make for module in modules() for kind, make in getattr(module, "STATE_READERS", {}).items()}
    assert len(said) > 15
    assert {kind: reader_of(kind) for kind in said} == said


def test_what_is_no_step_is_refused_and_what_is_no_kind_of_state_unknown() -> None:
    class Strange(Node):
        word = "strange"

    with pytest.raises(UserError, match="Strange is no step of a stream"):
        planner_of(Strange)
    assert reader_of("strange") is None
