"""How many tokens a request has to read, without asking its provider.

count_tokens, tokens_of, tokens_asked   by rule of thumb: for rates, and for what scripted models say
most_tokens_asked                       no fewer than a provider counts, so that what is reserved of a budget is not exceeded
"""

from collections.abc import Iterable, Iterator

import msgspec

from sabot.llm.messages import ChatMessage, Image
from sabot.llm.spec import RequestSpec

IMAGE_TOKENS = 50_000
"""That a picture may have at most with the models of OpenAI and Anthropic, whatever its size, which an address does not tell. The most is
48,169, of gpt-4o-mini (2,833, and 5,667 for each of at most 8 tiles); others count up to 10,000. Not by the model: a request may end at
another one, by `fallback=` or a rule that degrades.
"""

_OFTEN_JOINED = b"abcdefghijklmnopqrstuvwxyz "
_OF_A_MESSAGE = 16  # its role, and what stands between it and the next one
_OF_TOOLS = 1_024  # what a vendor tells a model about tools, besides their schemas


def count_tokens(text: str) -> int:
    """Tokens by rule of thumb: four characters each."""
    return -(-len(text) // 4)


def tokens_of(messages: Iterable[ChatMessage]) -> int:
    """Those of the texts and of the calls of tools, by rule of thumb."""
    return sum(
        count_tokens(each.text) + sum(count_tokens(call.name + call.arguments) for call in each.tool_calls)
        for each in messages
    )


def tokens_asked(spec: RequestSpec) -> int:
    """What a request has to read, by rule of thumb."""
    return tokens_of(spec.messages) + sum(map(count_tokens, _schemas(spec)))


def most_tokens(text: str) -> int:
    """As many tokens as the text may have at most, by how vendors cut texts: no token is less than a byte, and small letters and spaces,
    which make words, are two to a token even where they make none.
    """
    data = text.encode(errors="replace")
    others = len(data.translate(None, _OFTEN_JOINED))
    return others + (len(data) - others + 1) // 2


def most_tokens_asked(spec: RequestSpec) -> int:
    """As many tokens as a request may have to read at most: of all that is sent, so also of reasoning that its vendor gets back. A picture
    counts IMAGE_TOKENS.
    """
    options = spec.options or {}  # tools and schemas may be in them, by the vendor's names
    tokens = sum(map(most_tokens, _schemas(spec))) + (_OF_TOOLS if spec.tools or "tools" in options else 0)
    tokens += most_tokens(msgspec.json.encode(options).decode()) if options else 0
    for message in spec.messages:
        tokens += _OF_A_MESSAGE + most_tokens(message.text)
        if not isinstance(message.content, str):
            tokens += IMAGE_TOKENS * sum(isinstance(part, Image) for part in message.content)
        for call in message.tool_calls:
            tokens += _OF_A_MESSAGE + sum(map(most_tokens, (call.id, call.name, call.arguments)))
        tokens += most_tokens(message.tool_call_id) + sum(map(_most_kept, (message.vendor or {}).values()))
    return tokens


def _most_kept(kept: object) -> int:
    """Of what a vendor gets back with a message: JSON, or how many tokens of it the vendor itself keeps."""
    return kept if type(kept) is int else most_tokens(msgspec.json.encode(kept).decode())


def _schemas(spec: RequestSpec) -> Iterator[str]:
    for each in spec.tools:
        yield msgspec.json.encode(each).decode()
    if spec.output is not None:
        yield msgspec.json.encode(spec.output).decode()
        yield spec.output_name
