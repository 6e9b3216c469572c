"""`sabot ledger` sums up the usage of jobs; `sabot budgets` shows the budgets of an app or a kernel, and their use so far."""

import asyncio
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

import typer

from sabot.agents.accounts.contract import LedgerWriter
from sabot.agents.accounts.journal_rows import update_ledger
from sabot.agents.accounts.ledger import Ledger
from sabot.agents.accounts.reads import LimitRecord, limit_records, sum_facts
from sabot.agents.accounts.rows import DATABASE, InMemoryLedgerWriter, SqliteLedgerWriter
from sabot.agents.kernel import RuntimeKernel
from sabot.agents.stores.ledger import PostgresLedgerWriter
from sabot.app import App
from sabot.base.config import parse_seconds
from sabot.base.quantities import plain
from sabot.cli.journal import Json, quietly, reading
from sabot.cli.loading import load_program
from sabot.cli.options import Kafka
from sabot.cli.printing import columns, json_line
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import UserError
from sabot.journal.sqlite import DATABASE as JOURNAL

Place = Annotated[
    str,
    typer.Argument(
        metavar="PLACE",
        help=f"The ledger: a state directory, the folder of a kernel, or the {DATABASE} in it; or postgresql://user@host/database with the "
        "table runtime_ledger. Or a journal, for the entries that are not trimmed yet: postgresql://user@host/database?app=NAME, "
        "kafka://host:port/topic.",
    ),
]


def _is_journal(place: str) -> bool:
    parts = urlsplit(place)
    return parts.scheme == "kafka" or (parts.scheme in ("postgresql", "postgres") and "app" in parse_qs(parts.query))


def _has_only_journal(path: Path) -> bool:
    """Returns True if this is the state directory of an app, or the folder of a kernel, without budgets: the journal has
    the usage.
    """
    journals = (path / "journal" / JOURNAL, path / JOURNAL)
    return path.is_dir() and not (path / DATABASE).is_file() and any(each.is_file() for each in journals)


async def _writer(place: str, kafka: list[str] | None) -> LedgerWriter:
    """Opens the ledger at `place` for reading. The rows of a journal are read into memory. Raises UserError if there is no ledger."""
    path = Path(place)
    if _is_journal(place) or _has_only_journal(path):
        writer = InMemoryLedgerWriter()
        with reading(place, kafka) as reader:
            await update_ledger(Ledger(writer), reader)
        return writer
    if "://" in place:
        return PostgresLedgerWriter(place, make=False)
    found = path / DATABASE if path.is_dir() else path
    if not found.is_file():
        raise UserError(f"{place} has no ledger", hint=f"give a state directory with a {DATABASE}, or its path")
    return SqliteLedgerWriter(found)


def ledger(
    place: Place,
    by: Annotated[
        str,
        typer.Option(
            metavar="WORDS", help="The columns to sum by, with commas: scope, principal, job, type, model, tool, day."
        ),
    ] = "scope,model",
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only calls since this time ago: 1d, 6h, 30m.")
    ] = None,
    json: Json = False,
    kafka: Kafka = None,
) -> None:
    """Sum up the calls, tokens and cost of durable jobs.

    The columns in_doubt and cost_in_doubt are upper bounds for calls that may or may not have been made.
    """

    def work() -> None:
        words = [each.strip() for each in by.split(",") if each.strip()]
        since_ms = 0 if since is None else round((SYSTEM_CLOCK.time() - parse_seconds(since, name="--since")) * 1000)

        async def sums() -> list[Any]:
            writer = await _writer(place, kafka)
            try:
                return await writer.sums(words, since_ms)
            finally:
                await writer.close()

        found = asyncio.run(sums())
        rows = [sum_facts(words, each) for each in found]
        _print(rows, json, [*words, "calls", "read", "written", "in_doubt", "cost", "cost_in_doubt", "unpriced"])

    quietly(work)


def budgets(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:APP", help="The module, and the App or RuntimeKernel in it.")
    ],
    json: Json = False,
) -> None:
    """Show the budgets of an app or a kernel, and their use so far in the current windows."""

    def work() -> None:
        program = load_program(target)
        rows = asyncio.run(_used(program))
        _print(rows, json, ["scope", "window", "limit", "used", "in_doubt", "reserved", "of", "part"])

    quietly(work)


async def accounts_of(program: App | RuntimeKernel) -> Ledger | None:
    """Returns the ledger of a program with its budgets, or None if the program has no budgets. The caller closes the ledger.

    If the program's ledger is in memory and its journal is not a local file, the usage is read from the journal.
    """
    if isinstance(program, RuntimeKernel):
        return await program.accounts()
    accounts = program.accounts
    if (
        accounts is not None
        and isinstance(accounts.writer, InMemoryLedgerWriter)
        and "://" in str(program.settings.journal)
    ):
        with program.jobs.store.reader() as reader:
            await update_ledger(accounts, reader)
    return accounts


async def _used(program: App | RuntimeKernel) -> list[dict[str, Any]]:
    accounts = await accounts_of(program)
    what = f"app {program.id}" if isinstance(program, App) else f"kernel {program.name}"
    if accounts is None or not accounts.budgets:
        made = type(program).__name__
        raise UserError(f"{what} has no budgets", hint=f'{made}(…, budgets=[Budget("scope", max_cost_daily=…)])')
    try:
        return list(map(_row, await limit_records(accounts)))
    finally:
        await accounts.close()


def _row(limit: LimitRecord) -> dict[str, Any]:
    return {
        "scope": limit.scope,
        "window": limit.window,
        "limit": limit.measure,
        "used": plain(limit.used),
        "in_doubt": plain(limit.in_doubt),
        "reserved": plain(limit.reserved),
        "of": plain(limit.limit),
        "part": f"{limit.part:.0%}",
    }


def _print(rows: list[dict[str, Any]], json: bool, titles: list[str]) -> None:
    if json:
        for row in rows:
            json_line(row)
    else:
        columns(titles, [list(row.values()) for row in rows])
