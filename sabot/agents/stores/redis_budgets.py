"""Budgets that several processes share, in Redis: one script for each scope of a batch. The rows are kept by another writer.

For each scope, under `sabot:budgets:{scope}` (of a cluster one node has them all):

    :account    hash: when each window began and what was used in it, what is reserved; its epoch, which is another one when it is made
                anew; after a loss, until when living processes may still tell what they have in flight
    :reserved   hash: what is reserved for each call in flight, by whom
    :holders    sorted set: until when each process holds what it has reserved
    :doubts     hash: what rows in doubt count, until a row takes their place;   :untold  those of them that no writer has yet
    :rows       set of each hour: rows that have counted, so that none counts twice when a batch is given again
"""

import logging
import secrets
import time
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

import msgspec

from sabot.agents.accounts.budgets import (
    SKEW_SECONDS,
    WINDOWS,
    Amounts,
    BudgetDecision,
    Judgement,
    Window,
    refused,
    warned,
    warns_from,
    window_start,
)
from sabot.agents.accounts.contract import LedgerEvent, LedgerSum, LedgerWriter, checked_writer
from sabot.agents.accounts.owners import (
    REPORT_PART,
    REPORT_SLACK_S,
    BatchResult,
    BudgetBatch,
    BudgetStep,
    SettledRow,
    batch_of_rows,
    check_skew,
    held_again,
)
from sabot.connectors.redis import RedisServer
from sabot.errors import TransientError, UserError

_log = logging.getLogger(__name__)

_MEASURES = ("tokens", "cost", "calls")
_UNIT = Decimal("1e-9")  # of a dollar: scripts count in whole numbers, exactly up to nine million dollars
_SKEW_EVERY_S = 60.0
_RECENT_S = 3600.0  # rows that are newer tell that an account was there

