"""The command line, as a user meets it: a module in the current folder, a command, its output and its exit code."""

import contextlib
import gc
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import typer

import sabot
from sabot.cli import WrongUse, commands, load_app
from tools.broker import free_ports
from tools.command_line import ENV, SABOT, child, sabot_does, sabot_running, sabot_says

pytestmark = pytest.mark.usefixtures("warm_starts")

HELLO = """
from sabot import App
from sabot.testing import MemoryBroker

app = App("hello")

@app.agent("numbers")
async def show(ctx):
    print("seen", ctx.message["n"], flush=True)

MemoryBroker.get().publish("numbers", [{"n": 1}])
"""


def write(folder: Path, **modules: str) -> Path:
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return folder


# --- running


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, from which the command line imports modules, in this process. They are forgotten behind the test; modules of
    sabot that it was the first to load stay, as a class that is loaded again is another one to all later tests.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name, module in list(sys.modules.items()):
        places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
        if any(str(place).startswith(f"{tmp_path}{os.sep}") for place in places):
            del sys.modules[name]


def test_version_is_printed(tmp_path: Path) -> None:
    done = sabot_does(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"sabot {sabot.__version__}\n")


@pytest.mark.one_in(3, "three ways to write one command")
@pytest.mark.parametrize("words", [["run", "hello:app"], ["-A", "hello:app", "worker"], ["run", "hello"]])
def test_an_app_runs_until_ctrl_c_and_exits_0(tmp_path: Path, words: list[str]) -> None:
    with sabot_running(write(tmp_path, hello=HELLO), *words, "--loglevel", "warning") as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == "sabot: stopping in good order; again to stop at once\n"


@pytest.mark.one_in(3, "a process each")
@pytest.mark.parametrize("ends", ["by Ctrl-C", "by an error", "by wrong use"])
def test_with_log_format_json_all_lines_are_objects_to_the_last(tmp_path: Path, ends: str) -> None:
    """The error that ended an app, and the line of its stop, were texts among the objects: a collector of logs has no
    level for them, and does not know whose they are.
    """
    program = HELLO.replace('App("hello")', 'App("hello", version="v7")')
    if ends == "by an error":
        program = program.replace("flush=True)", "flush=True); raise ValueError('no price')")
    write(tmp_path, hello=program)
    words = ["run", "hello:app", "--log-format", "json"]
    if ends == "by Ctrl-C":
        with sabot_running(tmp_path, *words) as process:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
    else:
        errors = sabot_does(tmp_path, *words, *(["--listen", "here:1"] if ends == "by wrong use" else [])).stderr
    lines = [json.loads(line) for line in errors.splitlines()]
    assert lines
    assert all(line["sabot"] == sabot.__version__ and line["pid"] > 1 for line in lines)
    if ends == "by wrong use":  # before the app is set up
        (last,) = lines
        assert (last["level"], last["message"].split(" need ")[0][:8]) == ("critical", "--listen")
        return
    assert all((line["app"], line["version"]) == ("hello", "v7") for line in lines)
    if ends == "by Ctrl-C":
        (stop,) = [line for line in lines if line["message"].startswith("stopping in good order")]
        assert stop["level"] == "info"
        assert lines[0]["message"].startswith(f"app hello v7 starts: Sabot {sabot.__version__}, Python 3.")
    else:
        assert lines[-1]["level"] == "critical"
        assert "no price" in lines[-1]["message"]


@pytest.mark.slow  # half a second of a core
def test_a_script_with_log_format_json_ends_with_an_object(tmp_path: Path) -> None:
    """Python printed the traceback of an error that is not Sabot's, in many lines."""
    script = tmp_path / "script.py"
    script.write_text(f"{HELLO}\nimport sys\nasync def run(): 1 / 0\napp.run = run\napp.main(sys.argv[1:])\n")
    done = subprocess.run(
        [sys.executable, script, "--log-format", "json"], env=ENV, capture_output=True, text=True, timeout=60
    )
    (line,) = map(json.loads, done.stderr.splitlines())
    assert done.returncode == 1
    assert (line["app"], line["level"], line["message"]) == ("hello", "critical", "ZeroDivisionError: division by zero")
    assert "1 / 0" in line["traceback"]


