"""What goes wrong with models and tools.

SabotError
├── ModelError                  names provider, model and request id; code E2004
│   ├── AuthenticationFailed    the key is wrong, or may not use the model
│   ├── RequestRefused          the provider does not take the request as it is
│   │   └── ContextLengthExceeded   E2003: the conversation is longer than the model's context window
│   ├── ContentFiltered         the provider's filter held the answer back
│   ├── MalformedAnswer         the answer is cut off, is no JSON, or does not match the schema
│   ├── AnswerTooLarge          the answer is longer than `max_answer_bytes`, and was not read to its end
│   ├── RateLimited             too many requests or tokens; `retry_after_s` (also a TransientError)
│   ├── ModelTimeout            no answer in time (also a TransientError and a TimeoutError)
│   └── ModelUnavailable        no connection, a 5xx, an answer that broke off (also a TransientError)
│       ├── ModelUnreachable    there is no connection to the provider, so nothing was sent
│       └── CircuitOpen         the provider failed again and again, so it was not asked
├── BudgetExceeded              what may be used is used up, so no request was made
│   └── BudgetUnavailable       what is left is not known, so none was made either (also a TransientError)
├── ToolError                   E2001: a tool is not there, got wrong arguments, or failed
│   └── ToolTimeout             E2002 (also a TimeoutError)
└── AgentRunError               E2000: a run of an agent that cannot go on
    └── TurnLimitExceeded       E2005: the model goes on calling tools
"""

from collections.abc import Sequence
from copy import copy

from sabot.errors import DataError, SabotError, TransientError, UserError
from sabot.llm.messages import ChatMessage
from sabot.stored_names import stored_name


class ModelError(SabotError):
    """A call of a model has failed.

    provider, model, request_id: which call; empty where they are not known. status: of HTTP; 0: there was no response. sent: the request
    may have been worked on, so it may cost. conversation: what was said in the run of an agent that it has ended, the prompt first.
    """

    code = "E2004"
    conversation: Sequence[ChatMessage] = ()

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        model: str = "",
        request_id: str = "",
        status: int = 0,
        sent: bool = True,
        hint: str = "",
    ) -> None:
        where = ", ".join(filter(None, (provider, model, request_id and f"request {request_id}")))
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.provider = provider
        self.model = model
        self.request_id = request_id
        self.status = status
        self.sent = sent


class AuthenticationFailed(ModelError):
    """The provider does not know the key, or the key may not use the model."""


class RequestRefused(ModelError):
    """The provider does not take the request as it is; the same request is refused again."""


class ContextLengthExceeded(RequestRefused):
    """The conversation, with the room for the answer, is longer than the model's context window."""

    code = "E2003"


class ContentFiltered(ModelError):
    """A filter of the provider held the request or the answer back."""


class MalformedAnswer(ModelError):
    """The answer is cut off, is no JSON, or does not match the schema. text: the answer, shortened."""

    def __init__(self, message: str, *, text: str = "", **where: object) -> None:
        super().__init__(message, **where)  # type: ignore[arg-type]
        self.text = text


class AnswerTooLarge(ModelError):
    """The answer is longer than `max_answer_bytes`. It was not read to its end; it may cost all the same."""


class RateLimited(ModelError, TransientError):
    """The provider wants fewer requests or tokens. retry_after_s: the wait it asks for; 0: it said nothing."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0, **where: object) -> None:
        super().__init__(message, **where)  # type: ignore[arg-type]
        self.retry_after_s = retry_after_s


class ModelTimeout(ModelError, TransientError, TimeoutError):
    """There was no answer in time."""


class ModelUnavailable(ModelError, TransientError):
    """The provider cannot be reached, has failed by itself, or its answer broke off."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0, **where: object) -> None:
        super().__init__(message, **where)  # type: ignore[arg-type]
        self.retry_after_s = retry_after_s


class ModelUnreachable(ModelUnavailable):
    """There is no connection to the provider. Nothing was sent."""


class CircuitOpen(ModelUnavailable):
    """The provider failed again and again, so for `retry_after_s` seconds it is not asked. Nothing was sent."""


UNPAID = (AuthenticationFailed, CircuitOpen, ModelUnreachable, RateLimited, RequestRefused)
"""Errors of requests that no vendor is paid for."""


def may_cost(error: BaseException) -> bool:
    """Whether a request that ended so may be paid: it was sent, and its answer was not read."""
    if isinstance(error, ModelError):
        return error.sent and not isinstance(error, UNPAID)
    return not isinstance(error, UserError)


class BudgetExceeded(SabotError):
    """Tokens or money that may be used are used up. No request was made."""


class BudgetUnavailable(BudgetExceeded, TransientError):
    """Several processes share the budget, and its owner, whom the message names, does not say what is left. No request was made."""


class ToolError(SabotError):
    """A tool is not there, got arguments that it does not take, or failed. The model is told."""

    code = "E2001"


class ToolTimeout(ToolError, TimeoutError):
    """A tool did not return in time."""

    code = "E2002"


class AgentRunError(SabotError):
    """A run of an agent cannot go on. Its conversation has the turns that were complete. conversation: what was said in the run."""

    code = "E2000"
    conversation: Sequence[ChatMessage] = ()


class TurnLimitExceeded(AgentRunError):
    """The model has been asked `max_turns` times, and has not answered."""

    code = "E2005"


ABOUT_ITS_RECORD = (
    MalformedAnswer,
    AnswerTooLarge,
    ContentFiltered,
    ContextLengthExceeded,
    TurnLimitExceeded,
    DataError,
)
"""Errors of an agent over a record which say nothing of the next record: another one may well be answered."""


def retold(error: SabotError, message: str) -> SabotError:
    """The same error, with another message."""
    told = copy(error)
    told.message = message
    told.args = (message,)
    return told


def model_error(type: str, message: str) -> ModelError | BudgetExceeded | TurnLimitExceeded | None:
    """The error of this class, where it is one that a call of a model raises: a journal has of an error its class and what it said."""
    kind = _KINDS.get(type)
    return None if kind is None else kind(message)


_KINDS: dict[str, type[ModelError | BudgetExceeded | TurnLimitExceeded]] = {
    stored_name(each): each
    for each in (
        BudgetExceeded,
        BudgetUnavailable,
        TurnLimitExceeded,
        ModelError,
        AuthenticationFailed,
        RequestRefused,
        ContextLengthExceeded,
        ContentFiltered,
        MalformedAnswer,
        AnswerTooLarge,
        RateLimited,
        ModelTimeout,
        ModelUnavailable,
        ModelUnreachable,
        CircuitOpen,
    )
}
