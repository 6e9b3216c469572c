"""The app of kill_dance.py at full speed for minutes: does anything grow that should not?

    python tests/recovery/soak.py [--minutes 10] [--kill-seconds 20] [--broker HOST:PORT]

First a worker is killed (kill -9) and started again each --kill-seconds, then the last one is left alone for the rest of the time
(--quiet, a share of it). Each second: memory (RSS), open files and threads of the worker, bytes and files of its checkpoint and state
directories. A straight line by least squares goes through

    kills    the mean of each life's last seconds, from the third life on: what a kill leaves behind
    quiet    all samples of the last life after its first third: what grows while it runs

and what that line rises from its beginning to its end has to be within TOLERANCE, a share of the mean or an amount, whichever is more.
The results are read as they come: of each account the running count goes 1, 2, 3, ..., nothing lost, repeated or out of order.

The last line is JSON. Exit code 1, with the series, if a figure rises too much, a result is wrong or a worker ended by itself.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

sys.path.insert(0, str(Path(__file__).parent))
from kill_dance import PARTITIONS, PATIENCE, Broker, Inflow, Place, Trouble, Worker, say, wait_until

from tools.leftovers import leftovers

MB = 1e6
SAMPLE_SECONDS = 1.0
AGE_SECONDS = 5.0  # a life's last seconds
FIRST_LIVES = 2  # state and topics are being filled
ACCOUNTS = 2_000
CHUNK_ROWS = 2_000
AHEAD_ROWS = 400_000  # the producer waits when the results are so far behind
TOPIC_BYTES = 256 << 20  # of each partition: the broker's disk is not what is tested
TOLERANCE = {  # rise over the whole line: share of the mean, amount
    "rss_mb": (0.10, 40.0),
    "open_files": (0.05, 6.0),
    "threads": (0.05, 3.0),
    "checkpoint_mb": (0.25, 8.0),
    "checkpoint_files": (0.25, 20.0),
    "state_mb": (0.25, 1.0),
    "state_files": (0.25, 20.0),
}

Sample = dict[str, float]


def directory(path: Path) -> tuple[float, int]:
    """-> (MB, files) below it, each file once however many names it has; what goes away meanwhile does not count."""
    sizes: dict[int, int] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                status = os.stat(os.path.join(folder, name), follow_symlinks=False)
            except FileNotFoundError:
                continue
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values()) / MB, len(sizes)


def sample(process: int, checkpoints: Path, state: Path) -> Sample | None:
    """What the process has now; None when it is gone."""
    at = Path("/proc", str(process))
    try:
        pages = int((at / "statm").read_text().split()[1])
        files, threads = len(os.listdir(at / "fd")), len(os.listdir(at / "task"))
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    checkpoint_mb, checkpoint_files = directory(checkpoints)
    state_mb, state_files = directory(state)
    return {
        "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / MB,
        "open_files": files,
        "threads": threads,
        "checkpoint_mb": checkpoint_mb,
        "checkpoint_files": checkpoint_files,
        "state_mb": state_mb,
        "state_files": state_files,
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through (x, y) by least squares."""
    count = len(points)
    mean_x, mean_y = (sum(values) / count for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def judge(series: Sequence[tuple[float, Sample]]) -> dict[str, dict[str, Any]]:
    """Of each figure the mean, what its line rises over the series, what it may, and whether that holds; {} for too few."""
    if len(series) < 4:
        return {}
    found = {}
    span = series[-1][0] - series[0][0]
    for name, (share, amount) in TOLERANCE.items():
        points = [(at, values[name]) for at, values in series]
        mean = sum(value for _, value in points) / len(points)
        rise, allowed = slope(points) * span, max(share * mean, amount)
        found[name] = {
            "mean": round(mean, 1),
            "rise": round(rise, 2),
            "allowed": round(allowed, 1),
            "flat": rise <= allowed,
        }
    return found


def mean_of(samples: Sequence[tuple[float, Sample]]) -> tuple[float, Sample]:
    """One sample in place of several."""
    count = len(samples)
    values = {name: sum(each[name] for _, each in samples) / count for name in TOLERANCE}
    return sum(at for at, _ in samples) / count, values


def rows(series: Sequence[tuple[float, Sample]]) -> list[list[float]]:
    return [[round(value, 1) for value in (at, *(values[name] for name in TOLERANCE))] for at, values in series]


class Results(threading.Thread):
    """Follows the output topic, committed records only: running counts without a gap, windows that go forward."""

    def __init__(self, place: Place) -> None:
        super().__init__(name="results", daemon=True)
        self._place = place
        self._over = threading.Event()
        self._last: dict[str, int] = {}
        self._window: dict[str, int] = {}
        self.rows = self.windows = 0
        self.wrong: list[str] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        settings = {
            "bootstrap.servers": self._place.broker,
            "group.id": f"soak-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "log_level": 2,
        }
        reader = Consumer(settings)
        try:
            reader.assign([TopicPartition(self._place.output_topic, index, 0) for index in range(PARTITIONS)])
            while not self._over.is_set():
                for message in reader.consume(10_000, 0.2):
                    if message.error() is not None:
                        raise Trouble(f"the results cannot be read: {message.error()}")
                    self._look(message.value())
        except BaseException as error:  # for the main thread, which looks
            self.error = error
        finally:
            reader.close()

    def _look(self, payload: bytes) -> None:
        result = json.loads(payload)
        account = result["account"]
        if "count" in result:
            self.rows += 1
            count, before = result["count"], self._last.get(account, 0)
            self._last[account] = count
            if count != before + 1:
                self._complain(f"{account}: count {count} after {before}")
        else:
            self.windows += 1
            start, before = result["window_start"], self._window.get(account, 0)
            self._window[account] = start
            if start <= before:
                self._complain(f"{account}: window {start} after {before}")

    def _complain(self, text: str) -> None:
        if len(self.wrong) < 10:
            self.wrong.append(text)

    def stop(self) -> None:
        self._over.set()
        self.join()


class Soak:
    def __init__(self, place: Place, inflow: Inflow, results: Results, options: argparse.Namespace) -> None:
        self._place = place
        self._inflow = inflow
        self._results = results
        self._seconds = options.minutes * 60
        self._kill_seconds: float = options.kill_seconds
        self._quiet_seconds = self._seconds * options.quiet
        self._began = time.monotonic()
        self.kills = self.died = 0
        self.lives: list[tuple[float, Sample]] = []
        self.quiet: list[tuple[float, Sample]] = []

    def run(self) -> None:
        self._inflow.start()
        self._results.start()
        while self._now() < self._seconds - self._quiet_seconds:
            worker = self._place.worker("soak")
            samples = self._watch(worker, self._kill_seconds)
            if worker.alive:
                worker.kill()
                self.kills += 1
                last = [each for each in samples if each[0] > self._now() - AGE_SECONDS]
                self.lives += [mean_of(last)] if last else []
                self._report(f"kill {self.kills}", samples)
        worker = self._place.worker("soak")
        samples = self._watch(worker, self._seconds - self._now())
        self.quiet = samples[len(samples) // 3 :]
        self._report("quiet", samples)
        self._end(worker)

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _watch(self, worker: Worker, seconds: float) -> list[tuple[float, Sample]]:
        found: list[tuple[float, Sample]] = []
        end = self._now() + seconds
        while self._now() < end:
            self._inflow.allow(self._results.rows + AHEAD_ROWS)
            for thread in (self._inflow, self._results):
                if thread.error is not None:
                    raise Trouble(f"{thread.name}: {thread.error!r}")
            values = sample(worker.process.pid, self._place.checkpoints, self._place.folder / "state-soak")
            if not worker.alive or values is None:
                self.died += 1
                say(f"a worker ended by itself:\n{worker.last_words()}")
                if self.died > 3:
                    raise Trouble("workers end by themselves")
                break
            found.append((self._now(), values))
            time.sleep(min(SAMPLE_SECONDS, max(0.0, end - self._now())))
        return found

    def _end(self, worker: Worker) -> None:
        """What is on the way comes out; then in good order."""
        self._inflow.stop()
        self._inflow.join(PATIENCE)
        sent = self._inflow.committed
        wait_until(lambda: self._results.rows >= sent or not worker.alive, f"{sent} results", PATIENCE * 3)
        if not worker.alive or worker.stop():
            self.died += 1
            say(f"the last worker:\n{worker.last_words()}")
        self._results.stop()

    def _report(self, what: str, samples: list[tuple[float, Sample]]) -> None:
        figures = {name: round(value, 1) for name, value in samples[-1][1].items()} if samples else {}
        say(f"{self._now():.0f} s, {what}: {self._results.rows} results, {self._results.windows} windows; {figures}")


def soak(folder: Path, broker: Broker, options: argparse.Namespace) -> tuple[dict[str, Any], Soak]:
    address = broker.url.removeprefix("kafka://")
    place = Place(folder, address)
    segment = str(TOPIC_BYTES // 8)
    place.make_topics(**{"retention.bytes": str(TOPIC_BYTES), "segment.bytes": segment})
    inflow = Inflow(address, place.input_topic, 1 << 60, options.seed, accounts=ACCOUNTS)
    inflow.chunk_rows = CHUNK_ROWS
    inflow.allow(AHEAD_ROWS)
    results = Results(place)
    run = Soak(place, inflow, results, options)
    try:
        run.run()
    finally:
        inflow.stop()
        place.close()
    outcome = {
        "minutes": options.minutes,
        "kills": run.kills,
        "died": run.died,
        "rows": results.rows,
        "windows": results.windows,
        "rows_per_s": round(results.rows / (options.minutes * 60)),
        "wrong": results.wrong,
        "over_kills": judge(run.lives[FIRST_LIVES:]),
        "quiet": judge(run.quiet),
    }
    outcome["flat"] = all(each["flat"] for part in ("over_kills", "quiet") for each in outcome[part].values())
    if not broker.ours:
        place.delete_topics()
    return outcome, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kill-seconds", type=float, default=20.0)
    parser.add_argument("--quiet", type=float, default=0.4, help="share of the time without kills, at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broker", metavar="HOST:PORT", help="a running one; default: our own")
    options = parser.parse_args()
    folder = leftovers().folder(Path(tempfile.mkdtemp(prefix="sabot-soak-")))
    broker = Broker(url=f"kafka://{options.broker.removeprefix('kafka://')}") if options.broker else None
    if broker is None:
        (folder / "broker").mkdir()
        broker = Broker(folder / "broker")
        broker.start()
    try:
        outcome, run = soak(folder, broker, options)
    except Trouble as trouble:
        sys.exit(f"soak: {trouble}")
    finally:
        if broker.ours:
            broker.stop()
        shutil.rmtree(folder, ignore_errors=True)
    good = outcome["flat"] and not outcome["wrong"] and not outcome["died"]
    if not good:
        print(json.dumps({"columns": ["seconds", *TOLERANCE], "lives": rows(run.lives), "quiet": rows(run.quiet)}))
    print(json.dumps(outcome))
    sys.exit(not good)


if __name__ == "__main__":
    main()
