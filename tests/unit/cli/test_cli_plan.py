"""`sabot plan`: what a program will do; and beside a checkpoint, whose state goes on, before anything runs."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from sabot.cli import load_app
from sabot.errors import UserError
from sabot.kafka import KafkaSource
from sabot.testing import MemoryBroker
from tools.agent_tools import until
from tools.command_line import lines, sabot_says

SOURCE = """
import sabot
from sabot import App, NdjsonSink, col, tumbling
app = App("shop", {broker!r}, state="state")
rows = app.stream("rows", schema={{"account": "string", "amount": "int64", "ts": "int64"}}, time="ts")
"""
MINUTES = """
rows.key_by("account").window(tumbling("1m")).aggregate(n=sabot.count()).to(NdjsonSink("minutes.ndjson"))
"""
TOTALS = """
rows.key_by("account").aggregate(total=sabot.sum("amount")).to("totals")
"""
AGENT = """
@app.agent("rows")
async def seen(ctx): ...
"""
_numbers = itertools.count()


def program(folder: Path, *parts: str) -> str:
    """The parts as a module that was never imported before -> module:app."""
    name = f"cli_plan_{next(_numbers)}"
    (folder / f"{name}.py").write_text(SOURCE.format(broker=f"memory://{folder.name}") + "".join(parts))
    return f"{name}:app"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which the shop has stopped in the middle of a window: its checkpoint has state."""
    monkeypatch.chdir(tmp_path)
    broker = f"memory://{tmp_path.name}"
    rows = [{"account": f"a{n % 3}", "amount": n, "ts": n * 1000} for n in range(30)]
    MemoryBroker.get(broker).publish("rows", rows)

    async def run() -> None:
        app = load_app(program(tmp_path, MINUTES, TOTALS, AGENT))
        await app.start()
        totals = KafkaSource("totals", broker)
        await totals.start()
        for _ in range(3):  # all rows came in one batch, and all accounts have a total
            await totals.get_next()
        await totals.stop()
        await app.agent_runtime.trigger_checkpoint()
        await app.stop()

    asyncio.run(run())
    return tmp_path


def fates(*words: object) -> tuple[int, dict[str, str]]:
    """The exit code, and what becomes of each."""
    done = sabot_says(*words, "--json")
    return done.exit_code, {each["id"]: each["outcome"] for each in map(json.loads, done.stdout.splitlines())}


def test_the_plan_is_printed_without_running_anything(shop: Path) -> None:
    target = program(shop, MINUTES, AGENT)
    text = sabot_says("plan", target).stdout
    assert text.splitlines()[0] == "stage read-1"
    assert "  tumbling window (1 min) by account: n = count()" in text.splitlines()
    assert "agent shop.seen" in text.splitlines()
    found = lines("plan", target, "--json", "--parallelism", "2")
    steps = [step["operator"] for stage in found if "stage" in stage for step in stage["steps"]]
    assert "tumbling-1" in steps
    assert {"agent": "shop.seen"} in found


def test_the_plan_ends_with_the_guarantees_of_all_sources_and_sinks(shop: Path) -> None:
    target = program(shop, MINUTES, AGENT)
    memory = "exactly once while the process lives: its rows are in memory"
    passing = "at least once: its rows end with the process"
    token = "exactly once: it stores the number of the last part in one step with the rows"
    assert sabot_says("plan", target).stdout.split("\n\n")[-1].splitlines() == [
        f"in   topic rows                 {memory}",
        f"out  topic rows.dlq             {passing}",
        f"out  NdjsonSink minutes.ndjson  {token}",
    ]
    edges = [each for each in lines("plan", target, "--json") if "edge" in each]
    assert edges[0] == {"edge": "in", "name": "topic rows", "guarantee": memory}
    assert [each["guarantee"] for each in edges] == [memory, passing, token]
    refused = MINUTES.replace('NdjsonSink("minutes.ndjson")', 'ConsoleSink(), delivery="exactly_once"')
    done = sabot_says("plan", program(shop, "from sabot.connectors.console import ConsoleSink", refused))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "cannot deliver exactly once" in done.stderr


LINKED = """
@app.agent()
async def seen(ctx): return ctx.message
rows.to(seen)
app.stream(seen, schema={"account": "string"}).to("accounts")
"""


