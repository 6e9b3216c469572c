"""A small MCP server that searches the documents of a JSON file: python document_consolidator.py FILE"""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

from sabot.errors import UserError
from sabot.llm import Tool, tool
from sabot.mcp import ToolServer


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def consolidator_tools(file: Path) -> list[Tool]:
    def documents() -> list[dict[str, Any]]:
        return list(json.loads(file.read_text()))

    @tool(effect="read")
    async def search_hybrid(query: str, limit: int, filters: dict[str, Any]) -> dict[str, Any]:
        """The confidence is the share of the query's words that stand in a document."""
        wanted = words(query)
        found = [
            each | {"confidence": len(wanted & words(each["content"])) / len(wanted)}
            for each in documents()
            if all(each.get(name) == value for name, value in filters.items())
        ]
        return {"documents": found}

    @tool(effect="read")
    async def get_document(documentId: str) -> dict[str, Any]:
        for each in documents():
            if each["id"] == documentId:
                return {"document": each}
        raise UserError(f"there is no document {documentId}")

    return [search_hybrid, get_document]


if __name__ == "__main__":
    asyncio.run(ToolServer("document-consolidator", consolidator_tools(Path(sys.argv[1]))).serve_stdio())
