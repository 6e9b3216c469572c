"""The examples of agents, each started as a script. By default they ask a model that answers by a script."""

import runpy
import sys
from pathlib import Path

import pytest

from sabot.llm import RequestSpec
from sabot.testing import FakeModelServer, MemoryBroker

EXAMPLES = Path(__file__).parents[3] / "examples" / "agents"
HELP = "models"  # their module, which says who is asked


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder of a script is on its path. It runs in a folder that goes with the test."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, HELP, raising=False)
    monkeypatch.chdir(tmp_path)
    MemoryBroker.get().reset()
    for name in ("SABOT_MODEL", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def said_by(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_an_agent_is_a_job_of_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by("01_simple.py", capsys) == [
        "Two spaces, four, a colon too:",
        "the snake has drawn the line for you.",
    ]


def test_a_job_that_does_not_fit_into_its_budget_is_not_made(capsys: pytest.CaptureFixture[str]) -> None:
    fits, not_made = said_by("02_budget.py", capsys)
    assert fits.endswith("settled after it. (34 tokens)")
    assert not_made.startswith("not made: gpt-4o-mini was not done: the job may use 100 tokens")


def test_a_tool_deploys_when_a_person_has_approved(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by("03_approval.py", capsys) == ["Deploy to production? yes", "It is deployed."]


def test_research_plans_asks_and_puts_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by("04_research.py", capsys) == [
        "From China. People in Turkey. At 80 to 100 degrees.",
        "6 calls of the model for ['Where does tea come from?', 'Who drinks most of it?', 'How hot is it made?']",
    ]


def test_a_lead_hands_parts_of_a_query_to_workers(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by("lead_agent.py", capsys) == [
        "Tea sold [12,15,11,19]. Tea is made of leaves.",
        "3 jobs, 5 calls of the model",
    ]


def test_a_stream_is_labelled_and_equal_texts_are_asked_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = said_by("label_stream.py", capsys)
    assert [line.split()[-2:] for line in said[1:6]] == [
        ["complaint", "True"],
        ["question", "False"],
        ["praise", "False"],
        ["question", "False"],
        ["complaint", "True"],
    ]
    assert said[-1] == "3 requests for 5 tickets"


def test_customers_have_conversations_and_a_large_refund_waits_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    asked, *said = said_by("support_agent.py", capsys)
    assert asked.startswith("a person approves {'effect': 'refund'")
    assert "'amount': 80" in asked
    assert sorted(said) == [
        "ann: It was o-1.",
        "ann: Sorry! 20 dollars were given back for o-1.",
        "bo: Sorry! 80 dollars were given back for o-2.",
    ]


def test_what_a_tenant_spends_in_an_hour_is_told_where_it_is_too_much(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by("spend_alerts.py", capsys) == ["ann has spent 0.0014 dollars with 3 calls"]


def test_the_environment_names_a_real_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(spec: RequestSpec) -> str:
        return '["Why tea?"]' if "JSON list" in spec.messages[-1].text else "Why not?"

    with FakeModelServer(answer, keys=("right",)) as server:
        monkeypatch.setenv("SABOT_MODEL", "real-1")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        assert said_by("04_research.py", capsys)[0] == "Why not?"
        assert {request.body["model"] for request in server.requests} == {"real-1"}


def test_every_example_is_run_here_and_is_short() -> None:
    tests = Path(__file__).read_text()
    found = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert [name for name in found if f'"{name}"' not in tests and name != f"{HELP}.py"] == []
    assert max(found.values()) < 80
