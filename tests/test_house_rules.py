"""Rules of the code that a machine can check: privates stay in their module, a class name means one thing, public names have docstrings.

Each rule has a list of what broke it when the rule was made. A list may only shrink: what is new on it fails, and so does an entry that is
not needed any more, so that it is removed.
"""

import ast
import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import sabot
import sabot.testing
from tools.source_tree import PROJECT, ROOT, nodes_of, sources, text_of

# -- privates -----------------------------------------------------------------------------------------------------------

READ_FROM_OUTSIDE = {
    "handle._run": "testing/loop.py and jobs/loop.py are event loops in the place of asyncio's, and run their handles",
    **dict.fromkeys(
        ("pool._connect", "pool._connect_args", "pool._connect_kwargs"),
        "a pool of asyncpg says nowhere else how it connects (docs/decisions/047)",
    ),
}

INHERITED = {  # privates of a base class in another module, by the class that uses them
    "BatchCaller": {"_emit_to_branch", "_failed", "_emit_rows", "_keys_of", "_spec"},
    "KafkaDelivery": {"_kafka", "_keys", "_producer"},
    "RowCaller": {"_emit_to_branch", "_failed", "_emit_rows", "_keys_of", "_spec"},
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def is_self(node: ast.expr) -> bool:
    """`self`, `cls`, or `super()`."""
    if isinstance(node, ast.Call):
        node = node.func
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "super")


@cache
def attributes_of(path: Path) -> set[str]:
    """Names of the attributes that the classes of a module define."""
    names = {
        node.attr for node in nodes_of(path, ast.Attribute) if isinstance(node.ctx, ast.Store) and is_self(node.value)
    }
    for node in nodes_of(path, ast.ClassDef):
        for part in node.body:
            match part:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    names.add(part.name)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names.add(name)
                case ast.Assign(targets=targets, value=value):
                    names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
                    names |= {each.value for each in ast.walk(value) if isinstance(each, ast.Constant)}  # __slots__
    return names


def outside_names(path: Path) -> set[str]:
    """Names that a module imports from the standard library and third parties: their privates are theirs to explain."""
    names = {(each.asname or each.name).partition(".")[0] for node in nodes_of(path, ast.Import) for each in node.names}
    for node in nodes_of(path, ast.ImportFrom):
        if not node.level and (node.module or "").partition(".")[0] != "sabot":
            names |= {each.asname or each.name for each in node.names}
    return names


def test_no_module_reads_a_private_attribute_of_anothers_object() -> None:
    found = defaultdict(list)
    for name, path in sources(".py").items():
        own, outside = attributes_of(path), outside_names(path)
        for node in nodes_of(path, ast.Attribute):
            if is_private(node.attr) and node.attr not in own and not is_self(node.value):
                if isinstance(node.value, ast.Name) and node.value.id in outside:
                    continue
                found[ast.unparse(node)].append(f"{name}:{node.lineno}")
    assert {text: places for text, places in found.items() if text not in READ_FROM_OUTSIDE} == {}, (
        "give the class a public method for it, or move the code into the module of the class"
    )
    assert READ_FROM_OUTSIDE.keys() - found.keys() == set(), "these are gone: take them off the list"


def test_no_class_stands_on_privates_of_a_base_class_elsewhere() -> None:
    found = defaultdict(set)
    for path in sources(".py").values():
        used = [node for node in nodes_of(path, ast.Attribute) if is_private(node.attr) and is_self(node.value)]
        if elsewhere := {node for node in used if node.attr not in attributes_of(path)}:
            for node in nodes_of(path, ast.ClassDef):
                if inherited := {each.attr for each in ast.walk(node) if each in elsewhere}:
                    found[node.name] |= inherited
    wrong = {name: sorted(used - INHERITED.get(name, set())) for name, used in found.items()}
    assert {name: used for name, used in wrong.items() if used} == {}, (
        "make the attribute public, or override a method of the base class"
    )
    gone = {name: sorted(used - found.get(name, set())) for name, used in INHERITED.items()}
    assert {name: used for name, used in gone.items() if used} == {}, "these are gone: take them off the list"


# -- names of classes -----------------------------------------------------------------------------------------------------

SHARED_NAMES = {  # Ledger, Operator, OperatorContext: the documents call them so
    "Join",  # the step of a stream, and the first message of a worker
    "Ledger",
    "Operator",
    "OperatorContext",
    "Process",
    "Reader",
    "Sample",
    "Verdict",
}


def test_a_class_name_is_defined_in_one_module() -> None:
    found = defaultdict(set)
    for place, path in sources(".py", ".pyi").items():
        for node in nodes_of(path, ast.ClassDef):
            found[node.name].add(place)
    for paths in found.values():
        if any(path.startswith("api/") for path in paths):  # a step's description and the operator that runs it
            paths -= {path for path in paths if path.startswith("engine/operators/")}
    several = {name: sorted(paths) for name, paths in found.items() if len(paths) > 1}
    assert {name: paths for name, paths in several.items() if name not in SHARED_NAMES} == {}, (
        "choose another name for the newer class"
    )
    assert SHARED_NAMES - several.keys() == set(), "these names mean one thing now: take them off the list"


# -- app and job ------------------------------------------------------------------------------------------------------------

ENGINE = (  # rooms, and modules beside them, in which the running program is an app; a job is one run of a durable agent's function
    *("_cython", "api", "app.py", "cli", "clock.py", "codecs", "config.py", "connectors", "disk.py", "engine", "kafka"),
    *("logs.py", "mcp", "metrics.py", "probes.py", "steps.py", "supervision.py", "testing", "threads.py"),
)

