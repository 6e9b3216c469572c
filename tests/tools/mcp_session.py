"""A session of a pool with a server of some tools, for the bridges; it records its calls, and can be cut off."""

import sys
from collections.abc import Mapping
from typing import Any

from sabot.base.config import Duration
from sabot.errors import TransientError
from sabot.llm import Tool
from sabot.mcp import McpResult, McpServerPool, ToolServer
from tools.command_line import ENV

PROGRAM = ["env", f"PYTHONPATH={ENV['PYTHONPATH']}", sys.executable]
"""Runs a file of ours; the environment of a server is clean."""


class ServedTools:
    """calls: names and time limits. cut: so many calls find no server; -1: all. command: of a server; else it is in this process."""

    def __init__(self, pool: McpServerPool, tools: list[Tool], command: list[str] | None = None) -> None:
        self._pool = pool
        if command is None:
            pool.add("test", connect=ToolServer("test", tools).connect)
        else:
            pool.add("test", command=command)
        self.cut = 0
        self.calls: list[tuple[str, Any]] = []
        self.arguments: list[dict[str, Any]] = []

    async def call(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, timeout: Duration | None = None
    ) -> McpResult:
        self.calls.append((name, timeout))
        self.arguments.append(dict(arguments or {}))
        if self.cut:
            self.cut -= 1
            raise TransientError("no server")
        session = await self._pool.session("test")
        return await session.call(name, arguments, timeout=timeout)
