"""The owner of the accounts of scopes, if several processes spend from the same budgets.

    ledger A ─ BudgetBatch ─┐
    ledger B ─ BudgetBatch ─┼─▶ owner: one batch at a time ─▶ `work`: rows, reservations, accounts change together, or not at all
    ledger C ─ BudgetBatch ─┘

A reservation belongs to the process that made it, and is valid for the time of that process's lease. Each batch from the
process extends the lease. When a lease has ended, the reservations of its process become rows of type "doubt". They still
count, because the calls may have to be paid. If a row with the result of such a call comes later, it replaces the doubt.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from sabot.agents.accounts.budgets import FITS, Budget, Judgement, judge
from sabot.agents.accounts.contract import LedgerEvent
from sabot.base.accounts import NOTHING, SKEW_SECONDS, WINDOWS, Account, Amounts, Window, window_start
from sabot.errors import UserError


class BudgetStep(NamedTuple):
    """A request to change the reservation of one call in a shared account.

    - `kind`: "reserve" reserves `wanted` if the budget has room for it. "hold" reserves `wanted` in any case. "release"
      ends the reservation of the call.
    - `number`: the sequence number of a "reserve" or "hold" step; each process numbers its own steps. For "release",
      the number of the last step before it: only a reservation that the process made up to that step is ended. So a
      later reservation of the call remains, and so does a reservation of another process.
    - `doubts`: the rows that replace the reservation if the process dies before the call has ended. They have the type
      "doubt", because the outcome of the call is then not known.
    """

    kind: Literal["reserve", "hold", "release"]
    budget: Budget
    call: str
    number: int
    wanted: Amounts = NOTHING
    doubts: tuple[LedgerEvent, ...] = ()

    @property
    def scope(self) -> str:
        """The scope of the budget."""
        return self.budget.scope_id


class SettledRow(NamedTuple):
    """A ledger row, and the call whose reservation ends when the row is stored.

    - `call`: the name of the call, or "" if no reservation ends.
    - `number`: the number of the last step that the process had made when it recorded the row (`BudgetStep.number`).
      Only a reservation that the process made up to that step is ended. So a later reservation of the same call
      remains.
    """

    event: LedgerEvent
    call: str = ""
    number: int = 0


class BudgetBatch(NamedTuple):
    """The steps and rows that a process sends together to the owner of shared budgets (`BudgetOwner`). They are
    applied in one transaction.

    - `holder`: the id of the process that makes the reservations, or "" if the batch contains only rows without
      reservations.
    - `lease_s`: the seconds for which the reservations of the process remain valid after this batch.
    - `now_s`: the time that the owner uses for the batch, in seconds since 1970. With None the owner uses its own
      clock.
    - `machine_s`: the time on the clock of the process's machine, in seconds since 1970. An owner on another machine
      refuses the batch if this differs by more than 60 seconds from its own clock. With None this is not checked.
    - `corrects`: True if stored rows that have the same ids as rows of the batch, and other content, are replaced.
    """

    holder: str
    lease_s: float
    now_s: float | None = None
    machine_s: float | None = None
    steps: Sequence[BudgetStep] = ()
    rows: Sequence[SettledRow] = ()
    corrects: bool = False


class BatchResult(NamedTuple):
    """The answer of the owner of shared budgets (`BudgetOwner`) to a batch.

    - `judgements`: the judgements of the steps of the kind "reserve", in the order of these steps.
    - `used`: for each scope (a tenant), the usage in the current hour, day and month, without reservations.
    - `corrected`: the number of stored rows that were replaced because `BudgetBatch.corrects` is True.
    - `now_s`: the time that the owner used for the batch, in seconds since 1970.
    - `reserved`: for each scope, the sum of the reservations of all processes.
    """

    judgements: list[Judgement]
    used: Mapping[str, Mapping[Window, Amounts]]
    corrected: int = 0
    now_s: float = 0.0
    reserved: Mapping[str, Amounts] = MappingProxyType({})


@runtime_checkable
class BudgetOwner(Protocol):
    """A ledger writer that several processes share, for example a PostgreSQL database. Beside the rows it stores the
    usage and the reservations of each scope (a tenant). One batch changes rows, reservations and usage in one
    transaction. Within one process, an owner object is used on one event loop.
    """

    where: str
    """The server or file of the owner, for messages."""

    async def work(self, batch: BudgetBatch) -> BatchResult:
        """Applies a batch, and returns the answer. The changes are durable when this method returns.

        - Raises TransientError if the owner did not answer, so that nobody knows whether the changes were made. The
          caller may send the same batch again.
        - Raises DataError if the content of a row cannot be stored. Nothing is changed.
        - Raises UserError if the owner refuses the batch for another reason.
        """


class Reservation(NamedTuple):
    """A reservation for a call, as the owner of shared budgets (`BudgetOwner`) stores it.

    - `holder`: the id of the process that made the reservation.
    - `number`: the number of the step in which the process made it (`BudgetStep.number`).
    - `doubts`: the rows that replace the reservation if this process dies before the call has ended. They have the
      type "doubt", because the outcome of the call is then not known.
    """

    scope: str
    call: str
    holder: str
    number: int
    amounts: Amounts
    doubts: tuple[LedgerEvent, ...] = ()


encode_doubts = msgspec.json.Encoder().encode
decode_doubts = msgspec.json.Decoder(tuple[LedgerEvent, ...]).decode


class AccountStore(ABC):
    """The accounts, reservations and rows of shared budgets, within one transaction. The accounts that `accounts`
    returns are locked until the transaction ends.
    """

    @abstractmethod
    def now(self) -> float:
        """Returns the seconds since 1970 by the clock of the owner."""

    @abstractmethod
    def accounts(self, scopes: Collection[str], now_s: float) -> dict[str, Account]:
        """Locks and returns the accounts of these scopes, by scope. If a scope (a tenant) has no account yet, a new
        one is returned, with the usage in the stored rows of the scope at the time `now_s`, in seconds since 1970.
        """

    @abstractmethod
    def known(self, scopes: Collection[str]) -> set[str]:
        """Returns the scopes (tenants) among `scopes` that have an account."""

    @abstractmethod
    def reservations(self, calls: Collection[str]) -> list[Reservation]:
        """Returns the reservations of the calls with these names, in all scopes (tenants)."""

    @abstractmethod
    def dead(self, scopes: Collection[str], now_s: float) -> list[Reservation]:
        """Returns the reservations in these scopes (tenants) that belong to dead processes. A process is regarded as
        dead if its lease ended before the time `now_s`, in seconds since 1970.
        """

    @abstractmethod
    def rows(self, event_ids: Collection[str]) -> dict[str, LedgerEvent]:
        """Returns the rows with these ids, by id."""

    @abstractmethod
    def put_accounts(self, accounts: Mapping[str, Account]) -> None:
        """Stores these accounts, by scope. An account that is stored already is replaced."""

    @abstractmethod
    def put_reservations(self, kept: Sequence[Reservation], dropped: Sequence[tuple[str, str]]) -> None:
        """Stores the reservations `kept`, and removes the reservations `dropped`, each given as (scope, call)."""

    @abstractmethod
    def put_rows(self, events: Sequence[LedgerEvent], replaced: Collection[str]) -> None:
        """Stores rows. First it removes the stored rows whose ids are in `replaced`."""

    @abstractmethod
    def hold(self, holder: str, until_s: float, now_s: float) -> None:
        """Extends the lease of the process `holder` until the time `until_s`. May remove other processes from the
        store if their leases ended before the time `now_s` and they have no reservations. Times are in seconds since
        1970.
        """


def check_skew(machine_s: float | None, now_s: float, where: str) -> None:
    """Raises UserError if the two clocks differ by more than 60 seconds. Then an hour, a day or a month of a budget
    would begin at a wrong time. Does nothing if `machine_s` is None.

    - `machine_s`, `now_s`: the time on the clock of a machine and on the clock of the owner, in seconds since 1970.
    - `where`: the name of the owner, for the error message.
    """
    if machine_s is not None and abs(machine_s - now_s) > SKEW_SECONDS:
        raise UserError(
            f"the clock of this machine is {machine_s - now_s:+.0f} s off that of the {where}: budgets of several machines end and begin "
            f"by it, and {SKEW_SECONDS:.0f} s are allowed for",
            hint="set both by NTP",
        )


class _BatchWork:
    """The data of one batch while it is applied: the accounts, reservations and rows that it needs, and the changes
    that are not stored yet.
    """

    def __init__(self, book: AccountStore, batch: BudgetBatch, now_s: float) -> None:
        self.book, self.batch, self.now_s = book, batch, now_s
        asked = {step.scope for step in batch.steps}
        others = {row.event.scope_id for row in batch.rows} - asked
        self.accounts = book.accounts(asked | (book.known(others) if others else set()), now_s)
        calls = {step.call for step in batch.steps} | {row.call for row in batch.rows if row.call}
        found = book.reservations(calls) if calls else ()
        self.reserved = {(each.scope, each.call): each for each in found if each.scope in self.accounts}
        self.changed: dict[tuple[str, str], Reservation | None] = {}
        dead = [each for each in book.dead(self.accounts, now_s) if each.holder != batch.holder]
        taken_over = {(step.scope, step.call) for step in batch.steps if step.kind != "release"}
        self.dead = [each for each in dead if (each.scope, each.call) not in taken_over]
        in_doubt = [row.event_id for step in batch.steps if step.kind != "release" for row in step.doubts]
        in_doubt += [row.event_id for each in self.dead for row in each.doubts]
        ids = {*(row.event.event_id for row in batch.rows), *in_doubt}
        self.rows = book.rows(ids) if ids else {}
        self.written: dict[str, LedgerEvent] = {}
        self.replaced: set[str] = set()
        self.corrected = 0

    def change(self, scope: str, call: str, kept: Reservation | None) -> None:
        """Replaces the reservation of a call with `kept`, or removes it if `kept` is None. Also changes the reserved
        amounts in the account of the scope (a tenant).
        """
        before = self.reserved.pop((scope, call), None)
        self.accounts[scope].reserve_instead(
            NOTHING if before is None else before.amounts, NOTHING if kept is None else kept.amounts
        )
        if kept is not None:
            self.reserved[scope, call] = kept
        if before is not None or kept is not None:
            self.changed[scope, call] = kept

    def release(self, scope: str, call: str, number: int) -> None:
        """Ends the reservation of a call, if the process that sent the batch made it in a step with this `number` or
        a lower one. Otherwise does nothing.
        """
        had = self.reserved.get((scope, call))
        if had is not None and had.holder == self.batch.holder and had.number <= number:
            self.change(scope, call, None)

    def take(self, step: BudgetStep) -> Judgement | None:
        """Applies one step of the batch. Returns the judgement if the step is of the kind "reserve", otherwise None."""
        if step.kind == "release":
            self.release(step.scope, step.call, step.number)
            return None
        account, wanted = self.accounts[step.scope], step.wanted
        for row in step.doubts:  # attempts that have a row already are not reserved
            if (counted := self.rows.get(row.event_id)) is not None and counted.type == "doubt":
                wanted = wanted.minus(row.amounts)
        judged = None
        if step.kind == "reserve":
            before = self.reserved.get((step.scope, step.call))
            had = NOTHING if before is None else before.amounts
            account.reserve_instead(had, NOTHING)
            account.limits = [*step.budget.limits()]
            judged = judge(step.budget, account, wanted, self.now_s)
            account.reserve_instead(NOTHING, had)
            if judged.decision not in FITS:
                return judged
        kept = Reservation(step.scope, step.call, self.batch.holder, step.number, wanted, step.doubts)
        self.change(step.scope, step.call, kept if wanted != NOTHING else None)
        return judged

    def settle(self, event: LedgerEvent, corrects: bool = False) -> None:
        """Adds the amounts of a row to the account of its scope (a tenant), and remembers the row to be stored. Does
        nothing if a row with the same id is stored already, with two exceptions:

        - A row with the known outcome of a call replaces a row of type "doubt", which says that the outcome is not
          known.
        - With `corrects`, a row replaces a stored row that has other content.
        """
        before = self.rows.get(event.event_id)
        if before is not None:
            settles = before.type == "doubt" and event.type != "doubt"
            wrong = corrects and (before.type == "doubt") == (event.type == "doubt") and _said(before) != _said(event)
            if not (settles or wrong):
                return
            self.corrected += wrong
            self.count(before, -1)
            self.replaced.add(event.event_id)
        self.count(event, 1)
        self.rows[event.event_id] = self.written[event.event_id] = event

    def count(self, event: LedgerEvent, sign: int) -> None:
        account = self.accounts.get(event.scope_id)
        if account is not None:
            account.add(event.amounts.times(sign), self.now_s, event.at_ms / 1000)

    def expire(self, each: Reservation) -> None:
        """Ends a reservation whose process is dead. Records the rows that are stored with the reservation. They have
        the type "doubt": the outcome of the call is not known, and its reserved amounts are counted as used.
        """
        self.reserved.setdefault((each.scope, each.call), each)
        self.change(each.scope, each.call, None)
        for row in each.doubts:
            self.settle(msgspec.structs.replace(row, at_ms=round(self.now_s * 1000)))


def work(book: AccountStore, batch: BudgetBatch) -> BatchResult:
    """Applies a batch: ends the reservations of dead processes, records the rows, and takes the steps in their order.
    Stores all changes in `book`, and returns the answer. The caller must have begun a transaction for `book`, and
    commits it.
    """
    now_s = book.now() if batch.now_s is None else batch.now_s
    if not batch.holder:  # the rows may be of an earlier time: their window must not end before they are counted
        now_s = min(now_s, max(row.event.at_ms for row in batch.rows) / 1000)
    working = _BatchWork(book, batch, now_s)
    for reservation in working.dead:
        working.expire(reservation)
    for row in batch.rows:
        if row.call and row.event.scope_id in working.accounts:
            working.release(row.event.scope_id, row.call, row.number)
        working.settle(row.event, batch.corrects)
    judged = [working.take(step) for step in batch.steps]
    if working.written:
        book.put_rows(list(working.written.values()), working.replaced)
    if working.changed:
        kept = [each for each in working.changed.values() if each is not None]
        book.put_reservations(kept, [name for name, each in working.changed.items() if each is None])
    if working.accounts:
        book.put_accounts(working.accounts)
    if batch.holder:
        book.hold(batch.holder, now_s + batch.lease_s, now_s)
    used = {scope: account.used(now_s) for scope, account in working.accounts.items()}
    reserved = {scope: account.reserved for scope, account in working.accounts.items()}
    return BatchResult([each for each in judged if each is not None], used, working.corrected, now_s, reserved)


def batch_of_rows(events: Sequence[LedgerEvent], *, corrects: bool = False) -> BudgetBatch:
    """Returns a batch that stores these rows and ends no reservations."""
    return BudgetBatch("", 0.0, rows=[SettledRow(each) for each in events], corrects=corrects)


def opened_account(used: Callable[[int], Amounts], now_s: float) -> Account:
    """Returns a new account with the usage of a scope (a tenant) in the hour, the day and the month that contain the
    time `now_s`, in seconds since 1970. `used(since_ms)` must return the usage of the scope since that time, in
    milliseconds since 1970.
    """
    account, began = Account(windows=WINDOWS), {each: window_start(each, now_s) for each in WINDOWS}
    account.restore({each: (start, used(round(start * 1000))) for each, start in began.items()})
    return account


def _said(event: LedgerEvent) -> LedgerEvent:
    """Returns a copy of a row without the fields that a database does not store (`agent` and `settles`). Used to
    compare the content of rows.
    """
    return msgspec.structs.replace(event, agent="", settles=None)
