"""The memory of agents, over a file and over keyed state."""

import asyncio
import json
import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot import App, NdjsonSource
from sabot.base.redaction import HIDDEN, keep_secret
from sabot.clock import ManualClock
from sabot.engine.state import BackendConfig, MapState, MemoryBackend
from sabot.errors import UserError
from sabot.mcp import Memory, MemoryFile, MemoryStore, StateMemories
from sabot.specified.mcp.memory import _leaders


@pytest.fixture(params=["file", "state"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryStore]:
    if request.param == "state":
        yield StateMemories(MapState(MemoryBackend(BackendConfig()), "notes"))
        return
    file = MemoryFile(tmp_path / "memories")
    yield file
    file.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def memory(home: MemoryStore, clock: ManualClock) -> Memory:
    return Memory(home, clock=clock)


async def told(memory: Memory, clock: ManualClock, *texts: str) -> list[str]:
    """Stores the texts of scope "s", a second after one another."""
    ids = []
    for text in texts:
        ids.append(await memory.store("s", text))
        clock.advance(1)
    return ids


async def test_a_search_gives_the_memories_with_the_words_the_best_first(memory: Memory, clock: ManualClock) -> None:
    rare, common, _ = await told(
        memory, clock, "Login uses a TOKEN of the gateway", "The gateway is in Oslo", "Lunch is at noon"
    )
    found = await memory.search("s", "token gateway")
    assert [each["id"] for each in found] == [rare, common]
    assert found[0]["score"] > found[1]["score"] > 0
    assert await memory.search("s", "bicycle") == []


async def test_of_equal_memories_the_newest_comes_first_and_the_limit_cuts(memory: Memory, clock: ManualClock) -> None:
    ids = await told(memory, clock, "apples one", "apples two", "apples three")
    assert [each["id"] for each in await memory.search("s", "apples", 2)] == [ids[2], ids[1]]


async def test_a_word_finds_longer_words_and_the_tags(memory: Memory, clock: ManualClock) -> None:
    (login,) = await told(memory, clock, "Authentication goes by certificate")
    tagged = await memory.store("s", "Ask Grace", ["billing"])
    assert [each["id"] for each in await memory.search("s", "auth")] == [login]
    assert [each["id"] for each in await memory.search("s", "Billing")] == [tagged]


async def test_letter_case_and_the_way_in_which_accents_are_written_do_not_matter(
    memory: Memory, clock: ManualClock
) -> None:
    ids = await told(memory, clock, "Caf\u00e9 \uff21BC", "STRASSE und \u1c80", 'snake_case "quoted" a*b')
    for query, id in [
        ("cafe\u0301", ids[0]),
        ("abc", ids[0]),
        ("stra\u00dfe", ids[1]),
        ("snake_case", ids[2]),
        ('"quoted', ids[2]),
        ("b*", ids[2]),
    ]:
        assert [each["id"] for each in await memory.search("s", query)] == [id], query
    assert await memory.search("s", "cafe") == []
    assert await memory.search("s", "!?*") == []


async def test_a_word_is_as_rare_as_in_its_own_scope(memory: Memory, clock: ManualClock) -> None:
    rare, _, _ = await told(memory, clock, "red paint", "blue paint and red tape", "blue paint, blue sky")
    before = await memory.search("s", "red paint")
    for n in range(20):
        await memory.store("other", f"red {n}")
    after = await memory.search("s", "red paint")
    assert [each["id"] for each in after] == [each["id"] for each in before]
    assert after[0]["id"] == rare


async def test_a_query_of_very_many_words_is_answered_by_its_first(memory: Memory, clock: ManualClock) -> None:
    first, _ = await told(memory, clock, "w0z is here", "w4999z is there")
    found = await memory.search("s", " ".join(f"w{n}z" for n in range(5000)))
    assert [each["id"] for each in found] == [first]


async def test_the_same_text_is_one_memory_with_all_of_its_tags(memory: Memory, clock: ManualClock) -> None:
    first = await memory.store("s", "The key is under the mat", ["house"])
    clock.advance(5)
    again = await memory.store("s", "The key is under the mat ", ["garden", "house"])
    assert first == again
    kept = await memory.retrieve("s", first)
    assert kept["tags"] == ["garden", "house"]
    assert kept["stored_ms"] == 1_700_000_000_000


async def test_scopes_do_not_see_one_another(memory: Memory) -> None:
    kept = await memory.store("ada", "Salary is 5")
    assert await memory.search("grace", "salary") == []
    with pytest.raises(UserError, match=f"memory 'grace' has nothing under '{kept}'"):
        await memory.retrieve("grace", kept)
    assert not await memory.forget("grace", kept)
    assert (await memory.retrieve("ada", kept))["text"] == "Salary is 5"


class Interrupted:
    """A store in which another process consolidates just before the first change."""

    def __init__(self, home: MemoryStore) -> None:
        self._home, self._other = home, Memory(home)
        self.read, self.count, self.search = home.read, home.count, home.search

    async def change(self, *asked: Any) -> None:
        if self._other is not None:
            other, self._other = self._other, None
            await other.consolidate("s")
        await self._home.change(*asked)


async def test_a_memory_that_is_merged_while_it_is_forgotten_is_forgotten(
    memory: Memory, home: MemoryStore, clock: ManualClock
) -> None:
    """Its text stayed as an earlier wording of the other one, and forget() said that it was removed."""
    words = "the card of Ann ends in one two three four"
    older, newer = await told(memory, clock, words, f"{words} five")
    assert await Memory(Interrupted(home)).forget("s", older)
    assert await memory.search("s", "card") == []
    for each in (older, newer):
        with pytest.raises(UserError, match="has nothing under"):
            await memory.retrieve("s", each)


async def test_a_memory_that_is_merged_while_it_gets_a_tag_has_the_tag(
    memory: Memory, home: MemoryStore, clock: ManualClock
) -> None:
    words = "the gateway checks the token of each login"
    older, newer = await told(memory, clock, words, f"{words} twice")
    assert await Memory(Interrupted(home)).store("s", words, ["auth"]) == newer
    assert (await memory.retrieve("s", older))["tags"] == ["auth"]


async def test_consolidated_the_newest_wording_stands_and_all_others_are_kept(
    memory: Memory, clock: ManualClock
) -> None:
    old, other, new = await told(
        memory, clock, "deploy the shop on friday at noon", "the cat sleeps", "Deploy the shop on Friday, at noon today"
    )
    assert await memory.consolidate("s") == {"before": 3, "after": 2}
    kept = await memory.retrieve("s", old)
    assert kept["id"] == new
    assert kept["text"] == "Deploy the shop on Friday, at noon today"
    assert kept["earlier"] == ["deploy the shop on friday at noon"]
    assert (await memory.retrieve("s", other))["earlier"] == []
    assert [each["id"] for each in await memory.search("s", "deploy")] == [new]


async def test_ids_lead_to_what_stands_after_several_consolidations(memory: Memory, clock: ManualClock) -> None:
    ids = await told(memory, clock, "a b c d e f g h", "a b c d e f g i")
    await memory.consolidate("s", 0.7)
    ids += await told(memory, clock, "a b c d e f g j")
    assert await memory.consolidate("s", 0.7) == {"before": 2, "after": 1}
    assert [(await memory.retrieve("s", each))["id"] for each in ids] == [ids[2]] * 3
    assert (await memory.retrieve("s", ids[0]))["earlier"] == ["a b c d e f g i", "a b c d e f g h"]
    assert await memory.store("s", "a b c d e f g h", ["letters"]) == ids[2]
    assert (await memory.retrieve("s", ids[2]))["tags"] == ["letters"]


async def test_what_is_forgotten_is_gone_with_its_earlier_wordings(memory: Memory, clock: ManualClock) -> None:
    ids = await told(memory, clock, "a b c d e", "a b c d e!")
    await memory.consolidate("s")
    assert await memory.forget("s", ids[0])
    for each in ids:
        with pytest.raises(UserError, match="has nothing under"):
            await memory.retrieve("s", each)
    assert await memory.search("s", "a") == []


async def test_known_secrets_are_hidden_in_what_is_stored(memory: Memory) -> None:
    keep_secret("hunter2-of-the-memory")
    kept = await memory.store("s", "log in with hunter2-of-the-memory")
    assert (await memory.retrieve("s", kept))["text"] == f"log in with {HIDDEN}"


async def test_a_long_text_is_shown_in_part_and_given_whole(memory: Memory) -> None:
    kept = await memory.store("s", "long " * 1000)
    (found,) = await memory.search("s", "long")
    assert (len(found["text"]), found["cut"]) == (2000, True)
    assert len((await memory.retrieve("s", kept))["text"]) == 4999


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.store("", "a"), "memory: scope is empty"),
        (lambda m: m.store("s", "  "), "memory: the text is empty"),
        (lambda m: m.store("s", "x" * 65_537), "has 65,537 characters"),
        (lambda m: m.store("s", "a", "word"), "tags='word'"),
        (lambda m: m.search("s", "a", 0), "limit=0"),
        (lambda m: m.search("s", "a", 51), "limit=51"),
        (lambda m: m.consolidate("s", 0.1), "similarity=0.1"),
    ],
)
async def test_what_makes_no_sense_is_refused(memory: Memory, call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        await call(memory)  # type: ignore[operator]


async def test_a_full_scope_takes_what_it_knows_and_nothing_new(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sabot.specified.mcp.memory._MEMORIES_MOST", 2)
    for text in ("one", "two", "one"):
        await memory.store("s", text)
    with pytest.raises(UserError, match="memory 's' holds 2 texts"):
        await memory.store("s", "three")


async def test_a_file_is_used_by_several_at_once_and_outlives_them(tmp_path: Path) -> None:
    files = [MemoryFile(tmp_path), MemoryFile(tmp_path)]
    memories = [Memory(each) for each in files]
    await asyncio.gather(*(memories[n % 2].store("s", "shared", [f"t{n}"]) for n in range(10)))
    (kept,) = await memories[0].search("s", "shared")
    assert kept["tags"] == [f"t{n}" for n in range(10)]
    for file in files:
        file.close()
    again = MemoryFile(tmp_path)
    assert (await Memory(again).retrieve("s", kept["id"]))["text"] == "shared"
    again.close()
    assert (tmp_path / "memory.db").stat().st_mode & 0o777 == 0o600


async def test_a_file_without_an_index_of_words_gets_one(tmp_path: Path) -> None:
    file = MemoryFile(tmp_path)
    memory = Memory(file)
    old = await memory.store("s", "a b c d e")
    await memory.store("s", "a b c d e!")
    await memory.consolidate("s")
    file.close()
    with closing(sqlite3.connect(tmp_path / "memory.db")) as connection:
        for table in ("words", "places"):
            connection.execute(f"DROP TABLE {table}")
    again = MemoryFile(tmp_path)
    (found,) = await Memory(again).search("s", "d")
    assert found["id"] == (await Memory(again).retrieve("s", old))["id"]
    again.close()


async def test_in_keyed_state_an_agent_remembers_with_its_checkpoints(tmp_path: Path) -> None:
    async def ran(*texts: str) -> list[list[str]]:
        with (tmp_path / "notes.ndjson").open("a") as file:
            file.writelines(json.dumps({"text": each}) + "\n" for each in texts)
        app, found = App("notes", state=str(tmp_path / "state")), []

        @app.agent(NdjsonSource(tmp_path / "notes.ndjson"), name="notes", on_error="skip")
        async def notes(ctx: Any) -> None:
            memory = Memory(StateMemories(ctx.map_state("notes")))
            await memory.store("team", ctx.message["text"])
            found.append(sorted(each["text"] for each in await memory.search("team", "tea")))
            if ctx.message["text"] == "bad tea":
                raise ValueError("a call that fails leaves nothing in the memory")

        await app.run()
        return found

    assert await ran("Ada likes tea", "bad tea") == [["Ada likes tea"], ["Ada likes tea", "bad tea"]]
    assert await ran("tea is at five") == [["Ada likes tea", "tea is at five"]]


def test_a_file_that_is_no_memory_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_text("a diary, " * 1000)
    with pytest.raises(UserError, match=rf"memory {tmp_path}/memory.db: file is not a database"):
        MemoryFile(tmp_path)


async def test_the_four_tools_work_on_one_scope(memory: Memory) -> None:
    search, store, retrieve, consolidate = memory.tools("team")
    names = [each.name for each in (search, store, retrieve, consolidate)]
    assert names == ["cortex_search", "cortex_store", "cortex_retrieve", "cortex_consolidate"]
    kept = await store(**store.arguments('{"text": "Ada likes tea", "tags": ["ada"]}'))
    assert [each["id"] for each in await search(**search.arguments('{"query": "tea", "limit": 5}'))] == [kept["id"]]
    assert (await retrieve(id=kept["id"]))["text"] == "Ada likes tea"
    assert await consolidate() == {"before": 1, "after": 1}
    assert [str(each.effect) for each in (search, store, retrieve, consolidate)] == [
        "read",
        "idempotent",
        "read",
        "idempotent",
    ]


texts = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8).map(" ".join), max_size=12, unique=True)


