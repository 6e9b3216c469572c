"""The history of a journal: what a trim costs, and how long pages of the console over it take in a process that has just begun.

    python benchmarks/agents/job_history.py [--rows 100000] [--effects 4] [--open 10000] [--place ADDRESS]

Each job has one call of a model with a price, and others without; each has a key, and one in ten has failed. Answers are checked:
counts by status and key, the newest jobs, sums of tokens, and each effect of the long job. Each figure is a pair: ms, and ms of CPU.
"""

import argparse
import asyncio
import http.client
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from sabot import App
from sabot._cython.text.records import state_key
from sabot.agents.accounts.contract import LedgerEvent
from sabot.agents.job_history import job_keeping
from sabot.agents.job_reads import jobs_page
from sabot.jobs.values import pack
from sabot.journal import Journal
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import Begin, EffectResult, End, Entry, Intent
from sabot.journal.opening import open_journal, open_reader

AGENT = "shop.handle"
LONG = f"{AGENT}/long"
EFFECTS_OF_LONG = 2_000
KEYS = 1_000
LISTED = 10_000
TIMES = 3
USED = msgspec.msgpack.encode(
    [LedgerEvent(event_id="1", type="model", scope_id="s", input_tokens=90, output_tokens=10, cost=Decimal("0.002"))]
)
CALL = pack([["4711"], {"reason": "late"}], "a call")
ANSWER = pack({"status": "ok", "amount": 12.5}, "an answer")


def job_id(number: int) -> str:
    return f"{AGENT}/b3/tickets/0/{number}"


def entries_of(name: str, number: int, effects: int, now_ms: int, *, ends: bool = True) -> list[Entry]:
    at = now_ms - 10_000_000 + number
    made: list[Entry] = [Begin(name, at, AGENT, CALL, state_key(f"key-{number % KEYS}"), scope=f"scope-{number % 10}")]
    for ordinal in range(1, effects + 1):
        made.append(Intent(name, at, ordinal, "call", "charge", effect_class="unsafe", body=CALL))
        made.append(EffectResult(name, at + ordinal, ordinal, body=ANSWER, usage=USED if ordinal == 1 else b""))
    if ends:
        made.append(End(name, at + effects, "failed" if number % 10 == 0 else "succeeded"))
    return made


def write(journal: Journal, names: list[tuple[str, int]], effects: int, now_ms: int, *, ends: bool = True) -> int:
    """Appends the entries of jobs, and waits until they are durable. Returns their number."""

    async def append() -> int:
        count = 0
        for name, number in names:
            for entry in entries_of(name, number, effects, now_ms, ends=ends):
                await journal.room()
                journal.append(entry)
                count += 1
        await journal.flush()
        return count

    return asyncio.run(append())


def cpu() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime + resource.getrusage(resource.RUSAGE_SELF).ru_stime


