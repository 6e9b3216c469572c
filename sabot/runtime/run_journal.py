"""The journal of the durable agents of a run, as long as it is open here. Without such agents nothing of journals and jobs is loaded."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sabot.checkpoint import Manifest
from sabot.runtime.agent_groups import TASK
from sabot.runtime.facts import stored_journal
from sabot.runtime.runnable import RunnableAgent
from sabot.runtime.settings import RunnableApp
from sabot.state.base import LocalBackend

if TYPE_CHECKING:
    from sabot.journal import Journal


class RunJournal:
    """journal, mail: what its mailboxes are kept in. None: not open here. Its methods block."""

    def __init__(self, app: RunnableApp, agents: Mapping[str, RunnableAgent]) -> None:
        self.journal: Journal | None = None
        self.mail: LocalBackend | None = None
        self._app, self._agents = app, agents

    @property
    def _durable(self) -> bool:
        return any(agent.spec is not None and agent.spec.durable for agent in self._agents.values())

    def open(self) -> None:
        """Opens it, before --fresh removes the checkpoints. Its owner is the worker that runs the agents: there it is begun anew alone."""
        if self._durable and self._app.workers is None:
            self.journal, self.mail = self._app.open_journal()
        elif self._durable and self._app.settings.fresh:
            journal, mail = self._app.open_journal()
            mail.shut()
            journal.close()

    def check(self, manifest: Manifest | None, place: object) -> Mapping[str, Any] | None:
        """Raises what `check_journal` raises. place: where checkpoints were looked for. Where durable agents have gone from the program,
        the journal says whether their jobs have. Returns what the checkpoint says of it; None: it knows of none.
        """
        facts = stored_journal(manifest, TASK)
        if self.journal is None and facts is not None and (not self._durable or self._app.workers is None):
            self.journal, self.mail = self._app.open_journal()
        if self.journal is not None:
            from sabot.runtime.jobs import check_journal  # imported late: it loads what runs jobs

            check_journal(self.journal, facts, place)
        return facts

    def close(self, *, ran: bool) -> None:
        """ran: everything was open. If not, what this opening has made goes with it (`Journal.abandon`)."""
        try:
            if self.mail is not None:
                self.mail.shut()
        finally:
            if self.journal is not None:
                self.journal.close() if ran else self.journal.abandon()
