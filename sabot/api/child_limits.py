"""The limits of the jobs that a durable agent begins for other agents."""

from sabot.base.checks import FLAG, Whole, check_fields
from sabot.base.dataclass import dataclass
from sabot.base.options import answers_wrong_options
from sabot.errors import UserError, short_repr


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """The limits of the child jobs that a job of a durable agent begins with `ctx.child`.

    - `max_depth`: the most levels of jobs below the first one.
    - `max_child_jobs`: the most children of one job that have not ended. Further ones wait until others have ended; with
      0 the job may have none.
    - `outlive`: what happens to a child that still runs when its parent job ends. With True it continues, and has a
      time limit of its own. With False it is cancelled, and its time limit ends with that of the parent.

    A child that would be deeper is not begun: `ctx.child` raises an `EffectError` of type "DepthExceeded" in the
    parent.
    """

    max_depth: int = 5
    max_child_jobs: int = 100
    outlive: bool = False

    def __post_init__(self) -> None:
        check_fields(self, max_depth=Whole(), max_child_jobs=Whole(), outlive=FLAG)


DEFAULT_LIMITS = ChildLimits()


def checked_limits(where: str, children: ChildLimits | None) -> ChildLimits:
    """Returns the limits; the default limits if `children` is None. Raises UserError for a value of another type.
    `where`: the beginning of the message.
    """
    if not isinstance(children, ChildLimits | None):
        raise UserError(
            f"{where}: children={short_repr(children)}", hint="ChildLimits(max_depth=5, max_child_jobs=100)"
        )
    return children or DEFAULT_LIMITS
