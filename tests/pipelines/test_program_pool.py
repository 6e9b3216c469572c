"""Programs that live on and get records on stdin: whose answer is whose, what ends a child, and what becomes of the record in its hand."""

import asyncio
import contextlib
import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot import App, SqlSink, UserError
from sabot.agents import ActionRecord, ActionStatus
from sabot.agents.programs.pool import ProgramPool
from sabot.agents.programs.runs import RunId
from sabot.errors import AgentFailed, CheckpointFailed
from sabot.process import Command, CommunicationError, ResourceLimits, SpawnFailed, Supervisor
from tools.agent_tools import bounded, checkpoint, processed, publish, records, started, until, values

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="children are owned on Linux only"),
    pytest.mark.usefixtures("no_child_afterwards"),
]

ECHO = 'while read -r line; do printf "%s %s\\n" $$ "$line"; done'
# Tells each record that it gets, and dies of the first "die" that it sees.
DIES = """while read -r line; do
  echo "$line" >> seen
  case $line in *die*) [ -e died ] || { touch died; echo "at $line" >&2; kill -9 $$; };; esac
  echo "did $line"
done"""
# Speaks the protocol "json", by a program that needs no interpreter of ours.
JSON = """while read -r line; do
  id=${line#*\\"id\\": }; id=${id%%,*}; at="{\\"id\\": $id"
  echo "$id" >> ids
  case $line in
    *many*) echo "a log line"; echo '{"id": "another", "result": 9}'; echo "[1]"
            echo "$at, \\"line\\": 1}"; echo "$at, \\"line\\": [2]}"; echo "$at, \\"result\\": {\\"n\\": 3}}";;
    *none*) echo "$at, \\"result\\": null}";;
    *fail*) echo "$at, \\"error\\": {\\"message\\": \\"it is $$\\"}}";;
    *die*)  [ -e died ] || { touch died; exit 3; }; echo "$at, \\"result\\": \\"alive\\"}";;
    *)      echo "$at, \\"result\\": $$}";;
  esac
done"""


@pytest.fixture
def app(memory_url: str, tmp_path: Path) -> App:
    return App("works", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600)


def pooled(app: App, script: str, folder: Path, **options: Any) -> None:
    script = script.replace("{", "{{").replace("}", "}}")
    app.process_agent(
        "tasks", **{"command": ["sh", "-c", script], "sink": "lines", "pool": 1, "working_dir": folder, **options}
    )


def messages(app: App) -> list[str]:
    """What the dead letters say of their errors."""
    return [dict(each.headers)["sabot.message"].decode() for each in records(app, "tasks.dlq")]


async def question(app: App) -> ActionRecord:
    while True:
        for each in await app.actions.find(statuses=[ActionStatus.PENDING]):
            return each
        await asyncio.sleep(0.002)


# -- records and answers -------------------------------------------------------------------------------------------------


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("durable", [False, True])
async def test_one_child_gets_one_record_after_the_other_and_its_lines_are_their_answers(
    app: App, tmp_path: Path, durable: bool
) -> None:
    pooled(app, ECHO, tmp_path, durable=durable)
    tasks = [{"task": f"{number} é\n\"'\\n"} for number in range(50)]
    publish(app, "tasks", tasks, key=b"k")
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 50)
        assert len((await Supervisor.running()).children) == 1
    said = [value.split(" ", 1) for value in values(app, "lines")]
    assert len({pid for pid, _ in said}) == 1
    assert [json.loads(line) for _, line in said] == tasks
    first = records(app, "lines")[0]
    assert first.key == b"k"
    assert {"process.agent", "process.job", "process.line"} <= dict(first.headers).keys()


