"""The context of jobs: on whose behalf a job runs, and within which limits."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal

from sabot.base.checks import Of, OneOf, Whole, check
from sabot.base.config import Dollars, amount, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.engine.calls.model_requests import RequestContext
from sabot.errors import UserError, short_repr


def checked_word(value: object, what: str, *, empty: bool = True) -> str:
    """Returns the value if it is a text that a database can store: UTF-8 can encode it, and it has no NUL character.
    Raises UserError for anything else, and with `empty=False` also for "". `what` is the name of the value in the error
    message.
    """
    if not isinstance(value, str) or (not empty and not value):
        raise UserError(f"{what}={short_repr(value)}: a text is wanted{'' if empty else ', which is not empty'}")
    if "\0" in value:
        raise UserError(
            f"{what}={short_repr(value)}: it has the character NUL", hint="a text without it: no database stores it"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what}={short_repr(value)}: {error.reason}", hint="a text that UTF-8 can write") from None
    return value


def checked_fields(value: object, what: str) -> None:
    """Raises UserError unless the value is a mapping whose keys are all texts, because other values could not be read
    back from the journal. `what` is the name of the value in the error message.
    """
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{what}={short_repr(value)}: fields by their names are wanted", hint=f'{what}={{"name": …}}')


def check_request(made: Any, *words: str, given: Collection[str] = ()) -> None:
    """Checks the fields that a JobSpec and an ExecutionRequest have in common, and the texts `words`, and those of `given`,
    which are None or a text that is not empty. Makes its `budgets` a BudgetSpec. Raises UserError.
    """
    checked_word(made.scope_id, "scope_id", empty=False)
    for word in ("principal_id", "run_id", *words):
        checked_word(getattr(made, word), word)
    for word in given:
        value = getattr(made, word)
        if value == "":  # an empty field of a form: it would count as none, and a form that is sent twice be two jobs
            raise UserError(f"{word}='': it is empty", hint="leave it out, or give a text that is not empty")
        if value is not None:
            checked_word(value, word)
    object.__setattr__(made, "budgets", BudgetSpec.of(made.budgets))
    name = type(made).__name__
    check(f"{name}: policy_ref", made.policy_ref, Of(PolicyRef | None, 'PolicyRef("name")'))
    check(f"{name}: versions", made.versions, Of(RunVersions, "RunVersions(…)"))
    checked_fields(made.metadata, "metadata")


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSpec:
    """The limits of one job; None means no limit. A job may use up to each limit, but not more.

    - `max_tokens`, `max_tool_calls`, `max_turns`: the most tokens, calls of tools, and requests to models.
    - `max_cost`: the most US dollars: a Decimal, a number or a text. It is stored as a Decimal.
    - `max_runtime_seconds`: the most seconds. Time in which the job runs or sleeps counts; time in which it waits for
      the answer to an action does not count.
    - `unpriced`: decides what happens if there is a `max_cost` and the job calls a model with an unknown price. "deny"
      forbids the call, and "ask" asks a person each time.

    Raises UserError for a limit that is negative or not a number.
    """

    max_tokens: int | None = None
    max_cost: Dollars = None  # type: ignore[assignment]
    max_tool_calls: int | None = None
    max_turns: int | None = None
    max_runtime_seconds: float | None = None
    unpriced: Literal["deny", "ask"] = "deny"

    @classmethod
    def of(cls, given: "BudgetSpec | Mapping[str, Any] | None") -> "BudgetSpec":
        """Returns the limits that `given` describes. A BudgetSpec is returned unchanged, a mapping must have the fields
        of a BudgetSpec, and None means no limits. Raises UserError for unknown fields.
        """
        if isinstance(given, BudgetSpec):
            return given
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            raise UserError(f"budgets={short_repr(given)}", hint="budgets=BudgetSpec(max_cost=1.0)")
        if unknown := sorted(map(str, given.keys() - cls.__dataclass_fields__.keys())):
            raise UserError(f"budgets: there is no limit {unknown[0]}", hint=", ".join(cls.__dataclass_fields__))
        return cls(**given)

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_tool_calls", "max_turns"):
            value = getattr(self, name)
            if value is not None:
                check(name, value, Whole())
        object.__setattr__(self, "max_cost", amount("max_cost", self.max_cost))
        given: object = self.max_runtime_seconds
        if isinstance(given, str | timedelta):
            given = parse_seconds(given, name="max_runtime_seconds")
        seconds = amount("max_runtime_seconds", given)
        object.__setattr__(self, "max_runtime_seconds", None if seconds is None else float(seconds))
        check("unpriced", self.unpriced, OneOf(("deny", "ask")))

    @property
    def content(self) -> dict[str, Any]:
        """The limits by field name, for the comparison of two requests with the same idempotency key. A field that
        older versions of Sabot did not have is left out while it has its default value. So a request that such a
        version has stored is still equal.
        """
        newer = () if self.unpriced != "deny" else ("unpriced",)
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in newer}


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class PolicyRef:
    """A reference to the policy under which a job has to run: its name (`PolicyEngine(name=…)`), and its version, or ""
    if any version is accepted. A kernel with another policy refuses the request.
    """

    name: str
    version: str = ""

    def __post_init__(self) -> None:
        checked_word(self.name, "PolicyRef name", empty=False)
        check("PolicyRef version", self.version, Of(str, "a text"))


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class RunVersions:
    """The versions of the software that a job used: model, prompts, tools, policy, code and runtime. They are only
    recorded, so that jobs can be compared later. "" means unknown.
    """

    runtime_version: str = ""
    model_version: str = ""
    prompt_version: str = ""
    tools_version: str = ""
    policy_version: str = ""
    code_version: str = ""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            check(f"RunVersions {name}", getattr(self, name), Of(str, "a text"))


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionContext:
    """The context of a job: for whom it runs, and within which limits.

    - `scope_id`: the tenant. It must not be empty, or UserError is raised.
    - `principal_id`: the actor, which is a person or a service.
    - `session_id`: the conversation.
    - `run_id`: an id that the caller can give to several jobs in order to mark that they belong together.
    - `budgets`: the limits of the job.
    - `policy_ref`: the policy under which the job has to run, or None for any.
    - `versions`, `metadata`: are recorded with the job.
    """

    scope_id: str
    principal_id: str = ""
    session_id: str = ""
    run_id: str = ""
    job_id: str = ""
    budgets: BudgetSpec = field(default_factory=BudgetSpec)
    policy_ref: PolicyRef | None = None
    versions: RunVersions = field(default_factory=RunVersions)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked_word(self.scope_id, "scope_id", empty=False)
        for name in ("principal_id", "session_id", "run_id", "job_id"):
            checked_word(getattr(self, name), name)

    def request_context(self) -> RequestContext:
        """Returns the context of a request to a model or a tool that is made directly, without a job. Raises UserError
        if this context has limits or a policy: without a job nothing would hold them.
        """
        limits = [name for name in BudgetSpec.__dataclass_fields__ if name.startswith("max_")]
        declared = [name for name in limits if getattr(self.budgets, name) is not None]
        if declared or self.policy_ref is not None:
            what = f"budgets ({', '.join(declared)})" if declared else "policy_ref"
            raise UserError(
                f"ExecutionContext: its {what} would limit nothing outside of a job",
                hint="await kernel.execute(ExecutionRequest(…)) makes the calls in a job; without one, give the engine a "
                "budget: ExecutionEngine(…, budget=CallBudget(…))",
            )
        tenant, user, session, job = self.scope_id, self.principal_id, self.session_id, self.job_id
        return RequestContext(tenant_id=tenant, user_id=user or None, session_id=session or None, job_id=job or None)

    def with_job(self, job_id: str) -> "ExecutionContext":
        """Returns a copy of this context with the job id `job_id`."""
        return replace(self, job_id=job_id)
