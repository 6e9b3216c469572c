"""What a journal says of jobs that are not over, as a start and whoever looks from outside need it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sabot.jobs.owner import OpenJob
from sabot.journal import Begin, End, Entry, JournalReader, Position, StoredBody

__all__ = ["open_jobs", "whole_entries"]


def open_jobs(reader: JournalReader, positions: Mapping[int, int]) -> list[OpenJob]:
    """The jobs that a checkpoint does not cover whole, in the order in which they began. positions: of the journal, in that checkpoint.
    Blocks.
    """
    begun: dict[str, tuple[Position, Begin]] = {}
    ends: dict[str, End] = {}
    for position, entry in reader.read():
        if isinstance(entry, Begin):
            goes_on = entry.job in begun and entry.job not in ends  # ctx.continue_as
            begun[entry.job] = (begun[entry.job][0] if goes_on else position, entry)
            ends.pop(entry.job, None)
        elif isinstance(entry, End) and entry.job in begun:
            if position.offset < positions.get(position.partition, 0):
                del begun[entry.job]
                ends.pop(entry.job, None)
            else:
                ends.setdefault(entry.job, entry)
    jobs = [
        OpenJob(job_id, begin.agent, begin.key, reader.load(begin.body), begin.digest, position, ends.get(job_id))
        for job_id, (position, begin) in begun.items()
    ]
    return sorted(jobs, key=lambda job: job.began)


def whole_entries(reader: JournalReader, job_id: str) -> list[tuple[Position, Any]]:
    """The entries of a job, with their bodies, however long. Blocks."""
    return [(position, _whole(reader, entry)) for position, entry in reader.read(job_id)]


def _whole(reader: JournalReader, entry: Entry) -> Entry:
    body = getattr(entry, "body", None)
    if not isinstance(body, StoredBody):
        return entry
    return msgspec.structs.replace(entry, body=reader.load(body))