async def test_as_many_records_are_under_way_as_there_are_children_and_no_more(app: App, tmp_path: Path) -> None:
    meet = 'while read -r line; do echo "$$" >> begun; until [ -e go ]; do sleep 0.01; done; echo "$$"; done'
    pooled(app, meet, tmp_path, pool=3)
    publish(app, "tasks", [{"n": number} for number in range(20)])

    def begun() -> list[str]:
        path = tmp_path / "begun"
        return path.read_text().split() if path.exists() else []

    async with started(app):
        await until(lambda: len(begun()) == 3)
        assert len(set(begun())) == 3
        (tmp_path / "go").touch()
        await until(lambda: len(records(app, "lines")) == 20)
    assert len(set(values(app, "lines"))) <= 3
    assert sorted(begun()) == sorted(values(app, "lines"))


async def test_answers_of_the_protocol_json_name_their_record(app: App, tmp_path: Path) -> None:
    pooled(app, JSON, tmp_path, protocol="json", on_error="skip")
    publish(app, "tasks", ["many", "none", "fail", "last"])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 4 and len(messages(app)) == 1)
    *many, last = values(app, "lines")
    assert many == [1, [2], {"n": 3}]
    assert messages(app) == [f"sh: it is {last}"], "the child that has said so lives on"
    assert (tmp_path / "ids").read_text().split() == [f'"tasks[0]@{offset}"' for offset in range(4)]


async def test_a_line_is_json_where_that_is_asked_for(app: App, tmp_path: Path) -> None:
    pooled(
        app,
        'while read -r line; do echo "[$line]"; read -r line; echo no; done',
        tmp_path,
        lines="json",
        on_error="skip",
    )
    publish(app, "tasks", [{"n": 1}, {"n": 2}])
    async with started(app):
        await until(lambda: len(messages(app)) == 1)
    assert values(app, "lines") == [[{"n": 1}]]
    assert messages(app) == ["sh: line 1 is not JSON: 'no'"]


async def test_large_records_and_answers_pass(app: App, tmp_path: Path) -> None:
    app.process_agent("tasks", command=["cat"], sink="lines", lines="json", pool=2)
    tasks = [{"task": chr(97 + number) * 1_000_000} for number in range(4)]
    publish(app, "tasks", tasks)
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 4)
    assert sorted(values(app, "lines"), key=lambda value: value["task"]) == tasks


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pool": 0}, "pool=0"),
        ({"pool": True}, "pool=True"),
        ({"protocol": "xml"}, "protocol='xml'"),
        ({"pool": None, "protocol": "json"}, "is that of a pool"),
        ({"command": ["echo", "{task}"]}, "{task} in the command of a pool"),
        ({"exit_record": True}, "exit_record= with pool="),
        ({"exit_codes": (0, 1)}, "exit_codes= with pool="),
        ({"concurrency": 4}, "concurrency= with pool="),
        ({"durable": True, "on_error": "retry"}, "of a program whose effect is 'unsafe'"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(app: App, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        app.process_agent("tasks", **{"command": ["cat"], "pool": 2, **options})


# -- children that end ---------------------------------------------------------------------------------------------------


async def test_a_child_that_dies_with_a_record_is_an_error_of_a_plain_agent_and_the_others_go_on(
    app: App, tmp_path: Path
) -> None:
    pooled(app, DIES, tmp_path, on_error="skip")
    publish(app, "tasks", ["one", "die", "two"])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 2 and len(messages(app)) == 1)
    assert values(app, "lines") == ['did "one"', 'did "two"']
    (said,) = messages(app)
    assert said.startswith("sh was ended by signal 9, with a record in hand: nobody knows how far it came")
    assert said.endswith('at "die"')


async def test_a_plain_agent_tries_it_again_where_it_is_asked_to(app: App, tmp_path: Path) -> None:
    pooled(app, DIES, tmp_path, on_error="retry", backoff="1ms")
    publish(app, "tasks", ["one", "die", "two"])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 3)
    assert values(app, "lines") == ['did "one"', 'did "die"', 'did "two"']


