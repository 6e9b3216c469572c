"""The sinks of agents: the settings on which all writers of a sink agree, and how a sink is opened, written and
delivered to.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import StreamEnd
from sabot.connectors.base import Sink
from sabot.engine.delivery import StagedSink
from sabot.engine.operators.sink import SinkWriter
from sabot.engine.plan import (
    agreed_deliveries,
    agreed_formats,
    agreed_nans,
    arranged,
    dead_letter_topics,
    fed_by_streams,
    only_letters,
    place_of_sink,
)
from sabot.engine.runtime.agents.groups import AgentGroup
from sabot.engine.runtime.life.settings import RunSettings
from sabot.engine.runtime.tasks.writing import open_writer


class AgentSinks:
    """The sinks of the agents of one app."""

    def __init__(self, specs: Sequence[AgentSpec], ends: Iterable[StreamEnd], settings: RunSettings) -> None:
        """`ends`: the ends of the app's streams. Raises UserError if the writers of a sink do not agree."""
        ends = list(ends)
        self.specs = arranged(specs, ends)
        self.fed = fed_by_streams(ends)
        self.wanted = agreed_deliveries(self.specs, self.fed)
        self._nans = agreed_nans(self.specs)
        self._formats = agreed_formats(self.specs)
        self._only_letters = only_letters(self.specs, ends)
        self._settings = settings
        self._writers: dict[str | int, SinkWriter] = {}
        self.by_streams: Callable[[str | Sink, pa.RecordBatch], None] | None = None
        """The function by which streams write dead letters into a sink that is theirs too."""

    def of(self, group: AgentGroup) -> list[AgentSpec]:
        """Returns the agents of a task. An agent that passes rows to another one comes after it."""
        return [spec for spec in self.specs if spec.agent_id in group.agents]

    def writer(self, group: AgentGroup, sink: str | Sink, *, afresh: bool) -> SinkWriter:
        """Returns the writer of a sink in the task of the group, not open yet. `afresh`: True if no checkpoint is
        restored.
        """
        place, clock = place_of_sink(sink), self._settings.clock
        opened = self._settings.open_sink(sink, self._formats.get(place)) if isinstance(sink, str) else sink
        # Before `staged`: it is the receiver that waits for its first letter, not the StagedSink before it.
        opened.only_letters = place in self._only_letters
        opened = self._settings.staged(group.room, opened, self.wanted[place])
        writer = SinkWriter(opened, None, None, lambda: int(clock.time() * 1000), nan=self._nans.get(place))
        if afresh:
            writer.start_afresh()
        self._writers[place] = writer
        if (found := self._letters_of(place)) is not None:
            agent, letters, skips = found
            origin = {"step": f"write {opened.name}", "agent": agent, "version": self._settings.app.version}
            writer.letters_to(partial(self._write_letters, letters), clock, origin, before_checkpoint=skips)
        return writer

    def _letters_of(self, place: str | int) -> tuple[str, str | Sink, bool] | None:
        """Returns the agent that writes to a sink, where the rows go that its receiver refuses (the agent's dead letters),
        and False if the app ends by a result that is refused before it is in a checkpoint. Returns None for a sink of dead
        letters.
        """
        found: dict[str | int, tuple[str, str | Sink, bool]] = {}
        letters: set[str | int] = set()
        for spec in self.specs:
            own = self._letters_places(spec)
            letters.update(map(place_of_sink, own))
            for sink in spec.sinks.values():
                found.setdefault(place_of_sink(sink), (spec.agent_id, own[0], spec.calls.on_error != "fail"))
        return None if place in letters else found.get(place)

    def _letters_places(self, spec: AgentSpec) -> list[str | Sink]:
        """Returns the topics, or the Sink, of the dead letters of an agent."""
        own = spec.dead_letter
        return [own] if isinstance(own, Sink) else list(self.dead_letter_topics(spec).values())

    def _write_letters(self, sink: str | Sink, letters: pa.RecordBatch) -> None:
        """Writes dead letters of rows that the receiver of another sink has refused. When it returns they are safe. Called
        from any thread.
        """
        writer = self._writers.get(place_of_sink(sink))
        if writer is None:  # streams write this sink too, and have its thread
            assert self.by_streams is not None
            self.by_streams(sink, letters)
        else:
            writer.write_aside(letters)

    def dead_letter_topics(self, spec: AgentSpec) -> dict[str, str]:
        """Returns the dead letter topic of each input, for an agent whose dead letters go to topics."""
        return dead_letter_topics(spec, self.specs, self.fed)

    def open_deliveries(self, group: AgentGroup, shared: Collection[int], *, afresh: bool) -> None:
        """Opens the exactly-once sinks of a group whose agents run in another process, so that this process can
        deliver their output. Blocks. Raises the errors of opening.

        `shared`: the ids of the Sinks that streams write too; the streams open these. `afresh`: True if no checkpoint
        is restored.
        """
        for sink in self._each_once(group):
            if id(sink) not in shared:
                writer = self.writer(group, sink, afresh=afresh)
                if isinstance(writer.sink, StagedSink):
                    open_writer(writer)

    def _each_once(self, group: AgentGroup) -> Iterator[str | Sink]:
        seen: set[str | int] = set()
        for spec in self.of(group):
            for sink in (*spec.sinks.values(), *self._letters_places(spec)):
                if place_of_sink(sink) not in seen:
                    seen.add(place_of_sink(sink))
                    yield sink
