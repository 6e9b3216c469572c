"""Real MCP servers of others, for the tests that use them.

    python tests/tools/mcp_real.py          installs them into .venv-mcp/, from PyPI and npm: half a minute

`old` is a server on the SDK before 2, in an environment of its own; it speaks the protocol of 2024-11-05 and no more.
"""

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".venv-mcp"
PYTHON = {"time": "mcp-server-time", "git": "mcp-server-git", "fetch": "mcp-server-fetch"}
NODE = {name: f"mcp-server-{name}" for name in ("everything", "filesystem", "memory")}
OLD = """
import asyncio
from mcp import types
from mcp.server import Server
from mcp.server.stdio import stdio_server

server = Server("old")

@server.list_tools()
async def tools():
    return [types.Tool(name="add", inputSchema={"type": "object", "properties": {"a": {"type": "integer"}}})]

@server.call_tool()
async def call(name, arguments):
    return [types.TextContent(type="text", text=str(arguments["a"] + 1))]

async def main():
    async with stdio_server() as (heard, said):
        await server.run(heard, said, server.create_initialization_options())

asyncio.run(main())
"""


def command(name: str) -> list[str] | None:
    """The command of one of them; None: it is not installed."""
    if name == "old":
        program = FOLDER / "old/bin/python"
        return [str(program), "-c", OLD] if program.exists() else None
    program = FOLDER / "new/bin" / PYTHON[name] if name in PYTHON else FOLDER / "node_modules/.bin" / NODE[name]
    return [str(program)] if program.exists() else None


def install() -> None:
    """Installs what is not there."""
    for name, packages in {"new": list(PYTHON.values()), "old": ["mcp>=1.0,<1.2"]}.items():
        subprocess.run([sys.executable, "-m", "venv", FOLDER / name], check=True)
        subprocess.run([FOLDER / name / "bin/python", "-m", "pip", "install", "-q", *packages], check=True)
    if npm := shutil.which("npm"):
        packages = [f"@modelcontextprotocol/server-{name}" for name in NODE]
        subprocess.run([npm, "install", "--silent", "--prefix", FOLDER, *packages], check=True)


if __name__ == "__main__":
    install()