async def test_an_error_ends_a_plain_agent_where_nothing_else_is_said(app: App, tmp_path: Path) -> None:
    pooled(app, DIES, tmp_path)
    publish(app, "tasks", ["die"])
    with pytest.raises(AgentFailed, match="with a record in hand"):
        await bounded(app.run())


@pytest.mark.parametrize("lines", ["text", "json"])
async def test_half_of_an_answer_is_none(app: App, tmp_path: Path, lines: str) -> None:
    """A clerk that was to answer `1250`, and died behind `12`, had answered `12`."""
    script = "while read -r line; do case $line in *die*) printf 12; exit 0;; esac; echo 1250; done"
    pooled(app, script, tmp_path, lines=lines, on_error="skip")
    publish(app, "tasks", ["one", "die", "two"])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 2 and len(messages(app)) == 1)
    assert [int(each) for each in values(app, "lines")] == [1250, 1250]
    assert messages(app)[0].startswith("sh ended with 0, with a record in hand: nobody knows how far it came")


@pytest.mark.slow  # half a second of a core
async def test_the_record_in_its_hand_is_in_doubt_where_it_is_unsafe_and_its_neighbours_are_not(
    app: App, tmp_path: Path
) -> None:
    pooled(app, DIES, tmp_path, durable=True, pool=2, on_error="skip")
    publish(app, "tasks", ["one", "die", "two", "three"])
    async with started(app):
        action = await bounded(question(app))
        assert action.type == "in_doubt"
        await until(lambda: len(records(app, "lines")) == 3)
        await app.actions.resolve(action.resume_token, {"outcome": "done", "result": ["seen by eye"]})
        await until(lambda: len(records(app, "lines")) == 4)
    assert sorted(values(app, "lines")) == ['did "one"', 'did "three"', 'did "two"', "seen by eye"]
    assert sorted((tmp_path / "seen").read_text().split()) == ['"die"', '"one"', '"three"', '"two"']


async def test_it_is_tried_again_with_the_same_id_where_it_is_idempotent(app: App, tmp_path: Path) -> None:
    pooled(app, JSON, tmp_path, durable=True, effect="idempotent", protocol="json", on_error="skip", backoff="1ms")
    publish(app, "tasks", ["die", "fail"])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 1 and len(messages(app)) == 1)
    assert values(app, "lines") == ["alive"]
    first, second, other = (tmp_path / "ids").read_text().split()
    assert first == second != other, "and what says that it has failed is not asked again"


@pytest.mark.slow  # half a second of a core
async def test_a_child_that_does_not_answer_in_time_is_ended(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sabot.agents.programs.pool.GRACE_SECONDS", 0.05)
    script = 'trap "" TERM; while read -r line; do case $line in *hang*) while :; do sleep 1000; done;; esac; echo "$$"; done'
    pooled(app, script, tmp_path, timeout="1s", on_error="skip")
    publish(app, "tasks", ["one", "hang", "two"])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 2)
        one, two = values(app, "lines")
        assert one != two
        assert not Path(f"/proc/{one}").exists()
    (said,) = messages(app)
    assert said.startswith("sh has not answered in 1 s, and was ended, with a record in hand")


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("script", "options", "why"),
    [
        ("while read -r line; do yes | tr -d '\\n'; done", {}, "wrote more than 10,485,760 bytes"),
        ("while read -r line; do yes log; done", {"protocol": "json"}, "or 100,000 lines"),
        (
            "read -r line; exec sleep 1000",
            {"limits": ResourceLimits(max_task_duration=0.05)},
            "has not answered in 0.05",
        ),
        (
            "while read -r line; do seq 1000 | tr -d '\\n'; echo; done",
            {"limits": ResourceLimits(max_output_bytes=1000)},
            "wrote more than 1,000 bytes",
        ),
        ("read -r line; exec <&- >&- 2>&-; exec sleep 1000", {}, "was ended by signal 15"),
        ("exit 7", {}, "ended with 7"),
    ],
    ids=["no end of a line", "logs without end", "time", "output", "streams closed", "no pool's program"],
)
async def test_a_child_that_is_no_good_is_ended_and_the_record_in_its_hand_has_failed(
    app: App, tmp_path: Path, script: str, options: dict[str, Any], why: str
) -> None:
    pooled(app, script, tmp_path, on_error="skip", **options)
    publish(app, "tasks", ["one"])
    async with started(app):
        await until(lambda: len(messages(app)) == 1)
    assert why in messages(app)[0]


