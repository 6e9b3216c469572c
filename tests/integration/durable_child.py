"""An app with a durable agent, in a process that a test stops, kills and succeeds: `durable_child.py NAME FOLDER JOURNAL WITNESS`.

Its one job does `first`, holds until the file FOLDER/go is there, looks something up, and does `second`; what it does, it does at the
witness, by its name. FOLDER/holding-NAME is there when it holds. JOURNAL "": in the state directory, with checkpoints beside it; else
checkpoints are in FOLDER as on another machine, and each name has a state of its own. Exit code 3: the job is locked.
"""

import asyncio
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from pyarrow import fs

sys.path.insert(0, str(Path(__file__).parents[1]))  # where tools is

from sabot import App, NdjsonSource
from sabot.errors import AppLocked
from sabot.journal.kafka import KafkaJournal
from sabot.journal.postgres import PostgresJournal
from sabot.llm import tool
from sabot.testing import WitnessClient
from tools.agent_tools import until

LEASE_S = 1.5
LOCKED = 3


def build(name: str, folder: Path, journal: str, witness: WitnessClient) -> App:
    @tool(effect="unsafe")
    async def first() -> None:
        await witness.do_async("first", name)

    @tool(effect="idempotent")  # so all before it is durable
    async def hold() -> None:
        (folder / f"holding-{name}").touch()
        await until((folder / "go").exists, patience=120)

    @tool(effect="read")
    async def look() -> None:
        await witness.do_async("look", name)

    @tool(effect="unsafe")
    async def second() -> None:
        await witness.do_async("second", name)

    places: dict[str, Any] = {"state": str(folder / "state")}
    if journal:
        shared = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), "checkpoints"
        places = {"state": str(folder / f"state-{name}"), "checkpoint_dir": shared, "journal": journal}
    app = App("shop", checkpoint_interval="100ms", **places)

    @app.agent(NdjsonSource(folder / "orders.ndjson"), name="handle", durable=True)
    async def handle(ctx: Any) -> None:
        for each in (first, hold, look, second):
            await ctx.call(each)

    return app


def main(name: str, folder: Path, journal: str, witness: str) -> None:
    for kind in (KafkaJournal, PostgresJournal):
        inspect.unwrap(kind.__init__).__kwdefaults__["lease_s"] = LEASE_S
    orders = folder / "orders.ndjson"
    if not orders.exists():
        orders.write_text(json.dumps({"order": 1}) + "\n")
    try:
        asyncio.run(build(name, folder, journal, WitnessClient(witness)).run())
    except AppLocked as error:
        print(error.message, flush=True)
        sys.exit(LOCKED)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])
