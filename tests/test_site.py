"""The site: what it is made of, and what a build may not contain. `make docs` builds it, and fails at a warning."""

import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import sabot
from sabot.connectors import base
from tools.source_tree import PROJECT

SITE = PROJECT / "docs" / "site"


def module(name: str) -> ModuleType:
    """A module of the site, which is in no package."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


# --- nothing comes from another origin


@pytest.mark.parametrize(
    ("element", "found"),
    [
        ('<script src="https://cdn.example/a.js"></script>', ["https://cdn.example/a.js"]),
        ('<script src="//cdn.example/a.js"></script>', ["//cdn.example/a.js"]),
        ('<link rel="stylesheet" href="https://fonts.example/css">', ["https://fonts.example/css"]),
        ('<link rel="preconnect" href="https://fonts.example">', ["https://fonts.example"]),
        ('<img src="http://badges.example/a.svg">', ["http://badges.example/a.svg"]),
        ("<style>@import 'https://fonts.example/css'</style>", ["https://fonts.example/css"]),
        ('<p style="background: url(https://a.example/b.png)">', ["https://a.example/b.png"]),
        ("<img alt='1 > 0' src=//cdn.example/a.png>", ["//cdn.example/a.png"]),
        ('<p title="0 < 1" style="background: url(//a.example/b.png)">', ["//a.example/b.png"]),
        ("<script>a<b; // isn't</script><img src='//cdn.example/a.png'>", ["//cdn.example/a.png"]),
        ("<!-- <img src='//cdn.example/a.png'> isn't --><br>", []),
        ('<pre class="mermaid">', ["mermaid, which the theme would load from a CDN"]),
        ('<a href="https://kafka.apache.org">Kafka</a>', []),
        ('<link rel="canonical" href="https://docs.example/">', []),
        ('<script src="assets/a.js"></script>', []),
    ],
)
def test_an_address_that_a_page_would_load_is_found(element: str, found: list[str]) -> None:
    assert module("origins").of_page(f"<html><body>{element}</body></html>") == found


# --- parameters in docstrings


def test_the_parameters_of_a_docstring_become_a_list() -> None:
    pytest.importorskip("griffe", reason="pip install 'sabot[docs]'")
    text = "Opens it.\n\npath: the file.\n`size`: the bytes\nof a part.\n\nNot a parameter: this."
    shown = "Opens it.\n\n\n- `path`: the file.\n- `size`: the bytes\n    of a part.\n\nNot a parameter: this."
    assert module("docstrings").with_lists(text, {"path", "size"}) == shown


# --- the navigation


def test_every_page_of_the_navigation_exists_and_every_page_is_in_it() -> None:
    def leaves(nav: object) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        found = nav.values() if isinstance(nav, dict) else nav
        return [leaf for each in found for leaf in leaves(each)]  # type: ignore[attr-defined]

    listed = leaves(yaml.load((SITE / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"])
    made = {"reference/api", "reference/commands.md", "reference/examples.md", "decisions"}
    written = {path.relative_to(PROJECT / "docs").as_posix() for path in (PROJECT / "docs").rglob("*.md")}
    written = {name for name in written if not name.startswith("decisions/")}
    assert len(listed) == len(set(listed))
    assert {name for name in listed if not name.startswith("project/")} - made == written


# --- the whole


@pytest.mark.slow  # twenty seconds of a core
def test_the_site_is_built_without_a_warning_and_has_the_files_for_coding_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = pytest.importorskip("mkdocs.commands.build", reason="pip install 'sabot[docs]'")
    config = pytest.importorskip("mkdocs.config", reason="pip install 'sabot[docs]'")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    build.build(config.load_config(str(SITE / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    listed = re.findall(r"\]\((\S+\.md)\)", (tmp_path / "llms.txt").read_text())
    assert len(listed) > 90
    assert [place for place in listed if not (tmp_path / place).exists()] == []
    whole = (tmp_path / "llms-full.md").read_text()
    assert [place for place in listed[1:] if f"<!-- {place} -->" not in whole] == []
    assert (tmp_path / "search" / "search_index.js").stat().st_size > 1_000_000  # so that search works without a server


# --- tables that say what the code is

ROW = re.compile(r"^\| (.+?) \|$", re.MULTILINE)


def rows_of(page: str) -> list[list[str]]:
    """The rows of all tables of a page, as lists of cells."""
    text = (PROJECT / page).read_text()
    return [row.split(" | ") for row in ROW.findall(text) if not set(row) <= set("|-: ")]


def meanings(page: str, section: str = "") -> dict[str, str]:
    """The words of a glossary with their meanings."""
    part = (PROJECT / page).read_text().partition(section)[2].partition("\n## Rooms")[0] if section else None
    rows = rows_of(page) if part is None else [row.split(" | ") for row in ROW.findall(part)]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] not in ("word", "---")}


def test_a_word_has_one_meaning_in_the_glossary_and_in_the_architecture() -> None:
    pages, inside = meanings("docs/concepts/glossary.md"), meanings("ARCHITECTURE.md", "## Words")
    both = pages.keys() & inside.keys()
    assert len(both) >= 12
    assert {word: pages[word] for word in both} == {word: inside[word] for word in both}


OWN = {  # classes that no user names: what others share, and what `collect` and `print` write to
    "AgentOutput",
    "BlackholeSink",
    "CountSink",
    "DatabaseRows",
    "FileSink",
    "FileSource",
    "FollowedFiles",
    "GeneratedSource",
    "GeneratorSource",
    "JournalSource",
    "KafkaDelivery",
    "KafkaReader",
    "KafkaWriter",
    "LakeSink",
    "LakeSource",
    "ListOfRows",
    "PlacedSource",
    "RowsSource",
    "SavedTable",
    "SortedFiles",
    "StagedSink",
    "TableSink",
}


def subclasses(kind: type) -> set[type]:
    """The classes of Sabot that derive from `kind`, also by way of others."""
    below = {cls for each in kind.__subclasses__() for cls in {each, *subclasses(each)}}
    named = {cls for cls in below if cls.__module__.startswith("sabot.") and cls.__name__[0] != "_"}
    return {
        cls for cls in named if not cls.__module__.startswith("sabot.demos.")
    }  # which another test may have imported


def test_the_table_of_sources_and_sinks_is_that_of_the_classes() -> None:
    for info in pkgutil.walk_packages(sabot.__path__, "sabot."):
        if re.match(r"sabot\.(connectors|kafka|testing|runtime|delivery|journal|agents)\b", info.name):
            importlib.import_module(info.name)
    classes = {cls.__name__: cls for cls in subclasses(base.Source) | subclasses(base.Sink)}
    rows = {row[0].strip("`"): row[2:] for row in rows_of("docs/reference/sources-and-sinks.md") if row[0][0] == "`"}
    assert classes.keys() - OWN - rows.keys() == set(), (
        "add a row for each to docs/reference/sources-and-sinks.md, or to OWN if only the engine makes it"
    )
    assert rows.keys() - classes.keys() == set(), "docs/reference/sources-and-sinks.md names classes that are gone"
    for name, cells in rows.items():
        cls = classes[name]
        if issubclass(cls, base.Source):
            ends = "yes" if issubclass(cls, base.Bounded) else "no"
            ends = "with `until=`" if issubclass(cls, base.TakesBound) else ends
            members = ("readers", "commit", "identity")
            said = [ends, *("no" if getattr(cls, each) is getattr(base.Source, each) else "yes" for each in members)]
            if not getattr(cls, "has_records", True):  # rows of columns have no place in a log
                said[-1] = "no"
        else:
            kinds: list[type] = [base.Delivers, base.KeepsToken, base.TakesChanges]
            said = ["yes" if issubclass(cls, kind) else "no" for kind in kinds]
            why = getattr(cls, "repeats", "")
            if isinstance(why, str) and why:  # unless the object says that the receiver knows parts
                said[0] = "with `idempotent=`"
        assert cells == said, f"the row of {name} in docs/reference/sources-and-sinks.md"
