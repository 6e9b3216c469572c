"""The errors of MCP servers.

ToolError                    of `sabot.engine.calls.errors`: an agent's model is told
└── McpError                 names the server
    ├── McpUnavailable       no session could be opened; nothing was sent (also a NotSent)
    ├── McpBusy              as many servers are in use as the pool may have; nothing was sent (also a NotSent)
    ├── McpConnectionLost    the session ended during a call: nobody knows whether it was done (also a TransientError)
    ├── McpTimeout           no answer in time: nobody knows whether it was done (also a ToolTimeout)
    ├── McpRefused           the server answered with an error, or asked for what it did not get; `number` is its code in JSON-RPC
    ├── McpResultTooLarge    an answer or a list of the server is longer than McpConfig allows, and was not kept
    ├── McpInvalidAnswer     an answer is not what the protocol or the tool's output schema says
    ├── McpInvalidArguments  they do not match the tool's input schema; nothing was sent
    └── McpToolChanged       the tool is not the one that was offered, or is gone; nothing was sent
"""

from typing import Any

from sabot.engine.calls.errors import ToolError, ToolTimeout
from sabot.errors import NotSent, TransientError


class McpError(ToolError):
    """An MCP server, or a call of one of its tools, has failed. `server`: its name in the pool."""

    def __init__(self, server: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"MCP server {server}: {message}", hint=hint)
        self.server = server


class McpUnavailable(McpError, NotSent):
    """The server cannot be started or reached, or does not speak the protocol. The call was not sent. `passes`: True if
    another try may succeed.
    """

    def __init__(self, server: str, message: str, *, passes: bool = False, hint: str = "") -> None:
        super().__init__(server, message, hint=hint)
        self.passes = passes


class McpBusy(McpError, NotSent):
    """The pool has `max_servers` sessions, and all are in use. The call was not sent."""


class McpConnectionLost(McpError, TransientError):
    """The session ended while a call was under way, or only a part of the answer came, so it is not known whether the
    server has done the call. An agent repeats the call only if the effect class of the tool allows it.
    """


class McpTimeout(McpError, ToolTimeout):
    """The server did not answer a call in time. It is not known whether the server has done the call."""


class McpRefused(McpError):
    """The server answered with an error. Or it requested something before it could answer, such as an answer of a
    model, and that was refused. `number`: the JSON-RPC code of the error, or 0 if it has none. `data`: what the error
    has besides its message.
    """

    def __init__(self, server: str, message: str, number: int = 0, *, data: Any = None, hint: str = "") -> None:
        super().__init__(server, message, hint=hint)
        self.number = number
        self.data = data


class McpResultTooLarge(McpError):
    """An answer of the server is longer than `McpConfig.max_result_bytes`, or a list that it sent exceeds
    `McpConfig.max_listed`, `McpConfig.max_list_bytes` or 100 pages. The answer was dropped. If it was the answer to a
    call of a tool, the server has done the call.
    """


class McpInvalidAnswer(McpError):
    """An answer of the server does not fit the protocol or the output schema of the tool, or a journal cannot record
    it. If it was the answer to a call of a tool, the server may have done the call.
    """


class McpInvalidArguments(McpError):
    """The arguments of a call do not match the tool's input schema. The call was not sent."""


class McpToolChanged(McpError):
    """The tool's title, description, schemas or hints have changed since the tool was offered, or the server does not
    offer it any more. The call was not sent.
    """
