"""Promises of connectors that are broken on purpose, in any connector of ours: its suite has to find each."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import pytest

from sabot.errors import AppLocked, UserError
from sabot.testing.connectors import place as places
from sabot.testing.connectors.delivery import TRACK
from sabot.testing.connectors.place import NewPlace

Break = Callable[[Any], None]


def broken(new_place: NewPlace, member: str, fault: Break) -> NewPlace:
    """Makes places whose sources (`member="source"`) or sinks have a fault."""

    def make() -> Any:
        place = new_place()
        whole = getattr(place, member)

        def made() -> Any:
            connector = whole()
            fault(connector)
            return connector

        setattr(place, member, made)
        return place

    return make


def check_found(suite: Any, test: str, new_place: NewPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises unless the test of the suite fails over these places."""
    monkeypatch.setattr(places, "GUARD_SECONDS", 2.0)  # a test that fails may wait so long
    with pytest.raises((AssertionError, UserError)):
        getattr(suite, f"test_{test}")(new_place)


# -- sinks that keep a token ------------------------------------------------------------------------------------------


def token_before_rows(sink: Any) -> None:
    deliver = sink.deliver

    def instead(seq: int, batches: Any) -> None:
        sink.settle(seq)
        sink.settle(seq - 1)  # so that the rows are written, if it comes to that
        deliver(seq, batches)

    sink.deliver = instead


def in_two_steps(sink: Any) -> None:
    deliver = sink.deliver

    def instead(seq: int, batches: Any) -> None:
        deliver(seq, batches[:1])
        sink.settle(seq - 1)
        deliver(seq, batches[1:])

    sink.deliver = instead


def without_a_look(sink: Any) -> None:
    deliver = sink.deliver

    def instead(seq: int, batches: Any) -> None:
        sink.settle(seq - 1)
        deliver(seq, batches)

    sink.deliver = instead


def without_an_owner(sink: Any) -> None:
    deliver = sink.deliver

    def instead(seq: int, batches: Any) -> None:
        try:
            deliver(seq, batches)
        except AppLocked:
            sink.close()
            sink.claim(TRACK)
            deliver(seq, batches)

    sink.deliver = instead


def swallows_errors(sink: Any) -> None:
    deliver = sink.deliver

    def instead(seq: int, batches: Any) -> None:
        with suppress(Exception):
            deliver(seq, batches)

    sink.deliver = instead


CRASH, AGAIN = "a_crash_at_any_step_loses_nothing_and_repeats_nothing", "a_part_that_comes_again_changes_nothing"
SINK_FAULTS: dict[str, tuple[Break, str]] = {
    "has the token before the rows": (token_before_rows, CRASH),
    "writes a part in two steps": (in_two_steps, CRASH),
    "takes no look at the token": (without_a_look, AGAIN),
    "keeps no other owner out": (without_an_owner, "who_lost_the_track_is_refused"),
    "swallows errors": (swallows_errors, "a_receiver_that_is_gone_is_an_error"),
}


# -- sinks whose receiver knows a part by its name --------------------------------------------------------------------

_numbers: Iterator[int] = count(1)


def another_name_each_time(sink: Any) -> None:
    deliver = sink.deliver
    sink.deliver = lambda seq, batches: deliver(seq * 1000 + next(_numbers), batches)


# -- sources ----------------------------------------------------------------------------------------------------------


def positions_before_the_batch(source: Any) -> None:
    read, positions, stale = source.read_batch, source.positions, []

    def instead(max_rows: int, timeout: float) -> Any:
        stale[:] = [positions()]
        return read(max_rows, timeout)

    source.read_batch = instead
    source.positions = lambda: stale[0] if stale else positions()


def anew_at_a_restart(source: Any) -> None:
    begin = source.open
    source.open = lambda positions, start="earliest": begin(None, "earliest")


def more_rows_than_asked_for(source: Any) -> None:
    read = source.read_batch
    source.read_batch = lambda max_rows, timeout: read(1000, timeout)


def forgets_its_memory(source: Any) -> None:
    recall = source.recall
    source.recall = lambda memory: recall({})


GOES_ON = "a_source_goes_on_behind_each_row_of_an_older_one"
SOURCE_FAULTS: dict[str, tuple[Break, str]] = {
    "tells the positions in front of its batch": (positions_before_the_batch, GOES_ON),
    "begins anew at a restart": (anew_at_a_restart, GOES_ON),
    "gives more rows than it was asked for": (more_rows_than_asked_for, "rows_come_in_order_in_batches_of_any_size"),
}


class FindsFaults:
    """For a class of tests of a source, before its suite: the suite over its places finds each fault."""

    @pytest.mark.slow  # some tenths of a second of each, for what no change of a connector is likely to break
    @pytest.mark.parametrize("fault", SOURCE_FAULTS)
    def test_a_source_that_breaks_a_promise_is_found(
        self, new_place: NewPlace, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        breaks, test = SOURCE_FAULTS[fault]
        check_found(self, test, broken(new_place, "source", breaks), monkeypatch)


class FindsFaultsOfMemory(FindsFaults):
    """The same, for a source with a memory beside its positions."""

    @pytest.mark.slow
    def test_a_source_that_forgets_its_memory_is_found(
        self, new_place: NewPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check_found(self, GOES_ON, broken(new_place, "source", forgets_its_memory), monkeypatch)
