"""The state of checkpoints in pages, and the difference of two checkpoints."""

import re
from pathlib import Path
from typing import Any

import pytest

import sabot
from sabot import App
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.checkpoint.state_reads import KeyChange, state_difference, state_owners, state_rows
from sabot.errors import UserError
from tools.agent_tools import checkpoint, processed, publish, started, until, values
from tools.command_line import lines, sabot_says

FIRST = [{"account": f"a{n % 40}", "amount": n} for n in range(200)]
LATER = [{"account": "a7", "amount": 1_000}, {"account": "<b>new</b>", "amount": 5}]


def shop(url: str, folder: Path, state: str, *, parallelism: int = 1) -> App:
    """Returns an app of totals and of an agent's notes, with its checkpoints in the folder `kept`."""
    settings: dict[str, Any] = {"checkpoint_interval": "1h", "checkpoint_dir": str(folder / "kept")}
    home = "memory" if state == "memory" else str(folder / state)
    app = App("shop", url, state=home, parallelism=parallelism, **settings)
    for topic, name in (("orders", "totals"), ("first", "steady")):
        rows = app.stream(topic, schema={"account": "string", "amount": "int64"}).key_by("account")
        totals = rows.aggregate(n=sabot.count(), total=sabot.sum("amount"))
        totals.named(name).to(name, delivery="at_least_once")

    @app.agent("notes", key="account", name="notes")
    async def note(ctx: Any) -> None:
        seen = await ctx.state("seen").get("rows") or []
        await ctx.state("seen").put("rows", [*seen, ctx.message["amount"]][-3:])

    return app


async def count_first(app: App) -> None:
    """Publishes the first rows, and waits until all are counted."""
    for topic in ("orders", "first", "notes"):
        publish(app, topic, FIRST)
    await until(lambda: all(sum(row["n"] == 5 for row in values(app, name)) == 40 for name in ("totals", "steady")))
    await until(lambda: processed(app, "notes") == len(FIRST))


async def count_later(app: App) -> None:
    """Publishes the later rows, and waits until all are counted."""
    for topic in ("orders", "notes"):
        publish(app, topic, LATER)
    await until(lambda: {row["account"]: row["n"] for row in values(app, "totals")}.get("<b>new</b>") == 1)
    await until(lambda: processed(app, "notes") == len(FIRST) + len(LATER))


async def two_checkpoints(url: str, folder: Path, state: str, *, parallelism: int = 1) -> tuple[Manifest, Manifest]:
    """Returns the checkpoints of the shop before and after the later rows."""
    app = shop(url, folder, state, parallelism=parallelism)
    async with started(app):
        await count_first(app)
        before = await checkpoint(app)
        await count_later(app)
        after = await checkpoint(app)
    storage = CheckpointStorage(folder / "kept")
    return storage.read(before), storage.read(after)


@pytest.fixture(params=["memory", "rocksdb"])
async def kept(request: pytest.FixtureRequest, memory_url: str, tmp_path: Path) -> tuple[Manifest, Manifest]:
    return await two_checkpoints(memory_url, tmp_path, request.param, parallelism=2)


async def test_owners_have_their_rows_and_bytes(kept: tuple[Manifest, Manifest]) -> None:
    found = {each.name: each for each in state_owners(kept[0])}
    assert (found["totals"].kind, found["totals"].rows) == ("running aggregate", 40)
    assert found["totals"].bytes > 0
    assert found["shop.notes"].kind == "agent"


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_pages_have_all_rows_once(kept: tuple[Manifest, Manifest]) -> None:
    for owner, column in (("totals", "account"), ("shop.notes", "record_key")):
        accounts, cursor = [], ""
        while True:
            page = state_rows(kept[0], owner, cursor=cursor, most=7)
            accounts += [row[column] for row in page.rows]
            cursor = page.following
            if not cursor:
                break
            assert len(page.rows) == 7
        assert sorted(accounts) == sorted(f"a{n}" for n in range(40))


async def test_a_key_is_found_without_its_page(kept: tuple[Manifest, Manifest]) -> None:
    assert state_rows(kept[1], "totals", key="a7").rows == [{"account": "a7", "n": 6, "total": 1435}]
    assert state_rows(kept[1], "notes", key="a7").rows == [
        {"namespace": "shop.notes/seen", "record_key": "a7", "key": "rows", "value": [127, 167, 1000]}
    ]
    assert state_rows(kept[1], "totals", key="a70").rows == []


@pytest.mark.one_in(2, "half a second of a core each")
async def test_the_difference_of_two_checkpoints_has_what_changed_between_them(kept: tuple[Manifest, Manifest]) -> None:
    found = state_difference(*kept, "totals")
    assert (found.keys, found.more) == (["account"], False)
    assert {each.key["account"]: each for each in found.changes} == {
        "a7": KeyChange("changed", {"account": "a7"}, [{"n": 5, "total": 435}], [{"n": 6, "total": 1435}]),
        "<b>new</b>": KeyChange("added", {"account": "<b>new</b>"}, [], [{"n": 1, "total": 5}]),
    }
    back = state_difference(kept[1], kept[0], "totals")
    assert {each.kind for each in back.changes} == {"changed", "removed"}
    notes = state_difference(*kept, "notes")
    assert {each.key["record_key"]: (each.before, each.after) for each in notes.changes} == {
        "a7": ([{"value": [87, 127, 167]}], [{"value": [127, 167, 1000]}]),
        "<b>new</b>": ([], [{"value": [5]}]),
    }


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_files_that_are_equal_in_both_checkpoints_are_not_read(kept: tuple[Manifest, Manifest]) -> None:
    owner = next(each for each in state_owners(kept[1]) if each.name == "steady")
    found = state_difference(*kept, "steady")
    assert (found.changes, found.unread) == ([], owner.bytes)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_difference_lists_so_many_keys_and_says_that_there_are_more(kept: tuple[Manifest, Manifest]) -> None:
    found = state_difference(*kept, "totals", most=1)
    assert (len(found.changes), found.more) == (1, True)


async def test_wrong_names_and_cursors_are_refused(memory_url: str, tmp_path: Path) -> None:
    before, after = await two_checkpoints(memory_url, tmp_path, "memory")
    with pytest.raises(UserError, match="has no operator or agent 'nothing'"):
        state_difference(before, after, "nothing")
    for cursor in ("x", "1-2", "5-4-0", "0-2000-0", "0-0-0", "1-1-1", "../../etc", "٣-٤-٠", "0-1024-99999999999"):
        with pytest.raises(UserError, match="no such page"):
            state_rows(after, "totals", cursor=cursor)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_the_command_line_prints_the_difference(kept: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    words = ("state", tmp_path / "kept", "totals", "--against", kept[0].checkpoint_id, "--as-of", kept[1].checkpoint_id)
    found = {each["key"]["account"]: each for each in lines(*words, "--json")}
    assert found["<b>new</b>"] == {
        "kind": "added",
        "key": {"account": "<b>new</b>"},
        "before": [],
        "after": [{"n": 1, "total": 5}],
    }
    done = sabot_says(*words)
    assert re.search(r"changed\s+a7\s+n=5, total=435\s+n=6, total=1435", done.stdout)
    assert "from checkpoint 1 to 2" in done.stderr
    assert sabot_says(*words, "--key", "a7").exit_code == 2
