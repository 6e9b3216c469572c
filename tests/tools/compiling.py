"""Compiles all tests as pytest would, with what their asserts say, in a process for each core: `python tests/tools/compiling.py`.

Each worker of a run imports every test, so in a fresh clone each would compile them all. pytest has no public name for that: what it
does when it loads a test is done here by its own functions. With a pytest that has other ones this fails, and the workers compile.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from py_compile import compile as compile_plain

import pytest
from _pytest.assertion import AssertionState, rewrite

TESTS = Path(__file__).parents[1]


class Compiling:
    """A plugin that does what it is there for before anything is collected."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        state = AssertionState(session.config, "rewrite")
        for path in self.paths:
            if not (path.name.startswith("test_") or path.name == "conftest.py"):
                compile_plain(str(path))
                continue
            stamp, code = rewrite._rewrite_test(path, session.config)
            folder = rewrite.get_cache_dir(path)
            folder.mkdir(exist_ok=True)
            rewrite._write_pyc(state, code, stamp, folder / (path.stem + rewrite.PYC_TAIL))


def compiled(paths: list[Path]) -> int:
    """The exit code of a pytest that collects nothing, and compiles these."""
    return pytest.main(
        ["-q", "--noconftest", "--collect-only", "-p", "no:cacheprovider", __file__], plugins=[Compiling(paths)]
    )


if __name__ == "__main__":
    largest_first = sorted(TESTS.rglob("*.py"), key=lambda path: -path.stat().st_size)
    with ProcessPoolExecutor(2) as pool:
        codes = list(pool.map(compiled, (largest_first[::2], largest_first[1::2])))
    sys.exit(set(codes) != {pytest.ExitCode.NO_TESTS_COLLECTED})
