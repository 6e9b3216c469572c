"""The public face: what `sabot.__all__` says is there, is documented, and nothing else leaks."""

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

import sabot

ROOT = Path(__file__).parents[1]
MODULES = [
    path
    for path in sorted((ROOT / "sabot").rglob("*.py"))
    if any(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for node in ast.parse(path.read_text()).body
    )
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def in_order(names: list[str]) -> list[str]:
    """The order that ruff keeps (RUF022): CONSTANTS, then Classes, then functions; by name in each."""
    return sorted(names, key=lambda n: (0 if n.isupper() else 1 if n[0].isupper() else 2, n.lower(), n))


def code_words(page: str) -> set[str]:
    """The words that a page has in code, in blocks or between backticks: `Record` in prose documents nothing."""
    return set(re.findall(r"\w+", " ".join(CODE.findall(page))))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_all_is_sorted_and_holds_only_names_that_exist(path: Path) -> None:
    module = importlib.import_module(module_name(path))
    assert module.__all__ == in_order(list(module.__all__))
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_every_module_that_defines_something_says_what_it_offers() -> None:
    defines = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    silent = [
        module_name(path)
        for path in (ROOT / "sabot").rglob("*.py")
        if path not in MODULES and any(isinstance(node, defines) for node in ast.parse(path.read_text()).body)
    ]
    assert silent == []


@pytest.mark.parametrize("name", sabot.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    pages = [page.name for page in PAGES if name in code_words(page.read_text())]
    assert pages, f"sabot.{name} stands in no page: describe it in README.md or docs/, or make it private"


@pytest.mark.parametrize("name", sabot.__all__)
def test_every_public_class_and_function_has_a_docstring(name: str) -> None:
    thing = getattr(sabot, name)
    if isinstance(thing, type) or callable(thing):
        assert (thing.__doc__ or "").strip(), f"sabot.{name} has no docstring"


def test_no_other_public_name_leaks() -> None:
    leaked = [
        name
        for name, value in vars(sabot).items()
        if not name.startswith("_")
        and name not in sabot.__all__
        and not (isinstance(value, ModuleType) and value.__name__ == f"sabot.{name}")
    ]
    assert leaked == []


def test_the_type_stub_of_each_kernel_names_what_the_kernel_has() -> None:
    wrong = []
    for stub in sorted((ROOT / "sabot" / "_cython").rglob("*.pyi")):
        module = importlib.import_module(".".join(stub.relative_to(ROOT).with_suffix("").parts))
        for node in ast.parse(stub.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                thing = getattr(module, node.name, None)
                missing = [] if thing is not None else [node.name]
                if isinstance(node, ast.ClassDef) and thing is not None:
                    methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef)]
                    missing = [f"{node.name}.{m}" for m in methods if not hasattr(thing, m)]
                wrong += [f"{stub.stem}.{name}" for name in missing]
    assert wrong == []
