"""The memory of agents: texts that are stored in scopes, and are found by their words. No model is used. A scope is a
name; its memories are seen only by calls with the same scope.

   memory = Memory(MemoryFile("memories"))                a file that agents and servers of several processes use at once
   memory = Memory(StateMemories(ctx.map_state("notes")))  keyed state of an agent: saved with its checkpoints, exactly once
   agent = Agent(engine, tools=[*memory.tools("support")])
   sabot mcp serve --memory memories --scope support       the same four tools for any MCP client

A store keeps the memories of each scope by their ids. An id is computed from the text, so the same text is one memory,
however often it is stored. `Memory.consolidate` merges memories of nearly the same words: the newest text stays, and
the older texts are kept with it as its earlier wordings. The id of an earlier wording still leads to the newest text.
So no text is lost.
"""

import hashlib
import math
import os
import re
import sqlite3
import threading
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypedDict

import msgspec

from sabot.base.config import checked_name, checked_text
from sabot.base.disk import own_folder, private
from sabot.base.os_errors import hint_of
from sabot.base.redaction import without_secrets
from sabot.base.sqlite_files import error_of, open_database
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.judging import labels_here, note_labels
from sabot.engine.calls.tools import Tool, tool
from sabot.engine.state import MapState
from sabot.errors import UNREADABLE, UserError, short_repr

StoredMemory: TypeAlias = dict[str, Any]
"""A record of a store: a dict with `text`, `tags`, `stored_ms` (milliseconds since 1970), and `also`, the earlier
wordings as lists of id, text and stored_ms. `labels`, if there are any, are those of the jobs that have stored it. The
record of an earlier wording has only `into`: the id of the memory that it is a part of.
"""

MemoryChange: TypeAlias = Callable[[dict[str, StoredMemory]], Mapping[str, StoredMemory | None]]
"""A function that gets records by id, and returns those to write by id; None stands for a record to remove."""

_TEXT_MOST = 65_536
_TAGS_MOST = 20
_MEMORIES_MOST = 10_000
_FOUND_MOST = 50
_FOUND_TEXT = 2_000  # the most characters of a text that a search returns
_WAIT_SECONDS = 10.0
_WORD = re.compile(r"\w+")
_PREFIX_LEAST = 3  # the least length at which a word of a query also finds longer words
_QUERY_MOST = 200  # different words of a query; further ones are ignored


class FoundMemory(TypedDict):
    """A memory that a search has found.

    - `stored_ms`: the time at which it was stored, in milliseconds since 1970.
    - `score`: how well it matches the query; higher is better. Only scores of the same search can be compared.
    - `cut`: True if `text` is only the beginning of the text; `Memory.retrieve` returns the whole text.
    """

    id: str
    text: str
    tags: list[str]
    stored_ms: int
    score: float
    cut: bool


class Remembered(TypedDict):
    """A memory with its whole text.

    - `stored_ms`: the time at which it was stored, in milliseconds since 1970.
    - `earlier`: older texts with nearly the same words that `Memory.consolidate` has merged into it, the newest first.
    """

    id: str
    text: str
    tags: list[str]
    stored_ms: int
    earlier: list[str]


class MemoryStore(Protocol):
    """An interface: a store of memories. Each memory has a scope, which is a name such as "support", and an id within
    this scope.
    """

    async def read(self, scope: str, ids: Collection[str] | None = None) -> dict[str, StoredMemory]:
        """Returns the records of a scope by id: those of `ids` that exist, or all if `ids` is None."""

    async def change(self, scope: str, ids: Collection[str] | None, change: MemoryChange) -> None:
        """Reads records as `read` does, calls `change` with them, and writes the records that `change` returns. No
        other change of the store is made in between. If `change` raises, nothing is written.
        """

    async def count(self, scope: str) -> int:
        """Returns the number of memories of the scope. Memories that were merged into others are not counted."""

    async def search(self, scope: str, query: str, limit: int) -> list[tuple[str, float]]:
        """Returns at most `limit` memories of the scope that have words of the query, as pairs of id and score, the
        best first.
        """


