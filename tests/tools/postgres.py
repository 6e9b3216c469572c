"""A PostgreSQL server for the tests, in a folder of its own, on a free port of loopback, as a user without rights. Its programs are
Debian's, or those of another version in the folder SABOT_POSTGRES_BIN (CONTRIBUTING.md).
"""

import contextlib
import functools
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tools.broker import free_ports
from tools.leftovers import leftovers

_END_MS = 60_000  # for a server's process to end


class PostgresMissing(Exception):
    """The programs are not installed."""


class Postgres:
    """`stop` and `start` keep port and data. settings: more of the server's, such as "fsync=on"; the last word counts.

    parent: of its folder, where that is not to be among the temporary files.
    """

    def __init__(self, *settings: str, parent: Path | None = None) -> None:
        if given := os.environ.get("SABOT_POSTGRES_BIN"):
            found = [Path(given) / "initdb"]
        else:
            found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        initdb = os.fspath(found[-1]) if found else shutil.which("initdb")
        if initdb is None:
            raise PostgresMissing("no PostgreSQL server: apt-get install postgresql")
        self._bin = Path(initdb).resolve().parent
        self._as_user = _someone_else() if os.geteuid() == 0 else {}
        self.folder = leftovers().folder(Path(tempfile.mkdtemp(prefix="sabot-postgres-", dir=parent)))
        if self._as_user:
            os.chown(self.folder, self._as_user["user"], self._as_user["group"])
        (self.port,) = free_ports(1)
        self.url = f"postgresql://sabot@127.0.0.1:{self.port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = settings
        self._run("initdb", "-D", "data", "-U", "sabot", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        self.start()

    def start(self) -> None:
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=40"]
        settings += ["wal_level=logical", "max_wal_senders=20", "max_replication_slots=20"]
        settings.append("dynamic_shared_memory_type=mmap")  # files in its folder, which go with it; not in /dev/shm
        settings += self._settings
        command = [self._bin / "postgres", "-D", "data", "-p", str(self.port)]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, *(word for setting in settings for word in ("-c", setting))],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as_user,
            )
        ready = [self._bin / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1", "-q"]
        while subprocess.run(ready, check=False).returncode:
            if self._process.poll() is not None:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self, *, kill: bool = False) -> None:
        """`kill`: the server ends at once, without a word to its clients, and recovers at its next start."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(3 if kill else 2)  # SIGQUIT: an immediate shutdown; SIGINT: a fast one
            process.wait(60)

    def remove(self) -> None:
        self.stop(kill=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        """A connection beside those of the code under test."""
        return psycopg.connect(self.url, autocommit=True)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The address of a new database."""
        name = f"d{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        yield self.url.replace("/postgres", f"/{name}")
        with self.connect() as connection:
            _end_slots(connection, name)
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def empty(self, url: str) -> None:
        """Removes what a test has left in a database: connections, slots, publications, and schemas with all that is in them."""
        with psycopg.connect(url, autocommit=True) as connection:
            _end_slots(connection, connection.info.dbname)
            others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            connection.execute(f"SELECT pg_terminate_backend(pid, {_END_MS}) {others}")
            for what, names in (
                ("PUBLICATION", "SELECT quote_ident(pubname) FROM pg_publication"),
                (
                    "SCHEMA",
                    "SELECT quote_ident(nspname) FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'",
                ),
            ):
                for (name,) in connection.execute(names).fetchall():
                    connection.execute(f"DROP {what} {name} CASCADE")
            connection.execute("CREATE SCHEMA public")

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._bin / program, *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **self._as_user,
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")


def _end_slots(connection: "psycopg.Connection[tuple[object, ...]]", database: str) -> None:
    """Drops the slots of a database, and ends who reads them."""
    slots = f"FROM pg_replication_slots WHERE database = '{database}'"
    connection.execute(f"SELECT pg_terminate_backend(active_pid, {_END_MS}) {slots} AND active")
    connection.execute(f"SELECT pg_drop_replication_slot(slot_name) {slots}")


def _someone_else() -> dict[str, object]:
    """The server refuses to run as root."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise PostgresMissing("no PostgreSQL server: no user to run it as")


@functools.cache
def shared_server() -> Postgres:
    """One server for all tests of the session. PostgresMissing where its programs are missing."""
    server = Postgres()
    leftovers().at_end(server.remove)
    return server


def server_or_skip() -> Postgres:
    """The shared server. A machine without one skips the test, or fails it with SABOT_REQUIRE_POSTGRES=1."""
    try:
        return shared_server()
    except PostgresMissing as missing:
        if os.environ.get("SABOT_REQUIRE_POSTGRES") == "1":
            pytest.fail(f"{missing} (SABOT_REQUIRE_POSTGRES=1)", pytrace=False)
        pytest.skip(str(missing))
