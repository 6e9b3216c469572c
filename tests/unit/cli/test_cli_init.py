"""`sabot init`: the project that it writes runs, and its test passes."""

import ast
import asyncio
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sabot
from sabot.cli import load_app
from sabot.cli.agent_project import AGENT_FILES
from tools.command_line import sabot_says


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project, as the current folder."""
    monkeypatch.chdir(tmp_path)
    found = sabot_says("init", "shop")
    assert found.exit_code == 0, found.output
    monkeypatch.chdir("shop")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "shop"), *sys.path])
    yield tmp_path / "shop"
    for name in ("app", "test_app"):
        sys.modules.pop(name, None)


def test_the_project_runs(shop: Path) -> None:
    asyncio.run(load_app("app:app").run())
    assert [json.loads(line) for line in (shop / "alerts.ndjson").read_text().splitlines()] == [
        {"account": "b", "cents": 500000}
    ]


def test_its_test_passes(shop: Path, tmp_path: Path) -> None:
    test = importlib.import_module("test_app")
    test.test_large_payments_raise_an_alert_each_once_whatever_crashes(tmp_path / "lives")


WHAT_MATTERS = "goes_on_behind_each_row or crash_at_any_step or flushed_rows_are_there"


@pytest.mark.parametrize(
    "tests", [pytest.param(WHAT_MATTERS, id="some"), pytest.param("test", id="all", marks=pytest.mark.slow)]
)
def test_a_project_of_a_connector_passes_its_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tests: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = sabot_says("init", "my-tape", "--connector")
    assert found.exit_code == 0, found.output
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "-k", tests, "--rootdir=."]
    root = str(Path(sabot.__file__).parents[1])
    ran = subprocess.run(
        program, cwd=tmp_path / "my-tape", env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout
    assert " passed" in ran.stdout


def test_a_project_of_an_agent_passes_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = sabot_says("init", "my-desk", "--agent")
    assert found.exit_code == 0, found.output
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "--rootdir=."]
    root = str(Path(sabot.__file__).parents[1])
    ran = subprocess.run(
        program, cwd=tmp_path / "my-desk", env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout
    assert "3 passed" in ran.stdout


def test_the_functions_of_a_project_of_an_agent_have_types() -> None:
    """`mypy --strict` had six errors in a project of a minute."""
    for file in ("desk.py", "web.py"):
        made = [each for each in ast.walk(ast.parse(AGENT_FILES[file])) if isinstance(each, ast.FunctionDef)]
        assert made
        for each in made:
            assert each.returns, each.name
            assert all(argument.annotation for argument in each.args.args), each.name


def test_a_project_is_of_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = sabot_says("init", "my-desk", "--agent", "--connector")
    assert (found.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "--agent and --connector are two projects" in found.stderr


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mine.txt").write_text("mine")
    found = sabot_says("init", "shop")
    assert found.exit_code == 2
    assert "shop exists and is not empty: nothing is written" in found.stderr
    assert [each.name for each in (tmp_path / "shop").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["1st", "a b", "ä"])
def test_a_name_that_no_app_can_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    found = sabot_says("init", name)
    assert (found.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "cannot be the name of a project" in found.stderr
