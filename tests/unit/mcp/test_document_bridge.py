"""The document bridge, against a server that searches a file."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sabot.clock import ManualClock
from sabot.errors import UserError
from sabot.llm import tool
from sabot.mcp import (
    DocumentBridge,
    DocumentError,
    DocumentNotFound,
    McpServerPool,
    NoAuthoritativeSource,
    SourceDocument,
    VerificationFailed,
    by_words,
)
from tools import document_consolidator
from tools.document_consolidator import consolidator_tools
from tools.mcp_session import PROGRAM, ServedTools

OSLO = {"id": "d1", "title": "Sites", "content": "The gateway is in Oslo. It has two doors.", "updatedAt": "2026-01-01"}
NEWER = {"id": "d2", "title": "Sites", "content": "Our gateway is in Oslo, as before.", "updatedAt": "2026-05-01"}
RUMOUR = {"id": "d3", "title": "Chat", "content": "The gateway is in Bergen.", "authoritative": False}
LUNCH = {"id": "d4", "title": "Food", "content": "Lunch is at noon.", "kind": "food"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "documents.json"
    path.write_text(json.dumps([OSLO, NEWER, RUMOUR, LUNCH]))
    return path


@pytest.fixture
async def pool() -> AsyncIterator[McpServerPool]:
    async with McpServerPool() as pool:
        yield pool


@pytest.fixture
def server(pool: McpServerPool, file: Path) -> ServedTools:
    return ServedTools(pool, consolidator_tools(file))


def bridged(server: ServedTools, clock: ManualClock, **options: Any) -> DocumentBridge:
    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    return DocumentBridge(server, clock=clock, sleep=sleep, **options)


async def test_a_search_gives_what_fits_well_enough_the_best_first_and_of_equal_ones_the_newest(
    server: ServedTools, clock: ManualClock
) -> None:
    found = await bridged(server, clock).search("gateway is in Oslo")
    assert [(each.id, each.confidence) for each in found] == [("d2", 1.0), ("d1", 1.0), ("d3", 0.75)]
    assert [
        each.id for each in await bridged(server, clock, confidence_threshold=0.8).search("gateway is in Oslo")
    ] == [
        "d2",
        "d1",
    ]
    assert [each.id for each in await bridged(server, clock, max_sources=1).search("gateway is in Oslo")] == ["d2"]
    assert server.arguments[0] == {"query": "gateway is in Oslo", "limit": 5, "filters": {}}


async def test_filters_are_the_servers_and_a_part_of_the_question(server: ServedTools, clock: ManualClock) -> None:
    bridge = bridged(server, clock)
    assert [each.id for each in await bridge.search("is", filters={"kind": "food"})] == ["d4"]
    assert len(await bridge.search("is")) == 4


async def test_an_answer_is_given_again_for_300_seconds_also_an_empty_one(
    server: ServedTools, clock: ManualClock
) -> None:
    bridge = bridged(server, clock)
    for query in ("gateway", "bicycle"):
        server.calls.clear()
        first = await bridge.search(query)
        clock.advance(299.9)
        assert await bridge.search(query) == first
        assert len(server.calls) == 1
        await bridge.search(query, use_cache=False)
        assert len(server.calls) == 2
        clock.advance(300)
        await bridge.search(query)
        assert len(server.calls) == 3


async def test_a_claim_is_supported_by_authoritative_documents_alone(server: ServedTools, clock: ManualClock) -> None:
    bridge = bridged(server, clock)
    check = await bridge.verify_claim("The gateway is in Oslo")
    assert (check.status, check.verified, check.confidence) == ("supported", True, 1.0)
    assert check.supporting == ["d1"]
    assert {each.id for each in check.sources} == {"d1", "d2"}
    check = await bridge.verify_claim("The gateway is in Bergen")
    assert (check.status, check.verified, check.supporting) == ("undecided", False, [])


async def test_a_judge_of_ones_own_decides_and_those_who_disagree_make_a_claim_disputed(
    server: ServedTools, clock: ManualClock
) -> None:
    async def judge(claim: str, document: SourceDocument) -> Any:
        return {"d1": "supports", "d2": "contradicts"}[document.id]

    check = await bridged(server, clock, judge=judge).verify_claim("The gateway is in Oslo")
    assert (check.status, check.supporting, check.contradicting) == ("disputed", ["d1"], ["d2"])
    check = await bridged(server, clock, judge=lambda claim, document: "contradicts").verify_claim("gateway is in Oslo")
    assert check.status == "contradicted"


async def test_a_judge_that_fails_or_says_nothing_known_is_a_verification_that_failed(
    server: ServedTools, clock: ManualClock
) -> None:
    def fails(claim: str, document: SourceDocument) -> Any:
        raise ZeroDivisionError

    for judge, said in ((fails, "document d2: ZeroDivisionError"), (lambda claim, document: "maybe", "says 'maybe'")):
        with pytest.raises(VerificationFailed, match=said) as failed:
            await bridged(server, clock, judge=judge).verify_claim("gateway is in Oslo")
        assert failed.value.code == "E2062"


async def test_without_an_authoritative_document_there_is_no_verdict(server: ServedTools, clock: ManualClock) -> None:
    bridge = bridged(server, clock)
    for call in (bridge.verify_claim, bridge.source_of_truth):
        with pytest.raises(NoAuthoritativeSource, match="no authoritative document on 'Bergen'") as missing:
            await call("Bergen")
        assert missing.value.code == "E2061"


async def test_the_source_of_truth_is_the_newest_of_the_best(server: ServedTools, clock: ManualClock) -> None:
    assert (await bridged(server, clock).source_of_truth("gateway is in")).id == "d2"


async def test_of_equal_documents_one_without_a_time_is_not_the_newest(pool: McpServerPool, clock: ManualClock) -> None:
    times = ["", "2026-05-01", "2026-05-01T10:00", "2025-12-31"]

    @tool
    async def search_hybrid(query: str, limit: int, filters: dict[str, Any]) -> Any:
        return {"documents": [{"id": time or "none", "confidence": 0.9, "updated_at": time} for time in times]}

    bridge = bridged(ServedTools(pool, [search_hybrid]), clock)
    found = [each.id for each in await bridge.search("gateway")]
    assert found == ["2026-05-01T10:00", "2026-05-01", "2025-12-31", "none"]
    assert (await bridge.source_of_truth("gateway")).id == "2026-05-01T10:00"


async def test_what_is_no_document_is_an_error_of_the_bridge(pool: McpServerPool, clock: ManualClock) -> None:
    @tool
    async def get_document(documentId: str) -> Any:
        return {"document": {"text": "Lunch is at noon.", "list": ["Lunch"]}[documentId]}

    bridge = bridged(ServedTools(pool, [get_document]), clock)
    for kind in ("text", "list"):
        with pytest.raises(DocumentError, match="is no document"):
            await bridge.get_document(kind)


async def test_a_document_is_read_by_its_id(server: ServedTools, clock: ManualClock) -> None:
    bridge = bridged(server, clock)
    assert (await bridge.get_document("d4")).text == "Lunch is at noon."
    with pytest.raises(DocumentNotFound, match="there is no document d9") as missing:
        await bridge.get_document("d9")
    assert missing.value.code == "E2063"


async def test_graceful_a_search_without_a_server_gives_what_it_gave_last_or_nothing(
    server: ServedTools, clock: ManualClock
) -> None:
    bridge = bridged(server, clock)
    first = await bridge.search("gateway")
    clock.advance(1000)
    server.cut = -1
    assert await bridge.search("gateway") == first
    assert not bridge.reachable
    assert await bridge.search("lunch") == []
    with pytest.raises(NoAuthoritativeSource, match="the server cannot be reached"):
        await bridge.verify_claim("Lunch is at noon")


async def test_fail_fast_a_search_without_a_server_is_an_error_after_three_more_tries(
    server: ServedTools, clock: ManualClock
) -> None:
    bridge = bridged(server, clock, on_error="fail_fast")
    server.cut = 4
    with pytest.raises(DocumentError, match="documents on 'gateway': search_hybrid cannot be reached") as failed:
        await bridge.search("gateway")
    assert (failed.value.code, len(server.calls), clock.time()) == ("E2060", 4, 1_700_000_007.0)


async def test_answers_that_are_none_are_said_to_be_none(pool: McpServerPool, clock: ManualClock) -> None:
    @tool
    async def search_hybrid(query: str, limit: int, filters: dict[str, Any]) -> Any:
        return {"none": {}, "list": [1], "bad": {"documents": [{"title": "no id"}]}}[query]

    bridge = bridged(ServedTools(pool, [search_hybrid]), clock)
    for query, message in (("none", "search_hybrid answers {}"), ("list", "answers"), ("bad", "is no document")):
        with pytest.raises(DocumentError, match=message):
            await bridge.search(query)


@pytest.mark.parametrize(
    ("claim", "text", "says"),
    [
        ("The shop is open", "Today the shop is open.", "supports"),
        ("the SHOP is open", "The shop\nis closed. The shop is open!", "supports"),
        ("The shop is open", "The shop is not open.", "silent"),
        ("The shop is open", "The shop isn't open, it is shut.", "silent"),
        ("The shop is not open", "The shop is not open.", "supports"),
        ("It costs 5", "It costs 50.", "silent"),
        ("The shop is open", "The shop is shut. The door is open.", "silent"),
        ("...", "The shop is open.", "silent"),
    ],
)
def test_by_words_a_sentence_supports_what_it_says_in_the_same_words(claim: str, text: str, says: str) -> None:
    assert by_words(claim, SourceDocument("d", "", text, 1.0)) == says


@pytest.mark.parametrize(
    ("options", "said"),
    [({"confidence_threshold": 1.5}, "confidence_threshold=1.5"), ({"max_sources": 0}, "max_sources=0")],
)
async def test_options_that_make_no_sense_are_refused(server: ServedTools, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        DocumentBridge(server, **options)


async def test_a_method_is_a_tool_of_an_agent(server: ServedTools, clock: ManualClock) -> None:
    verify = tool(effect="read")(bridged(server, clock).verify_claim)
    assert verify.name == "verify_claim"
    assert (await verify(claim="Lunch is at noon")).verified


@pytest.mark.slow  # starts an interpreter
async def test_over_stdio_a_claim_is_verified(pool: McpServerPool, file: Path, clock: ManualClock) -> None:
    server = ServedTools(pool, [], [*PROGRAM, document_consolidator.__file__, str(file)])
    assert (await bridged(server, clock, on_error="fail_fast").verify_claim("Lunch is at noon")).verified
