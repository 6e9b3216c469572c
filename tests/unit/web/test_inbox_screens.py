"""The inbox over HTTP: questions to people and effects in doubt, and their answers."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from unit.web.test_console import MARKUP
from unit.web.test_job_screens import ask, enter

from sabot import App
from sabot.agents import DurableContext, PolicyEngine, Reconciled, ToolPolicy, tool
from sabot.web.console import Console
from sabot.web.payloads import Payloads
from tools.agent_tools import publish, started, until, values

pytestmark = pytest.mark.usefixtures("warm_starts")


class Bank:
    """A bank whose first transfer of each order breaks off in the middle."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refunded: list[str] = []
        self.knows = False
        self.looked_up = 0

    def tools(self) -> tuple[Any, Any, Any]:
        @tool
        async def transfer(order: str, amount: int) -> str:
            self.asked.append(order)
            if self.asked.count(order) == 1:
                raise TimeoutError("the bank does not answer")
            return f"paid {order}"

        @tool(name="refund")  # a name tells it from other tools that this object does not
        async def refund_order(order: str, amount: int) -> str:
            self.refunded.append(order)
            return f"refunded {order}"

        async def look(effect: Any, order: str) -> Any:
            self.looked_up += 1
            return (Reconciled.DONE, f"wired {order}") if self.knows else Reconciled.UNKNOWN

        @tool(reconcile=look)
        async def wire(order: str) -> str:
            raise TimeoutError("the bank does not answer")

        return transfer, refund_order, wire


@asynccontextmanager
async def office(
    url: str, folder: Path, messages: list[dict[str, Any]], payloads: Payloads | None = None
) -> AsyncIterator[tuple[App, Console, Bank]]:
    """An app whose jobs wait for a person: by `ask`, for the approval of a refund, or about a transfer in doubt."""
    bank = Bank()
    transfer, refund, wire = bank.tools()
    policy = PolicyEngine([ToolPolicy(["refund"], require_approval=True, reason=f"refunds need a person {MARKUP}")])
    app = App("shop", url, state=str(folder), checkpoint_interval=3600, policy=policy)

    @app.agent("tickets", name="handle", sink="answers", durable=True, concurrency=100)
    async def handle(ctx: DurableContext) -> Any:
        message = ctx.message
        try:
            match message["what"]:
                case "refund":
                    return await ctx.call(refund, order=message["order"], amount=message["amount"])
                case "wire":
                    return await ctx.call(wire, message["order"])
                case "transfer":
                    return await ctx.call(transfer, message["order"], amount=message["amount"])
                case _:
                    answer = await ctx.ask("choose", {"customer": message["order"], "amount": message["amount"]})
                    return [answer.by, dict(answer.resolution)]
        except Exception as error:
            return str(error)

    async with started(app):
        publish(app, "tickets", messages)
        await until(lambda: app.statistics()["jobs"]["parked"] == len(messages))
        await app.agent_runtime.trigger_checkpoint()
        console = Console(app, port=0, payloads=payloads)
        try:
            yield app, console, bank
        finally:
            console.close()


AMOUNT = 471147114711  # so long that no id and no token has it by chance


def ticket(what: str, order: str = f"o-1{MARKUP}") -> dict[str, Any]:
    return {"what": what, "order": order, "amount": AMOUNT}


def fields(page: str) -> list[str]:
    """The names of the fields that select questions, each once."""
    return sorted(set(re.findall(r'name="(ask:[^"]+)"', page)))


async def test_questions_are_listed_without_values_and_without_tokens(memory_url: str, tmp_path: Path) -> None:
    async with office(memory_url, tmp_path, [ticket("refund"), ticket("transfer"), ticket("ask")]) as (app, console, _):
        browser = await enter(console, "act")
        status, page = await ask(browser, "/inbox")
        assert status == 200
        assert "May refund be done?" in page
        assert "Was transfer done?" in page
        assert "sabot-" in page, "the idempotency key, to look the transfer up"
        assert "refunds need a person &lt;script&gt;" in page
        assert "2 values hidden" in page
        assert MARKUP not in page
        rows = (await ask(browser, "/inbox.json"))[1]
        assert {each["effect"] for each in json.loads(rows)} == {"refund", "transfer", ""}
        table = (await ask(browser, "/inbox.csv"))[1]
        tokens = [each.resume_token for each in await app.actions.find()]
        assert len(tokens) == 3
        for text in (page, rows, table):
            assert str(AMOUNT) not in text
            assert not [each for each in tokens if each in text]


