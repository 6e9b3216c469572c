"""`DeliverySuite`: what `connectors/base.py` promises of every sink that delivers: a part is there once, whatever happens in between."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from sabot import steps
from sabot.connectors.base import Delivers, KeepsToken, Token, Track
from sabot.errors import AppLocked, DataError, UserError
from sabot.testing.connectors.place import ConnectorPlace, NewPlace, Row, check_close, in_time, raises

TRACK = Track("suite", "sink.1", "first")
SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])
GENERATION = 2**40
Part = tuple[int, list[pa.RecordBatch]]


def columns(rows: Sequence[Row]) -> pa.RecordBatch:
    """Returns rows as a batch of SCHEMA."""
    return pa.record_batch([[n for n, _ in rows], [text for _, text in rows]], schema=SCHEMA)


def rows_of(start: int, count: int) -> list[Row]:
    """Returns numbered rows, some of whose texts are null, or have characters that a format may change."""
    return [(n, None if n % 5 == 4 else f'text "{n}", ü\n\\.\n') for n in range(start, start + count)]


PARTS: list[Part] = [
    (GENERATION + 1, [columns(rows_of(0, 3)), columns(rows_of(3, 4))]),
    (GENERATION + 2, [columns(rows_of(0, 12)).slice(7, 5)]),
    (3 * GENERATION + 1, [columns([]), columns(rows_of(12, 1))]),
]
ALL = rows_of(0, 13)
REFUSALS = (UserError, DataError, TypeError, ValueError)
"""The errors of rows that a receiver refuses."""


class StepCrash(BaseException):
    """The process is gone: nothing that it does from here on reaches the world."""


class CrashAt:
    """Crashes at the moment of this number, and at each later one. A step is two moments: before and after."""

    def __init__(self, moment: int | None = None) -> None:
        self.moments: list[str] = []
        self._moment = moment

    def before(self, name: str, what: str) -> None:
        self._pass(f"before {name} {what}")

    def after(self, name: str, what: str) -> None:
        self._pass(f"after {name} {what}")

    def torn(self, name: str, what: str, size: int) -> int:
        return size

    def _pass(self, moment: str) -> None:
        self.moments.append(moment)
        if self._moment is not None and len(self.moments) > self._moment:
            raise StepCrash(moment)


def delivering(place: ConnectorPlace) -> Any:
    """Returns a new sink. Raises AssertionError for one that does not deliver."""
    sink = place.sink()
    assert isinstance(sink, Delivers), (
        f"{type(sink).__name__} does not have the ability Delivers: SinkSuite tests a sink that writes at least once"
    )
    return sink


class DeliverySuite:
    """The tests of a sink that writes exactly once. A class of tests derives from it, and has a fixture `new_place` that returns a
    function, which makes an empty `ConnectorPlace` at each call.

    What does not hold for a sink falls away by its own facts: its abilities, `whole`, and `ConnectorPlace.fences`.
    """

    def sink(self, place: ConnectorPlace) -> Any:
        """Returns a new sink."""
        return delivering(place)

    def claimed(self, place: ConnectorPlace, track: Track = TRACK) -> Any:
        """Returns a sink that has claimed its track."""
        sink = self.sink(place)
        sink.claim(track)
        return sink

    def keeps_token(self, sink: Any) -> bool:
        """Returns True if the receiver keeps a token."""
        return isinstance(sink, KeepsToken)

    def run(self, place: ConnectorPlace, parts: Sequence[Part], watcher: CrashAt | None = None) -> None:
        """Does what an app does whose checkpoint lists these parts."""
        steps.watch(watcher)
        try:
            sink = self.sink(place)
            sink.expect(SCHEMA)
            token = sink.claim(TRACK)
            there = 0 if token is None else token.seq
            for seq, batches in parts:
                if seq > there:
                    sink.deliver(seq, batches)
            sink.finish()
            sink.close()
        finally:
            steps.watch(None)

    def test_parts_are_there_in_order_when_deliver_returns(self, new_place: NewPlace) -> None:
        place = new_place()
        sink = self.claimed(place)
        expected: list[Row] = []
        for seq, batches in PARTS:
            sink.deliver(seq, batches)
            expected += [row for batch in batches for row in zip(*batch.to_pydict().values(), strict=True)]
            found = list(place.rows())
            assert found == expected, f"behind part {seq}: {found}"
        sink.close()

    def test_a_part_that_comes_again_changes_nothing(self, new_place: NewPlace) -> None:
        """A part comes again if the answer to its delivery was lost."""
        place = new_place()
        sink = self.claimed(place)
        sink.deliver(*PARTS[0])
        sink.deliver(*PARTS[0])
        sink.claim(TRACK)
        sink.deliver(*PARTS[0])
        sink.deliver(*PARTS[1])
        sink.close()
        later = self.claimed(place)
        later.deliver(*PARTS[1])
        later.deliver(*PARTS[2])
        later.close()
        assert list(place.rows()) == ALL, f"parts that came again: {place.rows()}"

    def test_a_claim_tells_the_last_part(self, new_place: NewPlace) -> None:
        place = new_place()
        sink = self.sink(place)
        assert sink.claim(TRACK) is None, "no part has come"
        for seq, batches in PARTS:
            sink.deliver(seq, batches)
            again = self.sink(place)
            for later in (sink, again):
                self.check_token(later, later.claim(TRACK), Token(seq, "first"))
            sink.close()
            sink = later
        sink.close()

    def check_token(self, sink: Any, found: Token | None, expected: Token | None) -> None:
        """Checks the token of a claim: a sink that keeps none returns None."""
        wanted = expected if isinstance(sink, KeepsToken) else None
        assert found == wanted, f"the claim returned {found}, and {wanted} is at the receiver"

    def test_a_part_without_rows_moves_the_token(self, new_place: NewPlace) -> None:
        place = new_place()
        sink = self.claimed(place)
        sink.deliver(5, [])
        sink.deliver(6, [columns([])])
        self.check_token(sink, sink.claim(TRACK), Token(6, "first"))
        assert list(place.rows()) == [], f"parts without rows: {place.rows()}"
        sink.close()

    def test_known_claims_nothing_and_makes_no_token(self, new_place: NewPlace) -> None:
        place = new_place()
        newcomer = self.sink(place)
        assert newcomer.known(TRACK) is None, "no part has come"
        newcomer.close()
        sink = self.claimed(place)
        for seq, batches in PARTS[:2]:
            sink.deliver(seq, batches)
            other = self.sink(place)
            found: list[Token | None] = []
            in_time(lambda: found.append(other.known(TRACK)), "known")  # noqa: B023  by the thread of the task
            if found[0] is not None:
                self.check_token(other, found[0], Token(seq, "first"))
            other.close()
        sink.close()
        assert list(place.rows()) == ALL[:12], f"beside other sinks that asked for the token: {place.rows()}"

    def test_a_receiver_that_is_gone_is_an_error(self, new_place: NewPlace) -> None:
        place = new_place()
        if not place.has("drop"):
            return
        sink = self.claimed(place)
        sink.deliver(*PARTS[0])
        place.drop()
        raises(Exception, lambda: sink.deliver(*PARTS[1]), "deliver to a receiver that is gone")
        sink.close()

    def test_fitting_changes_nothing_and_its_rows_are_what_is_delivered(self, new_place: NewPlace) -> None:
        """A part keeps what `fitting` has returned on disk, until a checkpoint is complete."""
        place = new_place()
        sink = self.claimed(place)
        given = [columns(ALL[:6]), columns([]), columns(ALL).slice(6, 7)]
        fitted = [sink.fitting(each) for each in given]
        assert [each.num_rows for each in fitted] == [6, 0, 7], "fitting drops rows: raise for those that do not fit"
        assert list(place.rows()) == [], f"fitting has written {place.rows()}"
        self.check_token(sink, sink.claim(TRACK), None)
        kept = []
        for each in fitted:
            held = pa.BufferOutputStream()
            with ipc.new_stream(held, each.schema) as stream:
                stream.write_batch(each)
            kept += list(ipc.open_stream(held.getvalue()))
        sink.deliver(1, kept)
        assert list(place.rows()) == ALL, f"of rows that fitting has returned: {place.rows()}"
        sink.close()

    def test_rows_that_the_receiver_refuses_are_named_and_the_others_are_the_part(self, new_place: NewPlace) -> None:
        place = new_place()
        if not place.has("refuse"):
            return
        refused = {2, 5}
        place.refuse(sorted(refused))
        sink = self.claimed(place)
        part = [sink.fitting(each) for each in (columns(ALL[:4]), columns(ALL[4:7]))]
        raises(REFUSALS, lambda: sink.deliver(1, part), "deliver of rows that the receiver refuses")
        if sink.whole:
            assert list(place.rows()) == [], f"deliver was refused, and has written {place.rows()}"
        self.check_token(sink, sink.claim(TRACK), None)
        reasons = sink.refused_rows(part)
        assert set(reasons) == refused, (
            f"the receiver refuses the rows {sorted(refused)}, and refused_rows names {reasons}"
        )
        assert all(isinstance(why, str) and why for why in reasons.values()), f"a row has no reason: {reasons}"
        assert not list(place.rows()), f"refused_rows has written {place.rows()}"
        self.check_token(sink, sink.claim(TRACK), None)
        others = [row for row in ALL[:7] if row[0] not in refused]
        sink.deliver(1, [sink.fitting(columns(others))])
        sink.deliver(1, [sink.fitting(columns(others))])
        assert list(place.rows()) == others, f"of the rows that are left: {place.rows()}"
        self.check_token(sink, sink.claim(TRACK), Token(1, "first"))
        assert sink.refused_rows([sink.fitting(columns(ALL[7:]))]) == {}, "refused_rows names rows that fit"
        sink.close()

    def test_close_releases_threads_and_files(self, new_place: NewPlace) -> None:
        place = new_place()

        def use() -> Any:
            sink = self.claimed(place)
            sink.deliver(*PARTS[0])
            sink.close()
            return sink

        check_close(use)

    def test_tracks_do_not_know_of_each_other(self, new_place: NewPlace) -> None:
        place = new_place()
        others = [Track(TRACK.app, "sink.2", "first"), Track(f"{TRACK.app}.2", "sink.1", "other")]
        sink = self.claimed(place)
        sink.deliver(*PARTS[2])
        for number, track in enumerate(others):
            other = self.sink(place)
            other.start_afresh()
            assert other.claim(track) is None, f"the token of {track.key} is that of another track"
            if isinstance(other, KeepsToken):
                other.deliver(1, [columns([(100 + number, "other")])])
            other.close()
        if isinstance(sink, KeepsToken):
            expected = [*ALL[12:], (100, "other"), (101, "other")]
            assert list(place.rows()) == expected, f"rows of three tracks: {place.rows()}"
            self.check_token(sink, sink.claim(TRACK), Token(PARTS[2][0], "first"))
        sink.close()

    def test_numbers_of_another_incarnation_count_anew(self, new_place: NewPlace) -> None:
        place = new_place()
        sink = self.claimed(place)
        sink.deliver(PARTS[2][0], [columns(ALL[:4])])
        sink.close()
        afresh = self.sink(place)
        afresh.start_afresh()
        second = Track(TRACK.app, TRACK.sink, "second")
        token = afresh.claim(second)
        assert (token is not None) == isinstance(afresh, KeepsToken), f"the token of another incarnation is {token}"
        if token is not None:  # a receiver may keep a digest of the incarnation, which is still that of another one
            assert (token.seq, token.incarnation == "second") == (PARTS[2][0], False), (
                f"the token of the first is {token}"
            )
        afresh.deliver(GENERATION + 1, [columns(ALL[4:])])
        afresh.deliver(GENERATION + 1, [columns(ALL[4:])])
        self.check_token(afresh, afresh.claim(second), Token(GENERATION + 1, "second"))
        afresh.close()
        assert sorted(place.rows()) == ALL, f"rows of both incarnations: {place.rows()}"

    def test_who_lost_the_track_is_refused(self, new_place: NewPlace) -> None:
        place = new_place()
        if not place.fences:
            return
        before, after = self.claimed(place), self.sink(place)
        assert self.keeps_token(after), "only a receiver with tokens keeps sinks out: fences = False in the place"
        before.deliver(*PARTS[0])
        self.check_token(after, after.claim(TRACK), Token(PARTS[0][0], "first"))
        for attempt in (lambda: before.deliver(*PARTS[1]), lambda: before.claim(TRACK), lambda: before.claim(TRACK)):
            raises(AppLocked, attempt, "a sink whose track another one has claimed")
        assert list(place.rows()) == ALL[:7], "a sink that lost its track has written"
        after.deliver(*PARTS[1])
        before.close()
        self.check_token(before, before.claim(TRACK), Token(PARTS[1][0], "first"))  # now it is the newcomer
        raises(AppLocked, lambda: after.settle(1), "settle of a sink that lost its track")
        before.deliver(*PARTS[2])
        after.close()
        before.close()
        assert list(place.rows()) == ALL, f"of two sinks that claimed a track by turns: {place.rows()}"

    def test_settle_moves_the_token_and_nothing_else(self, new_place: NewPlace) -> None:
        place = new_place()
        sink = self.claimed(place)
        if not self.keeps_token(sink):
            return
        sink.settle(PARTS[0][0])
        self.check_token(sink, sink.claim(TRACK), Token(PARTS[0][0], "first"))
        sink.deliver(*PARTS[0])  # skipped: it is said to be there
        sink.deliver(*PARTS[1])
        sink.settle(PARTS[0][0])
        self.check_token(sink, sink.claim(TRACK), Token(PARTS[0][0], "first"))
        assert list(place.rows()) == ALL[7:12], f"the part behind settle, and no other: {place.rows()}"
        sink.close()

    def test_a_sink_that_was_not_claimed_delivers_nothing(self, new_place: NewPlace) -> None:
        place = new_place()
        sink = self.sink(place)
        sink.close()
        if not self.keeps_token(sink):
            return
        raises(UserError, lambda: sink.deliver(*PARTS[0]), "deliver without a claim")
        sink.claim(TRACK)
        sink.close()
        sink.close()
        raises(UserError, lambda: sink.deliver(*PARTS[0]), "deliver of a closed sink")
        assert list(place.rows()) == [], f"of a sink without a claim: {place.rows()}"

    def test_a_crash_at_any_step_loses_nothing_and_repeats_nothing(self, new_place: NewPlace) -> None:
        undisturbed = CrashAt()
        place = new_place()
        self.run(place, PARTS, undisturbed)
        assert list(place.rows()) == ALL, f"without a crash: {place.rows()}"
        assert undisturbed.moments, (
            "put each write to the receiver into `with sabot.steps.step(…)`, so that it can be crashed"
        )
        for moment, name in enumerate(undisturbed.moments):
            place = new_place()
            raises(StepCrash, lambda: self.run(place, PARTS, CrashAt(moment)), f"a crash {name}")  # noqa: B023
            so_far = list(place.rows())
            if self.sink(place).whole:
                assert so_far in [ALL[:0], ALL[:7], ALL[:12], ALL], f"a crash {name} left a part of a part: {so_far}"
            assert so_far == ALL[: len(so_far)], f"a crash {name} left rows without those before them: {so_far}"
            self.run(place, PARTS)
            assert list(place.rows()) == ALL, f"after a crash {name}: {place.rows()}"

    def test_crash_after_crash_comes_to_an_end(self, new_place: NewPlace) -> None:
        place = new_place()
        for moment in range(1000):
            try:
                self.run(place, PARTS, CrashAt(moment))
                break
            except StepCrash:
                continue
        assert list(place.rows()) == ALL, f"after a crash at each step: {place.rows()}"
