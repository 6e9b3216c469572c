"""How many tokens a request has to read: about, for rates, and at most, for what is reserved of budgets."""

import pytest

from sabot.llm import ChatMessage, Image, RequestSpec, ToolCall, ToolSchema, assistant, system, tool_result, user
from sabot.llm.token_counts import IMAGE_TOKENS, input_tokens_of, most_input_tokens, most_tokens

LOOK = ToolSchema("look", "Looks something up.", {"type": "object", "properties": {"name": {"type": "string"}}})


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("", 0),
        ("one two three", 7),  # letters and spaces, two by two
        ("ONE", 3),
        ("3.14159", 7),
        ("漢字", 6),  # three bytes each
        ("\N{ROBOT FACE}", 4),
        ("é", 2),
        ("\ud800", 1),  # no UTF-8: it is sent as a question mark
        ('{"a": "b"}', 9),  # two letters, a space, and seven others
    ],
)
def test_letters_and_spaces_are_two_to_a_token_and_other_bytes_one_each(text: str, most: int) -> None:
    assert most_tokens(text) == most


def test_all_that_a_model_has_to_read_counts() -> None:
    def most(*messages, **fields) -> int:
        return most_input_tokens(RequestSpec(messages=messages, **fields))

    asked = most(user("hi"))
    assert asked == 16 + 1
    assert most(system("be brief"), user("hi")) == asked + 16 + 4
    picture = Image(url="https://example.com/a.png")
    assert most(user("hi", picture, picture)) == asked + 2 * IMAGE_TOKENS
    assert most(user("hi"), tools=(LOOK,)) > asked + 1_024
    assert most(user("hi"), output={"type": "object"}) == asked + most_tokens('{"type":"object"}') + most_tokens(
        "answer"
    )
    assert most(user("hi"), options={"a": [1]}) == asked + most_tokens('{"a":[1]}')
    assert most(user("hi"), options={"tools": [{"name": "look"}]}) > asked + 1_024
    called = most(user("hi"), assistant("", ToolCall("1", "look", "{}")), tool_result("1", "gold"))
    assert called == asked + 16 + (16 + 1 + 2 + 2) + (16 + 2 + 1)
    kept = {"anthropic": [{"type": "thinking", "thinking": "漢字", "signature": "S"}]}
    thought = most(user("hi"), ChatMessage("assistant", vendor=kept))
    assert thought == asked + 16 + most_tokens('[{"type":"thinking","thinking":"漢字","signature":"S"}]')
    assert most(user("hi"), ChatMessage("assistant", vendor={**kept, "reasoning": 700})) == thought + 700


@pytest.mark.parametrize(
    ("largest", "tokens"),
    [
        ("gpt-4o-mini: 768 x 2048 pixels in 8 tiles", 2_833 + 8 * 5_667),
        ("gpt-4o: the same tiles", 85 + 8 * 170),
        ("gpt-4.1-nano: 1,536 patches, 2.46 tokens each", 3_779),
        ("gpt-5.4: 10,000 patches", 10_000),
        ("claude: 2,576 pixels", 4_784),
    ],
)
def test_no_model_reads_more_of_a_picture_than_is_counted(largest: str, tokens: int) -> None:
    assert most_input_tokens(RequestSpec(messages=(user(Image(data=b"P", media_type="image/png")),))) > tokens, largest


@pytest.mark.parametrize("text", ["a few words of plain English", "漢字かな交じり文", "x = [1, 2, 3]\n", ""])
def test_no_request_reads_more_by_rule_of_thumb_than_at_most(text: str) -> None:
    spec = RequestSpec(messages=(system(text), user(text)), tools=(LOOK,))
    assert input_tokens_of(spec) < most_input_tokens(spec)
