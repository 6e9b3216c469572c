"""The documents and the examples, as a reader meets them: code runs and prints what stands below it, commands exist, messages are real."""

import ast
import asyncio
import builtins
import codeop
import contextlib
import importlib
import inspect
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import typer
from mcp import Client

from sabot.base import metrics
from sabot.cli import commands
from sabot.cli.app_checkpoints import find_checkpoints
from sabot.cli.late import LateGroup
from sabot.cli.mcp import Checkpoints
from sabot.connectors.memory import MemoryBroker
from sabot.mcp import ToolServer, state_tools
from tools.broker import Broker
from tools.command_line import child
from tools.postgres import server_or_skip as postgres_or_skip
from tools.redis_server import server_or_skip
from tools.source_tree import sources, text_of

ROOT = Path(__file__).parents[1]
DECISIONS = ROOT / "docs" / "decisions"
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if DECISIONS not in page.parents)]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
PYTHON = [sys.executable, "-W", "error"]
SABOT = [*PYTHON, "-c", "from sabot.cli import main; main()"]
SECONDS = 90  # for what takes one, and five where two vendors' libraries are imported and other tests run beside it


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every block of a page."""
    return [(language, text) for language, text in BLOCK.findall(page.read_text())]


def programs(page: Path) -> list[tuple[str, str | None]]:
    """Every Python block of a page, and what is said to be its output: the text block that follows."""
    return programs_of(blocks(page))


def programs_of(blocks: list[tuple[str, str]]) -> list[tuple[str, str | None]]:
    found = [*blocks, ("", "")]
    return [
        (text, after if kind == "text" else None)
        for (language, text), (kind, after) in itertools.pairwise(found)
        if language == "python"
    ]


def ran(*words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*PYTHON, *words], cwd=folder, env=ENV, capture_output=True, text=True, timeout=SECONDS, check=False
    )


@contextlib.contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """TimeoutError in place of a block that hangs."""

    def on_alarm(number: int, frame: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left_in_the_project() -> Iterator[None]:
    """Code of pages and examples writes files under plain names, so it runs in a folder that goes with the test."""
    folders = [ROOT, ROOT / "docs", ROOT / "examples"]
    before = {path for folder in folders for path in folder.iterdir()}
    yield
    left = {path.name for folder in folders for path in folder.iterdir() if path not in before}
    assert {name for name in left if not name.startswith((".", "__pycache__"))} == set()


# --- code in pages


@pytest.mark.parametrize("number", range(len(programs(PAGES[0]))))
def test_a_program_of_the_readme_runs_as_a_script_and_prints_what_stands_below_it(number: int, tmp_path: Path) -> None:
    program, output = programs(PAGES[0])[number]
    (tmp_path / "program.py").write_text(program)
    done = ran("program.py", folder=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


@pytest.mark.one_in(6, "a sixth of a second of a core each, and five for some")
@pytest.mark.parametrize("page", PAGES[1:], ids=names(PAGES[1:]))
def test_the_code_of_a_page_runs_from_top_to_bottom_like_a_notebook(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block whose first line names a file, `# shop.py`, is a cell and that file too: blocks below it may import it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("SABOT_BROKER", raising=False)
    with contextlib.ExitStack() as servers:
        if "REDIS_URL" in page.read_text():
            server = server_or_skip(keeps=True)
            servers.callback(server.remove)
            monkeypatch.setenv("REDIS_URL", server.url)
        if "POSTGRES_URL" in page.read_text():
            monkeypatch.setenv("POSTGRES_URL", servers.enter_context(postgres_or_skip().database()))
        run_cells(page.name, programs(page))


@contextlib.contextmanager
def saved_modules() -> Iterator[Callable[[str], None]]:
    """Saves a program as the file that its first line names, so that later programs may import it; it is forgotten at the end."""
    names: set[str] = set()

    def save(program: str) -> None:
        if file := re.match(r"# (\w+)\.py\n", program):
            Path(f"{file[1]}.py").write_text(program)
            importlib.invalidate_caches()
            sys.modules.pop(file[1], None)
            names.add(file[1])

    yield save
    for name in names:
        sys.modules.pop(name, None)


def run_cells(name: str, programs: list[tuple[str, str | None]]) -> None:
    """Runs the programs one after the other, with the same variables, and compares what each prints with its output."""
    MemoryBroker.get().reset()
    cells: dict[str, Any] = {"__name__": "__main__", "asyncio": asyncio}
    with bounded(SECONDS), asyncio.Runner() as runner, saved_modules() as save:
        for number, (program, output) in enumerate(programs):
            save(program)
            code = compile(program, f"{name}#{number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                if code.co_flags & inspect.CO_COROUTINE:
                    runner.run(eval(code, cells))
                else:
                    exec(code, cells)
            assert output is None or printed.getvalue() == output
    MemoryBroker.get().reset()


def examples_in_docstrings() -> dict[str, str]:
    """The docstrings of the package that have an example, by the place of what they describe."""
    found = {}
    for name, path in sources(".py").items():
        if "```python" not in text_of(path):  # to parse all takes seconds
            continue
        for node in ast.walk(ast.parse(text_of(path))):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if "```python" in (text := ast.get_docstring(node) or ""):
                found[f"{name}:{node.name}"] = text
    return found


DOCSTRINGS = examples_in_docstrings()


@pytest.mark.parametrize("place", DOCSTRINGS)
def test_the_example_of_a_docstring_runs_and_prints_what_stands_below_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_cells(place, programs_of(BLOCK.findall(DOCSTRINGS[place])))


def test_what_a_program_begins_with_has_an_example_in_its_docstring() -> None:
    assert {
        "api/streams.py:stream",
        "api/streams.py:table",
        "app/agents.py:agent",
        "connectors/base.py:Source",
        "connectors/base.py:Sink",
    } <= DOCSTRINGS.keys()


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_the_code_of_a_page_can_be_pasted_line_by_line(page: Path) -> None:
    """Where a block ends, Python's prompt wants an empty line. Classes keep those between their methods: they are pasted as a whole."""
    for program, _ in programs(page):
        compiler, lines = codeop.CommandCompiler(), list[str]()
        compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        with contextlib.suppress(IndentationError):
            for line in [*program.splitlines(), ""]:
                lines.append(line)
                if compiler("\n".join(lines), page.name, "single") is not None:
                    lines.clear()