class _WordIndex:
    """A full-text index of memories, in a SQLite database with FTS5.

    Each indexed word begins with a hash of its scope. So a search finds only memories of its own scope, and BM25
    computes the frequency of a word within this scope. The words are normalized before they are indexed. The tokenizer
    `ascii` of FTS5 is used, because it leaves letters other than ASCII as they are.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute

    def create(self) -> None:
        """Creates the tables of the index."""
        self._execute(
            "CREATE TABLE places(number INTEGER PRIMARY KEY, scope TEXT, id TEXT, stored_ms INTEGER, UNIQUE (scope, id))"
        )
        self._execute("""CREATE VIRTUAL TABLE words USING fts5(text, tokenize = "ascii tokenchars '_'")""")

    def add(self, scope: str, id: str, record: StoredMemory) -> None:
        """Adds a memory to the index. It must not be in the index yet. Does nothing for a record that was merged into
        another memory (`into`).
        """
        if "into" in record:
            return
        texts = [record["text"], *record["tags"], *(text for _, text, _ in record["also"])]
        prefix = _prefix_of(scope)
        place = self._execute(
            "INSERT INTO places(scope, id, stored_ms) VALUES (?, ?, ?)", (scope, id, record["stored_ms"])
        )
        words = " ".join([prefix + word for word in _words(" ".join(texts))])
        self._execute("INSERT INTO words(rowid, text) VALUES (?, ?)", (place.lastrowid, words))

    def remove(self, scope: str, id: str) -> None:
        """Removes a memory, if it is in the index."""
        place = self._execute("SELECT number FROM places WHERE scope = ? AND id = ?", (scope, id)).fetchone()
        if place is not None:
            self._execute("DELETE FROM places WHERE number = ?", place)
            self._execute("DELETE FROM words WHERE rowid = ?", place)

    def count(self, scope: str) -> int:
        """Returns how many memories of the scope are indexed."""
        found: tuple[int] = self._execute("SELECT count(*) FROM places WHERE scope = ?", (scope,)).fetchone()
        return found[0]

    def search(self, scope: str, query: str, limit: int) -> list[tuple[str, float]]:
        """Returns pairs of id and score, as `MemoryStore.search` does.

        Each word of the query with at least three letters is searched twice: as a whole word, and as the beginning of a
        longer word. A memory that contains the word itself matches both searches, and so has a higher score than a
        memory with a longer word only.
        """
        prefix = _prefix_of(scope)
        wanted = []
        for word in list(dict.fromkeys(_words(query)))[:_QUERY_MOST]:
            wanted.append(f'"{prefix}{word}"')
            if len(word) >= _PREFIX_LEAST:
                wanted.append(f'"{prefix}{word}"*')
        if not wanted:
            return []
        return self._execute(
            "SELECT id, -bm25(words) AS score FROM words JOIN places ON number = words.rowid"
            " WHERE words MATCH ? AND scope = ? ORDER BY score DESC, stored_ms DESC, id LIMIT ?",
            (" OR ".join(wanted), scope, limit),
        ).fetchall()


def _prefix_of(scope: str) -> str:
    return hashlib.sha256(scope.encode()).hexdigest()[:8] + "_"


class StateMemories:
    """A MemoryStore in the keyed state of an agent. `state` is a state that `ctx.map_state(...)` has returned; the
    scope is used as its key. Memories become durable with the next checkpoint.
    """

    def __init__(self, state: MapState) -> None:
        self._state = state

    async def read(self, scope: str, ids: Collection[str] | None = None) -> dict[str, StoredMemory]:
        if ids is None:
            return await self._state.items(scope)
        found = {each: await self._state.get(scope, each) for each in ids}
        return {each: record for each, record in found.items() if record is not None}

    async def change(self, scope: str, ids: Collection[str] | None, change: MemoryChange) -> None:
        for each, record in change(await self.read(scope, ids)).items():
            await self._state.put(scope, each, record)

    async def count(self, scope: str) -> int:
        return sum("into" not in record for record in (await self.read(scope)).values())

    async def search(self, scope: str, query: str, limit: int) -> list[tuple[str, float]]:
        return await run_in_thread(self._search, scope, await self.read(scope), query, limit)

    @staticmethod
    def _search(scope: str, records: Mapping[str, StoredMemory], query: str, limit: int) -> list[tuple[str, float]]:
        with closing(sqlite3.connect(":memory:")) as connection:
            index = _WordIndex(connection)
            index.create()
            for each, record in records.items():
                index.add(scope, each, record)
            return index.search(scope, query, limit)


class MemoryFile:
    """A MemoryStore in the file `DIRECTORY/memory.db`, a SQLite database. Any number of processes can use it at the
    same time. A change is on the disk when the method returns (`synchronous=FULL`).

    Raises UserError if the directory cannot be created, or if the file is not such a database.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = Path(directory).absolute() / "memory.db"
        self._lock = threading.Lock()
        try:
            own_folder(self.path.parent)
            open(self.path, "ab", opener=private).close()
        except OSError as error:
            raise UserError(f"memory {self.path}: {error.strerror or error}", hint=hint_of(error)) from error
        with self._explained():
            self._connection = open_database(self.path, write_ahead=True, wait_s=_WAIT_SECONDS)
        self._index = _WordIndex(self._connection)
        try:
            with self._explained(), self._transaction():
                self._create()
        except BaseException:
            self._connection.close()
            raise

    async def read(self, scope: str, ids: Collection[str] | None = None) -> dict[str, StoredMemory]:
        return await run_in_thread(self._locked, lambda: self._read(scope, ids))

    async def change(self, scope: str, ids: Collection[str] | None, change: MemoryChange) -> None:
        await run_in_thread(self._locked, lambda: self._change(scope, ids, change))

    async def count(self, scope: str) -> int:
        return await run_in_thread(self._locked, lambda: self._index.count(scope))

    async def search(self, scope: str, query: str, limit: int) -> list[tuple[str, float]]:
        return await run_in_thread(self._locked, lambda: self._index.search(scope, query, limit))

    def close(self) -> None:
        """Closes the file. If a call is under way, first waits for its end, and blocks the calling thread meanwhile. A
        repeated `close` does nothing.
        """
        with self._lock:
            self._connection.close()

    def _locked(self, work: Callable[[], Any]) -> Any:
        with self._lock, self._explained():
            return work()

    def _create(self) -> None:
        """Creates the tables of the database if they are missing. If the file was written by an older version, which
        had no index of words, also adds all memories to a new index.
        """
        run = self._connection.execute
        run(
            "CREATE TABLE IF NOT EXISTS memories(scope TEXT, id TEXT, record BLOB NOT NULL, PRIMARY KEY (scope, id)) WITHOUT ROWID"
        )
        if run("SELECT 1 FROM sqlite_master WHERE name = 'places'").fetchone() is None:
            self._index.create()
            for scope, each, data in run("SELECT scope, id, record FROM memories"):
                self._index.add(scope, each, self._decoded(each, data))

    def _read(self, scope: str, ids: Collection[str] | None) -> dict[str, StoredMemory]:
        if ids is None:
            rows = self._connection.execute("SELECT id, record FROM memories WHERE scope = ?", (scope,)).fetchall()
        else:
            sql = "SELECT id, record FROM memories WHERE scope = ? AND id = ?"
            rows = [row for each in ids for row in self._connection.execute(sql, (scope, each))]
        return {each: self._decoded(each, data) for each, data in rows}

    def _decoded(self, each: str, data: bytes) -> StoredMemory:
        try:
            return msgspec.msgpack.decode(data, type=dict[str, Any])
        except UNREADABLE as error:
            raise UserError(
                f"memory {self.path}: {each} cannot be read: {error}", hint="was it written by us?"
            ) from error

    def _change(self, scope: str, ids: Collection[str] | None, change: MemoryChange) -> None:
        run = self._connection.execute
        with self._transaction():
            for each, record in change(self._read(scope, ids)).items():
                self._index.remove(scope, each)
                if record is None:
                    run("DELETE FROM memories WHERE scope = ? AND id = ?", (scope, each))
                    continue
                run("INSERT OR REPLACE INTO memories VALUES (?, ?, ?)", (scope, each, msgspec.msgpack.encode(record)))
                self._index.add(scope, each, record)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise error_of(error, f"memory {self.path}", wait_s=_WAIT_SECONDS) from error


