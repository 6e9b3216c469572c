"""Abilities of sources and sinks: a class names those that it has, and the engine asks nobody else for them."""

import pyarrow as pa
import pytest

import sabot.connectors
from sabot import App, Batch, Sink, Source, UserError
from sabot.connectors import (
    Bounded,
    Commits,
    Delivers,
    ExpectsColumns,
    Finishes,
    KeepsToken,
    ReportsLag,
    StartsAfresh,
    TakesBound,
    TakesChanges,
)
from sabot.connectors.base import _SINK_ABILITIES, _SOURCE_ABILITIES, Token, _members
from sabot.connectors.defaults import Stages, ends, expect, receiver_of, start_afresh, takes_changes
from sabot.connectors.memory import MemorySource
from sabot.testing import ListSink

MEMBERS = [("Source", Source, ability, name) for ability in _SOURCE_ABILITIES for name in _members(ability)]
MEMBERS += [("Sink", Sink, ability, name) for ability in _SINK_ABILITIES for name in _members(ability)]


class Numbers(Source):
    """Gives one row, and then waits."""

    name = "numbers"
    schema = pa.schema([("n", pa.int64())])

    def __init__(self):
        self.next = 0

    def open(self, positions, start="earliest"): ...

    def read_batch(self, max_rows, timeout):
        if self.next:
            return None
        self.next = 1
        return Batch(pa.record_batch({"n": [7]}, self.schema), self.positions(), self.name)

    def positions(self):
        return {(self.name, 0): self.next}

    def close(self): ...


class Written(Sink):
    """Takes rows, and has no ability."""

    name = "written"

    def open(self): ...

    def write(self, batch): ...

    def flush(self): ...

    def close(self): ...


@pytest.mark.parametrize(("word", "kind", "ability", "name"), MEMBERS, ids=[f"{m[0]}.{m[3]}" for m in MEMBERS])
def test_a_class_with_a_member_of_an_ability_that_it_does_not_name_is_refused(word, kind, ability, name):
    with pytest.raises(UserError, match=f"class Own has {name}, .* of a {word} that names the ability") as refused:
        type("Own", (kind,), {name: lambda self: None})
    assert (
        f"class Own({word}, {ability.__name__}), from sabot.connectors import {ability.__name__}" in refused.value.hint
    )
    assert "another name" in refused.value.hint


def test_a_member_that_comes_from_another_class_is_refused_too():
    class Helper:
        def commit(self): ...

    with pytest.raises(UserError, match="class Own has commit"):
        type("Own", (Numbers, Helper), {})


def test_a_class_that_names_its_abilities_may_have_their_members():
    class Own(Numbers, Bounded, Commits, ReportsLag):
        exhausted = True

        def commit(self, positions): ...

        def lag(self):
            return {}

    assert ends(Own())
    assert isinstance(Own(), ReportsLag)


def test_an_ability_whose_member_is_missing_is_noticed_when_the_object_is_made():
    class Own(Written, Delivers):
        def claim(self, track): ...

    with pytest.raises(TypeError, match=r"abstract method '?deliver"):
        Own()


def test_an_attribute_of_an_ability_that_the_class_does_not_name_is_refused_by_the_stream():
    source = Numbers()
    source.bounded = True
    with pytest.raises(UserError, match=r"its Numbers sets bounded, .* the ability Bounded") as refused:
        App("own").stream(source)
    assert "class Numbers(Source, Bounded)" in refused.value.hint
    sink = Written()
    sink.lasting = False
    with pytest.raises(UserError, match=r"its Written sets lasting, .* the ability Delivers"):
        App("own").stream(Numbers()).to(sink)


def test_a_topic_ends_only_at_a_bound(memory_url):
    topic = MemorySource("orders", memory_url)
    assert isinstance(topic, TakesBound)
    assert not ends(topic)
    assert not ends(Numbers())


def test_every_ability_is_a_public_name_of_the_package():
    assert {each.__name__ for each in (*_SOURCE_ABILITIES, *_SINK_ABILITIES)} == set(sabot.connectors.__all__)


class Receiver(Written, KeepsToken, StartsAfresh, ExpectsColumns):
    """Has some abilities, and notes what it is asked."""

    def __init__(self):
        self.asked = []

    def claim(self, track):
        return Token(0, "")

    def deliver(self, seq, batches): ...

    def settle(self, seq): ...

    def start_afresh(self):
        self.asked.append("start afresh")

    def expect(self, schema):
        self.asked.append(schema.names)


class Staged(Written, Stages, Finishes):
    """Stands before a receiver, as the engine's sink of parts does."""

    def __init__(self, receiver):
        self._receiver = receiver

    @property
    def receiver(self):
        return self._receiver

    def finish(self): ...


def test_a_sink_that_stands_before_another_has_the_abilities_of_that_one_and_no_others():
    receiver = Receiver()
    sink = Staged(receiver)
    start_afresh(sink)
    expect(sink, Numbers.schema)
    assert receiver.asked == ["start afresh", ["n"]]
    assert receiver_of(sink) is receiver
    assert not takes_changes(sink)
    assert takes_changes(Staged(ListSink()))
    assert not isinstance(sink, TakesChanges)