async def test_named_values_are_shown_and_a_tool_shows_its_arguments(memory_url: str, tmp_path: Path) -> None:
    payloads = Payloads(names=frozenset({"transfer", "customer"}))
    async with office(memory_url, tmp_path, [ticket("transfer"), ticket("ask")], payloads) as (_, console, _bank):
        browser = await enter(console, "act")
        rows = {each["type"]: each["context"] for each in json.loads((await ask(browser, "/inbox.json"))[1])}
        assert rows == {"in_doubt": f"1: o-1{MARKUP}; amount: {AMOUNT}", "choose": f"customer: o-1{MARKUP}"}
        page = (await ask(browser, "/inbox?q=transfer"))[1]
        assert page.count(str(AMOUNT)) == 1
        assert MARKUP not in page
        assert [len(fields((await ask(browser, f"/inbox?q={text}"))[1])) for text in ("O-1", AMOUNT)] == [2, 1]
        assert "All of it:" not in page


async def test_a_long_argument_is_cut_with_its_length_and_the_command_for_the_rest(
    memory_url: str, tmp_path: Path
) -> None:
    """Whoever fills the first characters would hide the rest from the person who approves."""
    order = "a" * 2_000 + "pay eve"
    payloads = Payloads(names=frozenset({"refund"}))
    async with office(memory_url, tmp_path, [ticket("refund", order)], payloads) as (_, console, _bank):
        page = (await ask(await enter(console, "act"), "/inbox"))[1]
        [action] = [each.removeprefix("ask:") for each in fields(page)]
        assert "pay eve" not in page
        assert "aaa… (7 more characters)" in page
        assert f"<code>sabot actions show {action}</code>" in page


@pytest.mark.one_in(3, "half a second of a core each")
@pytest.mark.parametrize(
    ("payloads", "words"),
    [
        (Payloads(), ""),
        (Payloads(names=frozenset({"amount"})), f"Its record: amount {AMOUNT}"),
        (Payloads("all"), "Its record: what ask · order o-1<script>"),
    ],
)
async def test_a_card_shows_the_record_that_began_the_job_as_far_as_the_options_say(
    memory_url: str, tmp_path: Path, payloads: Payloads, words: str
) -> None:
    async with office(memory_url, tmp_path, [ticket("ask")], payloads) as (_, console, _bank):
        browser = await enter(console, "act")
        page = (await ask(browser, "/inbox"))[1]
        assert MARKUP not in page
        text = unescape(" ".join(re.sub("<[^>]+>", " ", page).split()))
        assert words in text
        assert ("Its record" in text) == bool(words)
        (link,) = set(re.findall(r'href="(/job\?id=[^"]+)"', page))
        assert (await ask(browser, unescape(link)))[0] == 200


async def test_several_questions_are_answered_at_once_with_a_reason(memory_url: str, tmp_path: Path) -> None:
    messages = [ticket("refund", f"o-{n}") for n in range(3)]
    async with office(memory_url, tmp_path, messages) as (app, console, bank):
        browser = await enter(console, "act")
        first, *others = fields((await ask(browser, "/inbox"))[1])
        answer = {"answer": "reject", "reason": "too much", "by": "admin"}
        status, page = await ask(browser, "/act/answer", dict.fromkeys(others, "1") | answer)
        assert (status, "2 of 2 questions: rejected." in page) == (200, True)
        await until(lambda: len(values(app, "answers")) == 2)
        assert bank.refunded == []
        said = values(app, "answers")
        assert all(re.search(r"rejected by console:[0-9a-f]{12}: too much", each) for each in said), said
        status, page = await ask(browser, "/act/answer", {others[0]: "1", "answer": "approve"})
        assert status == 409
        assert re.search(r"was rejected by console:[0-9a-f]{12} at 2\d{3}-\S+ \S+ UTC, before your answer\.", page), (
            page
        )
        assert (await ask(browser, "/act/answer", {first: "1", others[0]: "1", "answer": "approve"}))[0] == 200
        await until(lambda: app.statistics()["jobs"]["ended"] == 3)
        assert len(bank.refunded) == 1
        assert "Nobody is asked now." in (await ask(browser, "/inbox"))[1]


