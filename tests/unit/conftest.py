"""Options of the unit tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=["memory", "rocksdb"], help="run the tests of this state backend only")
