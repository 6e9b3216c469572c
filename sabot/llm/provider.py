"""The contract between the engine and a vendor's API."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol, runtime_checkable

from sabot.llm.results import Completion, Embeddings, Piece
from sabot.llm.spec import RequestSpec


@runtime_checkable
class Provider(Protocol):
    """Makes one request for each call, and no second one: retries, limits, caches and prices are the engine's.

    Safe to call from many tasks of one event loop at once; the engine keeps it to that loop. Errors are `sabot.llm.errors.ModelError`, with
    provider, model and request id, and never with a key. A call that is cancelled has closed its connection when it returns.
    """

    @property
    def name(self) -> str:
        """The vendor, in lower case: "openai"."""

    @property
    def model(self) -> str:
        """The model of a request that names none."""

    @property
    def lacks(self) -> frozenset[str]:
        """Fields of a RequestSpec for which the vendor has no parameter: {"seed"}. A request that has one raises UserError; an engine that
        asks this provider in the place of another leaves them out.
        """

    async def complete(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> Completion:
        """The whole answer. timeout_s: until then, or ModelTimeout. idempotency_key: goes to the vendor where it takes one.
        max_answer_bytes: of the answer as it comes from the vendor; what is longer is not read to its end, and raises AnswerTooLarge.
        """

    def stream(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """The answer in pieces as they come; the last piece, and only that, has the completion. timeout_s: between two pieces. A stream
        that ends before its completion raises ModelUnavailable. To close the generator early ends the request.
        """

    async def embed(self, texts: Sequence[str], *, model: str = "", timeout_s: float | None = None) -> Embeddings:
        """A vector for each text. Raises UserError where the vendor has no embeddings."""

    async def close(self) -> None:
        """Ends its connections. Afterwards no call is made. Repeated calls do nothing."""