async def test_enter_in_a_field_of_a_form_with_several_answers_gives_none(memory_url: str, tmp_path: Path) -> None:
    """A browser sends a form by Enter with the first button, which was "Approve" of a reason not to pay."""
    async with office(memory_url, tmp_path, [ticket("refund"), ticket("transfer"), ticket("ask")]) as (_, console, _b):
        page = (await ask(await enter(console, "act"), "/inbox"))[1]
        several = [each for each in re.findall(r"<form.*?</form>", page, re.DOTALL) if each.count('name="answer"') > 1]
        assert len(several) == 4
        for form in several:
            assert re.findall(r"<button[^>]*>", form)[0] == "<button disabled hidden>"


@pytest.mark.slow  # a second of a core
async def test_effects_in_doubt_are_decided_by_a_person(memory_url: str, tmp_path: Path) -> None:
    messages = [ticket("transfer", f"o-{n}") for n in range(3)]
    async with office(memory_url, tmp_path, messages) as (app, console, bank):
        browser = await enter(console, "act")
        done, again, given_up = fields((await ask(browser, "/inbox"))[1])
        assert (await ask(browser, "/act/answer", {done: "1", "answer": "approve"}))[0] == 409
        assert (await ask(browser, "/act/answer", {done: "1", "answer": "done", "value": "nope"}))[0] == 409
        assert "It is JSON of the schema {&#34;type&#34;:&#34;string&#34;}." in (await ask(browser, "/inbox"))[1]
        for value in ("", "7"):
            status, page = await ask(browser, "/act/answer", {done: "1", "answer": "done", "value": value})
            assert (status, "transfer gives its caller a result" in page) == (409, True)
        assert app.statistics()["jobs"]["ended"] == 0
        for field, answer in [
            (done, {"answer": "done", "value": '"looked up"'}),
            (again, {"answer": "not-done"}),
            (given_up, {"answer": "abandon"}),
        ]:
            assert (await ask(browser, "/act/answer", {field: "1"} | answer))[0] == 200
        await until(lambda: len(values(app, "answers")) == 3)
        assert len(bank.asked) == 4, "one transfer is made again"
        said = sorted(values(app, "answers"))
        assert said[0] == "looked up"
        assert re.fullmatch(r"paid o-\d", said[1])
        assert "abandoned by console:" in said[2]
        await app.agent_runtime.trigger_checkpoint()
        for field, words in [(done, "known to be done"), (again, "made again"), (given_up, "given up")]:
            job = field.removeprefix("ask:").rpartition("/")[0]
            page = (await ask(browser, f"/job?id={quote(job)}"))[1]
            assert re.search(rf"was in doubt: {words} by console:[0-9a-f]{{12}} at <time", page)
            assert "looked up" not in page, "values of answers are hidden"
            (effect,) = json.loads((await ask(browser, f"/job.json?id={quote(job)}"))[1])
            assert effect["answers"][0]["question"] == "in_doubt"
            assert "in_doubt" in (await ask(browser, f"/job.csv?id={quote(job)}"))[1]


async def test_a_question_of_a_job_takes_an_object(memory_url: str, tmp_path: Path) -> None:
    async with office(memory_url, tmp_path, [ticket("ask")]) as (app, console, _):
        browser = await enter(console, "act")
        (field,) = fields((await ask(browser, "/inbox"))[1])
        for wrong in ({"answer": "done"}, {"answer": "value", "value": "[1]"}, {"answer": "value", "value": "{"}, {}):
            assert (await ask(browser, "/act/answer", {field: "1"} | wrong))[0] == 409
        assert (await ask(browser, "/act/answer", {"answer": "approve"}))[0] == 409, "no question is selected"
        assert (await ask(browser, "/act/answer", {"ask:nobody/1": "1", "answer": "approve"}))[0] == 409
        assert (await ask(browser, "/act/answer", {field: "1", "answer": "value", "value": '{"choice": 2}'}))[0] == 200
        await until(lambda: values(app, "answers"))
        ((by, resolution),) = values(app, "answers")
        assert by.startswith("console:")
        assert resolution == {"choice": 2}


