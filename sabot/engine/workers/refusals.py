"""Refusals of apps that cannot run in several processes."""

from collections.abc import Sequence

from sabot.api.agent import AgentSpec
from sabot.api.nodes.calls import LookupAsync, MapAsync, MapLlm
from sabot.api.nodes.read import Read, StreamEnd, Write
from sabot.base.config import parse_broker
from sabot.engine.plan import walk
from sabot.engine.runtime.app_spec import AppSpec
from sabot.errors import UserError

_ASKING = MapAsync, LookupAsync, MapLlm  # steps that wait for models, or for functions that may ask them


def refuse(app: AppSpec, ends: Sequence[StreamEnd], agents: Sequence[AgentSpec], workers: int) -> None:
    """Raises UserError if the app has anything that exists in one process only, such as a broker in memory."""
    if agents and app.state_backend is not None:
        raise UserError(
            f"app {app.id} has a state_backend= of its own, which exists in this process only, but its agents run in a worker",
            hint="use state=DIRECTORY; or start without --workers",
        )
    if any(spec.durable for spec in agents):
        app.durable_kind().refuses(agents)
    asking = next((f"agent {spec.agent_id} with process=" for spec in agents if spec.process), "")
    if not asking and workers > 1:
        asking = next((f"step {node.text()}" for node in walk(ends) if isinstance(node, _ASKING)), "")
    ledger = app.accounts
    if asking and ledger is not None and ledger.budgets and not ledger.shared:
        raise UserError(
            f"app {app.id} has budgets= that count in one process, and {asking} may ask models in several, each of which "
            "could use all of them",
            hint='budgets=Ledger(SqliteLedgerWriter("ledger.db", shared=True), budgets=[…]) for one machine, or '
            'PostgresLedgerWriter("postgresql://…", shared=True)',
        )
    topics = [node.name for node in walk(ends) if isinstance(node, Read) and isinstance(node.source, str)]
    topics += [end.sink for end in ends if isinstance(end, Write) and isinstance(end.sink, str)]
    topics += [each for spec in agents for each in (*spec.inputs, *spec.sinks.values()) if isinstance(each, str)]
    if topics and parse_broker(app.settings.broker)[0] == "memory":
        raise UserError(
            f"topic {topics[0]} is at {app.settings.broker}, which exists in one process only, but --workers uses several",
            hint='App(…, broker="kafka://host:port"), or --broker; or start without --workers',
        )
