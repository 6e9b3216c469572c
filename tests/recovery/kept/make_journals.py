"""Writes the kept journals: `python tests/recovery/kept/make_journals.py [ARCHIVE …]`, by the code as it is now.

An archive for each app and home, like `journal-sqlite` and `jobs-kafka`, holds `state/`, of which the checkpoints and, in SQLite, the
journal; `journal.sql` is a dump of PostgreSQL, `journal.ndjson` the records of a topic. Of the app of `kept_journals` there is
`words.json`: what all entries and letters say. Of that of `kept_jobs` there is `expected.json`: `first` and `second`, the entries of each
job after the first life and after the second one, by the byte; `calls`, those that the second life has made; `said`, the outputs.

A journal that is kept already is written again only when its format is meant to change: it stands for those that users have.
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

import kept_jobs  # noqa: E402
from kept_journals import BEFORE, BEHIND, EARLY, HOMES, WRITTEN_S, Calls, kept_app, publish, words_of  # noqa: E402
from make import pack  # noqa: E402

from sabot.journal.entries import Letter  # noqa: E402
from sabot.journal.opening import open_inbox, open_reader  # noqa: E402
from sabot.testing import ManualClock  # noqa: E402
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


async def write_jobs(folder: Path, journal: str | None) -> None:
    """The first life of `kept_jobs`, which ends in the middle."""
    broker, calls = "memory://kept", kept_jobs.Calls(hold=True)
    app = kept_jobs.app_of_jobs(folder, broker, journal, ManualClock(kept_jobs.BEGAN_S), calls)
    with kept_jobs.fixed_key():
        await app.start()
    await kept_jobs.first_life(app, broker, calls)
    await asyncio.sleep(1)  # the last entries are durable
    os._exit(0)


def make(app: str, home: str, folder: Path) -> None:
    """One archive. `folder` is empty."""
    finish = post_and_read if app == "journal" else post_letters
    kept, image = folder / "life", folder / "image"
    for each in (kept, image):
        each.mkdir()
    if home == "sqlite":
        live(app, kept, None)
        finish(str(kept / "state"), image)
        shutil.copytree(kept / "state" / "journal", image / "state" / "journal")
        keep(app, kept, image, None)
    elif home == "postgres":
        server = Postgres()
        try:
            live(app, kept, server.url)
            finish(f"{server.url}?app=kept", image)
            dump = [server._bin / "pg_dump", "--inserts", "--no-owner", "--schema", "sabot_kept", server.url]
            (image / "journal.sql").write_text(subprocess.run(dump, check=True, capture_output=True, text=True).stdout)
            keep(app, kept, image, f"{server.url}?app=kept")
        finally:
            server.remove()
    else:
        broker = Broker(folder / "kafka")
        broker.start()
        try:
            address = f"{broker.url}/kept"
            live(app, kept, address)
            finish(address, image)
            records = [
                [each.partition(), base64.b64encode(each.value()).decode()] for each in messages(broker.url, "kept")
            ]
            (image / "journal.ndjson").write_text("".join(json.dumps(record) + "\n" for record in records))
            keep(app, kept, image, address)
        finally:
            broker.stop()
    target = HERE / f"{app}-{home}.tar.xz"
    pack(image, target)
    print(app, home, target.stat().st_size, "bytes")


def live(app: str, folder: Path, journal: str | None) -> None:
    """The first life, in a process of its own."""
    subprocess.run([sys.executable, __file__, "--write", app, str(folder), journal or ""], check=True, timeout=120)


def keep(app: str, folder: Path, image: Path, journal: str | None) -> None:
    """Copies the checkpoints of the first life; then, for `kept_jobs`, makes the second one and writes down all of both."""
    shutil.copytree(folder / "state" / "checkpoints", image / "state" / "checkpoints")
    if app == "jobs":
        reader = open_reader(journal or str(folder / "state"))
        first = kept_jobs.entries_of(reader)
        calls, again = kept_jobs.Calls(), folder.parent / "again"
        shutil.copytree(image, again)
        kept_jobs.publish_again("memory://second")
        clock = ManualClock(kept_jobs.RESTORED_S)
        asyncio.run(kept_jobs.second_life(kept_jobs.app_of_jobs(again, "memory://second", journal, clock, calls)))
        reader.close()
        reader = open_reader(journal or str(again / "state"))
        second = kept_jobs.entries_of(reader)
        reader.close()
        expected = {"first": first, "second": second, "calls": sorted(calls.made), "said": kept_jobs.outputs(again)}
        (image / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")


def post_letters(address: str, image: Path) -> None:
    """Posts letters that no owner takes."""
    inbox, reader = open_inbox(address, clock=ManualClock(kept_jobs.BEGAN_S)), open_reader(address)
    for letter in kept_jobs.letters(reader):
        inbox.post(letter)
    inbox.close()
    reader.close()


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
        life = write if sys.argv[2] == "journal" else write_jobs
        asyncio.run(life(Path(sys.argv[3]), sys.argv[4] or None))
    for archive in sys.argv[1:] or [f"{app}-{home}" for app in ("journal", "jobs") for home in HOMES]:
        with tempfile.TemporaryDirectory() as temporary:
            make(*archive.split("-"), Path(temporary))
