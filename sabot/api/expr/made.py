"""The function with which the namespaces of an expression (`.str`, `.dt`, `.struct`, `.list`) make further
expressions. They need not import the class `Expr` for it.
"""

from typing import Any, Protocol, TypeVar

E = TypeVar("E")
"""The type of expressions."""

_E_co = TypeVar("_E_co", covariant=True)


class Make(Protocol[_E_co]):
    """A function with which a namespace of an expression, such as `.str`, makes a new expression over that
    expression.

    `kind`: the name of the operation, such as "str.lower". `inputs`: further operands, as expressions or values.
    `options`: its arguments that are not expressions.
    """

    def __call__(self, kind: str, *inputs: Any, **options: Any) -> _E_co: ...
