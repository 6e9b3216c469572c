"""Checkpoints of each kind, written by an earlier Sabot and kept in `kept/`, restore: no row is lost, none is there twice, no state is
another one. `kept_apps` has their programs, `kept/make.py` says what the files hold.
"""

import ast
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kept_apps import HALF, PROGRAMS, RESTORED_S, WRITTEN_S, Program, Scene, contents, finish, publish

from sabot.api.nodes.read import Read
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.checkpoint.state_reads import state_difference, state_owners, state_rows
from sabot.engine.plan import make_plan, walk, with_schemas
from sabot.engine.plan.state_matching import compare, planned
from sabot.errors import UserError
from sabot.testing import lives
from tools.agent_tools import checkpoint

pytestmark = pytest.mark.integration

ARCHIVES = Path(__file__).parent / "kept"
KINDS = {  # of state, as `sabot state` names them
    "agent",
    "as-of join",
    "calls",
    "changelog",
    "deduplicate",
    "groups",
    "interval join",
    "join",
    "lookup",
    "materialize",
    "over",
    "pattern",
    "process",
    "reduce",
    "rows in order",
    "running aggregate",
    "sample",
    "top_n",
    "upsert",
    "window",
    "window join",
    "window top_n",
}


# Joins whose rows had columns that nothing behind them uses: today's Sabot goes on without these.
NARROWED = {"join-2"}


# Windows of several panes, and their outputs: floats that are added in another order than when the checkpoints were written.
ADDED_ANEW = {"hopping"}


