"""The accounts of budgets that only one process spends from. An account counts the rows of the ledger, and the
reservations of calls in flight.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from sabot.agents.accounts.budgets import FITS, Budget, Judgement, Standing, judge
from sabot.agents.accounts.contract import LedgerEvent, LedgerWriter
from sabot.agents.accounts.owners import SettledRow
from sabot.base.accounts import NOTHING, WINDOWS, Account, Amounts, window_start
from sabot.clock import Clock


class LocalAccounts:
    """The usage and the reservations of the scopes of a ledger, kept in this process. Used if no other process spends
    from the same budgets; otherwise SharedAccounts, which has the same methods, is used. All methods are called on
    one event loop.

    The usage of a scope (a tenant) is read from its stored rows when it is needed for the first time.
    """

    def __init__(
        self, writer: LedgerWriter, *, patience_s: float, clock: Clock, flush: Callable[[], Awaitable[object]]
    ) -> None:
        """Makes the accounts. Each account begins with the usage in the rows that `writer` has stored. `flush` is
        called before these rows are read. It must wait until all rows of the ledger are stored. `patience_s`: the
        longest time in seconds for which the ledger asks again for a judgement if the writer does not answer.
        """
        self.patience_s = patience_s
        self.by_scope: dict[str, Account] = {}
        self._writer, self._clock, self._flush = writer, clock, flush
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._settled = 0

    def set_budget(self, budget: Budget) -> None:
        """Replaces the limits of the budget's scope (a tenant). The usage so far remains."""
        self.by_scope.setdefault(budget.scope_id, Account(windows=WINDOWS)).limits = [*budget.limits()]

    def forget(self, scope_id: str) -> None:
        """Drops the account of a scope (a tenant) from memory, unless it has reservations or is being loaded. The
        account is loaded from the stored rows when it is needed again.
        """
        loading, account = self._loading.get(scope_id), self.by_scope.get(scope_id)
        if account is not None and account.reserved == NOTHING and (loading is None or loading.done()):
            del self.by_scope[scope_id]
            self._loading.pop(scope_id, None)

    async def load(self, scope_id: str) -> None:
        """Loads the account of a scope (a tenant): it then contains the usage in the rows of the scope. Does nothing
        if the scope has no account.
        """
        account = self.by_scope.get(scope_id)
        if account is None:
            return
        loading = self._loading.get(scope_id)
        if loading is None:
            loading = self._loading[scope_id] = asyncio.create_task(self._load(scope_id, account))
        if not loading.done():
            await asyncio.shield(loading)
        loading.result()

    async def _load(self, scope: str, account: Account) -> None:
        try:
            settled = -1
            # a row settled meanwhile may or may not be in the sums: they are read again
            while settled != self._settled:
                settled = self._settled
                await self._flush()
                now = self._clock.time()
                began = {each: window_start(each, now) for each in WINDOWS}
                used = {each: (at, await self._writer.used(scope, round(at * 1000))) for each, at in began.items()}
        except BaseException:
            del self._loading[scope]  # the next call tries again
            raise
        account.restore(used, account.reserved)

    async def ready(self, scope_id: str) -> None:
        """Waits until the account of the scope (a tenant) is loaded."""
        await self.load(scope_id)

    # -- calls --------------------------------------------------------------------------------------------------------

    def reserve(
        self, budget: Budget, call: str, wanted: Amounts, doubts: Sequence[LedgerEvent] = ()
    ) -> Judgement | Awaitable[Judgement]:
        """Checks a call against `budget`, and returns the judgement. If the decision is ALLOW or WARN, reserves
        `wanted` for the call, in place of its earlier reservation. Otherwise the earlier reservation remains. If the
        usage of the scope (a tenant) is not loaded yet, returns an awaitable of the judgement. `doubts` is not used.
        """
        loading = self._loading.get(budget.scope_id)
        if loading is None or not loading.done():
            return self._reserve_loaded(budget, call, wanted)
        return self._reserve(budget, call, wanted)

    async def _reserve_loaded(self, budget: Budget, call: str, wanted: Amounts) -> Judgement:
        await self._loaded(budget)
        return self._reserve(budget, call, wanted)

    async def _loaded(self, budget: Budget) -> Account:
        """Returns the account of the budget's scope (a tenant), loaded. It may have been dropped meanwhile (`forget`)."""
        while True:
            if budget.scope_id not in self.by_scope:
                self.set_budget(budget)
            await self.load(budget.scope_id)
            if (account := self.by_scope.get(budget.scope_id)) is not None:
                return account

    def _reserve(self, budget: Budget, call: str, wanted: Amounts) -> Judgement:
        account = self.by_scope[budget.scope_id]
        had = account.release(call)
        judged = judge(budget, account, wanted, self._clock.time())
        reserved = wanted if judged.decision in FITS else had
        if reserved != NOTHING:
            account.reserve(call, reserved)
        return judged

    def hold(self, budget: Budget, call: str, wanted: Amounts, doubts: Sequence[LedgerEvent] = ()) -> None:
        """Reserves `wanted` for a call, even if the budget has no room for it. It replaces an earlier reservation of
        the call. `doubts` is not used.
        """
        self.by_scope[budget.scope_id].reserve(call, wanted)

    def release(self, budget: Budget, call: str) -> None:
        """Ends the reservation of a call. Does nothing if the call has none."""
        self.by_scope[budget.scope_id].release(call)

    # -- rows and accounts --------------------------------------------------------------------------------------------

    def settled(self, event: LedgerEvent, call: str) -> SettledRow:
        """Adds the usage in a row to the account of its scope (a tenant), and ends the reservation of the call.
        Returns the row as the SettledRow that is later passed to `settle`.
        """
        account = self.by_scope.get(event.scope_id)
        if account is not None:
            account.settle(call, event.adds, self._clock.time())
        self._settled += 1
        return SettledRow(event)

    async def settle(self, rows: Sequence[SettledRow], *, corrects: bool = False) -> int:
        """Stores rows. With `corrects`, stored rows with the same id and other content are replaced. Returns the
        number of these replaced rows, which is 0 without `corrects`. Raises the errors of the writer.
        """
        events = [each.event for each in rows]
        if corrects:
            return await self._writer.correct(events)
        await self._writer.write(events)
        return 0

    async def standing(self, budget: Budget) -> Standing:
        """Returns the usage of the budget's scope (a tenant) in the current hour, day and month, and its
        reservations.
        """
        account, now = await self._loaded(budget), self._clock.time()
        return Standing(account.used(now), account.reserved, now)

    async def close(self) -> None:
        """Does nothing: the ledger closes its writer."""