def test_a_page_has_code_that_is_run() -> None:
    without = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:] if not programs(page)}
    indexes = {"coming-from/index.md", "concepts/index.md", "how-to/index.md"}
    assert without == {"console.md", "troubleshooting.md", "concepts/glossary.md", *indexes}


# --- commands in pages

COMMANDS = sorted(
    {(page.name, line) for page in PAGES for kind, text in blocks(page) if kind == "sh" for line in text.splitlines()}
)


SAVED = {name for page in PAGES for name in re.findall(r"^```python\n# (\w+\.py)$", page.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("line", [line for _, line in COMMANDS], ids=[f"{page}: {line}" for page, line in COMMANDS])
def test_a_command_of_a_page_exists(line: str) -> None:
    tool, *words = line.split()
    if tool == "make":
        goals = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert goals is not None
        assert set(words) <= set(goals[1].split())
    elif line == "sabot --version":
        assert "--version" in {name for each in typer.main.get_command(commands.cli).params for name in each.opts}
    elif tool == "sabot":
        command: Any = typer.main.get_command(commands.cli)
        words = words[2:] if words[0] == "-A" else words
        while words and hasattr(command, "commands"):
            word = words.pop(0)
            command = command.load(word) if isinstance(command, LateGroup) else command.commands[word]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options
    elif tool == "python" and words[0] != "-m":
        assert words[0] in SAVED or (ROOT / words[0]).exists()
    elif tool == "python":
        assert (ROOT / Path(*words[1].split("."))).with_suffix(".py").exists()
    else:
        assert (tool, words[0]) == ("pip", "install")
        extra = re.search(r"\[(\w+)\]", words[1])
        assert extra is None or f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text()


def test_each_command_is_in_a_page() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    silent = [name for name in commands.LATE if not re.search(rf"\bsabot (-A \S+ )?{name}\b", text)]
    assert silent == [], "show these commands in docs/operations.md"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_a_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, part = target.partition("#")
        found = page if not path else page.parent / path
        assert found.exists(), target
        titles = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE) if part else []
        assert not part or part in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


# --- what pages say about the code


TEXT = r'[rf]?"((?:[^"\\\n]|\\.)*)"'
TEXTS = re.compile(rf"(?:{TEXT}\s*)+")  # those that stand one behind another are one
PUT_IN = re.compile(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|%[sd]|%\.\df")


def messages() -> Iterator[str]:
    """Every text of the code, with … in place of what is put in. To parse all of the code takes five seconds."""
    for source in map(text_of, sources(".py", ".pyx").values()):
        for found in TEXTS.finditer(source):
            text = "".join(re.findall(TEXT, found[0]))
            yield PUT_IN.sub("…", text).replace(r"\n", " ").replace(r"\"", '"')
    yield re.sub(r"\$\{[^}]*\}", "…", (ROOT / "tools" / "setup.sh").read_text())


def test_every_message_of_the_troubleshooting_page_stands_in_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## No message")[0]
    entries = re.findall(r"^- (.*\n(?:  \S.*\n)*)", page, re.MULTILINE)  # a long message is wrapped
    quoted = [re.sub(r"^(`+)(.*)\1$", r"\2", " ".join(entry.split())) for entry in entries]
    known = "\n".join(messages())
    assert len(quoted) > 100
    assert [message for message in quoted if message not in known] == [], (
        "no message of the code reads like this any more: quote it anew, with … for the parts that are put in"
    )


def test_the_metrics_page_names_every_metric_with_its_type_and_labels() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(sabot_\w+)` \| (\w+) \| (.*?) \|", page, re.MULTILINE)
    described = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert described == {name: (kind.type, kind.labels) for name, kind in metrics.KINDS.items()}, (
        "docs/metrics.md has a row for each metric of sabot/base/metrics.py"
    )


# --- examples

EXAMPLES = {
    "app": ["hello Ada", "hello Grace"],
    "word_count": ["row 1", "row 2", "row 3", "row 4", "your 1", "boat 1"],
    "batch_features": ["a 12.5", "b 5.0"],
    "chain": ["s1 95 alarm 1", "s1 99 alarm 2", "s2 91 alarm 1"],
    "minutes": ["a 2 12.5", "b 1 7.5"],
    "prices": ["ink 1 9.0", "pen 10 20.0", "pen 4 10.0"],
    "leaders": ["1 Ada 8", "2 Bo 7"],
    "reminders": ["not paid: 2"],
    "takeover": ["ada 4 900"],
    "calls": ["1 0.4", "2 0.8", "3 1.2"],
    "mcp_tools": ["tea 12", "ink 3"],
    "cli_agents": ["READING A.TXT", "A.TXT HAS 3 WORDS"],
}


def running(*command: str, folder: Path, **environment: str) -> "AbstractContextManager[subprocess.Popen[str]]":
    """The command in the background; killed if it hangs."""
    environment = {**ENV, **environment}
    return child(*command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def lines_until_interrupt(process: "subprocess.Popen[str]", count: int) -> list[str]:
    """The first lines that it prints; then it gets Ctrl-C, and ends with exit code 0."""
    assert process.stdout is not None
    lines = [process.stdout.readline().rstrip("\n") for _ in range(count)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert (rest, process.returncode) == ("", 0), errors
    return lines


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_until_ctrl_c_and_exits_0(name: str, tmp_path: Path) -> None:
    with running(*SABOT, "run", f"examples.{name}:app", "--loglevel", "warning", folder=tmp_path) as process:
        assert lines_until_interrupt(process, len(EXAMPLES[name])) == EXAMPLES[name]


@pytest.mark.slow  # a second of a core, or more
def test_the_fraud_example_prints_its_alerts_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [*SABOT, "run", "examples.fraud:app", "--state", "state"],
        cwd=tmp_path,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith('{"txn_id":') for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) > 100
    assert list((tmp_path / "state" / "checkpoints").glob("checkpoints/*.json"))


@pytest.mark.slow  # a second of a core, or more
def test_the_files_example_converts_each_line_once_and_sets_bad_ones_apart(tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"fahrenheit": 212}\nnope\n{"kelvin": 0}\n{"fahrenheit": 32}\n')
    for _ in range(2):
        done = ran("-m", "examples.files", "in", "out", folder=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == '{"fahrenheit":212,"celsius":100.0}\n{"fahrenheit":32,"celsius":0.0}\n'
    letters = [json.loads(line) for line in (tmp_path / "out.bad").read_text().splitlines()]
    assert [(each["payload"], each["error"]) for each in letters] == [
        ("nope", "DataError"),
        ('{"kelvin": 0}', "KeyError"),
    ]


@pytest.mark.kafka
@pytest.mark.slow  # four seconds of a core
def test_the_kafka_example_goes_on_counting_after_a_restart(kafka: Broker, topic: str, tmp_path: Path) -> None:
    program = (ROOT / "examples" / "kafka_alerts.py").read_text()
    for name in ("payments", "alerts"):  # the broker may be one that others use
        assert f'"{name}"' in program
        program = program.replace(f'"{name}"', f'"{name}-{topic}"')
    (tmp_path / "alerts.py").write_text(program)
    seen = []
    for _ in range(2):
        with running(*PYTHON, "alerts.py", folder=tmp_path, SABOT_BROKER=kafka.url) as process:
            seen += lines_until_interrupt(process, 1)
    assert seen == ["{'account': 'a1', 'payment': 1}", "{'account': 'a1', 'payment': 2}"]


@pytest.mark.slow  # three processes; the demo: test_refunds_demo
def test_the_refunds_example_refunds_once_and_is_answered_while_it_is_dead(tmp_path: Path) -> None:
    example = [*SABOT, "run", "examples.refunds:app", "--loglevel", "warning"]
    actions = [*SABOT, "actions", "list", "--journal", "state", "--json"]
    with running(*example, folder=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "refund o-1 12\n"
        limit = time.monotonic() + SECONDS
        while not (asked := subprocess.run(actions, cwd=tmp_path, env=ENV, capture_output=True, text=True).stdout):
            assert time.monotonic() < limit
        process.kill()
    question = json.loads(asked)
    assert question["payload"] == {"message": "Refund 80 for o-2?"}
    answer = [*SABOT, "actions", "resolve", question["resume_token"], "--approve", "--journal", "state"]
    subprocess.run(answer, cwd=tmp_path, env=ENV, check=True, capture_output=True)
    done = subprocess.run(example, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.stdout, done.returncode) == ("refund o-2 80\n", 0), done.stderr
    assert [json.loads(line) for line in (tmp_path / "answers.ndjson").read_text().splitlines()] == [
        {"order": "o-1", "answer": "refunded"},
        {"order": "o-2", "answer": "refunded"},
    ]


@pytest.mark.slow  # three processes
async def test_the_mcp_server_example_counts_and_what_it_keeps_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(*SABOT, "run", "examples.mcp_server:app", "--loglevel", "warning", folder=tmp_path) as process:
        assert sorted(lines_until_interrupt(process, 3)) == ["ada 1", "ada 2", "grace 1"]
    tools = state_tools(Checkpoints(find_checkpoints(str(tmp_path / "state")), None, 1 << 20).open)
    async with Client(ToolServer("orders", tools).server) as client:
        read = await client.call_tool("state_read", {"name": "customers", "prefix": "a"})
    assert [(row["record_key"], row["value"]) for row in read.structured_content["rows"]] == [
        ("ada", {"count": 2, "last": "pens"})
    ]


def test_every_example_is_run_here_and_has_less_than_30_lines() -> None:
    found = {path.stem: len(path.read_text().splitlines()) for path in (ROOT / "examples").glob("*.py")}
    assert found.keys() == {*EXAMPLES, "__init__", "fraud", "files", "kafka_alerts", "mcp_server", "refunds"}
    assert max(found.values()) < 30


# --- notebooks

CELLS = [
    "from sabot import App",
    "from sabot.testing import MemoryBroker",
    "app = App('nb', state='memory')",
    "@app.agent('numbers')\nasync def show(ctx):\n    print('one', ctx.message)\n    app.request_stop()\n",
    "_ = MemoryBroker.get().publish('numbers', [7])",
    "await app.run()",
    "@app.agent('numbers')\nasync def show(ctx):\n    print('two', ctx.message)\n    app.request_stop()\n",
    "await app.run()",
]


def test_cells_run_and_are_run_again_in_ipython(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shells = pytest.importorskip("IPython.core.interactiveshell", reason="pip install ipython")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    main = sys.modules["__main__"]
    display, previous = sys.displayhook, {name: getattr(builtins, name, None) for name in ("get_ipython", "display")}
    shell = shells.InteractiveShell(user_module=None)
    MemoryBroker.get().reset()

    async def run() -> None:
        for cell in CELLS:
            done = await shell.run_cell_async(cell, transformed_cell=shell.transform_cell(cell))
            done.raise_error()

    try:
        with bounded(SECONDS), contextlib.redirect_stdout(io.StringIO()) as printed:
            asyncio.run(run())
    finally:
        shell.restore_sys_module_state()
        sys.modules["__main__"] = main
        sys.displayhook = display
        for name, value in previous.items():
            if value is None:
                vars(builtins).pop(name, None)
        MemoryBroker.get().reset()
    assert printed.getvalue() == "one 7\ntwo 7\n"


@pytest.mark.slow  # a process of three seconds
def test_cells_run_in_the_repl_of_asyncio(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asyncio"],
        input="\n".join(CELLS) + "\n",
        cwd=tmp_path,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(?:one|two) 7", done.stdout) == ["one 7", "two 7"]


def test_the_code_of_a_step_is_shown_as_it_is() -> None:
    """CONTRIBUTING.md, "Adding a step of a stream": each line of a block stands in the file named above the block, in this order."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Adding a step of a stream\n")[1].split("\n## ")[0]
    shown = re.findall(r"^`(sabot/[\w/]+\.py)`\n\n```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert [path for path, _ in shown[:3]] == [
        "sabot/api/nodes/keyed.py",
        "sabot/api/stream/stream.py",
        "sabot/engine/operators/keyed/top.py",
    ]
    for path, text in shown:
        there = iter((ROOT / path).read_text().splitlines())
        lines = [line for line in text.splitlines() if line.strip() not in ("", "…")]
        assert [line for line in lines if line not in there] == [], (
            f"CONTRIBUTING.md: show these lines as {path} has them"
        )
