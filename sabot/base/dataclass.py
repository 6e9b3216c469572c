"""Data classes of the engine, which cost a program's start less than those of the standard library."""

import dataclasses
import reprlib
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError
from operator import attrgetter
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

_set = object.__setattr__
_FACTORY: Any = object()  # stands for what the factory of a field makes


def _dataclass(cls: Any = None, /, *, frozen: bool = False, eq: bool = True, repr: bool = True, **options: Any) -> Any:
    """Decorates a class as `dataclasses.dataclass` does, for which type checkers take it.

    Up to Python 3.12 that one writes up to six methods of each class as text and compiles them one by one: with the 170
    classes that a short program loads an eighth of its start. Here `__init__` alone is compiled, when it is first asked
    for; the other methods are the same functions in all classes. So a class of this kind is not known as frozen to the
    standard library: what inherits from a frozen one is made here too.
    """

    def made(cls: Any) -> Any:
        hashes = "__hash__" in vars(cls) and not (cls.__hash__ is None and "__eq__" in vars(cls))  # by itself
        cls = dataclasses.dataclass(init=False, repr=False, eq=False, **options)(cls)
        fields = dataclasses.fields(cls)
        methods: dict[str, Any] = {"__init__": _LateInit(cls, fields, frozen, options.get("slots", False))}
        if repr:
            methods["__repr__"] = _repr
        if eq:
            methods["__eq__"], made_hash = _comparison([each.name for each in fields if each.compare])
            if not hashes:
                cls.__hash__ = made_hash if frozen else None
        if frozen:
            methods |= {"__setattr__": _refuse, "__delattr__": _refuse}
            if options.get("slots"):  # copies and pickles have no other way to set attributes
                methods |= {"__getstate__": _state, "__setstate__": _restore}
        for name in methods.keys() - vars(cls).keys():
            setattr(cls, name, methods[name])
        return cls

    return made if cls is None else made(cls)


if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    dataclass = _dataclass


class _LateInit:
    """The `__init__` of a class until it is asked for. Then the compiled one takes its place."""

    __slots__ = ("_cls", "_fields", "_frozen", "_slots")

    def __init__(self, cls: type, fields: tuple[Any, ...], frozen: bool, slots: bool) -> None:
        self._cls, self._fields, self._frozen, self._slots = cls, fields, frozen, slots

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        init = _init_of(self._cls, self._fields, self._frozen, self._slots)
        if vars(self._cls).get("__init__") is self:  # else another thread was first
            self._cls.__init__ = init
        return init.__get__(instance, owner)


def _init_of(cls: type, fields: tuple[Any, ...], frozen: bool, slots: bool) -> Callable[..., None]:
    names: dict[str, Any] = {"_set": _set, "_FACTORY": _FACTORY}
    arguments: dict[bool, list[str]] = {False: [], True: []}
    lines = []
    for each in fields:
        value = name = each.name
        if each.default_factory is not MISSING:
            names[f"_make_{name}"] = each.default_factory
            value = f"_make_{name}() if {name} is _FACTORY else {name}" if each.init else f"_make_{name}()"
        elif not each.init:
            if not slots or each.default is MISSING:
                continue  # its default stands in the class
            value = f"_default_{name}"
        default = names[f"_default_{name}"] = _FACTORY if each.default_factory is not MISSING else each.default
        if each.init:
            arguments[each.kw_only].append(name if default is MISSING else f"{name}=_default_{name}")
        lines.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    given = ["self", *arguments[False], *(["*", *arguments[True]] if arguments[True] else [])]
    body = "\n ".join(lines or ["pass"])
    exec(f"def __init__({', '.join(given)}):\n {body}", names)
    init: Any = names["__init__"]
    init.__module__, init.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    init.__annotations__ = {each.name: each.type for each in fields if each.init} | {"return": None}
    return init  # type: ignore[no-any-return]


@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in dataclasses.fields(self) if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _comparison(names: list[str]) -> tuple[Callable[[Any, object], Any], Callable[[Any], int]]:
    """Returns `__eq__` and `__hash__` of a class that is compared by these fields."""
    values: Callable[[Any], Any] = attrgetter(*names) if names else lambda self: ()

    def __eq__(self: Any, other: object) -> Any:
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(values(self))

    return __eq__, __hash__


def _refuse(self: Any, name: str, *value: Any) -> None:
    """Refuses to set or delete an attribute, but for those that a subclass which is no data class adds."""
    cls = type(self)
    if "__dataclass_fields__" in vars(cls) or name in cls.__dataclass_fields__:
        raise FrozenInstanceError(f"cannot {'assign to' if value else 'delete'} field {name!r}")
    if value:
        _set(self, name, *value)
    else:
        object.__delattr__(self, name)


def _state(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in dataclasses.fields(self)]


def _restore(self: Any, state: list[Any]) -> None:
    for each, value in zip(dataclasses.fields(self), state, strict=True):
        _set(self, each.name, value)
