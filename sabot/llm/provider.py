"""The contract between the engine and a vendor's API."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol, runtime_checkable

from sabot.llm.results import Completion, Embeddings, Piece
from sabot.llm.spec import RequestSpec


@runtime_checkable
class Provider(Protocol):
    """A client of a vendor's API, which makes exactly one request for each call. Retries, limits, caches and prices
    are the engine's task.

    Many tasks of one event loop may call it at once; the engine uses it in one event loop at a time. Errors are
    `ModelError` (`sabot.llm.errors`), with provider, model and request id, and never contain a key. When a cancelled
    call returns, its connection is closed.
    """

    @property
    def name(self) -> str:
        """The vendor in lower case, such as "openai"."""

    @property
    def model(self) -> str:
        """The model of requests that name none."""

    @property
    def lacks(self) -> frozenset[str]:
        """The fields of a RequestSpec for which the vendor has no parameter, such as {"seed"}. A request that sets
        one of them raises UserError. An engine that asks this provider as a fallback removes them.
        """

    async def complete(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> Completion:
        """Returns the whole answer. `timeout_s`: the time limit in seconds, after which ModelTimeout is raised.
        `idempotency_key`: a key that is passed to the vendor if it accepts one. `max_answer_bytes`: the greatest
        length of the answer as it arrives; reading stops there and AnswerTooLarge is raised.
        """

    def stream(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Yields the answer in pieces as they come. Only the last piece has the completion. `timeout_s`: the longest
        wait between two pieces, in seconds. A stream that ends before its completion raises ModelUnavailable. Closing
        the generator early ends the request.
        """

    async def embed(self, texts: Sequence[str], *, model: str = "", timeout_s: float | None = None) -> Embeddings:
        """Returns a vector for each text. Raises UserError if the vendor has no embeddings."""

    async def close(self) -> None:
        """Closes the connections. No other method is called afterwards. Repeated calls do nothing."""
