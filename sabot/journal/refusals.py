"""Jobs that the code of a worker cannot continue: the table `refusals` of a journal that several workers share.

   refusals      by tree of jobs: the versions of the workers whose code has refused it, and the highest number of these workers
   worker -3     has these trees, with the reason in `jobs.blocked`, for a worker of another version, or one that starts later

So in a rolling update a job that only the old code or only the new code can continue goes to the workers that can.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sabot.journal.crashes import ONE_TREE, ROOT, in_trees, tree_of

REFUSED = -3

_THERE = "SELECT to_regclass('refusals')"
_MAKE = 'CREATE TABLE refusals (tree text COLLATE "C" PRIMARY KEY, versions text[] NOT NULL, last bigint NOT NULL)'
_ADD = (
    "INSERT INTO refusals VALUES (%s, ARRAY[%s], %s) ON CONFLICT (tree) DO UPDATE SET "
    "last = greatest(refusals.last, excluded.last), "
    "versions = refusals.versions || (CASE WHEN excluded.versions <@ refusals.versions THEN '{}' ELSE excluded.versions END)"
)
_MOVE = (
    f"UPDATE jobs SET worker = {REFUSED}, blocked = CASE WHEN ended IS NULL THEN %s ELSE blocked END "
    f"WHERE {in_trees(ONE_TREE)} AND worker = %s"
)
_TO_TRY = (
    f"SELECT job FROM jobs JOIN refusals ON tree = {ROOT} WHERE worker = {REFUSED} AND ended IS NULL "
    "AND (last < ? OR NOT ? = ANY(versions)) LIMIT ?"
)
_FORGET = "DELETE FROM refusals r USING jobs j WHERE j.job = r.tree AND j.ended IS NOT NULL AND j.worker <> -3"


def make_refusals(connection: Any) -> None:
    """Adds the table to a shared journal that does not have it. The caller holds the lock under which journals are made."""
    if connection.execute(_THERE).fetchall() == [(None,)]:
        connection.execute(_MAKE)


def refuse(connection: Any, reasons: Mapping[str, str], version: str, number: int) -> None:
    """Notes that the worker with this number and version cannot continue these trees, and takes them from it. `reasons`: by the id
    of a job of the tree, why. Called in a transaction.
    """
    for job, why in reasons.items():
        tree = tree_of(job)
        connection.execute(_ADD, (tree, version, number))
        connection.execute(_MOVE, (why[:500], tree, number))
    connection.execute(_FORGET)


def to_try(number: int, version: str, most: int) -> tuple[str, Sequence[Any]]:
    """Returns the statement that selects jobs which workers have refused and this one may try, and its values."""
    return _TO_TRY, (number, version, most)
