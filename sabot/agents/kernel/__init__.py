"""A kernel runs agents as jobs over a journal, without an app.

   execute ─▶ a free place ─▶ BEGIN, durable ─▶ ExecutionHandle: events, result, cancel, actions
                                 │
                                 └─▶ runs ◀──▶ parked ─▶ END
   resume ─▶ open jobs of the journal ─▶ run over their histories

A place is the right to run; a kernel has `max_jobs` of them.

kernel     RuntimeKernel: the interface for programs
client     JobClient: begins jobs of a kernel from another process, by letters, and awaits them
jobs       a request, an agent as the owner of jobs, the limits of one job
handle     ExecutionHandle: the handle of one job
hosting    decides which jobs run, and which wait for a place
schedules  begins jobs at times of a calendar
"""

from sabot.agents.kernel.client import JobClient
from sabot.agents.kernel.handle import ExecutionHandle
from sabot.agents.kernel.jobs import ExecutionRequest, ExecutionResult
from sabot.agents.kernel.kernel import RuntimeKernel

__all__ = ["ExecutionHandle", "ExecutionRequest", "ExecutionResult", "JobClient", "RuntimeKernel"]
