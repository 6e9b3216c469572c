"""The errors of child processes. Their names are those of the specifications 003 and 004, and their codes those of 002 (`docs/names.md`
compares these documents with Sabot).

SabotError
└── AgentError
    ├── SpawnFailed
    │   └── SandboxError            E2040
    │       └── SandboxUnavailable E2041, SandboxStepFailed E2042, SandboxPathRefused E2043, TrustExceeded E2044
    ├── ExecutionError, CommunicationError, ProviderError, ResourceLimitExceeded
    ├── NotFound, AgentNotFound
    ├── Timeout                     also a TimeoutError
    │   └── DrainTimeout            E2093
    ├── InvalidContext              also a UserError
    ├── IoError                     also an OSError
    ├── LifecycleError
    │   └── AgentNotSpawned E2020 (also a SpawnFailed), TerminateFailed E2021, SuspendFailed E2022, ResumeFailed E2023,
    │       RestartFailed E2024, UnknownAgent E2025 (also a NotFound)
    ├── QuotaError
    │   └── QuotaNotFound E2070, InvalidQuota E2071 (also a UserError), QuotaExceeded E2072, QuotaUpdateFailed E2073,
    │       QuotaSuspendFailed E2074, QuotaTerminateFailed E2075
    └── ScaleUpFailed E2090, ScaleDownFailed E2091, WarmPoolExhausted E2092
"""

from sabot.errors import SabotError, UserError


class AgentError(SabotError):
    """A child process, or a request to it, has failed."""


class SpawnFailed(AgentError):
    """The program did not start, and no process of it is left. The message names the program and the reason."""


class SandboxError(SpawnFailed):
    """The sandbox of a program could not be made, so the program did not start."""

    code = "E2040"


class SandboxUnavailable(SandboxError):
    """The system lacks means that the level of trust demands. `missing`: the names of those means, of
    `sabot.process.sandbox.levels.MEANS`.
    """

    code = "E2041"

    def __init__(self, message: str, *, missing: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.missing = missing


class SandboxStepFailed(SandboxError):
    """A step of the confinement of a program has failed, although the same step had worked in an earlier trial."""

    code = "E2042"


class SandboxPathRefused(SandboxError):
    """A path that the sandbox names does not exist, or a sandboxed program may not have it: for example a folder of the
    system to write in, the supervisor's folder of leases, or a path over a link that another sandboxed program may have
    made.
    """

    code = "E2043"


class TrustExceeded(SandboxError):
    """An instance asks for more trust than its runner or runtime gives."""

    code = "E2044"


class ExecutionError(AgentError):
    """A program ended with an exit code that is not 0 or by a signal, or its task has failed."""


class CommunicationError(AgentError):
    """A stream of the child has broken, or the supervisor has ended."""


class NotFound(AgentError):
    """There is no instance of this id."""


class AgentNotFound(NotFound):
    """The runtime has no instance of this id: there never was one, or it was terminated."""


class Timeout(AgentError, TimeoutError):
    """A time limit has passed."""


class InvalidContext(AgentError, UserError):
    """A configuration of an instance is not valid: its name, its task, its environment, or a value of a call about
    it.
    """


class IoError(AgentError, OSError):
    """The system refused to read or to write."""


class ProviderError(AgentError):
    """The service behind the program has refused, or is not there."""


class ResourceLimitExceeded(AgentError):
    """A task has used more than a limit allows. `limit`: the name of the field of `ResourceLimits`."""

    def __init__(self, message: str, *, limit: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.limit = limit


class LifecycleError(AgentError):
    """A call that starts, suspends, resumes, restarts or ends an instance has failed. `code`: the error code of
    document 002.
    """

    code = "E2020"


class AgentNotSpawned(LifecycleError, SpawnFailed):
    """The instance did not start, or was not ready in time: no process of it is left."""


class TerminateFailed(LifecycleError):
    """The instance was killed, but one of its processes still runs."""

    code = "E2021"


class SuspendFailed(LifecycleError):
    """The instance was not suspended."""

    code = "E2022"


class ResumeFailed(LifecycleError):
    """The suspended instance could not be resumed."""

    code = "E2023"


class RestartFailed(LifecycleError):
    """The instance was not started again: it is over, it has used up its restarts, or its old process still runs."""

    code = "E2024"


class UnknownAgent(LifecycleError, NotFound):
    """There is no instance of this id."""

    code = "E2025"


class QuotaError(AgentError):
    """A quota of an instance is missing, wrong, or cannot be enforced. `code`: the code of document 002."""

    code = "E2070"


class QuotaNotFound(QuotaError):
    """The instance has no quota."""


class InvalidQuota(QuotaError, UserError):
    """A quota has a limit, a mode or an action that does not exist."""

    code = "E2071"


class QuotaExceeded(QuotaError):
    """A call would use more than the quota has left."""

    code = "E2072"


class QuotaUpdateFailed(QuotaError):
    """A quota was not changed, or the measures that the old quota had taken could not be undone."""

    code = "E2073"


class QuotaSuspendFailed(QuotaError):
    """An instance that exceeds its quota was not suspended."""

    code = "E2074"


class QuotaTerminateFailed(QuotaError):
    """An instance that exceeds its quota was terminated, and still runs."""

    code = "E2075"


class ScaleUpFailed(AgentError):
    """A fleet has not got the replicas that were asked for: they would be more than its maximum, or children did not
    start.
    """

    code = "E2090"


class ScaleDownFailed(AgentError):
    """A fleet has not shrunk: it would have fewer replicas than its minimum, or the state of a replica was not saved."""

    code = "E2091"


class WarmPoolExhausted(AgentError):
    """A warm pool has no child to give out."""

    code = "E2092"


class DrainTimeout(Timeout):
    """A piece of work was not done when its child was drained. The child was ended; the caller may have the work done
    again.
    """

    code = "E2093"
