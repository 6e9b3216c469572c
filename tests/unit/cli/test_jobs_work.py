"""`sabot jobs work`: its processes are those of `tests/recovery/test_kernel_kill.py`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sabot.cli import commands


def test_an_app_is_refused_with_the_command_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worked.py").write_text('from sabot import App\n\napp = App("shop", state="state")\n')
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(commands.cli, ["jobs", "work", "worked:app"])
    assert done.exit_code == 2
    assert "worked:app is an App, and no kernel" in done.output
    assert "sabot run worked:app" in done.output
