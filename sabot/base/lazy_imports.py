"""Public names of a package that are imported at their first use (PEP 562), so that a program loads only the modules
that it needs.

The stub of a package, `__init__.pyi`, is the one list of its names and their modules, for type checkers, editors and
`lazy_exports`. Each line is `from module import Name as Name`, which in a stub marks a name as the package's own.
"""

import ast
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from opcode import opname
from types import FrameType
from typing import Any


def lazy_exports(
    package: str, *, elsewhere: str = "", beside: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns the `__getattr__`, the `__dir__` and the `__all__` of a package, made from its stub. Raises ImportError
    if the stub is missing. `elsewhere`: a module whose `FUNCTIONS` says what is written here for names of other libraries.
    `beside`: names that are no part of `__all__`, and their modules.
    """
    public = _homes(package)
    where = {**public, **(beside or {})}

    def load(name: str) -> Any:
        if name not in where:
            here = import_module(elsewhere).FUNCTIONS.get(name) if elsewhere and not name.startswith("_") else None
            what = f"module {package!r} has no attribute {name!r}" + (f" (here it is {here})" if here else "")
            if here and _imports(sys._getframe(1)):
                raise ImportError(f"cannot import name {name!r} from {package!r} (here it is {here})", name=package)
            raise AttributeError(what, name=name, obj=sys.modules[package])  # with these Python names the nearest name
        with no_collections():
            value = getattr(import_module(where[name]), name)
        setattr(sys.modules[package], name, value)  # the next time Python finds it by itself
        return value

    def names() -> list[str]:
        """Returns the public names, and the names that Python gives each module; modules of the package that were
        imported are not public.
        """
        return sorted({*where, *(name for name in vars(sys.modules[package]) if name.startswith("__"))})

    return load, names, sorted(public, key=_place)


def _imports(caller: FrameType) -> bool:
    """Returns True if the caller is at `from package import name`, in place of whose AttributeError Python has a text of its own."""
    return opname[caller.f_code.co_code[caller.f_lasti]] == "IMPORT_FROM"


@contextmanager
def no_collections() -> Iterator[None]:
    """Turns the garbage collector off for the imports in the block. They make tens of thousands of objects that stay, which
    each collection would search: a fifth of the start of a program.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if gc.get_count()[0] > gc.get_threshold()[0] and not gc.get_freeze_count():
                # To freeze and unfreeze makes all objects old, without a look at them. Else the collection that is due now and
                # the one behind it would search them after all.
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _homes(package: str) -> dict[str, str]:
    """Returns the module of each name of a package. Reads the stub through the package's loader, because packages may
    lie in archives.
    """
    spec: Any = sys.modules[package].__spec__
    stub = os.path.splitext(spec.origin)[0] + ".pyi"
    try:
        tree = ast.parse(spec.loader.get_data(stub))
    except OSError as error:
        raise ImportError(
            f"{stub} cannot be read. It lists the names of {package} and their modules: put it into the archive too"
        ) from error
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def _place(name: str) -> tuple[int, str]:
    """Returns a sort key that puts constants before classes before functions, the order in which linters keep an
    `__all__`.
    """
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name