_SCRIPT = """
local account, reserved, holders, doubts, untold, rows = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local asked = cjson.decode(ARGV[1])
local now = tonumber(asked.now)
if now == nil then
  local server = redis.call('TIME')
  now = tonumber(server[1]) + tonumber(server[2]) / 1000000
end
if asked.holder == '' then  -- rows of another time, or by another clock, end no window before they are there
  local latest = 0
  for _, row in ipairs(asked.rows) do latest = math.max(latest, tonumber(row.at)) end
  now = math.min(now, latest)
end
local hour = math.floor(now / 3600)
local function mark(id)
  redis.call('SADD', rows .. hour, id)
  redis.call('EXPIRE', rows .. hour, 7200)
end
local function text(number) return string.format('%.0f', number) end

-- the account: windows 1 to 3, and 4, what is reserved; each with tokens, cost, calls
if redis.call('EXISTS', account) == 0 then
  if not asked.used then return cjson.encode({open = string.format('%.6f', now)}) end
  redis.call('HSET', account, 'epoch', asked.epoch)
  for _, row in ipairs(asked.rows) do  -- the writer has them, so they are in what was used
    if row.doubt == 1 then
      redis.call('HSET', doubts, row.id, cjson.encode({row.amounts[1], row.amounts[2], row.amounts[3], row.at}))
    else
      mark(row.id)
    end
  end
  for at, window in ipairs(asked.used) do
    redis.call('HSET', account, at .. 'b', window[1], at .. '1', window[2], at .. '2', window[3], at .. '3', window[4])
  end
  if asked.silent > 0 then redis.call('HSET', account, 'silent', string.format('%.6f', now + asked.silent)) end
end
local epoch = redis.call('HGET', account, 'epoch')
if asked.known ~= '' and asked.known ~= epoch then return cjson.encode({epoch = epoch, lost = 1}) end
local kept = {}
local flat = redis.call('HGETALL', account)
for at = 1, #flat, 2 do kept[flat[at]] = flat[at + 1] end
local silent = tonumber(kept.silent or '0') - now  -- so long nothing is granted
local spans = {}
for at = 1, 4 do
  spans[at] = {began = tonumber(kept[at .. 'b'] or '0')}
  for measure = 1, 3 do spans[at][measure] = tonumber(kept[at .. measure] or '0') end
end
local days = math.floor(now / 86400)
local function month()  -- when it began: the civil calendar, with years that begin in March
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  return (days - (doy - math.floor((153 * mp + 2) / 5))) * 86400
end
for at, began in ipairs({now - now % 3600, days * 86400, month()}) do
  if began > spans[at].began then
    spans[at] = {began = began, 0, 0, 0}
    if at == 3 then  -- doubts of another month count no more
      local old = redis.call('HGETALL', doubts)
      for each = 1, #old, 2 do
        if tonumber(cjson.decode(old[each + 1])[4]) < began then redis.call('HDEL', doubts, old[each]) end
      end
    end
  end
end

local function count(amounts, sign, at)
  for window = 1, 3 do
    if at + asked.skew >= spans[window].began then
      for measure = 1, 3 do spans[window][measure] = spans[window][measure] + sign * tonumber(amounts[measure]) end
    end
  end
end
local function change(amounts, sign)
  for measure = 1, 3 do spans[4][measure] = spans[4][measure] + sign * tonumber(amounts[measure]) end
end
local function reservation(call)
  local found = redis.call('HGET', reserved, call)
  return found and cjson.decode(found)
end
local function release(call, number)
  local had = reservation(call)
  if had and had.holder == asked.holder and tonumber(had.number) <= tonumber(number) then
    change(had.amounts, -1)
    redis.call('HDEL', reserved, call)
  end
end
local function settle(row, at)
  local in_doubt = redis.call('HGET', doubts, row.id)
  if in_doubt then
    if row.doubt == 0 then
      local before = cjson.decode(in_doubt)
      count(before, -1, tonumber(before[4]))
      count(row.amounts, 1, at)
      redis.call('HDEL', doubts, row.id)
      mark(row.id)
    end
    return false
  end
  if redis.call('SISMEMBER', rows .. hour, row.id) == 1 or redis.call('SISMEMBER', rows .. (hour - 1), row.id) == 1 then return false end
  if asked.corrects == 1 then return false end
  count(row.amounts, 1, at)
  if row.doubt == 1 then
    redis.call('HSET', doubts, row.id, cjson.encode({row.amounts[1], row.amounts[2], row.amounts[3], text(at)}))
  else
    mark(row.id)
  end
  return true
end

-- reservations whose holder is dead
if asked.holder ~= '' then redis.call('ZADD', holders, string.format('%.6f', now + asked.lease), asked.holder) end
local dead = redis.call('ZRANGEBYSCORE', holders, '-inf', '(' .. string.format('%.6f', now))
if #dead > 0 then
  local taken_over, gone, stays = {}, {}, {}
  for _, step in ipairs(asked.steps) do if step.kind ~= 'release' then taken_over[step.call] = true end end
  for _, holder in ipairs(dead) do gone[holder] = true end
  local all = redis.call('HGETALL', reserved)
  for at = 1, #all, 2 do
    local each = cjson.decode(all[at + 1])
    if gone[each.holder] and taken_over[all[at]] then
      stays[each.holder] = true
    elseif gone[each.holder] then
      change(each.amounts, -1)
      redis.call('HDEL', reserved, all[at])
      for _, row in ipairs(each.doubts) do
        if settle({id = row[1], doubt = 1, amounts = row[2]}, now) then redis.call('HSET', untold, row[1], row[3]) end
      end
    end
  end
  for _, holder in ipairs(dead) do if not stays[holder] then redis.call('ZREM', holders, holder) end end
end

-- rows
for _, row in ipairs(asked.rows) do
  if row.call ~= '' then release(row.call, row.number) end
  redis.call('HDEL', untold, row.id)
  settle(row, tonumber(row.at))
end

-- steps
local function judged(step)
  local warning = {'allow'}
  for at, limit in ipairs(step.limits) do
    local window, measure, most = limit[1], limit[2], tonumber(limit[3])
    local used, held, wanted = spans[window][measure], spans[4][measure], tonumber(step.amounts[measure])
    local sum = used + held + wanted
    if sum > most or (wanted == 0 and measure == 2 and used >= most) then return {'refused', at, text(used), text(held)} end
    if limit[4] ~= '' and #warning == 1 and sum >= tonumber(limit[4]) then warning = {'warn', at, text(sum)} end
  end
  if silent > 0 then return {'silent', string.format('%.3f', silent)} end
  return warning
end
local said = {}
for _, step in ipairs(asked.steps) do
  if step.kind == 'release' then
    release(step.call, step.number)
  else
    local had, fits = reservation(step.call), true
    if had then change(had.amounts, -1) end
    if step.kind == 'reserve' then
      local found = judged(step)
      said[#said + 1] = found
      fits = found[1] == 'allow' or found[1] == 'warn'
    else  -- what counts as a row in doubt already is not reserved too
      for _, row in ipairs(step.doubts) do
        if redis.call('HEXISTS', doubts, row[1]) == 1 then
          for measure = 1, 3 do step.amounts[measure] = text(tonumber(step.amounts[measure]) - tonumber(row[2][measure])) end
        end
      end
    end
    if not fits then
      if had then change(had.amounts, 1) end
    else
      local amounts = step.amounts
      if tonumber(amounts[1]) == 0 and tonumber(amounts[2]) == 0 and tonumber(amounts[3]) == 0 then
        redis.call('HDEL', reserved, step.call)
      else
        change(amounts, 1)
        local kept_so = {holder = asked.holder, number = step.number, amounts = amounts, doubts = step.doubts}
        redis.call('HSET', reserved, step.call, cjson.encode(kept_so))
      end
    end
  end
end

local told = {}
for at = 1, 4 do
  local span = spans[at]
  redis.call('HSET', account, at .. 'b', text(span.began), at .. '1', text(span[1]), at .. '2', text(span[2]), at .. '3', text(span[3]))
  told[at] = {text(span[1]), text(span[2]), text(span[3])}
end
return cjson.encode({epoch = epoch, judged = said, spans = told, untold = redis.call('HVALS', untold)})
"""


