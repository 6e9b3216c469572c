"""The model of these examples: by default a server in this process, which answers by a script. With SABOT_MODEL=gpt-4o-mini it is a real
one, whose key and address are OPENAI_API_KEY and OPENAI_BASE_URL; Ollama, without a key: OPENAI_BASE_URL=http://localhost:11434/v1"""

import os
from contextlib import contextmanager

from sabot.llm import OpenAIProvider
from sabot.testing import FakeModelServer


@contextmanager
def model(script):
    if name := os.environ.get("SABOT_MODEL"):
        yield OpenAIProvider(name)
        return
    with FakeModelServer(script) as server:
        yield OpenAIProvider("gpt-4o-mini", base_url=server.openai_url, api_key="none")
