"""`sabot checkpoints` and `sabot savepoint`: what is printed of an app's checkpoints, and where the app is looked for."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sabot
from sabot import App, NdjsonSink, NdjsonSource, col, tumbling
from sabot.cli import load_app
from sabot.cli.app_checkpoints import find_checkpoints
from sabot.cli.loading import WrongUse
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.errors import CorruptCheckpoint, UserError
from sabot.llm import tool
from tools.checkpoint_tools import in_memory
from tools.command_line import lines, sabot_does, sabot_says

ROWS = [{"account": f"a{n % 3}", "amount": n, "ts": 1_700_000_000_000 + n * 1000} for n in range(30)]
PROGRAM = """
from sabot import App
app = App("counter", {broker!r}, state="state", checkpoint_interval=60)

@app.agent("ticks")
async def count(ctx):
    seen = await ctx.state().get("n") or 0
    await ctx.state().put("n", seen + 1)
"""


def shop(folder: Path, *, version: str = "") -> App:
    """Totals by account and minute into a file, and an agent that counts the rows of each account."""
    app = App("shop", state=str(folder / "state"), version=version)
    stream = app.stream(NdjsonSource(str(folder / "rows.ndjson")), time="ts", lateness="10s")
    minutes = stream.filter(col("amount") > 0).key_by("account").window(tumbling("10s"))
    minutes.aggregate(n=sabot.count(), total=sabot.sum("amount")).to(NdjsonSink(str(folder / "out.ndjson")))

    @app.agent(NdjsonSource(str(folder / "more.ndjson")), key="account", name="seen")
    async def seen(ctx: Any) -> None:
        await ctx.state().put("n", (await ctx.state().get("n") or 0) + 1)

    return app


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the shop has run to its end: `state`, with two checkpoints or more."""
    folder = tmp_path_factory.mktemp("shop")
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.ndjson").write_text(text)
    (folder / "more.ndjson").write_text(text)
    asyncio.run(shop(folder, version="v7").run())
    return folder


# --- looking


def test_a_list_has_each_checkpoint_with_what_it_added(saved: Path) -> None:
    found = lines("checkpoints", "list", saved / "state", "--json")
    ids = [each["checkpoint"] for each in found]
    assert ids == sorted(ids)
    assert len(ids) >= 2
    assert {(each["app"], each["version"], each["generation"]) for each in found} == {("shop", "v7", 1)}
    assert found[0]["new_bytes"] == found[0]["bytes"] > 0
    assert found[-1]["new_bytes"] < found[-1]["bytes"]
    assert found[-1]["undelivered_rows"] == 0
    table = sabot_says("checkpoints", "list", saved / "state").stdout.splitlines()
    assert table[0].split()[:3] == ["checkpoint", "generation", "written"]
    assert [int(line.split()[0]) for line in table[1:]] == ids


def test_one_is_shown_with_positions_operators_agents_and_output(saved: Path) -> None:
    text = sabot_says("checkpoints", "show", saved / "state").stdout
    size = (saved / "rows.ndjson").stat().st_size
    for words in (
        ["app", "shop"],
        ["version", "v7"],
        ["sabot", sabot.__version__],
        ["shop.seen", "30", "0", "0", "0"],
        [str(saved / "rows.ndjson"), "0", str(size)],
        ["read-1/0", "tumbling-1", "-", "tumbling window"],
        ["1/1", "1/1", "-"],
    ):
        assert any(_in_order(words, line) for line in text.splitlines()), (words, text)
    (whole,) = lines("checkpoints", "show", saved / "state", "--json")
    assert whole["describe"]["app"] == "shop"
    assert "agents" in whole["tasks"]


def _in_order(words: list[str], line: str) -> bool:
    at = 0
    for word in words:
        at = line.find(word, at)
        if at < 0:
            return False
        at += len(word)
    return True


def test_records_that_are_unfinished_are_counted(tmp_path: Path, memory_url: str) -> None:
    """The checkpoint is taken in the middle of a call."""

    async def run() -> None:
        app = App("held", memory_url, state=str(tmp_path / "state"))
        begun = asyncio.Event()

        @app.agent("ticks")
        async def hold(ctx: Any) -> None:
            begun.set()
            await asyncio.sleep(600)

        await app.start()
        await app.send("ticks", 1)
        await begun.wait()
        await app.agent_runtime.trigger_checkpoint()
        await app.stop()

    asyncio.run(run())
    shown = sabot_says("checkpoints", "show", tmp_path / "state", "1").stdout
    assert any(line.split() == ["held.hold", "0", "0", "0", "1"] for line in shown.splitlines()), shown


