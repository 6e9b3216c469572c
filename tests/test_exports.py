"""The public face: what `sabot.__all__` says is there, is documented, and nothing else leaks."""

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType

import sabot
from tools.source_tree import PROJECT, sources, tree_of

CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def in_order(names: list[str]) -> list[str]:
    """The order that ruff keeps (RUF022): CONSTANTS, then Classes, then functions; by name in each, capitals first."""
    return sorted(names, key=lambda n: (0 if n.isupper() else 1 if n[0].isupper() else 2, n))


def code_words(page: str) -> set[str]:
    """The words that a page has in code, in blocks or between backticks: `Record` in prose documents nothing."""
    return set(re.findall(r"\w+", " ".join(CODE.findall(page))))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def offers(path: Path) -> bool:
    """The module has an `__all__`."""
    return any(isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__" for n in tree_of(path).body)


def test_every_all_is_sorted_and_holds_only_names_that_exist() -> None:
    wrong = {}
    for path in sources(".py").values():
        if offers(path):
            name = module_name(path)
            module = importlib.import_module(name)
            found = list(module.__all__)
            if found != in_order(sorted(set(found))) or not all(hasattr(module, each) for each in found):
                wrong[name] = found
    assert wrong == {}


def test_every_module_that_defines_something_says_what_it_offers() -> None:
    defines = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    silent = [
        module_name(path)
        for path in sources(".py").values()
        if not offers(path) and any(isinstance(node, defines) for node in tree_of(path).body)
    ]
    assert silent == []


def test_every_public_name_is_documented() -> None:
    pages = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
    documented = set().union(*(code_words(page.read_text()) for page in pages))
    missing = [name for name in sabot.__all__ if name not in documented]
    assert missing == [], "these stand in no page: describe them in README.md or docs/, or make them private"


def test_every_public_class_and_function_has_a_docstring_of_its_own() -> None:
    things = {name: getattr(sabot, name) for name in sabot.__all__}
    silent = [
        name
        for name, thing in things.items()
        if (isinstance(thing, type) or callable(thing)) and not (thing.__doc__ or "").strip()
    ]
    assert silent == []


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
    for stub in (path for name, path in sources(".pyi").items() if name.startswith("_cython/")):
        module = importlib.import_module(module_name(stub))
        for node in tree_of(stub).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                thing = getattr(module, node.name, None)
                missing = [] if thing is not None else [node.name]
                if isinstance(node, ast.ClassDef) and thing is not None:
                    methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef)]
                    missing = [f"{node.name}.{m}" for m in methods if not hasattr(thing, m)]
                wrong += [f"{stub.stem}.{name}" for name in missing]
    assert wrong == []
