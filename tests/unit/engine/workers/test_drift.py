"""`max_drift=` between workers: what each knows of the others, and that nobody reads further than in one process, nor waits for ever."""

import random

import pytest

from sabot import App
from sabot.engine.operators.base import START_OF_TIME
from sabot.engine.plan import make_plan
from sabot.engine.runtime.tasks.watermark_alignment import Alignment
from sabot.engine.runtime.tasks.watermarks import Watermarks
from sabot.engine.workers.drift import Drifts, aligned_workers
from sabot.engine.workers.messages import Drift
from sabot.engine.workers.placement import place

DRIFT_MS, IDLE_MS = 50, 1000


def test_each_worker_hears_of_the_others_what_it_does_not_know() -> None:
    drifts = Drifts({"join": [0, 1, 2]})
    assert drifts.wanted
    assert drifts.news() == []
    drifts.told(0, Drift("join", 10, 10))
    drifts.told(1, Drift("join", 30, None))
    assert drifts.news() == [(2, Drift("join", 10, 10))], "of the third the others do not know yet"
    drifts.told(2, Drift("join", 20, 25))
    assert drifts.news() == [(0, Drift("join", 20, 25)), (1, Drift("join", 10, 10))]
    drifts.told(1, Drift("join", 40, None))
    assert drifts.news() == []
    drifts.told(0, Drift("join", None, None))
    assert drifts.news() == [(1, Drift("join", 20, 25)), (2, Drift("join", 40, None))]


def test_stages_are_told_apart_and_a_worker_alone_waits_for_nobody() -> None:
    drifts = Drifts({"one": [0, 1], "other": [1]})
    assert drifts.news() == [(1, Drift("other", None, None))]
    drifts.told(0, Drift("one", 5, 5))
    assert drifts.news() == [(1, Drift("one", 5, 5))]
    assert not Drifts({}).wanted


def test_the_workers_that_read_for_a_join_are_known_by_the_plan() -> None:
    app = App("joined", parallelism=2)
    schema = {"k": "int64", "ts": "int64"}
    one, other = (app.stream(name, schema=schema, time="ts") for name in ("one", "other"))
    one.join(other.rename({"ts": "at"}), on="k", between=("-1s", "1s")).to("out")
    plan = make_plan(app.spec.ends, parallelism=2)
    (found,) = aligned_workers(plan, place(plan.stages, 2)).values()
    assert found == {0, 1}


class Reader:
    """Of one partition: how its rows rise in event time, as the alignment sees it."""

    def __init__(self, watermarks: Watermarks, name: str, times: list[int]) -> None:
        self.watermarks = watermarks
        self.alignments: list[Alignment] = []
        self.place, self.times, self.at = (name, 0), times, 0
        watermarks.know([self.place], 0)

    @property
    def greatest(self) -> int:
        """Of what was read."""
        return max(self.times[: self.at], default=START_OF_TIME)

    def read(self, now_ms: int) -> bool:
        """A row, unless the partition has been read too far, or to its end."""
        limit = min(each.limit(now_ms, backlog=True) for each in self.alignments)
        if self.at == len(self.times) or self.watermarks.beyond([self.place], limit, unread=False)[0]:
            return False
        self.watermarks.see(self.place, self.times[self.at], now_ms)
        self.at += 1
        if self.at == len(self.times):
            self.watermarks.end([self.place])
        return True


@pytest.mark.one_in(15, "some hundredths of a second of a core each")
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("workers", [2, 5])
def test_no_partition_is_read_further_than_in_one_process_and_all_are_read_to_their_end(
    workers: int, seed: int
) -> None:
    rng, readers, alignments = random.Random(seed), [], []
    for worker in range(workers):
        mine = []
        for source in range(rng.randrange(1, 3)):
            watermarks = Watermarks(0, IDLE_MS)
            for part in range(rng.randrange(1, 3)):
                at, times = rng.randrange(500), []
                for _ in range(rng.randrange(1, 60)):
                    at += rng.randrange(30)
                    times.append(at)
                mine.append(Reader(watermarks, f"{worker}.{source}.{part}", times))
        alignments.append(Alignment(DRIFT_MS, (each.watermarks for each in mine), whole=False))
        for each in mine:
            each.alignments.append(alignments[-1])
        readers += mine
    drifts = Drifts({"join": range(workers)})
    for _ in range(100_000):
        behind = min((each.greatest for each in readers if each.at < len(each.times)), default=None)
        if behind is None:
            return
        reader, before = rng.choice(readers), [each.greatest for each in readers]
        if reader.read(0):
            assert before[readers.index(reader)] <= behind + DRIFT_MS
        if rng.random() < 0.3:  # messages come late, and each worker's by itself
            worker = rng.randrange(workers)
            drifts.told(worker, Drift("join", *alignments[worker].here(0)))
        if rng.random() < 0.3:
            for worker, message in drifts.news():
                alignments[worker].elsewhere(message.least_ms, message.least_unread_ms)
    raise AssertionError("some partitions wait for ever")
