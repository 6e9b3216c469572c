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
    """A step of a call on the account of its scope.

    - `kind`: "reserve" reserves `wanted` if the budget has room for it. "hold" reserves `wanted` in any case. "release"
      ends the reservations of the call that its process made under this number or a lower one.
    - `number`: the number of the step. Each process numbers its own steps.
    - `doubts`: the rows that are written for the call if its process dies.
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
    """A row, and the call whose reservation ends with it.

    - `call`: the name of the call, or "" if no reservation ends.
    - `number`: a number of a step of the process. The row ends only a reservation that the process made in this step or
      an earlier one.
    """

    event: LedgerEvent
    call: str = ""
    number: int = 0


class BudgetBatch(NamedTuple):
    """The steps and rows that a process sends to an owner at once.

    - `holder`: the id of the process, or "" if the rows end no reservation.
    - `lease_s`: the seconds for which the reservations of the process stay valid after this batch.
    - `now_s`: the time in seconds since 1970; with None the owner uses its own clock.
    - `machine_s`: the time by the clock of the process, in seconds since 1970. The owner compares it with its own
      clock. With None it does not compare.
    - `corrects`: True if the rows replace stored rows that have the same ids and other content.
    """

    holder: str
    lease_s: float
    now_s: float | None = None
    machine_s: float | None = None
    steps: Sequence[BudgetStep] = ()
    rows: Sequence[SettledRow] = ()
    corrects: bool = False


class BatchResult(NamedTuple):
    """The answer of an owner to a batch.

    - `judgements`: a judgement for each step of the kind "reserve", in order.
    - `used`: the usage in the current windows, by scope, without reservations.
    - `corrected`: the number of stored rows that were replaced because the batch has `corrects`.
    - `now_s`: the time of the batch in seconds since 1970, by the clock that decides when windows end.
    - `reserved`: the sum of the reservations of all processes, by scope.
    """

    judgements: list[Judgement]
    used: Mapping[str, Mapping[Window, Amounts]]
    corrected: int = 0
    now_s: float = 0.0
    reserved: Mapping[str, Amounts] = MappingProxyType({})


@runtime_checkable
class BudgetOwner(Protocol):
    """A writer of rows that also keeps the accounts of scopes for several processes. Rows, reservations and accounts
    change in one transaction. Each process uses its owner in one event loop.
    """

    where: str
    """The server or file of the owner, for messages."""

    async def work(self, batch: BudgetBatch) -> BatchResult:
        """Does all steps of a batch, and returns the answer. The changes are durable when it returns. Raises
        TransientError if it is not known whether the changes are durable; the caller may then give the same batch
        again. Raises DataError, and changes nothing, if the content of a row cannot be stored. Raises UserError if the
        owner refuses the batch.
        """


class Reservation(NamedTuple):
    """A reservation in the form in which the owner stores it. `holder` is the id of the process that made it, and
    `number` the number of the step in which the process made it. `doubts` are the rows that are written if this process
    dies.
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
    """The accounts, reservations and rows of an owner, as one transaction sees them. No other transaction changes the
    accounts that it returns.
    """

    @abstractmethod
    def now(self) -> float:
        """Returns the seconds since 1970 by the clock of the owner."""

    @abstractmethod
    def accounts(self, scopes: Collection[str], now_s: float) -> dict[str, Account]:
        """Locks and returns the accounts of these scopes. A new account begins with the usage of the existing rows."""

    @abstractmethod
    def known(self, scopes: Collection[str]) -> set[str]:
        """Returns those of these scopes that have an account."""

    @abstractmethod
    def reservations(self, calls: Collection[str]) -> list[Reservation]:
        """Returns the reservations of these calls, in all scopes."""

    @abstractmethod
    def dead(self, scopes: Collection[str], now_s: float) -> list[Reservation]:
        """Returns the reservations in these scopes whose process is gone, because its lease had ended at the time `now_s`."""

    @abstractmethod
    def rows(self, event_ids: Collection[str]) -> dict[str, LedgerEvent]:
        """Returns the rows with these ids, by id."""

    @abstractmethod
    def put_accounts(self, accounts: Mapping[str, Account]) -> None:
        """Stores accounts."""

    @abstractmethod
    def put_reservations(self, kept: Sequence[Reservation], dropped: Sequence[tuple[str, str]]) -> None:
        """Stores the reservations `kept`, and removes the reservations `dropped`, each given as (scope, call)."""

    @abstractmethod
    def put_rows(self, events: Sequence[LedgerEvent], replaced: Collection[str]) -> None:
        """Stores rows. First it removes the stored rows whose ids are in `replaced`."""

    @abstractmethod
    def hold(self, holder: str, until_s: float, now_s: float) -> None:
        """Extends the lease of the process `holder` until the time `until_s`. Forgets the processes whose leases have
        ended at the time `now_s` and that have no reservations.
        """


