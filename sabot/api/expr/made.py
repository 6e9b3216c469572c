"""The function with which the namespaces of an expression (`.str`, `.dt`, `.struct`, `.list`) make further
expressions. They need not import the class `Expr` for it.
"""

from typing import Any, Protocol, TypeVar

E = TypeVar("E")
"""The type of expressions."""

_E_co = TypeVar("_E_co", covariant=True)


class Make(Protocol[_E_co]):
    """A function that makes an expression of this kind over the expression of the namespace.

    `inputs`: further inputs, as expressions or values. `options`: arguments that are not expressions.
    """

    def __call__(self, kind: str, *inputs: Any, **options: Any) -> _E_co: ...
