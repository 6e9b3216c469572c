"""A server written with the official SDK, whose tools ask in each way that the SDK has: `asking_server.py LOG [QUESTION]`, over stdio.
Each line of LOG is a thing that a tool did. QUESTION: the words of the question of `refund`.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.shared.exceptions import UrlElicitationRequiredError
from mcp.types import ElicitRequestURLParams, SamplingMessage, TextContent, ToolAnnotations
from pydantic import BaseModel


class Sure(BaseModel):
    sure: bool


def asking_server(log: Path, words: str = "Refund it?") -> Any:
    """The server. Its keys are its own, so another one knows nothing of its questions."""
    server = MCPServer("desk")

    def did(what: str) -> None:
        with log.open("a") as file:
            file.write(f"{what}\n")

    def ask(order: str) -> Elicit[Sure]:
        return Elicit(words, Sure)

    @server.tool()
    async def refund(order: str, sure: Annotated[Sure, Resolve(ask)]) -> str:
        """Asks as the newest version of the protocol has it."""
        did(f"refund {order}")
        return f"{order}: {sure.sure}"

    async def eliciting(name: str, order: str, ctx: Context[Any, Any]) -> str:
        did(f"begin {order}")
        answer = await ctx.elicit(words, Sure)
        if answer.action != "accept":
            return f"{order}: {answer.action}"
        did(f"{name} {order}")
        return f"{order}: {answer.data.sure}"

    @server.tool()
    async def pay(order: str, ctx: Context[Any, Any]) -> str:
        """Asks while it runs."""
        return await eliciting("pay", order, ctx)

    @server.tool(annotations=ToolAnnotations(readOnlyHint=True))
    async def look(order: str, ctx: Context[Any, Any]) -> str:
        """Asks while it runs, and changes nothing."""
        return await eliciting("look", order, ctx)

    @server.tool()
    async def twice(ctx: Context[Any, Any]) -> str:
        said = [(await ctx.elicit(each, Sure)).action for each in ("One?", "Two?")]
        return " ".join(said)

    @server.tool()
    async def visit(ctx: Context[Any, Any]) -> str:
        return (await ctx.elicit_url("Log in", "https://bank.example/login", "e1")).action

    visited: list[str] = []

    @server.tool()
    async def visit_first() -> str:
        if not visited:
            visited.append("asked")
            address = "https://bank.example/login"
            raise UrlElicitationRequiredError(
                [ElicitRequestURLParams(message="Log in", url=address, elicitationId="e1")]
            )
        return "visited"

    @server.tool()
    async def think(ctx: Context[Any, Any]) -> str:
        message = SamplingMessage(role="user", content=TextContent(type="text", text="How are you?"))
        said = await ctx.session.create_message([message], max_tokens=10)
        return str(said.content.text)

    @server.tool()
    async def roots(ctx: Context[Any, Any]) -> str:
        return str((await ctx.session.list_roots()).roots)

    @server.tool()
    async def slow(ctx: Context[Any, Any]) -> str:
        await ctx.report_progress(1, 2, "half")
        return "done"

    return server


if __name__ == "__main__":
    asking_server(Path(sys.argv[1]), *sys.argv[2:]).run("stdio")
