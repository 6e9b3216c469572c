"""The journal of the durable agents of a run, while it is open in this process. Without durable agents no module of
journals is loaded.
"""

from collections.abc import Mapping
from typing import Any

from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.runtime.agents.groups import TASK
from sabot.engine.runtime.agents.kind import OpenJournal
from sabot.engine.runtime.agents.runnable import any_durable
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.tasks.manifest_facts import stored_journal
from sabot.errors import CorruptCheckpoint


class RunJournal:
    """The journal of a run. `opened` is None while it is not open in this process. Methods block."""

    def __init__(self, app: AppSpec) -> None:
        self.opened: OpenJournal | None = None
        self._app = app

    @property
    def _durable(self) -> bool:
        return any_durable(self._app.agents.values())

    def open(self) -> None:
        """Opens the journal, empty for `--fresh --forget-effects`. If a worker runs the agents, the worker opens the journal;
        then this method only empties it.
        """
        if self._durable and self._app.workers is None:
            self.opened = self._app.durable_kind().open()
        elif self._durable and self._app.settings.fresh:
            self._app.durable_kind().open().close()

    def check(self, manifest: Manifest | None, place: object) -> Mapping[str, Any] | None:
        """Compares the journal with the checkpoint. Returns the checkpoint's facts about the journal, or None. Raises
        the errors of `OpenJournal.check`. `place`: the place of the checkpoints.

        If the program has no durable agents any more, the journal is opened all the same, because it may have open
        jobs.
        """
        facts = stored_journal(manifest, TASK)
        if self.opened is None and facts is not None and (not self._durable or self._app.workers is None):
            self.opened = self._app.durable_kind().open()
        if self.opened is not None:
            self.opened.check(facts, place)
        return facts

    def tell_of_savepoint(self, facts: Mapping[str, Any], storage: CheckpointStorage) -> None:
        """Logs how far the journal has gone since a savepoint. `facts`: those of the savepoint about the journal."""
        if self.opened is None:
            return
        try:
            newest = stored_journal(storage.latest(), TASK)
        except CorruptCheckpoint:  # `Origin.find` has logged it
            newest = None
        self.opened.tell(facts, newest)

    def close(self, *, ran: bool) -> None:
        """Closes the journal. `ran`: False if the start failed; a journal that this start has made is then removed."""
        if self.opened is not None:
            self.opened.close(ran=ran)