async def test_a_child_that_does_not_read_any_more_is_ended(app: App, tmp_path: Path) -> None:
    pooled(app, "exec <&-; exec sleep 1000", tmp_path, on_error="skip")
    publish(app, "tasks", ["x" * 1_000_000])
    async with started(app):
        await until(lambda: len(messages(app)) == 1)
    assert "was ended by signal 15, with a record in hand" in messages(app)[0]


async def test_what_a_child_writes_without_being_asked_is_nobodys_answer(app: App, tmp_path: Path) -> None:
    script = 'while read -r line; do echo "$$ $line"; [ -e once ] || { touch once; echo "one more"; }; done'
    pooled(app, script, tmp_path)
    publish(app, "tasks", ["one"])
    async with started(app):
        await until(lambda: len(records(app, "lines")) == 1 and (tmp_path / "once").exists())
        (child,) = (await Supervisor.running()).children
        assert child.stdout is not None
        await until(lambda: child.stdout.total_bytes > len(f'{child.pid} "one"\n'))  # type: ignore[union-attr]
        publish(app, "tasks", ["two"])
        await until(lambda: len(records(app, "lines")) == 2)
    (first, one), (second, two) = (value.split() for value in values(app, "lines"))
    assert (one, two) == ('"one"', '"two"')
    assert first != second


@pytest.mark.parametrize("count", [3_000_000, pytest.param(100_000_000, marks=pytest.mark.slow(reason="100 MB"))])
async def test_a_flood_of_stderr_neither_blocks_nor_stays(app: App, tmp_path: Path, count: int) -> None:
    pooled(app, f'while read -r line; do head -c {count} /dev/zero >&2; echo "$line"; done', tmp_path)
    publish(app, "tasks", [1, 2, 3])
    async with started(app):
        await until(lambda: values(app, "lines") == ["1", "2", "3"])


async def test_a_child_that_ends_between_records_harms_none(app: App, tmp_path: Path) -> None:
    pooled(app, 'read -r line; echo "$$"', tmp_path)
    publish(app, "tasks", ["one"])
    async with started(app):
        for number in range(2, 4):
            await until(lambda number=number: len(records(app, "lines")) == number - 1)  # type: ignore[misc]
            for child in (await Supervisor.running()).children:
                await child.wait()
            publish(app, "tasks", [number])
        await until(lambda: len(set(values(app, "lines"))) == 3)


async def test_children_that_end_are_started_again_later_each_time(tmp_path: Path) -> None:
    script = "date +%s%N >> began; read -r line; [ $line = good ] || exit 1; echo fine; exec sleep 1000"
    command = Command(argv=["sh", "-c", script], working_dir=tmp_path)
    pool = ProgramPool("sh", command, 1, "lines", timeout_s=None, first_wait_s=0.05)
    run = RunId("job", "key")
    for _ in range(3):
        with pytest.raises(CommunicationError, match="ended with 1, with a record in hand"):
            await pool.run(command.argv, "bad\n", run)
    began = time.monotonic()
    assert list((await pool.run(command.argv, "good\n", run)).lines) == ["fine"]
    assert time.monotonic() - began < 60
    await pool.close()
    at = [int(each) / 1e9 for each in (tmp_path / "began").read_text().split()]
    assert [later - before >= least for before, later, least in zip(at, at[1:], (0.04, 0.09, 0.19), strict=False)] == [
        True
    ] * 3


