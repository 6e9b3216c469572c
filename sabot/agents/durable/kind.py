"""The durable agents of an app, and its guards, as the runtime uses them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from sabot.agents.accounts.reads import BudgetQuery, budget_facts
from sabot.agents.durable.run import DurableJobs, JournalOwner, check_journal, journal_place, open_app_journal
from sabot.agents.job_history import job_keeping
from sabot.api.agent import AgentSpec
from sabot.base.redaction import redacted_url
from sabot.checkpoint import CheckpointStorage
from sabot.errors import UserError
from sabot.jobs.guard import EffectGuard, guard_of
from sabot.jobs.judges import GuardJudge, judge_of
from sabot.journal import Journal
from sabot.journal.memory import MemoryStorage
from sabot.journal.opening import is_at_server
from sabot.state.base import LocalBackend


class DurableKind:
    """The durable agents of an app, in the form of the runtime's plug for them (`runtime.agent_kind.AgentKind`)."""

    def __init__(self, app: JournalOwner) -> None:
        self._app = app

    def open(self) -> "AppJournal":
        """Opens the journal of the app, and the store of its mailboxes. Blocks. Raises UserError if they cannot be opened."""
        app, storage = self._app, self._app.checkpoints()
        if app.journal_storage is None or storage is None or app.settings.forget_effects:
            app.journal_storage = MemoryStorage(app.clock)
        journal, mail = open_app_journal(app, storage, app.journal_storage)
        journal.keeping = job_keeping(app.settings.keep_jobs)
        return AppJournal(app, journal, mail)

    def judge(self, guards: Sequence[EffectGuard]) -> GuardJudge | None:
        """Returns a judge for the model calls that are made outside of jobs. It asks the guards in `guards`. Returns
        None if none of these guards judges such calls.
        """
        return judge_of(self._app.id, guards, self._app.clock)

    async def budgets(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of the app's `BudgetFacts`. `asked` has the fields of a `BudgetQuery`. Raises UserError if
        the app has no budgets.
        """
        if self._app.accounts is None:
            raise UserError(f"app {self._app.id} has no budgets", hint='App(…, budgets=[Budget("scope", …)])')
        facts = await budget_facts(self._app.accounts, msgspec.convert(asked, BudgetQuery))
        return cast("dict[str, Any]", msgspec.to_builtins(facts))

    def refuses(self, agents: Sequence[AgentSpec]) -> None:
        """Raises UserError if one of these agents is durable and the app's journal is not on a server. Other processes
        of the app could not reach such a journal.
        """
        durable = next((spec.agent_id for spec in agents if spec.durable), None)
        if durable is not None and not is_at_server(journal := journal_place(self._app)):
            raise UserError(
                f"agent {durable} is durable, but its journal {redacted_url(str(journal))} is not on a server, as workers need it",
                hint='App(…, journal="kafka://…") or journal="postgresql://…"; or start without --workers',
            )


class AppJournal:
    """The journal of an app and the store of its mailboxes, while both are open in this process."""

    def __init__(self, app: JournalOwner, journal: Journal, mail: LocalBackend) -> None:
        self._app, self.journal, self._mail = app, journal, mail

    def check(self, facts: Mapping[str, Any] | None, place: object = None) -> None:
        """Checks that the journal belongs to the checkpoint from which the app starts (`check_journal`). `facts` are
        the facts about the journal in the checkpoint, or None. `place` is the place of the checkpoints, for the error
        message. Blocks.
        """
        check_journal(self.journal, facts, place)

    def run(
        self,
        guards: Sequence[EffectGuard],
        *,
        known: bool,
        storage: CheckpointStorage | None,
        on_broken: Callable[[str, BaseException], None],
    ) -> DurableJobs:
        """Makes the jobs of one run of the app over this journal. The caller then opens them (`DurableJobs.open`)."""
        return DurableJobs(
            self.journal,
            self._mail,
            clock=self._app.clock,
            known=known,
            storage=storage,
            dedupe_s=self._app.settings.dedupe_s,
            listener=self._app.listener,
            guard=guard_of(guards),
            on_broken=on_broken,
        )

    def close(self, *, ran: bool = True) -> None:
        """Closes the journal and the mailboxes. Blocks. `ran` is False if the start of the app was refused. In that
        case a journal that this start has created is removed (`Journal.abandon`).
        """
        try:
            self._mail.shut()
        finally:
            self.journal.close() if ran else self.journal.abandon()
