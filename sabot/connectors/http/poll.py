"""`PollSource`: asks a JSON API for its rows again and again, page by page.

A place is a page, and how many of its rows were taken. So a page may get more rows at its end, and a full one is followed by the next;
rows that were taken must stay where they are.
"""

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit

import msgspec

from sabot._cython.arrow.batch import Batch
from sabot.base.backoff import Backoff
from sabot.base.checks import TEXT, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.redaction import has_password
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import build_records
from sabot.connectors.base import Positions, Source
from sabot.connectors.http.client import HeaderValue, HttpClient, WebAnswer
from sabot.errors import UNREADABLE, TransientError, UserError, short_repr

__all__ = ["PollSource"]

_log = logging.getLogger(__name__)

_PAGE_BYTES = 64 << 20
_BACKOFF = Backoff(0.5, 60.0)
_UNCHANGED = 304
LINK = "link"
_PLACES = re.compile(
    r"(?:page|next|start|after|skip|continuation|cursor|sync|delta|scroll|list)[_-]?token$", re.IGNORECASE
)


class CountedPlace(msgspec.Struct, forbid_unknown_fields=True):
    """The memory of a checkpoint. `count`: the rows before, as the position."""

    count: int


P = TypeVar("P", bound=CountedPlace)


class PlacedSource(Source, Generic[P]):
    """A source with one partition. Its position is the count of its rows, and the memory of a checkpoint has the place beside it."""

    place: P
    _recalled: bytes | None = None

    def begin(self, first: P, positions: Positions | None, start: str | int, elsewhere: str) -> None:
        """Sets the place to that of the checkpoint, or to `first`. Raises UserError for another start, and for a checkpoint that has no
        place, or that of another position. `elsewhere`: the end of the hint.
        """
        memory, self._recalled = self._recalled, None
        known = (positions or {}).get((self.name, 0))
        if known is None:
            if start not in ("earliest", "committed"):
                raise UserError(
                    f"source {self.name}: start={start!r} is no place of a source of the web",
                    hint=f'start="earliest"; {elsewhere}',
                )
            self.place = first
            return
        try:
            place = msgspec.json.decode(memory or b"", type=type(first))
        except UNREADABLE:
            place = None
        if place is None or place.count != known:
            raise UserError(
                f"source {self.name}: the position {known} of the checkpoint has no place beside it",
                hint="the checkpoint is none of this source; start afresh (--fresh)",
            )
        self.place = place

    def positions(self) -> Positions:
        return {(self.name, 0): self.place.count}

    def remember(self) -> dict[tuple[str, int], bytes]:
        return {(self.name, 0): msgspec.json.encode(self.place)}

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        self._recalled = memory.get((self.name, 0))


class _PagePlace(CountedPlace):
    """`page`: the address of a page below the server, or a cursor; "" for the first page. `row`: how many of its rows were taken. `etag`:
    the state of the page in which these are all.
    """

    page: str
    row: int
    etag: str