def rounded(values: Any) -> Any:
    """These values, or texts of values, with floats of 14 digits, and the states of panes of a user's function in order."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return sorted((rounded(value) for value in values), key=repr)
    if isinstance(values, float):
        return float(f"{values:.14g}")
    if isinstance(values, str):
        states = re.sub(
            r"\{[^{}]*\}(,\{[^{}]*\})+", lambda found: str(sorted(found[0].strip("{}").split("},{"))), values
        )
        return re.sub(r"-?\d+\.\d{9,}(e-?\d+)?", lambda found: f"{float(found[0]):.14g}", states)
    return values


def panes_rounded(states: dict[str, Any]) -> dict[str, Any]:
    return {id: rounded(state) if id.split("-")[0] in ADDED_ANEW else state for id, state in states.items()}


def narrow(state: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """The state of a join with these of its columns alone."""
    names = [column.split(" ")[0] for column in columns]
    rows = [{name: row[name] for name in names} for row in map(ast.literal_eval, state["rows"])]
    return {**state, "columns": columns, "rows": sorted(map(str, rows))}


@dataclass
class Kept:
    """An app as its archive says that it was; `outside` the app is the current folder."""

    program: Program
    folder: Path
    scene: Scene
    state: Any
    outcome: Any


@pytest.fixture
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, memory_url: str) -> Iterator[Kept]:
    """Unpacked where nothing waits for a disk."""
    with lives.temporary_directory() as folder:
        with tarfile.open(ARCHIVES / f"{request.param}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        (folder / "outside").mkdir(exist_ok=True)
        monkeypatch.chdir(folder / "outside")
        expected = json.loads((folder / "expected.json").read_text())
        yield Kept(PROGRAMS[request.param], folder, Scene(broker=memory_url), expected["state"], expected["outcome"])


each_program = pytest.mark.parametrize("kept", PROGRAMS, indirect=True)
each_way = pytest.mark.parametrize(
    ("kept", "parallelism"),
    [(name, p) for name, program in PROGRAMS.items() for p in ([1, 3] if program.rescales else [program.parallelism])],
    indirect=["kept"],
)


@pytest.mark.one_in(10, "each kind of state is in several apps")
@each_program
def test_what_a_kept_checkpoint_holds_is_read_as_it_was(kept: Kept) -> None:
    assert panes_rounded(contents(kept.folder / "checkpoints")) == panes_rounded(kept.state)


@pytest.mark.one_in(30, "each kind of state is in several apps")
@each_program
def test_the_pages_of_a_kept_checkpoint_have_each_row_of_its_state_once(kept: Kept) -> None:
    """The console reads state by key group: 3 rows and more at a time, as far as the step keeps its rows by key."""
    manifest = CheckpointStorage(kept.folder / "checkpoints").latest()
    assert manifest is not None
    for owner in state_owners(manifest):
        if "rows" not in kept.state[owner.name]:
            with pytest.raises(UserError):
                state_rows(manifest, owner.name)
            continue
        cursors, found = [""], []
        while len(cursors) == 1 or cursors[-1]:
            page = state_rows(manifest, owner.name, cursor=cursors[-1], most=3)
            found += page.rows
            cursors.append(page.following)
        whole = state_rows(manifest, owner.name, most=1_000_000)
        assert whole.following == ""
        assert len(whole.rows) == len(kept.state[owner.name]["rows"])
        assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, whole.rows)), owner
        assert state_difference(manifest, manifest, owner.name).changes == []


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
@each_program
def test_the_plan_of_its_program_takes_over_all_state_of_a_kept_checkpoint(kept: Kept) -> None:
    """Also of operators that nobody has named: they are known by what their rows have gone through."""
    app = kept.program.app(kept.scene, kept.folder, WRITTEN_S)
    writes = app.spec.ends
    reads = [node for node in walk(writes) if isinstance(node, Read)]
    known = {id(read): read.schema or read.source.infer_schema() for read in reads}
    plan = make_plan(with_schemas(writes, known), parallelism=kept.program.parallelism)
    manifest = CheckpointStorage(kept.folder / "checkpoints").latest()
    assert manifest is not None
    verdicts = compare(planned(plan), manifest)
    anew = "key groups are dealt out anew"  # the plan does not know here that the sources of `calls` have one reader
    narrowed = {each.id for each in verdicts if each.outcome == "migrate" and "go on without" in each.why}
    assert narrowed == NARROWED & set(kept.state)
    other = {each.id: each.why for each in verdicts if each.outcome != "keep" and anew not in each.why}
    assert other.keys() == narrowed
    assert len(verdicts) == sum(each["kind"] != "agent" for each in kept.state.values())


@pytest.mark.one_in(48, "each kind of state is in several apps")
@each_way
async def test_a_restored_app_keeps_what_was_kept(kept: Kept, parallelism: int) -> None:
    """It takes a checkpoint before any further row has come, and that holds the same."""
    kept.scene.limit, kept.scene.hold = 0, True
    if kept.program.endless:
        publish(kept.scene, 0, HALF)
    app = kept.program.app(kept.scene, kept.folder, WRITTEN_S, parallelism)
    await app.start()
    try:
        await checkpoint(app)
        now = contents(kept.folder / "checkpoints")
        for id in NARROWED & set(kept.state):
            wanted = kept.state[id]["columns"]
            assert set(now[id]["columns"]) < set(wanted)
            kept.state[id] = narrow(kept.state[id], now[id]["columns"])
        assert panes_rounded(now) == panes_rounded(kept.state)
    finally:
        kept.scene.released.set()
        await app.stop()


@pytest.mark.one_in(40, "each kind of state is in several apps")
@each_way
async def test_an_app_goes_on_from_a_kept_checkpoint(kept: Kept, parallelism: int) -> None:
    app = kept.program.app(kept.scene, kept.folder, RESTORED_S, parallelism)
    outcome = await finish(kept.program, app, kept.scene, restored=True)
    assert app.agent_runtime.runner.restored_from is not None
    assert outcome.keys() == kept.outcome.keys()
    for name, rows in outcome.items():
        if name in ADDED_ANEW:
            rows, kept.outcome[name] = rounded(rows), rounded(kept.outcome[name])
        assert rows == kept.outcome[name], name


def test_state_of_each_kind_is_kept() -> None:
    found = set()
    for program in PROGRAMS:
        with tarfile.open(ARCHIVES / f"{program}.tar.xz") as archive:
            expected = archive.extractfile("expected.json")
            assert expected is not None
            found |= {each["kind"] for each in json.load(expected)["state"].values()}
    assert found == KINDS
