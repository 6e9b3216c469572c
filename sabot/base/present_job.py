"""The job that runs in the present context (`contextvars`): model calls, log lines and spans name it, and its function may not do all."""

import asyncio
from contextvars import ContextVar
from hashlib import blake2b
from typing import NamedTuple


class PresentJob(NamedTuple):
    """The job whose code runs, and for whom it runs.

    - `job`: the id of the job. `top`: that of the job at the top of its tree of parents and children.
    - `tenant`, `user`, `session`: "" if the job names none.
    """

    job: str
    top: str
    tenant: str = ""
    user: str = ""
    session: str = ""

    @property
    def trace(self) -> str:
        """The id of the trace of the job and of all jobs of its tree, as OpenTelemetry writes it; "" without a job."""
        return f"{trace_number(self.top):032x}" if self.top else ""

    @property
    def named(self) -> dict[str, str]:
        """The facts that are known, by name: "job", "tenant", "user", "session" and "trace"."""
        said = {"job": self.job, "tenant": self.tenant, "user": self.user, "session": self.session, "trace": self.trace}
        return {name: each for name, each in said.items() if each}


PRESENT_JOB: ContextVar[PresentJob | None] = ContextVar("PRESENT_JOB", default=None)
"""The job whose function runs in this context, or one of whose effects. None outside of jobs."""


def stable_number(name: str, size: int) -> int:
    """Returns a hash of the name as a whole number of `size` bytes. It is never 0, which OpenTelemetry does not allow
    as an id.
    """
    return int.from_bytes(blake2b(name.encode(), digest_size=size).digest(), "big") or 1


def trace_number(top: str) -> int:
    """Returns the id of the trace of all jobs below the job `top`, and of that job. It is the same after a crash."""
    return stable_number(f"trace {top}", 16)


def refuse_in_job(what: str, hint: str) -> None:
    """Raises UserError if the function of a durable agent's job makes this call, because each run of the function would
    make it again. The job fails even if it catches the error. `what`: words for what it does, such as "sends a record".
    """
    # `jobs.loop.JobLoop.refuse`, on the event loop of a job only
    refuse = getattr(asyncio._get_running_loop(), "refuse", None)
    if refuse is not None:
        raise refuse(f"{what}; each replay of the job would do it again", hint)