async def test_a_program_that_is_not_there_is_told_at_each_record(tmp_path: Path) -> None:
    pool = ProgramPool("no-such", Command(argv=["no-such"]), 1, "lines", timeout_s=None, first_wait_s=0.001)
    for _ in range(3):
        with pytest.raises(SpawnFailed, match="not found on PATH"):
            await pool.run(["no-such"], "1\n", RunId("job", "key"))
    await pool.close()


async def test_who_gives_up_leaves_no_child_with_a_record(tmp_path: Path) -> None:
    command = Command(argv=["sh", "-c", 'while read -r line; do [ "$line" = 1 ] && sleep 1000; echo "$line"; done'])
    pool = ProgramPool("sh", command, 1, "lines", timeout_s=None, first_wait_s=0.001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pool.run(command.argv, "1\n", RunId("job", "1"))
    assert list((await pool.run(command.argv, "2\n", RunId("job", "2"))).lines) == ["2"]
    await pool.close()


async def test_secrets_are_not_told(app: App, tmp_path: Path) -> None:
    pooled(
        app,
        "read -r line; echo the key is $API_KEY >&2; exit 1",
        tmp_path,
        environment={"API_KEY": "sk-0123456789abcdef"},
        on_error="skip",
    )
    publish(app, "tasks", ["one"])
    async with started(app):
        await until(lambda: len(messages(app)) == 1)
    assert messages(app)[0].endswith("the key is ***")


# -- crashes -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # half a second of a core
async def test_answers_come_from_the_journal_so_that_their_rows_are_exactly_once(
    memory_url: str, tmp_path: Path
) -> None:
    script = 'while read -r line; do echo "$line" >> runs; echo "{\\"pid\\": $$, \\"task\\": $line}"; done'
    columns = pa.schema([("pid", pa.int64()), ("task", pa.string())])

    def app() -> App:
        made = App("works", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600)
        sink = SqlSink(f"sqlite:///{tmp_path / 'rows.db'}", table="said", schema=columns)
        pooled(made, script, tmp_path, durable=True, lines="json", sink=sink, name="work")
        return made

    def rows() -> list[Any]:
        with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as database:
            return database.execute("SELECT task, pid FROM said").fetchall()

    first = app()
    await first.start()
    await checkpoint(first)  # the first one, which comes by itself, might have the first record
    publish(first, "tasks", ["one", "two"])
    await until(lambda: processed(first, "work") == 2)
    first.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await first.stop()
    assert rows() == []
    assert (await Supervisor.running()).children == []
    second = app()
    async with started(second):
        publish(second, "tasks", ["three"])

        async def delivered() -> None:
            while len(rows()) < 3:
                await checkpoint(second)

        await bounded(delivered())
    assert [task for task, _ in rows()] == ["one", "two", "three"]
    assert len({pid for _, pid in rows()}) == 2, "the first two are those that the first child has answered"
    assert (tmp_path / "runs").read_text().split() == ['"one"', '"two"', '"three"']


@pytest.mark.slow  # a second of a core, or more
async def test_when_the_supervisor_is_killed_records_in_hand_are_in_doubt(app: App, tmp_path: Path) -> None:
    script = 'while read -r line; do echo "$line" >> seen; [ -e go ] || sleep 1000; echo "did $line"; done'
    pooled(app, script, tmp_path, durable=True, on_error="skip")
    publish(app, "tasks", ["one"])
    async with started(app):
        seen = tmp_path / "seen"  # the shell opens it before it writes
        await until(lambda: seen.exists() and seen.read_text() == '"one"\n')
        os.kill((await Supervisor.running()).pid, 9)
        action = await bounded(question(app))
        (tmp_path / "go").touch()
        await app.actions.resolve(action.resume_token, {"outcome": "not_done"})
        await until(lambda: values(app, "lines") == ['did "one"'])
    assert seen.read_text().split() == ['"one"', '"one"']
