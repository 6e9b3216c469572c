"""What a model has answered once is answered again without it."""

import pytest

from sabot.errors import UserError
from sabot.llm import (
    Completion,
    Image,
    ModelUnavailable,
    OpenAIProvider,
    RequestSpec,
    ScriptedProvider,
    ToolCall,
    Usage,
    assistant,
    user,
)
from sabot.testing import FakeModelServer, RecordedAnswers


def spec(text):
    return RequestSpec(messages=(user(text, Image(data=b"\x00\xff", media_type="image/png")),))


async def test_a_request_that_was_answered_is_not_asked_again(tmp_path):
    path = tmp_path / "answers.ndjson"
    message = assistant("Zürich", ToolCall("1", "look", '{"x": 1}'))
    given = Completion(message=message, finish_reason="tool_calls", usage=Usage(3, 2, 1), request_id="r-1")
    real = ScriptedProvider([given, "two"])
    recorded = ScriptedProvider(RecordedAnswers(path, real))
    first = [await recorded.complete(spec(text)) for text in ("a", "b", "a")]
    played = ScriptedProvider(RecordedAnswers(path))
    assert [await played.complete(spec(text)) for text in ("a", "b", "a")] == first
    assert (first[0].message, first[0].usage, len(real.requests)) == (message, Usage(3, 2, 1), 2)
    with pytest.raises(UserError, match="has no answer to"):
        await played.complete(spec("c"))


async def test_errors_are_not_recorded(tmp_path):
    path = tmp_path / "answers.ndjson"
    recorded = ScriptedProvider(RecordedAnswers(path, ScriptedProvider([ModelUnavailable("gone"), "yes"])))
    with pytest.raises(ModelUnavailable):
        await recorded.complete(spec("a"))
    assert not path.exists()
    assert (await recorded.complete(spec("a"))).content == "yes"


async def test_a_server_plays_what_was_recorded(tmp_path):
    path = tmp_path / "answers.ndjson"
    for real in (ScriptedProvider("yes"), None):
        with FakeModelServer(RecordedAnswers(path, real)) as server:
            provider = OpenAIProvider("m", base_url=server.openai_url, api_key="any")
            assert (await provider.complete(spec("a"))).content == "yes"
            await provider.close()


async def test_answers_are_added_to_a_file_that_an_editor_has_changed(tmp_path):
    path = tmp_path / "answers.ndjson"
    await RecordedAnswers(path, ScriptedProvider("one"))(spec("a"))
    path.write_text("\n" + path.read_text().rstrip())
    recorded = RecordedAnswers(path, ScriptedProvider(["two", "three"]))
    for text in ("a", "b", "c"):
        await recorded(spec(text))
    played = RecordedAnswers(path)
    assert [(await played(spec(text))).content for text in ("a", "b", "c")] == ["one", "two", "three"]


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "x").write_text('{"request": 1}\n')
    with pytest.raises(UserError, match="line 1 is no recorded answer"):
        RecordedAnswers(tmp_path / "x")
