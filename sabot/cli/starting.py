"""`sabot init`: writes a small project to begin with."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from sabot.base.os_errors import hint_of
from sabot.cli.agent_project import AGENT_FILES
from sabot.cli.connector_project import FILES
from sabot.cli.loading import WrongUse
from sabot.cli.pyproject import pyproject
from sabot.cli.running import guarded

_FILES = {
    "app.py": '''"""Large payments raise an alert. `sabot run app:app` reads payments.ndjson; build() takes any other source and sink."""

from pathlib import Path

from sabot import App, NdjsonSink, col, files

HERE = Path(__file__).parent


def build(payments, alerts, **settings):
    """The app over a source and a sink: topics ("payments", with broker="kafka://localhost:9092"), files, or those of a test."""
    app = App("{name}", **settings)
    rows = app.stream(payments, schema={"account": "string", "amount": "float64"})
    rows.filter(col("amount") > 1000).select("account", (col("amount") * 100).cast("int64").alias("cents")).to(alerts)
    return app


app = build(files(HERE / "payments.ndjson"), NdjsonSink(HERE / "alerts.ndjson", overwrite=True), state=str(HERE / "state"))
''',
    "test_app.py": '''"""The program over rows of our own, also with a crash between them: python -m pytest"""

from app import build
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, run


def test_large_payments_raise_an_alert_each_once_whatever_crashes(tmp_path):
    small, large, later = ({"account": name, "amount": amount} for name, amount in [("a", 5.0), ("b", 5000.0), ("c", 1001.0)])
    script = [small, large, BARRIER, CRASH, later, END]
    alerts = ListSink()
    lives = run(lambda state: build(ScriptedSource(script), alerts, state=str(state)), tmp_path)
    assert lives == 2
    assert alerts.rows == [{"account": "b", "cents": 500000}, {"account": "c", "cents": 100100}]
''',
    "payments.ndjson": """{"account": "a", "amount": 12.5}
{"account": "b", "amount": 5000.0}
""",
    "pyproject.toml": pyproject("{name}", '[tool.setuptools]\npy-modules = ["app"]\n'),
    ".gitignore": "__pycache__/\nstate/\nalerts.ndjson\n.*.token\n",
    "README.md": """# {name}

```sh
sabot run app:app             # reads payments.ndjson, writes alerts.ndjson, ends; --fresh begins again
sabot run app:app --reload    # starts anew whenever a file of the program changes
python -m pytest
```
""",
}


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="NAME", help="The folder to make; its name is the name of the app.")
    ],
    connector: Annotated[
        bool,
        typer.Option("--connector", help="Write a source and a sink of your own, with the suites that prove them."),
    ] = False,
    agent: Annotated[
        bool, typer.Option("--agent", help="Write an agent with tools, its worker, and a web API.")
    ] = False,
) -> None:
    """Write a small project with a test into a new folder."""

    def work() -> None:
        if agent and connector:
            raise WrongUse("--agent and --connector are two projects", hint="give one of them")
        _write(folder, AGENT_FILES if agent else FILES if connector else _FILES)
        first = "" if connector or agent else "sabot run app:app; "
        typer.echo(f"{folder}: cd {folder} && {first}python -m pytest")

    raise typer.Exit(guarded(work, debug=False))


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Writes the files of a project, by path. Raises WrongUse if the folder is not empty or cannot be written, or if an app cannot
    have its name.
    """
    name = folder.absolute().name
    module = f"sabot_{name.replace('-', '_').lower()}"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,99}", name):
        raise WrongUse(
            f"{name!r} cannot be the name of a project",
            hint="a name is a letter, then at most 99 letters, digits, - and _",
        )
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise WrongUse(f"{folder} exists and is not empty: nothing is written", hint="give another name")
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path, text = (each.replace("{name}", name).replace("{module}", module) for each in (path, text))
            (folder / path).parent.mkdir(exist_ok=True)
            with (folder / path).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise WrongUse(f"{folder} cannot be written: {error.strerror or error}", hint=hint_of(error)) from error
