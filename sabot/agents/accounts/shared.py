"""The accounts of budgets that several processes share. A process does not keep the accounts itself: it sends requests to the
owner of the budgets, in batches, and waits for the answers.

reserve, hold, release ─▶ queue ─┐
rows ───────────────────▶ queue ─┴─▶ BudgetBatch ─▶ owner ─▶ answers     one batch at a time: later requests wait for the next
"""

import asyncio
import logging
import math
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from sabot.agents.accounts.budgets import FITS, Budget, Judgement, Standing
from sabot.agents.accounts.contract import LedgerEvent
from sabot.agents.accounts.owners import BatchResult, BudgetBatch, BudgetOwner, BudgetStep, SettledRow
from sabot.base.accounts import Amounts
from sabot.base.backoff import Backoff
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.errors import BudgetUnavailable
from sabot.errors import DataError, TransientError, UserError, message_of

_log = logging.getLogger(__name__)

_MOST_AT_ONCE = 1000  # the most steps of a batch
_BEATS = 5  # the batches that a process with calls in flight sends in the time of a lease
SHORT_PATIENCE_S = 10.0
"""The most seconds for which a start, a question about the usage, and the end of a ledger wait for the owner."""
BACKOFF = Backoff(0.02, 1.0)  # the waits between attempts to send a batch


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """A request that waits to be sent to the owner of shared budgets (`BudgetOwner`). It contains a step, or rows, or
    neither. An empty request is sent to renew the lease of the process, or to wait until the owner has applied all
    requests before it.

    - `corrects`: True if stored rows with the same ids as `rows`, and other content, are replaced.
    - `answer`: the future on which the caller waits, or None if no caller waits for the answer.
    """

    step: BudgetStep | None = None
    rows: Sequence[SettledRow] = ()
    corrects: bool = False
    answer: "asyncio.Future[Any] | None" = None

    @property
    def given_up(self) -> bool:
        """True if the caller no longer waits for the answer, because it has got an error or was cancelled. Then the
        request is not sent.
        """
        return self.answer is not None and self.answer.done()

    def fails(self, error: Exception) -> bool:
        """Raises `error` in the task that awaits the answer, and returns True. Returns False if nobody awaits the answer."""
        if self.answer is None:
            return False
        if not self.answer.done():
            self.answer.set_exception(error)
        return True


