"""The page on operations: its commands, one after the other, print what stands below them."""

import re
from pathlib import Path

import pytest

from tools.command_line import sabot_does, sabot_says

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shape(text: str) -> "re.Pattern[str]":
    """A pattern that takes anything for …, and any number of spaces for some."""
    parts = [re.escape(" ".join(part.split())).replace(r"\ ", r"\s+") for part in text.split("…")]
    return re.compile(r"[\s\S]*?".join(parts) + r"\s*")


@pytest.mark.slow  # a second of a core, or more
def test_each_command_of_the_page_prints_what_stands_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(PAGE.read_text())
    (program,) = [text for kind, text in blocks if kind == "python"]
    (tmp_path / "shop.py").write_text(program)
    compared = 0
    for (kind, text), (next_kind, expected) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind != "sh" or " dlq " in text:  # those are run in tests/integration/test_dlq.py
            continue
        words = text.split()[1:]
        if words[0] == "run":  # signals are taken over: not in this process
            ran = sabot_does(tmp_path, *words)
            code, out, errors = ran.returncode, ran.stdout, ran.stderr
        else:
            done = sabot_says(*words)
            code, out, errors = done.exit_code, done.stdout, done.stderr
        assert code == 0, (text, errors)
        if next_kind == "text":
            compared += 1
            assert shape(expected).fullmatch(" ".join(out.split())), f"{text}\n{out}\n{expected}"
    assert compared == 9
    assert "a0" in (tmp_path / "totals.ndjson").read_text()
