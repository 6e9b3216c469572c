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
    """The system lacks protections that the demanded level of trust needs, such as a filter of system calls.
    `missing`: the names of these protections, out of `sabot.process.sandbox.levels.MEANS`.
    """

    code = "E2041"

    def __init__(self, message: str, *, missing: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.missing = missing


class SandboxStepFailed(SandboxError):
    """A step of the confinement of a program has failed. Before the first sandbox was used, a test of this step had
    succeeded, so the system had seemed to support it.
    """

    code = "E2042"


class SandboxPathRefused(SandboxError):
    """A path in the configuration of a sandbox does not exist, or the program may not have access to it. Examples: a
    system folder in which the program would write, the supervisor's own folder, and a path through a symbolic link
    that another sandboxed program may have made.
    """

    code = "E2043"


class TrustExceeded(SandboxError):
    """An instance asks for more trust than its runner or runtime gives."""

    code = "E2044"


class ExecutionError(AgentError):
    """A program ended with an exit code that is not 0 or by a signal, or its task has failed."""


class CommunicationError(AgentError):
    """A stream of the child is closed or has lost data, or the supervisor has ended or does not answer."""


class NotFound(AgentError):
    """There is no instance with this id."""


class AgentNotFound(NotFound):
    """There is no instance with this id, because there never was one or it was terminated. Or a lead agent has no worker
    of the kind that a task needs.
    """


class Timeout(AgentError, TimeoutError):
    """An instance was not ready, has not ended, or has not done its work, within a time limit."""


class InvalidContext(AgentError, UserError):
    """A value that the caller has given for an instance is not valid: its name, its task, its environment, or an
    argument of a method.
    """


class IoError(AgentError, OSError):
    """The operating system refused an operation on a file or folder, or lacks resources, such as open files."""


class ProviderError(AgentError):
    """The program reports that the model could not answer, for example because the model's provider refused the
    request; or the program ended without a result.
    """


class ResourceLimitExceeded(AgentError):
    """A task has used more than a limit allows. `limit`: the name of this limit, a field of `ResourceLimits`."""

    def __init__(self, message: str, *, limit: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.limit = limit


class LifecycleError(AgentError):
    """A call that starts, suspends, resumes, restarts or ends an instance has failed. `code`: the error code, such as
    `E2021`; each subclass has its own.
    """

    code = "E2020"


class AgentNotSpawned(LifecycleError, SpawnFailed):
    """The instance did not start, or was not ready in time: no process of it is left."""


class TerminateFailed(LifecycleError):
    """The instance was killed, but one of its processes still runs."""

    code = "E2021"


class SuspendFailed(LifecycleError):
    """The instance could not be suspended, for example because it has no process, or because its state was not saved."""

    code = "E2022"


class ResumeFailed(LifecycleError):
    """The suspended instance could not be resumed."""

    code = "E2023"


class RestartFailed(LifecycleError):
    """The instance was not started again: it has ended for good, its restarts are used up, or its old process still
    runs.
    """

    code = "E2024"


class UnknownAgent(LifecycleError, NotFound):
    """The lifecycle manager has no instance with this id."""

    code = "E2025"


class QuotaError(AgentError):
    """A quota of an instance is missing, is invalid, or cannot be enforced. `code`: the error code, such as `E2071`."""

    code = "E2070"


class QuotaNotFound(QuotaError):
    """The instance has no quota."""


class InvalidQuota(QuotaError, UserError):
    """A quota has a limit, a mode or an action that does not exist."""

    code = "E2071"


class QuotaExceeded(QuotaError):
    """A call of a model would use more tokens than the quota of the instance has left."""

    code = "E2072"


class QuotaUpdateFailed(QuotaError):
    """A quota was not changed, since a new value is invalid, or since the instance could not be resumed after the old
    quota had suspended it.
    """

    code = "E2073"


class QuotaSuspendFailed(QuotaError):
    """An instance that exceeds its quota could not be suspended."""

    code = "E2074"


class QuotaTerminateFailed(QuotaError):
    """An instance that exceeds its quota could not be terminated: one of its processes still runs."""

    code = "E2075"


class ScaleUpFailed(AgentError):
    """A fleet could not reach the number of replicas that was asked for: this number exceeds the fleet's maximum, or
    some replicas did not start.
    """

    code = "E2090"


class ScaleDownFailed(AgentError):
    """A fleet could not reduce its replicas: it would have had fewer than its minimum, or the state of a replica
    could not be saved.
    """

    code = "E2091"


class WarmPoolExhausted(AgentError):
    """No child of a warm pool was ready for a caller in time."""

    code = "E2092"


class DrainTimeout(Timeout):
    """A replica of a fleet had to end before its work was done; the work was cancelled. Or the fleet was closed
    before the work of a waiting caller had begun. The caller may run the work again.
    """

    code = "E2093"
