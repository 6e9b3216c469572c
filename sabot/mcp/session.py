"""A session with a server, as programs use it."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sabot.base.config import Duration, parse_seconds
from sabot.llm.messages import ChatMessage, assistant, user
from sabot.mcp.config import SessionKey
from sabot.mcp.errors import McpRefused
from sabot.mcp.results import McpPrompt, McpResource, McpResult
from sabot.mcp.tools import Ask, CallStep, RemoteTool, ServerQuestions

if TYPE_CHECKING:
    from sabot.mcp.connection import McpConnection, OnProgress

T = TypeVar("T")


class _Pool(Protocol):
    """The part of a `McpServerPool` that a session uses."""

    @property
    def step(self) -> CallStep: ...

    @property
    def questions(self) -> ServerQuestions: ...

    @property
    def ask(self) -> Ask | None: ...

    async def run(self, work: Coroutine[Any, Any, T]) -> T: ...

    async def use(self, key: SessionKey, what: "Callable[[McpConnection], Awaitable[T]]") -> T: ...


class McpSession:
    """A session with a server, of one tenant and principal, named by `key`. It may be closed if it is not used for long, and is opened
    again at the next use.
    """

    def __init__(self, pool: _Pool, key: SessionKey) -> None:
        self.key = key
        self._pool = pool

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: Duration | None = None,
        progress: "OnProgress | None" = None,
    ) -> McpResult:
        """Calls a tool once. `timeout`: the time for the answer, `request_timeout` if None. `progress`: called as `progress(done, total,
        words)` in the pool's thread; it may be async. Raises McpError; after McpConnectionLost and McpTimeout nobody knows whether the
        call was done.
        """
        timeout_s = None if timeout is None else parse_seconds(timeout, name="timeout", zero=False)
        remote = RemoteTool(
            self._pool.step, self.key, name, "", timeout_s, self._pool.questions, self._pool.ask, progress
        )
        return await remote(**dict(arguments or {}))

    async def digests(self) -> dict[str, str]:
        """Returns the digest of each tool's description, for `approved=`."""
        return {name: offer.digest for name, offer in (await self.offers()).items()}

    async def offers(self) -> dict[str, Any]:
        """Returns the tools that are offered to agents, by name, as the server lists them now."""
        return await self._use(_offered)

    async def left_out(self) -> dict[str, str]:
        """Returns the reasons of tools that are not offered to agents."""
        return await self._use(_left_out)

    async def version(self) -> str:
        """Returns the version of the protocol."""
        return await self._use(_version_of)

    async def resources(self) -> list[McpResource]:
        """Returns the resources of the server, templates last. Raises McpError."""
        return await self._use(_resources)

    async def read_resource(self, uri: str) -> list[dict[str, Any]]:
        """Returns the contents of a resource, as the protocol has them: `{"uri": …, "text": …}`, or `{"uri": …, "blob": …}` in base64.
        Raises McpError.
        """
        return await self._use(lambda server: _contents(server, uri))

    async def prompts(self) -> list[McpPrompt]:
        """Returns the prompts of the server. Raises McpError."""
        return await self._use(_prompts)

    async def prompt(self, name: str, arguments: Mapping[str, str] | None = None) -> list[ChatMessage]:
        """Returns the messages of a prompt, for a model. Raises McpError."""
        return await self._use(lambda server: _messages(server, name, arguments or {}))

    async def _use(self, what: "Callable[[McpConnection], Awaitable[T]]") -> T:
        return await self._pool.run(self._pool.use(self.key, what))


async def _offered(connection: "McpConnection") -> dict[str, Any]:
    await connection.refresh()
    return dict(connection.offers)


async def _left_out(connection: "McpConnection") -> dict[str, str]:
    return dict(connection.left_out)


async def _version_of(connection: "McpConnection") -> str:
    return connection.version


async def _resources(server: "McpConnection") -> list[McpResource]:
    if not server.offers_any("resources"):
        return []
    found = [
        McpResource(each["uri"], each["name"], each.get("description", ""), each.get("mimeType", ""))
        for each in await server.pages("list_resources")
    ]
    try:
        templates = await server.pages("list_resource_templates")
    except McpRefused:  # it has none
        return found
    return found + [
        McpResource(
            each["uriTemplate"], each["name"], each.get("description", ""), each.get("mimeType", ""), template=True
        )
        for each in templates
    ]


async def _contents(server: "McpConnection", uri: str) -> list[dict[str, Any]]:
    from sabot.mcp.wire import as_json

    found = await server.request("read_resource", uri)
    return [as_json(each) for each in found.contents]


async def _prompts(server: "McpConnection") -> list[McpPrompt]:
    if not server.offers_any("prompts"):
        return []
    return [
        McpPrompt(
            each["name"],
            each.get("description", ""),
            {one["name"]: bool(one.get("required")) for one in each.get("arguments", ())},
        )
        for each in await server.pages("list_prompts")
    ]


async def _messages(server: "McpConnection", name: str, arguments: Mapping[str, str]) -> list[ChatMessage]:
    from sabot.mcp.wire import as_json

    found = await server.request("get_prompt", name, arguments=dict(arguments))
    return [_said(as_json(each)) for each in found.messages]


def _said(message: Mapping[str, Any]) -> ChatMessage:
    text = McpResult(content=[message["content"]]).text
    return assistant(text) if message["role"] == "assistant" else user(text)
