"""What `make fuzz` runs for minutes under sanitizers, for a moment without them; and the inputs that once failed."""

import random
from pathlib import Path

import pytest
from targets import TARGETS

INPUTS = Path(__file__).with_name("inputs")


@pytest.mark.one_in(4, "a fifth of a second of a core each")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_are_refused_with_an_error_of_ours_or_read_as_python_reads_them(name: str) -> None:
    target = TARGETS[name]()
    for number in range(target.a_moment):
        target.check(target.make(random.Random(f"a moment/{name}/{number}")))
    assert any(map(target.check, target.seeds)), "not even what is valid is read"


@pytest.mark.parametrize("path", sorted(INPUTS.rglob("*.bin")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_inputs_that_once_failed_fail_no_more(path: Path) -> None:
    TARGETS[path.parent.name]().check(path.read_bytes())