class _ScopeAnswer(msgspec.Struct):
    """What the script says of a scope. open: nothing was done, as its account is to be made; so late it is. lost: nothing was done, as it
    was made anew meanwhile.
    """

    open: str = ""
    lost: int = 0
    epoch: str = ""
    judged: Any = ()
    spans: Any = ()
    untold: Any = ()


def _numbers(amounts: Amounts) -> list[str]:
    cost = (amounts.cost / _UNIT).to_integral_value(ROUND_CEILING)
    return [str(amounts.tokens), f"{cost:f}", str(amounts.calls)]


def _amounts(numbers: Sequence[str]) -> Amounts:
    return Amounts(int(numbers[0]), int(numbers[1]) * _UNIT, int(numbers[2]))


def _doubts(rows: Sequence[LedgerEvent]) -> list[list[Any]]:
    return [[row.event_id, _numbers(row.amounts), msgspec.json.encode(row).decode()] for row in rows]


def _step(step: BudgetStep) -> dict[str, Any]:
    limits = []
    for window, measure, limit in step.budget.limits() if step.kind == "reserve" else ():
        unit = _UNIT if measure == "cost" else Decimal(1)
        least = warns_from(step.budget, limit) if step.budget.warn_at < 1 else None
        limits.append(
            [
                WINDOWS.index(window) + 1,
                _MEASURES.index(measure) + 1,
                f"{(limit / unit).to_integral_value(ROUND_FLOOR):f}",
                "" if least is None else f"{(least / unit).to_integral_value(ROUND_CEILING):f}",
            ]
        )
    return {
        "kind": step.kind,
        "call": step.call,
        "number": str(step.number),
        "amounts": _numbers(step.wanted),
        "doubts": _doubts(step.doubts),
        "limits": limits,
    }


def _row(row: SettledRow) -> dict[str, Any]:
    event = row.event
    return {
        "id": event.event_id,
        "doubt": int(event.type == "doubt"),
        "amounts": _numbers(event.amounts),
        "at": repr(event.at_ms / 1000),
        "call": row.call,
        "number": str(row.number),
    }


def _judgement(step: BudgetStep, said: Sequence[Any]) -> Judgement:
    if said[0] == "allow":
        return Judgement(BudgetDecision.ALLOW)
    window, measure, limit = [*step.budget.limits()][said[1] - 1]

    def shown(number: str) -> Decimal | int:
        return int(number) if measure != "cost" else (int(number) * _UNIT).normalize() + 0

    if said[0] == "warn":
        return warned(step.budget, window, measure, limit, shown(said[2]))
    wanted = getattr(step.wanted, measure)
    return refused(step.budget, window, measure, limit, shown(said[2]), shown(said[3]), wanted)


class _Scope:
    """What this process knows of a scope. epoch: of its account. mine: what it has reserved, by call."""

    def __init__(self) -> None:
        self.epoch = ""
        self.mine: dict[str, BudgetStep] = {}

    def release(self, call: str, number: int) -> None:
        """As a step that releases."""
        if call in self.mine and self.mine[call].number <= number:
            del self.mine[call]