class SharedAccounts:
    """The accounts of a ledger whose budgets are shared by several processes. The usage and the reservations are kept
    by a BudgetOwner. This object sends requests to it in batches, and passes on its answers. All methods are called
    on one event loop. LocalAccounts has the same methods.
    """

    def __init__(
        self,
        owner: BudgetOwner,
        *,
        lease_s: float,
        patience_s: float,
        clock: Clock,
        beat: Callable[[], object],
        flush: Callable[[], Awaitable[object]],
    ) -> None:
        """Makes the connection between one ledger and `owner`.

        - `lease_s`: the seconds for which the reservations of this process remain valid after its last batch.
        - `patience_s`: the longest time in seconds that a call, or rows, wait for an owner that does not answer.
        - `clock`: the clock by which hours, days and months begin. With SYSTEM_CLOCK the clock of the owner is used
          instead.
        - `beat`: a function that is called five times in each lease. The ledger uses it to try again to write its
          rows.
        - `flush`: a function that waits until all rows of the ledger are stored.
        """
        self.owner = owner
        self._holder = uuid.uuid4().hex
        self._lease_s, self.patience_s, self._clock = lease_s, patience_s, clock
        self._beat, self._flush = beat, flush
        self._queue: deque[_Pending] = deque()
        self._open: set[tuple[str, str]] = set()  # scope and call of each reservation that the owner may have
        self._number = 0
        self._working: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._failed: Exception | None = None
        self._closed = False

    def set_budget(self, budget: Budget) -> None:
        """Does nothing, because each step that is sent to the owner contains the budget."""

    def forget(self, scope_id: str) -> None:
        """Does nothing, because the owner keeps the accounts."""

    async def load(self, scope_id: str) -> None:
        """Does nothing, because the owner keeps the accounts."""

    # -- calls --------------------------------------------------------------------------------------------------------

    async def reserve(
        self, budget: Budget, call: str, wanted: Amounts, doubts: Sequence[LedgerEvent] = ()
    ) -> Judgement:
        """Asks the owner to check a call against the budget, and to reserve `wanted` if the budget has room for it
        (`Ledger.reserve`). Returns the judgement. `doubts` are the rows with which the owner replaces the reservation
        if this process dies before the call has ended; the outcome of the call is then not known.

        Raises BudgetUnavailable if the owner does not answer, or refuses the request. If the call already had a
        reservation, it is then not known which of the two reservations is valid.
        """
        key = budget.scope_id, call
        had = key in self._open
        step = self._step("reserve", budget, call, wanted, doubts)
        try:
            judged: Judgement = await self._answer(step)
        except BaseException:
            if not had:  # the owner may have made the reservation before the failure
                self.release(budget, call)
            raise
        if not had and judged.decision not in FITS:
            self._open.discard(key)
        return judged

    def hold(self, budget: Budget, call: str, wanted: Amounts, doubts: Sequence[LedgerEvent] = ()) -> None:
        """Reserves `wanted` for a call, even if the budget has no room for it. The request is sent to the owner with
        the next batch. `doubts` are the rows with which the owner replaces the reservation if this process dies
        before the call has ended; the outcome of the call is then not known.
        """
        self._put(_Pending(self._step("hold", budget, call, wanted, doubts)))

    def release(self, budget: Budget, call: str) -> None:
        """Ends the reservation of a call. The request is sent to the owner with the next batch. Does nothing if the
        call has no reservation.
        """
        number = self._released(budget.scope_id, call)
        if number:
            self._put(_Pending(BudgetStep("release", budget, call, number)))

    def _released(self, scope_id: str, call: str) -> int:
        """Removes the call from the set of calls that may have a reservation. Returns the number of the last step that
        this process has made, or 0 if the call has no reservation. The caller sends this number to the owner, so that a
        reservation that the call gets later is not ended (`BudgetStep.number`).
        """
        if (scope_id, call) not in self._open:
            return 0
        self._open.discard((scope_id, call))
        return self._number

    def _step(
        self,
        kind: Literal["reserve", "hold"],
        budget: Budget,
        call: str,
        wanted: Amounts,
        doubts: Sequence[LedgerEvent],
    ) -> BudgetStep:
        self._number += 1
        self._open.add((budget.scope_id, call))
        return BudgetStep(kind, budget, call, self._number, wanted, tuple(doubts))

    # -- rows and accounts --------------------------------------------------------------------------------------------

    def settled(self, event: LedgerEvent, call: str) -> SettledRow:
        """Returns the row as the SettledRow that is later passed to `settle`. When the owner stores the row, its
        usage is counted, and the reservation of `call` ends.
        """
        number = self._released(event.scope_id, call)
        return SettledRow(event, call if number else "", number)

    async def settle(self, rows: Sequence[SettledRow], *, corrects: bool = False) -> int:
        """Sends rows to the owner, and waits until they are stored. Then their usage is counted, and the reservations
        of their calls have ended. With `corrects`, stored rows with the same id and other content are replaced;
        returns their number.

        Raises DataError if the content of a row cannot be stored, TransientError if the owner does not answer, and
        UserError if it refuses the rows for another reason.
        """
        corrected: int = await self._answer(None, rows, corrects=corrects)
        return corrected

    async def standing(self, budget: Budget) -> Standing:
        """Returns the usage of the budget's scope (a tenant) in the current hour, day and month, and the sum of the
        reservations of all processes. Before that, it waits until the rows of this ledger are stored. Raises
        BudgetUnavailable if the owner does not answer, and the errors of the writer if the rows cannot be stored.
        """
        await self._flush()
        standing: Standing = await self._answer(BudgetStep("release", budget, "", 0), most_s=SHORT_PATIENCE_S)
        return standing

    async def ready(self, scope_id: str) -> None:
        """Waits until the owner has stored all reservations and releases that this ledger has queued so far, in all
        scopes. Raises TransientError if the owner does not answer, and UserError if it refuses a request.
        """
        await self._answer(None)

    async def close(self) -> None:
        """Sends the waiting requests, and ends the background tasks. If the owner does not answer within ten
        seconds, or refuses a request, raises no error, and requests may remain unsent.

        The owner keeps the reservations of calls that have not ended. When the lease of this process has ended, the
        owner replaces each of these reservations by a row of type "doubt": the outcome of the call is not known. If
        another process then continues the job, its row with the known outcome replaces the row of type "doubt".

        A request that is made after `close` is still sent. But no more requests are sent only to renew the lease.
        """
        self._closed = True
        beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
        if self._queue or self._working is not None:
            with suppress(TransientError, UserError):
                await self._answer(None, most_s=SHORT_PATIENCE_S)
        working, self._working = self._working, None
        if working is not None:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    # -- batches ------------------------------------------------------------------------------------------------------

    async def _answer(
        self,
        step: BudgetStep | None,
        rows: Sequence[SettledRow] = (),
        *,
        corrects: bool = False,
        most_s: float = math.inf,
    ) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(_Pending(step, rows, corrects, answer))
        patience_s = min(most_s, self.patience_s)
        try:
            async with asyncio.timeout(patience_s):
                return await answer
        except TimeoutError as error:
            why = "no answer" if self._failed is None else message_of(self._failed)
            lacks = TransientError(f"{self.owner.where} has not answered for {patience_s:g} s: {why}")
            if step is None:
                raise lacks from error
            raise self._unavailable(step, lacks) from error
        except (UserError, DataError) as error:
            if step is None:
                raise
            raise self._unavailable(step, error) from error

    def _unavailable(self, step: BudgetStep, error: Exception) -> BudgetUnavailable:
        return BudgetUnavailable(f"what the budget of {step.scope} has left is not known: {message_of(error)}")

    def _put(self, asked: _Pending) -> None:
        self._queue.append(asked)
        if self._working is None:
            loop = asyncio.get_running_loop()
            self._working = loop.create_task(self._work(), name="shared budgets")
            if self._beating is None and not self._closed:
                self._beating = loop.create_task(self._beats(), name="lease of shared budgets")

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _BEATS)
            self._beat()
            if self._open:
                self._put(_Pending())

    async def _work(self) -> None:
        failures = alone = 0
        try:
            while self._queue:
                taken = self._taken(1 if alone else _MOST_AT_ONCE)
                alone = max(0, alone - 1)
                try:
                    worked = await self.owner.work(self._batch(taken))
                except DataError as error:  # one row is wrong: each is sent by itself, so that the others are done
                    if len(taken) > 1:
                        self._queue.extendleft(reversed(taken))
                        alone = len(taken)
                    elif not taken[0].fails(error):
                        _log.error(
                            "budgets: %s does not take what a call reserves: %s", self.owner.where, message_of(error)
                        )
                except TransientError as error:
                    if self._failed is None:
                        _log.warning(
                            "budgets: %s does not answer, and calls wait: %s", self.owner.where, message_of(error)
                        )
                    self._failed = error
                    self._queue.extendleft(reversed(taken))
                    failures += 1
                    await asyncio.sleep(BACKOFF.wait_s(failures))
                except UserError as error:
                    self._queue.extendleft(reversed([each for each in taken if not each.fails(error)]))
                    if all(each.answer is None for each in self._queue):
                        return  # the next call tries again
                else:
                    self._failed, failures = None, 0
                    self._tell(taken, worked)
        except Exception as error:  # a defect of the owner or of this class: it is raised in all who wait
            for each in (*taken, *self._queue):
                each.fails(error)
            self._queue.clear()
            raise
        finally:
            self._working = None

    def _taken(self, most: int) -> list[_Pending]:
        taken: list[_Pending] = []
        while self._queue and len(taken) < most and (not taken or not self._queue[0].corrects):
            each = self._queue.popleft()
            if not each.given_up:
                taken.append(each)
            if each.corrects:
                break
        return taken

    def _batch(self, taken: Sequence[_Pending]) -> BudgetBatch:
        ours = self._clock is not SYSTEM_CLOCK
        return BudgetBatch(
            self._holder,
            self._lease_s,
            now_s=self._clock.time() if ours else None,
            machine_s=None if ours else self._clock.time(),
            steps=[each.step for each in taken if each.step is not None],
            rows=[row for each in taken for row in each.rows],
            corrects=any(each.corrects for each in taken),
        )

    def _tell(self, taken: Sequence[_Pending], worked: BatchResult) -> None:
        judged = iter(worked.judgements)
        for each in taken:
            step, answer = each.step, each.answer
            said: object = worked.corrected
            if step is not None:
                scope = step.scope
                standing = Standing(
                    worked.used[scope], worked.reserved.get(scope, Amounts()), worked.now_s or self._clock.time()
                )
                said = next(judged) if step.kind == "reserve" else standing
            if answer is not None and not answer.done():
                answer.set_result(said)
