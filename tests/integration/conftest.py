"""Servers of PostgreSQL for the tests beside them. A file whose tests need a database of another kind has a fixture of the same name."""

from collections.abc import Iterator

import pytest

from tools.postgres import Postgres, server_or_skip


@pytest.fixture(scope="module")
def server() -> Postgres:
    """The server of all tests."""
    return server_or_skip()


@pytest.fixture
def own_server(server: Postgres) -> Iterator[Postgres]:
    """One that a test may end."""
    own = Postgres()
    yield own
    own.remove()


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    """The address of a new database."""
    with server.database() as address:
        yield address