def check_skew(machine_s: float | None, now_s: float, where: str) -> None:
    """Raises UserError if the clock of a machine (`machine_s`) and the clock of an owner (`now_s`) differ so much that
    windows would be wrong. Does nothing if `machine_s` is None.
    """
    if machine_s is not None and abs(machine_s - now_s) > SKEW_SECONDS:
        raise UserError(
            f"the clock of this machine is {machine_s - now_s:+.0f} s off that of the {where}: budgets of several machines end and begin "
            f"by it, and {SKEW_SECONDS:.0f} s are allowed for",
            hint="set both by NTP",
        )


class _BatchWork:
    """The state of an owner while it does a batch."""

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
        in_doubt = [row.event_id for step in batch.steps if step.kind == "hold" for row in step.doubts]
        in_doubt += [row.event_id for each in self.dead for row in each.doubts]
        ids = {*(row.event.event_id for row in batch.rows), *in_doubt}
        self.rows = book.rows(ids) if ids else {}
        self.written: dict[str, LedgerEvent] = {}
        self.replaced: set[str] = set()
        self.corrected = 0

    def change(self, scope: str, call: str, kept: Reservation | None) -> None:
        """Replaces the reservation of a call by `kept`, or removes it if `kept` is None."""
        before = self.reserved.pop((scope, call), None)
        self.accounts[scope].reserve_instead(
            NOTHING if before is None else before.amounts, NOTHING if kept is None else kept.amounts
        )
        if kept is not None:
            self.reserved[scope, call] = kept
        if before is not None or kept is not None:
            self.changed[scope, call] = kept

    def release(self, scope: str, call: str, number: int) -> None:
        """Ends the reservation of a call if this process made it in the step `number` or an earlier one."""
        had = self.reserved.get((scope, call))
        if had is not None and had.holder == self.batch.holder and had.number <= number:
            self.change(scope, call, None)

    def take(self, step: BudgetStep) -> Judgement | None:
        """Does a step. Returns the judgement if the step is of the kind "reserve", otherwise None."""
        if step.kind == "release":
            self.release(step.scope, step.call, step.number)
            return None
        account, wanted = self.accounts[step.scope], step.wanted
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
        else:  # attempts that have a row already are not reserved
            for row in step.doubts:
                if (counted := self.rows.get(row.event_id)) is not None and counted.type == "doubt":
                    wanted = wanted.minus(row.amounts)
        kept = Reservation(step.scope, step.call, self.batch.holder, step.number, wanted, step.doubts)
        self.change(step.scope, step.call, kept if wanted != NOTHING else None)
        return judged

    def settle(self, event: LedgerEvent, corrects: bool = False) -> None:
        """Counts a row, and stores it. A row whose id is stored already is left out, with two exceptions: a row that
        settles a doubt replaces the doubt, and with `corrects` a row replaces the stored one.
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
        """Ends a reservation whose process is gone. Stores the rows of type "doubt" that the process has left with the
        reservation.
        """
        self.reserved.setdefault((each.scope, each.call), each)
        self.change(each.scope, each.call, None)
        for row in each.doubts:
            self.settle(msgspec.structs.replace(row, at_ms=round(self.now_s * 1000)))


def work(book: AccountStore, batch: BudgetBatch) -> BatchResult:
    """Does a batch within the transaction of `book`, and returns the answer."""
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
    """Returns a batch of rows that end no reservation."""
    return BudgetBatch("", 0.0, rows=[SettledRow(each) for each in events], corrects=corrects)


def opened_account(used: Callable[[int], Amounts], now_s: float) -> Account:
    """Returns a new account that begins with the usage of its scope in the current windows. `used` is a function of a
    time in milliseconds since 1970. It returns the usage of the scope since that time.
    """
    account, began = Account(windows=WINDOWS), {each: window_start(each, now_s) for each in WINDOWS}
    account.restore({each: (start, used(round(start * 1000))) for each, start in began.items()})
    return account


def _said(event: LedgerEvent) -> LedgerEvent:
    """Returns a row without the fields that tables do not store."""
    return msgspec.structs.replace(event, agent="", settles=None)
