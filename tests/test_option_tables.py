"""The tables of options in the documents say what the code declares. `python tests/test_option_tables.py` writes them anew."""

import re
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from sabot.api.agent import AgentOptions
from sabot.options import options_of
from tools.source_tree import PROJECT

TABLES = {"docs/agents.md": AgentOptions}
PLACE = "(<!-- options: {} -->\n)(.*?)(<!-- end of options -->)"


def table_of(declared: type) -> str:
    rows = [f"| `{name}` | `{each.default!r}` | {each.help} |" for name, each in options_of(declared).items()]
    return "\n".join(["| option | default | |", "|---|---|---|", *rows, ""])


def place_of(declared: type) -> re.Pattern[str]:
    return re.compile(PLACE.format(declared.__name__), re.DOTALL)


@pytest.mark.parametrize("page", TABLES)
def test_the_table_of_a_page_has_each_option_with_its_default_and_help(page: str) -> None:
    declared = TABLES[page]
    found = place_of(declared).search((PROJECT / page).read_text())
    assert found is not None, f"{page} has no table of {declared.__name__}"
    assert found[2] == table_of(declared), "python tests/test_option_tables.py writes it anew"


if __name__ == "__main__":
    for name, of in TABLES.items():
        path = PROJECT / name
        path.write_text(place_of(of).sub(lambda found, of=of: found[1] + table_of(of) + found[3], path.read_text()))
