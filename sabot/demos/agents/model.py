"""The model of the agents demo: it reads a conversation and answers by rules. `FakeModelServer` serves it over HTTP."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterable

from sabot.llm import ChatMessage, Completion, RequestSpec, ToolCall, Usage, assistant
from sabot.llm.token_counts import tokens_of

_SECONDS = 0.05  # the time of an answer, so that several requests are in flight at once
_ORDER = re.compile(r"\bo-\d+\b")
_PAYMENT = re.compile(r"\bpayment \d+\b")


class DemoModel:
    """A model that answers by rules.

    `keeps_back`: orders. The first answer that asks for the refund of one of them is made but never sent. `made`: the
    number of times that the answer to a request was made, by the request's digest. `used`: the tokens of all these
    answers; the vendor charges them, even if nobody got the answer. `kept_back`: the number of answers that were not
    sent.
    """

    def __init__(self, keeps_back: Iterable[str]) -> None:
        self.made: Counter[bytes] = Counter()
        self.used = Usage()
        self.kept_back = 0
        self._keeps_back = set(keeps_back)

    async def answer(self, spec: RequestSpec) -> Completion:
        """Returns the next message of this conversation."""
        await asyncio.sleep(_SECONDS)
        number = sum(each.role == "assistant" for each in spec.messages)
        message = self._next(spec.messages, f"call_{number}")
        usage = Usage(input_tokens=tokens_of(spec.messages), output_tokens=tokens_of([message]))
        self.made[spec.digest()] += 1
        self.used += usage
        for call in message.tool_calls:
            order = json.loads(call.arguments)["order"]
            if call.name == "refund" and order in self._keeps_back:
                self._keeps_back.discard(order)
                self.kept_back += 1
                await asyncio.Event().wait()
        return Completion(message=message, finish_reason="tool_calls" if message.tool_calls else "stop", usage=usage)

    def _next(self, messages: tuple[ChatMessage, ...], call_id: str) -> ChatMessage:
        last = messages[-1]
        if last.role == "user":
            if order := _ORDER.search(last.text):
                return assistant("", ToolCall(call_id, "look_up", json.dumps({"order": order[0]})))
            paid = [found[0] for each in messages if each.role == "tool" and (found := _PAYMENT.search(each.text))]
            return assistant(f"It was {paid[-1]}." if paid else "Nothing was given back.")
        if last.text.startswith("{"):
            order = json.loads(last.text)
            if order["state"] != "broken":
                return assistant(f"Your order is {order['state']}.")
            wanted = {"order": order["order"], "amount": order["amount"]}
            return assistant("", ToolCall(call_id, "refund", json.dumps(wanted)))
        made = _PAYMENT.search(last.text)
        return assistant(f"You have your money back: {made[0]}." if made else "We cannot give the money back.")
