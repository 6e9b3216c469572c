"""Limits of a child with all its descendants. They are enforced by:

memory, CPU, processes    a control group of the kernel (`cgroups`); without one the supervisor, which measures
time                      the supervisor; for a task of the runtime `executor`
open files, file size     the kernel, for each process: `launcher` sets them before the program begins
output                    the worker, which counts what it reads (`client.Child`; for a task `task_lines`)
calls of tools            `executor`
"""

import resource
from typing import Any, Final

from sabot.base.config import Duration, check_numbers, checked_durations
from sabot.errors import UserError, short_repr
from sabot.process.tree import memory_left

_MB = 1 << 20
_MEMORY_BYTES = 2048 * _MB
_CPU_PERCENT = 80.0
_TASK_SECONDS = 300.0
# Memory is measured, which takes a moment. Until then no single process is given more than its limit and this share of what the machine
# has left: beyond that it is denied, which the measurement cannot tell from other failures of the program.
_OVERSHOOT = 0.5


class ResourceLimits:
    """The limits of a child and all its descendants together. Usage of exactly a limit is allowed; None means no limit.
    A name in parentheses is a second name of the same limit. "Killed" means that the child and all its descendants are
    killed.

    - `max_memory_bytes` (or `max_memory_mb`): their resident memory; above it they are killed.
    - `cpu_limit_percent` (or `max_cpu_percent`): their CPU in percent of one core; above it they are slowed down.
    - `max_task_duration` (or `max_runtime_secs`): the time in seconds after which they are ended.
    - `max_open_files`: the open files of each single process; the kernel refuses to open more.
    - `max_processes`: the number of processes; above it they are killed.
    - `max_output_bytes`: the bytes of stdout and stderr together; above it they are killed.
    - `max_file_bytes`: the size of a file that a process writes; above it this process gets SIGXFSZ.
    - `max_tool_calls_per_task`: the calls of tools in one task of a runtime; further calls are refused.
    - `max_tool_calls_per_minute`: the calls of tools in any 60 seconds, over all tasks. A further call is refused, with
      an error that says when the next call is possible.
    """

    __slots__ = (
        "cpu_limit_percent",
        "max_file_bytes",
        "max_memory_bytes",
        "max_open_files",
        "max_output_bytes",
        "max_processes",
        "max_task_duration",
        "max_tool_calls_per_minute",
        "max_tool_calls_per_task",
    )

    def __init__(
        self,
        *,
        max_memory_bytes: int | None = _MEMORY_BYTES,
        cpu_limit_percent: float | None = _CPU_PERCENT,
        max_task_duration: Duration | None = _TASK_SECONDS,
        max_open_files: int | None = 1024,
        max_processes: int | None = None,
        max_output_bytes: int | None = 10 * _MB,
        max_file_bytes: int | None = None,
        max_tool_calls_per_task: int | None = 50,
        max_tool_calls_per_minute: int | None = None,
        **other: Any,
    ) -> None:
        self.max_memory_bytes: Final[int | None] = _either(
            max_memory_bytes, other, "max_memory_bytes", "max_memory_mb", _MEMORY_BYTES
        )
        self.cpu_limit_percent: Final[float | None] = _either(
            cpu_limit_percent, other, "cpu_limit_percent", "max_cpu_percent", _CPU_PERCENT
        )
        self.max_task_duration: Final[float | None] = _either(
            max_task_duration, other, "max_task_duration", "max_runtime_secs", _TASK_SECONDS
        )
        self.max_open_files: Final = max_open_files
        self.max_processes: Final = max_processes
        self.max_output_bytes: Final = max_output_bytes
        self.max_file_bytes: Final = max_file_bytes
        self.max_tool_calls_per_task: Final = max_tool_calls_per_task
        self.max_tool_calls_per_minute: Final = max_tool_calls_per_minute
        if other:
            raise TypeError(f"ResourceLimits has no {', '.join(other)}")
        fractions = ("cpu_limit_percent", "max_task_duration")
        check_numbers(self, "cpu_limit_percent", none=True)
        checked_durations(self, "max_task_duration", none=True)
        check_numbers(self, *(each for each in self.__slots__ if each not in fractions), whole=True, none=True)

    @classmethod
    def none(cls) -> "ResourceLimits":
        """Returns limits that limit nothing."""
        return cls(**dict.fromkeys(cls.__slots__))

    @property
    def max_memory_mb(self) -> float | None:
        """The value of `max_memory_bytes` in MB of 2**20 bytes."""
        return None if self.max_memory_bytes is None else self.max_memory_bytes / _MB

    @property
    def max_cpu_percent(self) -> float | None:
        """The value of `cpu_limit_percent`, under its other name."""
        return self.cpu_limit_percent

    @property
    def max_runtime_secs(self) -> float | None:
        """The value of `max_task_duration`, under its other name."""
        return self.max_task_duration

    def without(self, *names: str) -> "ResourceLimits":
        """Returns a copy of these limits in which the named ones are None, which is no limit."""
        return ResourceLimits(**{name: None if name in names else getattr(self, name) for name in self.__slots__})

    def narrowed(self, other: "ResourceLimits | None") -> "ResourceLimits":
        """Returns limits in which each field is the lower one of the values of this object and of `other`. None,
        which is no limit, counts as the highest value.
        """
        if other is None:
            return self
        both = {name: (getattr(self, name), getattr(other, name)) for name in self.__slots__}
        lower = {name: min((each for each in pair if each is not None), default=None) for name, pair in both.items()}
        return ResourceLimits(**lower)

    def plan(self) -> dict[str, Any]:
        """Returns the limits as the dict that a request to the supervisor contains under `limits`
        (`command.spawn_request`).
        """
        memory = None
        if self.max_memory_bytes is not None:
            memory = self.max_memory_bytes + int(_OVERSHOOT * memory_left())
        limits = (
            (resource.RLIMIT_NOFILE, self.max_open_files),
            (resource.RLIMIT_FSIZE, self.max_file_bytes),
            (resource.RLIMIT_DATA, memory),
        )
        return {
            "rlimits": [(number, value) for number, value in limits if value is not None],
            "memory": self.max_memory_bytes,
            "cpu": self.cpu_limit_percent,
            "seconds": self.max_task_duration,
            "processes": self.max_processes,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResourceLimits) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))

    def __repr__(self) -> str:
        said = [f"{name}={value}" for name in self.__slots__ if (value := getattr(self, name)) is not None]
        return f"ResourceLimits({', '.join(said)})"


def _either(value: Any, other: dict[str, Any], first: str, name: str, default: float) -> Any:
    """Returns the value of a limit that can be given under two names, such as `max_memory_bytes` and `max_memory_mb`.
    Raises UserError if it was given under both.

    - `first`, `value`: the first name, and its value.
    - `name`: the second name. `other`: a dict of the values that were given under second names, by their names; this
      call removes `name` from it.
    - `default`: the value of the limit if it was given under neither name.
    """
    if name not in other:
        return value
    second = other.pop(name)
    if value not in (None, default):
        raise UserError(f"ResourceLimits: {first} and {name} are two names of one limit", hint="give one of them")
    if second is None or name != "max_memory_mb":
        return second
    if isinstance(second, bool) or not isinstance(second, int | float) or not 0 <= second < 1 << 40:
        raise UserError(f"ResourceLimits: {name}={short_repr(second)}", hint="a number above 0, or None")
    return int(second * _MB)
