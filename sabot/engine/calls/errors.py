"""Errors of models, agents and tools.

SabotError
├── ModelError                  has provider, model and request id; code E2004
│   ├── AuthenticationFailed    the key is wrong, or may not use the model
│   ├── RequestRefused          the provider refuses the request as it is
│   │   └── ContextLengthExceeded   E2003: the conversation is longer than the model's context window
│   ├── ContentFiltered         the provider's filter refused the request or held the answer back
│   ├── MalformedAnswer         the answer is cut off, is not JSON, or does not match the schema
│   ├── AnswerTooLarge          the answer is longer than `max_answer_bytes`; reading stopped there
│   ├── RateLimited             too many requests or tokens; `retry_after_s` (also a TransientError)
│   ├── ModelTimeout            no answer in time (also a TransientError and a TimeoutError)
│   └── ModelUnavailable        no connection, a 5xx, an answer that broke off (also a TransientError)
│       ├── ModelUnreachable    there is no connection to the provider, so nothing was sent
│       └── CircuitOpen         the provider failed several times in a row, so it was not asked
├── BudgetExceeded              the budget is used up, so no request was made
│   └── BudgetUnavailable       the rest of the budget is unknown, so no request was made (also a TransientError)
├── ToolError                   E2001: a tool does not exist, got wrong arguments, or failed
│   └── ToolTimeout             E2002 (also a TimeoutError)
└── AgentRunError               E2000: a run of an agent cannot continue
    └── TurnLimitExceeded       E2005: the model has not answered within `max_turns` requests
"""

from collections.abc import Sequence
from copy import copy

from sabot.base.stored_names import stored_name
from sabot.engine.calls.messages import ChatMessage
from sabot.errors import DataError, SabotError, TransientError, UserError


class ModelError(SabotError):
    """The error of a failed call of a model.

    - `provider`, `model`, `request_id`: the vendor's name, the model, and the vendor's id of the request; "" if
      unknown.
    - `status`: the HTTP status of the response, or 0 if there was none.
    - `sent`: True if the vendor may have received the request. Then the vendor may charge for it.
    - `may_repeat`: False if the vendor says that the same request would fail again (`x-should-retry: false`). The
      engine then makes no further attempt with this provider, and asks its fallbacks.
    - `conversation`: if the error ended the run of an agent, the messages of this run, beginning with the prompt.
    """

    code = "E2004"
    may_repeat = True
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
    """The provider refuses the request as it is. A repetition would be refused again."""


class ContextLengthExceeded(RequestRefused):
    """The conversation, together with the longest answer allowed, is longer than the model's context window."""

    code = "E2003"


class ContentFiltered(ModelError):
    """The provider's content filter refused the request or stopped the answer, or the model refused to answer."""


class MalformedAnswer(ModelError):
    """The answer is cut off, is not JSON, does not match the schema, or calls a tool although the request has none.
    `text`: the answer, shortened to 2,000 characters; "" if it has no text.
    """

    def __init__(self, message: str, *, text: str = "", **where: object) -> None:
        super().__init__(message, **where)  # type: ignore[arg-type]
        self.text = text


class AnswerTooLarge(ModelError):
    """The answer is longer than the engine's `max_answer_bytes`. Reading stopped at this limit. The vendor may charge
    for the answer nevertheless.
    """


class RateLimited(ModelError, TransientError):
    """The provider has turned the request away because there are too many requests or tokens. `retry_after_s`: the
    seconds after which the provider wants to be asked again, or 0 if it does not say so.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0, **where: object) -> None:
        super().__init__(message, **where)  # type: ignore[arg-type]
        self.retry_after_s = retry_after_s


class ModelTimeout(ModelError, TransientError, TimeoutError):
    """There was no answer in time."""


class ModelUnavailable(ModelError, TransientError):
    """The provider cannot be reached, has failed with a 5xx, or its answer broke off. `retry_after_s`: the seconds
    after which the provider wants to be asked again, or 0 if it does not say so.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0, **where: object) -> None:
        super().__init__(message, **where)  # type: ignore[arg-type]
        self.retry_after_s = retry_after_s


class ModelUnreachable(ModelUnavailable):
    """There is no connection to the provider. Nothing was sent."""


class CircuitOpen(ModelUnavailable):
    """The provider failed several times in a row, and is not asked for another `retry_after_s` seconds. Nothing was
    sent.
    """


UNPAID = (AuthenticationFailed, CircuitOpen, ModelUnreachable, RateLimited, RequestRefused)
"""Errors after which no vendor charges for the request."""


def may_cost(error: BaseException) -> bool:
    """Returns True if the vendor may charge for a request that ended with this error. Returns False if the request was
    not sent, for a UserError, and for errors after which no vendor charges, such as RateLimited.
    """
    if isinstance(error, ModelError):
        return error.sent and not isinstance(error, UNPAID)
    return not isinstance(error, UserError)


class BudgetExceeded(SabotError):
    """A call would exceed the tokens, the money or the number of tool calls that a budget allows. No request was made."""


class BudgetUnavailable(BudgetExceeded, TransientError):
    """A budget is shared by several processes, and the process that stores it does not answer. No request was made. The
    message contains the scope of the budget.
    """


class ToolError(SabotError):
    """A tool does not exist, got arguments that do not match its parameters, or failed. In a run of an agent, the model
    gets the message.
    """

    code = "E2001"


class ToolTimeout(ToolError, TimeoutError):
    """A tool did not return in time."""

    code = "E2002"


class AgentRunError(SabotError):
    """A run of an agent cannot continue. `conversation`: all messages of the run, beginning with the prompt. If the run
    was started with a Conversation object, the complete turns of the run were added to that object. A turn is complete
    if all its tool calls have results.
    """

    code = "E2000"
    conversation: Sequence[ChatMessage] = ()


class TurnLimitExceeded(AgentRunError):
    """The model was asked `max_turns` times, and each time it called tools or gave an answer that did not match."""

    code = "E2005"


RECORD_ERRORS = (
    MalformedAnswer,
    AnswerTooLarge,
    ContentFiltered,
    ContextLengthExceeded,
    TurnLimitExceeded,
    DataError,
)
"""Errors of an agent that depend on the record it processed, so that the next record may succeed."""


def with_message(error: SabotError, message: str) -> SabotError:
    """Returns a copy of the error with another message."""
    told = copy(error)
    told.message = message
    told.args = (message,)
    return told


def model_error(type: str, message: str) -> ModelError | BudgetExceeded | TurnLimitExceeded | None:
    """Returns the error of a model call that a journal has recorded, as an object of its class. `type`: the name of the
    class. `message`: the message of the error. Returns None if model calls have no error of this class.
    """
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
