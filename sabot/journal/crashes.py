"""Sets jobs aside that kill their workers: the table `crashes` of a journal that several workers share.

   crashes       by tree of jobs: how many workers in a row have died while they held it, and it got nowhere
   worker -2     holds trees that MOST_TOGETHER workers or more have died with: each worker tries one of them at a time
   worker -1     has trees that are set aside, with the reason in `jobs.blocked`: nobody tries them before a retry

A worker that dies is blamed on all trees that it held, for nobody knows which of them has killed it; or on the one that it tried
alone. A tree is cleared by progress: a result, an answer, an end, or a wait of all its functions for something that takes long.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

from sabot.journal.entries import Answer, EffectResult, End, Entry

SUSPECTS, ASIDE = -2, -1
MOST = 10
"""The number of workers in a row that die with a tree before it is set aside."""
MOST_TOGETHER = 3
"""The number of such workers from which on the tree is tried alone."""

_BELOW = "(~[1-9][0-9]*)+"  # in an id, what follows the id of the first job of its tree; for Python and for PostgreSQL
_ROOT = re.compile(rf"{_BELOW}\Z")

ROOT = f"regexp_replace(job, '{_BELOW}$', '')"
"""In the SQL of the server: the id of the first job of the tree of a job."""


# By two searches in the index for each tree: with OR the planner compares each row of a worker with each tree, if it takes the
# table for a small one. Between the bounds are also ids that somebody has chosen, such as `root~b`, which are no children.
OF_TREE = (
    "SELECT job FROM jobs j WHERE j.job = root UNION ALL SELECT job FROM jobs j "
    f"WHERE j.job > root || '~' AND j.job < root || chr(127) AND {ROOT} = root"
)
"""Selects the jobs of the tree `root`."""


def in_trees(roots: str) -> str:
    """Returns the condition that a row of `jobs` is of one of some trees. `roots`: what has the ids of their first jobs, as its column
    `root`.
    """
    return f"jobs.job IN (SELECT theirs.job FROM {roots} CROSS JOIN LATERAL ({OF_TREE}) AS theirs)"


ONE_TREE, _TREES = "(SELECT %s::text AS root) AS trees", "unnest(%s::text[]) AS trees (root)"

_THERE = "SELECT to_regclass('crashes')"
_MAKE = (
    'CREATE TABLE crashes (tree text COLLATE "C" PRIMARY KEY, count integer NOT NULL)',
    "INSERT INTO workers (number, owner, described, life, until, gone) VALUES "
    f"({SUSPECTS}, 'suspects', 'jobs whose workers have died, tried one by one', '', 'epoch', true)",
)
_BLAME = (
    f"WITH held AS (SELECT DISTINCT {ROOT} AS tree FROM jobs WHERE worker = %(number)s AND ended IS NULL), "
    f"alone AS (SELECT tree FROM held JOIN crashes USING (tree) WHERE count >= {MOST_TOGETHER}) "
    "INSERT INTO crashes (tree, count) SELECT tree, 1 FROM held WHERE tree IN (SELECT tree FROM alone) OR NOT EXISTS (SELECT 1 FROM alone) "
    "ON CONFLICT (tree) DO UPDATE SET count = crashes.count + 1 RETURNING tree, count"
)
_MOVE = f"UPDATE jobs SET worker = %s WHERE {in_trees(_TREES)} AND worker = %s"
_NOTE = f"UPDATE jobs SET blocked = %s WHERE {in_trees(_TREES)} AND ended IS NULL"
# a worker that may still send calls: its jobs wait for that as long as if it had held them itself
_KEEP_EARLIER = (
    "UPDATE workers SET earlier = greatest(earlier, (SELECT earlier FROM workers WHERE number = %s)) "
    f"WHERE number = {SUSPECTS}"
)
KEEP_EARLIER = (
    "UPDATE workers SET earlier = greatest(earlier, clock_timestamp() + %s * interval '1 second') WHERE number = %s"
)
_COUNTED = "SELECT tree, count FROM crashes WHERE tree = ANY(%s)"
_CLEAR = "DELETE FROM crashes WHERE tree = ANY(%s)"
_OF_SUSPECT = f"UPDATE jobs SET worker = {SUSPECTS}, blocked = ''"
_TRY_AGAIN = f"{_OF_SUSPECT} WHERE {in_trees(ONE_TREE)} AND worker IN ({ASIDE}, -3) RETURNING 1"
_SET_ASIDE = f"SELECT job FROM jobs WHERE job = ANY(%s) AND worker IN ({ASIDE}, -3)"
_AS_SUSPECT = f"UPDATE crashes SET count = {MOST_TOGETHER} WHERE tree = %s"


def tree_of(job: str) -> str:
    """Returns the id of the first job of the tree of a job."""
    return _ROOT.sub("", job)


def make_crashes(connection: Any) -> None:
    """Adds the table to a shared journal that does not have it. The caller holds the lock under which journals are made."""
    if connection.execute(_THERE).fetchall() == [(None,)]:
        with connection.transaction():
            for statement in _MAKE:
                connection.execute(statement)


def blame(connection: Any, number: int) -> list[str]:
    """Counts the death of a worker for the trees that it held, and returns those that are set aside now. Called in the
    transaction that marks the worker as gone.
    """
    counted = connection.execute(_BLAME, {"number": number}).fetchall()
    aside = sorted(tree for tree, count in counted if count >= MOST)
    suspects = [tree for tree, count in counted if MOST_TOGETHER <= count < MOST]
    for whose, trees in ((SUSPECTS, suspects), (ASIDE, aside)):
        if trees:
            connection.execute(_MOVE, (whose, trees, number))
    if suspects or aside:
        connection.execute(_KEEP_EARLIER, (number,))
    if aside:
        connection.execute(_NOTE, (_why(), aside))
    return aside


def _why() -> str:
    return (
        f"set aside: {MOST} workers in a row have ended while they ran it, the last ones with no other job like it; "
        "see their logs, then retry it"
    )


def tries_again(connection: Any, job: str) -> bool:
    """Lets the tree of a job that was set aside, or that the code of workers has refused (`refusals`), be tried again, and
    returns True. Returns False for another job.
    """
    tree = tree_of(job)
    if not connection.execute(_TRY_AGAIN, (tree,)).fetchall():
        return False
    connection.execute(_AS_SUSPECT, (tree,))
    return True


def trees_to_try(connection: Any, jobs: Collection[str]) -> set[str]:
    """Returns the first jobs of those trees of jobs that `tries_again` would let be tried."""
    trees = list(map(tree_of, jobs))
    return {tree for (tree,) in connection.execute(_SET_ASIDE, (trees,)).fetchall()}


class Suspects:
    """The trees of a worker that others have died with, until they are cleared. `alone`: True while one of them is tried
    alone, and no further one of these is taken.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._active: dict[str, set[str]] = {}  # by tree: its open jobs that have not rested since the take
        self._cleared: set[str] = set()

    @property
    def alone(self) -> bool:
        return any(count >= MOST_TOGETHER for tree, count in list(self._counts.items()) if tree not in self._cleared)

    @property
    def has_cleared(self) -> bool:
        """True if `clear` has something to do."""
        return bool(self._cleared)

    def add(self, connection: Any, jobs: Iterable[str]) -> None:
        """Adds the trees of jobs that were taken. Called in the transaction that takes them."""
        held: dict[str, set[str]] = {}
        for job in jobs:
            held.setdefault(tree_of(job), set()).add(job)
        for tree, count in connection.execute(_COUNTED, (list(held),)).fetchall():
            self._counts[tree], self._active[tree] = count, held[tree]

    def sees(self, entry: Entry) -> None:
        """Clears a tree of which an entry is progress."""
        if (
            self._counts
            and isinstance(entry, EffectResult | Answer | End)
            and (tree := tree_of(entry.job)) in self._counts
        ):
            self._cleared.add(tree)

    def rests(self, job: str) -> None:
        """Clears a tree when this one, the last of its jobs that were open, waits for something that takes long."""
        tree = tree_of(job)
        if (active := self._active.get(tree)) is not None:
            active.discard(job)
            if not active:
                self._cleared.add(tree)

    def clear(self, connection: Any) -> None:
        """Deletes the counts of the trees that were cleared."""
        cleared = list(self._cleared)
        connection.execute(_CLEAR, (cleared,))
        for tree in cleared:
            self._counts.pop(tree, None)
            self._active.pop(tree, None)
            self._cleared.discard(tree)
