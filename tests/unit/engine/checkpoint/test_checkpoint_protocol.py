"""Whose the app is, which checkpoint counts, what may go: each by itself, then workers in every order over one shared place."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot.engine.checkpoint.protocol import (
    CLAIMS_KEPT,
    ClaimRecord,
    Mark,
    Verdict,
    claim_name,
    counting,
    file_name,
    half_written,
    judge,
    manifest_name,
    next_generation,
    outdated,
    overtaken_by,
    read_claim,
    read_file_name,
    read_manifest_name,
    stale_claims,
    unlisted,
)

A, B, C = ("a" * 32, "b" * 32, "c" * 32)


@given(st.integers(1, 10**12), st.integers(1, 10**12), st.uuids(), st.booleans())
@settings(max_examples=50)
def test_names_read_back(generation: int, checkpoint_id: int, worker, afresh: bool) -> None:
    claim = ClaimRecord(generation, worker.hex, afresh)
    assert read_claim(claim_name(claim)) == claim
    assert read_manifest_name(manifest_name(Mark(generation, checkpoint_id))) == (generation, checkpoint_id)
    sha256 = worker.hex * 2
    assert read_file_name(file_name(sha256, generation)) == (sha256, generation, "")
    name = f"{worker.hex}-3-17"
    assert read_file_name(file_name(sha256, generation, name)) == (sha256, generation, name)


@pytest.mark.parametrize("name", ["", "LOCK", "0000000007-0000000001.json.tmp", "7-1.json", ".x", "files/ab/cd-1"])
def test_other_names_are_none_of_ours(name: str) -> None:
    assert read_claim(name) is read_manifest_name(name) is read_file_name(name) is None


def test_a_generation_is_later_than_all_claims_all_checkpoints_and_what_was_asked() -> None:
    assert next_generation([], []) == 1
    assert next_generation([ClaimRecord(3, A)], [Mark(2, 9)]) == 4
    assert next_generation([ClaimRecord(3, A)], [Mark(8, 1)]) == 9
    assert next_generation([ClaimRecord(3, A)], [Mark(8, 1)], above=20) == 21


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        ([ClaimRecord(3, B)], Verdict.OWNER),
        ([ClaimRecord(2, C), ClaimRecord(3, B)], Verdict.OWNER),
        ([ClaimRecord(3, A), ClaimRecord(3, B)], Verdict.AGAIN),
        ([ClaimRecord(3, B), ClaimRecord(3, C)], Verdict.TAKEN),
        ([ClaimRecord(3, A), ClaimRecord(3, B), ClaimRecord(3, C)], Verdict.TAKEN),
        ([ClaimRecord(3, B), ClaimRecord(4, A)], Verdict.TAKEN),
    ],
)
def test_the_greatest_claim_wins_and_of_equals_nobody_keeps_the_generation(claims, verdict) -> None:
    assert judge(ClaimRecord(3, B), claims) is verdict


def test_only_a_greater_claim_overtakes() -> None:
    mine = ClaimRecord(3, B)
    assert overtaken_by(mine, []) is None
    assert overtaken_by(mine, [mine, ClaimRecord(2, C), ClaimRecord(3, A)]) is None
    assert overtaken_by(mine, [mine, ClaimRecord(4, A), ClaimRecord(9, A), ClaimRecord(5, A)]) == ClaimRecord(9, A)
    assert overtaken_by(mine, [mine, ClaimRecord(3, C)]) == ClaimRecord(3, C)


def test_of_claims_the_newest_stay_and_the_one_that_began_afresh() -> None:
    claims = [ClaimRecord(n, A, n in (2, 5)) for n in range(1, 20)]
    gone = stale_claims(ClaimRecord(20, A), [*claims, ClaimRecord(21, A)])
    assert [claim.generation for claim in gone] == [n for n in range(1, 20 - CLAIMS_KEPT) if n != 5]
    assert ClaimRecord(5, A, True) in stale_claims(ClaimRecord(20, A, True), claims)


def test_a_later_generation_comes_after_and_what_is_older_than_a_fresh_start_does_not_count() -> None:
    late, before, after = Mark(3, 9), Mark(3, 8), Mark(4, 9)
    assert counting([after, late, before], [ClaimRecord(4, A)]) == [before, late, after]
    assert counting([after, late, before], [ClaimRecord(4, A, True), ClaimRecord(5, B)]) == [after]
    assert counting([after, late, before], [ClaimRecord(2, A, True), ClaimRecord(5, B, True)]) == []


def test_the_newest_and_the_needed_manifests_stay_and_those_of_a_later_generation() -> None:
    marks = [Mark(3, n) for n in range(1, 8)]
    assert outdated(marks, [], ClaimRecord(3, A), 3, {Mark(3, 2)}) == [Mark(3, 1), Mark(3, 3), Mark(3, 4)]
    assert outdated([*marks, Mark(4, 8)], [], ClaimRecord(3, A), 1, ()) == marks
    assert outdated([Mark(4, 1), Mark(4, 2)], [], ClaimRecord(3, A), 1, ()) == []
    assert outdated(marks, [ClaimRecord(4, A, True)], ClaimRecord(4, A, True), 3, ()) == marks


def test_files_go_that_no_manifest_lists_but_never_those_of_a_later_generation() -> None:
    names = [file_name(letter * 64, generation) for letter in "abc" for generation in (2, 3, 4)]
    gone = unlisted([*names, "files/README"], Counter([names[0]]), ClaimRecord(3, A))
    assert gone == [names[1], names[3], names[4], names[6], names[7]]


def test_files_that_own_workers_have_stored_may_be_on_their_way_into_a_manifest() -> None:
    names = [file_name("a" * 64, generation, "worker-1") for generation in (2, 3, 4)]
    assert unlisted(names, Counter(), ClaimRecord(3, A)) == [names[0]]


def test_half_written_manifests_go_but_those_that_a_successor_may_be_writing() -> None:
    names = [f"000000000{n}-000000000{generation}.json" for n in (1, 2) for generation in (3, 4)]
    assert half_written([*names, *(f"{name}.0f.tmp" for name in names), "x.json.tmp"], ClaimRecord(3, A)) == [
        f"{names[0]}.0f.tmp",
        f"{names[2]}.0f.tmp",
    ]


# Workers that take steps in any order. Each step is one thing that a place does at once.


@dataclass
class Place:
    claims: set[ClaimRecord] = field(default_factory=set)
    manifests: dict[Mark, frozenset[str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)


@dataclass
class Worker:
    """What `CheckpointStorage` does, as steps: a yield after each."""

    number: int
    place: Place
    afresh: bool
    epochs: int
    claim: ClaimRecord | None = None
    base: Mark | None = None
    listed: bool = False
    line: int = 0  # what generations before it left does not count
    counted: list[Mark] = field(default_factory=list)
    delivered: list[Mark] = field(default_factory=list)
    lost: bool = False

    def run(self) -> Iterator[None]:
        claims = set(self.place.claims)
        yield
        while True:
            marks = set(self.place.manifests)
            yield
            number = f"{self.number:x}" * 32
            mine = ClaimRecord(next_generation(claims, marks), number, self.afresh)
            self.place.claims.add(mine)
            yield
            claims = set(self.place.claims)
            verdict = judge(mine, claims)
            if verdict is Verdict.OWNER:
                break
            if verdict is Verdict.TAKEN:
                self.lost = True
                return
            yield
        self.claim = mine
        self.line = max((claim.generation for claim in claims if claim.afresh), default=0)
        for claim in stale_claims(mine, claims):
            self.place.claims.discard(claim)
        yield
        found = counting(self.place.manifests, claims)
        self.base, self.listed = (found[-1] if found else None), True
        upon = set(self.place.manifests[self.base]) if self.base else set()
        known: dict[Mark, frozenset[str]] = {}
        next_id = 1 + max((mark.checkpoint_id for mark in found), default=0)
        yield
        for epoch in range(self.epochs):
            shared = min(upon) if upon else None
            new = [file_name(f"{(epoch + n) % 16:x}" * 64, mine.generation) for n in range(2)]
            for name in new:
                self.place.files.add(name)
                yield
            contents = frozenset([*new, *([shared] if shared else [])])
            if overtaken_by(mine, set(self.place.claims)):
                self.lost = True
                return
            yield
            mark = Mark(mine.generation, next_id + epoch)
            self.place.manifests[mark] = contents
            known[mark] = contents
            yield
            if overtaken_by(mine, set(self.place.claims)):
                self.lost = True
                return
            self.counted.append(mark)
            upon |= contents
            yield
            self.delivered.append(mark)
            yield
            if epoch == 0:  # once: what earlier runs left
                known = dict(self.place.manifests)
                yield
                if overtaken_by(mine, set(self.place.claims)):
                    self.lost = True
                    return
                yield
                there = set(self.place.files)
                yield
                listed = Counter(name for names in known.values() for name in names)
                for name in unlisted(there, listed, mine):
                    self.place.files.discard(name)
                    yield
            before = {name for names in known.values() for name in names}
            for gone in outdated(known, claims, mine, 2, ()):
                self.place.manifests.pop(gone, None)
                known.pop(gone)
                yield
            for name in sorted(before - {name for names in known.values() for name in names}):
                self.place.files.discard(name)
                upon.discard(name)
                yield


@given(
    workers=st.integers(2, 3),
    afresh=st.integers(-1, 2),
    schedule=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), max_size=60),
    crashes=st.lists(st.integers(5, 120), min_size=3, max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_no_order_of_steps_makes_a_checkpoint_count_that_a_successor_does_not_build_upon(
    workers: int, afresh: int, schedule: list[tuple[int, int]], crashes: list[int]
) -> None:
    place = Place()
    all_of_them = [Worker(n, place, n == afresh, 4) for n in range(workers)]
    running = {worker.number: worker.run() for worker in all_of_them}
    taken: Counter[int] = Counter()
    for number, count in [*schedule, *((n, 200) for n in range(workers))]:
        for _ in range(count):
            if number not in running:
                break
            taken[number] += 1
            if taken[number] > crashes[number] and number % 2:  # killed: its last step was its last
                del running[number]
                break
            if next(running[number], "end") == "end":
                del running[number]
            assert_all_is_well(place, all_of_them)


def assert_all_is_well(place: Place, workers: list[Worker]) -> None:
    owners = [worker for worker in workers if worker.claim is not None]
    generations = [worker.claim.generation for worker in owners]
    assert len(set(generations)) == len(generations)
    for earlier in owners:
        for later in owners:
            if later.claim.generation > earlier.claim.generation and later.listed and not later.afresh:
                for mark in earlier.counted:
                    if mark.generation >= later.line:
                        assert later.base is not None
                        assert later.base >= mark
    newest = max((mark for worker in owners for mark in worker.counted), default=None)
    fresh = max((claim.generation for claim in place.claims if claim.afresh), default=0)
    if newest is not None and newest.generation >= fresh:
        assert newest in place.manifests
        assert place.manifests[newest] <= place.files
    for mark in counting(place.manifests, place.claims)[-1:]:
        assert place.manifests[mark] <= place.files, "the one to go on from is whole"


def test_the_last_worker_of_many_that_start_together_runs_the_app() -> None:
    """Each takes a step in turn: not all may give up."""
    place = Place()
    workers = [Worker(n, place, False, 2) for n in range(3)]
    running = [worker.run() for worker in workers]
    while running:
        running = [run for run in running if next(run, "end") != "end"]
    assert [bool(worker.counted) for worker in workers].count(True) == 1