def test_agents_stand_among_streams_and_what_a_start_refuses_the_plan_does_too(shop: Path) -> None:
    text = sabot_says("plan", program(shop, LINKED)).stdout
    assert "  -> agent shop.seen" in text
    assert "agent shop.seen\n  -> stage read-2\n\nin " in text
    ring = LINKED.replace('.to("accounts")', ".to(seen)")
    done = sabot_says("plan", program(shop, ring))
    assert done.exit_code == 1
    assert "agents and streams write into each other in a ring: shop.seen -> shop.seen" in done.stderr
    done = sabot_says("plan", program(shop, LINKED), "--against", "state")
    assert "tumbling-1: this program has no such operator" in done.stderr
    gone = sabot_says(
        "plan", program(shop, 'app.stream("others", schema={"a": "int64"}).to("x")\n'), "--against", "state"
    )
    assert gone.exit_code == 1
    assert "read-1: this program does not read it" in gone.stderr
    assert "--drop read-1" in gone.stderr


def test_the_same_program_keeps_all_and_a_stateless_step_changes_nothing(shop: Path) -> None:
    code, kept = fates("plan", program(shop, MINUTES, TOTALS, AGENT), "--against", "state")
    assert (code, set(kept.values())) == (0, {"keep"})
    assert set(kept) == {"tumbling-1", "aggregate-1", "shop.seen"}
    filtered = 'rows = rows.filter(col("amount") > 5)\n'
    code, kept = fates("plan", program(shop, filtered, MINUTES, TOTALS, AGENT), "--against", "state")
    assert (code, set(kept.values())) == (0, {"keep"})


def test_another_parallelism_migrates_and_a_new_step_begins_empty(shop: Path) -> None:
    more = 'rows.key_by("amount").deduplicate().to(NdjsonSink("distinct.ndjson"))\n'
    target = program(shop, MINUTES, TOTALS, AGENT, more)
    code, found = fates("plan", target, "--against", "state", "--parallelism", "2")
    assert code == 0
    assert (found["tumbling-1"], found["aggregate-1"], found["deduplicate-1"]) == ("migrate", "migrate", "new")


def test_a_changed_window_is_refused_and_a_step_that_is_gone_is_dropped(shop: Path) -> None:
    target = program(shop, MINUTES.replace("1m", "2m"), AGENT)
    done = sabot_says("plan", target, "--against", "state")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[0].startswith("checkpoint ")
    assert done.stdout.splitlines()[1].split() == ["operator", "state", "description", "why"]
    assert done.stderr.count("\n") == 1
    assert "aggregate-1: this program has no such operator" in done.stderr
    assert "tumbling(60000)" in done.stderr


def test_an_agent_that_is_gone_is_dropped_and_a_new_one_begins(shop: Path) -> None:
    code, found = fates("plan", program(shop, MINUTES, TOTALS, AGENT.replace("seen", "other")), "--against", "state")
    assert code == 1
    assert (found["shop.seen"], found["shop.other"]) == ("drop", "new")


def test_timers_of_an_agent_that_has_no_on_timer_any_more_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    timed = """
@app.agent("rows", key="account", on_timer=lambda timer, ctx: None)
async def seen(ctx): ctx.timers.processing(2**60)
"""
    MemoryBroker.get(f"memory://{tmp_path.name}").publish("rows", [{"account": "a"}])

    async def run() -> None:
        app = load_app(program(tmp_path, timed))
        await app.start()
        await until(lambda: app.statistics()["operators"]["shop.seen"]["timers"] == 1, "the timer")
        await app.stop(drain=True)

    asyncio.run(run())
    assert fates("plan", program(tmp_path, timed), "--against", "state") == (0, {"shop.seen": "keep"})
    untimed = timed.replace(", on_timer=lambda timer, ctx: None", "")
    expected = {"shop.seen": "keep", "shop.seen:timers": "drop"}
    assert fates("plan", program(tmp_path, untimed), "--against", "state") == (1, expected)


