"""The Model Context Protocol, from both sides.

`pool` has the sessions with servers, `owner` one of them, `transport` how messages travel; `tools` makes tools of what servers offer, and
`errors` is the tree of what goes wrong. Servers that keep sessions and documents are asked by typed calls (`bridges`, `sessions`,
`documents`). What agents remember (`memory`) and the engine's state (`states`) are offered to other programs by `server`.

Only this room imports the official SDK, and only the modules that need it: `pip install 'sabot[mcp]'`.
"""

from typing import TYPE_CHECKING

from sabot.late import late_names

if TYPE_CHECKING:
    from sabot.mcp.bridges import BridgeAnswer, CallTool, OnBridgeError
    from sabot.mcp.config import McpConfig, SessionKey
    from sabot.mcp.documents import (
        ClaimCheck,
        DocumentBridge,
        DocumentError,
        DocumentNotFound,
        NoAuthoritativeSource,
        SourceDocument,
        VerificationFailed,
        by_words,
    )
    from sabot.mcp.errors import (
        McpBusy,
        McpConnectionLost,
        McpError,
        McpInvalidAnswer,
        McpInvalidArguments,
        McpRefused,
        McpResultTooLarge,
        McpTimeout,
        McpToolChanged,
        McpUnavailable,
    )
    from sabot.mcp.memory import FoundMemory, Memory, MemoryFile, MemoryKeeping, Remembered, StateMemories
    from sabot.mcp.pool import McpServerPool, McpSession
    from sabot.mcp.results import McpPrompt, McpResource, McpResult, ToolCall
    from sabot.mcp.server import ToolServer
    from sabot.mcp.sessions import (
        ContextFailed,
        RecoverableSession,
        RecoveryCheckFailed,
        SessionBridge,
        SessionError,
        SessionInfo,
        SessionStopFailed,
        SnapshotFailed,
    )
    from sabot.mcp.states import SavedState, StateInfo, StateRows, StateSource, state_tools

__all__ = [
    "BridgeAnswer",
    "CallTool",
    "ClaimCheck",
    "ContextFailed",
    "DocumentBridge",
    "DocumentError",
    "DocumentNotFound",
    "FoundMemory",
    "McpBusy",
    "McpConfig",
    "McpConnectionLost",
    "McpError",
    "McpInvalidAnswer",
    "McpInvalidArguments",
    "McpPrompt",
    "McpRefused",
    "McpResource",
    "McpResult",
    "McpResultTooLarge",
    "McpServerPool",
    "McpSession",
    "McpTimeout",
    "McpToolChanged",
    "McpUnavailable",
    "Memory",
    "MemoryFile",
    "MemoryKeeping",
    "NoAuthoritativeSource",
    "OnBridgeError",
    "RecoverableSession",
    "RecoveryCheckFailed",
    "Remembered",
    "SavedState",
    "SessionBridge",
    "SessionError",
    "SessionInfo",
    "SessionKey",
    "SessionStopFailed",
    "SnapshotFailed",
    "SourceDocument",
    "StateInfo",
    "StateMemories",
    "StateRows",
    "StateSource",
    "ToolCall",
    "ToolServer",
    "VerificationFailed",
    "by_words",
    "state_tools",
]

_HOMES = {
    "sabot.mcp.bridges": (
        "BridgeAnswer",
        "CallTool",
        "OnBridgeError",
    ),
    "sabot.mcp.config": (
        "McpConfig",
        "SessionKey",
    ),
    "sabot.mcp.documents": (
        "ClaimCheck",
        "DocumentBridge",
        "DocumentError",
        "DocumentNotFound",
        "NoAuthoritativeSource",
        "SourceDocument",
        "VerificationFailed",
        "by_words",
    ),
    "sabot.mcp.errors": (
        "McpBusy",
        "McpConnectionLost",
        "McpError",
        "McpInvalidAnswer",
        "McpInvalidArguments",
        "McpRefused",
        "McpResultTooLarge",
        "McpTimeout",
        "McpToolChanged",
        "McpUnavailable",
    ),
    "sabot.mcp.memory": (
        "FoundMemory",
        "Memory",
        "MemoryFile",
        "MemoryKeeping",
        "Remembered",
        "StateMemories",
    ),
    "sabot.mcp.pool": (
        "McpServerPool",
        "McpSession",
    ),
    "sabot.mcp.results": (
        "McpPrompt",
        "McpResource",
        "McpResult",
        "ToolCall",
    ),
    "sabot.mcp.server": ("ToolServer",),
    "sabot.mcp.sessions": (
        "ContextFailed",
        "RecoverableSession",
        "RecoveryCheckFailed",
        "SessionBridge",
        "SessionError",
        "SessionInfo",
        "SessionStopFailed",
        "SnapshotFailed",
    ),
    "sabot.mcp.states": (
        "SavedState",
        "StateInfo",
        "StateRows",
        "StateSource",
        "state_tools",
    ),
}

if not TYPE_CHECKING:  # for type checkers every name would exist, misspelled ones too
    __getattr__, __dir__ = late_names(__name__, _HOMES)
