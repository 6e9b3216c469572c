"""Abilities of operators: what a class defines is called, or the class is refused."""

from typing import Any

import pytest

from sabot.engine.operators.base import _ABILITIES, Operator, Polled, SecondInput, Stateful


def test_a_method_of_an_ability_that_is_not_among_the_bases_is_refused() -> None:
    """Nothing would call it: the task asks for the ability when it builds the chain."""
    with pytest.raises(TypeError, match=r"Timed defines poll, .* ability Polled .* class Timed\(…, Polled\)"):

        class Timed(Operator):
            def poll(self, now_ms: int) -> None: ...


def test_a_method_that_comes_from_a_mixin_is_refused_too() -> None:
    class Clock:
        def poll(self, now_ms: int) -> None: ...

    with pytest.raises(TypeError, match="Timed defines poll"):

        class Timed(Clock, Operator):
            pass


def test_an_attribute_of_an_ability_is_refused_as_well() -> None:
    with pytest.raises(TypeError, match=r"defines parted_by, .* ability Stateful"):

        class Keyed(Operator):
            parted_by = ("k",)


def test_an_ability_of_a_base_is_enough() -> None:
    class Timed(Polled):
        def poll(self, now_ms: int) -> None: ...

    class Later(Timed):
        def poll(self, now_ms: int) -> None: ...

    assert issubclass(Later, Polled)


def test_an_operator_without_a_method_of_its_ability_cannot_be_made() -> None:
    class Half(SecondInput):
        pass

    with pytest.raises(TypeError, match="process_right"):
        Half()  # type: ignore[abstract]


def test_each_member_belongs_to_one_ability_and_none_to_the_operator() -> None:
    assert not _ABILITIES.keys() & {name for name in vars(Operator) if not name.startswith("_")}
    assert {_ABILITIES[name] for name in ("snapshot", "state_schema", "parted_by")} == {Stateful}


def test_a_plain_operator_passes_rows_on() -> None:
    operator, out = Operator(), []
    operator.emit = out.append
    batch: Any = object()
    operator.process(batch)
    assert out == [batch]
