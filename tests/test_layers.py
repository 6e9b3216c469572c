"""The order of the rooms: a room imports only rooms above it, and each third party has one importing room.

The root, `sabot/__init__.py`, stands after `app`: only what a user could have written himself (testing,
demos, cli) imports names from it. Imports under TYPE_CHECKING and inside functions count too.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tools.source_tree import ROOT, nodes_of, sources, text_of
from tools.without_agents import ROOMS

ORDER = [
    "base",  # its `__init__`, which imports nothing
    "base.lazy_imports",
    "base.dataclass",
    "base.version",  # which the build runs by itself
    "base.redaction",
    "base.quantities",
    "base.addresses",
    "base.accounts",
    "base.present_job",
    "base.logs",
    "errors",
    "base.stored_names",
    "base.os_errors",
    "base.surrogates",
    "base.checks",
    "base.backoff",
    "base.config",
    "base.options",
    "clock",
    "base.sqlite_files",
    "steps",
    "base.inner_paths",
    "base.disk",
    "base.sorting",
    "base.claims",
    "base.proc",
    "base.process_exit",
    "base.threads",
    "base.supervision",
    "base.probes",
    "base.doors",
    "base.http_connections",
    "base.http_server",
    "base.figures",
    "base.metrics",
    "process",
    "specified",  # its `__init__`, which imports nothing
    "specified.processes",
    "base.arrays",
    "base.column_types",
    "base.object_stores",
    "_cython",
    "codecs",
    "engine",  # its `__init__`, which imports nothing
    "engine.state",
    "engine.calls",
    "engine.letters",  # its `__init__`, which imports nothing
    "engine.letters.form",
    "engine.letters.log",
    "engine.letters.refused",
    "engine.letters.places",
    "engine.letters.redrive",
    "connectors",
    "engine.letters.files",
    "engine.letters.tables",
    "engine.letters.memory",
    "kafka",
    "engine.letters.topics",
    "api",
    "sql",
    "engine.operators",
    "engine.letters.pages",
    "engine.plan",
    "engine.letters.opening",
    "engine.checkpoint",
    "engine.delivery",
    "engine.exchange",
    "engine.runtime",
    "engine.letters.late",
    "engine.workers",
    "journal",
    "jobs",
    "llm",
    "mcp",
    "agents",
    "specified.brokers",
    "specified.cedar",
    "specified.flows",
    "specified.mcp",
    "specified.plugins",
    "app",
    "web",
    "sabot",
    "state",  # faces of two rooms of the engine, for users
    "checkpoint",
    "testing",
    "demos",
    "cli",
    "__main__",
]
# Each module of these has its own place in ORDER: the ground, the rooms of the engine, dead letters, which all rooms write and few
# read, and the names of the documents, each over the room that does the work.
BY_MODULE = {"base", "engine", "engine.letters", "specified"}
EVERYWHERE = {"pyarrow", "numpy", "msgspec"}
# rich: the demos and the command line are one face, what a person sees in the terminal; so it has two rooms.
THIRD_PARTIES = {
    "anthropic": {"llm"},
    "anyio": {"mcp"},
    "cedarpy": {"specified.cedar"},
    "confluent_kafka": {"kafka"},
    "deltalake": {"connectors"},
    "duckdb": {"connectors", "demos"},
    "genai_prices": {"llm"},
    "google": {"codecs"},  # google.protobuf
    "httpx2": {"connectors", "mcp"},
    "jinja2": {"web"},
    "markupsafe": {"web"},  # of Jinja2
    "mcp": {"mcp"},
    "mcp_types": {"mcp"},
    "openai": {"llm"},
    "opentelemetry": {"agents", "base.metrics"},  # spans of jobs; the figures of a worker
    "pandas": {"api"},
    "polars": {"api"},
    "prometheus_client": {"base.metrics"},
    "psycopg": {"connectors"},
    "pydantic": {"engine.calls", "mcp"},  # types of tools and answers; the messages of MCP
    "ray": {"engine.workers"},
    "pyiceberg": {"connectors"},
    "redis": {"connectors"},
    "rich": {"cli", "demos"},
    "rocksdict": {"engine.state"},
    "starlette": {"mcp", "web"},  # two servers: of MCP, and of the console
    "typer": {"cli"},
    "typing_extensions": {"engine.calls"},  # that of type checkers: no program imports it
    "uvicorn": {"base.http_connections", "base.http_server", "mcp"},
    "websockets": {"connectors"},
}
CYTHON_ONLY = {"cpython", "cython", "libc", "libcpp", "posix"}
IMPORT_LINE = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w., ]+?)\s*(?:#.*)?$)", re.MULTILINE)


def files() -> dict[str, Path]:
    """All source of the package, by its path below `sabot/`."""
    return sources(".py", ".pyi", ".pyx", ".pxd")


def room_of(path: Path) -> str:
    return room_of_module(".".join(["sabot", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"))


def room_of_module(name: str) -> str:
    """The room in which a module of Sabot stands: its first name, or, in a room of BY_MODULE, that of the module."""
    room = ""
    for part in name.split(".")[1:]:
        room = f"{room}.{part}".lstrip(".")
        if room not in BY_MODULE:
            break
    return room or "sabot"


@cache
def imports(path: Path) -> list[str]:
    """The dotted names of the modules that a file imports."""
    if path.suffix in (".pyx", ".pxd"):
        return list(kernel_imports(text_of(path), path))
    names = [alias.name for node in nodes_of(path, ast.Import) for alias in node.names]
    for node in nodes_of(path, ast.ImportFrom):
        module = absolute("." * node.level + (node.module or ""), path)
        # `from sabot import errors` imports the room, not the root
        inside = module == "sabot" or module.removeprefix("sabot.") in BY_MODULE
        rooms = [f"{module}.{a.name}" for a in node.names if inside and room_of_module(f"{module}.{a.name}") in ORDER]
        names += rooms
        if len(rooms) < len(node.names):
            names.append(module)
    return names


def kernel_imports(text: str, path: Path) -> Iterator[str]:
    """Cython is not read by `ast`: import and cimport lines by pattern, docstrings left out."""
    for match in IMPORT_LINE.finditer(re.sub(r'"""(?:.|\n)*?"""', "", text)):
        for name in (match[1] or match[2]).split(","):
            yield absolute(name.split(" as ")[0].strip(), path)


def absolute(name: str, path: Path) -> str:
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    package = ("sabot", *path.relative_to(ROOT).parent.parts)
    return ".".join([*package[: len(package) - dots + 1], *filter(None, [name[dots:]])])


def test_every_file_stands_in_a_room() -> None:
    assert [name for name, path in files().items() if room_of(path) not in ORDER] == [], (
        "add the room to ORDER, below all rooms that it imports, and to the table of ARCHITECTURE.md"
    )


def is_named(name: str, imported: str) -> bool:
    """Whether a face names something of the wing of the documents, which is loaded where a user asks the face for it."""
    return name.endswith("/__init__.pyi") and imported.startswith("sabot.specified.")


def test_only_faces_and_commands_import_the_names_of_the_documents() -> None:
    found = [
        f"{name}: {each}"
        for name, path in files().items()
        if not name.startswith(("specified/", "cli/"))
        for each in imports(path)
        if each.startswith("sabot.specified") and not is_named(name, each)
    ]
    assert found == [], "move what both need into the room that does the work"


def test_a_room_imports_only_rooms_above_it() -> None:
    wrong = defaultdict(list)
    for name, path in files().items():
        here = ORDER.index(room_of(path))
        for each in imports(path):
            if each.split(".")[0] == "sabot" and ORDER.index(room_of_module(each)) > here and not is_named(name, each):
                wrong[name].append(each)
    assert wrong == {}, (
        "these rooms stand below the module's own in ORDER: move the shared code up, or pass it in as an argument"
    )


ENGINE = ORDER[ORDER.index("_cython") : ORDER.index("journal")]


def test_the_engine_imports_no_room_of_the_agents() -> None:
    """The order says it too, but not of the rooms that may move in it."""
    found = [
        f"{name}: {each}"
        for name, path in files().items()
        if room_of(path) in ENGINE
        for each in imports(path)
        if ".".join(each.split(".")[:2]) in ROOMS
    ]
    assert found == [], "pass it in by engine/runtime/agents/kind or api/model_engine (decision 082)"
    assert {"api", "sql", "engine.operators", "engine.runtime", "engine.workers"} <= set(ENGINE)


def module_imports() -> dict[str, set[str]]:
    """The modules that each Python module imports, by their names below `sabot`; those in functions count too."""
    names = {
        name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path
        for name, path in sources(".py").items()
    }
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for node in nodes_of(path, ast.ImportFrom):
            package, _, module = absolute("." * node.level + (node.module or ""), path).partition(".")
            if package == "sabot":
                for each in node.names:
                    inner = f"{module}.{each.name}".lstrip(".")
                    found[name] |= {inner} if inner in names else {module} & names.keys()
    return found


def circles(imported: dict[str, set[str]]) -> list[set[str]]:
    """The largest groups of modules in which each one imports each other one, directly or through others."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [*imported[start]]
        while waiting:
            if (each := waiting.pop()) not in seen:
                seen.add(each)
                waiting += imported[each]
        return seen

    behind = {name: reached(name) for name in imported}
    groups = {
        frozenset(other for other in behind[name] if name in behind[other]) for name in imported if name in behind[name]
    }
    return sorted(map(set, groups), key=sorted)


