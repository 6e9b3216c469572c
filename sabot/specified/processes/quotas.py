"""Quotas of child processes (CPU, memory and tokens), and the reports and violations that follow from them.

A quota is a rule for the `ResourceManager`, which measures an instance every few seconds. If the instance has used too
much, the manager warns, slows the instance down, suspends it, or terminates it. So an instance may exceed its quota for
some seconds. A limit that must hold at every moment belongs to the command (`ResourceLimits`): the supervisor and the
kernel enforce it.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sabot.base.checks import is_number, is_whole
from sabot.base.config import checked_durations
from sabot.errors import UserError, short_repr
from sabot.process.document_names import LifecycleState
from sabot.process.errors import InvalidQuota

_UNITS = {"": 1, **{f"{each}i": 1024**power for power, each in enumerate("KMGTPE", 1)}}
_UNITS |= {each: 1000**power for power, each in enumerate("kMGTPE", 1)}
_MOST_BYTES = 1 << 62
_MOST_CORES = 1 << 20


class QuotaMode(StrEnum):
    """The moment at which the action of a quota is taken, after a measurement has found that the quota is exceeded.

    - HARD: at once.
    - SOFT_THEN_HARD: after `grace_seconds`, if the quota is still exceeded. Before that, the violation is only
      reported.
    - WARN_ONLY: never. The violation is only reported.
    """

    HARD = "hard"
    SOFT_THEN_HARD = "soft_then_hard"
    WARN_ONLY = "warn_only"


class QuotaAction(StrEnum):
    """The action that is taken when an instance exceeds its quota.

    - WARN: only reports the violation.
    - THROTTLE: gives the instance less CPU.
    - SUSPEND, TERMINATE: calls `suspend` or `terminate` of the lifecycle manager for the instance.
    """

    WARN = "warn"
    THROTTLE = "throttle"
    SUSPEND = "suspend"
    TERMINATE = "terminate"


class QuotaResource(StrEnum):
    """A resource whose usage a quota limits: CPU, memory, or tokens of models."""

    CPU = "cpu"
    MEMORY = "memory"
    TOKENS = "tokens"


class CountsTokens(Protocol):
    """An object with the tokens that a call of a model has used, such as `sabot.llm.Usage` or a row of a ledger."""

    @property
    def total_tokens(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class ResourceQuota:
    """A quota of an instance, for all its processes together. Usage of exactly a limit is allowed; None means no
    limit. The constructor raises InvalidQuota for a value that is not valid.

    - `cpu`: cores, such as "2", "500m" or 0.5. The usage is an average over the time between two measurements.
    - `memory`: resident memory, such as "2Gi", "512Mi" or a number of bytes.
    - `tokens_per_hour`: tokens of models from one full hour of the clock to the next.
    - `on_cpu`, `on_memory`, `on_tokens`: the action if more is used. `mode`: the moment at which the action is taken.
      `grace_seconds`: the wait before the action, for the mode SOFT_THEN_HARD.
    - `throttled_cpu`: the cores that an instance gets while it is throttled because of its memory or its tokens. An
      instance that is throttled because of its CPU gets `cpu` cores.
    """

    cpu: str | float | None = "2"
    memory: str | int | None = "2Gi"
    tokens_per_hour: int | None = 100_000
    mode: QuotaMode = QuotaMode.HARD
    on_cpu: QuotaAction = QuotaAction.THROTTLE
    on_memory: QuotaAction = QuotaAction.TERMINATE
    on_tokens: QuotaAction = QuotaAction.SUSPEND
    grace_seconds: float = 60.0
    throttled_cpu: str | float = "100m"

    def __post_init__(self) -> None:
        parse_cpu(self.throttled_cpu, name="throttled_cpu")
        self.limits()
        kinds: dict[str, type[StrEnum]] = {"mode": QuotaMode, **{f"on_{each}": QuotaAction for each in QuotaResource}}
        for name, kind in kinds.items():
            given = getattr(self, name)
            try:
                object.__setattr__(self, name, kind(given))
            except ValueError as error:
                raise InvalidQuota(f"quota: {name}={short_repr(given)}", hint=" or ".join(kind)) from error
        try:
            checked_durations(self, "grace_seconds", zero=True)
        except UserError as error:
            raise InvalidQuota(error.message, hint=error.hint) from error

    def limits(self) -> dict[QuotaResource, float]:
        """Returns the limits by resource, in cores, bytes, and tokens per hour. A resource without a limit is not in
        the dict.
        """
        if self.tokens_per_hour is not None and not is_whole(self.tokens_per_hour, 1):
            raise InvalidQuota(
                f"quota: tokens_per_hour={short_repr(self.tokens_per_hour)}", hint="a whole number from 1 up, or None"
            )
        found = {
            QuotaResource.CPU: None if self.cpu is None else parse_cpu(self.cpu),
            QuotaResource.MEMORY: None if self.memory is None else parse_memory(self.memory),
            QuotaResource.TOKENS: self.tokens_per_hour,
        }
        return {resource: limit for resource, limit in found.items() if limit is not None}

    def action(self, resource: QuotaResource) -> QuotaAction:
        """Returns the action that this quota demands if the instance uses more than its limit of the resource."""
        action: QuotaAction = getattr(self, f"on_{resource}")
        return action


@dataclass(frozen=True)
class ResourceReport:
    """The usage of an instance, for all its processes together, at one measurement.

    - `at`: the time of the measurement in seconds since 1970. `processes`: the number of processes now.
    - `cpu_cores`: the cores in use, on average since the measurement before; 0 at the first measurement of a process.
    - `cpu_seconds`: the CPU time of the present process and of the earlier ones, as far as they were measured.
    - `memory_bytes`: the resident memory now. `peak_memory_bytes`: the highest value of any measurement.
    - `tokens`: the tokens since the last full hour of the clock. `total_tokens`: all tokens that `report_tokens` has
      added.
    - `held_to`: the number of cores to which the instance is throttled; None if it is not throttled.
    - `exceeded`: the resources of which the instance uses more than its quota, or because of which it is throttled or
      suspended.
    """

    agent_id: str
    at: float
    state: LifecycleState
    processes: int
    cpu_cores: float
    cpu_seconds: float
    memory_bytes: int
    peak_memory_bytes: int
    tokens: int
    total_tokens: int
    held_to: float | None
    exceeded: tuple[QuotaResource, ...]


@dataclass(frozen=True)
class QuotaViolation:
    """A limit that an instance has exceeded.

    - `at`: the time in seconds since 1970. `used`, `limit`: the usage and the limit, in cores, bytes or tokens.
    - `action`: the action that was taken. `error`: the reason why this action has failed; it is then tried again. ""
      if it has not failed.
    """

    agent_id: str
    at: float
    resource: QuotaResource
    used: float
    limit: float
    action: QuotaAction
    error: str = ""

    def __str__(self) -> str:
        what = f"instance {self.agent_id!r} uses {self.used:.6g} of {self.resource}, more than {self.limit:.6g}: {self.action}"
        return f"{what}: {self.error}" if self.error else what


def parse_cpu(value: str | float, *, name: str = "cpu") -> float:
    """Returns a number of cores. `value`: a text such as "2", "0.5" or "500m" (thousandths of a core), or a number,
    which is returned as a float. Raises InvalidQuota for any other value, and for less than a thousandth of a core.
    `name`: the field of the quota, for the error message.
    """
    cores = None
    if isinstance(value, str):
        if (match := re.fullmatch(r"(\d+)m|(\d+(?:\.\d+)?)", value.strip(), re.ASCII)) is not None:
            cores = int(match[1]) / 1000 if match[1] else float(match[2])
    elif is_number(value):
        cores = float(value)
    if cores is None or not math.isfinite(cores) or not 0.001 <= cores <= _MOST_CORES:
        raise InvalidQuota(
            f"quota: {name}={short_repr(value)} is no CPU", hint='cores: "2", "0.5" or "500m", at least "1m"'
        )
    return cores


def parse_memory(value: str | int) -> int:
    """Returns a number of bytes. `value`: a text such as "2Gi", "512Mi" or "1.5G", or a whole number, which is
    returned unchanged. Raises InvalidQuota for any other value, and for less than one byte.
    """
    size = None
    if isinstance(value, str):
        if (match := re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTPE]i|[kMGTPE])?", value.strip(), re.ASCII)) is not None:
            size = int(min(float(match[1]), _MOST_BYTES) * _UNITS[match[2] or ""])
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    if size is None or not 0 < size <= _MOST_BYTES:
        raise InvalidQuota(
            f"quota: memory={short_repr(value)} is no size", hint='bytes: "2Gi", "512Mi", "1.5G" or a number'
        )
    return size
