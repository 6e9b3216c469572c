"""`sabot join`: runs workers on this machine for a coordinator on another one, one process after the other."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from sabot.engine.workers.joining import Ticket, parse_address
from sabot.engine.workers.launching import how_it_ended
from sabot.engine.workers.process import AGAIN
from sabot.engine.workers.secrets import WorkerSecrets
from sabot.errors import UserError

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0
_LOOK_SECONDS = 10.0


def join_as_worker(command: Sequence[str], address: str, secrets: str) -> None:
    """Runs a worker for the coordinator at `address` ("host:port") until its app has ended. Each start of the app
    gets a new process. Blocks.

    `command`: the command of the process, which imports the program and calls `run_worker`. `secrets`: the folder
    with the token and the certificates. Raises UserError if the coordinator refuses the worker, or if the folder has
    no token.
    """
    parse_address(address, "the coordinator")
    known = WorkerSecrets.read(secrets)
    if known.token is None:
        raise UserError(f"{secrets} has no file `token`", hint="copy the file from the --secrets of the coordinator")
    ticket = Ticket(address, known.token, None, known.folder)
    signal.signal(signal.SIGTERM, _leave)  # also ends the process of the worker
    while True:
        _wait_for(address)
        code = _worked(command, ticket)
        if code == 0:
            _log.info("the app has ended")
            return
        if 0 < code < AGAIN:
            raise UserError(
                "the worker has failed, and would fail again", hint="the lines before this one have its error"
            )
        _log.info("the worker %s: a new one joins when the coordinator listens again", how_it_ended(code).how)
        time.sleep(_AGAIN_SECONDS)


def _worked(command: Sequence[str], ticket: Ticket) -> int:
    # The worker gets its own process group, so that Ctrl-C reaches only this process, which then ends the worker.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0)
    try:
        assert process.stdin is not None
        with process.stdin as told:
            told.write(ticket.encoded(os.getpid()))
        return process.wait()
    finally:
        process.kill()  # has no effect unless this process was asked to end
        process.wait()


def _wait_for(address: str) -> None:
    """Returns when somebody listens at the address. Connecting costs less than starting a process that finds no
    coordinator.
    """
    told = False
    while True:
        try:
            socket.create_connection(parse_address(address, "the coordinator"), _LOOK_SECONDS).close()
            return
        except OSError as error:
            if not told:
                _log.info("no coordinator listens at %s yet (%s): waiting for it", address, error.strerror or error)
            told = True
        time.sleep(_AGAIN_SECONDS)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