@pytest.mark.slow  # a second of a core, or more
def test_sigterm_stops_like_ctrl_c(tmp_path: Path) -> None:
    with sabot_running(write(tmp_path, hello=HELLO), "run", "hello:app") as process:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow  # a second of a core, or more
def test_a_second_ctrl_c_stops_at_once_even_when_an_agent_blocks_its_thread(tmp_path: Path) -> None:
    stuck = HELLO.replace("flush=True)", "flush=True); __import__('time').sleep(600)")
    with sabot_running(write(tmp_path, hello=stuck), "run", "hello:app") as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        assert any("stopping in good order" in line for line in process.stderr)
        for _ in range(100):  # within 0.3 s of the first it counts as the same Ctrl-C
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=0.1)
                break
    assert process.returncode == 130


@pytest.mark.slow  # a second of a core, or more
def test_options_override_what_the_program_says(tmp_path: Path) -> None:
    program = HELLO.replace("async def show(ctx):", "async def show(ctx):\n    print(app.broker, flush=True)")
    program = program.replace(".get()", '.get("memory://other")')
    words = ["run", "hello:app", "--broker", "memory://other"]
    with sabot_running(write(tmp_path, hello=program), *words) as process:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize("time", ["now", "1767225602000", "2026-01-01T00:00:02Z"])
def test_a_run_up_to_a_time_ends_there(tmp_path: Path, time: str) -> None:
    published = "\n".join(
        f'MemoryBroker.get().publish("numbers", [{{"n": {n}}}], timestamp={1_767_225_600_000 + n * 1000})'
        for n in range(2 if time == "now" else 4)
    )
    program = HELLO.replace('MemoryBroker.get().publish("numbers", [{"n": 1}])', published)
    done = sabot_does(write(tmp_path, hello=program), "run", "hello:app", "--until", time)
    assert (done.returncode, done.stdout) == (0, "seen 0\nseen 1\n")


BOUNDED = """
from sabot import App
from sabot.connectors.files import NdjsonSource

app = App("files", state="state")

@app.agent(NdjsonSource("rows.ndjson"))
async def show(ctx):
    print("row", ctx.message["n"], flush=True)
"""


@pytest.mark.slow  # a second of a core, or more
def test_a_finished_bounded_app_says_that_it_is_complete_and_how_to_start_afresh(here: Path) -> None:
    (here / "rows.ndjson").write_text('{"n": 1}\n{"n": 2}\n')
    write(here, bounded=BOUNDED)
    first = sabot_does(here, "run", "bounded:app")
    assert (first.returncode, first.stdout) == (0, "row 1\nrow 2\n")
    again = sabot_does(here, "run", "bounded:app", "--loglevel", "warning")
    assert (again.returncode, again.stdout) == (0, "")
    assert "--fresh" in again.stderr
    fresh = sabot_says("run", "bounded:app", "--fresh")
    assert (fresh.exit_code, fresh.stdout) == (0, "row 1\nrow 2\n")


@pytest.mark.slow  # half a second of a core
def test_port_0_of_the_console_is_any_free_one_and_not_the_default(here: Path) -> None:
    """An option with the value 0 was taken for one that is not given."""
    (here / "rows.ndjson").write_text('{"n": 1}\n')
    write(here, bounded=BOUNDED)
    done = sabot_does(here, "run", "bounded:app", "--web", "--web-port", "0")
    assert done.returncode == 0, done.stderr
    ports = set(re.findall(r"http://[\w.-]+:(\d+)/enter", done.stderr))
    assert len(ports) == 1
    assert not ports & {str(port) for port in range(8420, 8440)}


@pytest.mark.slow  # a second of a core, or more
def test_metrics_are_served_while_the_app_runs(tmp_path: Path) -> None:
    [port] = free_ports(1)
    with sabot_running(write(tmp_path, hello=HELLO), "run", "hello:app", "--metrics-port", str(port)) as process:
        text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert 'sabot_records_in_total{app="hello",operator="hello.show",topic="numbers"} 1.0' in text


# --- failures: exit code 1 and one line


@pytest.mark.slow  # half a second of a core
def test_a_failing_agent_ends_the_run_with_one_line_and_exit_code_1(tmp_path: Path) -> None:
    program = HELLO.replace('print("seen", ctx.message["n"], flush=True)', 'raise ValueError("no such account")')
    done = sabot_does(write(tmp_path, hello=program), "run", "hello:app", "--loglevel", "critical")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("sabot: ")
    assert "hello.show" in done.stderr
    assert "no such account" in done.stderr