@given(texts, st.sampled_from([0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0]))
def test_the_leaders_are_those_that_a_comparison_of_all_with_all_finds(texts: list[str], similarity: float) -> None:
    standing = {text: {"text": text, "stored_ms": n % 5} for n, text in enumerate(texts)}
    expected: dict[str, str] = {}
    alone: list[str] = []
    for each in sorted(standing, key=lambda each: (-standing[each]["stored_ms"], each)):
        mine = set(each.split())
        shares = [(len(mine & set(o.split())) / len(mine | set(o.split())), o) for o in alone]
        near = [(-share, -standing[o]["stored_ms"], o) for share, o in shares if share >= similarity]
        if near:
            expected[each] = min(near)[2]
        else:
            alone.append(each)
    assert _leaders(standing, similarity) == expected


@settings(max_examples=30)
@given(texts, st.randoms(use_true_random=False))
def test_consolidation_loses_no_text_and_does_not_depend_on_the_order(texts: list[str], random: object) -> None:
    async def consolidated(order: list[str]) -> list[tuple[str, list[str]]]:
        clock = ManualClock()
        memory = Memory(StateMemories(MapState(MemoryBackend(BackendConfig()), "n")), clock=clock)
        ids = [await memory.store("s", text) for text in order]
        await memory.consolidate("s", 0.6)
        return sorted({(m["text"], tuple(m["earlier"])) for m in [await memory.retrieve("s", each) for each in ids]})

    shuffled = list(texts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    result = asyncio.run(consolidated(texts))
    assert result == asyncio.run(consolidated(shuffled))
    assert sorted(text for whole, earlier in result for text in (whole, *earlier)) == sorted(texts)


some_words = st.lists(
    st.sampled_from(["a", "ab", "abc", "abcd", "ABC", "\u00e9", "e\u0301", "x_y", "x", '"', "1"]), min_size=1
)


@settings(max_examples=40)
@given(st.lists(some_words.map(" ".join), max_size=8), some_words.map(" ".join), st.data())
def test_found_are_those_memories_that_have_a_word_of_the_query_or_a_longer_one(
    texts: list[str], query: str, data: st.DataObject
) -> None:
    async def found() -> None:
        memory = Memory(StateMemories(MapState(MemoryBackend(BackendConfig()), "n")), clock=ManualClock())
        stored = {await memory.store("s", each) for each in texts}
        if stored and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(stored)))
            assert await memory.forget("s", gone)
            stored.remove(gone)
        expected = set()
        for each in stored:
            mine = set(words((await memory.retrieve("s", each))["text"]))
            if any(w in mine or (len(w) >= 3 and any(m.startswith(w) for m in mine)) for w in words(query)):
                expected.add(each)
        hits = await memory.search("s", query)
        assert {each["id"] for each in hits} == expected
        assert all(each["score"] > 0 for each in hits)

    def words(text: str) -> list[str]:
        return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())

    asyncio.run(found())
