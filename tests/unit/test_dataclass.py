"""Data classes of `sabot.base.dataclass` beside those of the standard library: they differ in what their making costs."""

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from functools import cached_property
from typing import Any

import pytest

from sabot.base.dataclass import dataclass


def classes(make: Any) -> dict[str, Any]:
    @make
    class Plain:
        a: int
        b: list[int] = field(default_factory=list)

    @make(eq=False)
    class Same:
        a: int = 1

    @make(frozen=True)
    class Frozen:
        """What it is."""

        a: int
        b: str = "x"
        c: Any = field(default=None, compare=False, repr=False)

        @cached_property
        def twice(self) -> int:
            return self.a * 2

    @make(frozen=True)
    class Child(Frozen):
        d: float = 0.5
        e: tuple[int, ...] = field(default=(), kw_only=True)

    @make(frozen=True, slots=True, kw_only=True)
    class Slots:
        a: int
        b: int = field(init=False, default=7)
        c: dict[str, int] = field(default_factory=dict)

    @make(frozen=True)
    class Checked:
        a: int

        def __post_init__(self) -> None:
            object.__setattr__(self, "a", abs(self.a))

    @make(frozen=True)
    class Own:
        a: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 5

    @make(frozen=True)
    class Empty:
        pass

    class Wider(Frozen):
        def __init__(self, a: int) -> None:
            super().__init__(a)
            self.more = a  # no field

    return {name: value for name, value in locals().items() if name != "make"}


STANDARD, OURS = classes(dataclasses.dataclass), classes(dataclass)
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Plain", (1,), {}),
    ("Plain", (1, [2]), {}),
    ("Plain", (), {"a": 3}),
    ("Same", (), {}),
    ("Frozen", (1,), {}),
    ("Frozen", (1, "y", 3), {}),
    ("Frozen", (1,), {"c": 2}),
    ("Child", (1, "y", 2, 3.5), {"e": (1,)}),
    ("Slots", (), {"a": 1}),
    ("Slots", (), {"a": 1, "c": {"k": 1}}),
    ("Checked", (-3,), {}),
    ("Own", (1,), {}),
    ("Empty", (), {}),
    ("Wider", (4,), {}),
]


def outcome(action: Callable[[], Any]) -> Any:
    """What is returned, or the class of the error."""
    try:
        return action()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("name", STANDARD)
def test_a_class_has_the_fields_the_parameters_and_the_hash_of_a_standard_one(name: str) -> None:
    standard, ours = STANDARD[name], OURS[name]
    assert [repr(each) for each in dataclasses.fields(ours)] == [repr(each) for each in dataclasses.fields(standard)]
    assert ours.__match_args__ == standard.__match_args__
    assert (ours.__hash__ is None) == (standard.__hash__ is None)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(standard).parameters)
    assert inspect.get_annotations(ours.__init__) == inspect.get_annotations(standard.__init__)
    for more in ((), (1, 2, 3, 4, 5, 6), (1,)):
        assert (outcome(lambda more=more: ours(*more)) is TypeError) == (
            outcome(lambda more=more: standard(*more)) is TypeError
        )


@pytest.mark.parametrize(("name", "args", "options"), CALLS)
def test_an_object_is_shown_compared_and_refused_as_a_standard_one(
    name: str, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    seen = []
    for all_classes in (STANDARD, OURS):
        make = all_classes[name]
        one, other = make(*args, **options), make(*args, **options)
        names = [each.name for each in dataclasses.fields(one)]
        if name != "Slots":  # there the standard class raises a TypeError that says nothing
            names.append("new")
        seen.append(
            [
                repr(one),
                one == other,
                one != object(),
                outcome(lambda one=one, other=other: hash(one) == hash(other)),
                [outcome(lambda one=one, field=field: setattr(one, field, 1)) for field in names],
                [outcome(lambda other=other, field=field: delattr(other, field)) for field in names],
                vars(one) if hasattr(one, "__dict__") else None,
                outcome(lambda make=make: repr(dataclasses.replace(make(*args, **options)))),
            ]
        )
    assert seen[0] == seen[1]


def test_objects_of_two_classes_differ_though_their_fields_are_equal() -> None:
    assert OURS["Frozen"](1) != OURS["Child"](1)
    assert OURS["Frozen"](1) != OURS["Wider"](1)


def test_a_value_that_is_computed_once_stays_in_a_frozen_object() -> None:
    frozen = OURS["Frozen"](4)
    assert frozen.twice == 8
    assert vars(frozen)["twice"] == 8
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'a'"):
        frozen.a = 5


def test_an_object_that_holds_itself_is_shown() -> None:
    plain = OURS["Plain"](1)
    plain.b.append(plain)
    standard = STANDARD["Plain"](1)
    standard.b.append(standard)
    assert repr(plain) == repr(standard)


@dataclass(frozen=True, slots=True)
class Kept:
    a: int
    b: str = "x"


def test_frozen_slots_are_copied_and_pickled() -> None:
    kept = Kept(1, "y")
    for again in (copy.copy(kept), copy.deepcopy(kept), pickle.loads(pickle.dumps(kept)), dataclasses.replace(kept)):
        assert again == kept
        assert again is not kept
