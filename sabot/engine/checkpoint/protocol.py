"""Decides which worker owns an app's checkpoints, which checkpoints count, and which files may be removed: from listed names,
without I/O.

    claims/0000000003-<worker>          the worker claims generation 3: from here on it runs the app
    claims/0000000004-<worker>-afresh   the same for generation 4; checkpoints of earlier generations no longer count
    checkpoints/0000000007-0000000003   checkpoint 7, made by generation 3
    files/<2 hex>/<sha256>-3            contents, stored by generation 3
    files/<2 hex>/<sha256>-3-<writer>   the same by a worker of a distributed app; no one else writes its files (`contents`)

Two workers of one app may be alive at once: one was taken for dead, or started by mistake. An object store has no lock
that keeps them apart, so each *writes, then reads*. A worker that takes an app over writes its claim, then lists the
checkpoints. A worker that completes a checkpoint writes the manifest, then lists the claims. The worker that reads last
sees what the other one wrote. Either the new worker starts from that checkpoint, or the older worker finds out that it
is not the owner; then the checkpoint does not count, and none of its output is delivered. The store only has to show in
a listing what was written before it.

No worker removes files that another may need. A worker uses the files of the checkpoint from which it started, and its
own. It removes files of its own and earlier generations that no manifest it has seen lists. Therefore the name of a
file has the generation next to the hash: an older worker that wakes up while it removes files does not know the names
that its successor writes.
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


class ClaimRecord(NamedTuple):
    """A worker's claim of a generation. Claims are ordered: the greatest owns the app."""

    generation: int
    worker: str  # 32 hex digits, new for each claim
    afresh: bool = False

    @property
    def rank(self) -> tuple[int, str]:
        """The key by which claims are ordered."""
        return self.generation, self.worker


class Mark(NamedTuple):
    """A checkpoint, and the generation that made it. Marks are ordered by generation, then by checkpoint: a start
    resumes from the greatest that counts.
    """

    generation: int
    checkpoint_id: int


class FileName(NamedTuple):
    """The hash of contents (hex), the generation that stored them, and the name that distinguishes the files of its
    workers.
    """

    sha256: str
    generation: int
    writer: str = ""


class Verdict(enum.Enum):
    """The result of a worker's claim: the worker owns the app, another worker does, or the worker has to claim again."""

    OWNER = "the app is ours"
    AGAIN = "another has claimed this generation too, and may take itself for its owner: claim a later one"
    TAKEN = "another was here first, or came after us: it goes on, we do not"


# Names


def claim_name(claim: ClaimRecord) -> str:
    return f"{claim.generation:010d}-{claim.worker}{'-afresh' if claim.afresh else ''}"


def read_claim(name: str) -> ClaimRecord | None:
    """Returns the claim with this name, or None if it is not the name of a claim."""
    match = _CLAIM.fullmatch(name)
    claim = None if match is None else ClaimRecord(int(match[1]), match[2], match[3] is not None)
    return claim if claim is not None and claim_name(claim) == name else None


def manifest_name(mark: Mark) -> str:
    return f"{mark.checkpoint_id:010d}-{mark.generation:010d}.json"


def read_manifest_name(name: str) -> Mark | None:
    """Returns the checkpoint of this manifest's name, or None if it is not the name of a manifest."""
    match = _MANIFEST.fullmatch(name)
    mark = None if match is None else Mark(int(match[2]), int(match[1]))
    # each checkpoint has one name: no zeros before it
    return mark if mark is not None and manifest_name(mark) == name else None


def file_name(sha256: str, generation: int, writer: str = "") -> str:
    return f"files/{sha256[:2]}/{sha256}-{generation}{writer and '-'}{writer}"


def read_file_name(name: str) -> FileName | None:
    """Returns the parts of the name of stored contents, or None for another name."""
    match = _FILE.fullmatch(name)
    found = None if match is None else FileName(match[2], int(match[3]), (match[4] or "")[1:])
    return found if found is not None and file_name(*found) == name else None


