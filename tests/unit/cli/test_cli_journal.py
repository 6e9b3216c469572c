"""`sabot journal`, `sabot jobs`, `sabot actions` on a journal in SQLite, while its owner is there and while it is not."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sabot import App
from sabot.agents import (
    ActionManager,
    ActionSpec,
    BudgetSpec,
    DurableContext,
    ExecutionRequest,
    JobManager,
    JobSpec,
    JobStatus,
    JournalStore,
    RuntimeKernel,
    SqliteJournal,
)
from sabot.base.config import Secret
from sabot.cli import commands
from sabot.clock import ManualClock
from sabot.errors import NonDeterminism
from sabot.jobs.values import pack, pack_error
from sabot.journal.entries import Answer, Attempt, Begin, Cancel, EffectResult, End, Entry, Intent, Signal
from sabot.journal.sqlite import SqliteReader
from sabot.llm import TurnLimitExceeded
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from sabot.testing import MemoryBroker
from tools.agent_tools import until


def says(*words: object) -> Result:
    return CliRunner().invoke(commands.cli, list(map(str, words)))


def printed(*words: object) -> str:
    done = says(*words)
    assert done.exit_code == 0, done.output + done.stderr
    return done.stdout


def objects(*words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed(*words, "--json").splitlines()]


async def waiting(folder: Path) -> tuple[str, str, str]:
    """A job that waits for an action, left behind: (job, action, token)."""
    journal = SqliteJournal(folder / "journal")
    store = JournalStore(journal)
    jobs, actions = JobManager(store), ActionManager(store)
    job = await jobs.start((await jobs.create(JobSpec(scope_id="shop", metadata={"order": 7}))).job_id)
    action = await actions.require_action(ActionSpec(job_id=job.job_id, payload={"message": "Refund?"}))
    journal.close()
    return job.job_id, action.action_id, action.resume_token


async def test_an_action_is_answered_from_a_shell_while_the_app_is_down(tmp_path: Path) -> None:
    job, action, token = await waiting(tmp_path)
    listed = printed("actions", "list", "--journal", tmp_path)
    assert token in listed
    assert "Refund?" in listed
    assert printed("actions", "resolve", token, "--journal", tmp_path, "--approve", "--by", "ann") == "answered\n"
    assert "answered, not taken yet" in printed("actions", "list", "--journal", tmp_path)
    second = says("actions", "resolve", token, "--journal", tmp_path, "--reject")
    assert (second.exit_code, "already answered" in second.stderr) == (1, True)
    journal = SqliteJournal(tmp_path / "journal")
    record = await ActionManager(JournalStore(journal)).get(action)
    assert (record.resolution, record.by) == ({"approved": True}, "ann")
    await journal.flush()
    (seen,) = objects("jobs", "list", "--journal", tmp_path)  # beside the owner
    assert (seen["job_id"], seen["status"]) == (job, "running")
    journal.close()
    assert printed("actions", "list", "--journal", tmp_path).count("\n") == 1
    assert "resolved" in printed("actions", "list", "--journal", tmp_path, "--all")


async def test_answers_are_objects(tmp_path: Path) -> None:
    _, action, token = await waiting(tmp_path)
    for words in ([], ["--approve", "--reject"], ["--with", "7"], ["--with", "{"]):
        assert says("actions", "resolve", token, "--journal", tmp_path, *words).exit_code == 2
    both = says("actions", "resolve", token, "--journal", tmp_path, "--approve", "--reject")
    assert "--approve and --reject are several answers" in both.stderr
    printed("actions", "resolve", token, "--journal", tmp_path, "--with", '{"choice": 2}')
    journal = SqliteJournal(tmp_path / "journal")
    assert (await ActionManager(JournalStore(journal)).get(action)).resolution == {"choice": 2}
    journal.close()


async def test_a_job_is_cancelled_from_a_shell(tmp_path: Path) -> None:
    job, *_ = await waiting(tmp_path)
    printed("jobs", "cancel", job, "--journal", tmp_path / "journal", "--reason", "duplicate")
    assert says("jobs", "cancel", job, "--journal", tmp_path).exit_code == 1
    journal = SqliteJournal(tmp_path / "journal")
    assert (await JobManager(JournalStore(journal)).get(job)).error == "duplicate"
    journal.close()
    (seen,) = objects("jobs", "list", "--journal", tmp_path, "--status", "cancelled")
    assert seen["error"] == "duplicate"
    assert objects("jobs", "list", "--journal", tmp_path, "--scope", "other") == []


async def test_a_job_and_an_action_are_shown(tmp_path: Path) -> None:
    job, action, token = await waiting(tmp_path)
    shown = printed("jobs", "show", job, "--journal", tmp_path)
    assert "waiting_action" in shown
    assert action in shown
    assert json.loads(printed("actions", "show", action, "--journal", tmp_path))["resume_token"] == token
    for words in (["jobs", "show", "nobody"], ["actions", "show", "nobody"], ["journal", "show", "nobody"]):
        done = says(*words, "--journal", tmp_path)
        assert (done.exit_code, "nobody" in done.stderr) == (1, True)


async def test_a_list_says_which_jobs_wait_for_a_child_that_has_not_begun_or_that_nobody_runs(tmp_path: Path) -> None:
    """Ann's first order waits for its payment, and holds her key; the agent of the children fails with Bob's order."""
    app = App("shop", "memory://listed", state=str(tmp_path), checkpoint_interval=3600)

    @app.agent("orders", durable=True, job_id="order")
    async def order(ctx: DurableContext) -> Any:
        return await ctx.child("work", ctx.message)

    @app.agent("work", durable=True, key="customer")
    async def work(ctx: DurableContext) -> Any:
        if ctx.message["customer"] == "bob":
            raise ValueError("no such customer")
        return await ctx.wait("paid")

    def listed() -> dict[str, str]:
        rows = [line.split("Z  ") for line in printed("jobs", "list", "--journal", tmp_path).splitlines()[1:]]
        return {row[0].split()[0]: row[-1].strip() for row in rows}

    def comes(number: int, customer: str) -> None:
        MemoryBroker.get(app.broker).publish("orders", [{"customer": customer, "order": number}])

    first = {"shop.order/order=1": "child shop.work: running", "shop.order/order=1~1": "signal paid"}
    await app.start()
    try:
        comes(1, "ann")
        await until(lambda: listed() == first)
        comes(2, "ann")
        comes(3, "bob")
        later = {
            "shop.order/order=2": "child shop.work: not begun",
            "shop.order/order=3": "child shop.work: nothing is open",
            "shop.order/order=3~1": "nothing is open",
        }
        await until(lambda: listed() == first | later)
    finally:
        await app.stop()


AT = 1_700_000_000_000
CALL = pack([["A1"], {"amount": 12.5, "key": Secret("STRIPE_KEY")}], "arguments")
DOUBT = b'{"effect":"refund","ordinal":1,"attempt":1,"answers":["done","not_done","abandon"]}'


def written(folder: Path, *entries: Entry) -> SqliteJournal:
    """A journal with these entries, open."""
    journal = SqliteJournal(folder / "journal", clock=ManualClock())
    for entry in entries:
        last = journal.append(entry)
    assert journal.wait_durable(last, 60)
    return journal


def steps(folder: Path, job: str = "job") -> list[str]:
    """What `sabot journal show` says of each entry."""
    lines = printed("journal", "show", job, "--journal", folder).splitlines()[1:]
    return [" ".join(line.split()[3:]) for line in lines]


def test_the_entries_of_a_job_are_shown_step_by_step_without_its_tokens(tmp_path: Path) -> None:
    written(
        tmp_path,
        Begin("job", AT, "app.refunds", pack({"order": 7}, "input"), code="v3"),
        Intent("job", AT + 1, 1, "call", "refund", b"d", "unsafe", CALL),
        EffectResult("job", AT + 250, 1, 1, "ConnectError", pack_error(ConnectionError("no way"))),
        Attempt("job", AT + 251, 0, 2),
        Attempt("job", AT + 252, 1, 2),
        EffectResult("job", AT + 253, 1, 2, body=pack({"id": "re_1", "left": None}, "result")),
        Intent("job", AT + 254, 2, "call", "report", b"d", "read", pack([[], {}], "arguments")),
        EffectResult("job", AT + 255, 2, body=b"x" * 100_000),
        Intent(
            "job", AT + 256, 3, "ask", "confirm", body=b'{"message":"Go?"}', token="secret-token", due_ms=AT + 300_000
        ),
        Answer("job", AT + 257, 3, "secret-token", body=b'{"approved":true}', by="ann"),
        Signal("job", AT + 258, "paid", "bank-7", b"12.5", "bank"),
        Intent("job", AT + 259, 4, "sleep", due_ms=AT + 60_000),
        Intent("job", AT + 259, 6, "sleep", "timeout", due_ms=AT + 60_000),
        Intent("job", AT + 260, 5, "child", "app.mail", body=pack({"to": "ann"}, "input")),
        Cancel("job", AT + 261, "too late", "bob"),
        End("job", AT + 300, "failed", "ValueError", body=pack_error(ValueError("no luck"))),
    ).close()
    assert steps(tmp_path) == [
        "begin app.refunds v3 {'order': 7}",
        "intent 1 call refund('A1', amount=12.5, key=secret('STRIPE_KEY')) (unsafe)",
        "result 1.1 ConnectionError: no way",
        "attempt attempt 2",
        "attempt 1.2 attempt 2",
        "result 1.2 ok {'id': 're_1', 'left': None}",
        "intent 2 call report() (read)",
        "result 2.1 ok [100.0 kB]",
        'intent 3 ask confirm until 2023-11-14 22:18:20.000Z {"message": "Go?"}',
        'answer 3 resolved by ann {"approved": true}',
        "signal paid by bank 12.5",
        "intent 4 sleep until 2023-11-14 22:14:20.000Z",
        "intent 6 time-out until 2023-11-14 22:14:20.000Z",
        "intent 5 child app.mail {'to': 'ann'}",
        "cancel by bob too late",
        "end failed ValueError: no luck",
    ]
    found = objects("journal", "show", "job", "--journal", tmp_path / "journal" / "journal.db")
    assert [each["place"] for each in found] == list(range(16))
    assert found[1]["body"] == [["A1"], {"amount": 12.5, "key": "secret('STRIPE_KEY')"}]
    assert found[2]["body"] == {"type": "ConnectionError", "message": "no way"}
    assert found[7]["body"] == "x" * 100_000  # whole, in JSON
    assert not {"secret-token", "bank-7"} & set(json.dumps(found).split('"'))


def test_bodies_that_are_of_no_known_form_are_shown_as_they_are_and_lines_stay_short(tmp_path: Path) -> None:
    written(
        tmp_path,
        Begin("job", AT, "app.refunds", b"\xff\x00 not ours"),
        Intent("job", AT, 1, "call", "refund", b"d", "unsafe", b"\xc1{"),
        EffectResult("job", AT, 1, 1, "Timeout", b"late"),
        Intent("job", AT, 2, "call", "note", b"d", "read", pack([["\x1b[2J" + "ab" * 500], {}], "arguments")),
        EffectResult("job", AT, 2, body=pack({"n": [{"deep": [1, 2.5, b"\xff"]}], 7: float("nan")}, "result")),
    ).close()
    told = steps(tmp_path)
    assert told[0].startswith("begin app.refunds ff00")
    assert told[1:3] == ["intent 1 call refund c17b (unsafe)", "result 1.1 late"]
    assert max(map(len, told)) < 140
    assert "\x1b" not in "".join(told)
    body = objects("journal", "show", "job", "--journal", tmp_path)[4]["body"]
    assert body == {"n": [{"deep": [1, 2.5, "ff"]}], "7": "nan"}


def doubtful(folder: Path, token: str = "doubt-1") -> SqliteJournal:
    """A job whose refund is in doubt, and a person is asked."""
    return written(
        folder,
        Begin("job", AT, "app.refunds", pack({"order": 7}, "input")),
        Intent("job", AT + 1, 1, "call", "refund", b"d", "unsafe", CALL),
        Intent("job", AT + 2, 1, "ask", "in_doubt", b"e", body=DOUBT, token=token),
    )


def test_an_effect_in_doubt_is_a_question_that_says_what_was_to_be_done(tmp_path: Path) -> None:
    doubtful(tmp_path).close()
    assert steps(tmp_path)[-1] == "intent 1 ask in_doubt: was attempt 1 of refund done?"
    (action,) = objects("actions", "list", "--journal", tmp_path)
    assert action["action_id"] == "job/1.1"
    assert action["payload"]["arguments"] == [["A1"], {"amount": 12.5, "key": "secret('STRIPE_KEY')"}]
    assert "was refund('A1', amount=12.5" in printed("actions", "list", "--journal", tmp_path)
    assert "in doubt: call refund" in printed("jobs", "list", "--journal", tmp_path)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--done"], {"outcome": "done"}),
        (["--done", "--with", '"re_7"'], {"outcome": "done", "result": "re_7"}),
        (["--done", "--with", "null"], {"outcome": "done", "result": None}),
        (["--not-done"], {"outcome": "not_done"}),
        (["--abandon"], {"outcome": "abandon"}),
        (["--with", '{"outcome": "done", "result": 1}'], {"outcome": "done", "result": 1}),
    ],
)
def test_a_person_says_what_became_of_an_effect_in_doubt(
    tmp_path: Path, words: list[str], answer: dict[str, Any]
) -> None:
    doubtful(tmp_path).close()
    printed("actions", "resolve", "doubt-1", "--journal", tmp_path, *words)
    reader = SqliteReader(tmp_path)
    (letter,) = reader.letters()
    reader.close()
    assert json.loads(letter.body) == answer


def test_a_person_gives_the_result_that_the_question_asks_for(tmp_path: Path) -> None:
    """The function of the job went on with None, though its tool returns a number."""
    asked = DOUBT.replace(b"}", b',"result":{"type":"integer"}}')
    journal = written(
        tmp_path,
        Begin("job", AT, "app.refunds", pack({"order": 7}, "input")),
        Intent("job", AT + 1, 1, "call", "refund", b"d", "unsafe", CALL),
        Intent("job", AT + 2, 1, "ask", "in_doubt", b"e", body=asked, token="doubt-1"),
    )
    for words in (["--done"], ["--done", "--with", '"re_7"'], ["--with", '{"outcome": "done"}']):
        done = says("actions", "resolve", "doubt-1", "--journal", tmp_path, *words)
        assert done.exit_code == 2
        assert "refund gives its caller a result, and the answer has" in done.stderr
        assert '{"type":"integer"}' in done.stderr
    assert journal.letters() == []
    journal.close()
    printed("actions", "resolve", "doubt-1", "--journal", tmp_path, "--done", "--with", "7")


def test_an_effect_in_doubt_is_not_approved_and_an_approval_is_not_done(tmp_path: Path) -> None:
    """The job would take `approved` for "abandon": an effect that was made would count as lost."""
    journal = doubtful(tmp_path)
    last = journal.append(Intent("job", AT + 3, 2, "ask", "confirm", body=b"{}", token="confirm-2"))
    assert journal.wait_durable(last, 60)
    for words in (["--approve"], ["--reject"], ["--with", '{"approved": true}']):
        done = says("actions", "resolve", "doubt-1", "--journal", tmp_path, *words)
        assert (done.exit_code, "asks whether refund was done" in done.stderr) == (2, True)
        assert "--not-done" in done.stderr
    for words in (["--done"], ["--not-done"], ["--abandon"]):
        done = says("actions", "resolve", "confirm-2", "--journal", tmp_path, *words)
        assert (done.exit_code, "question of type confirm" in done.stderr) == (2, True)
    for words in ([], ["--done", "--abandon"], ["--approve", "--with", "{}"]):
        assert says("actions", "resolve", "doubt-1", "--journal", tmp_path, *words).exit_code == 2
    assert journal.letters() == []
    journal.close()


def test_a_second_doubt_of_the_same_effect_is_another_question(tmp_path: Path) -> None:
    journal = doubtful(tmp_path)
    for entry in (
        Answer("job", AT + 3, 1, "doubt-1", body=b'{"outcome":"not_done"}'),
        Attempt("job", AT + 4, 1, 2),
        Intent(
            "job", AT + 5, 1, "ask", "in_doubt", b"e", body=DOUBT.replace(b'attempt":1', b'attempt":2'), token="doubt-2"
        ),
    ):
        last = journal.append(entry)
    assert journal.wait_durable(last, 60)
    journal.close()
    found = objects("actions", "list", "--all", "--journal", tmp_path)
    assert [(each["action_id"], each["status"]) for each in found] == [("job/1.1", "resolved"), ("job/1.2", "pending")]
    printed("actions", "resolve", "doubt-2", "--done", "--journal", tmp_path)


def test_jobs_of_agents_say_what_they_wait_for(tmp_path: Path) -> None:
    written(
        tmp_path,
        Begin("a", AT, "app.refunds"),
        Intent("a", AT + 1, 1, "sleep", due_ms=AT + 100),  # of a time-out that is over: nothing says so
        Intent("a", AT + 2, 2, "call", "look_up", b"d", "read"),
        EffectResult("a", AT + 3, 2),
        Intent("a", AT + 4, 3, "call", "rate", b"d", "read"),
        EffectResult("a", AT + 4, 3, 1, "ValueError", pack_error(ValueError())),
        Attempt("a", AT + 4, 0, 2),
        Attempt("a", AT + 5, 3, 2),
        Intent("a", AT + 150, 4, "call", "refund", b"d", "unsafe"),
        Begin("b", AT, "app.refunds"),
        Intent("b", AT + 1, 1, "sleep", due_ms=AT + 60_000),
        Begin("c", AT, "app.mails"),
        Signal("c", AT + 1, "early", "t1"),
        Intent("c", AT + 2, 1, "wait", "early"),
        Intent("c", AT + 3, 2, "wait", "paid"),
        Intent("c", AT + 4, 3, "child", "app.refunds"),
        Intent("c", AT + 5, 4, "call", "note", b"d", "read"),
        Begin("d", AT, "app.mails"),
        Intent("d", AT + 1, 1, "ask", "confirm", body=b"{}", token="t2", due_ms=AT + 60_000),
        Begin("e", AT, "app.mails"),
        Intent("e", AT + 1, 1, "patch", "new"),
        End("e", AT + 9, "failed", "ValueError", body=pack_error(ValueError("no luck"))),
        Begin("f", AT, "app.mails"),
        End("f", AT + 9, "cancelled", "duplicate", body=pack_error(RuntimeError("duplicate"))),
    ).close()
    listed = printed("jobs", "list", "--journal", tmp_path).splitlines()
    rows = {line.split()[0]: " ".join(line.split()) for line in listed[1:]}
    until = "until 2023-11-14 22:14:20.000Z"
    assert listed[0].split() == [
        "job",
        "of",
        "status",
        "attempt",
        "effects",
        "created",
        "updated",
        "waits",
        "for,",
        "or",
        "its",
        "outcome",
    ]
    assert rows["a"].startswith("a app.refunds running 2 4 2023-11-14 22:13:20.000Z 2023-11-14 22:13:20.150Z")
    ends = {job: row.split("Z ", 2)[2] for job, row in rows.items()}
    assert ends == {
        "a": "call refund; call rate",
        "b": f"timer {until}",
        "c": "call note; child app.refunds: not begun; 1 more",
        "d": f"question confirm {until}",
        "e": "ValueError: no luck",
        "f": "duplicate",
    }
    assert [each["job_id"] for each in objects("jobs", "list", "--journal", tmp_path, "--agent", "app.mails")] == list(
        "cdef"
    )
    assert [
        each["job_id"] for each in objects("jobs", "list", "--journal", tmp_path, "--status", "waiting_action")
    ] == ["d"]
    assert [each["agent"] for each in objects("jobs", "list", "--journal", tmp_path, "--agent", "mails")] == [
        "app.mails"
    ] * 4
    unknown = says("jobs", "list", "--journal", tmp_path, "--agent", "mail")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "no job of an agent mail" in unknown.stderr
    assert "it has jobs of app.mails, app.refunds" in unknown.stderr
    (last,) = objects("jobs", "show", "c", "--journal", tmp_path)
    assert [(each["kind"], each["name"]) for each in last["open"]] == [
        ("call", "note"),
        ("child", "app.refunds"),
        ("wait", "paid"),
    ]


def test_a_job_that_goes_on_after_its_end_runs_again(tmp_path: Path) -> None:
    """A redriven dead letter, and `ctx.continue_as`: another BEGIN of the same job."""
    written(
        tmp_path,
        Begin("job", AT, "app.refunds", pack(1, "input")),
        Intent("job", AT + 1, 1, "wait", "paid"),
        End("job", AT + 2, "failed", "ValueError", body=pack_error(ValueError("no luck"))),
        Begin("job", AT + 3, "app.refunds", pack(2, "input")),
        Intent("job", AT + 4, 2, "wait", "again"),
        Begin("round", AT, "app.refunds", pack(1, "input")),
        Intent("round", AT + 1, 1, "wait", "paid"),
        Begin("round", AT + 2, "app.refunds", pack(2, "input")),
        Intent("round", AT + 3, 2, "wait", "again"),
    ).close()
    (seen,) = objects("jobs", "show", "job", "--journal", tmp_path)
    assert (seen["status"], seen["created_at"], seen["effects"], seen["input"]) == ("running", AT / 1000, 2, 2)
    assert seen["attempt"] == 2
    assert [each["name"] for each in seen["open"]] == ["again", "paid"]  # what it waited for is asked for again
    (seen,) = objects("jobs", "show", "round", "--journal", tmp_path)
    assert (seen["attempt"], [each["name"] for each in seen["open"]]) == (1, ["again"])


def test_a_job_shows_what_went_in_and_what_came_out(tmp_path: Path) -> None:
    written(
        tmp_path,
        Begin("job", AT, "app.refunds", pack({"order": 7}, "input")),
        End("job", AT + 2, "succeeded", body=pack({"done": True}, "output")),
    ).close()
    (seen,) = objects("jobs", "show", "job", "--journal", tmp_path)
    assert (seen["input"], seen["output"]) == ({"order": 7}, {"done": True})
    assert "{'done': True}" in printed("jobs", "show", "job", "--journal", tmp_path)


def test_a_signal_is_sent_once(tmp_path: Path) -> None:
    written(
        tmp_path, Begin("job", AT, "app.refunds"), Begin("over", AT, "app.refunds"), End("over", AT, "succeeded")
    ).close()
    words = ["jobs", "signal", "job", "paid", "--journal", tmp_path]
    assert printed(*words, "--with", "12.5", "--token", "bank-7", "--by", "bank") == "job job has signal paid\n"
    second = says(*words, "--token", "bank-7")
    assert (second.exit_code, "already sent" in second.stderr) == (1, True)
    printed(*words)
    printed(*words, "--by", "ann")  # each has a name of its own where none is given
    for wrong in (["--token", ""], ["--with", "{"]):
        assert says(*words, *wrong).exit_code == 2
    for job, reason in (("nobody", "none of this name"), ("over", "has ended: succeeded")):
        done = says("jobs", "signal", job, "paid", "--journal", tmp_path)
        assert (done.exit_code, reason in done.stderr) == (1, True)
    journal = SqliteJournal(tmp_path / "journal")
    taken = [entry for _, entry in journal.take()]
    signals = [entry for entry in taken if isinstance(entry, Signal)]
    assert (signals[0].name, signals[0].body, signals[0].by) == ("paid", b"12.5", "bank")
    assert len({signal.token for signal in signals}) == 3
    journal.close()


@pytest.mark.parametrize("words", [["jobs", "list"], ["actions", "list"], ["journal", "show", "job"]])
def test_a_place_without_a_journal_is_told(tmp_path: Path, words: list[str]) -> None:
    done = says(*words, "--journal", tmp_path)
    assert (done.exit_code, "has no journal" in done.stderr) == (1, True)


def test_an_address_of_no_home_is_refused_without_its_password() -> None:
    done = says("jobs", "list", "--journal", "mongodb://ann:hunter2-hunter2@host/refunds")
    assert done.exit_code == 1
    assert "mongodb://host/refunds: no journal has such an address" in done.stderr
    assert "hunter2" not in done.stderr


async def test_a_failed_job_of_a_kernel_is_retried_while_no_process_owns_its_journal(tmp_path: Path) -> None:
    engine = ExecutionEngine(ScriptedProvider(["one", "two"]), retries=0, patience=0)

    async def twice(ctx: Any) -> list[str]:
        agent = Agent(engine)
        return [(await ctx.llm(engine).complete(agent.request)).content for _ in range(2)]

    place = tmp_path / "jobs"
    async with RuntimeKernel.create(agent=twice, journal=place) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=1, budgets=BudgetSpec(max_turns=1, max_tokens=100_000)))
        with pytest.raises(TurnLimitExceeded):
            await handle.result()
    wrong = says("jobs", "retry", handle.url_id, "--budget", "max_turns=2")
    assert (wrong.exit_code, "name its journal" in wrong.stderr) == (2, True)
    for given, said in (("max_turns", "LIMIT=VALUE is wanted"), ("max_turn=2", "there is no limit max_turn")):
        wrong = says("jobs", "retry", handle.url_id, "--journal", place, "--budget", given)
        assert (wrong.exit_code > 0, said in wrong.stderr) == (True, True), wrong.stderr
    assert "will run again" in printed("jobs", "retry", handle.url_id, "--journal", place, "--budget", "max_turns=2")
    again = says("jobs", "retry", handle.url_id, "--journal", place)
    assert (again.exit_code, "already sent" in again.stderr) == (1, True), again.stderr
    async with RuntimeKernel.create(agent=twice, journal=place) as kernel:
        handle = await kernel.handle(handle.job_id)
        assert (await handle.result()).output == ["one", "two"]
        assert (await kernel.jobs.get(handle.job_id)).budgets == BudgetSpec(max_turns=2, max_tokens=100_000)


async def test_a_blocked_job_is_listed_and_shown_with_the_reason_while_no_process_runs_it(tmp_path: Path) -> None:
    """Only the figures of the process that had tried it said so."""

    async def first(ctx: Any) -> Any:
        return await ctx.ask("confirm", {})

    async def second(ctx: Any) -> Any:
        return await ctx.wait("paid")

    first.__name__ = second.__name__ = "f"
    async with RuntimeKernel.create(agent=first, journal=tmp_path) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=1))
        await until(lambda: kernel.statistics()["parked"] == 1)
    async with RuntimeKernel.create(agent=second, journal=tmp_path) as kernel:
        [handle] = await kernel.resume()
        with pytest.raises(NonDeterminism) as error:
            await handle.result()
    assert printed("jobs", "list", "--journal", tmp_path, "--status", "blocked").count("\n") == 2
    async with RuntimeKernel.create(agent=second, journal=tmp_path) as kernel:
        [handle] = await kernel.resume()
        with pytest.raises(NonDeterminism):
            await handle.result()
        await until(lambda: printed("jobs", "list", "--journal", tmp_path, "--status", "blocked").count("\n") == 2)
        assert (await kernel.jobs.get(handle.job_id)).blocked == str(error.value)[:500]
        (job,) = await kernel.jobs.find(statuses=[JobStatus.WAITING_ACTION])
        assert (job.status, job.blocked) == (JobStatus.WAITING_ACTION, str(error.value)[:500])
    row = printed("jobs", "list", "--journal", tmp_path).splitlines()[1]
    assert ("blocked" in row, "step 1, ask confirm" in row) == (True, True), row
    (facts,) = map(json.loads, printed("jobs", "list", "--journal", tmp_path, "--json").splitlines())
    assert (facts["status"], facts["blocked"]) == ("blocked", str(error.value)[:500])
    assert "step 1, ask confirm" in printed("jobs", "show", handle.url_id, "--journal", tmp_path)
    assert printed("jobs", "list", "--journal", tmp_path, "--status", "waiting_action").count("\n") == 1
    assert "confirm" in printed("actions", "list", "--journal", tmp_path), "it may be answered"
    wrong = says("jobs", "list", "--journal", tmp_path, "--status", "stuck")
    assert (wrong.exit_code, "stuck: no status" in wrong.stderr, "blocked" in wrong.stderr) == (2, True, True)
    async with RuntimeKernel.create(agent=first, journal=tmp_path) as kernel:  # the old code is back
        assert "blocked" not in printed("jobs", "list", "--journal", tmp_path)
        [handle] = await kernel.resume()
        (action,) = await handle.get_pending_actions()
        await kernel.actions.resolve(action.resume_token, {"yes": True})
        assert (await handle.result()).output["resolution"] == {"yes": True}


def test_a_job_of_a_kernel_is_begun_at_a_terminal_once_for_a_key(tmp_path: Path) -> None:
    async def receipt(ctx: Any) -> str:
        return f"receipt for {ctx.message['order']}"

    async def run(job_id: str = "") -> Any:
        async with RuntimeKernel.create(agent=receipt, journal=place, name="shop") as kernel:
            if job_id:
                result = await (await kernel.handle(job_id)).result()
                job = await kernel.jobs.get(job_id)
                return result.output, job.scope_id, job.principal_id

    place = tmp_path / "jobs"
    words = "jobs", "start", "shop.receipt", "--journal", place, "--with", '{"order": "o-1"}', "--key", "o-1"
    done = says(*words)
    assert (done.exit_code, "has no journal" in done.stderr) == (1, True)
    asyncio.run(run())
    job_id = printed(*words, "--scope", "acme", "--by", "ann").strip()
    (again,) = [json.loads(line) for line in printed(*words, "--scope", "acme", "--by", "ann", "--json").splitlines()]
    assert again == {"job_id": job_id, "url_id": job_id.replace("/", "~~")}
    (listed,) = objects("jobs", "list", "--journal", place, "--status", "queued", "--agent", "receipt")
    assert (listed["job_id"], listed["scope_id"], listed["principal_id"]) == (job_id, "acme", "ann")
    (shown,) = objects("jobs", "show", again["url_id"], "--journal", place)
    assert (shown["status"], shown["input"]["prompt"]) == ("queued", {"order": "o-1"})
    assert asyncio.run(run(job_id)) == ("receipt for o-1", "acme", "ann")
    wrong = says(*words[:5], "--with", '{"order"')
    assert (wrong.exit_code, "is not JSON" in wrong.stderr) == (2, True)
    other = says(*words[:6], '{"order": "o-2"}', "--key", "o-1", "--scope", "acme")
    assert (other.exit_code, "with another request" in other.stderr) == (1, True)


def test_all_jobs_of_a_kernel_are_cancelled_and_retried_at_a_terminal(tmp_path: Path) -> None:
    async def breaks(ctx: Any) -> str:
        if ctx.message:
            raise ValueError("no paper")
        return "printed"

    async def run(*, until_over: int) -> None:
        async with RuntimeKernel.create(agent=breaks, journal=place, name="shop") as kernel:
            await until(lambda: kernel.statistics()["ended"] == until_over)

    place = tmp_path / "jobs"
    asyncio.run(run(until_over=0))
    for message in ("1", "2", "0"):
        printed("jobs", "start", "shop.breaks", "--journal", place, "--with", message, "--scope", f"s{message}")
    asyncio.run(run(until_over=3))
    printed("jobs", "start", "shop.breaks", "--journal", place, "--with", "0")
    cancel = "jobs", "cancel", "--journal", place
    assert (
        printed(*cancel, "--all", "--agent", "breaks") == "1 of 1 jobs will be cancelled by the owner of the journal\n"
    )
    retry = "jobs", "retry", "--journal", place
    assert printed(*retry, "--all", "--scope", "s1") == "1 of 1 jobs will run again in the owner of the journal\n"
    # that of s1 waits to run again, and has not failed any more
    assert printed(*retry, "--all") == "1 of 1 jobs will run again in the owner of the journal\n"
    for words in (cancel, (*cancel, "job", "--all"), (*cancel, "job", "--scope", "x"), ("jobs", "retry", "--all")):
        assert says(*words).exit_code == 2, words
    assert "status='done'" in says(*cancel, "--all", "--status", "done").stderr
