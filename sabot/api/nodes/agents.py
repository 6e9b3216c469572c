"""Where rows of a stream go into an agent."""

from dataclasses import dataclass

from sabot.api.agent import AgentSpec
from sabot.api.nodes.node import Columns, refused_changes
from sabot.api.nodes.read import StreamEnd
from sabot.errors import UserError

__all__ = ["Feed"]


@dataclass(frozen=True, eq=False)
class Feed(StreamEnd):
    """Rows go into the lanes of an agent. key: the column that is the key of the records, for an agent that takes records."""

    word = "to"
    agent: AgentSpec
    key: str | None = None

    def text(self) -> str:
        return f"feed agent {self.agent.agent_id}"

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset(name for name in (self.key, *self._schema_names) if name is not None),)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (frozenset(self._schema_names) or None,)

    @property
    def _schema_names(self) -> tuple[str, ...]:
        """The columns that a batch agent wants; a record agent gets all."""
        schema = self.agent.schema
        return tuple(schema.names) if self.agent.batch and schema is not None else ()

    def check(self) -> None:
        """Raises UserError also for a key of rows that are no records."""
        if self.input.changes:
            raise refused_changes(f"to(agent {self.agent.agent_id})")
        if self.key is not None and self.agent.batch:
            raise UserError(
                f"to(agent {self.agent.agent_id}): key={self.key!r} is of records, and a batch agent gets columns",
                hint="leave key= out",
            )
        super().check()
