"""Runs a command beside a broker, whose address stands in its $SABOT_BROKER: `python tests/tools/with_broker.py COMMAND`.

So several benchmarks share one broker, where each would start its own (`tools.broker.running`).
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where tools is

from tools.broker import BrokerMissing, running


def called(command: list[str], environment: dict[str, str]) -> int:
    """Its exit code. It inherits the pipes of make's job server."""
    return subprocess.call(command, env=environment, close_fds=False)


if __name__ == "__main__":
    command = sys.argv[1:]
    try:
        with running(None) as url:
            code = called(command, {**os.environ, "SABOT_BROKER": url})
    except BrokerMissing:  # the command says what it can do without
        code = called(command, dict(os.environ))
    sys.exit(code)
