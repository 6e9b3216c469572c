"""The tables of options in the documents say what the code declares. `python tests/test_option_tables.py` writes them anew."""

import inspect
import re
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from sabot.api.agent import AgentOptions
from sabot.app import App, AppSettings
from sabot.base.options import Option, options_of
from sabot.cli.run import RunOptions, run, worker
from tools.source_tree import PROJECT

TABLES: dict[type, str] = {
    AgentOptions: "docs/agents.md",
    AppSettings: "docs/settings.md",
    RunOptions: "docs/settings.md",
}
PLACE = "(<!-- options: {} -->\n)(.*?)(<!-- end of options -->)"


def default_of(option: Option) -> str:
    if option.default in (None, (), "") or option.default == {}:
        return ""
    return f"`{option.default}`" if isinstance(option.default, str | int | bool) else "the system's"


def word_of(name: str, option: Option) -> str:
    return f"`--{name.rstrip('_').replace('_', '-')}`" if option.metavar else ""


def rows_of(declared: type) -> dict[str, Option]:
    """The options of a class that no table before has."""
    known = options_of(declared)
    return {
        name: each for name, each in known.items() if declared is not RunOptions or name not in options_of(AppSettings)
    }


def table_of(declared: type) -> str:
    rows = rows_of(declared)
    commands = any(each.metavar for each in rows.values())
    heads = ["option", *(["command line"] if commands else []), "default", ""]
    cells = [
        [f"`{name}`", *([word_of(name, each)] if commands else []), default_of(each), each.help.replace("|", "\\|")]
        for name, each in rows.items()
    ]
    lines = [heads, ["---"] * len(heads), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("|  |", "| |").replace("|---", "|---")


def place_of(declared: type) -> re.Pattern[str]:
    return re.compile(PLACE.format(declared.__name__), re.DOTALL)


@pytest.mark.parametrize("declared", TABLES)
def test_the_table_of_a_page_has_each_option_with_its_default_and_help(declared: type) -> None:
    found = place_of(declared).search((PROJECT / TABLES[declared]).read_text())
    assert found is not None, f"{TABLES[declared]} has no table of {declared.__name__}"
    assert found[2] == table_of(declared), "python tests/test_option_tables.py writes it anew"


def test_an_app_takes_each_setting_with_its_default() -> None:
    taken = inspect.signature(App).parameters
    assert {name: each.default for name, each in options_of(AppSettings).items()} == {
        name: each.default for name, each in taken.items() if name != "id"
    }
    assert set(inspect.signature(App.configure).parameters) <= {*taken, "self"}


def test_run_and_worker_have_an_option_for_each_setting_with_a_metavar() -> None:
    wanted = {name for name, each in options_of(RunOptions).items() if each.metavar}
    assert {"state", "parallelism", "from_", "workers", "reload"} <= wanted
    assert set(inspect.signature(run).parameters) - {"target", "functions", "settings"} == wanted
    assert set(inspect.signature(worker).parameters) - {"context", "settings"} == wanted


@pytest.mark.parametrize("declared", TABLES)
def test_the_help_of_an_option_is_one_line_that_begins_with_a_noun(declared: type) -> None:
    wrong = [
        name for name, each in options_of(declared).items() if not 10 <= len(each.help) <= 110 or each.help[-1] == "."
    ]
    assert wrong == []


if __name__ == "__main__":
    for of, name in TABLES.items():
        path = PROJECT / name
        path.write_text(place_of(of).sub(lambda found, of=of: found[1] + table_of(of) + found[3], path.read_text()))
