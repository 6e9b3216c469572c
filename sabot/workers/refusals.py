"""Refusals of apps that cannot run in several processes."""

from collections.abc import Sequence
from typing import Protocol

from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import Read, StreamEnd, Write
from sabot.base.config import parse_broker
from sabot.base.redaction import redacted_url
from sabot.errors import UserError
from sabot.journal.opening import is_at_server
from sabot.plan import walk
from sabot.runtime.jobs import journal_place
from sabot.state import StateBackend
from sabot.workers.agents import AppWithAgents


class SpreadApp(AppWithAgents, Protocol):
    """An app that is to run in several processes."""

    @property
    def state_backend(self) -> StateBackend | None:
        """A backend of the user's own, or None."""


def refuse(app: SpreadApp, ends: Sequence[StreamEnd], agents: Sequence[AgentSpec]) -> None:
    """Raises UserError if the app has anything that exists in one process only, such as a broker in memory."""
    if agents and app.state_backend is not None:
        raise UserError(
            f"app {app.id} has a state_backend= of its own, which exists in this process only, but its agents run in a worker",
            hint="use state=DIRECTORY; or start without --workers",
        )
    _refuse_local_journal(app, agents)
    topics = [node.name for node in walk(ends) if isinstance(node, Read) and isinstance(node.source, str)]
    topics += [end.sink for end in ends if isinstance(end, Write) and isinstance(end.sink, str)]
    topics += [each for spec in agents for each in (*spec.inputs, *spec.sinks.values()) if isinstance(each, str)]
    if topics and parse_broker(app.settings.broker)[0] == "memory":
        raise UserError(
            f"topic {topics[0]} is at {app.settings.broker}, which exists in one process only, but --workers uses several",
            hint='App(…, broker="kafka://host:port"), or --broker; or start without --workers',
        )


def _refuse_local_journal(app: SpreadApp, agents: Sequence[AgentSpec]) -> None:
    durable = next((spec.agent_id for spec in agents if spec.durable), None)
    if durable is not None and not is_at_server(journal := journal_place(app)):
        raise UserError(
            f"agent {durable} is durable, but its journal {redacted_url(str(journal))} is not on a server, as workers need it",
            hint='App(…, journal="kafka://…") or journal="postgresql://…"; or start without --workers',
        )