class PollSource(PlacedSource[_PagePlace]):
    """A source of the rows of a JSON API, which is asked again and again: `PollSource("https://example.org/orders", next="link")`.

    `url`: as that of `HttpSink`. `every`: the time between two questions where nothing new has come. `items`: the path of the array
    of rows in an answer, such as "data.items", or "" for an answer that is the array. `next`: the path of the next page, or of the
    cursor behind the page; "link" for the header Link with rel="next"; "" if there is one page. `cursor`: the parameter of the
    address that gets the value at `next`, or "" if that is an address. `headers`, `timeout`, `tls`: as those of `HttpSink`. Raises
    MissingExtra without the library, and UserError.

    Each row counts once if rows keep their order and their pages. A page that is asked for again is not sent by a server that knows
    ETags. Rows are records with the JSON of an item as payload, and the time of their arrival.
    """

    def __init__(
        self,
        url: str,
        *,
        every: Duration = "10s",
        items: str = "",
        next: str = "",
        cursor: str = "",
        headers: Mapping[str, HeaderValue] | None = None,
        timeout: Duration = "30s",
        tls: Any = None,
    ) -> None:
        self._every_s = parse_seconds(every, name="PollSource: every", zero=False)
        self._items, self._next = check("PollSource: items", items, TEXT), check("PollSource: next", next, TEXT)
        self._cursor = check("PollSource: cursor", cursor, TEXT)
        if cursor and (not next or next == LINK):
            raise UserError(f"PollSource: cursor={cursor!r} needs the path of its value", hint='next="next_cursor"')
        seconds = parse_seconds(timeout, name="PollSource: timeout", zero=False)
        self._client = HttpClient("source", "PollSource", url, headers, seconds, tls)
        if has_password(self._client.url):
            raise UserError(
                f"PollSource: {self._client.where} has a password or a token in its query, and addresses of pages are in checkpoints",
                hint='headers={"Authorization": secret("NAME")}',
            )
        self.name = self._client.where.partition("?")[0]
        self.place = _PagePlace(0, "", 0, "")
        self._rows: Sequence[bytes] = ()  # those of the page that were not taken yet
        self._behind: str | None = None  # the place behind the page, if it has one
        self._etag = ""  # that of the page
        self._asked: Future[WebAnswer] | None = None
        self._ask_at = 0.0
        self._failures = 0
        self._woken = threading.Event()

    # -- read ---------------------------------------------------------------------------------------------------------

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.close()
        self.begin(_PagePlace(0, "", 0, ""), positions, start, "a cursor in the address begins elsewhere")
        self._address(self.place.page)
        self._woken.clear()
        self._client.open()

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if not self._client.is_open:
            raise UserError(f"the source {self.name} is not open")
        until = SYSTEM_CLOCK.monotonic() + timeout
        while not self._rows:
            now = SYSTEM_CLOCK.monotonic()
            left = max(0.0, until - now)
            if self._asked is None and self._ask_at > now:
                self._woken.wait(min(left, self._ask_at - now))
                if self._ask_at > SYSTEM_CLOCK.monotonic():
                    return None
            if self._asked is None:
                headers = {"Accept": "application/json"}
                if self.place.etag:
                    headers["If-None-Match"] = self.place.etag
                self._asked = self._client.begin(self._address(self.place.page), headers, _PAGE_BYTES)
            try:
                answer = self._asked.result(left)
            except CancelledError:
                return None  # closed
            except TransientError as error:
                self._asked = None
                self._failed(str(error), 0.0)
                continue
            except TimeoutError:
                return None
            except BaseException:
                self._asked = None
                raise
            self._asked = None
            self._take(answer)
        return self._batch(max_rows)

    def _batch(self, max_rows: int) -> Batch:
        payloads, self._rows = self._rows[:max_rows], self._rows[max_rows:]
        rows, first = len(payloads), self.place.count
        now = [int(SYSTEM_CLOCK.time() * 1000)] * rows
        records = build_records(payloads, None, now, 0, range(first, first + rows))
        self.place = msgspec.structs.replace(self.place, row=self.place.row + rows, etag="", count=first + rows)
        if not self._rows:
            self._end_page(True)
        return Batch(records, self.positions(), self.name)

    def _take(self, answer: WebAnswer) -> None:
        """Takes the rows of an answer that are new."""
        if answer.passes:
            self._failed(f"source {self.name} answers {answer.text}", answer.wait_s)
            return
        if self._client.logs_in_anew(answer):
            return
        if answer.status != _UNCHANGED and answer.status != 200:
            raise UserError(f"source {self.name} answers {answer.text}", hint="check address and headers")
        if self._failures:
            _log.info("source %s answers again", self.name)
        self._failures = 0
        if answer.status == _UNCHANGED:
            self._ask_at = SYSTEM_CLOCK.monotonic() + self._every_s
            return
        items, self._behind = self._read(answer)
        if self._behind is not None and not self._cursor and _has_login(urljoin(self._client.url, self._behind)):
            raise UserError(
                f"source {self.name}: the address of the next page has a password or a token in it, and would be in checkpoints",
                hint="give the path of a cursor in next=, and its parameter in cursor=; the login goes into headers=",
            )
        if len(items) < self.place.row:
            raise UserError(
                f"source {self.name}: a page has {len(items)} rows, of which {self.place.row} were read before",
                hint="rows of pages must stay where they are; start afresh (--fresh)",
            )
        self._etag = answer.headers.get("etag", "")
        self._rows = items[self.place.row :]
        if not self._rows:
            self._end_page(False)

    def _end_page(self, came: bool) -> None:
        """Goes to the page behind one whose rows were all taken, or stays there. `came`: it has given rows."""
        stays = self._behind is None or self._behind == self.place.page
        if stays:
            self.place = msgspec.structs.replace(self.place, etag=self._etag)
        else:
            self.place = _PagePlace(self.place.count, str(self._behind), 0, "")
        # A chain of pages without rows is asked for as slowly as one page: it may have no end.
        self._ask_at = SYSTEM_CLOCK.monotonic() + (0.0 if came and not stays else self._every_s)

    def _failed(self, why: str, wait_s: float) -> None:
        self._failures += 1
        if self._failures == 1:
            _log.warning("source %s cannot be read, and is asked until it answers: %s", self.name, why)
        self._ask_at = SYSTEM_CLOCK.monotonic() + max(wait_s, _BACKOFF.wait_s(self._failures))

    def _read(self, answer: WebAnswer) -> tuple[list[bytes], str | None]:
        """Returns the rows of a page, each as JSON, and the place behind it, or None."""
        try:
            items = msgspec.json.decode(self._at(answer.body, self._items), type=list[msgspec.Raw])
            place: Any = None
            if self._next and self._next != LINK:
                place = msgspec.json.decode(self._at(answer.body, self._next, b"null"))
        except UNREADABLE as error:
            kind = answer.headers.get("content-type", "no type")
            raise UserError(
                f"source {self.name}: the answer is {short_repr(kind)}, and no page: {error}",
                hint=f"items={self._items!r} is the path of an array of rows, next= that of a text or a number",
            ) from error
        if self._next == LINK:
            return [bytes(each) for each in items], _next_link(answer.headers.get("link", ""))
        if not isinstance(place, str | int | None) or isinstance(place, bool):
            raise UserError(f"source {self.name}: {self._next} is {short_repr(place)}, and no place of a page")
        return [bytes(each) for each in items], None if place in (None, "") else str(place)

    def _at(self, body: bytes, path: str, missing: bytes | None = None) -> Any:
        """Returns the value at a path of an answer, as JSON."""
        value: Any = body
        for name in path.split(".") if path else ():
            found = msgspec.json.decode(value, type=dict[str, msgspec.Raw] | None) or {}
            if name not in found and missing is None:
                raise ValueError(f"it has no {path}")
            value = found.get(name, missing)
        return value

    def _address(self, page: str) -> str:
        """Returns the address of a page. Raises UserError for one of another server."""
        if not page:
            return self._client.url
        if not self._cursor:
            return self._client.address_of(page)
        parts = urlsplit(self._client.url)
        others = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != self._cursor]
        query = urlencode([*others, (self._cursor, page)], quote_via=quote)
        return f"{self._client.url.partition('?')[0]}?{query}"

    def close(self) -> None:
        self._woken.set()
        self._client.close()
        self._asked, self._rows, self._behind, self._etag = None, (), None, ""
        self._ask_at, self._failures = 0.0, 0


def _has_login(url: str) -> bool:
    """Returns True if an address has a login or a secret in it, but for tokens that are places in a list."""
    parts = urlsplit(url)
    pairs = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _PLACES.search(pair[0])]
    return parts.username is not None or has_password(f"http://h/?{urlencode(pairs)}")


def _next_link(header: str) -> str | None:
    """Returns the address of the next page in a header Link, or None."""
    for each in re.split(r",\s*(?=<)", header):
        address, _, words = each.strip().removeprefix("<").partition(">")
        if any(word.strip().lower() in ('rel="next"', "rel=next") for word in words.rstrip(", ").split(";")):
            return address
    return None