ABOUT_JOBS = {  # modules of these rooms that are about jobs of durable agents, or about their journals
    "engine/calls/decoded.py": "each run of a job decodes the words of a model",
    "engine/calls/tool_context.py": "the job that calls a tool",
    "base/figures.py": "calls of tools that jobs make, and the rows that wait for jobs",
    "engine/runtime/watch/log_ring.py": "the job that a line of the log names",
    "connectors/datagen/words.py": "#{job.title} of Java's faker",
    **dict.fromkeys(
        (f"api/{name}.py" for name in ("agent", "child_limits")),
        "what a durable agent is declared with, and what its function gets",
    ),
    **dict.fromkeys(
        (
            f"cli/{name}.py"
            for name in (
                "actions",
                "agent_jobs",
                "agent_project",
                "auditing",
                "demos",
                "journal",
                "ledger",
                "letters",
                "replaying",
                "schedules",
                "serving",
                "working",
                "states",
                "top",
            )
        ),
        "commands about jobs: sabot jobs, actions, journal, ledger, audit, dlq --job, init --agent",
    ),
    **dict.fromkeys(
        (
            f"engine/runtime/{name}.py"
            for name in ("agents/kind", "agents/task", "agents/local_agents", "life/run_journal")
        ),
        "the jobs of the durable agents of a run",
    ),
    "engine/calls/judging.py": "calls of models that no job makes",
    **dict.fromkeys(
        (f"engine/calls/{name}.py" for name in ("effects", "model_requests", "tool_results", "tools")),
        "what jobs and models know of tools and of calls",
    ),
    "mcp/loop_thread.py": "the functions of jobs may not use sessions",
    "mcp/pool.py": "a server may ask people through a job",
    "engine/letters/pages.py": "dead letters of durable agents are selected by their job",
}

SAYS_DURABLE = re.compile(  # lines of other modules that name a job of a durable agent
    r"durable|\bjobs\.|\.jobs\b|\bjob_(id|key)\b|keep_jobs|\"jobs\"|surround_jobs|open jobs go on|whose jobs these are"
    r"|        jobs   "
)


def test_the_running_program_is_an_app_and_no_job() -> None:
    wrong = []
    for name, path in sources(".py", ".pyx", ".pxd").items():
        room = name.partition("/")[0]
        if room in ENGINE and name not in ABOUT_JOBS and not name.startswith("engine/operators/agents/"):
            for number, line in enumerate(text_of(path).splitlines(), 1):
                if re.search("job", line, re.IGNORECASE) and not SAYS_DURABLE.search(line):
                    wrong.append(f"{name}:{number}: {line.strip()}")
    assert wrong == [], (
        "write app for the running program; a module about jobs of durable agents is named in ABOUT_JOBS"
    )


def test_modules_about_jobs_are_there_and_have_the_word() -> None:
    there = sources(".py")
    assert [name for name in ABOUT_JOBS if name not in there or "job" not in text_of(there[name]).lower()] == [], (
        "these are gone, or are not about jobs: take them off ABOUT_JOBS"
    )


# -- comments -------------------------------------------------------------------------------------------------------------

BEHIND_A_BRACKET = re.compile(r"\s*[\])}]+:?  # (?!fmt: |type: |noqa)")


def test_no_comment_stands_behind_a_bracket_that_the_formatter_has_moved() -> None:
    """A line that a comment makes too long is broken before it: `while (`, the condition, `):  # why`."""
    wrong = [
        f"{name}:{number}: {line.strip()}"
        for name, path in sources(".py").items()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if BEHIND_A_BRACKET.match(line)
    ]
    assert wrong == [], "put the comment in a line of its own above"


# -- docstrings -----------------------------------------------------------------------------------------------------------


def public_parts(module: Any) -> Iterator[tuple[str, Any]]:
    """What `__all__` names that can have a docstring, and the public methods and properties of classes, inherited ones too."""
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) or callable(thing):
            yield name, thing
        if inspect.isclass(thing):
            for each in sorted({part for base in thing.__mro__ if _is_ours(base) for part in vars(base)}):
                part = inspect.getattr_static(thing, each)
                kinds = property | classmethod | staticmethod
                if not each.startswith("_") and (inspect.isroutine(part) or isinstance(part, kinds)):
                    yield f"{name}.{each}", getattr(thing, each)


def _is_ours(base: type) -> bool:
    return base.__module__.partition(".")[0] == "sabot"


@pytest.mark.parametrize("module", [sabot, sabot.testing], ids=lambda module: module.__name__)
def test_public_names_and_their_methods_have_docstrings(module: Any) -> None:
    """A method that overrides one may leave the words to it."""
    parts = dict(public_parts(module))
    assert len(parts) > 30, "the walk sees nothing"
    assert [name for name, thing in parts.items() if not (inspect.getdoc(thing) or "").strip()] == [], (
        "write a docstring for each"
    )


# -- the tests --------------------------------------------------------------------------------------------------------------


def test_the_unit_tests_stand_as_the_rooms_do() -> None:
    """What concerns several rooms stands in the room above them, or in `tests/unit` itself."""
    unit = PROJECT / "tests" / "unit"
    folders = {path.parent.relative_to(unit) for path in unit.rglob("test_*.py")}
    assert [folder.as_posix() for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == [], (
        "sabot/ has no package of this path: name the folder of tests/unit as the room whose code the tests are about"
    )


def test_a_test_file_has_a_name_of_its_own() -> None:
    """They are modules without packages: of two with one name pytest collects neither."""
    names = Counter(path.name for path in (PROJECT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == [], "rename one of the two files"
