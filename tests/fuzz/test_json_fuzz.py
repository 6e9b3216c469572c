"""The fuzzer of the JSON kernel is built and run for a moment; run.sh runs it for as long as one likes."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.sh")


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A C++ compiler whose programs run under AddressSanitizer and UBSan."""
    name = os.environ.get("CXX", "c++")
    if shutil.which(name) is None:
        pytest.skip(f"there is no C++ compiler {name!r}")
    program = tmp_path_factory.mktemp("compiler") / "program"
    built = subprocess.run(
        [name, "-std=c++17", "-fsanitize=address,undefined", "-x", "c++", "-", "-o", program],
        input="int main() { return 0; }",
        capture_output=True,
        text=True,
    )
    if built.returncode or subprocess.run([program], capture_output=True).returncode:
        pytest.skip(f"{name} has no AddressSanitizer: {built.stderr[:200]}")
    return name


@pytest.mark.slow
def test_random_rows_neither_break_the_json_kernel_nor_make_its_ways_disagree(compiler, tmp_path):
    environment = os.environ | {"CXX": compiler, "FUZZ_BUILD": str(tmp_path)}
    run = subprocess.run([RUN, "3", "11"], env=environment, capture_output=True, timeout=300)
    assert run.returncode == 0, run.stderr.decode(errors="backslashreplace")
    figures = json.loads(run.stdout)
    assert figures["rows"] > figures["bad_rows"] > 0
