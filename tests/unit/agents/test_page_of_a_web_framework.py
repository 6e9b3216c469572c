"""The server of docs/how-to/agent-behind-a-web-framework.md answers whatever is sent to it with words, and never with a 500."""

import importlib
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

httpx2 = pytest.importorskip("httpx2")
pytest.importorskip("starlette")

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "agent-behind-a-web-framework.md"


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("desk", "support"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    support = importlib.import_module("support")
    async with support.lifespan(support.app):
        transport = httpx2.ASGITransport(app=support.app, raise_app_exceptions=True)
        async with httpx2.AsyncClient(transport=transport, base_url="http://site") as client:
            yield client
    for name in ("desk", "support"):
        sys.modules.pop(name, None)


BROKEN = [b"", b"{", b"\xff\xfe", b"{'text': 1}", b"[" * 100_000, b'{"key": ' + b"9" * 5_000 + b"}"]
WRONG = [
    (b"[]", "text is missing"),
    (b"5", "text is missing"),
    (b"null", "text is missing"),
    (b"{}", "text is missing"),
    (b'{"text": "x"}', "key is missing"),
    (b'{"text": "x", "key": 5}', "key is missing, or is no str"),
    (b'{"text": "x", "key": null}', "key is missing, or is no str"),
    (b'{"text": ["x"], "key": "k"}', "text is missing, or is no str"),
    (b'{"text": "x", "key": "\\ud800"}', "surrogates"),
    (b'{"text": "x", "key": "\\u0000"}', "the character NUL"),
    (b'{"text": "\\ud800", "key": "k"}', ""),
]


async def test_a_question_that_is_no_json_or_lacks_a_field_is_answered_with_words(site: Any) -> None:
    for body in BROKEN:
        said = await site.post("/jobs", content=body, headers={"customer": "ann"})
        assert (said.status_code, said.text) == (400, "the body is not JSON"), body[:20]
    for body, words in WRONG:
        said = await site.post("/jobs", content=body, headers={"customer": "ann"})
        assert said.status_code == 422, (body, said.text)
        assert words in said.text, said.text
    assert (await site.post("/jobs", content=b"{")).status_code == 403, "nobody is logged in"


async def test_an_answer_that_is_no_json_or_lacks_a_field_is_answered_with_words(site: Any) -> None:
    for body in BROKEN:
        assert (await site.post("/admin/answers", content=body, headers={"staff": "mo"})).status_code == 400, body[:20]
    for body, words in [
        (b"[]", "id is missing"),
        (b'{"id": 5, "approved": true}', "id is missing, or is no str"),
        (b'{"id": "x"}', "approved is missing"),
        (b'{"id": "x", "approved": "yes"}', "approved is missing, or is no bool"),
    ]:
        said = await site.post("/admin/answers", content=body, headers={"staff": "mo"})
        assert (said.status_code, words in said.text) == (422, True), said.text
    gone = await site.post("/admin/answers", content=b'{"id": "x", "approved": true}', headers={"staff": "mo"})
    assert gone.status_code == 404


async def test_ids_that_nobody_has_are_not_found(site: Any) -> None:
    for job in ("x", "~", "~~", "%00", "a~b", "~4", "%F0%9F"):
        assert (await site.get(f"/jobs/{job}/events", headers={"customer": "ann"})).status_code == 404, job
