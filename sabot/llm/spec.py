"""A request to a model, as a value: what is asked (`RequestSpec`), and on whose behalf (`RequestContext`)."""

import uuid
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from sabot.llm.messages import ChatMessage

JsonSchema = dict[str, Any]
ToolChoice = Literal["auto", "none", "required"]


class ToolSchema(msgspec.Struct, frozen=True):
    """A tool as a model sees it. parameters: a JSON schema of an object."""

    name: str
    description: str
    parameters: JsonSchema


class RequestSpec(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a model is asked. What is None is the vendor's default.

    messages: the conversation, a system message first. model: "": the provider's own. tools: what the model may call. tool_choice: whether
    it may or must. output: the JSON schema that the answer must match; output_name: what the schema is called in the request. max_tokens:
    of the answer. stop: texts at which the answer ends. options: parameters by the vendor's names, sent as they are; they win. An
    engine and a job refuse those that policies and budgets would have to see: the model, the messages, how long an answer is.
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
        """16 bytes that are the same for equal requests, in every process."""
        fields = msgspec.structs.asdict(
            self
        )  # all of them: whether a text is left out as a default goes by its identity
        for name in ("temperature", "top_p"):  # 1 is 1.0
            fields[name] = None if fields[name] is None else float(fields[name])
        return blake2b(msgspec.msgpack.encode(fields, order="deterministic"), digest_size=16).digest()


class RequestContext(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """On whose behalf a call is made; it goes through all layers. request_id: made where it is not given. parent_id: the request for which
    this one is made.
    """

    request_id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    trace_id: str | None = None
    tenant_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    job_id: str | None = None
    parent_id: str | None = None

    def child(self) -> "RequestContext":
        """The context of a call that is made for this one: another request of the same trace, tenant, user, session and job."""
        return msgspec.structs.replace(
            self, request_id=uuid.uuid4().hex, parent_id=self.request_id, trace_id=self.trace_id or self.request_id
        )

    def with_job(self, job_id: str) -> "RequestContext":
        """The same request, for a job."""
        return msgspec.structs.replace(self, job_id=job_id)