# Ownership


def next_generation(claims: Iterable[ClaimRecord], marks: Iterable[Mark], above: int = 0) -> int:
    """Returns the generation to claim: greater than all listed generations, and than `above`."""
    return 1 + max([above, *(claim.generation for claim in claims), *(mark.generation for mark in marks)])


def judge(mine: ClaimRecord, claims: Iterable[ClaimRecord]) -> Verdict:
    """Returns the result of the claim `mine`. `claims`: those that were listed after it was written.

    A generation has at most one owner. If two workers claim the same generation, at least one of them sees the
    other's claim, and the names of the claims decide. The worker with the lesser name owns the generation unless it
    sees the greater claim; then it gives up. The worker with the greater name cannot know whether its claim was seen,
    so it claims a later generation.
    """
    verdict = Verdict.OWNER
    for other in claims:
        if other.rank > mine.rank:
            return Verdict.TAKEN
        if other.generation == mine.generation and other.worker != mine.worker:
            verdict = Verdict.AGAIN
    return verdict


def overtaken_by(mine: ClaimRecord, claims: Iterable[ClaimRecord]) -> ClaimRecord | None:
    """Returns the claim of the worker that owns the app now, or None if the owner is still `mine`."""
    newest = max(claims, key=lambda claim: claim.rank, default=mine)
    return newest if newest.rank > mine.rank else None


def stale_claims(mine: ClaimRecord, claims: Iterable[ClaimRecord]) -> list[ClaimRecord]:
    """Returns the claims that the owner may remove: all but the newest few, and the newest one "afresh", from which
    on checkpoints count.
    """
    older = sorted((claim for claim in claims if claim.rank < mine.rank), key=lambda claim: claim.rank)
    afresh = [claim for claim in older if claim.afresh]
    kept = {*older[-CLAIMS_KEPT:], *([] if mine.afresh else afresh[-1:])}
    return [claim for claim in older if claim not in kept]


# Checkpoints that count, and files that may be removed


def counting(marks: Iterable[Mark], claims: Iterable[ClaimRecord]) -> list[Mark]:
    """Returns the checkpoints that count, in order: those that no claim "afresh" of a later generation has excluded.
    A start resumes from the last.
    """
    line = max((claim.generation for claim in claims if claim.afresh), default=0)
    return sorted({mark for mark in marks if mark.generation >= line})


def outdated(
    marks: Iterable[Mark], claims: Iterable[ClaimRecord], mine: ClaimRecord, retain: int, needed: Iterable[Mark]
) -> list[Mark]:
    """Returns the manifests that the owner may remove: all except the newest `retain` that count, and except those in
    `needed`.

    Manifests of a later generation are never among them, because the worker that wrote them uses them.
    """
    found, kept = set(marks), set(needed)
    kept.update(counting(found, claims)[-retain:])
    return sorted(mark for mark in found - kept if mark.generation <= mine.generation)


def half_written(names: Iterable[str], mine: ClaimRecord) -> list[str]:
    """Returns, of the names in the folder of manifests, the temporary files that this generation or an earlier one
    has left half written.
    """
    found = []
    for name in names:
        start, separator, _ = name.partition(".json.")
        mark = read_manifest_name(f"{start}.json")
        if separator and mark is not None and mark.generation <= mine.generation:
            found.append(name)
    return sorted(found)


def unlisted(files: Iterable[str], listed: Mapping[str, int], mine: ClaimRecord) -> list[str]:
    """Returns those of these files that the owner may remove: files of no later generation that no manifest lists.
    Files that its own workers have stored are not among them, because a manifest may soon list them.
    """
    gone = []
    for name in files:
        found = read_file_name(name)
        if found is None or listed.get(name):
            continue
        if found.generation < mine.generation or (found.generation == mine.generation and not found.writer):
            gone.append(name)
    return sorted(gone)
