"""Plugins: found by their entry points, listed, and left out one by one where something is wrong."""

import logging
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import ChainOperator, Plugin, PluginCapability, PluginManifest, PluginRegistry
from sabot.errors import UserError
from tools.command_line import sabot_says

PACKAGE = Path(__file__).parents[2] / "plugin_pkg"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which packages are installed: `weather-for-sabot`, as pip would put it there."""
    made = tmp_path / "site"
    facts = made / "weather_for_sabot-1.2.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: weather-for-sabot\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text("[sabot.plugins]\nweather = weather_for_sabot:Weather\n")
    (made / "weather_for_sabot.py").write_text((PACKAGE / "weather_for_sabot.py").read_text())
    monkeypatch.syspath_prepend(made)
    monkeypatch.delitem(sys.modules, "weather_for_sabot", raising=False)
    return made


def broken(site: Path, text: str) -> None:
    facts = site / "broken-0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (facts / "entry_points.txt").write_text("[sabot.plugins]\nbroken = broken_plugin:plugin\n")
    (site / "broken_plugin.py").write_text(text)


class Made(Plugin):
    def __init__(self, name: str, things: Any, *capabilities: str) -> None:
        self._manifest = PluginManifest(name, "1", capabilities or ("tools",))  # type: ignore[arg-type]
        self._things = things

    @property
    def manifest(self) -> PluginManifest:
        return self._manifest

    def provide(self, capability: PluginCapability) -> Mapping[str, Any]:
        return self._things


async def test_a_package_that_is_installed_brings_its_tools_and_operators(site: Path) -> None:
    registry = PluginRegistry().discover()
    assert registry.failed == []
    assert registry.plugins["weather"].manifest.version == "1.2"
    assert [each.name for each in registry.tools] == ["weather"]
    forecast = registry.provided("operator")["forecast"]
    assert (await ChainOperator([forecast]).execute({"text": "Rome"})).content == "sunny in Rome"
    assert registry.provided("policy") == {}
    with pytest.raises(UserError, match="there are tools, operator"):
        registry.provided("colour")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import nobody_has_this", "ModuleNotFoundError: No module named 'nobody_has_this'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("plugin = 7", "UserError: 7 is no plugin"),
        ("def plugin(): raise OSError('no network')", "OSError: no network"),
        ("other = 1", "AttributeError"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_and_the_others_are_there(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    broken(site, text)
    with caplog.at_level(logging.WARNING):
        registry = PluginRegistry().discover()
    assert list(registry.plugins) == ["weather"]
    (failed,) = registry.failed
    assert (failed.name, failed.package) == ("broken", "broken")
    assert failed.error.startswith(why)
    assert "plugin broken of package broken is left out" in caplog.text


def test_the_command_line_lists_them_and_what_is_wrong(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    broken(site, "import nobody_has_this")
    said = sabot_says("plugins")
    assert said.exit_code == 1
    assert "weather" in said.stdout
    assert "tools, operator" in said.stdout
    assert "broken" in said.stdout
    assert "No module named 'nobody_has_this'" in said.stdout
    assert "1 plugin cannot be loaded" in said.stderr


@pytest.mark.parametrize(
    ("things", "why"),
    [
        (["a"], "a dict by names"),
        ({"": len}, "a dict by names"),
        ({"look": 7}, "its tools look is 7"),
        ({"taken": len}, "its tools taken is that of plugin first too"),
    ],
)
def test_what_a_plugin_brings_is_checked_before_any_of_it_is_taken(things: Any, why: str) -> None:
    registry = PluginRegistry()
    registry.register(Made("first", {"taken": len}))
    with pytest.raises(UserError, match=why):
        registry.register(Made("second", things))
    assert list(registry.plugins) == ["first"]
    assert list(registry.provided("tools")) == ["taken"]
    with pytest.raises(UserError, match="two plugins first"):
        registry.register(Made("first", {}))


@pytest.mark.parametrize(
    "wrong",
    [("", "1", ("tools",)), ("a", "", ("tools",)), ("a", "1", ("colour",)), ("a", "1", ()), ("a", "1", 7)],
)
def test_a_manifest_that_says_nothing_is_refused(wrong: Any) -> None:
    with pytest.raises(UserError):
        PluginManifest(*wrong)


def test_entry_points_may_be_given() -> None:
    entry = EntryPoint("len", "builtins:len", "sabot.plugins")
    (failed,) = PluginRegistry().discover(lambda: iter([entry])).failed
    assert failed.package == ""
