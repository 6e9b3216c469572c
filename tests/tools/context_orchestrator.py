"""A small MCP server that keeps sessions in a file: python context_orchestrator.py FILE STALE_MS"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from sabot.errors import UserError
from sabot.llm import Tool, tool
from sabot.mcp import ToolServer


def orchestrator_tools(file: Path, stale_ms: int) -> list[Tool]:
    """stale_ms: a task that is in progress, and was not heard of for as long, needs recovery."""

    def tasks() -> dict[str, Any]:
        return dict(json.loads(file.read_text())) if file.exists() else {}

    @tool
    async def save_context_snapshot(
        taskId: str,
        updates: dict[str, Any],
        changeSummary: str,
        sessionId: str = "",
    ) -> dict[str, Any]:
        if len(json.dumps(updates)) > 10_000:
            raise UserError("a snapshot of more than 10,000 characters")
        found = tasks()
        task = found.setdefault(taskId, {"context": {}, "sessionId": "", "version": 0, "changes": []})
        task["context"] |= updates
        task["sessionId"] = sessionId or task["sessionId"]
        task["version"] += 1
        task["changes"].append(changeSummary)
        task["pid"] = os.getpid()
        task["seen_ms"] = time.time() * 1000
        whole = file.with_suffix(".new")
        whole.write_text(json.dumps(found))
        os.replace(whole, file)
        return {"success": True, "version": task["version"]}

    @tool(effect="read")
    async def get_unified_context(
        taskId: str,
        includeRelationships: bool = False,
        includeVersionHistory: bool = False,
    ) -> dict[str, Any]:
        if taskId not in tasks():
            raise UserError(f"there is no task {taskId}")
        return {"taskId": taskId, "context": tasks()[taskId]["context"]}

    @tool(effect="read")
    async def check_recovery(includeHistory: bool = False) -> dict[str, Any]:
        now_ms = time.time() * 1000
        lost = [
            {"taskId": name, "sessionId": task["sessionId"], "version": task["version"]}
            for name, task in tasks().items()
            if task["context"].get("status") == "in_progress" and task["seen_ms"] + stale_ms <= now_ms
        ]
        return {"needsRecovery": lost}

    return [save_context_snapshot, get_unified_context, check_recovery]


if __name__ == "__main__":
    tools = orchestrator_tools(Path(sys.argv[1]), int(sys.argv[2]))
    asyncio.run(ToolServer("context-orchestrator", tools).serve_stdio())
