"""Begins jobs in a journal that several workers share: in a transaction of Sabot's own, or in one that the caller has open.

   meta     the row of the format is locked against a change of the tables, but not against other letters: nobody waits for an open
            transaction that begins jobs
   inbox    a letter for each job. One for the same job waits until the transaction of the first one has ended

The numbers of these letters do not rise in the order of their commits, as those of a journal with one owner do: workers find a letter
that begins a job by its agent.

The functions run no statements, but yield them: the caller's connection may be one of asyncio. Tables are named with their schema.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from sabot.connectors.sql.database import quoted
from sabot.errors import UserError
from sabot.journal.base import entry_of_letter
from sabot.journal.entries import Begin, Letter, decode_letter, encode_letter
from sabot.journal.entry_counts import parts
from sabot.journal.job_tables import WITH_SEATS
from sabot.journal.schemas import JournalSchema
from sabot.journal.seats import columns_of

T = TypeVar("T")

Asked: TypeAlias = Generator[tuple[str, Sequence[Any]], list[tuple[Any, ...]], T]
"""Yields statements with their values, gets the rows that each has found, and returns a result."""

_THERE = "SELECT to_regclass(%s) IS NOT NULL"
_FORMAT = "SELECT value FROM {schema}.meta WHERE name = 'format' FOR KEY SHARE"
_KEY = "SELECT value FROM {schema}.meta WHERE name = 'key'"
_MARKED = "SELECT job FROM {schema}.jobs WHERE job = ANY(%s::text[])"
_DIGESTS = _MARKED.replace("SELECT job", "SELECT job, digest")
_QUEUED = "SELECT letter FROM {schema}.inbox WHERE once = ANY(%s::text[]) AND taken = 0"
_TYPES = {
    "once": "text",
    "job": "text",
    "letter": "bytea",
    "agent": "text",
    "scope": "text",
    "key": "text",
    "priority": "bigint",
    "after_ms": "bigint",
}
# The numbers are drawn in the order of the letters. The rows are written in the order of their names: of two transactions that begin
# the same jobs one waits for the other, and never each for the other.
_POST = (
    "INSERT INTO {{schema}}.inbox (number, {names}) SELECT * FROM (SELECT nextval(pg_get_serial_sequence(%s, 'number')), * "
    "FROM unnest({arrays})) AS new (number, {names}) ORDER BY once ON CONFLICT (once) DO NOTHING RETURNING job"
).format(names=", ".join(_TYPES), arrays=", ".join(f"%s::{each}[]" for each in _TYPES.values()))


def post_begins(place: JournalSchema, letters: Sequence[Letter]) -> Asked[list[bool]]:
    """Posts letters that begin jobs, at most several hundred. Returns what `Inbox.begin` does. The format of the journal is locked."""
    schema, first = quoted(place.schema), dict[str, int]()
    for number, letter in enumerate(letters):
        first.setdefault(letter.job, number)
    marked = yield _MARKED.format(schema=schema), (list(first),)
    for (job,) in marked:
        del first[job]
    new = set[str]()
    if rows := [_row(letters[number]) for number in first.values()]:
        columns = [list(values) for values in zip(*rows, strict=True)]
        posted = yield _POST.format(schema=schema), (f"{schema}.inbox", *columns)
        new.update(job for (job,) in posted)
    return [letter.job in new and first.get(letter.job) == number for number, letter in enumerate(letters)]


def _row(letter: Letter) -> tuple[Any, ...]:
    told = {"once": letter.once, "job": letter.job, "letter": encode_letter(letter), **columns_of(letter)}
    return tuple(told[name] for name in _TYPES)


def lock_format(place: JournalSchema) -> Asked[int]:
    """Returns the version of the format, which stays so until the transaction ends."""
    ((form,),) = yield _FORMAT.format(schema=quoted(place.schema)), ()
    return place.known_format(form)


def begin_jobs(
    place: JournalSchema, letters_of: Callable[[bytes], Sequence[Letter]]
) -> Asked[list[tuple[bool, bytes | None]]]:
    """Begins jobs in a transaction of the caller. Returns for each letter what `Inbox.begin` does, and of a job that was there the
    digest of its request, or None if it is forgotten. `letters_of`: makes the letters, from the key of the journal.

    Raises UserError if the database of the transaction does not have the journal, or if it has one owner.
    """
    schema = quoted(place.schema)
    ((there,),) = yield _THERE, (f"{schema}.meta",)
    if not there:
        raise UserError(
            f"start: the database of connection= does not have the {place.where}",
            hint="give a connection to that database",
        )
    if (yield from lock_format(place)) not in WITH_SEATS:
        raise UserError(
            f"start: the {place.where} has one owner, and connection= is for one that several workers share",
            hint="RuntimeKernel(…, shared=True), which a single process may have too",
        )
    ((key,),) = yield _KEY.format(schema=schema), ()
    letters, found = letters_of(bytes.fromhex(key)), list[tuple[bool, bytes | None]]()
    for some in parts(letters):
        posted = yield from post_begins(place, some)
        before = [letter.job for letter, is_new in zip(some, posted, strict=True) if not is_new]
        digests = (yield from _digests(place, before)) if before else {}
        found += [(is_new, digests.get(letter.job)) for letter, is_new in zip(some, posted, strict=True)]
    return found


def _digests(place: JournalSchema, jobs: Sequence[str]) -> Asked[dict[str, bytes]]:
    """Returns, by job, the digests of the requests of jobs that the journal knows."""
    schema = quoted(place.schema)
    # letters first: if a worker takes one meanwhile, its mark is there
    queued = yield _QUEUED.format(schema=schema), ([f"begin:{job}" for job in jobs],)
    marked = yield _DIGESTS.format(schema=schema), (list(jobs),)
    found = {job: bytes(digest) for job, digest in marked}
    for (data,) in queued:
        begin = entry_of_letter(decode_letter(data, place.where), None, 0)
        if isinstance(begin, Begin):
            found[begin.job] = begin.digest
    return found
