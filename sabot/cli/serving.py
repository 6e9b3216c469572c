"""`sabot jobs serve`: answers requests about the jobs of a kernel by HTTP."""

import asyncio
import hmac
import secrets
import signal
import time
from typing import Annotated, Any

import typer

from sabot.agents.kernel.client import JobClient
from sabot.base.doors import SESSION
from sabot.base.redaction import keep_secret
from sabot.cli.agent_jobs import jobs
from sabot.cli.journal import Place, quietly, reading, this_user
from sabot.cli.loading import WrongUse
from sabot.cli.options import http_address, token_of
from sabot.errors import TransientError
from sabot.journal.opening import ServerWait

_TOKEN = "SABOT_JOBS_TOKEN"
_TOKEN_LEAST = 16  # characters
_BEARER = "Bearer "
_LOOK_SECONDS = 1.0  # between two looks for a signal


@jobs.command("serve")
def serve(
    place: Place,
    kernel: Annotated[str, typer.Option(metavar="NAME", help="The name of the kernel.")] = "kernel",
    http: Annotated[
        str, typer.Option(metavar="[HOST:]PORT", help="The address, by default of 127.0.0.1; port 0 is a free port.")
    ] = "8421",
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help=f"The file with the token that each request has; or set the variable {_TOKEN}; default: a new one is printed.",
        ),
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="The only scope whose jobs are served; repeatable.")
    ] = None,
    priority_from: Annotated[
        int, typer.Option(metavar="N", help="The smallest priority that a request may give; smaller ones begin first.")
    ] = 0,
) -> None:
    """Answer requests about the jobs of a kernel by HTTP: begin, list, await, cancel, signal and retry jobs, answer their questions.

    Each request has the header Authorization: Bearer TOKEN. The kernel runs elsewhere, or not now: this process runs no job.
    """

    def work() -> None:
        address, given = http_address(http), token_of(token_file, _TOKEN)
        token = secrets.token_urlsafe(24) if given is None else given
        if len(token) < _TOKEN_LEAST or not token.isascii():
            raise WrongUse(f"a token of {len(token)} characters", hint=f"{_TOKEN_LEAST} or more of ASCII")
        keep_secret(token)
        _wait_for(place)
        _serve(JobClient(place, name=kernel), address, token, scope, priority_from, is_new=given is None)

    quietly(work)


def _wait_for(place: str) -> None:
    """Returns when the journal can be read. While its server does not answer, waits, and says so: containers start in any
    order. A wrong place is told at once, and a host whose name stays unknown after a minute.
    """
    wait = ServerWait()
    while True:
        try:
            with reading(place, None):
                return
        except TransientError as error:
            wait_s = wait.next_s(error)
            typer.echo(f"sabot: waits for the journal: {' '.join(str(error).split())}", err=True)
        time.sleep(wait_s)


def _serve(
    client: JobClient,
    address: tuple[str, int],
    token: str,
    scopes: list[str] | None,
    priority_from: int,
    *,
    is_new: bool,
) -> None:
    from sabot.base.http_server import LimitedServer
    from sabot.web import Caller, jobs_app

    caller = Caller(this_user(), scopes, priority_from=priority_from)

    def who(request: Any) -> Caller | None:
        said = request.headers.get("authorization", "")
        if not hmac.compare_digest(said.encode(), (_BEARER + token).encode()):
            return None
        request.scope[SESSION] = caller  # the server keeps the connections of its clients longest
        return caller

    async def beside() -> None:
        await asyncio.Event().wait()

    host, port = address
    server = LimitedServer(port, host, name="sabot jobs serve", option="--http", ports=1)
    try:
        interrupt = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGTERM, interrupt if callable(interrupt) else signal.default_int_handler)
        server.start(jobs_app(client, who=who), beside, lambda: None)
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"sabot: the jobs of kernel {client.name} are served at http://{shown}:{server.port}", err=True)
        if is_new:
            typer.echo(f"{_TOKEN}={token}")
        while server.running:
            time.sleep(_LOOK_SECONDS)
    finally:
        server.close()
