"""Documents that a server keeps. A `DocumentBridge` searches them, reads them, and compares them with claims. The
specification 002 calls such a server `document-consolidator` (`docs/names.md` says which specification that is).

   documents = DocumentBridge(await pool.session("documents"))
   check = await documents.verify_claim("The gateway is in Oslo")
   check.status, check.confidence, check.supporting

The server offers `search_hybrid{query, limit, filters}`, which answers with `documents`, and
`get_document{documentId}`, which answers with `document`.
"""

import asyncio
import inspect
import re
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from sabot.base.checks import is_whole
from sabot.base.config import Duration, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import SabotError, UserError, message_of, short_repr
from sabot.specified.mcp.bridges import BridgedServer, CallTool, OnBridgeError

Says = Literal["supports", "contradicts", "silent"]
ClaimStatus = Literal["supported", "contradicted", "disputed", "undecided"]

_CACHED_MOST = 256
_SENTENCE = re.compile(r"[.!?]+(?:\s+|$)|\n+")
_WORD = re.compile(r"[\w'’]+")
_NEGATIONS = {
    *("cannot", "false", "neither", "never", "no", "none", "nor", "not", "without", "wrong"),
    *("jamais", "kein", "keine", "nicht", "nie", "pas"),
}


class DocumentError(SabotError):
    """A query of documents has failed (E2060). Its subclasses are the other failures of a `DocumentBridge`."""

    code = "E2060"


class NoAuthoritativeSource(DocumentError):
    """None of the documents that a search for the topic or the claim has returned is authoritative."""

    code = "E2061"


class VerificationFailed(DocumentError):
    """A claim could not be compared with the documents that were found."""

    code = "E2062"


class DocumentNotFound(DocumentError):
    """There is no document of this id."""

    code = "E2063"


class SourceDocument(msgspec.Struct, frozen=True):
    """A document of the server.

    - `confidence`: how well the document matches the query, from 0 to 1.
    - `authoritative`: True if the document counts as a source of truth. It is False only if the server says so.
    - `updated`: the time of the last change as the server writes it; "" if it gives none.
    """

    id: str
    title: str
    text: str
    confidence: float
    authoritative: bool = True
    updated: str = ""


class ClaimCheck(msgspec.Struct, frozen=True):
    """The result of a comparison of a claim with authoritative documents.

    - `claim`: the claim.
    - `status`: "supported" or "contradicted"; "disputed" if some documents support the claim and others contradict it;
      "undecided" if all documents are silent on it.
    - `confidence`: the highest confidence among the documents that support or contradict the claim; 0 if there is none.
    - `sources`: the documents that were compared, the best first.
    - `supporting`, `contradicting`: the ids of the documents that support the claim, and of those that contradict it.
    """

    claim: str
    status: ClaimStatus
    confidence: float
    sources: list[SourceDocument]
    supporting: list[str]
    contradicting: list[str]

    @property
    def verified(self) -> bool:
        return self.status == "supported"


Judge = Callable[[str, SourceDocument], Says | Awaitable[Says]]
"""A function that decides whether a document supports a claim, contradicts it, or is silent on it."""


