"""Who owns an app's checkpoints, which of them count, and which files may be removed: decided from names that were listed, without I/O.

    claims/0000000003-<worker>          the worker claims generation 3: from here on it runs the app
    claims/0000000004-<worker>-afresh   the same for generation 4; checkpoints of earlier generations no longer count
    checkpoints/0000000007-0000000003   checkpoint 7, made by generation 3
    files/<2 hex>/<sha256>-3            contents, stored by generation 3
    files/<2 hex>/<sha256>-3-<writer>   the same by a worker of a spread app, whose files nobody else writes (`contents`)

Two workers of one app may be alive at once: one was taken for dead, or started by mistake. An object store has no lock that keeps them
apart, so each *writes, then reads*. A worker that takes an app over writes its claim, then lists the checkpoints. A worker that completes
a checkpoint writes the manifest, then lists the claims. Whichever reads last sees what the other wrote. Either the new worker starts from
that checkpoint, or the older worker learns that it is not the owner; then the checkpoint does not count, and none of its output is
delivered. The store only has to show in a listing what was written before it.

No worker removes what another may need. A worker uses the files of the checkpoint from which it started, and its own. It removes files
of its own and earlier generations that no manifest it has seen lists. That is why a file's name has the generation beside the hash: an
older worker that wakes up while it removes files does not know the names that its successor writes.
"""

import enum
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

CLAIMS_KEPT = 8
_CLAIM = re.compile(r"([0-9]{10,100})-([0-9a-f]{32})(-afresh)?")
_MANIFEST = re.compile(r"([0-9]{10,100})-([0-9]{10,100})\.json")
_WRITER = re.compile(r"(?:-[0-9a-z]{1,40}){1,3}")
_FILE = re.compile(rf"files/([0-9a-f]{{2}})/(\1[0-9a-f]{{62}})-([0-9]{{1,100}})({_WRITER.pattern})?")


class Claim(NamedTuple):
    """A worker's claim of a generation. Claims are ordered: the greatest owns the app."""

    generation: int
    worker: str  # 32 hex digits, new for each claim
    afresh: bool = False

    @property
    def rank(self) -> tuple[int, str]:
        """What claims are ordered by."""
        return self.generation, self.worker


class Mark(NamedTuple):
    """A checkpoint, and the generation that made it. A start goes on from the greatest: later generations come after earlier ones."""

    generation: int
    checkpoint_id: int


class FileName(NamedTuple):
    """The hash of contents (hex), the generation that stored them, and what tells the files of its workers apart."""

    sha256: str
    generation: int
    writer: str = ""


class Verdict(enum.Enum):
    """What came of a claim."""

    OWNER = "the app is ours"
    AGAIN = "another has claimed this generation too, and may take itself for its owner: claim a later one"
    TAKEN = "another was here first, or came after us: it goes on, we do not"


# Names


def claim_name(claim: Claim) -> str:
    return f"{claim.generation:010d}-{claim.worker}{'-afresh' if claim.afresh else ''}"


def read_claim(name: str) -> Claim | None:
    """The claim of this name. None: it is not the name of a claim."""
    match = _CLAIM.fullmatch(name)
    claim = None if match is None else Claim(int(match[1]), match[2], match[3] is not None)
    return claim if claim is not None and claim_name(claim) == name else None


def manifest_name(mark: Mark) -> str:
    return f"{mark.checkpoint_id:010d}-{mark.generation:010d}.json"


def read_manifest_name(name: str) -> Mark | None:
    """The checkpoint of this manifest's name. None: it is not the name of a manifest."""
    match = _MANIFEST.fullmatch(name)
    mark = None if match is None else Mark(int(match[2]), int(match[1]))
    return mark if mark is not None and manifest_name(mark) == name else None  # one name each: no zeros before it


def file_name(sha256: str, generation: int, writer: str = "") -> str:
    return f"files/{sha256[:2]}/{sha256}-{generation}{writer and '-'}{writer}"


def read_file_name(name: str) -> FileName | None:
    """The contents of this file's name. None: it is not the name of contents."""
    match = _FILE.fullmatch(name)
    found = None if match is None else FileName(match[2], int(match[3]), (match[4] or "")[1:])
    return found if found is not None and file_name(*found) == name else None


# Who owns the app


def next_generation(claims: Iterable[Claim], marks: Iterable[Mark], above: int = 0) -> int:
    """The generation to claim: greater than all generations that were listed, and than `above`."""
    return 1 + max([above, *(claim.generation for claim in claims), *(mark.generation for mark in marks)])


def judge(mine: Claim, claims: Iterable[Claim]) -> Verdict:
    """What came of the claim `mine`. claims: those that were listed after it was written.

    A generation has one owner at most. Of two workers that claim the same generation at least one sees the other's claim. The worker with
    the lesser name gives up if it sees the greater claim. If it did not see it, it is the owner of this generation, so the worker with
    the greater name, which cannot know, claims a later generation.
    """
    verdict = Verdict.OWNER
    for other in claims:
        if other.rank > mine.rank:
            return Verdict.TAKEN
        if other.generation == mine.generation and other.worker != mine.worker:
            verdict = Verdict.AGAIN
    return verdict


def overtaken_by(mine: Claim, claims: Iterable[Claim]) -> Claim | None:
    """The claim of the worker that owns the app now. None: `mine` still does."""
    newest = max(claims, key=lambda claim: claim.rank, default=mine)
    return newest if newest.rank > mine.rank else None


def stale_claims(mine: Claim, claims: Iterable[Claim]) -> list[Claim]:
    """The claims that the owner may remove: all but the newest few, and the newest one "afresh", from which on checkpoints count."""
    older = sorted((claim for claim in claims if claim.rank < mine.rank), key=lambda claim: claim.rank)
    afresh = [claim for claim in older if claim.afresh]
    kept = {*older[-CLAIMS_KEPT:], *([] if mine.afresh else afresh[-1:])}
    return [claim for claim in older if claim not in kept]


# Which checkpoints count, and what may go


def counting(marks: Iterable[Mark], claims: Iterable[Claim]) -> list[Mark]:
    """The checkpoints that count, in order. A start goes on from the last."""
    line = max((claim.generation for claim in claims if claim.afresh), default=0)
    return sorted({mark for mark in marks if mark.generation >= line})


def outdated(
    marks: Iterable[Mark], claims: Iterable[Claim], mine: Claim, retain: int, needed: Iterable[Mark]
) -> list[Mark]:
    """The manifests that the owner may remove: all but the newest `retain` that count, and those `needed`.

    Manifests of a later generation are never among them, because the worker that wrote them uses them.
    """
    found, kept = set(marks), set(needed)
    kept.update(counting(found, claims)[-retain:])
    return sorted(mark for mark in found - kept if mark.generation <= mine.generation)


def half_written(names: Iterable[str], mine: Claim) -> list[str]:
    """Of the names in the folder of manifests, the temporary ones that this generation or an earlier one has left half written."""
    found = []
    for name in names:
        start, separator, _ = name.partition(".json.")
        mark = read_manifest_name(f"{start}.json")
        if separator and mark is not None and mark.generation <= mine.generation:
            found.append(name)
    return sorted(found)


def unlisted(files: Iterable[str], listed: Mapping[str, int], mine: Claim) -> list[str]:
    """Of these files, those that the owner may remove: they are of no later generation, and no manifest lists them. What its own workers
    have stored may be on its way into a manifest.
    """
    gone = []
    for name in files:
        found = read_file_name(name)
        if found is None or listed.get(name):
            continue
        if found.generation < mine.generation or (found.generation == mine.generation and not found.writer):
            gone.append(name)
    return sorted(gone)