def test_there_are_no_circles() -> None:
    found = [sorted(each) for each in circles(module_imports())]
    assert found == [], "a module imports one that imports it: move what both need into a third module"


def test_the_search_sees_a_circle() -> None:
    imported = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"d"}, "e": {"a"}}
    assert circles(imported) == [{"a", "b", "c"}, {"d"}]


def test_each_third_party_has_one_importing_room() -> None:
    wrong = defaultdict(list)
    for name, path in files().items():
        for package in {each.split(".")[0] for each in imports(path)}:
            if package == "sabot" or package in sys.stdlib_module_names or package in EVERYWHERE:
                continue
            if package in CYTHON_ONLY and path.suffix in (".pyx", ".pxd"):
                continue
            if room_of(path) not in THIRD_PARTIES.get(package, set()):
                wrong[name].append(package)
    assert wrong == {}, (
        "import it in the room that THIRD_PARTIES names; a new library gets a line there and in pyproject.toml"
    )


def test_no_import_of_our_own_modules_is_guarded() -> None:
    """A missing compiled module is an error, never a silent fallback (DESIGN, principle 6)."""
    guarded = []
    for name, path in sources(".py").items():
        for node in nodes_of(path, ast.Try):
            inside = [n for statement in node.body for n in ast.walk(statement)]
            ours = any(
                (isinstance(n, ast.ImportFrom) and (n.level or (n.module or "").split(".")[0] == "sabot"))
                or (isinstance(n, ast.Import) and any(a.name.split(".")[0] == "sabot" for a in n.names))
                for n in inside
            )
            catches = {ast.unparse(h.type) if h.type else "" for h in node.handlers}
            if ours and any(
                word in caught for caught in catches for word in ("ImportError", "ModuleNotFound", "Exception")
            ):
                guarded.append(f"{name}:{node.lineno}")
    assert guarded == [], "import our own modules outside of try"


