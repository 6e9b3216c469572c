"""The contract between the engine and a vendor's API."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol, runtime_checkable

from sabot.engine.calls.model_requests import RequestSpec
from sabot.llm.results import Completion, Embeddings, Piece


@runtime_checkable
class Provider(Protocol):
    """A client of a vendor's API, which makes exactly one request for each call; a second one only if the server has
    refused the first for an option that it does not know. Retries, limits, caches and prices are the engine's task.

    Many tasks of one event loop may call it at once; the engine uses it in one event loop at a time. Errors are
    `ModelError` (`sabot.engine.calls.errors`), with provider, model and request id, and never contain a key. When a cancelled
    call returns, its connection is closed.
    """

    @property
    def name(self) -> str:
        """The vendor in lower case, such as "openai"."""

    @property
    def model(self) -> str:
        """The model for requests without a model of their own."""

    @property
    def lacks(self) -> frozenset[str]:
        """The fields of a RequestSpec for which the vendor's API has no parameter, such as {"seed"}. If such a field is
        set in a request, the provider raises UserError. If the provider is a fallback, the engine removes these fields
        beforehand.
        """

    async def complete(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> Completion:
        """Sends the request, and returns the whole answer. Raises ModelError.

        - `timeout_s`: the time limit in seconds; ModelTimeout is raised after it. With None the provider decides.
        - `idempotency_key`: a key that is sent to the vendor if its API accepts one.
        - `max_answer_bytes`: the most bytes of the answer as it is received. Reading stops at this limit, and
          AnswerTooLarge is raised.
        """

    def stream(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Yields the answer in pieces as they come. Only the last piece has the whole answer as a Completion. Raises
        ModelUnavailable if the stream ends before that. If the caller closes the generator early, the request ends.

        `timeout_s`: the longest wait for a piece, in seconds. `idempotency_key`, `max_answer_bytes`: the same as in
        `complete`.
        """

    async def embed(self, texts: Sequence[str], *, model: str = "", timeout_s: float | None = None) -> Embeddings:
        """Returns a vector for each text. Raises UserError if the vendor has no embeddings."""

    async def close(self) -> None:
        """Closes the connections that the provider has opened itself, not a client that the user has given. No other
        method is called afterwards. Repeated calls do nothing.
        """
