"""Abilities of sources and sinks: a class names those that it has, and the engine asks nobody else for them."""

import pyarrow as pa
import pytest

import sabot.connectors
from sabot import App, Batch, Sink, Source, UserError
from sabot.connectors import Bounded, Delivers, KeepsToken, Scans, TakesBound, TakesChanges
from sabot.connectors.base import Stages, Token, ends, overrides, receiver_of, takes_changes
from sabot.connectors.memory import MemorySource
from sabot.engine.operators.base import OperatorContext
from sabot.engine.operators.sink import SinkWriter
from sabot.testing import ListSink

GONE = {
    "Source": "Commits HasIdentity HoldsPartitions LimitsRecords ReadsInParallel ReportsBacklog ReportsLag ReportsProgress "
    "SkipsHeaders WritesBack",
    "Sink": "AsksOwner ChecksTypes ExpectsColumns Finishes StartsAfresh WaitsForLetters",
}
MEMBERS = {
    Bounded: "bounded exhausted",
    TakesBound: "bound end_at skips_removed skip_removed",
    Scans: "has_records guessed scan infer_schema inferring with_fields",
    Delivers: "lasting whole repeats address known claim fitting deliver refused_rows",
    KeepsToken: "token_place gather_s settle",
    TakesChanges: "expect_changes",
}


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


def given(connector):
    """Gives the connector to a stream."""
    stream = App("own").stream(connector if isinstance(connector, Source) else Numbers())
    return stream if isinstance(connector, Source) else stream.to(connector)


@pytest.mark.parametrize(
    ("ability", "member"), [(each, member) for each in MEMBERS for member in MEMBERS[each].split()]
)
def test_a_connector_with_a_member_of_an_ability_that_it_does_not_name_is_refused(ability, member):
    kind = Source if ability in (Bounded, TakesBound, Scans) else Sink
    own = type("Own", (Numbers if kind is Source else Written,), {member: lambda self: None})
    with pytest.raises(
        UserError, match=f"its Own has {member}, .* of a {kind.__name__} that names the ability"
    ) as refused:
        given(own())
    assert f"class Own({kind.__name__}, {ability.__name__}), from sabot.connectors import " in refused.value.hint
    assert "another name" in refused.value.hint


def test_every_member_of_an_ability_is_one_of_those():
    for ability, members in MEMBERS.items():
        inherited = {name for base in ability.__bases__ for name in dir(base)}
        assert {name for name in vars(ability) if name[0] != "_"} - inherited == set(members.split())


def test_an_attribute_that_an_object_sets_is_refused_too():
    source = Numbers()
    source.bounded = True
    with pytest.raises(UserError, match=r"its Numbers has bounded, .* the ability Bounded"):
        given(source)
    sink = Written()
    sink.lasting = False
    with pytest.raises(UserError, match=r"its Written has lasting, .* the ability Delivers"):
        given(sink)


def test_a_member_of_a_base_class_that_stands_behind_the_contract_is_refused():
    """The default would hide it, and offsets would never be committed."""

    class Helper:
        def commit(self, positions): ...

    class Hidden(Numbers, Helper): ...

    class Seen(Helper, Numbers): ...

    with pytest.raises(UserError, match="its Hidden has commit of Helper, but the default of Source") as refused:
        given(Hidden())
    assert refused.value.hint == "class Hidden(Helper, Source)"
    given(Seen())


def test_a_class_overrides_the_members_that_it_can_do_better():
    class Own(Numbers, Bounded):
        exhausted = True

        def commit(self, positions): ...

    given(Own())
    assert ends(Own())
    assert overrides(Own(), "commit")
    assert not overrides(Numbers(), "commit")


def test_the_defaults_are_those_of_a_connector_that_can_do_nothing_more():
    source, sink = Numbers(), Written()
    assert source.readers(4) == [source]
    assert (source.log_id, source.topic_id(), source.identity()) == ("", "", None)
    assert (source.lag(), source.lag_unit, source.backlog(), source.progress()) == ({}, "rows", None, None)
    assert source.as_sink() is None
    assert (sink.missing_columns(Numbers.schema), sink.misfit(Numbers.schema), sink.evolve) == (None, "", False)
    assert sink.floats_lost(pa.float64()) is None


def test_the_last_call_of_a_sink_that_completes_nothing_is_flush():
    class Own(Written):
        flushed = 0

        def flush(self):
            self.flushed += 1

    sink = Own()
    sink.finish()
    assert sink.flushed == 1


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in GONE.items() for name in names.split()])
def test_an_ability_that_is_gone_says_to_leave_the_base_out(kind, name):
    with pytest.raises(ImportError, match=f"{name} is gone: leave the base out, its members have defaults in {kind}"):
        exec(f"from sabot.connectors import {name}")


def test_an_ability_whose_member_is_missing_is_noticed_when_the_object_is_made():
    class Own(Written, Delivers):
        def claim(self, track): ...

    with pytest.raises(TypeError, match=r"abstract method '?deliver"):
        Own()


def test_a_topic_ends_only_at_a_bound(memory_url):
    topic = MemorySource("orders", memory_url)
    assert isinstance(topic, TakesBound)
    assert not ends(topic)
    assert not ends(Numbers())


def test_every_ability_is_a_public_name_of_the_package():
    assert {each.__name__ for each in MEMBERS} == set(sabot.connectors.__all__) - {"Connector"}


class Receiver(Written, KeepsToken):
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


class Staged(Written, Stages):
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
    writer = SinkWriter(sink, None, Numbers.schema, lambda: 0)
    writer.start_afresh()
    writer.open(OperatorContext(Numbers.schema))
    assert receiver.asked == ["start afresh", ["n"]]
    assert receiver_of(sink) is receiver
    assert not takes_changes(sink)
    assert takes_changes(Staged(ListSink()))
    assert not isinstance(sink, TakesChanges)
