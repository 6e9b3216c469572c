"""The public face: what `sabot.__all__` says is there, is documented, and nothing else leaks."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sabot
from tools.source_tree import PROJECT, sources, tree_of
from tools.without_agents import ROOMS, Refuses

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
    targets = [n.targets[0] for n in tree_of(path).body if isinstance(n, ast.Assign)]
    return any(isinstance(n, ast.Name) and n.id == "__all__" for target in targets for n in ast.walk(target))


def test_every_all_is_sorted_and_holds_only_names_that_exist() -> None:
    wrong = {}
    for path in sources(".py").values():
        if offers(path):
            name = module_name(path)
            module = importlib.import_module(name)
            found = list(module.__all__)
            if found != in_order(sorted(set(found))) or not all(hasattr(module, each) for each in found):
                wrong[name] = found
    assert wrong == {}, "sort __all__ as `ruff check --fix` does, without names that the module does not have"


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
    assert silent == [], "write a docstring for each"


def test_no_other_public_name_leaks() -> None:
    leaked = [
        name
        for name, value in vars(sabot).items()
        if not name.startswith("_")
        and name not in sabot.__all__
        and not (isinstance(value, ModuleType) and value.__name__ == f"sabot.{name}")
    ]
    assert leaked == [], "add the name to sabot/__init__.pyi and __all__, or begin it with an underscore"


LATE = [
    name for name, path in sources(".py").items() if name.endswith("__init__.py") and "lazy_exports" in path.read_text()
]


@pytest.mark.parametrize("package", LATE)
def test_names_that_are_loaded_late_come_from_where_type_checkers_are_told(package: str) -> None:
    stub, module = sources(".pyi")[f"{package}i"], importlib.import_module(module_name(sources(".py")[package]))
    imports = [n for n in tree_of(stub).body if isinstance(n, ast.ImportFrom)]
    told = {alias.name: n.module or "" for n in imports for alias in n.names}
    assert all(alias.name == alias.asname for n in imports for alias in n.names), "without `as` a name is not offered"
    assert all(getattr(module, name) is getattr(importlib.import_module(home), name) for name, home in told.items())
    assert set(module.__all__) == set(told) <= set(dir(module))


@pytest.mark.slow  # mypy reads all types of the package
def test_type_checkers_see_the_names_of_a_package_and_no_others(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sabot\nfrom sabot.testing import ManualClock\nsabot.App(1)\nsabot.Strem\nManualClock.nothing\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-error-summary", f"--cache-dir={tmp_path / 'cache'}", str(program)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT).stdout
    wrong = [line.split(" error: ")[1] for line in told.splitlines()]
    expected = [
        'Argument 1 to "App"',
        'Module has no attribute "Strem"',
        '"type[ManualClock]" has no attribute "nothing"',
    ]
    assert [each[: len(start)] for each, start in zip(wrong, expected, strict=True)] == expected


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'sabot' has no attribute 'Strem'"):
        sabot.Strem  # type: ignore[attr-defined]  # noqa: B018


def test_a_script_that_misspells_a_name_is_told_the_nearest_one() -> None:
    told = subprocess.run([sys.executable, "-c", "import sabot; sabot.meen"], capture_output=True, text=True)
    assert "module 'sabot' has no attribute 'meen'. Did you mean: 'mean'?" in told.stderr


# What a program that only says what is to be run has no need for.
RUNS = (
    *("sabot.cli", "sabot.process", "sabot.testing"),
    *(f"sabot.engine.{room}" for room in ("checkpoint", "delivery", "operators", "plan")),
    *ROOMS,
)
PROGRAM = """
from sabot import App, col, count, tumbling
app = App("orders")

@app.agent("orders", sink="out")
async def double(message):
    return message

stream = app.stream("orders", schema={"amount": "int64", "at": "timestamp[ms]"}).with_time("at")
stream.filter(col("amount") > 3).window(tumbling("1m")).aggregate(n=count()).to("totals")
"""


def loaded_after(code: str) -> set[str]:
    """The modules that a new interpreter has after this."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split())


def test_import_of_sabot_loads_nothing_before_it_is_named() -> None:
    loaded = loaded_after("import sabot")
    assert {name for name in loaded if name.startswith("sabot.")} == {"sabot.base", "sabot.base.lazy_imports"}
    assert not loaded & {"asyncio", "msgspec", "numpy", "pyarrow", "ssl"}


def test_a_program_that_does_not_run_loads_nothing_that_would_run_it() -> None:
    loaded = loaded_after(PROGRAM)
    assert "sabot.api.nodes.windows" in loaded
    assert sorted(name for name in loaded if name.startswith(RUNS)) == []
    assert "sabot.base.metrics" not in loaded
    assert "pandas" not in loaded  # some programs of users import it
    assert not loaded & {"anthropic", "confluent_kafka", "openai", "prometheus_client", "psycopg", "sqlite3", "typer"}


STREAM = """
import asyncio
from sabot import App, col, files
app = App("orders")
app.stream(files({source!r})).filter(col("n") > 1).to("out")
asyncio.run(app.run())
"""


