"""The source of `sabot/` for tests that read it.

A file is parsed when the first test asks for it, and once in a session. Nothing is parsed on import, since every worker imports every
test module.
"""

import ast
from functools import cache
from pathlib import Path

import sabot

ROOT = Path(sabot.__file__).parent
PROJECT = ROOT.parent


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
    return ast.parse(text_of(path))


def trees(suffix: str) -> dict[str, ast.Module]:
    """The syntax trees of the package's files with this suffix, by their path below `sabot/`."""
    return {name: tree_of(path) for name, path in sources(suffix).items()}