async def test_the_head_of_each_page_has_the_number_of_open_questions(memory_url: str, tmp_path: Path) -> None:
    async with office(memory_url, tmp_path, [ticket("refund"), ticket("ask")]) as (_, console, _bank):
        browser = await enter(console, "act")
        page = ""
        while "<title>(2) App" not in page:
            page = (await ask(browser, "/"))[1]
            await asyncio.sleep(0.01)
        assert re.search(r'data-badge="inbox">2<', page)
        reader = await enter(console, "read")
        page = (await ask(reader, "/"))[1]
        assert "<title>App" in page
        assert "/inbox" not in page


async def test_an_answered_question_is_gone_though_checkpoints_took_its_job_out_of_the_log(
    memory_url: str, tmp_path: Path
) -> None:
    async with office(memory_url, tmp_path, [ticket("ask", "o-1"), ticket("ask", "o-2")]) as (app, console, _):
        browser = await enter(console, "act")
        answered, left = fields((await ask(browser, "/inbox"))[1])
        assert (await ask(browser, "/act/answer", {answered: "1", "answer": "value", "value": "{}"}))[0] == 200
        await until(lambda: values(app, "answers"))
        with app.jobs.store.reader() as reader:
            while not reader.trimmed():  # no page is read in between
                await app.agent_runtime.trigger_checkpoint()
        assert fields((await ask(browser, "/inbox"))[1]) == [left]


async def test_the_forms_of_a_page_have_the_token_of_its_session(memory_url: str, tmp_path: Path) -> None:
    async with office(memory_url, tmp_path, [ticket("ask")]) as (_, console, _bank):
        tokens = []
        for _ in range(2):  # within one tick, in which parts of pages are kept
            page = (await ask(await enter(console, "act"), "/"))[1]
            tokens.append(set(re.findall(r'name="form" value="([^"]+)"', page)))
            assert "/act/stop" in page
        assert [len(each) for each in tokens] == [1, 1]
        assert tokens[0] != tokens[1]


async def test_the_head_of_each_page_has_the_name_under_which_its_session_acts(memory_url: str, tmp_path: Path) -> None:
    async with office(memory_url, tmp_path, [ticket("ask")]) as (app, console, _):
        browser = await enter(console, "act")
        (field,) = fields(page := (await ask(browser, "/inbox"))[1])
        found = re.search(r"may act as (console:[0-9a-f]{12})<", page)
        assert found is not None
        await ask(browser, "/act/answer", {field: "1", "answer": "approve"})
        await until(lambda: values(app, "answers") == [[found[1], {"approved": True}]])
        assert "may read<" in (await ask(await enter(console, "read"), "/"))[1]


async def test_a_session_that_may_read_has_no_inbox(memory_url: str, tmp_path: Path) -> None:
    async with office(memory_url, tmp_path, [ticket("ask")]) as (app, console, _):
        (field,) = fields((await ask(await enter(console, "act"), "/inbox"))[1])
        reader = await enter(console, "read")
        for path in ("/inbox", "/inbox.json", "/inbox.csv", "/events/inbox"):
            assert (await ask(reader, path))[0] == 403
        assert (await ask(reader, "/act/answer", {field: "1", "answer": "approve"}))[0] == 403
        assert app.statistics()["jobs"]["ended"] == 0