@pytest.mark.slow  # a second of a core, or more
def test_loglevel_debug_shows_the_traceback_of_a_failure(tmp_path: Path) -> None:
    program = HELLO.replace('print("seen", ctx.message["n"], flush=True)', 'raise ValueError("no such account")')
    done = sabot_does(write(tmp_path, hello=program), "run", "hello:app", "--loglevel", "debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("sabot: ")


# --- wrong use: exit code 2 and what to do


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere:app", "there is no module named 'nowhere'"),
        ("nowhere.deeper:app", "there is no module named 'nowhere'"),
        ("hello.deeper:app", "there is no module named 'hello.deeper'"),
        ("hello:nothing", "hello has no 'nothing' (its Apps: hello:app)"),
        ("hello:show", "hello:show is of type function and not an App (its Apps: hello:app)"),
        ("empty:app", "empty has no 'app' (there is no App in empty; make one: app = sabot.App('name'))"),
        ("hello.py:app", "'hello.py' is a file; the name of a module is needed (write hello:app)"),
        ("hello-there:app", "'hello-there:app' is not the name of an app"),
    ],
)
def test_a_target_that_is_not_there_is_named(here: Path, target: str, said: str) -> None:
    write(here, hello=HELLO, empty="")
    done = sabot_says("run", target)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"sabot: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n1 / 0\n", "broken.py:2: ZeroDivisionError: division by zero"),
        ("x = 1\n\nx = (\n", "broken.py:3: SyntaxError"),
        ("import helper\n", "helper.py:2: KeyError: 'a'"),
        ("import not_installed\n", "broken.py:1: ModuleNotFoundError: No module named 'not_installed'"),
        ("from sabot import App\nApp('a', broker='amqp://x')\n", "broken.py:2: UserError: "),
        ("import sys\nsys.exit(3)\n", "broken.py:2"),
        (
            "from sabot import App\napp = App('a')\napp.main()\n",
            "broken.py:3: UserError: app.run() of app a was called while",
        ),
    ],
)
def test_a_module_that_raises_is_shown_with_file_and_line(here: Path, text: str, said: str) -> None:
    write(here, broken=text, helper="x = {}\nx['a']\n")
    done = sabot_says("run", "broken:app")
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.startswith("sabot: module broken ")
    assert done.stderr.count("\n") == 1


def test_a_module_that_raises_is_shown_whole_at_loglevel_debug(here: Path) -> None:
    write(here, broken="1 / 0\n")
    done = sabot_says("run", "broken:app", "--loglevel", "debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr


@pytest.mark.slow  # a second of a core, or more
def test_a_run_that_nobody_awaits_is_explained(here: Path) -> None:
    """In a script `app.run()` looks like the way to start; without await it does nothing, and Python says so too late."""
    folder = write(here, hello=HELLO + "app.run()\n", kept=HELLO + "main = app.run()\n")
    with sabot_running(folder, "run", "hello:app") as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    line = len((HELLO + "app.run()\n").splitlines())
    assert f"hello.py:{line}: app.run() is called and not awaited, so it does nothing" in errors
    assert "app.main()" in errors
    assert process.returncode == 0
    done = sabot_says("run", "kept:main")
    assert done.exit_code == 2
    assert "kept:main is a coroutine" in done.stderr


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "hello:app", "--loglevel", "loud"],
        ["run", "hello:app", "--parallelism", "0"],
        ["run", "hello:app", "--broker", "amqp://x"],
        ["run", "hello:app", "--checkpoint-interval", "soon"],
        ["run", "hello:app", "--until", "tomorrow"],
        ["run", "hello:app", "--until", "2026-01-31T00:00:00"],
        ["worker"],
        ["no-such-command"],
        ["demo", "no-such-demo"],
    ],
)
def test_wrong_words_exit_with_2(here: Path, words: list[str]) -> None:
    write(here, hello=HELLO)
    done = sabot_says(*words)
    assert done.exit_code == 2, done.stderr
    assert done.stderr
    assert "Traceback" not in done.stderr


# --- the demo


