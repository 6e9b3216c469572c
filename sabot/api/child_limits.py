"""The limits of the jobs that a durable agent begins for other agents."""

from dataclasses import dataclass

from sabot.base.checks import FLAG, Whole, check_fields
from sabot.errors import UserError, short_repr


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """The jobs that a job of a durable agent may begin by `ctx.child`.

    `max_depth`: the levels of jobs below the first one. `max_child_jobs`: the children of one job that have not ended.
    A child beyond these numbers is not begun: its parent gets an `EffectError` of type "DepthExceeded". `outlive`: True
    if a child that the job did not wait for goes on when the job has ended, with its own time. Otherwise it is
    cancelled, and the time that the job has left is its time too.
    """

    max_depth: int = 5
    max_child_jobs: int = 100
    outlive: bool = False

    def __post_init__(self) -> None:
        check_fields(self, max_depth=Whole(), max_child_jobs=Whole(), outlive=FLAG)


DEFAULT_LIMITS = ChildLimits()


def checked_limits(where: str, children: ChildLimits | None) -> ChildLimits:
    """Returns the limits, or the default. Raises UserError for a value of another type."""
    if not isinstance(children, ChildLimits | None):
        raise UserError(
            f"{where}: children={short_repr(children)}", hint="ChildLimits(max_depth=5, max_child_jobs=100)"
        )
    return children or DEFAULT_LIMITS
