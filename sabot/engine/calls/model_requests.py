"""A request to a model as a value: `RequestSpec`, and the caller for whom it is made: `RequestContext`."""

import uuid
from hashlib import blake2b
from typing import Any, Literal, Protocol

import msgspec

from sabot.base.options import no_option
from sabot.base.present_job import PRESENT_JOB
from sabot.engine.calls.messages import ChatMessage
from sabot.errors import UserError, short_repr

JsonSchema = dict[str, Any]
ToolChoice = Literal["auto", "none", "required"]


class ToolSchema(msgspec.Struct, frozen=True):
    """The description of a tool for a model. `parameters`: the JSON schema of an object."""

    name: str
    description: str
    parameters: JsonSchema


class RequestSpec(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A request to a model. If a field is None, the vendor's default is used.

    - `messages`: the conversation; a system message is the first.
    - `model`: the name of the model, or "" for the model of the provider.
    - `tools`: the tools that the model may call. `tool_choice`: "auto" if the model decides whether to call one,
      "required" if it must call one, "none" if it must not.
    - `output`: the JSON schema that the answer must match. `output_name`: the name of that schema in the request.
    - `temperature`, `top_p`: how random the answer is, as the vendor defines it.
    - `max_tokens`: the most tokens of the answer.
    - `stop`: texts at which the answer ends.
    - `seed`: a number for repeatable answers, if the vendor has such a parameter.
    - `options`: other parameters, by the vendor's names. They replace the fields above. Engines and jobs refuse options
      for the model, the messages and the length of the answer, because policies and budgets have to know these.
    """

    messages: tuple[ChatMessage, ...]
    model: str = ""
    tools: tuple[ToolSchema, ...] = ()
    tool_choice: ToolChoice = "auto"
    output: JsonSchema | None = None
    output_name: str = "answer"
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    options: dict[str, Any] = {}

    def digest(self) -> bytes:
        """Returns a hash of all fields, 16 bytes long. It is the same for equal requests, in every process."""
        # All fields: msgspec omits a text as a default by its identity, so equal requests could be encoded differently.
        fields = msgspec.structs.asdict(self)
        for name in ("temperature", "top_p"):  # 1 equals 1.0
            fields[name] = None if fields[name] is None else float(fields[name])
        return blake2b(msgspec.msgpack.encode(fields, order="deterministic"), digest_size=16).digest()


class _AnswersWrongNames(msgspec.StructMeta):
    """The class of `RequestContext`: a name that it does not have is answered with the one that is meant. The
    `__init__` of a Struct is not called, so `answers_wrong_options` does nothing for it.
    """

    def __call__(cls, *args: Any, **given: Any) -> Any:
        try:
            return super().__call__(*args, **given)
        except TypeError:
            known = cls.__struct_fields__
            if unknown := given.keys() - set(known):
                raise no_option(cls.__name__, unknown, known) from None
            raise


class RequestContext(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, metaclass=_AnswersWrongNames):
    """The ids of a request, and of the caller for whom it is made. It is passed to all layers of the middleware.

    - `request_id`: the id of the request, random by default. `trace_id`: the id that all requests of one trace have.
    - `tenant_id`, `user_id`, `session_id`, `job_id`: the caller; None if unknown.
    - `parent_id`: if this request is a part of another request, the id of the other one.
    """

    request_id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    trace_id: str | None = None
    tenant_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    job_id: str | None = None
    parent_id: str | None = None

    def child(self) -> "RequestContext":
        """Returns the context for a request that is a part of this one. It has a new request id, and this request's id
        as its `parent_id`. Its tenant, user, session and job are the same, and so is its trace id. If this request has
        no trace id, its request id becomes the trace id.
        """
        return msgspec.structs.replace(
            self, request_id=uuid.uuid4().hex, parent_id=self.request_id, trace_id=self.trace_id or self.request_id
        )

    def with_job(self, job_id: str) -> "RequestContext":
        """Returns this context with the id of a job."""
        return msgspec.structs.replace(self, job_id=job_id)


def present_context() -> RequestContext:
    """Returns the context of a request for which none is given. In the function of a job, and in its effects, it names
    the job, its tenant, user and session, and the trace to which the spans of the job belong.
    """
    job = PRESENT_JOB.get()
    if job is None:
        return RequestContext()
    return RequestContext(
        trace_id=job.trace or None,
        tenant_id=job.tenant or None,
        user_id=job.user or None,
        session_id=job.session or None,
        job_id=job.job or None,
    )


class NamesCaller(Protocol):
    """An object that knows for whom calls are made, such as an ExecutionContext of `sabot.agents`."""

    def request_context(self) -> RequestContext:
        """Returns the context of a request that is made directly, without a job."""


def context_of(given: "RequestContext | NamesCaller | None") -> RequestContext:
    """Returns the context of a request: the given one, or, with None, that of the present job."""
    if given is None or isinstance(given, RequestContext):
        return given or present_context()
    made = getattr(given, "request_context", None)
    if not callable(made):
        raise UserError(
            f"context={short_repr(given)} is no context",
            hint="a RequestContext, or an ExecutionContext of sabot.agents",
        )
    found: RequestContext = made()
    return found
