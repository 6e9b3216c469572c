"""How a child has ended, and what it uses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExitStatus:
    """How a program ended: by itself with `code`, or by `signal`; the other one is None.

    cpu_seconds: what it used, and those of its descendants that it waited for. limit: the field of its ResourceLimits for which it was
    ended.
    """

    code: int | None
    signal: int | None
    cpu_seconds: float = 0.0
    limit: str | None = None

    @property
    def success(self) -> bool:
        """Whether it ended by itself with 0."""
        return self.code == 0

    @property
    def how(self) -> str:
        """In words, say `it ended with 3`."""
        if self.limit is not None:
            return f"it had more than its {self.limit}"
        return f"it ended with {self.code}" if self.signal is None else f"it was ended by signal {self.signal}"


@dataclass(frozen=True)
class ProcessUsage:
    """What a child and all its descendants use: resident memory now, CPU time since the beginning."""

    processes: int
    memory_bytes: int
    cpu_seconds: float
