"""The connectors by name: those of Sabot, and those that an installed package declares by an entry point."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sabot import App
from sabot.connectors.base import Sink, Source
from sabot.connectors.installed import COLUMNS, OURS, installed, summary
from sabot.errors import UserError
from sabot.sql.catalog import CONNECTORS
from tools.command_line import lines, sabot_says

TAPES = """
from sabot.connectors import Connector

connector = Connector("tape", source="tapes.ends:Tape", sink="tapes.ends:Punch", options=["tape.path", "first"])
"""
ENDS = """
import json
import pyarrow as pa
from sabot import Batch, Sink, Source
from sabot.connectors import Bounded


class Tape(Source, Bounded):
    schema = pa.schema([("n", pa.int64())])

    def __init__(self, tape_path, first="0"):
        self.name, self._first, self._at = tape_path, int(first), 0

    def open(self, positions, start="earliest"):
        self._at = (positions or {}).get((self.name, 0), self._first)

    def read_batch(self, max_rows, timeout):
        if self.exhausted:
            return None
        self._at += 1
        return Batch(pa.record_batch({"n": [self._at]}, self.schema), self.positions(), self.name)

    @property
    def exhausted(self):
        return self._at == 4

    def positions(self):
        return {(self.name, 0): self._at}

    def close(self):
        "There is nothing to release."


class Punch(Sink):
    def __init__(self, tape_path):
        self.name = tape_path

    def open(self):
        "There is nothing to open."

    def write(self, batch):
        with open(self.name, "a") as file:
            file.writelines(json.dumps(row) + "\\n" for row in batch.taken().to_pylist())

    def flush(self):
        "No row waits in memory."

    def close(self):
        "There is nothing to release."
"""


def install(folder: Path, package: str, declared: str, **entries: str) -> None:
    """Makes a package as pip installs one."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(declared)
    (folder / package / "ends.py").write_text(ENDS)
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    points = "".join(f"{name} = {value}\n" for name, value in entries.items())
    (about / "entry_points.txt").write_text(f"[sabot.connectors]\n{points}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("tapes", "tapes.ends"):  # the next test has another package of this name
        sys.modules.pop(name, None)


def test_the_connectors_of_sabot_are_those_of_sql() -> None:
    assert CONNECTORS.keys() <= {each.name for each in OURS}
    assert all(each.options for each in OURS if each.name not in CONNECTORS), "SQL takes these by their declaration"
    for each in OURS:
        for kind, place in ((Source, each.source), (Sink, each.sink)):
            assert not place or issubclass(each.load(kind), kind)
        if each.name not in CONNECTORS:
            continue
        reads, writes = CONNECTORS[each.name].read is not None, CONNECTORS[each.name].write is not None
        assert (bool(each.source), bool(each.sink)) == (reads, writes), each.name


def test_each_is_listed_with_its_guarantees_by_the_command_and_by_sql() -> None:
    rows = {row[0]: row[1:] for row in summary()}
    assert rows["kafka"] == ("exactly once", "exactly once", "", "sabot")
    assert rows["memory"][:2] == ("exactly once in one process", "exactly once in one process")
    assert rows["duckdb"] == ("exactly once", "exactly once", "", "sabot")
    assert rows["redis-streams"] == ("exactly once", "exactly once", "", "sabot")
    assert rows["console"][:2] == ("", "at least once")
    assert [tuple(each[name] for name in COLUMNS) for each in lines("connectors", "--json")] == summary()
    assert sabot_says("connectors").stdout.splitlines()[0].split() == list(COLUMNS)
    assert App("shown").sql("SHOW CONNECTORS").to_pylist() == [
        dict(zip(COLUMNS, row, strict=True)) for row in summary()
    ]


def test_a_missing_library_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sabot.connectors.installed as room

    monkeypatch.setattr("importlib.metadata.requires", lambda name: ['no-such-thing>=2.0; extra == "duckdb"'])
    found = {row[0]: row for row in room.summary()}
    assert found["duckdb"][3] == "pip install 'sabot[duckdb]'"
    assert found["delta"][3] == ""


def test_a_source_of_a_package_is_listed_with_the_guarantee_that_its_class_has(site: Path) -> None:
    for number, said in enumerate(['guarantee = "at most once"', "guarantee = property(lambda tape: 'at least once')"]):
        name = f"tapes{number}"
        declared = TAPES.replace("tapes.ends", f"{name}.ends").replace('"tape"', f'"{name}"')
        install(site, name, declared, **{name: f"{name}:connector"})
        ends = (site / name / "ends.py").read_text()
        (site / name / "ends.py").write_text(ends.replace("    schema =", f"    {said}\n    schema =", 1))
    found = {row[0]: row[1] for row in summary()}
    assert (found["tapes0"], found["tapes1"]) == ("at most once", "depends on its options")


async def test_sql_reads_and_writes_by_the_connector_of_a_package(site: Path, tmp_path: Path) -> None:
    install(site, "tapes", TAPES, tape="tapes:connector")
    assert ("tape", "exactly once", "at least once", "", "tapes") in summary()
    app = App("taped")
    out = tmp_path / "punched"
    app.sql(
        f"CREATE TABLE tape (n BIGINT) WITH ('connector' = 'tape', 'tape.path' = 'x', 'first' = '1');"
        f"CREATE TABLE punched (n BIGINT) WITH ('connector' = 'tape', 'tape.path' = '{out}');"
        "INSERT INTO punched SELECT n * 10 FROM tape WHERE n > 2"
    )
    await app.run()
    assert [json.loads(line) for line in out.read_text().splitlines()] == [{"n": 30}, {"n": 40}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("'tape.path' = 'x', 'frist' = '1'", "there is no option 'frist'"),
        ("'first' = '1'", "tape_path"),
        ("'tape.path' = 'x', 'first' = 'one'", "invalid literal"),
    ],
)
def test_options_that_a_class_does_not_take_are_refused(site: Path, options: str, said: str) -> None:
    install(site, "tapes", TAPES, tape="tapes:connector")
    app = App("refused")
    with pytest.raises(UserError, match=said):
        app.sql(f"CREATE TABLE tape (n BIGINT) WITH ('connector' = 'tape', {options}); SELECT n FROM tape")


@pytest.mark.parametrize(
    ("declared", "entries", "said"),
    [
        ("connector = 5", {"tape": "tapes:connector"}, r"connector tape of package tapes is 5"),
        ("raise RuntimeError('broken')", {"tape": "tapes:connector"}, "cannot be loaded: RuntimeError: broken"),
        (TAPES.replace('"tape"', '"kafka"'), {"kafka": "tapes:connector"}, "has the name of one of package sabot"),
        (TAPES, {"other": "tapes:connector"}, "connector other of package tapes is"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(site: Path, declared: str, entries: dict[str, str], said: str) -> None:
    install(site, "tapes", declared, **entries)
    with pytest.raises(UserError, match=said):
        installed()
