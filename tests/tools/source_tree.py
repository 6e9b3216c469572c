"""The source of `sabot/` for tests that read it.

A file is parsed when the first test asks for it, and once in a session; its nodes are listed once too. Nothing is parsed on import, since
every worker imports every test module.
"""

import ast
import gc
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TypeVar

import sabot

ROOT = Path(sabot.__file__).parent
PROJECT = ROOT.parent
Node = TypeVar("Node", bound=ast.AST)


@cache
def sources(*suffixes: str) -> dict[str, Path]:
    """The files of the package with one of these suffixes, by their path below `sabot/`, in order."""
    paths = (path for path in ROOT.rglob("*") if path.suffix in suffixes and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(paths)}


@cache
def text_of(path: Path) -> str:
    """The text of a file."""
    return path.read_text()


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return _trees()[path]


@cache
def _trees() -> dict[Path, ast.Module]:
    """All of them at once: a collection of garbage between them would walk those before, and took most of the time."""
    gc.disable()
    try:
        return {path: ast.parse(text_of(path)) for path in sources(".py", ".pyi").values()}
    finally:
        gc.freeze()
        gc.enable()


@cache
def _nodes_of(path: Path) -> dict[type[ast.AST], list[ast.AST]]:
    found = defaultdict(list)
    for node in ast.walk(tree_of(path)):
        found[type(node)].append(node)
    return found


def nodes_of(path: Path, kind: type[Node]) -> list[Node]:
    """The nodes of a file that are of this kind, outer ones first."""
    return _nodes_of(path)[kind]  # type: ignore[return-value]