PLAIN_AGENT = """
import asyncio
from sabot import App
app = App("orders")
@app.agent("orders", sink="out", until="now")
async def twice(ctx):
    return {{"n": ctx.message["n"] * 2}}
async def main():
    await app.send("orders", {{"n": 1}})
    await app.run()
asyncio.run(main())
assert app.statistics()["agents"]["orders.twice"]["messages_processed"] == 1
"""

SQL = """
from sabot import App, files
app = App("orders")
found = app.sql("SELECT n, COUNT(*) AS c FROM t GROUP BY n", t=app.stream(files({source!r})))
assert found.collect().num_rows == 2
"""


@pytest.mark.one_in(3, "a process each")
@pytest.mark.parametrize("program", [STREAM, PLAIN_AGENT, SQL], ids=["a stream", "an agent that is a function", "SQL"])
def test_a_program_without_durable_agents_and_models_runs_where_their_rooms_cannot_be_imported(
    tmp_path: Path, program: str
) -> None:
    (tmp_path / "in.ndjson").write_text('{"n": 1}\n{"n": 2}\n')
    code = "from tools.without_agents import pytest_configure\npytest_configure()" + program.format(
        source=str(tmp_path / "in.ndjson")
    )
    loaded_after(f"import sys\nsys.path.insert(0, {str(PROJECT / 'tests')!r})\n{code}")


def test_the_plugin_refuses_the_rooms_of_the_agents() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"the engine has imported sabot\.jobs\.host"):
        Refuses().find_spec("sabot.jobs.host", None)
    assert Refuses().find_spec("sabot.jobsworth", None) is None  # type: ignore[func-returns-value]


def test_a_stream_that_runs_loads_nothing_that_runs_agents_and_jobs(tmp_path: Path) -> None:
    (tmp_path / "in.ndjson").write_text('{"n": 1}\n{"n": 2}\n')
    loaded = loaded_after(STREAM.format(source=str(tmp_path / "in.ndjson")))
    assert "sabot.engine.runtime.life.local_streams" in loaded
    rooms = (*ROOMS, "sabot.process.", "sabot.engine.operators.agents.")
    assert {name for name in loaded if name.startswith(rooms)} <= {
        "sabot.engine.operators.agents.counters",
        "sabot.engine.operators.agents.timers",  # of process functions too
    }
    assert "sabot.engine.runtime.agents.local_agents" not in loaded


def test_a_plan_loads_the_operators_of_its_steps_alone() -> None:
    loaded = {name for name in loaded_after(PROGRAM + "app.graph()") if name.startswith("sabot.engine.operators.")}
    assert {"sabot.engine.operators.windows.fixed", "sabot.engine.operators.rows.stateless"} <= loaded
    assert not loaded & {
        "sabot.engine.operators.joins.join",
        "sabot.engine.operators.patterns.match",
        "sabot.engine.operators.calls.map_llm",
    }


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
    assert wrong == [], "correct the .pyi beside the .pyx"


def test_dir_shows_what_is_public_and_no_module_that_something_has_imported() -> None:
    importlib.import_module("sabot.api.streams")
    assert {name for name in dir(sabot) if not name.startswith("__")} == set(sabot.__all__)
    assert "__version__" in dir(sabot)


def test_what_completes_behind_a_dot_is_what_a_page_describes() -> None:
    """An app completed 66 names, among them 30 that only the engine calls."""
    pages = [
        PROJECT / "README.md",
        *sorted(each for each in (PROJECT / "docs").rglob("*.md") if "decisions" not in each.parts),
    ]
    code = "\n".join(found for page in pages for found in CODE.findall(page.read_text()))
    app = sabot.App("completed")
    stream = app.stream([{"k": "a", "x": 1.0, "ts": 0}], time="ts")
    keyed, x = stream.key_by("k"), sabot.col("x")
    others = (keyed, stream.group_by("k"), keyed.window(sabot.tumbling("1m")), keyed.connect(keyed))
    expressions = (x, x.str, x.dt, x.list, x.struct, sabot.sum("x"), sabot.when(x > 1), sabot.when(x > 1).then(1))
    undescribed = {
        f"{type(each).__name__}.{name}"
        for each in (stream, *others, *expressions)
        for name in dir(each)
        if not name.startswith("_") and not re.search(rf"\b{name}\b", code)
    }
    undescribed |= {f"app.{name}" for name in dir(app) if name[0] != "_" and not re.search(rf"\bapp\.{name}\b", code)}
    assert undescribed == set(), "describe them in a page; or, if only the engine calls them, put them into _of_engine"


def test_no_name_that_completes_raises_or_waits_when_a_terminal_looks_at_it(tmp_path: Path) -> None:
    app = sabot.App("looked", broker="kafka://127.0.0.1:1", state=str(tmp_path))
    stream = app.stream("orders", time="ts")
    for each in (app, stream.key_by("k"), stream.group_by("k"), sabot.col("x"), sabot.sum("x")):
        known = {name for name in dir(each) if not isinstance(getattr(type(each), name, None), property)}
        assert known == {name for name in known if hasattr(each, name)}
