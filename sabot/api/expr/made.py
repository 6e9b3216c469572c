"""How the namespaces of an expression (`.str`, `.dt`, `.struct`, `.list`) make further expressions without importing their class."""

from typing import Any, Protocol, TypeVar

E = TypeVar("E")
"""An expression."""

_E_co = TypeVar("_E_co", covariant=True)


class Make(Protocol[_E_co]):
    """Makes an expression of this kind over the namespace's expression. inputs: its further inputs, expressions or values."""

    def __call__(self, kind: str, *inputs: Any, **options: Any) -> _E_co: ...
