"""docs/names.md says where each name of the specification documents is: it is there."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/names.md").read_text()
NAMES = sorted(set(re.findall(r"`(sabot(?:\.\w+)+)`", PAGE)))
PACKAGES = ("sabot.agents", "sabot.llm", "sabot.mcp", "sabot.process")


def test_the_page_names_most_of_the_documents() -> None:
    assert len(NAMES) > 150


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_page_can_be_imported(name: str) -> None:
    if name in PACKAGES:
        importlib.import_module(name)
        return
    module, _, each = name.rpartition(".")
    assert hasattr(importlib.import_module(module), each), f"docs/names.md: there is no {name}"


def test_an_error_of_document_002_has_its_code() -> None:
    told = re.findall(r"(E20\d\d) `(sabot\.\w+)\.(\w+)`", PAGE)
    codes = {code: getattr(importlib.import_module(module), name).code for code, module, name in told}
    assert codes
    assert all(code == of for code, of in codes.items()), codes
