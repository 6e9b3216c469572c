"""The screens of the dead letters of an app: a list with counts, one dead letter with its record, and the redrive.

Dead letters are read and sent in threads, because brokers, disks and databases may be slow.
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from sabot.base.redaction import HIDDEN, holds_secret, redacted_url, scrubbed
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import text_or_hex
from sabot.engine.letters.form import DeadLetter
from sabot.engine.letters.opening import LetterPlace, letter_places, opened_letters, redrive, steps_dropping_late
from sabot.engine.letters.pages import (
    MOST_READ,
    LetterFilter,
    LetterPage,
    letter_after,
    letter_facts,
    letters_page,
    newest_page,
    origin_of,
    step_of,
)
from sabot.engine.letters.places import Letters, LetterTime
from sabot.engine.letters.redrive import Redriven, Selection
from sabot.errors import UNREADABLE, SabotError, UserError
from sabot.web.payloads import Payloads, ShownPayload
from sabot.web.screen import Download, Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp
from sabot.web.texts import counted

if TYPE_CHECKING:
    from sabot.app import App

T = TypeVar("T")

_MOST_ROWS = 10_000  # of a table as CSV or JSON
_MOST_SENT = 100_000  # by one form
_FILTERS = ("place", "q", "reason", "step", "all", "order")
_OLDEST = "oldest"  # the order of another page than the usual one
_REMEDIES = {
    "to": "give a target topic",
    "create": "sabot topics create makes it, or give another target topic",
    "now": "choose to give them the current time",
}
_NUMBER = re.compile(r"-?\d{1,19}", re.ASCII)
_PLACE = re.compile(r"(\d{1,19}):(\d{1,19})", re.ASCII)


@dataclass(frozen=True)
class ShownLetter:
    """A dead letter with its record, as far as it may be shown. Times are seconds since 1970. `at`: the time of the record, or None.
    `before`: the name and the place of the dead letter that the record was before it was sent back, or None. `before_in`: the place of
    that dead letter in addresses, or "" if the app does not write to it any more. `after`: the place of the dead letter that the record
    became after it was sent back, in words and in addresses, and its number there; None if none is known. `traceback`: of the step's
    error, or "". `nbytes`: the size of the payload, or None for a null payload. `asks_target`: True if it cannot go back to a topic
    that it came from: a row of a step, or a record of a file.
    """

    place: str
    written: float
    at: float | None
    origin: str
    step: str
    agent: str
    error: str
    message: str
    attempts: str
    version: str
    redriven: bool
    nbytes: int | None
    asks_target: bool
    key: str
    headers: list[tuple[str, str]]
    payload: ShownPayload
    before: tuple[str, str] | None
    before_in: str
    after: tuple[str, str, str] | None
    traceback: str


def _record_of(
    letter: DeadLetter,
    payloads: Payloads,
    places: Sequence[LetterPlace],
    before: tuple[str, str] | None,
    after: tuple[str, str, str] | None = None,
) -> ShownLetter:
    facts = {name: scrubbed(value) for name, value in letter.facts.items()}
    at = letter.number("timestamp")
    named = [_key(each) for each in places if before is not None and before[0] == _name_of(each)]
    return ShownLetter(
        place=letter.place,
        written=letter.timestamp / 1000,
        at=None if at is None else at / 1000,
        origin=scrubbed(origin_of(letter)),
        step=scrubbed(step_of(letter)),
        agent=facts.get("agent", ""),
        error=facts.get("error", "?"),
        message=facts.get("message", ""),
        attempts=facts.get("attempts", ""),
        version=facts.get("version", ""),
        redriven=letter.redriven,
        nbytes=None if letter.payload is None else len(letter.payload),
        asks_target="step" in letter.facts or "/" in letter.facts.get("topic", "/"),
        key=payloads.cell(text_or_hex(letter.key), "key"),
        headers=[(scrubbed(name), payloads.cell(_shown_header(name, value), name)) for name, value in letter.headers],
        payload=payloads.shown(_value_of(letter.payload)),
        before=before and (scrubbed(before[0]), scrubbed(before[1])),
        before_in=named[0] if named else "",
        after=after,
        traceback=facts.get("traceback", ""),
    )


def _shown_header(name: str, value: bytes | None) -> str:
    return HIDDEN if holds_secret(name, value) else text_or_hex(value)


def _value_of(payload: bytes | None) -> Any:
    """Returns the value of a JSON payload, or another payload as text or hexadecimal digits."""
    try:
        return json.loads(payload or b"null")
    except UNREADABLE:
        return text_or_hex(payload)


class LetterScreens:
    """The facts of the screens of dead letters, and the redrive. Used by the thread of the server."""

    def __init__(self, app: ShownApp) -> None:
        self._live = app.live
        self._log = app.log
        self._payloads = app.payloads
        self._sending = asyncio.Lock()  # a second redrive of a topic would end the first one

    def group(self) -> ScreenGroup:
        """Returns both screens and their actions; none if the app does not run in this process, or writes no dead letters."""
        if self._live is None or not _places(self._live):
            return ScreenGroup()
        screens = {
            "letters": Screen("Dead letters", "/letters", more=self.list_facts, rows=self.rows, role="act"),
            "letter": Screen(
                "Dead letter", "/letter", more=self.letter_page, file=self.payload, role="act", listed=False
            ),
        }
        return ScreenGroup(screens, {"redrive": self.redrive_one, "redrive-all": self.redrive_all})

    @property
    def _app(self) -> "App":
        assert self._live is not None  # without an app there are no such screens
        return self._live

    # -- what is shown ------------------------------------------------------------------------------------------------

    async def list_facts(self, query: Query) -> dict[str, Any]:
        """Returns the facts of the list. A place that cannot be read is a fact too, because a file begins with its first dead letter."""
        places = _places(self._app)
        place = _chosen(places, query)
        page, problem = LetterPage([], None), ""
        try:
            page = await self._read(place, lambda dead: _page(dead, query))
        except SabotError as error:
            problem = scrubbed(str(error))
        letters = [_record_of(each, self._payloads, places, each.before) for each in page.letters]
        filters = {name: query[name] for name in _FILTERS if query.get(name)} | {"place": _key(place)}
        following = page.following and urlencode(filters | {"after": ":".join(map(str, page.following))})
        counts = sorted(page.counts.items(), key=lambda each: -each[1])
        return {
            "places": {_key(each): _words(each) for each in places},
            "place": _key(place),
            "problem": problem,
            "letters": letters,
            "found": page.found,
            "complete": page.complete,
            "most_read": MOST_READ,
            "counts": [(scrubbed(reason), reason, scrubbed(step), step, count) for (reason, step), count in counts],
            "asks_target": any(each.asks_target for each in letters),
            "filters": filters,
            "oldest_first": _oldest(query),
            "other_order": urlencode({**filters, "order": "" if _oldest(query) else _OLDEST}),
            "following": following,
            "at": SYSTEM_CLOCK.time(),
            **self._redrive_facts(place),
        }

    async def rows(self, query: Query) -> Rows:
        """Returns the selected dead letters for CSV and JSON, without their records: those of all pages."""
        place = _chosen(_places(self._app), query)
        page = await self._read(place, lambda dead: _page(dead, query, _MOST_ROWS))
        names = (
            "topic",
            "partition",
            "offset",
            "timestamp",
            "agent",
            "step",
            "error",
            "message",
            "attempts",
            "version",
            "traceback",
        )
        found = []
        for each in page.letters:
            facts = dict.fromkeys(names) | letter_facts(each)
            found.append({name: scrubbed(value) if isinstance(value, str) else value for name, value in facts.items()})
        return found

    async def letter_page(self, query: Query) -> dict[str, Any]:
        """Returns the facts of one dead letter. Raises UserError if there is none at this place."""
        place, letter, before = await self._found(query)
        after = await self._after(place, letter) if letter.redriven else None
        return {
            "place": _key(place),
            "words": _words(place),
            "letter": _record_of(letter, self._payloads, _places(self._app), before, after),
            "most_read": MOST_READ,
            "downloads": self._payloads.mode == "all",
            "logged": bool(self._log.lines(search=scrubbed(letter.facts.get("error", "?")))),
            "at": SYSTEM_CLOCK.time(),
            **self._redrive_facts(place),
        }

    async def payload(self, query: Query) -> Download:
        """Returns the payload of one dead letter as it is. Raises UserError if payloads are not shown whole."""
        if self._payloads.mode != "all":
            raise UserError("payloads are not shown whole", hint="start the console with --web-payloads all")
        _, letter, _ = await self._found(query)
        return Download(f"letter-{letter.partition}-{letter.offset}.bin", letter.payload or b"")

    def _redrive_facts(self, place: LetterPlace) -> dict[str, Any]:
        """Returns the reason why dead letters of a place cannot be sent back, or "", and the steps that would drop them as late."""
        late = [] if place.unread else steps_dropping_late(self._app.spec.ends)
        broker = redacted_url(place.broker or self._app.broker)
        return {"refusal": scrubbed(place.unread), "late": [scrubbed(each) for each in late], "broker": broker}

    # -- what is done -------------------------------------------------------------------------------------------------

    async def redrive_one(self, form: Mapping[str, str]) -> str:
        """Sends the dead letter of the form back, to the topic of the form if it names one."""
        return await self._redrive(form, [_place_of(form.get("letter", ""))], None)

    async def redrive_all(self, form: Mapping[str, str]) -> str:
        """Sends all dead letters back that the filters of the form select, at most 100,000."""
        return await self._redrive(form, None, _MOST_SENT)

    async def _redrive(self, form: Mapping[str, str], only: list[tuple[int, int]] | None, limit: int | None) -> str:
        place = _chosen(_places(self._app), form)
        selection = Selection(form.get("to", "").strip(), only, _filter(form).selects, limit, bool(form.get("now")))
        async with self._sending:
            return _said(await self._read(place, lambda dead: redrive(dead, selection), sends=True))

    # -- places -------------------------------------------------------------------------------------------------------

    async def _found(self, query: Query) -> tuple[LetterPlace, DeadLetter, tuple[str, str] | None]:
        """Returns the place and the dead letter of a query, and the dead letter that its record was before."""
        place, at = _chosen(_places(self._app), query), _place_of(query.get("at", ""))

        def work(dead: Letters) -> tuple[DeadLetter, tuple[str, str] | None]:
            letter = dead.find(*at)
            return letter, dead.before(letter)

        return place, *await self._read(place, work)

    async def _after(self, place: LetterPlace, letter: DeadLetter) -> tuple[str, str, str] | None:
        """Returns the dead letter that a record became after it was sent back, as `ShownLetter.after`."""
        places = _places(self._app)
        for each in sorted(places, key=lambda other: other != place):
            try:
                found = await self._read(each, lambda dead: letter_after(dead, letter, _name_of(place)))
            except UserError:  # nothing was written there yet, or it cannot be read back
                continue
            if found is not None:
                return _words(each), _key(each), found.place
        return None

    async def _read(self, place: LetterPlace, use: Callable[[Letters], T], *, sends: bool = False) -> T:
        """Opens the dead letters of a place and uses them, in a thread."""
        broker, kafka = place.broker or self._app.broker, {} if place.broker else self._app.settings.kafka

        def work() -> T:
            with opened_letters(place, broker, kafka, sends=sends) as dead:
                return use(dead)

        return await run_in_thread(work)


def _places(app: "App") -> list[LetterPlace]:
    return letter_places(app.spec.ends, app.spec.agent_specs)


def _key(place: LetterPlace) -> str:
    """Returns the name of a place in addresses and forms, without passwords."""
    return "/".join(filter(None, (redacted_url(place.name), place.table, redacted_url(place.broker))))


def _name_of(place: LetterPlace) -> str:
    """Returns the name of a place as records that were sent back have it."""
    return (place.table or place.name).rpartition("/")[2]


def _words(place: LetterPlace) -> str:
    name = scrubbed(redacted_url(place.name))
    if place.table:
        return f"table {place.table} of {name}"
    return f"{'file' if place.is_file else 'topic'} {name}"


def _chosen(places: list[LetterPlace], query: Mapping[str, str]) -> LetterPlace:
    """Returns the place that a query names, or the first one. Raises UserError for a name that is none."""
    wanted = query.get("place", "")
    for each in places:
        if wanted in ("", _key(each)):
            return each
    raise UserError(f"the app writes no dead letters to {wanted!r}")


def _filter(query: Mapping[str, str]) -> LetterFilter:
    return LetterFilter(reason=query.get("reason", ""), step=query.get("step", ""), text=query.get("q", ""))


def _page(dead: Letters, query: Query, most: int = 50) -> LetterPage:
    """Returns the page of a query. Raises UserError."""
    chosen, after = _filter(query), query.get("after", "")
    if _oldest(query):
        return letters_page(
            dead, chosen, after=_place_of(after) if after else (-1, -1), redriven=_all(query), most=most
        )
    return newest_page(dead, chosen, after=_time_of(after) if after else None, redriven=_all(query), most=most)


def _oldest(query: Query) -> bool:
    return query.get("order") == _OLDEST


def _all(query: Mapping[str, str]) -> bool:
    return bool(query.get("all"))


def _place_of(text: str) -> tuple[int, int]:
    match = _PLACE.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is not the place of a dead letter", hint="it is a partition and an offset, as 0:17")
    return int(match[1]), int(match[2])


def _time_of(text: str) -> LetterTime:
    time, _, place = text.partition(":")
    if not _NUMBER.fullmatch(time):
        raise UserError(f"{text!r} is not the place of a dead letter in the order of time")
    return int(time), *_place_of(place)


def _said(done: Redriven) -> str:
    """Returns the result of a redrive in words. Raises UserError if nothing was sent, and something was left."""
    went = ", ".join(f"{count:,} to {topic}" for topic, count in done.topics.items())
    left = "; ".join(f"{count:,} stay: {why} ({_REMEDIES[done.remedies[why]]})" for why, count in done.left.items())
    if left and not done.letters:
        raise UserError(f"No dead letter is sent back. {left}")
    before = f"; {done.already:,} were sent back before" if done.already else ""
    more = " There may be more: repeat the redrive." if done.letters == _MOST_SENT else ""
    sent = f"{counted(done.letters, 'dead letter')} {'is' if done.letters == 1 else 'are'}"
    said = f"{sent} sent back{': ' + went if went else ''}{before}."
    return f"{said}{more}{' ' + left if left else ''}"