def test_verify_reads_every_file_and_names_the_first_that_differs(saved: Path, tmp_path: Path) -> None:
    done = sabot_says("checkpoints", "verify", saved / "state")
    assert done.exit_code == 0
    assert all(line.endswith("all hashes match") for line in done.stdout.splitlines())
    copy = tmp_path / "copy"
    storage = CheckpointStorage(saved / "state" / "checkpoints")
    newest = storage.latest()
    assert newest is not None
    storage.copy_to(newest, copy)
    (broken,) = [path for path in (copy / "files").rglob("*-1") if path.stat().st_size > 9999]
    data = bytearray(broken.read_bytes())
    broken.unlink()  # it is a link: the app's own file stays as it is
    data[77] ^= 1
    broken.write_bytes(data)
    done = sabot_says("checkpoints", "verify", copy, newest.checkpoint_id)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert str(broken) in done.stderr
    assert sabot_says("checkpoints", "verify", saved / "state").exit_code == 0


def test_verify_goes_on_behind_a_damaged_checkpoint_and_names_the_newest_whole_one(saved: Path, tmp_path: Path) -> None:
    """It stopped at the oldest one, said nothing of the newer ones, and advised to forget all state."""
    copy = tmp_path / "copy"
    shutil.copytree(saved / "state" / "checkpoints", copy, symlinks=True)
    manifests = sorted((copy / "checkpoints").iterdir())
    ids = [int(path.name.split("-")[0]) for path in manifests]
    whole = manifests[0].read_bytes()
    manifests[0].write_bytes(whole.replace(b'"app"', b'"aqq"'))
    done = sabot_says("checkpoints", "verify", copy)
    assert done.exit_code == 1
    assert [int(line.split()[1].rstrip(":")) for line in done.stdout.splitlines()] == ids
    assert [line.endswith("all hashes match") for line in done.stdout.splitlines()] == [False] + [True] * len(ids[1:])
    assert f"checkpoint {ids[-1]} is the newest whole one" in done.stderr
    assert f"the app starts from its newest checkpoint, {ids[-1]}" in done.stderr
    assert "--fresh" not in done.stderr
    manifests[0].write_bytes(whole)
    manifests[-1].write_bytes(manifests[-1].read_bytes().replace(b'"app"', b'"aqq"'))
    done = sabot_says("checkpoints", "verify", copy, "--json")
    assert [json.loads(line)["whole"] for line in done.stdout.splitlines()] == [*[True] * len(ids[1:]), False]
    assert f"to go back to checkpoint {ids[-2]}" in done.stderr
    assert "--fresh" not in done.stderr


def test_a_damaged_manifest_does_not_hide_the_others(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "checkpoints").mkdir(parents=True)
    for path in (saved / "state" / "checkpoints" / "checkpoints").iterdir():
        (copy / "checkpoints" / path.name).write_bytes(path.read_bytes())
    first, second = sorted((copy / "checkpoints").iterdir())[-2:]
    first.write_bytes(first.read_bytes().replace(b'"app"', b'"aqq"'))
    done = sabot_says("checkpoints", "list", copy)
    assert done.exit_code == 1
    assert f"{first} is damaged" in done.stderr
    assert done.stdout.splitlines()[-1].split()[0] == str(int(second.name.split("-")[0]))


# --- where the app is