class Memory:
    """The memories in a store. Each method has a scope, which is a name, and reads or changes only the memories of this
    scope.

    - `home`: the store, such as a MemoryFile.

    A scope can have at most 10,000 memories, and a text 65,536 characters. The known secrets of this process are hidden
    in the texts before they are stored. A text that a tool of a job stores keeps the labels of the job, beside a policy,
    and a job whose tool finds it gets them.
    """

    def __init__(self, home: MemoryStore, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = home
        self._clock = clock

    async def store(self, scope: str, text: str, tags: Collection[str] = ()) -> str:
        """Stores the text, and returns its id.

        If the same text is stored already, only adds the new tags to it, and returns its id. If the stored text was
        merged into a newer memory, adds the tags to the newer memory, and returns the id of that. A memory keeps at
        most 20 tags: the first in alphabetical order.

        Raises UserError if the text or a tag is empty or too long, if `tags` has more than 20 tags, or if the text is
        new and the scope has 10,000 memories already.
        """
        scope, text = _scope(scope), without_secrets(_text(text))
        words, marks, now_ms = _tags(tags), labels_here(), int(self._clock.time() * 1000)
        new: StoredMemory = {"text": text, "tags": [], "stored_ms": now_ms, "also": []}
        is_stored = False
        while not is_stored:
            id, record = await self._standing(scope, id_of(text))
            if record is None and await self._store.count(scope) >= _MEMORIES_MOST:
                raise UserError(
                    f"memory {scope!r} holds {_MEMORIES_MOST:,} texts, the most that it may", hint="forget some"
                )

            def add(
                found: dict[str, StoredMemory], id: str = id, before: StoredMemory | None = record
            ) -> Mapping[str, StoredMemory]:
                nonlocal is_stored
                is_stored = found.get(id) == before  # else another process has changed or merged it meanwhile
                record = before or new
                record = record | {"tags": sorted({*record["tags"], *words})[:_TAGS_MOST]}
                return {id: _labelled(record, marks)} if is_stored else {}

            await self._store.change(scope, [id], add)
        return id

    async def search(self, scope: str, query: str, limit: int = 10) -> list[FoundMemory]:
        """Returns at most `limit` memories that contain words of the query, with the highest BM25 score first. Of
        memories with the same score, the newest is first. The text of a memory, its tags and its earlier wordings are
        searched. `limit` may be from 1 to 50.

        Upper and lower case are not distinguished, and neither are different encodings of an accent. A word with at
        least three letters also finds longer words that begin with it, with about half the weight. Of the query, only
        the first 200 different words are used. Raises UserError if the query is empty or has more than 65,536
        characters.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _FOUND_MOST:
            raise UserError(f"memory: limit={short_repr(limit)}", hint=f"from 1 to {_FOUND_MOST}")
        scope = _scope(scope)
        scores = await self._store.search(scope, _text(query), limit)
        standing = _standing_in(await self._store.read(scope, [each for each, _ in scores]))
        note_labels(frozenset().union(*(record.get("labels", ()) for record in standing.values())))
        return [_found(each, standing[each], score) for each, score in scores if each in standing]

    async def retrieve(self, scope: str, id: str) -> Remembered:
        """Returns the memory with this id. If it was merged into another memory by `consolidate`, returns the other
        one. Raises UserError if there is none.
        """
        scope = _scope(scope)
        standing, record = await self._standing(scope, checked_text(id, "memory: id"))
        if record is None:
            raise UserError(f"memory {scope!r} has nothing under {id[:64]!r}", hint="search gives the ids")
        note_labels(frozenset(record.get("labels", ())))
        earlier = [text for _, text, _ in record["also"]]
        return Remembered(
            id=standing, text=record["text"], tags=record["tags"], stored_ms=record["stored_ms"], earlier=earlier
        )

    async def consolidate(self, scope: str, similarity: float = 0.8) -> dict[str, int]:
        """Merges memories that have nearly the same words. The newest text remains. Each older text is merged into the
        text that is most similar to it, and stored there as an earlier wording. Returns how many memories the scope had
        before and has now: `{"before": …, "after": …}`.

        `similarity`: how similar two texts must be to be merged, from 0.5 to 1. It is the number of words that both
        texts have, divided by the number of words that at least one of them has (Jaccard).
        """
        if isinstance(similarity, bool) or not isinstance(similarity, int | float) or not 0.5 <= similarity <= 1:
            raise UserError(f"memory: similarity={short_repr(similarity)}", hint="from 0.5 to 1")
        scope = _scope(scope)
        standing = _standing_in(await self._store.read(scope))
        leaders = await run_in_thread(_leaders, standing, similarity)
        wanted = {*leaders, *leaders.values()}
        await self._store.change(scope, wanted, lambda found: _merged(_standing_in(found), leaders))
        return {"before": len(standing), "after": len(standing) - len(leaders)}

    async def forget(self, scope: str, id: str) -> bool:
        """Removes the memory with this id, together with the older texts that were merged into it. If the memory was
        itself merged into another one, removes the other one. Returns True if a memory was removed, and False if there
        is none with this id.
        """
        scope, id, is_removed = _scope(scope), checked_text(id, "memory: id"), False
        while not is_removed:
            standing, record = await self._standing(scope, id)
            if record is None:
                return False

            def remove(
                found: dict[str, StoredMemory], standing: str = standing, record: StoredMemory = record
            ) -> Mapping[str, None]:
                nonlocal is_removed
                is_removed = found.get(standing) == record  # else another process has changed or merged it meanwhile
                return dict.fromkeys(found) if is_removed else {}

            await self._store.change(scope, [standing, *(each for each, _, _ in record["also"])], remove)
        return True

    def tools(self, scope: str = "default") -> list[Tool]:
        """Returns the tools `cortex_search`, `cortex_store`, `cortex_retrieve` and `cortex_consolidate`. With them a
        model can search, store, read and merge the memories of this scope.
        """
        scope = _scope(scope)

        @tool(effect="read")
        async def cortex_search(query: str, limit: int = 10) -> list[FoundMemory]:
            """Search the stored texts by words. The best matches come first.

            Args:
                query: Words to look for.
                limit: The most results, from 1 to 50.
            """
            return await self.search(scope, query, limit)

        @tool(effect="idempotent")
        async def cortex_store(text: str, tags: list[str] | None = None) -> dict[str, str]:
            """Store a text so that it can be found later. Returns its id. Storing the same text again has no effect.

            Args:
                text: What to remember, in words by which it can be found again.
                tags: Further words by which it can be found.
            """
            return {"id": await self.store(scope, text, tags or ())}

        @tool(effect="read")
        async def cortex_retrieve(id: str) -> Remembered:
            """Get one stored text in full, by its id.

            Args:
                id: An id that cortex_search or cortex_store has returned.
            """
            return await self.retrieve(scope, id)

        @tool(effect="idempotent")
        async def cortex_consolidate(similarity: float = 0.8) -> dict[str, int]:
            """Merge stored texts that have nearly the same words. The newest text remains; the older ones are kept as
            its earlier wordings.

            Args:
                similarity: The share of words that two texts must have in common, from 0.5 to 1.
            """
            return await self.consolidate(scope, similarity)

        return [cortex_search, cortex_store, cortex_retrieve, cortex_consolidate]

    async def _standing(self, scope: str, id: str) -> tuple[str, StoredMemory | None]:
        """Finds a memory by its id, and returns its id and its record. If the memory was merged into another one,
        returns the id and the record of the other one. The record is None if there is no such memory.
        """
        while True:
            record = (await self._store.read(scope, [id])).get(id)
            if record is None or "into" not in record:
                return id, record
            id = record["into"]


def id_of(text: str) -> str:
    """Returns the id of a text: 16 hexadecimal digits of its digest."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _scope(scope: str) -> str:
    return checked_name(scope, "memory: scope")


def _text(text: str) -> str:
    text = checked_text(text, "memory: text").strip()
    if not text:
        raise UserError("memory: the text is empty")
    if len(text) > _TEXT_MOST:
        raise UserError(
            f"memory: the text has {len(text):,} characters", hint=f"{_TEXT_MOST:,} are the most: store parts of it"
        )
    return text


def _tags(tags: Collection[str]) -> list[str]:
    if isinstance(tags, str) or len(tags) > _TAGS_MOST:
        raise UserError(f"memory: tags={short_repr(tags)}", hint=f"a list of at most {_TAGS_MOST} words")
    return [checked_name(each, "memory: tag", longest=64) for each in tags]


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _standing_in(found: Mapping[str, StoredMemory]) -> dict[str, StoredMemory]:
    return {each: record for each, record in found.items() if "into" not in record}


def _labelled(record: StoredMemory, labels: Collection[str]) -> StoredMemory:
    """Returns the record with these labels too, which readers of the memory get; the record itself if they are none."""
    return record | {"labels": sorted({*record.get("labels", ()), *labels})} if labels else record


def _found(each: str, record: StoredMemory, score: float) -> FoundMemory:
    text = record["text"]
    return FoundMemory(
        id=each,
        text=text[:_FOUND_TEXT],
        tags=record["tags"],
        stored_ms=record["stored_ms"],
        score=float(f"{score:.4g}"),
        cut=len(text) > _FOUND_TEXT,
    )


def _leaders(standing: Mapping[str, StoredMemory], similarity: float) -> dict[str, str]:
    """Decides which memories are merged. Returns a dict. Each key is the id of a memory that has to be merged; the
    value is the id of the memory into which it is merged.

    Comparing all pairs would take too long. So the words of each memory are sorted, the rarest first. Only memories
    that share one of their first words in this order can be similar enough, and only these pairs are compared. (Prefix
    filtering; Chaudhuri, Ganti and Kaushik, 2006.)
    """
    sets = {each: frozenset(_words(record["text"])) for each, record in standing.items()}
    common = Counter(word for words in sets.values() for word in words)
    by_word: defaultdict[str, list[str]] = defaultdict(list)
    leaders: dict[str, str] = {}
    for each in sorted(standing, key=lambda each: (-standing[each]["stored_ms"], each)):
        words = sets[each]
        first = sorted(words, key=lambda word: (common[word], word))[
            : len(words) - math.ceil(similarity * len(words) - 1e-9) + 1
        ]
        alike = {other: _jaccard(words, sets[other]) for other in {other for word in first for other in by_word[word]}}
        near = {other: share for other, share in alike.items() if share >= similarity}
        if near:
            leaders[each] = min(near, key=lambda other: (-near[other], -standing[other]["stored_ms"], other))
            continue
        for word in first:
            by_word[word].append(each)
    return leaders


def _jaccard(some: frozenset[str], others: frozenset[str]) -> float:
    shared = len(some & others)
    return shared / (len(some) + len(others) - shared)


def _merged(standing: Mapping[str, StoredMemory], leaders: Mapping[str, str]) -> dict[str, StoredMemory]:
    changed: dict[str, StoredMemory] = {}
    for each, leader in leaders.items():
        if each not in standing or leader not in standing:  # another process has removed or merged it meanwhile
            continue
        part = standing[each]
        whole = changed.get(leader, standing[leader])
        also = [*whole["also"], [each, part["text"], part["stored_ms"]], *part["also"]]
        also.sort(key=lambda entry: (-entry[2], entry[0]))
        tags = sorted({*whole["tags"], *part["tags"]})[:_TAGS_MOST]
        changed[leader] = _labelled(whole | {"also": also, "tags": tags}, part.get("labels", ()))
        for earlier in (each, *(earlier for earlier, _, _ in part["also"])):
            changed[earlier] = {"into": leader}
    return changed
