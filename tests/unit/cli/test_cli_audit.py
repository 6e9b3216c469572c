"""`sabot audit`: who was allowed what, and why, of a job in a journal."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from unit.jobs.hosting import Agent, hosting

from sabot.agents import ConstraintPolicy, DurableContext, PolicyDenied, PolicyEngine, SqliteJournal, ToolPolicy, tool
from sabot.cli import commands
from sabot.engine.calls import names
from sabot.jobs.guard import Behalf
from sabot.journal import Letter


@tool(effect="read")
async def look(order: str) -> str:
    return f"order {order}"


@tool
async def refund(order: str, amount: int) -> str:
    return "refunded"


@tool
async def delete(order: str) -> None: ...


async def handle(ctx: DurableContext) -> list[str]:
    said = [await ctx.call(look, "o1")]
    asked: list[Any] = [
        lambda: ctx.call(delete, "o1"),
        lambda: ctx.call(refund, order="o1", amount=500),
        lambda: ctx.call(refund, "o2", 600),
    ]
    for each in asked:
        try:
            said.append(str(await each()))
        except PolicyDenied as error:
            said.append(error.type)
    return said


async def a_job(folder: Path) -> PolicyEngine:
    """A job that is denied one call, allowed another by a person, and waits for a third."""
    policy = PolicyEngine([ToolPolicy(["look"]), ToolPolicy(["delete"], denied=True, reason="never")])
    policy.add_rule(ConstraintPolicy(["refund"], "amount", max=100, otherwise="ask"))
    journal = SqliteJournal(folder / "journal")
    async with hosting(journal, Agent(handle), guard=policy) as jobs:
        jobs.begin("j", behalf=Behalf("acme", "ada"))
        await jobs.parks("j")
        await journal.flush()
        (token,) = [line["resume_token"] for line in objects("actions", "list", "--journal", folder)]
        journal.post(Letter("answer", token, body=b'{"approved": true}', by="bob"))
        await jobs.parks("j", wakes=1)
        await journal.flush()
    journal.close()
    return policy


def printed(*words: object) -> str:
    done = CliRunner().invoke(commands.cli, list(map(str, words)))
    assert done.exit_code == 0, done.output + done.stderr
    return done.stdout


def objects(*words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed(*words, "--json").splitlines()]


async def test_an_audit_says_who_was_allowed_what_by_which_rule_and_who_has_approved_it(tmp_path: Path) -> None:
    policy = await a_job(tmp_path)
    found = objects("audit", "j", "--journal", tmp_path)
    assert {(each["job_id"], each["scope"], each["principal"], each["version"]) for each in found} == {
        ("j", "acme", "ada", policy.version)
    }
    names = ("ordinal", "name", "decision", "rule", "approval", "by", "outcome")
    assert [tuple(each[name] for name in names) for each in found] == [
        (1, "look", "allow", "ToolPolicy look", "", "", "ok"),
        (2, "delete", "deny", "ToolPolicy delete", "", "", "PolicyDenied"),
        (3, "refund", "ask", "ConstraintPolicy amount", "approved", "bob", "ok"),
        (4, "refund", "ask", "ConstraintPolicy amount", "waiting", "", ""),
    ]
    assert [each["reason"] for each in found[1:3]] == [
        "never",
        "amount is 500, and at most 100 is allowed (tool refund)",
    ]
    assert found[2]["arguments"] == [[], {"order": "o1", "amount": 500}]
    rows = [line.split() for line in printed("audit", "j", "--journal", tmp_path).splitlines()]
    assert rows[0] == ["effect", "asked", "what", "for", "decision", "rule", "version", "why", "outcome"]
    assert "ask: approved by bob" in " ".join(rows[3])
    assert rows[4][-1] == "open"


async def test_the_questions_of_a_policy_are_listed_with_what_they_are_about(tmp_path: Path) -> None:
    await a_job(tmp_path)
    listed = printed("actions", "list", "--journal", tmp_path)
    assert "may refund(amount=600, order='o2') be done? amount is 600, and at most 100 is allowed" in listed
    (job,) = objects("jobs", "list", "--journal", tmp_path)
    assert (job["scope_id"], job["principal_id"], job["open"][0]["needs_approval"]) == ("acme", "ada", True)
    assert "to approve: call refund" in printed("jobs", "list", "--journal", tmp_path)
    (token,) = [line["resume_token"] for line in objects("actions", "list", "--journal", tmp_path)]
    wrong = CliRunner().invoke(commands.cli, ["actions", "resolve", token, "--journal", str(tmp_path), "--done"])
    assert (wrong.exit_code, "give --approve or --reject" in wrong.stderr) == (2, True)
    words = ["actions", "resolve", token, "--journal", tmp_path, "--reject", "--by", "eve"]
    assert printed(*words) == "answered\n"


async def test_an_answer_may_change_the_arguments_or_hold_for_the_whole_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_MADE", {})  # without the tools that other tests have made under this name
    names.note_tool(refund)
    policy = await a_job(tmp_path)
    (token,) = [line["resume_token"] for line in objects("actions", "list", "--journal", tmp_path)]
    words = ["actions", "resolve", token, "--journal", str(tmp_path), "--by", "eve"]
    for wrong, said in (
        (["--approve", "--arguments", '{"amuont": 70}'], "refund has no argument 'amuont'"),
        (["--approve", "--arguments", "null"], "--arguments is null"),
        (["--approve", "--arguments", '{"amount": "much"}'], "amount does not take 'much'"),
        (["--approve", "--always", "session"], "belongs to no session"),
        (["--approve", "--always", "week"], "is none of job, session, scope"),
        (["--reject", "--always", "job"], "a refusal changes no arguments"),
        (["--approve", "--arguments", '{"amount": 70}', "--always", "job"], "with other arguments holds for this call"),
    ):
        refused = CliRunner().invoke(commands.cli, [*words, *wrong])
        assert (refused.exit_code, said in refused.stderr) == (2, True), refused.stderr
    assert printed(*words, "--approve", "--arguments", '{"amount": 70}', "--comment", "ok") == "answered\n"
    journal = SqliteJournal(tmp_path / "journal")
    async with hosting(journal, Agent(handle), guard=policy) as jobs:
        await jobs.over("j")
        await journal.flush()
    journal.close()
    found = objects("audit", "j", "--journal", tmp_path)[3]
    assert (found["arguments"], found["edited"], found["by"]) == (
        [[], {"order": "o2", "amount": 600}],
        {"amount": 70},
        "eve",
    )
    assert "approved by eve with (amount=70)" in printed("audit", "j", "--journal", tmp_path)


def test_a_job_that_is_not_there_is_named(tmp_path: Path) -> None:
    SqliteJournal(tmp_path / "journal").close()
    done = CliRunner().invoke(commands.cli, ["audit", "nobody", "--journal", str(tmp_path)])
    assert (done.exit_code, "has no entry of job nobody" in done.stderr) == (1, True)


async def test_an_action_is_shown_by_its_id_and_by_the_token_that_the_list_prints(tmp_path: Path) -> None:
    await a_job(tmp_path)
    (listed,) = objects("actions", "list", "--journal", tmp_path)
    for name in (listed["action_id"], listed["resume_token"]):
        assert json.loads(printed("actions", "show", name, "--journal", tmp_path))["action_id"] == listed["action_id"]
