"""The durable agents of an app, and its guards, as the runtime uses them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from sabot.agents.accounts.reads import BudgetQuery, budget_facts
from sabot.agents.durable.run import (
    DurableJobs,
    check_journal,
    journal_place,
    open_app_journal,
    tell_of_journal,
)
from sabot.agents.job_history import job_keeping
from sabot.agents.policy.names import tools_of
from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import StreamEnd
from sabot.base.redaction import redacted_url
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.plan import ways_of_labels
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.state.base import LocalBackend
from sabot.errors import UserError
from sabot.jobs.guard import EffectGuard, guard_of
from sabot.jobs.judges import GuardJudge, judge_of
from sabot.journal import Journal
from sabot.journal.memory import MemoryStorage
from sabot.journal.opening import is_at_server

_log = logging.getLogger(__name__)


class DurableKind:
    """The durable agents and the guards of an app. It implements the interface through which the runtime uses them
    (`runtime.agents.kind.AgentKind`).
    """

    def __init__(self, app: AppSpec) -> None:
        self._app = app

    def open(self) -> "AppJournal":
        """Opens the journal of the app, and the store of its mailboxes, which hold rows that wait for the current job
        of their key. Blocks. Raises UserError if the journal or the store cannot be opened.
        """
        app, storage = self._app, self._app.checkpoints()
        if app.journal_storage is None or storage is None or app.settings.forget_effects:
            app.journal_storage = MemoryStorage(app.clock)
        journal, mail = open_app_journal(app, storage, app.journal_storage)
        journal.keeping = job_keeping(app.settings.keep_jobs)
        return AppJournal(app, journal, mail)

    def judge(self, guards: Sequence[EffectGuard]) -> GuardJudge | None:
        """Returns an object that asks `guards` before each model call that the app makes outside of a job, for
        example in a stream. Returns None if `guards` has no guard.
        """
        return judge_of(self._app.id, guards, self._app.clock)

    async def budgets(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a report of the app's budgets and their usage, as a dict with the fields of BudgetFacts. `asked`
        contains the parameters of the report, with the fields of BudgetQuery. Raises UserError if the app has no
        budgets.
        """
        if self._app.accounts is None:
            raise UserError(f"app {self._app.id} has no budgets", hint='App(…, budgets=[Budget("scope", …)])')
        facts = await budget_facts(self._app.accounts, msgspec.convert(asked, BudgetQuery))
        return cast("dict[str, Any]", msgspec.to_builtins(facts))

    def warn_of_unused(self) -> None:
        """Logs a warning about budgets of scopes that have called no model in this run, at its end."""
        if self._app.accounts is not None:
            self._app.accounts.warn_of_unused_budgets()

    def warn_of_lost_labels(self, agents: Sequence[AgentSpec], ends: Sequence[StreamEnd]) -> None:
        """Logs a warning for each pair of durable agents between which something drops the labels that the jobs of the
        first have: those of its records, and of tools that its code names. The second agent is left out if it declares
        the same labels itself. `ends`: the streams of the app.
        """
        ways = ways_of_labels(agents, ends)
        if not ways:
            return
        labels = {
            each.agent_id: {*each.labels, *(label for tool in tools_of([each.func]) for label in tool.labels)}
            for each in agents
        }
        arriving = [pair for pair, by in ways.items() if not by]
        for _ in arriving:  # as often as the longest way through several agents needs
            for first, second in arriving:
                labels[second] |= labels[first]
        own = {each.agent_id: {*each.labels} for each in agents}
        for (first, second), by in ways.items():
            if by and (lost := sorted(labels[first] - own[second])):
                _log.warning(
                    "app %s: results of agent %s reach agent %s by %s, and the labels of its data are lost on the way: jobs "
                    "of %s do not have %s, and rules about it do not hold for them; @app.agent(…, labels=%s) for agent "
                    "%s, or let it read the topic of the first agent itself",
                    self._app.id,
                    first,
                    second,
                    by,
                    second,
                    ", ".join(map(repr, lost)),
                    lost,
                    second,
                )

    def refuses(self, agents: Sequence[AgentSpec]) -> None:
        """Raises UserError if one of these agents is durable, and the journal of the app is a local directory or in
        memory. Then other worker processes could not use the journal.
        """
        durable = next((spec.agent_id for spec in agents if spec.durable), None)
        if durable is not None and not is_at_server(journal := journal_place(self._app)):
            raise UserError(
                f"agent {durable} is durable, but its journal {redacted_url(str(journal))} is not on a server, as workers need it",
                hint='App(…, journal="kafka://…") or journal="postgresql://…"; or start without --workers',
            )


class AppJournal:
    """The open journal of an app, with the store of its mailboxes (the rows that wait until the current job of their
    key has ended).
    """

    def __init__(self, app: AppSpec, journal: Journal, mail: LocalBackend) -> None:
        self._app, self.journal, self._mail = app, journal, mail

    def check(self, facts: Mapping[str, Any] | None, place: object = None) -> None:
        """Checks that the journal belongs to the checkpoint from which the app starts. Blocks.

        - `facts`: the data about the journal in that checkpoint, or None if there are none.
        - `place`: the place of the checkpoints, for the error message.

        Raises OtherJournal if the journal is another one, or lacks entries that the checkpoint needs. Raises
        UserError if the journal contains jobs, but `facts` is None.
        """
        check_journal(self.journal, facts, place)

    def tell(self, facts: Mapping[str, Any], newest: Mapping[str, Any] | None) -> None:
        tell_of_journal(self.journal, facts, newest)

    def run(
        self,
        guards: Sequence[EffectGuard],
        *,
        known: bool,
        storage: CheckpointStorage | None,
        on_broken: Callable[[str, BaseException], None],
    ) -> DurableJobs:
        """Makes the DurableJobs, which runs the jobs of the durable agents in one run of the app. The caller must
        then call `DurableJobs.open`.

        - `guards`: the guards that decide on effects of jobs.
        - `known`: True if a complete checkpoint contains a position in this journal, or if the app makes no
          checkpoints. With False no job begins until such a checkpoint is complete.
        - `storage`: the storage of the checkpoints, or None.
        - `on_broken`: a function that is called with a description and an error, if the state and the output of jobs
          may no longer agree.
        """
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
        """Closes the journal and the mailboxes. Blocks. `ran` must be False if the app refused to start. Then the
        journal is also deleted if this process has just created it.
        """
        try:
            self._mail.shut()
        finally:
            self.journal.close() if ran else self.journal.abandon()
