"""The pages that are made of the code: the API by package, the command line, the examples."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from sabot.cli import commands
from sabot.cli.late import LateGroup

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "sabot": "Apps, streams, expressions and agents.",
    "sabot.agents": "Jobs and kernels, policies, budgets, events, flows and replay.",
    "sabot.llm": "Models: providers, messages, tools, limits and caches.",
    "sabot.journal": "The journal of effects.",
    "sabot.mcp": "The Model Context Protocol.",
    "sabot.process": "Programs as agents, and fleets of them.",
    "sabot.kafka": "Topics as sources and sinks.",
    "sabot.connectors.files": "Files as sources and sinks.",
    "sabot.state": "Backends of keyed state, and the kinds of state.",
    "sabot.testing": "Tools for tests.",
    "sabot.web": "The jobs of a kernel by HTTP.",
}


def homes_of(package: str) -> dict[str, str]:
    """Returns the public names of a package, in order, each with its full path: `App` is `sabot.app.App`."""
    module = importlib.import_module(package)
    stub = Path(module.__file__ or "").with_suffix(".pyi")
    there = stub if stub.exists() else stub.with_suffix(".py")
    imports = [node for node in ast.parse(there.read_text()).body if isinstance(node, ast.ImportFrom)]
    found = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    return {name: found.get(name, f"{package}.{name}") for name in module.__all__}


def api_page(package: str) -> str:
    """Returns the page of a package: a directive of mkdocstrings for each name, constants first, then classes, then functions."""
    homes = homes_of(package)
    parts = [f"# {package}\n\n{PACKAGES[package]}\n\n```python\nimport {package}\n```"]
    for title, chosen in (
        ("Constants", [name for name in homes if name.isupper()]),
        ("Classes", [name for name in homes if not name.isupper() and name[0].isupper()]),
        ("Functions", [name for name in homes if not name[0].isupper()]),
    ):
        if chosen:
            parts.append(f"## {title}")
            parts += [f"::: {package}.{name}\n    options:\n      heading_level: 3" for name in chosen]
    return "\n\n".join(parts) + "\n"


def api_text(package: str) -> str:
    """Returns the page of a package as text alone: the signature and the docstring of each name."""
    parts = [f"# {package}\n\n{PACKAGES[package]}"]
    for name in homes_of(package):
        thing = getattr(importlib.import_module(package), name)
        parts.append(f"## {package}.{name}\n\n{_described(name, thing)}")
        if inspect.isclass(thing):
            methods = inspect.getmembers(thing, lambda each: inspect.isfunction(each) or isinstance(each, property))
            parts += [_described(f"{name}.{each}", member) for each, member in methods if each[0] != "_"]
    return "\n\n".join(parts) + "\n"


def _described(name: str, thing: Any) -> str:
    try:
        signature = str(inspect.signature(thing)) if callable(thing) else ""
    except ValueError:
        signature = ""
    return f"`{name}{signature}`\n\n{inspect.getdoc(thing) or ''}".strip()


def commands_page() -> str:
    """Returns the page of the command line: the help of each command, its arguments and options as tables."""
    parts = ["# Command line", "This page is made of the commands: `sabot COMMAND --help` prints the same."]
    for words in _commands([], typer.main.get_command(commands.cli)):
        told = CliRunner().invoke(commands.cli, [*words, "--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
        assert told.exit_code == 0, told.output
        usage, _, rest = told.output.strip().partition("\n")
        parts.append(f"{'##' if len(words) < 2 else '###'} {' '.join(['sabot', *words])}")
        parts.append(f"```console\n$ {re.sub(r'^.*?sabot|^Usage: root', 'sabot', usage)}\n```")
        for section in re.split(r"\n\n(?=\w+:\n)", inspect.cleandoc(rest)):
            title = re.match(r"(Arguments|Options|Commands):\n", section)
            if title is None:
                parts.append(_cell(section).strip())
            elif title[1] != "Commands":  # each has a section of its own
                parts.append(_table(title[1], section[title.end() :]))
    return "\n\n".join(filter(None, parts)) + "\n"


def _commands(words: list[str], command: Any) -> Iterator[list[str]]:
    yield words
    for name in sorted({*getattr(command, "commands", {}), *getattr(command, "late", {})}):
        found = command.load(name) if isinstance(command, LateGroup) else command.commands[name]
        yield from _commands([*words, name], found)


def _table(title: str, lines: str) -> str:
    """Returns the lines of a section of a help text as a table: a name, two or more spaces, and its meaning."""
    rows = [f"| {title.lower()} | |", "|---|---|"]
    for name, meaning in re.findall(r"^  (\S.*?)(?:\s{2,}(.*(?:\n {10,}.*)*))?$", lines, re.MULTILINE):
        if not name.startswith("-h, --help"):
            rows.append(f"| `{name.replace('|', chr(92) + '|')}` | {_cell(meaning)} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def examples_page() -> str:
    """Returns the page of the examples: each program below its name."""
    parts = [
        "# Examples",
        "Each program runs as it stands: `sabot run examples.NAME:app`, from the folder of the project.",
    ]
    for path in sorted((ROOT / "examples").rglob("*.py")):
        if path.name != "__init__.py":
            name = path.relative_to(ROOT / "examples").with_suffix("").as_posix().replace("/", ".")
            parts.append(f"## {name}\n\n```python\n{path.read_text().rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