def test_an_app_is_found_by_any_of_its_places(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = saved / "state" / "checkpoints"
    newest = find_checkpoints(str(root)).manifest().checkpoint_id
    savepoint = CheckpointStorage(root).copy_to(find_checkpoints(str(root)).manifest(), tmp_path / "kept")
    (tmp_path / "cli_shop_1.py").write_text(
        f"from sabot import App\nshop = App('shop', state={str(saved / 'state')!r})\n"
    )
    monkeypatch.chdir(tmp_path)
    for word in (
        root,
        saved / "state",
        f"rocksdb://{saved / 'state'}",
        f"file://{root}",
        "cli_shop_1:shop",
        savepoint,
        f"{savepoint}@{newest}",
        next((tmp_path / "kept" / "checkpoints").iterdir()),
    ):
        assert find_checkpoints(str(word)).manifest().checkpoint_id == newest, word
    assert find_checkpoints(f"{root}@{newest - 1}").manifest().checkpoint_id == newest - 1
    assert find_checkpoints("mock://bucket/path").storage.directory == "mock://bucket/path"
    assert find_checkpoints("mock://bucket/path/?a=b").below("savepoints") == "mock://bucket/path/savepoints?a=b"


def test_a_place_without_checkpoints_is_told_apart_from_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WrongUse, match="there is no directory"):
        find_checkpoints(str(tmp_path / "nowhere"))
    assert sabot_says("checkpoints", "list", tmp_path / "nowhere").exit_code == 2
    done = sabot_says("checkpoints", "list", tmp_path)
    assert (done.exit_code, "holds no checkpoint" in done.stderr) == (1, True)
    (tmp_path / "cli_shop_2.py").write_text("from sabot import App\napp = App('loose')\n")
    monkeypatch.chdir(tmp_path)
    done = sabot_says("checkpoints", "list", "cli_shop_2:app")
    assert (done.exit_code, "app loose keeps no checkpoints" in done.stderr) == (1, True)
    assert "write that DIR in place of cli_shop_2:app" in done.stderr
    assert sabot_says("checkpoints", "list", "cli_shop_3:app").exit_code == 2


