"""The end of a child, and its usage."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExitStatus:
    """The end of a program: by itself with `code`, or by `signal`; the other one is None.

    cpu_seconds: the CPU time of the program and of those of its descendants that it waited for. limit: the field of
    ResourceLimits for which it was ended, or None.
    """

    code: int | None
    signal: int | None
    cpu_seconds: float = 0.0
    limit: str | None = None

    @property
    def success(self) -> bool:
        """True if the program ended by itself with 0."""
        return self.code == 0

    @property
    def how(self) -> str:
        """How the program ended, to be put behind its name: say `ended with 3`."""
        if self.limit is not None:
            return f"was ended, because it had more than its {self.limit}"
        return f"ended with {self.code}" if self.signal is None else f"was ended by signal {self.signal}"


@dataclass(frozen=True)
class ProcessUsage:
    """The usage of a child and all its descendants: resident memory now, CPU time since the beginning."""

    processes: int
    memory_bytes: int
    cpu_seconds: float