RUNS_WHAT_IT_READS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "code", "codeop"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}


def test_nothing_that_is_read_can_run() -> None:
    """Records, files and checkpoints are not trusted (docs/security.md): no module that unpickles is imported, no text is run.

    Exempt: `testing/every_step` asks pickle whether a function can be sent to its own child process, and loads nothing;
    `base/dataclass` compiles the `__init__` of a class from the names of its fields, as the standard library does.
    """
    found = []
    for place, path in files().items():
        found += [
            f"{place}: import {name}"
            for name in imports(path)
            if name.split(".")[0] in RUNS_WHAT_IT_READS and place != "testing/every_step.py"
        ]
        if path.suffix == ".py":
            calls = (node.func for node in nodes_of(path, ast.Call))
            texts = RUNS_TEXT - {"exec"} if place == "base/dataclass.py" else RUNS_TEXT
            found += [f"{place}: {f.id}(…)" for f in calls if isinstance(f, ast.Name) and f.id in texts]
            found += [f"{place}: allow_pickle" for _ in range("allow_pickle" in text_of(path))]
    assert found == [], "use JSON, msgspec or Arrow for data, and a table of functions in place of text that is run"


def test_the_walk_sees_the_imports_of_a_kernel() -> None:
    """Guards the guard: were the pattern blind, every .pyx would pass."""
    text = """from libc.stdint cimport int64_t
import pyarrow as pa
    from sabot.app import App
cimport sabot._cython.arrow  # a reason
from .rows cimport x
"""
    seen = list(kernel_imports(text, ROOT / "_cython" / "made_up.pyx"))
    assert seen == ["libc.stdint", "pyarrow", "sabot.app", "sabot._cython.arrow", "sabot._cython.rows"]
