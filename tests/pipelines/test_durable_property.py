"""Durable agents seen from outside: random records, letters sent back, answers and crashes, and what must hold of each record."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipelines.durable_stories import OPS, Story

from sabot.jobs import host

records = st.fixed_dictionaries(
    {
        "key": st.sampled_from([*"aaaaaabbbbccc", None]),
        "id": st.sampled_from([*"uvwxyzUVWXYZ", None]),
        "do": st.lists(st.sampled_from([*OPS, "raise", "broken", "broken"]), min_size=1, max_size=3),
    }
)
changes = st.sampled_from(["unchanged", "unchanged", "changed", "key"])
actions = {
    "publish": st.lists(records, min_size=2, max_size=5),
    "twin": st.tuples(st.integers(0, 9), st.booleans()),
    "back": st.lists(st.tuples(st.integers(0, 3), changes), min_size=1, max_size=3),
    "cancel": st.integers(0, 3),
    "answer": st.none(),
    "signal": st.none(),
    "advance": st.sampled_from([1, 60, 3600]),
    "mend": st.booleans(),
    "checkpoint": st.none(),
    "restart": st.booleans(),
    "fuse": st.integers(1, 5),
}
step = st.sampled_from([*actions, "publish", "publish", "back", "back"]).flatmap(
    lambda name: st.tuples(st.just(name), actions[name])
)
stories = st.lists(st.tuples(st.booleans(), step), min_size=5, max_size=12).map(
    lambda steps: sorted(
        steps, key=lambda each: each is not next((one for one in steps if one[1][0] == "publish"), None)
    )
)


@st.composite
def setups(draw: Any) -> dict[str, Any]:
    setup = {
        "on_error": draw(st.sampled_from(["skip", "skip", "retry", "fail"])),
        "concurrency": draw(st.integers(1, 3)),
        "child_key": draw(st.booleans()),
    }
    if setup["on_error"] == "retry":
        setup |= {"retries": 2, "backoff": 0}
    if draw(st.booleans()):
        setup["key"] = "key"
        if draw(st.booleans()):
            setup |= {
                "mailbox": draw(st.integers(1, 2)),
                "mailbox_full": draw(st.sampled_from(["hold", "dead_letter"])),
            }
    if draw(st.booleans()):
        setup["job_id"] = "id"
    if not draw(st.integers(0, 5)):
        setup["rate"] = "50/s"
    if draw(st.booleans()):
        setup["budget"] = draw(st.integers(0, 4)), draw(st.sampled_from(["deny", "ask"]))
    if draw(st.booleans()):  # another durable agent has the results
        ends = [op for op in OPS if op not in ("again", "raise", "broken")]
        setup["then"] = {
            "key": "key" in setup and draw(st.booleans()),
            "do": draw(st.lists(st.sampled_from(ends), max_size=2)),
        }
    return setup


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(setups(), stories)
def test_each_record_of_a_durable_agent_comes_to_one_end(
    tmp_path_factory: pytest.TempPathFactory, setup: dict[str, Any], steps: list[Any]
) -> None:
    folder: Path = tmp_path_factory.mktemp("story")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(host.JobHost.__init__.__kwdefaults__ or {}, "stop_grace_s", 0.0)
        asyncio.run(Story(setup, folder).tell(steps))
