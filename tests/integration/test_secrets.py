"""The address of a PostgreSQL database with its password: it gets in, and comes out nowhere."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from typer.testing import CliRunner

from sabot import App, NdjsonSource, SqlSink
from sabot.cli import commands
from sabot.errors import SabotError, UserError
from tools.postgres import server_or_skip
from tools.secrets_planted import leaks, planted, printed

PASSWORD = planted("#?:%;'&=!")
"""What libpq takes unencoded, as people write it."""


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    """host:port/database of a server that asks the user `locked` for the password."""
    server = server_or_skip()
    rules = server.folder / "data" / "pg_hba.conf"
    before = rules.read_text()
    with server.database() as url:
        name = url.rpartition("/")[2]
        with server.connect() as connection:
            quoted = psycopg.sql.Literal(PASSWORD).as_string(connection)
            connection.execute(f"CREATE ROLE locked LOGIN PASSWORD {quoted}")  # type: ignore[arg-type]
            connection.execute(f"ALTER DATABASE {name} OWNER TO locked")  # type: ignore[arg-type]
            rules.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{before}")
            connection.execute("SELECT pg_reload_conf()")
        yield f"127.0.0.1:{server.port}/{name}"
        with server.connect() as connection:
            rules.write_text(before)
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(f"ALTER DATABASE {name} OWNER TO sabot")  # type: ignore[arg-type]
    with server.connect() as connection:
        connection.execute("DROP ROLE locked")


def rows(folder: Path) -> NdjsonSource:
    (folder / "rows.ndjson").write_text("".join(json.dumps({"id": n, "x": n * n}) + "\n" for n in range(50)))
    return NdjsonSource(str(folder / "rows.ndjson"))


@pytest.mark.parametrize("encoded", [False, True], ids=["as it is", "percent-encoded"])
def test_rows_get_in_with_the_password_and_it_comes_out_nowhere(
    encoded: bool, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    password = quote(PASSWORD, safe="") if encoded else PASSWORD.replace("%", "%25")
    sink = SqlSink(f"postgresql://locked:{password}@{place}", f"alerts_{encoded}".lower())
    app = App("vault", state=str(tmp_path / "state"))
    app.stream(rows(tmp_path), schema={"id": "int64", "x": "int64"}).to(sink)
    seen: list[object] = [app.graph(), repr(sink), sink.address]
    with caplog.at_level(logging.DEBUG):
        asyncio.run(app.run())
    seen += [app.statistics(), app.agent_runtime.runner.watch.metrics.text(), caplog.text]
    for words in ("checkpoints list", "checkpoints show", "checkpoints show --json", "checkpoints verify"):
        done = CliRunner().invoke(commands.cli, [*words.split(), str(tmp_path / "state")])
        assert done.exit_code == 0, done.output
        seen.append(done.output)
    assert app.statistics()["delivery"], "delivered exactly once, through a lane"
    assert leaks(*seen, tmp_path, whole=(PASSWORD,)) == []
    with psycopg.connect(f"postgresql://locked:{quote(PASSWORD, safe='')}@{place}") as connection:
        assert connection.execute(f"SELECT count(*) FROM {sink.name}").fetchone() == (50,)  # type: ignore[arg-type]
        held = connection.execute("SELECT * FROM sabot_tokens").fetchall()
    assert held
    assert leaks(held) == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://locked:{wrong}@{place}", "authentication failed"),
        ("postgresql://locked:{wrong}@127.0.0.1:1/db?connect_timeout=2", "refused"),
        ("postgresql://locked:{wrong}@{place}?sslmode=nonsense", "sslmode"),
        ("postgresql://locked:{wrong}@{place}?connect_timeout=nonsense", "nonsense"),
        ("postgresql://locked:{wrong}@{place}?sslkey=/nowhere&sslpassword={wrong}&sslmode=require", "SSL"),
        ("postgresql://locked:{wrong}@{place}-no", "failed"),
    ],
)
def test_a_connection_that_fails_says_why_and_not_with_which_password(
    url: str, says: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = planted("#!:*")
    sink = SqlSink(url.format(wrong=wrong, place=place), "alerts")
    with caplog.at_level(logging.DEBUG), pytest.raises(SabotError, match=says) as caught:
        sink.open()
    assert leaks(printed(caught.value), caplog.text, sink.address, whole=(wrong,)) == []


@pytest.mark.parametrize("between", ["@", "/", "@/", "/@#", "/?", "1/", "?a=b/"])
def test_a_password_that_has_to_be_encoded_is_refused_with_how_it_is_written(between: str, place: str) -> None:
    """libpq takes what follows an @ for the host, and says it when it does not find it."""
    wrong = planted(between)
    with pytest.raises(UserError, match="%40") as caught:
        SqlSink(f"postgresql://locked:{wrong}@{place}", "alerts")
    assert leaks(printed(caught.value), whole=(wrong,)) == []


@pytest.mark.slow  # a second of a core
def test_a_program_that_cannot_log_in_prints_no_password_at_debug(place: str, tmp_path: Path) -> None:
    wrong = planted("#:")
    (tmp_path / "program.py").write_text(
        f"from sabot import App, NdjsonSource, SqlSink\napp = App('a', state='state', restart='none')\n"
        f"app.stream(NdjsonSource('rows.ndjson')).to(SqlSink('postgresql://locked:{wrong}@{place}', 'alerts'))\n"
    )
    rows(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "from sabot.cli import main; main()", "run", "program:app", "--loglevel", "debug"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "authentication failed" in done.stderr
    assert leaks(done.stdout, done.stderr, tmp_path / "state", whole=(wrong,)) == []