@pytest.mark.slow  # a second of a core, or more
def test_the_fraud_demo_says_its_figures_as_json(tmp_path: Path) -> None:
    done = sabot_does(tmp_path, "demo", "fraud", "--rows", "20000", "--seed", "7", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["rows"] == 20000
    assert set(figures) >= {
        "rows",
        "seconds",
        "rows_per_s",
        "alerts",
        "precision",
        "recall",
        "checkpoints",
        "restored_from",
    }
    assert figures["restored_from"] is None


def test_the_fraud_demo_refuses_a_row_count_that_is_none() -> None:
    assert sabot_says("demo", "fraud", "--rows", "-5").exit_code == 2


@pytest.mark.slow  # a second of a core, or more
def test_ctrl_c_in_the_demo_shows_the_figures_so_far_and_exits_0(tmp_path: Path) -> None:
    words = ["demo", "fraud", "--rows", "100000000", "--state", "state", "--json"]
    with child(*SABOT, *words, cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        deadline = time.monotonic() + 60
        manifests = tmp_path / "state" / "checkpoints" / "checkpoints"
        while not any(manifests.glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        demo.send_signal(signal.SIGINT)
        figures, errors = demo.communicate(timeout=60)
    others = [line for line in errors.splitlines() if "blocks the event loop" not in line]  # of a machine that is busy
    assert (demo.returncode, others) == (0, [])
    assert 0 < json.loads(figures)["rows"] < 100_000_000
    assert json.loads(figures)["checkpoints"] >= 1


@pytest.mark.parametrize("name", ["signal", "sabot"])
def test_a_module_named_as_one_that_is_loaded_is_refused_by_its_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sabot run signal:app` said that there is no App in signal; there was one, in ./signal.py."""
    (tmp_path / f"{name}.py").write_text("app = 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(WrongUse, match=rf"{name}\.py is not imported: `import {name}` gives.*rename the file"):
        load_app(f"{name}:app")


def test_a_current_folder_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with pytest.raises(WrongUse, match="the current folder does not exist any more"):
        load_app("program:app")


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("name", commands.LATE)
def test_the_help_of_a_command_that_is_loaded_late_is_its_own(name: str) -> None:
    group: Any = typer.main.get_command(commands.cli)
    said = group.commands[name].help
    assert " ".join(group.load(name).help.split()).startswith(said.rstrip("."))
    assert group.load(name) is group.commands[name]


@pytest.mark.usefixtures("cold_start")
def test_help_loads_no_command_and_no_engine() -> None:
    code = "import sys; from sabot.cli import main; sys.argv = ['sabot', '--help']\ntry: main()\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENV, stdout=subprocess.PIPE, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith("sabot.")}
    assert "sabot.cli.commands" in loaded
    assert loaded & {"sabot.app", "sabot.api", "sabot.engine.runtime", "sabot.journal", "sabot.cli.journal"} == set()
    assert "pyarrow" not in done.stdout.split()


@pytest.mark.slow  # half a second of a core
def test_collections_of_garbage_go_on_when_a_command_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` turns them off while it loads; a process that serves for days must not stay so."""
    group: Any = typer.main.get_command(commands.cli)
    try:
        gc.disable()
        group.load("topics")
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


# --- settings from the environment and from a file


@pytest.fixture
def run_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `sabot run hello:app` with words, and returns the settings with which the app would run, or what was refused."""
    write(here, hello="from sabot import App\napp = App('hello', parallelism=2, report='7s', restart='none')\n")
    monkeypatch.setattr("sabot.cli.run.set_up_logging", lambda *given: monkeypatch.setattr(run_module, "seen", given))
    run_module = importlib.import_module("sabot.cli.run")

    def run(*words: str) -> Any:
        found: list[Any] = []
        monkeypatch.setattr("sabot.cli.run.run_app", lambda app, after: found.append(app.settings))
        done = sabot_says("run", "hello:app", *words)
        sys.modules.pop("hello", None)
        return found[0] if found else (done.exit_code, " ".join(done.stderr.split()))

    monkeypatch.setattr(run_module, "seen", (), raising=False)
    return run


def test_a_setting_comes_from_the_command_line_the_environment_the_file_or_the_program_in_this_order(
    run_with: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "shop.toml").write_text(
        'parallelism = 3\nreport = "8s"\ncheckpoint-interval = 5\nmetrics_port = 0\nloglevel = "warning"\nstate = "there"\n'
    )
    assert (run_with().parallelism, run_with().report_s) == (2, 7.0)
    found = run_with("--settings", "shop.toml")
    assert (found.parallelism, found.report_s, found.metrics_port, found.state) == (3, 8.0, 0, "there")
    assert found.checkpoint_interval in ("5", 5.0)
    assert importlib.import_module("sabot.cli.run").seen[0] == "warning"
    monkeypatch.setenv("SABOT_SETTINGS", "shop.toml")
    monkeypatch.setenv("SABOT_PARALLELISM", "4")
    monkeypatch.setenv("SABOT_LOGLEVEL", "error")
    found = run_with()
    assert (found.parallelism, found.report_s, found.restart) == (4, 8.0, "none")
    assert importlib.import_module("sabot.cli.run").seen[0] == "error"
    assert run_with("--parallelism", "5").parallelism == 5


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("file", "refused"),
    [
        ("paralelism = 3", "there is no option paralelism; did you mean parallelism?"),
        ("fresh = true", "fresh: it applies to one start, so give it on the command line: --fresh"),
        ('from = "there"', "from: it applies to one start, so give it on the command line: --from"),
        ('parallelism = "many"', "parallelism = 'many' is not a whole number"),
        ("state = ['a']", "state = ['a'] is not a text"),
        ("web = 1", "web = 1 is not true or false"),
        ("[checkpoints]", "there is no option checkpoints"),
        ("parallelism =", "Invalid value"),
        ("parallelism = 0", "greater than or equal to 1"),
        ('report = "soon"', "report"),
    ],
)
def test_a_wrong_setting_in_the_file_is_refused_by_its_name(run_with: Any, here: Path, file: str, refused: str) -> None:
    (here / "shop.toml").write_text(file)
    code, said = run_with("--settings", "shop.toml")
    assert code == 2
    assert refused in said.replace("│ ", "")


def test_an_option_of_one_start_is_no_variable(run_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment of a pod it would remove the state at each start."""
    monkeypatch.setenv("SABOT_FRESH", "1")
    code, said = run_with()
    assert (code, "SABOT_FRESH: it applies to one start" in said) == (2, True)


def test_a_variable_with_a_wrong_value_is_named(run_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SABOT_PARALLELISM", "many")
    code, said = run_with()
    assert (code, "Invalid value for 'SABOT_PARALLELISM'" in said) == (2, True)
    code, said = run_with("--parallelism", "many")
    assert (code, "Invalid value for '--parallelism'" in said) == (2, True)


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (["--log-format", "json", "--parallelism", "0"], {}, "Invalid value for '--parallelism'"),
        (["--paralelism", "3", "--log-format=json"], {}, "No such option: --paralelism"),
        ([], {"SABOT_LOG_FORMAT": "json", "SABOT_WEB": "maybe"}, "Invalid value for 'SABOT_WEB'"),
        (["--settings", "shop.toml"], {}, "Invalid value for '--parallelism'"),
    ],
    ids=["option", "no option", "variable", "file"],
)
def test_a_wrong_option_is_told_in_json_where_the_log_is_json(
    run_with: Any, here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], variables: dict[str, str], said: str
) -> None:
    """A pod with a wrong variable ended with three lines of text in a log of JSON."""
    (here / "shop.toml").write_text('log-format = "json"\nparallelism = 0\n')
    monkeypatch.setattr(sys, "argv", ["sabot", "run", "hello:app", *words])
    monkeypatch.setattr("sabot.base.logs._json", None)
    monkeypatch.setattr("sabot.cli.late.set_up_logging", lambda level, form: set_json(monkeypatch))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, line = run_with(*words)
    found = json.loads(line)
    assert (code, found["level"]) == (2, "critical")
    assert found["message"].startswith(said)


def set_json(monkeypatch: pytest.MonkeyPatch) -> None:
    from sabot.base import logs

    monkeypatch.setattr(logs, "_json", logs.AsJson(""))


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]])
def test_help_whose_reader_has_gone_ends_well(tmp_path: Path, words: list[str]) -> None:
    """`sabot run --help | true` ended with 1."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run([*SABOT, *words], cwd=tmp_path, env=ENV, stdout=out, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
