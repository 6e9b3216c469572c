"""The screen of the state in a checkpoint: its owners, the rows of one, and the difference of two checkpoints."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlencode

from sabot.base.redaction import scrubbed
from sabot.base.threads import run_in_thread
from sabot.engine.checkpoint.inspection import AppCheckpoints, savepoint_records
from sabot.engine.checkpoint.state_reads import (
    MOST_DIFFERENCES,
    KeyChange,
    OwnersOfState,
    StateDifference,
    all_rows_in,
    difference_in,
    owners_in,
    rows_in,
)
from sabot.errors import SabotError, UserError
from sabot.web.payloads import ShownPayload, shortened
from sabot.web.reader import ConsoleReader
from sabot.web.screen import Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp

T = TypeVar("T")

_MOST_ROWS = 20_000  # of CSV and JSON
_MOST_CHARS = 100_000  # of a value in CSV and JSON
_LOOKS = 5  # for the newest checkpoint
# Columns that Sabot adds. They say which row it is, and have no values of the user's rows.
_OWN_COLUMNS = {
    "agent": {"namespace"},
    "timers": {"name", "at"},
    "window": {"window_start", "window_end"},
    "window top_n": {"window_start", "window_end"},
    **{kind: {"side"} for kind in ("join", "interval join", "window join", "as-of join", "lookup")},
}


@dataclass(frozen=True)
class _Source:
    """A checkpoint or savepoint that the page can show. `name`: its word in an address."""

    name: str
    label: str
    place: str
    checkpoint: int


class StateScreens:
    """The facts of the screen of state. State is read in processes of `reader`. Used by the thread of the server."""

    def __init__(self, app: ShownApp, reader: ConsoleReader) -> None:
        self._app = app.checkpoints
        self._payloads = app.payloads
        self._reader = reader

    def group(self) -> ScreenGroup:
        """Returns the screen; none if the app keeps no checkpoints."""
        if self._app is None:
            return ScreenGroup()
        return ScreenGroup({"state": Screen("State", "/state", more=self.facts, rows=self.rows, role="act")})

    async def facts(self, query: Query) -> dict[str, Any]:
        """Returns the facts of the page. In place of a checkpoint that is not there any more it shows the newest, and says so."""
        of = query.get("of", "")
        try:
            return await self._of(of, lambda *read: self._page_facts(query, *read))
        except UserError:
            if not _has_gone(of, await self._sources()):
                raise
        facts = await self._of("", lambda *read: self._page_facts(query, *read))
        return facts | {"gone": [of, *facts["gone"]]}

    async def _page_facts(
        self, query: Query, sources: list[_Source], of: _Source | None, read: OwnersOfState | None
    ) -> dict[str, Any]:
        """Returns the facts of the page for one source. Raises UserError if it goes while it is read."""
        step, key, beside = query.get("step", ""), query.get("q", ""), query.get("beside", "")
        facts: dict[str, Any] = {
            "sources": sources,
            "step": step,
            "read": None,
            "most_keys": MOST_DIFFERENCES,
            "most_rows": _MOST_ROWS,
            "columns": [],
            "lines": None,
            "changes": None,
            "following": "",
            "hidden": [],
            "older": None,
            "gone": [],
            "oldest": next((each for each in reversed(sources) if each.name.isdigit()), None),
            "problem": "" if sources else "The app has no checkpoint yet.",
        }
        if of is None or read is None:
            return facts
        facts |= {"of": of, "read": read}
        if not step:
            return facts
        try:
            if _has_gone(beside, sources):
                facts["gone"].append(beside)
            elif beside:
                older = facts["older"] = _named(sources, beside)
                return facts | self._difference_facts(await self._difference(of, older, step), _kind(read, step))
            page = await self._reader.read(
                rows_in, of.place, of.checkpoint, step, key or None, "" if key else query.get("at", "")
            )
        except UserError as error:
            if _has_gone(of.name, await self._sources()):
                raise
            return facts | {"problem": scrubbed(str(error))}
        kind = _kind(read, step)
        # The id, not "newest": the next page is one of the same checkpoint.
        following = {"of": of.name or str(read.checkpoint), "step": step, "at": page.following}
        return facts | {
            "columns": page.columns,
            "lines": [self._short_cells(row, page.columns, kind) for row in page.rows],
            "hidden": self._hidden(page.columns, kind),
            "following": urlencode(following) if page.following else "",
        }

    async def rows(self, query: Query) -> Rows:
        """Returns the rows of the state for CSV and JSON, with the values that the page may show: at most 20,000, of all pages. Without a
        step, the owners of the state. Raises UserError.
        """
        return await self._of(query.get("of", ""), lambda *read: self._rows_of(query, *read))

    async def _rows_of(
        self, query: Query, sources: list[_Source], of: _Source | None, read: OwnersOfState | None
    ) -> Rows:
        step = query.get("step", "")
        if of is None or read is None:
            raise UserError("the app has no checkpoint yet", hint="look again after the first one")
        if not step:
            return [asdict(each) for each in read.owners]
        kind, key = _kind(read, step), query.get("q", "")
        if query.get("beside"):
            found = await self._difference(of, _named(sources, query["beside"]), step)
            return [self._flat(each, found, kind) for each in found.changes]
        if key:
            page = await self._reader.read(rows_in, of.place, of.checkpoint, step, key, "")
            return self._flat_rows(page.rows, page.columns, kind)
        rows: Rows = []
        async with aclosing(self._reader.pages(all_rows_in, of.place, of.checkpoint, step)) as pages:
            async for page in pages:
                rows += self._flat_rows(page.rows, page.columns, kind)
                if len(rows) >= _MOST_ROWS:
                    break
        return rows[:_MOST_ROWS]

    async def _of(
        self, name: str, use: Callable[[list[_Source], _Source | None, OwnersOfState | None], Awaitable[T]]
    ) -> T:
        """Returns the result of `use` for all sources, the one of this name ("" is the newest) and its owners; both are None if there is no
        checkpoint. If the newest one goes while it is read, which happens with a short interval, the newest of then is read.

        Raises UserError, also for a checkpoint that is not there.
        """
        for looks_left in reversed(range(_LOOKS)):
            if not (sources := await self._sources()):
                break
            of = _named(sources, name)
            try:
                return await use(sources, of, await self._reader.read(owners_in, of.place, of.checkpoint))
            except UserError:
                if name or not looks_left or not _has_gone(of.name, await self._sources()):
                    raise
        return await use([], None, None)

    async def _sources(self) -> list[_Source]:
        assert self._app is not None  # else there is no such screen
        return await run_in_thread(_sources_of, self._app)

    async def _difference(self, of: _Source, older: _Source, step: str) -> StateDifference:
        return await self._reader.read(difference_in, of.place, of.checkpoint, older.place, older.checkpoint, step)

    def _difference_facts(self, found: StateDifference, kind: str) -> dict[str, Any]:
        values = [name for name in found.columns if name not in found.keys]
        return {
            "difference": found,
            "columns": found.keys,
            "hidden": self._hidden(found.columns, kind),
            "changes": [
                (
                    each.kind,
                    self._short_cells(each.key, found.keys, kind),
                    *([self._short_cells(row, values, kind) for row in rows] for rows in (each.before, each.after)),
                )
                for each in found.changes
            ],
            "values": values,
        }

    def _cells(self, row: dict[str, Any], columns: Iterable[str], kind: str) -> list[ShownPayload]:
        return [self._cell(row.get(name), name, kind) for name in columns]

    def _short_cells(self, row: dict[str, Any], columns: Iterable[str], kind: str) -> list[ShownPayload]:
        """Returns the cells for a page, which has binary values, written as base64, shortened."""
        return [
            replace(each, fields=[(name, shortened(text)) for name, text in each.fields])
            for each in self._cells(row, columns, kind)
        ]

    def _cell(self, value: Any, column: str, kind: str) -> ShownPayload:
        if column in _OWN_COLUMNS.get(kind, ()):
            return ShownPayload([("", scrubbed(str(value)))])
        return self._payloads.shown(value, column, most=_MOST_CHARS)

    def _hidden(self, columns: Sequence[str], kind: str) -> list[str]:
        """Returns the columns whose values are hidden, at least in part."""
        own = _OWN_COLUMNS.get(kind, ())
        return [name for name in columns if name not in own and not self._payloads.shows(name)]

    def _flat_rows(self, rows: Rows, columns: Sequence[str], kind: str) -> Rows:
        cells = (zip(columns, self._cells(row, columns, kind), strict=True) for row in rows)
        return [{name: _text(cell) for name, cell in each} for each in cells]

    def _flat(self, change: KeyChange, found: StateDifference, kind: str) -> dict[str, str]:
        values = [name for name in found.columns if name not in found.keys]
        key = dict(zip(found.keys, map(_text, self._cells(change.key, found.keys, kind)), strict=True))
        sides = {"before": change.before, "after": change.after}
        rows = {
            side: "; ".join(
                ", ".join(f"{name}={text}" for name, text in row.items())
                for row in self._flat_rows(found_rows, values, kind)
            )
            for side, found_rows in sides.items()
        }
        return {"change": change.kind, **key, **rows}


def _sources_of(app: AppCheckpoints) -> list[_Source]:
    """Returns the kept checkpoints, the newest first, and the savepoints. Blocks. Raises UserError if they cannot be read."""
    if isinstance(app.location, tuple):
        raise UserError(
            "the checkpoints are in a file system that only the program can open",
            hint="App.state() reads them in the program; or give checkpoint_dir= as a path or a URI",
        )
    place = str(app.location)
    found = [_Source(str(each), f"checkpoint {each}", place, each) for each in reversed(app.storage.ids())]
    try:
        savepoints = savepoint_records(app)
    except SabotError as error:
        raise UserError(error.message, hint=error.hint) from error
    return found + [
        _Source(each.name, f"savepoint of checkpoint {each.checkpoint} in {each.place}", location, each.checkpoint)
        for location, each in savepoints.items()
        if not each.problem
    ]


def _named(sources: Sequence[_Source], name: str) -> _Source:
    """Returns the source of this name, or the newest one for "". Raises UserError if there is none."""
    found = [each for each in sources if each.name == name or not name]
    if not found:
        raise UserError("there is no such checkpoint any more", hint="choose another one")
    return found[0]


def _has_gone(name: str, sources: Sequence[_Source]) -> bool:
    """Returns True if a name is that of a checkpoint that is not there."""
    return name.isascii() and name.isdigit() and len(name) < 20 and all(each.name != name for each in sources)


def _kind(read: OwnersOfState, step: str) -> str:
    return next((each.kind for each in read.owners if each.name == step), "")


def _text(cell: ShownPayload) -> str:
    return ", ".join(f"{name}={text}" if name else text for name, text in cell.fields)
