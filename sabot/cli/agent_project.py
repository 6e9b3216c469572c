"""The project of `sabot init --agent`: an agent with three tools, a worker that runs its jobs, and a web API that begins them."""

from collections.abc import Mapping

from sabot.cli.pyproject import pyproject

_DESK = '''"""The agent, its rules, and the kernel that runs its jobs: `sabot jobs work desk:kernel`."""

import json
import os
from pathlib import Path

from sabot.agents import ConstraintPolicy, JobLimit, PolicyEngine, RuntimeKernel, ToolContext
from sabot.llm import Agent, ChatMessage, ExecutionEngine, OpenAIProvider, Provider, RequestSpec, ScriptedProvider
from sabot.llm import ToolCall, ToolError, assistant, tool

JOURNAL = os.environ.get("JOURNAL", "jobs")  # a folder; or postgresql://…, for several workers
ORDERS = {"o-1": ("ann", 30), "o-2": ("ann", 80), "o-3": ("bob", 99)}  # your database goes here


@tool(effect="read")  # may be called again
async def my_orders(ctx: ToolContext) -> list[str]:
    """The orders of the customer who asks."""
    return [order for order, (customer, _) in ORDERS.items() if customer == ctx.principal]


@tool(effect="idempotent", retries=2)  # the payment service knows the key of the call
async def refund(ctx: ToolContext, order: str, amount: int) -> str:
    """Pays an amount of an order back."""
    customer, most = ORDERS.get(order, ("", 0))
    if customer != ctx.principal or amount > most:
        raise ToolError("this is not an order of the customer, or less was paid for it")
    return f"{amount} EUR for {order}"  # the request to the service has key=ctx.effect.key


@tool  # unsafe: called at most once; if nobody knows whether it was called, a person is asked
async def send_mail(ctx: ToolContext, text: str) -> None:
    """Writes to the customer who asks."""
    print(f"mail to {ctx.principal}: {text}")


def pretended(request: RequestSpec) -> ChatMessage | str:
    """Stands in for a model until there is a key for one: it calls refund for "refund o-2 80"."""
    last = request.messages[-1]
    if last.role == "tool":
        return f"Done: {last.text}"
    word, *rest = last.text.split()
    if word == "refund" and len(rest) == 2 and rest[1].isdecimal():
        return assistant("", ToolCall("1", "refund", json.dumps({"order": rest[0], "amount": int(rest[1])})))
    return f"You have asked {sum(each.role == 'user' for each in request.messages)} times."


def build(journal: str | Path, model: Provider) -> RuntimeKernel:
    """The kernel over a journal. A test gives it one in memory, and a script in place of a model."""
    tools = [my_orders, refund, send_mail]
    agent = Agent(ExecutionEngine(model), name="desk", tools=tools, instructions="You help customers of a shop. Be kind.")
    return RuntimeKernel.create(
        agent=agent,
        policy=PolicyEngine([ConstraintPolicy(["refund"], field="amount", max=50, otherwise="ask")]),
        limits=[JobLimit("desk", per="key", concurrency=1)],  # of a customer one job after the other
        journal=journal,
        name="{name}",
        shared=str(journal).startswith("postgresql://"),  # with others: one more worker of the same journal
    )


model = OpenAIProvider("gpt-4o-mini") if "OPENAI_API_KEY" in os.environ else ScriptedProvider(pretended)
kernel = build(JOURNAL, model)
'''

_WEB = '''"""The web API: `uvicorn web:app --workers 4`. Its processes begin jobs and read them; the worker runs them."""

import hmac
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from desk import JOURNAL
from sabot.agents import JobClient
from sabot.web import Caller, jobs_app

STAFF = {"mo"}


def who(request: Request) -> Caller | None:
    """The caller of a request, as the server before this one has found out. Your login goes here."""
    said, token = request.headers.get("authorization", ""), os.environ.get("API_TOKEN", "")
    user = request.headers.get("user", "")
    if not (token and user and hmac.compare_digest(said.encode(), f"Bearer {token}".encode())):
        return None
    if user in STAFF:
        return Caller(user, may=["read", "answer", "change"])
    return Caller(user, scopes=[user], may=["start", "read"])  # a customer sees and begins his own jobs only


def build(client: JobClient) -> Starlette:
    """The application for a client of the kernel."""
    return Starlette(routes=[Mount("/api", jobs_app(client, who=who))])


app = build(JobClient(JOURNAL, name="{name}"))
'''