def test_a_savepoint_and_an_older_checkpoint_can_be_named(shop: Path) -> None:
    sabot_says("savepoint", "create", "state", "--to", "kept")
    target = program(shop, MINUTES, TOTALS, AGENT)
    assert fates("plan", target, "--against", "kept")[0] == 0
    assert fates("plan", target, "--against", "state@1")[0] == 0


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("against", "code", "said"),
    [
        ("nowhere", 2, "there is no directory nowhere"),
        ("state@99", 1, "has no checkpoint 99"),
        (".", 1, "holds no checkpoint"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_told(shop: Path, against: str, code: int, said: str) -> None:
    done = sabot_says("plan", program(shop, MINUTES), "--against", against)
    assert (done.exit_code, said in done.stderr) == (code, True)


def test_a_checkpoint_of_another_app_is_refused(shop: Path) -> None:
    name = program(shop, MINUTES).partition(":")[0]
    path = shop / f"{name}.py"
    path.write_text(path.read_text().replace('App("shop"', 'App("till"'))
    done = sabot_says("plan", f"{name}:app", "--against", "state")
    assert (done.exit_code, "this checkpoint was made by app 'shop', not 'till'" in done.stderr) == (1, True)


def test_a_program_that_reads_something_else_is_refused(shop: Path) -> None:
    name = program(shop, MINUTES, TOTALS).partition(":")[0]
    path = shop / f"{name}.py"
    path.write_text(path.read_text().replace('app.stream("rows"', 'app.stream("lines"'))
    done = sabot_says("plan", f"{name}:app", "--against", "state")
    assert (
        done.exit_code,
        "read-1: this program does not read it, but lines" in done.stderr,
    ) == (
        1,
        True,
    )


@pytest.mark.slow  # half a second of a core
def test_a_start_decides_as_the_plan_said(shop: Path) -> None:
    """What `plan` calls migrate runs, what it refuses is refused, with the same words."""

    async def start(target: str, parallelism: int = 1) -> Any:
        app = load_app(target)
        app.configure(parallelism=parallelism)
        try:
            await app.start()
        finally:
            await app.stop()

    refused = program(shop, MINUTES.replace("1m", "2m"), TOTALS, AGENT)
    said = sabot_says("plan", refused, "--against", "state").stderr
    with pytest.raises(Exception, match="tumbling") as failure:
        asyncio.run(start(refused))
    assert "window was tumbling(60000), is tumbling(120000)" in said
    assert "window was tumbling(60000), is tumbling(120000)" in str(failure.value)
    asyncio.run(start(program(shop, MINUTES, TOTALS, AGENT), parallelism=2))


LINES = 'lines = app.stream(sabot.files("lines.ndjson"), time={time!r})\nlines.to("out")\n'


@pytest.mark.one_in(15, "a fifth of a second of a core each")
@pytest.mark.parametrize("against", [(), ("--against", "state")], ids=["plan", "against"])
@pytest.mark.parametrize(
    ("row", "part", "says"),
    [
        ({"n": 1}, LINES.format(time="at"), "stream lines.ndjson: there is no column 'at' for event time"),
        ({"at": True}, LINES.format(time="at"), "event time 'at' is bool, which is no time"),
        ({"__time": 1}, LINES.format(time=None), "stream lines.ndjson: '__time' is a reserved name"),
        (
            {"n": 1},
            'rows.select("amount").to("made")\napp.stream("made").to("out")\n',
            "stream made: its columns cannot be inferred, because this app itself writes it later",
        ),
        (
            {"n": 1},
            '@app.agent("rows", sink="made")\nasync def makes(ctx): ...\napp.stream("made").to("out")\n',
            "stream made: its columns cannot be inferred, because this app itself writes it later",
        ),
        (
            {"n": 1},
            'for _ in range(2): rows.to(NdjsonSink("same.ndjson"))\n',
            "two sinks write the same file, same.ndjson",
        ),
        (
            {"n": 1},
            'once = sabot.files("lines.ndjson")\nfor _ in range(2): app.stream(once).to("out")\n',
            "two streams read the same Source object, lines.ndjson",
        ),
    ],
    ids=["no column", "no time", "a name of ours", "its own topic", "its agent's topic", "one file", "one source"],
)
def test_the_plan_refuses_what_a_start_refuses(
    shop: Path, row: dict[str, Any], part: str, says: str, against: tuple[str, ...]
) -> None:
    """The command had rules of its own once, which had drifted from those of the start: it promised what a start refuses."""
    (shop / "lines.ndjson").write_text(json.dumps(row) + "\n")
    done = sabot_says("plan", program(shop, part), *against)
    assert (done.exit_code, says in done.stderr) == (1, True), done.stderr

    async def start() -> None:
        app = load_app(program(shop, part))
        try:
            await app.start()
        finally:
            await app.stop()

    with pytest.raises(UserError) as refused:
        asyncio.run(start())
    assert says in str(refused.value)


CHANGED = """
rows.key_by("account").aggregate({}).to("totals")
"""


def test_each_aggregate_of_a_step_that_changes_has_a_line(shop: Path) -> None:
    target = program(shop, MINUTES, CHANGED.format('sums=sabot.sum("amount"), n=sabot.count()'), AGENT)
    code, found = fates("plan", target, "--against", "state")
    assert code == 0
    assert found == {
        "tumbling-1": "keep",
        "aggregate-1": "migrate",
        "aggregate-1.sums": "keep",
        "aggregate-1.n": "add",
        "shop.seen": "keep",
    }
    text = sabot_says("plan", target, "--against", "state").stdout
    assert "aggregate-1.n     add      count() int64" in text


@pytest.mark.slow  # half a second of a core
def test_what_would_be_lost_is_named_and_given_up_by_its_name(shop: Path) -> None:
    target = program(shop, CHANGED.format('total=sabot.sum(col("amount") * 2)'), AGENT)
    refused = sabot_says("plan", target, "--against", "state")
    assert refused.exit_code == 1
    assert "to give the state up, start with --drop aggregate-1.total --drop tumbling-1" in refused.stderr
    assert sabot_says("run", target).exit_code == 1
    words = ["--drop", "aggregate-1.total", "--drop", "tumbling-1"]
    code, found = fates("plan", target, "--against", "state", *words)
    assert code == 0
    assert found == {"aggregate-1": "migrate", "aggregate-1.total": "add", "tumbling-1": "drop", "shop.seen": "keep"}
    wrong = sabot_says("plan", target, "--against", "state", "--drop", "totals")
    assert "--drop totals: neither the program nor the checkpoint has state of that name" in wrong.stderr


@pytest.mark.slow  # half a second of a core
def test_a_plan_counts_on_a_drop_of_a_step_that_has_changed_again_as_the_start_does(shop: Path) -> None:
    """It said that all was well, and the start was refused; what the last start has dropped is dropped of another version."""

    async def run(target: str) -> None:
        app = load_app(target)
        app.configure(drop=["aggregate-1.total"])
        await app.start()
        await app.stop()

    twice = TOTALS.replace('sabot.sum("amount")', 'sabot.sum(col("amount") * 2)')
    asyncio.run(run(program(shop, MINUTES, twice, AGENT)))
    target = program(shop, MINUTES, twice.replace("2)", "3)"), AGENT)
    assert sabot_says("plan", target, "--against", "state").exit_code == 1
    assert sabot_says("plan", target, "--against", "state", "--drop", "aggregate-1.total").exit_code == 0
    asyncio.run(run(target))


def test_a_plan_says_that_a_topic_is_read_in_another_format(shop: Path) -> None:
    target = program(shop, MINUTES, TOTALS, AGENT)
    module = shop / f"{target.partition(':')[0]}.py"
    text = module.read_text().replace('app.stream("rows",', 'app.stream("rows", format="csv",')
    module.write_text(text.replace('@app.agent("rows")', '@app.agent("rows", format="raw")'))
    code, outcomes = fates("plan", target, "--against", "state")
    assert (code, outcomes["read-1"], outcomes["shop.seen/rows"]) == (0, "migrate", "migrate")
    told = sabot_says("plan", target, "--against", "state").stdout
    assert "rows as csv" in told
    assert "rows as raw" in told
    assert outcomes["aggregate-1"] == "keep"


@pytest.mark.slow  # half a second of a core
def test_a_plan_says_what_cannot_go_on_with_another_event_time(shop: Path) -> None:
    """Totals have no times in them."""
    target = program(shop, MINUTES, TOTALS, AGENT)
    module = shop / f"{target.partition(':')[0]}.py"
    module.write_text(module.read_text().replace('time="ts")', 'time="ts", time_unit="s")'))
    code, outcomes = fates("plan", target, "--against", "state")
    assert (code, outcomes["tumbling-1"], outcomes["aggregate-1"]) == (1, "refuse", "keep")
    text = sabot_says("plan", target, "--against", "state").stdout
    assert "event time was ts of rows, is ts in s of rows" in text
    code, outcomes = fates("plan", target, "--against", "state", "--drop", "tumbling-1")
    assert (code, outcomes["tumbling-1"]) == (0, "new")


def test_the_plan_is_drawn_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = program(tmp_path, MINUTES, AGENT)
    done = sabot_says("plan", target, "--svg", "plan.svg", "--parallelism", "2")
    assert (done.output, done.exit_code) == ("", 0)
    drawing = (tmp_path / "plan.svg").read_text()
    assert all(name in drawing for name in ("tumbling-1", "minutes.ndjson", "shop.seen", "×2", "Plan of app shop"))
    assert sabot_says("plan", target, "--svg", "-", "--parallelism", "2").output == drawing


@pytest.mark.parametrize(
    ("options", "says", "code"),
    [
        (("--svg", "missing/plan.svg"), "cannot be written into missing/plan.svg: No such file or directory", 1),
        (("--svg", "plan.svg", "--against", "state"), "--svg draws the plan alone", 2),
        (("--svg", "plan.svg", "--json"), "--svg draws the plan alone", 2),
    ],
)
def test_a_drawing_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], says: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sabot_says("plan", program(tmp_path, MINUTES), *options)
    assert says in done.output
    assert done.exit_code == code
    assert not (tmp_path / "plan.svg").exists()