def test_an_app_without_a_state_of_its_own_is_looked_for_where_state_says(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cli_shop_4.py").write_text("from sabot import App\napp = App('stateless')\n")
    monkeypatch.chdir(tmp_path)
    state = saved / "state"
    for command in (("checkpoints", "list"), ("checkpoints", "show"), ("checkpoints", "verify"), ("savepoint", "list")):
        of_app = lines(*command, "cli_shop_4:app", "--state", state, "--json")
        assert of_app == lines(*command, state, "--json")
    (first, *_) = lines("checkpoints", "list", state, "--json")
    assert find_checkpoints(f"cli_shop_4:app@{first['checkpoint']}", str(state)).chosen == first["checkpoint"]
    (made,) = lines("savepoint", "create", "cli_shop_4:app", "--state", state, "--json")
    (listed,) = lines("savepoint", "list", state, "--json")
    assert (listed["checkpoint"], listed["savepoint"]) == (made["checkpoint"], made["savepoint"])
    assert made["savepoint"] in sabot_says("savepoint", "list", state).stdout
    lines("savepoint", "drop", state, made["savepoint"], "--json")
    assert not lines("savepoint", "list", state, "--json")
    to = tmp_path / "kept"
    assert sabot_says("savepoint", "create", "cli_shop_4:app", "--state", state, "--to", to).exit_code == 0
    assert find_checkpoints(str(to)).manifest().checkpoint_id == find_checkpoints(str(state)).manifest().checkpoint_id


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(saved: Path) -> None:
    done = sabot_says("checkpoints", "show", saved / "state", 99)
    assert (done.exit_code, "has no checkpoint 99 (it has 1, " in done.stderr) == (1, True)


# --- keeping one


def test_the_newest_checkpoint_of_an_app_that_does_not_run_is_copied(saved: Path, tmp_path: Path) -> None:
    (made,) = lines("savepoint", "create", saved / "state", "--to", tmp_path / "kept", "--json")
    newest = find_checkpoints(str(saved / "state")).manifest().checkpoint_id
    assert made == {"checkpoint": newest, "savepoint": str(tmp_path / "kept"), "running": False}
    assert sabot_says("checkpoints", "verify", tmp_path / "kept").exit_code == 0
    again = sabot_says("savepoint", "create", saved / "state", "--to", tmp_path / "kept")
    assert (again.exit_code, "holds a checkpoint already" in again.stderr) == (1, True)
    (older,) = lines("savepoint", "create", f"{saved / 'state'}@{newest - 1}", "--to", tmp_path / "older", "--json")
    assert older["checkpoint"] == newest - 1


def test_a_checkpoint_that_its_app_removes_while_it_is_copied_is_named_as_that(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an app in an object store, of which nothing tells that it runs."""
    copy = shutil.copytree(saved / "state" / "checkpoints", tmp_path / "copy")
    verify = CheckpointStorage.verify

    def late(storage: CheckpointStorage, manifest: Manifest) -> None:
        manifest.path.unlink()
        shutil.rmtree(copy / "files")
        verify(storage, manifest)

    monkeypatch.setattr(CheckpointStorage, "verify", late)
    done = sabot_says("savepoint", "create", copy, "--to", tmp_path / "kept")
    assert done.exit_code == 1
    assert "while it was copied" in done.stderr
    assert "--state directory" in done.stderr


def test_a_checkpoint_that_its_app_removes_while_it_is_verified_is_not_called_damaged(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved / "state" / "checkpoints", copy, symlinks=True)
    oldest, *others = find_checkpoints(str(copy)).storage.ids()
    verify = CheckpointStorage.verify

    def late(storage: CheckpointStorage, manifest: Manifest) -> None:
        if manifest.checkpoint_id == oldest:
            manifest.path.unlink()
            raise CorruptCheckpoint("a file is missing")
        verify(storage, manifest)

    monkeypatch.setattr(CheckpointStorage, "verify", late)
    done = sabot_says("checkpoints", "verify", copy, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert [json.loads(line)["checkpoint"] for line in done.stdout.splitlines()] == others
    shutil.copytree(saved / "state" / "checkpoints", tmp_path / "second", symlinks=True)
    done = sabot_says("checkpoints", "verify", tmp_path / "second", oldest)
    assert done.exit_code == 1
    assert f"has no checkpoint {oldest}" in done.stderr


def test_a_savepoint_without_a_place_goes_beside_the_checkpoints(saved: Path) -> None:
    done = sabot_says("savepoint", "create", saved / "state")
    where = Path(done.stdout.strip().rpartition(" ")[2])
    assert where.parent == saved / "state" / "checkpoints" / "savepoints"
    assert find_checkpoints(str(where)).storage.ids()


async def test_a_running_app_makes_one_for_it(tmp_path: Path, memory_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_counter_1.py").write_text(PROGRAM.format(broker=memory_url))
    app = load_app("cli_counter_1:app")
    await app.start()
    try:
        await app.send("ticks", 1)
        assert find_checkpoints("state").runs()
        words = ["savepoint", "create", "cli_counter_1:app", "--to", "kept", "--json"]
        (made,) = await asyncio.to_thread(lines, *words)
        assert made == {"checkpoint": 1, "savepoint": str(tmp_path / "kept"), "running": True}
        done = await asyncio.to_thread(sabot_says, *words)
        assert (done.exit_code, "holds a checkpoint already" in done.stderr) == (1, True)
    finally:
        await app.stop()
    assert not find_checkpoints("state").runs()
    assert (tmp_path / "kept" / "checkpoints").is_dir()


async def test_a_running_app_with_its_checkpoints_in_an_object_store_is_asked_by_its_state_directory(
    tmp_path: Path, memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_counter_4.py").write_text(PROGRAM.format(broker=memory_url))
    app = load_app("cli_counter_4:app")
    app.configure(checkpoint_dir=(in_memory()[0], "apps"))
    await app.start()
    try:
        await app.send("ticks", 1)
        words = ["savepoint", "create", "state", "--json"]
        nowhere = await asyncio.to_thread(sabot_says, *words)
        assert (nowhere.exit_code, "give the place of the savepoint: --to PLACE" in nowhere.stderr) == (1, True)
        (made,) = await asyncio.to_thread(lines, *words, "--to", "kept")
        assert made == {"checkpoint": 1, "savepoint": str(tmp_path / "kept"), "running": True}
    finally:
        await app.stop()
    assert sabot_says("checkpoints", "verify", "kept").exit_code == 0


async def test_a_savepoint_for_which_a_journal_keeps_entries_is_listed_and_dropped(tmp_path: Path) -> None:
    app = App("durable", state=str(tmp_path / "state"))

    @app.agent(NdjsonSource(str(tmp_path / "rows.ndjson")), durable=True)
    async def nothing(ctx: Any) -> None:
        """Its apps do nothing."""

    (tmp_path / "rows.ndjson").write_text("{}")
    await app.run()
    lines("savepoint", "create", tmp_path / "state", "--to", tmp_path / "kept", "--json")
    (listed,) = lines("savepoint", "list", tmp_path / "state", "--json")
    newest = find_checkpoints(str(tmp_path / "state")).manifest().checkpoint_id
    assert (listed["checkpoint"], listed["savepoint"]) == (newest, str(tmp_path / "kept"))
    dropped = sabot_says("savepoint", "drop", tmp_path / "state", tmp_path / "state" / "checkpoints")
    assert (dropped.exit_code, "has the checkpoints of an app" in dropped.stderr) == (1, True)
    (dropped,) = lines("savepoint", "drop", tmp_path / "state", tmp_path / "kept", "--json")
    assert dropped == {"dropped": str(tmp_path / "kept")}
    assert not (tmp_path / "kept").exists()
    assert not lines("savepoint", "list", tmp_path / "state", "--json")
    again = sabot_says("savepoint", "drop", tmp_path / "state", tmp_path / "kept")
    assert (again.exit_code, "holds no savepoint" in again.stderr) == (1, True)


@pytest.mark.slow  # a second of a core
async def test_a_durable_app_is_restored_from_a_savepoint_and_a_copy_of_its_journal(tmp_path: Path) -> None:
    """As docs/how-to/backup.md says: its state directory is lost, and it goes on in another one without a second effect."""
    paid: list[int] = []
    rows = tmp_path / "rows.ndjson"
    rows.write_text("".join(f'{{"amount": {n}}}\n' for n in range(3)))

    @tool(effect="unsafe")
    def pay(amount: int) -> int:
        paid.append(amount)
        return amount

    def durable(state: str) -> App:
        app = App("durable", state=str(tmp_path / state))
        source, sink = NdjsonSource(str(rows)), NdjsonSink(str(tmp_path / "done.ndjson"))

        @app.agent(source, durable=True, sink=sink, schema={"amount": "int64"})
        async def payer(ctx: Any) -> dict[str, int]:
            return {"paid": await ctx.call(pay, ctx.message["amount"])}

        return app

    await durable("state").run()
    said = sabot_says("savepoint", "create", tmp_path / "state", "--to", tmp_path / "backup").stdout
    assert f"a start needs journal {tmp_path / 'state' / 'journal'}" in said
    shutil.copytree(tmp_path / "state" / "journal", tmp_path / "backup" / "journal")
    shutil.rmtree(tmp_path / "state")
    with rows.open("a") as file:
        file.write('{"amount": 3}\n')

    without = durable("without")
    without.configure(from_=str(tmp_path / "backup"))
    with pytest.raises(
        UserError, match=r"without/journal.* is journal .*, and the checkpoint was made with"
    ) as refused:
        await without.run()
    assert "put the app's journal there" in refused.value.hint

    shutil.copytree(tmp_path / "backup" / "journal", tmp_path / "restored" / "journal")
    restored = durable("restored")
    restored.configure(from_=str(tmp_path / "backup"))
    await restored.run()
    assert sorted(paid) == [0, 1, 2, 3]
    done = [json.loads(line)["paid"] for line in (tmp_path / "done.ndjson").read_text().splitlines()]
    assert sorted(done) == [0, 1, 2, 3]


@pytest.mark.slow  # a second of a core, or more
def test_a_run_from_a_savepoint_has_its_state_and_one_that_is_not_there_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = """
from sabot import App, NdjsonSource, NdjsonSink
app = App("counter", state="state")

@app.agent(NdjsonSource("rows.ndjson"), key="account")
async def count(ctx):
    await ctx.state().put("n", (await ctx.state().get("n") or 0) + 1)
"""
    (tmp_path / "cli_counter_2.py").write_text(program)
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.ndjson").write_text(rows)
    assert sabot_does(tmp_path, "run", "cli_counter_2:app").returncode == 0
    lines("savepoint", "create", "state", "--to", "kept", "--json")
    done = sabot_does(tmp_path, "run", "cli_counter_2:app", "--state", "other", "--from", "kept")
    assert done.returncode == 0, done.stderr
    (row,) = lines("state", "other", "counter.count", "--key", "a1", "--json")
    assert row["value"] == 10
    done = sabot_says("run", "cli_counter_2:app", "--from", "nowhere")
    assert (done.exit_code, "there is no directory nowhere" in done.stderr) == (2, True)
    for words in (["--redeliver", "maybe"], ["--restart", "often"]):
        assert sabot_says("run", "cli_counter_2:app", *words).exit_code == 2
