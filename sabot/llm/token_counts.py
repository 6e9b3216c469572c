"""Estimates of the input tokens of a request, without asking its provider.

- `count_tokens`, `tokens_of`, `input_tokens_of`: an approximation, for rates and for scripted models.
- `most_input_tokens`: an upper bound. A budget that reserves it is never exceeded by the request.
"""

from collections.abc import Iterable, Iterator

import msgspec

from sabot.engine.calls.messages import ChatMessage, Image
from sabot.engine.calls.model_requests import RequestSpec

ASSUMED_TOKENS = 4096
"""The number of tokens that an answer is assumed to have at most, if its request has no `max_tokens`."""
IMAGE_TOKENS = 50_000
"""The greatest number of tokens of an image, for the models of OpenAI and Anthropic. The size of an image given by
its address is unknown, so all images count with it. The most is 48,169, of gpt-4o-mini (2,833, and 5,667 for each of
at most 8 tiles); other models count up to 10,000. One number for all models, because a request may end at another
model than it names, by `fallback=` or by a rule that degrades.
"""

_OFTEN_JOINED = b"abcdefghijklmnopqrstuvwxyz "
_OF_A_MESSAGE = 16  # tokens of its role and of the separator after it
_OF_TOOLS = 1_024  # tokens of the vendor's instructions about tools, besides their schemas


def count_tokens(text: str) -> int:
    """Returns the approximate number of tokens of a text: one for each four characters."""
    return -(-len(text) // 4)


def tokens_of(messages: Iterable[ChatMessage]) -> int:
    """Returns the approximate number of tokens of the messages: of their texts and tool calls."""
    return sum(
        count_tokens(each.text) + sum(count_tokens(call.name + call.arguments) for call in each.tool_calls)
        for each in messages
    )


def input_tokens_of(spec: RequestSpec) -> int:
    """Returns the approximate number of input tokens of a request: of its messages, tools and output schema."""
    return tokens_of(spec.messages) + sum(map(count_tokens, _schemas(spec)))


def most_tokens(text: str) -> int:
    """Returns an upper bound of the tokens that the text can have with the tokenizer of any vendor. Each byte counts as
    one token. Only lower-case letters and spaces count as half a token each, because tokenizers always join them at
    least in pairs.
    """
    data = text.encode(errors="replace")
    others = len(data.translate(None, _OFTEN_JOINED))
    return others + (len(data) - others + 1) // 2


def most_input_tokens(spec: RequestSpec) -> int:
    """Returns an upper bound of the input tokens of a request. All that is sent is counted, including reasoning that
    the vendor has sent earlier and needs again. Each image is counted with the constant IMAGE_TOKENS.
    """
    options = spec.options or {}  # may contain tools and schemas, by the vendor's names
    tokens = sum(map(most_tokens, _schemas(spec))) + (_OF_TOOLS if spec.tools or "tools" in options else 0)
    tokens += most_tokens(msgspec.json.encode(options).decode()) if options else 0
    for message in spec.messages:
        tokens += _OF_A_MESSAGE + most_tokens(message.text)
        if not isinstance(message.content, str):
            tokens += IMAGE_TOKENS * sum(isinstance(part, Image) for part in message.content)
        for call in message.tool_calls:
            tokens += _OF_A_MESSAGE + sum(map(most_tokens, (call.id, call.name, call.arguments)))
            tokens += sum(map(_most_kept, (call.vendor or {}).values()))
        tokens += most_tokens(message.tool_call_id) + sum(map(_most_kept, (message.vendor or {}).values()))
    return tokens


def _most_kept(kept: object) -> int:
    """Returns an upper bound of the number of tokens of an entry of `ChatMessage.vendor`. `kept` is either the data
    that the next request sends back to the vendor, or an int: the vendor then stores the data itself, and has
    reported this number of tokens.
    """
    return kept if type(kept) is int else most_tokens(msgspec.json.encode(kept).decode())


def _schemas(spec: RequestSpec) -> Iterator[str]:
    for each in spec.tools:
        yield msgspec.json.encode(each).decode()
    if spec.output is not None:
        yield msgspec.json.encode(spec.output).decode()
        yield spec.output_name