async def test_an_effect_in_doubt_is_looked_up_again_where_its_tool_can(memory_url: str, tmp_path: Path) -> None:
    async with office(memory_url, tmp_path, [ticket("wire", "o-1"), ticket("transfer")]) as (app, console, bank):
        browser = await enter(console, "act")
        page = (await ask(browser, "/inbox"))[1]
        assert page.count('value="look-up"') == 1, "a transfer cannot be looked up"
        parts = re.split(r"Was (\w+) done\?", page)
        fields_of = {name: fields(part) for name, part in zip(parts[1::2], parts[2::2], strict=True)}
        (wired,), (transferred,) = fields_of["wire"], fields_of["transfer"]
        assert bank.looked_up == 1
        assert (await ask(browser, "/act/answer", {transferred: "1", "answer": "look-up"}))[0] == 409
        status, page = await ask(browser, "/act/answer", {wired: "1", "answer": "look-up"})
        assert (status, "1 of 1 questions: looked up again. What was found is on the page of" in page) == (200, True)
        (link,) = re.findall(r'<a href="(/job\?id=[^"]+)"', page)
        await until(lambda: bank.looked_up == 2)
        again: list[str] = []
        while not again:
            again = [each for each in fields((await ask(browser, "/inbox"))[1]) if each not in (wired, transferred)]
        bank.knows = True
        assert (await ask(browser, "/act/answer", {again[0]: "1", "answer": "look-up"}))[0] == 200
        await until(lambda: values(app, "answers") == ["wired o-1"])
        job = (await ask(browser, unescape(link)))[1]
        found = re.findall(r"was in doubt: looked up again by console:[0-9a-f]{12} at .*?; ([^<]+)</span>", job)
        assert found == ["nobody knew, so it was asked again", "found done"]


async def test_an_approval_may_change_the_arguments_or_hold_for_the_job(memory_url: str, tmp_path: Path) -> None:
    async with office(memory_url, tmp_path, [ticket("refund")]) as (app, console, _bank):
        browser = await enter(console, "act")
        page = (await ask(browser, "/inbox"))[1]
        assert 'name="arguments"' in page
        assert "approve in the whole scope" in page
        assert "approve in the whole session" not in page, "its agent has no key="
        (name,) = fields(page)
        form = {name: "1", "answer": "approve", "back": "inbox"}
        for arguments, words in (
            ("{", "the value is not JSON"),
            ('{"amuont": 5}', "has no argument"),
            ("[5]", "is no object"),
            ("null", "the changed arguments are null"),
        ):
            shown = (await ask(browser, "/act/answer", {**form, "arguments": arguments}))[1]
            assert words in unescape(shown)
        shown = (await ask(browser, "/act/answer", {**form, "value": '{"approved": false}'}))[1]
        assert "the form has a value beside the answer 'approve'" in unescape(shown)
        value = {"answer": "value", "value": '{"approved": true}'}
        for beside in ({"arguments": '{"order": "o-7"}'}, {"always": "job"}):
            shown = (await ask(browser, "/act/answer", {**form, **value, **beside}))[1]
            assert "the form has changes of a call beside another answer" in unescape(shown)
        changed = {**form, "arguments": '{"order": "o-7"}'}
        shown = (await ask(browser, "/act/answer", {**changed, "always": "scope"}))[1]
        assert "an approval with other arguments holds for this call" in unescape(shown)
        await ask(browser, "/act/answer", changed)
        await until(lambda: values(app, "answers"))
        assert values(app, "answers") == ["refunded o-7"]
        (action,) = await app.actions.find()
        assert action.resolution == {"approved": True, "arguments": {"order": "o-7"}}


async def test_no_form_keeps_what_was_typed_for_another_question(memory_url: str, tmp_path: Path) -> None:
    """A browser that went back put the changed arguments, and "always", of a question that had gone into the form of the next one,
    behind a closed summary: "Approve" made its call with them.
    """
    async with office(memory_url, tmp_path, [ticket("refund"), ticket("transfer"), ticket("other")]) as (
        _app,
        console,
        _,
    ):
        browser = await enter(console, "act")
        page = (await ask(browser, "/inbox"))[1]
        forms = re.findall(r"<form class=.answers.[^>]*>", page)
        assert len(forms) >= 4
        assert [each for each in forms if 'autocomplete="off"' not in each and 'id="bulk"' not in each] == []
