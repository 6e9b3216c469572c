"""A worker's claim of an app, written into the place of its checkpoints. `protocol` defines the meaning of claims."""

import math
import uuid

from sabot.clock import SYSTEM_CLOCK
from sabot.engine.checkpoint.places import LocalPlace, Place, this_worker
from sabot.engine.checkpoint.protocol import (
    ClaimRecord,
    Mark,
    Verdict,
    claim_name,
    judge,
    next_generation,
    overtaken_by,
    read_claim,
    read_manifest_name,
    stale_claims,
)
from sabot.errors import AppLocked, InternalError, StorageLost


def claims_in(place: Place) -> list[ClaimRecord]:
    """Returns the claims that are in a place now."""
    return [claim for claim in map(read_claim, place.names("claims")) if claim is not None]


def marks_in(place: Place) -> list[Mark]:
    """Returns the checkpoints that are in a place now, whether they count or not."""
    return [mark for mark in map(read_manifest_name, place.names("checkpoints")) if mark is not None]


class Ownership:
    """This worker's claim (`claims.Claim`) to the app whose checkpoints are in a place. The place itself is owned
    (`Place.own`) before the claim is taken. A later claim wins: the earlier worker finds out by `renew`.

    `claim`: the claim of this worker, or None before the first, and after `release`. `seen`: all claims that were in
    the place after this claim was made. All methods block and raise OSError for errors of the place.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.claim: ClaimRecord | None = None
        self.seen: list[ClaimRecord] = []

    @property
    def mine(self) -> ClaimRecord:
        """The claim of this worker. Raises InternalError without one."""
        if self.claim is None:
            raise InternalError("the app was not claimed")
        return self.claim

    def take(self, *, above: int = 0, afresh: bool = False) -> None:
        """Claims the next generation, which is greater than `above`. Raises AppLocked if another worker claims a
        later one.

        `afresh`: True if checkpoints of earlier generations no longer count.
        """
        claims = claims_in(self._place)
        while True:
            mine = ClaimRecord(next_generation(claims, marks_in(self._place), above), uuid.uuid4().hex, afresh)
            words = f"{this_worker()}, at {int(SYSTEM_CLOCK.time())} s since 1970\n"
            self._place.create(f"claims/{claim_name(mine)}", words.encode(), "claim")
            claims = claims_in(self._place)
            verdict = judge(mine, claims)
            if verdict is Verdict.TAKEN:
                raise self._taken(max(claims, key=lambda claim: claim.rank))
            if verdict is Verdict.OWNER:
                self.claim, self.seen = mine, claims
                return

    def renew(self) -> None:
        """Raises AppLocked if another worker has taken the app over since `take`. Raises the errors of `check_place`."""
        self.check_place()
        owner = overtaken_by(self.mine, claims_in(self._place))
        if owner is not None:
            raise self._taken(owner)

    def check_place(self) -> None:
        """Raises StorageLost if this worker's claim is missing in its directory: the claim, or the directory, was
        removed.

        In an object store this is not checked: a rule on the age of objects may have removed the claim, which does no
        harm there.
        """
        if self.claim is None or not isinstance(self._place, LocalPlace):
            return
        try:
            there = self.claim in claims_in(self._place)
        except FileNotFoundError:
            there = False
        if not there:
            raise StorageLost(
                f"{self._place.where} was removed, or emptied, while the app ran: nothing of this run can be saved any more",
                hint="start the app again: it begins with the checkpoints that the directory has then, or afresh",
            )

    def tidy(self) -> None:
        """Removes the claims that are not needed any more."""
        self._place.remove(f"claims/{claim_name(claim)}" for claim in stale_claims(self.mine, self.seen))

    def left_s(self) -> float:
        return 0.0 if self.claim is None else math.inf

    def release(self) -> None:
        """Gives up the ownership of the app. The claim's record stays in the place."""
        self.claim = None

    def _taken(self, owner: ClaimRecord) -> AppLocked:
        try:
            who = self._place.read(f"claims/{claim_name(owner)}").decode("utf-8", "replace").strip()
        except OSError:  # the removed claim would only have named the worker
            who = ""
        return AppLocked(
            f"another worker has taken this app over in {self._place.where}: {who or f'generation {owner.generation}'}",
            hint="one worker runs an app: let that one go on, or stop it and start this one again",
        )