_TEST = '''"""The agent behind its web API, with a script in place of a model: python -m pytest"""

import asyncio
import contextlib

import desk
import httpx2
import web

from sabot.agents import JobClient
from sabot.llm import ScriptedProvider


@contextlib.asynccontextmanager
async def served(folder, monkeypatch):
    """Yields a function that makes a client of the API for a user, while a worker runs."""
    monkeypatch.setenv("API_TOKEN", "secret")

    def site(user):
        headers = {"authorization": "Bearer secret", "user": user}
        transport = httpx2.ASGITransport(web.build(JobClient(folder, name="{name}")))
        return httpx2.AsyncClient(transport=transport, base_url="http://site/api", headers=headers)

    async with desk.build(folder, ScriptedProvider(desk.pretended)) as kernel:
        await kernel.resume()
        yield site


async def ask(site, text, form, **fields):
    said = await site.post("/jobs", json={"agent": "desk", "message": text, "idempotency_key": form, **fields})
    assert said.status_code in (200, 202), said.text
    return said.json()["url_id"]


async def answer(site, job):
    return (await site.get(f"/jobs/{job}/result?wait=30")).json()["content"]


def test_a_customer_is_answered_and_the_conversation_goes_on(tmp_path, monkeypatch):
    async def run():
        async with served(tmp_path / "jobs", monkeypatch) as site:
            ann, talk = site("ann"), {"session": "chat-1", "key": "ann"}
            assert await answer(ann, await ask(ann, "Hello?", "1", **talk)) == "You have asked 1 times."
            assert await answer(ann, await ask(ann, "And now?", "2", **talk)) == "You have asked 2 times."

    asyncio.run(run())


def test_a_large_refund_waits_for_the_staff(tmp_path, monkeypatch):
    async def run():
        async with served(tmp_path / "jobs", monkeypatch) as site:
            ann, mo = site("ann"), site("mo")
            job = await ask(ann, "refund o-2 80", "1")
            while not (asked := (await mo.get("/actions?status=pending")).json()["actions"]):
                await asyncio.sleep(0.01)

            assert (await ann.get("/actions")).status_code == 403
            token = asked[0]["token"]
            assert (await mo.post(f"/actions/{token}", json={"resolution": {"approved": True}})).status_code == 200
            assert await answer(ann, job) == "Done: 80 EUR for o-2"

    asyncio.run(run())


def test_a_request_that_comes_twice_is_one_job_and_others_do_not_see_it(tmp_path, monkeypatch):
    async def run():
        async with served(tmp_path / "jobs", monkeypatch) as site:
            ann, bob = site("ann"), site("bob")
            first, second = [await ask(ann, "refund o-1 30", "form-1") for _ in range(2)]
            assert first == second and await answer(ann, first) == "Done: 30 EUR for o-1"
            assert (await bob.get(f"/jobs/{first}")).status_code == 404

    asyncio.run(run())
'''

_README = """# {name}

```sh
export API_TOKEN=secret
sabot jobs work desk:kernel &        # the worker: it makes the journal, and runs the jobs
uvicorn web:app --workers 4 &
curl -s localhost:8000/api/jobs -H 'authorization: Bearer secret' -H 'user: ann' -H 'content-type: application/json' \\
  -d '{"agent": "desk", "message": "refund o-2 80", "session": "chat-1", "key": "ann", "idempotency_key": "form-1"}'
sabot actions list --journal jobs    # a refund above 50 waits for a person: sabot actions resolve TOKEN --approve
sabot web jobs                       # the console: what each job has asked, done and cost
python -m pytest
```

With `OPENAI_API_KEY` the agent asks a model (`pip install 'sabot[llm]'`); without it, a script stands in. With
`JOURNAL=postgresql://…` any number of workers share the journal: start `sabot jobs work desk:kernel` once more.
"""

AGENT_FILES: Mapping[str, str] = {
    "desk.py": _DESK,
    "web.py": _WEB,
    "test_app.py": _TEST,
    "pyproject.toml": pyproject(
        "{name}", '[tool.setuptools]\npy-modules = ["desk", "web"]\n', needs='"sabot[llm,mcp]"'
    ),
    ".gitignore": "__pycache__/\njobs/\n",
    "README.md": _README,
}
"""The files of the project, by path."""