def make(place: str, jobs: int, effects: int, opened: int) -> dict[str, int]:
    """Makes a journal with so many jobs in its history, and so many open ones in its log. Returns the counts by status."""
    now_ms = round(time.time() * 1000)
    journal = open_journal(place, app="shop")
    journal.keeping = job_keeping("30d, 4GB")
    began, count = time.perf_counter(), 0
    trimmed = trimming = 0.0
    for first in range(0, jobs, 10_000):
        names = [(job_id(number), number) for number in range(first, min(first + 10_000, jobs))]
        if first == 0:
            count += write(journal, [(LONG, 1)], EFFECTS_OF_LONG, now_ms)
        count += write(journal, names, effects, now_ms)
        before, at = cpu(), time.perf_counter()
        assert journal.trim(journal.positions(), now_ms + 1) > 0
        trimmed, trimming = trimmed + cpu() - before, trimming + time.perf_counter() - at
    live = write(journal, [(job_id(jobs + number), jobs + number) for number in range(opened)], 1, now_ms, ends=False)
    seconds = time.perf_counter() - began - trimming
    print(f"{count:,} entries of {jobs + 1:,} jobs written in {seconds:.1f} s, and {live:,} of {opened:,} open jobs")
    print(f"moved in {trimming:.1f} s: {trimmed / count * 1e6:.1f} us of CPU an entry")
    journal.close()
    failed = -(-jobs // 10)
    return {"failed": failed, "succeeded": jobs - failed + 1} | ({"running": opened} if opened else {})


class Visit:
    """A browser without a screen."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token

    def get(self, path: str) -> str:
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        client.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
        answer = client.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, (path, answer.status, text[:500])
        return text


def visit(state: str, place: str, jobs: int, opened: int, counts: dict[str, int]) -> dict[str, Any]:
    """Asks for pages of an app that does not run, in this process, which has just begun. Returns the ms and the CPU ms of each."""
    from sabot.web.console import Console

    app = App("shop", "memory://", state=state, journal=place)

    async def handle(ctx: Any) -> None: ...

    app.agent("tickets", name="handle", key="customer", durable=True)(handle)
    console = Console(app, port=0)
    browser = Visit(console.port, console.access.token("act"))

    figures: dict[str, Any] = {}

    def page(what: str, path: str) -> str:
        figures[what] = found = []
        for _ in range(TIMES):
            before, began = cpu(), time.perf_counter()
            text = browser.get(path)
            found.append((round((time.perf_counter() - began) * 1000, 1), round((cpu() - before) * 1000, 1)))
        return text

    text = page("first page of all jobs", "/jobs")
    for status, count in counts.items():
        assert f"{count:,} {status}" in text, (status, count)
    shown = [unescape(each) for each in re.findall(r'<th scope="row"><a href="/job\?id=([^"]+)"', text)]
    newest = [urlencode({"": job_id(jobs + opened - 1 - number)})[1:] for number in range(min(200, jobs + opened))]
    assert [each for each in shown if each != urlencode({"": LONG})[1:]] == newest, (shown[:2], newest[:2])
    text = page("of a key", "/jobs?key=key-7")
    expected = sum(number % KEYS == 7 for number in range(jobs + opened))
    assert re.search(f"{expected:,} jobs? as of", text), expected
    text = page("with a text", "/jobs?" + urlencode({"q": f"tickets/0/{jobs // 2}"}))
    assert urlencode({"": job_id(jobs // 2)})[1:] in text
    text = page("that have failed", "/jobs?status=failed")
    assert f"{counts['failed']:,} jobs as of" in text
    text = page(f"a job of {EFFECTS_OF_LONG:,} effects", "/job?" + urlencode({"id": LONG}))
    assert text.count('<tr id="effect-') == EFFECTS_OF_LONG
    assert "0.002" in text
    console.close()
    return figures


def listed(place: str, jobs: int, opened: int) -> list[tuple[float, float]]:
    """Lists 10,000 jobs, without a page. Returns the ms and the CPU ms of each time."""
    found = []
    with_open = open_reader(place, app="shop")
    for _ in range(TIMES):
        before, began = cpu(), time.perf_counter()
        page = jobs_page(with_open, JobQuery(), LISTED)
        found.append((round((time.perf_counter() - began) * 1000, 1), round((cpu() - before) * 1000, 1)))
        assert [job.job_id for job in page.jobs[:3]] == [job_id(jobs + opened - 1 - n) for n in range(3)]
        assert sum(used.tokens for used, _ in page.used.values()) == 100 * min(LISTED, jobs + opened + 1)
    with_open.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="jobs of the history")
    parser.add_argument("--effects", type=int, default=4)
    parser.add_argument("--open", type=int, help="jobs of the log; default: a tenth of the history's, at most 10,000")
    parser.add_argument("--place", default="")
    parser.add_argument("--visit", default="")
    asked = parser.parse_args()
    opened = min(10_000, asked.rows // 10) if asked.open is None else asked.open
    if asked.visit:
        state, place, counts = msgspec.json.decode(asked.visit)
        print(msgspec.json.encode(visit(state, place, asked.rows, opened, counts)).decode())
        return
    with tempfile.TemporaryDirectory() as folder:
        place = asked.place or str(Path(folder) / "journal")
        counts = make(place, asked.rows, asked.effects, opened)
        result = {
            "benchmark": "job_history",
            "rows": asked.rows,
            "open": opened,
            "10,000 jobs, no page": listed(place, asked.rows, opened),
        }
        words = msgspec.json.encode([folder, place, counts]).decode()
        command = [sys.executable, __file__, "--visit", words, "--rows", str(asked.rows), "--open", str(opened)]
        pages = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
        load = {"load": round(os.getloadavg()[0], 1)}
        print(msgspec.json.encode(result | msgspec.json.decode(pages) | load).decode())


if __name__ == "__main__":
    main()
