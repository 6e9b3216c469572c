"""Public names that are loaded when they are first asked for (PEP 562), so that a program pays for what it uses.

A package says a name three times: under TYPE_CHECKING, for type checkers and editors; in `__all__`; and by the module that has it, for
`late_names`. `tests/test_exports.py` holds the three together.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["late_names"]


def late_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package. homes: by module, the names that it has."""
    where = {name: home for home, names in homes.items() for name in names}

    def load(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(where[name]), name)
        setattr(sys.modules[package], name, value)  # the next time Python finds it by itself
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *where})

    return load, names