class RedisBudgets:
    """Keeps rows in another writer, and what scopes use and have reserved in Redis, for all processes over the same server and prefix: the
    `BudgetOwner` of the ledgers over it. What the writer has counts when the account of a scope is made, so it is best a shared table.

    Calls raise TransientError while the server does not answer, UserError where it refuses, and what the writer raises.
    """

    keeps_rows = shared = True

    def __init__(
        self, client: Any, writer: LedgerWriter, *, prefix: str = "sabot:budgets", lossy: bool = False
    ) -> None:
        """client: a `redis.asyncio.Redis`, which stays the caller's; or the address of a server. lossy: also on a server that forgets what
        it has when it ends, or when its memory is full; calls may exceed a budget then. Raises UserError, MissingExtra.
        """
        of = RedisServer if isinstance(client, str) else RedisServer.of
        self._server = of(client, "budgets", "RedisBudgets")
        self._writer, self._prefix, self._lossy = checked_writer(writer), prefix, lossy
        self.where = f"Redis at {self._server.where}"
        self._script = self._server.client.register_script(_SCRIPT)
        self._scopes: dict[str, _Scope] = {}
        self._checked_s: float | None = None
        self._trusted = lossy

    async def work(self, batch: BudgetBatch) -> BatchResult:
        """As `BudgetOwner.work`: the rows, then a script for each scope. TransientError for a call that fits where an account was lost,
        until living processes have told what they have in flight; all else of the batch is done then.
        """
        await self._check(batch)
        events, corrected = [row.event for row in batch.rows], 0
        if batch.corrects:
            corrected = await self._writer.correct(events)
        elif events:
            await self._writer.write(events)
        steps: dict[str, list[tuple[int, BudgetStep]]] = {}
        for at, step in enumerate(batch.steps):
            steps.setdefault(step.scope, []).append((at, step))
        rows: dict[str, list[SettledRow]] = {}
        for row in batch.rows:
            if row.event.type != "tool" or row.call:
                rows.setdefault(row.event.scope_id, []).append(row)
        beats = [name for name, scope in self._scopes.items() if scope.mine] if batch.holder else []
        judged: dict[int, Judgement] = {}
        used: dict[str, dict[Window, Amounts]] = {}
        reserved: dict[str, Amounts] = {}
        silent: dict[str, float] = {}
        for name in sorted({*steps, *rows, *beats}):
            numbered = steps.get(name, [])
            answer = await self._asked(name, batch, [step for _, step in numbered], rows.get(name, []))
            asking = [(at, step) for at, step in numbered if step.kind == "reserve"]
            for (at, step), said in zip(asking, answer.judged, strict=True):
                if said[0] == "silent":
                    silent[name] = float(said[1])
                else:
                    judged[at] = _judgement(step, said)
            used[name] = {window: _amounts(answer.spans[at]) for at, window in enumerate(WINDOWS)}
            reserved[name] = _amounts(answer.spans[len(WINDOWS)])
        if silent:
            name = max(silent, key=lambda each: silent[each])
            raise TransientError(
                f"{self.where} has lost the account of scope {name}: no call is granted for {silent[name]:.1f} s, in which living "
                "processes tell what they have in flight"
            )
        return BatchResult([judged[at] for at in sorted(judged)], used, corrected, reserved=reserved)

    async def _asked(
        self, name: str, batch: BudgetBatch, steps: Sequence[BudgetStep], rows: Sequence[SettledRow]
    ) -> _ScopeAnswer:
        scope = self._scopes.setdefault(name, _Scope())
        words: dict[str, Any] = {
            "now": "" if batch.now_s is None else repr(batch.now_s),
            "lease": batch.lease_s,
            "skew": SKEW_SECONDS,
            "holder": batch.holder,
            "corrects": int(batch.corrects),
            "rows": [_row(row) for row in rows],
            "steps": [_step(step) for step in steps],
        }
        held: list[BudgetStep] = []
        was_there = False
        while True:
            asked = {**words, "known": scope.epoch, "steps": [_step(step) for step in held] + words["steps"]}
            answer = await self._run(name, asked)
            if answer.open and not (steps or held or scope.mine):  # rows of a scope of which nobody has asked
                return _ScopeAnswer(spans=[_numbers(Amounts())] * 4)
            if answer.open and (held or not scope.epoch):
                asked |= await self._opening(name, batch, float(answer.open), rows, was_there)
                answer = await self._run(name, {**asked, "known": ""})
            elif answer.open or answer.lost:
                what = "%s has lost the account of scope %s: it is made anew of rows, and of what is in flight"
                _log.warning(what, self.where, name)
                was_there = True
                scope.epoch, held = answer.epoch, [held_again(step) for step in scope.mine.values()]
                continue
            break
        scope.epoch = answer.epoch
        self._keep(scope, steps, rows, answer)
        if answer.untold:
            await self._tell(name, batch, [msgspec.json.decode(each, type=LedgerEvent) for each in answer.untold])
        return answer

    async def _opening(
        self, name: str, batch: BudgetBatch, now_s: float, rows: Sequence[SettledRow], was_there: bool
    ) -> dict[str, Any]:
        """The words that make an account. silent: for how long nothing is granted, 0 at a first use. was_there: this process knows of one
        that is lost; else recent rows, which are not of this batch, tell of it.
        """
        used = []
        for window in WINDOWS:
            began = window_start(window, now_s)
            used.append([repr(began), *_numbers(await self._writer.used(name, round(began * 1000)))])
        if not was_there:
            since_ms = round((now_s - max(_RECENT_S, batch.lease_s)) * 1000)
            recent = await self._writer.used(name, since_ms)
            was_there = recent.calls > sum(row.event.amounts.calls for row in rows if row.event.at_ms >= since_ms)
        silent = batch.lease_s * REPORT_PART + REPORT_SLACK_S if was_there else 0
        return {"epoch": secrets.token_hex(8), "used": used, "silent": silent}

    async def _run(self, name: str, words: dict[str, Any]) -> _ScopeAnswer:
        place = f"{self._prefix}:{{{name}}}"
        keys = [f"{place}:{each}" for each in ("account", "reserved", "holders", "doubts", "untold", "rows")]
        with self._server.explained():
            said = await self._script(keys=keys, args=[msgspec.json.encode(words)], client=self._server.client)
        return msgspec.json.decode(said, type=_ScopeAnswer)

    def _keep(
        self, scope: _Scope, steps: Sequence[BudgetStep], rows: Sequence[SettledRow], answer: _ScopeAnswer
    ) -> None:
        judged = iter(answer.judged)
        for row in rows:
            scope.release(row.call, row.number)
        for step in steps:
            if step.kind == "release":
                scope.release(step.call, step.number)
            elif step.kind == "hold" or next(judged)[0] in ("allow", "warn"):
                scope.mine[step.call] = step

    async def _tell(self, name: str, batch: BudgetBatch, doubts: Sequence[LedgerEvent]) -> None:
        """Rows in doubt of processes that have died are written, and then Redis keeps them no more."""
        at_ms = round((time.time() if batch.now_s is None else batch.now_s) * 1000)
        rows = [msgspec.structs.replace(each, at_ms=at_ms) for each in doubts]
        await self._writer.write(rows)
        told = BudgetBatch(batch.holder, batch.lease_s, batch.now_s)
        await self._asked(name, told, [], [SettledRow(each) for each in rows])

    async def _check(self, batch: BudgetBatch) -> None:
        """Raises UserError for a server that may lose what it has, and where its clock is far off this machine's."""
        if not self._trusted:
            with self._server.explained():
                facts = await self._server.client.info("everything")
            if not facts.get("aof_enabled"):
                raise UserError(
                    f"{self.where} forgets what it has when it ends, and budgets would be spent twice",
                    hint="appendonly yes in its configuration; or RedisBudgets(…, lossy=True)",
                )
            if facts.get("maxmemory") and str(facts.get("maxmemory_policy")).startswith("allkeys"):
                raise UserError(
                    f"{self.where} forgets anything when its memory is full, and budgets would be spent twice",
                    hint="maxmemory-policy noeviction in its configuration; or RedisBudgets(…, lossy=True)",
                )
            self._trusted = True
        if batch.machine_s is not None and (
            self._checked_s is None or time.monotonic() > self._checked_s + _SKEW_EVERY_S
        ):
            with self._server.explained():
                seconds, micros = await self._server.client.time()
            check_skew(batch.machine_s, seconds + micros / 1e6, self.where)
            self._checked_s = time.monotonic()

    # -- rows ---------------------------------------------------------------------------------------------------------

    async def write(self, events: Sequence[LedgerEvent]) -> None:
        """As `LedgerWriter.write`."""
        if events:
            await self.work(batch_of_rows(events))
        else:
            await self._writer.write(events)

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """As `LedgerWriter.correct`; what scopes have used changes by what settles a doubt only."""
        return (await self.work(batch_of_rows(events, corrects=True))).corrected if events else 0

    async def known(self, event_ids: Sequence[str]) -> set[str]:
        """As `LedgerWriter.known`."""
        return await self._writer.known(event_ids)

    async def used(self, scope_id: str, since_ms: int) -> Amounts:
        """As `LedgerWriter.used`."""
        return await self._writer.used(scope_id, since_ms)

    async def sums(self, by: Sequence[str], since_ms: int) -> list[LedgerSum]:
        """As `LedgerWriter.sums`."""
        return await self._writer.sums(by, since_ms)

    async def close(self) -> None:
        """Ends the connections that are its own, and closes the writer."""
        await self._server.close()
        await self._writer.close()
