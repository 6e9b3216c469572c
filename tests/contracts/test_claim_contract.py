"""What every claim keeps (`sabot/base/claims.py`): one suite for files, apps, topics and journals."""

import math
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contracts.test_journal_contract import database, home_of, written  # noqa: F401 - `database` is a fixture
from sabot.base.claims import Claim, FileClaim, ObjectClaims
from sabot.engine.checkpoint.ownership import Ownership
from sabot.engine.checkpoint.places import place_of
from sabot.errors import AppLocked, JournalFailed
from sabot.journal import Journal
from sabot.journal.entries import Begin
from sabot.kafka import admin
from sabot.kafka.lease import KafkaLease
from tools.checkpoint_tools import in_memory

KINDS = [
    "file",
    "app in a directory",
    "app in a store",
    pytest.param("topic", marks=[pytest.mark.kafka, pytest.mark.slow]),
    "sqlite journal",
    "postgres journal",
    pytest.param("kafka journal", marks=[pytest.mark.kafka, pytest.mark.slow]),
]


class OfAJournal:
    """The claim that the owner of a journal has from its construction to `close`."""

    def __init__(self, owner: Callable[[], Journal]) -> None:
        self._owner = owner
        self._journal: Journal | None = None

    def take(self) -> None:
        self._journal = self._owner()

    def renew(self) -> None:
        assert self._journal is not None
        try:
            written(self._journal, Begin(uuid.uuid4().hex, 0))
        except JournalFailed as error:
            raise AppLocked(str(error)) from error

    def left_s(self) -> float:
        return 0.0 if self._journal is None else self._journal.claim_left()

    def release(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None


Made = Callable[[], Claim]


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Made]:
    """Makes claims to one thing. They are released at the end."""
    kind, claims = request.param, list[Claim]()
    match kind:
        case "file":

            def make() -> Claim:
                return FileClaim(tmp_path / "lock", f"holder {len(claims)}", AppLocked)
        case "app in a directory":

            def make() -> Claim:
                return Ownership(place_of(tmp_path / "state"))
        case "app in a store":
            store = in_memory()[0], "bucket/apps"

            def make() -> Claim:
                return Ownership(place_of(store))
        case "topic":
            url, topic = request.getfixturevalue("kafka").url, request.getfixturevalue("topic")
            admin.create_topic(url, topic, 1)
            settings = {"session.timeout.ms": 1000}

            def make() -> Claim:
                life = f"life {len(claims)}"
                return KafkaLease(
                    url, "app", topic, settings, life=life, is_over=lambda life: False, lost=lambda error: None
                )
        case _:
            home = home_of(kind.partition(" ")[0], request, tmp_path)

            def make() -> Claim:
                return OfAJournal(home.owner)

    def keep() -> Claim:
        claims.append(make())
        return claims[-1]

    yield keep
    for claim in claims:
        claim.release()


def test_a_claim_that_is_taken_has_time_left_and_is_renewed(made: Made) -> None:
    claim = made()
    assert claim.left_s() == 0.0
    claim.take()
    assert 0.0 < claim.left_s() <= math.inf
    claim.renew()
    assert claim.left_s() > 0.0


def test_of_two_holders_one_is_refused(made: Made) -> None:
    first, second = made(), made()
    first.take()
    try:
        second.take()
    except AppLocked:
        first.renew()
        assert second.left_s() == 0.0
    else:
        second.renew()
        with pytest.raises(AppLocked):
            first.renew()


def test_a_claim_that_is_released_is_free_at_once(made: Made) -> None:
    first, second = made(), made()
    first.take()
    first.release()
    assert first.left_s() == 0.0
    second.take()
    second.renew()
    assert second.left_s() > 0.0


def test_to_release_again_or_without_having_taken_changes_nothing(made: Made) -> None:
    first, second = made(), made()
    first.release()
    second.take()
    first.release()
    second.renew()
    second.release()
    second.release()


def test_a_file_that_was_removed_is_held_no_longer(tmp_path: Path) -> None:
    first, second = (FileClaim(tmp_path / "lock", name, AppLocked) for name in ("first", "second"))
    first.take()
    (tmp_path / "lock").unlink()
    second.take()
    with pytest.raises(AppLocked):
        first.renew()
    second.renew()
    first.release()
    second.release()


# -- objects of this process


class Holder:
    """Of an object."""

    def __init__(self, held: object) -> None:
        self.held = held


def test_of_threads_that_want_an_object_at_once_one_gets_it() -> None:
    claims = ObjectClaims[Holder]()
    for _ in range(100):
        held, start = object(), threading.Barrier(4)
        holders = [Holder(held) for _ in range(4)]
        others: list[Holder | None] = []

        def take(holder: Holder, held: object = held, start: threading.Barrier = start) -> None:
            start.wait()
            others.append(claims.take(held, holder))  # noqa: B023  the threads end in this round

        threads = [threading.Thread(target=take, args=(each,)) for each in holders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert others.count(None) == 1
        assert {each for each in others if each is not None} == {claims.holder(held)}


def test_a_holder_that_gives_way_or_is_garbage_holds_nothing() -> None:
    claims, held = ObjectClaims[Holder](), object()
    first, second = Holder(held), Holder(held)
    assert claims.take(held, first) is None
    assert claims.take(held, first) is None
    assert claims.take(held, second) is first
    assert claims.take(held, second, gives_way=lambda other: other is first) is None
    claims.release(held, first)  # which has lost it
    assert claims.holder(held) is second
    del second
    assert claims.holder(held) is None
