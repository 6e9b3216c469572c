"""Writes the kept journals: `python tests/recovery/kept/make_journals.py [HOME …]`, by the code as it is now.

An archive for each home holds `state/`, of which the checkpoints and, in SQLite, the journal; `journal.sql` is a dump of PostgreSQL,
`journal.ndjson` the records of a topic; `words.json` what all entries and letters say. A journal that is kept already is written again only
when its format is meant to change: it stands for those that users have.
"""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1]), str(HERE.parents[2])]

from kept_journals import BEFORE, BEHIND, EARLY, HOMES, WRITTEN_S, Calls, kept_app, publish, words_of  # noqa: E402
from make import pack  # noqa: E402

from sabot.journal.entries import Letter  # noqa: E402
from sabot.journal.opening import open_inbox, open_reader  # noqa: E402
from tools.agent_tools import checkpoint, until  # noqa: E402
from tools.broker import Broker  # noqa: E402
from tools.kafka_eyes import messages  # noqa: E402
from tools.postgres import Postgres  # noqa: E402


async def write(folder: Path, journal: str | None) -> None:
    """The first life, which ends in the middle."""
    broker, calls = "memory://kept", Calls(hold=True)
    app = kept_app(folder, broker, journal, WRITTEN_S, calls)

    def jobs(name: str) -> int:
        return int(app.statistics()["jobs"][name])

    await app.start()
    publish(broker, EARLY)
    await until(lambda: jobs("ended") == len(EARLY), "the early jobs to end")
    for _ in range(5):
        await checkpoint(app)
    publish(broker, BEFORE)
    await until(lambda: jobs("parked") == 9, "jobs to be parked")
    await app.jobs.cancel("kept.orders/n=12")
    await until(lambda: jobs("ended") == len(EARLY) + 1, "a job to be cancelled")
    await checkpoint(app)
    publish(broker, BEHIND)
    await until(lambda: jobs("ended") == len(EARLY) + 2 and "refund 14 which hangs" in calls.made, "the last jobs")
    print(app.statistics()["jobs"], [(job.job_id, job.status) for job in await app.jobs.find()])
    os._exit(0)


def make(home: str, folder: Path) -> None:
    """One archive. folder: empty."""
    kept, image = folder / "life", folder / "image"
    for each in (kept, image):
        each.mkdir()
    if home == "sqlite":
        live(kept, None)
        post_and_read(str(kept / "state"), image)
        shutil.copytree(kept / "state" / "journal", image / "state" / "journal")
    elif home == "postgres":
        server = Postgres()
        try:
            live(kept, server.url)
            post_and_read(f"{server.url}?app=kept", image)
            dump = [server._bin / "pg_dump", "--inserts", "--no-owner", "--schema", "sabot_kept", server.url]
            (image / "journal.sql").write_text(subprocess.run(dump, check=True, capture_output=True, text=True).stdout)
        finally:
            server.remove()
    else:
        broker = Broker(folder / "kafka")
        broker.start()
        try:
            address = f"{broker.url}/kept"
            live(kept, address)
            post_and_read(address, image)
            records = [
                [each.partition(), base64.b64encode(each.value()).decode()] for each in messages(broker.url, "kept")
            ]
            (image / "journal.ndjson").write_text("".join(json.dumps(record) + "\n" for record in records))
        finally:
            broker.stop()
    shutil.copytree(kept / "state" / "checkpoints", image / "state" / "checkpoints")
    pack(image, HERE / f"journal-{home}.tar.xz")
    print(home, (HERE / f"journal-{home}.tar.xz").stat().st_size, "bytes")


def live(folder: Path, journal: str | None) -> None:
    """The first life, in a process of its own."""
    subprocess.run([sys.executable, __file__, "--write", str(folder), journal or ""], check=True, timeout=120)


def post_and_read(address: str, image: Path) -> None:
    """A letter that no owner takes, and what the journal says then."""
    inbox = open_inbox(address)
    inbox.post(Letter("signal", "s-1", "kept.orders/n=7", "paid", b"12.5", "bank"))
    inbox.close()
    reader = open_reader(address)
    (image / "words.json").write_text(json.dumps(words_of(reader), indent=0) + "\n")
    reader.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        asyncio.run(write(Path(sys.argv[2]), sys.argv[3] or None))
    for name in sys.argv[1:] or HOMES:
        with tempfile.TemporaryDirectory() as temporary:
            make(name, Path(temporary))