@answers_wrong_options
class DocumentBridge:
    """The documents of a server. The bridge searches them, reads them, and compares them with claims.

    - `server`: a session with the server.
    - `confidence_threshold`: documents with a lower confidence are left out. `max_sources`: the most documents that a
      search returns.
    - `cache_ttl`: how long the answer to a query is returned again without asking the server.
    - `judge`: a function, sync or async, that gets a claim and a document, and returns "supports", "contradicts" or
      "silent". It may ask a model. By default it is `by_words`, which compares the words.
    - `on_error`: what happens if the server cannot be reached. With "fail_fast" a DocumentError is raised. With
      "graceful" a search returns the last answer to the same query, or an empty list if there was none.
    - `retries`: the number of further tries if the server cannot be reached. `backoff`: the wait before the second try;
      it doubles each time. `timeout`: the time limit of each try.
    """

    def __init__(
        self,
        server: CallTool,
        *,
        confidence_threshold: float = 0.7,
        max_sources: int = 5,
        cache_ttl: Duration = "300s",
        judge: Judge | None = None,
        retries: int = 3,
        backoff: Duration = "1s",
        timeout: Duration = "30s",
        on_error: OnBridgeError = "graceful",
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if isinstance(confidence_threshold, bool) or not 0 <= confidence_threshold <= 1:
            raise UserError(f"bridge: confidence_threshold={short_repr(confidence_threshold)}", hint="from 0 to 1")
        if not is_whole(max_sources, 1):
            raise UserError(f"bridge: max_sources={short_repr(max_sources)}", hint="a whole number from 1 up")
        self._server = BridgedServer(server, on_error, retries, backoff, timeout, sleep)
        self._threshold = confidence_threshold
        self._most = max_sources
        self._ttl_s = parse_seconds(cache_ttl, name="bridge: cache_ttl")
        self._judge = judge or by_words
        self._clock = clock
        self._cached: dict[bytes, tuple[float, list[SourceDocument]]] = {}  # the oldest first

    @property
    def reachable(self) -> bool:
        """False if the server could not be reached in the last call, else True."""
        return self._server.reachable

    async def search(
        self, query: str, *, filters: Mapping[str, Any] | None = None, use_cache: bool = True
    ) -> list[SourceDocument]:
        """Returns the documents that match the query, the best first: at most `max_sources`, and none with a confidence
        below `confidence_threshold`.

        - `filters`: passed on to the server. `use_cache`: False to ask the server even if a recent answer is in the
          cache.

        If the server cannot be reached and `on_error` is "graceful", returns the last answer to the same query, however
        old it is, or an empty list if there was none. Only the last 256 different queries are remembered. Raises
        DocumentError (E2060).
        """
        key = msgspec.json.encode([query, dict(filters or {})], order="deterministic")
        kept = self._cached.get(key)
        if use_cache and kept is not None and self._clock.monotonic() < kept[0]:
            return list(kept[1])
        arguments = {"query": query, "limit": self._most, "filters": dict(filters or {})}
        what = f"documents on {short_repr(query)}"
        said = await self._server.ask("search_hybrid", arguments, DocumentError, what)
        if said is None:
            return [] if kept is None else list(kept[1])
        found = said.get("documents")
        if not isinstance(found, list):
            raise DocumentError(f"{what}: search_hybrid answers {short_repr(said)}", hint="documents: a list")
        read = [_document(each, DocumentError, what) for each in found]
        fitting = sorted((each for each in read if each.confidence >= self._threshold), key=_rank)[: self._most]
        self._cached.pop(key, None)
        self._cached[key] = (self._clock.monotonic() + self._ttl_s, fitting)
        if len(self._cached) > _CACHED_MOST:
            del self._cached[next(iter(self._cached))]
        return list(fitting)

    async def get_document(self, document_id: str) -> SourceDocument:
        """Returns a document by its id. Raises DocumentNotFound (E2063) if the server has none or refuses the call;
        DocumentError (E2060) if the server cannot be reached or its answer is not a document.
        """
        what = f"document {short_repr(document_id)}"
        asked = {"documentId": document_id}
        said = await self._server.ask("get_document", asked, DocumentNotFound, what, gone=DocumentError)
        found = said.get("document") if said else None
        if not found:
            raise DocumentNotFound(f"{what}: the server has none")
        return _document({"confidence": 1.0} | found if isinstance(found, dict) else found, DocumentError, what)

    async def source_of_truth(self, topic: str) -> SourceDocument:
        """Returns the authoritative document with the highest confidence for this topic; of several with the same
        confidence, the one that was changed last. Only the documents that `search` returns for the topic are
        considered. Raises NoAuthoritativeSource (E2061) if none of them is authoritative; DocumentError (E2060) if the
        search fails.
        """
        return (await self._authoritative(topic))[0]

    async def verify_claim(self, claim: str) -> ClaimCheck:
        """Searches for the claim, compares the claim with each document that `search` returns and that is
        authoritative, and returns the result.

        Raises NoAuthoritativeSource (E2061) if there is no such document; VerificationFailed (E2062) if the function
        `judge` fails or returns another value than it may; DocumentError (E2060) if the search fails.
        """
        sources = await self._authoritative(claim)
        supporting: list[SourceDocument] = []
        contradicting: list[SourceDocument] = []
        for each in sources:
            try:
                says = self._judge(claim, each)
                says = await says if inspect.isawaitable(says) else says
            except Exception as failure:
                raise VerificationFailed(
                    f"claim {short_repr(claim)}: document {each.id}: {type(failure).__name__}: {message_of(failure)}"
                ) from failure
            if says not in get_args(Says):
                raise VerificationFailed(f"claim {short_repr(claim)}: the judge says {short_repr(says)}")
            if says != "silent":
                (supporting if says == "supports" else contradicting).append(each)
        status: ClaimStatus = "undecided"
        if supporting or contradicting:
            status = "disputed" if supporting and contradicting else "supported" if supporting else "contradicted"
        return ClaimCheck(
            claim,
            status,
            max((each.confidence for each in (*supporting, *contradicting)), default=0.0),
            sources,
            [each.id for each in supporting],
            [each.id for each in contradicting],
        )

    async def _authoritative(self, query: str) -> list[SourceDocument]:
        found = [each for each in await self.search(query) if each.authoritative]
        if not found:
            hint = "" if self.reachable else "the server cannot be reached"
            raise NoAuthoritativeSource(f"no authoritative document on {short_repr(query)}", hint=hint)
        return found


def by_words(claim: str, document: SourceDocument) -> Says:
    """Compares a claim with a document by their words, without a model. Returns "supports" if one sentence of the
    document contains all words of the claim, and no word such as "not" that the claim does not contain. Else returns
    "silent". It never returns "contradicts", because words alone do not show a contradiction.
    """
    wanted = set(_words(claim))
    for sentence in _SENTENCE.split(document.text):
        found = set(_words(sentence))
        if wanted and wanted <= found and not any(map(_negates, found - wanted)):
            return "supports"
    return "silent"


def _words(text: str) -> list[str]:
    return [each.strip("'").replace("’", "'") for each in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


def _negates(word: str) -> bool:
    return word in _NEGATIONS or word.endswith("n't")


def _rank(document: SourceDocument) -> tuple[float, tuple[int, ...], str]:
    """Returns a sort key that puts documents of a higher confidence first and, among equal ones, those changed later.
    Documents without a time are the last of them.
    """
    return -document.confidence, (*(-ord(each) for each in document.updated), 1), document.id


def _document(said: Any, error: type[SabotError], what: str) -> SourceDocument:
    """Converts a document as a server has sent it. Servers use different names for the same field: `content`, `snippet`
    or `text`; `confidence` or `score`; `updated_at` or `updatedAt`. Raises `error` if it is not a document. `what`: the
    text with which the error message begins.
    """
    if not isinstance(said, dict):
        raise error(f"{what}: {short_repr(said)} is no document")
    confidence = _first(said, ("confidence", "score"))
    document_id = _first(said, ("id", "documentId"))
    if (
        not isinstance(document_id, str | int)
        or isinstance(confidence, bool)
        or not isinstance(confidence, int | float)
    ):
        raise error(f"{what}: {short_repr(said)} is no document", hint="it needs id and confidence")
    return SourceDocument(
        id=str(document_id),
        title=str(_first(said, ("title",)) or ""),
        text=str(_first(said, ("content", "snippet", "text")) or ""),
        confidence=float(confidence),
        authoritative=said.get("authoritative") is not False,
        updated=str(_first(said, ("updated_at", "updatedAt")) or ""),
    )


def _first(said: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((said[name] for name in names if said.get(name) is not None), None)
