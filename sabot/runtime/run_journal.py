"""The journal of the durable agents of a run, while it is open in this process. Without durable agents no module of
journals is loaded.
"""

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
    """The journal of a run, and `mail`, the store of the mailboxes. Both are None while they are not open in this
    process. Methods block.
    """

    def __init__(self, app: RunnableApp, agents: Mapping[str, RunnableAgent]) -> None:
        self.journal: Journal | None = None
        self.mail: LocalBackend | None = None
        self._app, self._agents = app, agents

    @property
    def _durable(self) -> bool:
        return any(agent.spec is not None and agent.spec.durable for agent in self._agents.values())

    def open(self) -> None:
        """Opens the journal. Called before `--fresh` removes the checkpoints. If a worker runs the agents, the worker
        opens the journal; then this method only empties the journal for `--fresh`.
        """
        if self._durable and self._app.workers is None:
            self.journal, self.mail = self._app.open_journal()
        elif self._durable and self._app.settings.fresh:
            journal, mail = self._app.open_journal()
            mail.shut()
            journal.close()

    def check(self, manifest: Manifest | None, place: object) -> Mapping[str, Any] | None:
        """Compares the journal with the checkpoint. Returns the checkpoint's facts about the journal, or None. Raises
        the errors of `check_journal`. `place`: the place of the checkpoints.

        If the program has no durable agents any more, the journal is opened all the same, because it may have open
        jobs.
        """
        facts = stored_journal(manifest, TASK)
        if self.journal is None and facts is not None and (not self._durable or self._app.workers is None):
            self.journal, self.mail = self._app.open_journal()
        if self.journal is not None:
            from sabot.runtime.jobs import (
                check_journal,
            )  # imported late, because it loads the rooms of jobs and durable agents

            check_journal(self.journal, facts, place)
        return facts

    def close(self, *, ran: bool) -> None:
        """Closes the journal. `ran`: False if the start failed; a journal that this start has made is then removed
        (`Journal.abandon`).
        """
        try:
            if self.mail is not None:
                self.mail.shut()
        finally:
            if self.journal is not None:
                self.journal.close() if ran else self.journal.abandon()
