"""How files of SQLite are opened, and what their errors become."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sabot.base.sqlite_files import HELD, error_of, hint_of_file, is_held, open_database
from sabot.errors import TransientError, UserError


def test_a_database_that_another_connection_holds_is_an_error_that_may_pass(tmp_path: Path) -> None:
    path = tmp_path / "a file?.db"
    with closing(open_database(path, wait_s=1)) as holder, closing(open_database(path, wait_s=0.01)) as other:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError) as caught:
            other.execute("BEGIN IMMEDIATE")
    assert is_held(caught.value)
    error = error_of(caught.value, "memory m.db", wait_s=0.01)
    assert isinstance(error, TransientError)
    assert (error.message, error.hint) == ("memory m.db: another process has held it for 0.01 s", HELD)


def test_a_path_that_begins_with_two_slashes_names_a_file_and_no_host(tmp_path: Path) -> None:
    """`sqlite:////data/a.db` is such a path, and SQLite takes what stands behind `file://` for a host."""
    open_database(Path(f"/{tmp_path}/a.db"), wait_s=1).close()
    assert (tmp_path / "a.db").exists()


def test_any_other_error_is_the_users_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("this is no database of SQLite, but a text of some length")
    with pytest.raises(sqlite3.DatabaseError) as caught:
        open_database(tmp_path / "no.db", wait_s=1).execute("SELECT * FROM sqlite_master")
    error = error_of(caught.value, "cache no.db", wait_s=1, hint="remove the file")
    assert isinstance(error, UserError)
    assert (error.message, error.hint) == ("cache no.db: file is not a database", "remove the file")


def test_a_file_that_cannot_be_a_database_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    """It was "file is not a database", and nothing more."""
    (tmp_path / "text.db").write_text("this is no database of SQLite, but a text of some length" * 9)
    with closing(open_database(tmp_path / "damaged.db", wait_s=1)) as whole:
        whole.execute("CREATE TABLE t (n)")
        whole.executemany("INSERT INTO t VALUES (?)", [("x" * 100,)] * 1000)
    whole_bytes = (tmp_path / "damaged.db").read_bytes()
    (tmp_path / "damaged.db").write_bytes(whole_bytes[:4096] + b"\xff" * (len(whole_bytes) - 4096))
    (tmp_path / "folder.db").mkdir()
    for name, hint in {
        "text.db": "give the path of a database of SQLite, or one at which no file is",
        "damaged.db": "go back to a copy",
        "folder.db": "the path of a folder",
        "missing/x.db": "its folder has to be there",
    }.items():
        with pytest.raises(sqlite3.DatabaseError) as caught:
            open_database(tmp_path / name, wait_s=1).execute("SELECT sum(n) FROM t")
        assert hint in error_of(caught.value, name, wait_s=1).hint
    assert hint_of_file(sqlite3.OperationalError("near SELECT: syntax error")) == ""


def test_readers_and_the_writer_of_a_write_ahead_log_do_not_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with (
        closing(open_database(path, wait_s=1, write_ahead=True)) as writer,
        closing(open_database(path, wait_s=1, mode="ro")) as reader,
    ):
        writer.execute("CREATE TABLE t (n)")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO t VALUES (1)")
        assert reader.execute("SELECT * FROM t").fetchall() == []
        writer.execute("COMMIT")
        assert reader.execute("SELECT * FROM t").fetchall() == [(1,)]


def test_a_file_that_is_missing_is_made_only_where_that_is_wanted(tmp_path: Path) -> None:
    for mode in ("ro", "rw"):
        with pytest.raises(sqlite3.OperationalError):
            open_database(tmp_path / "new.db", wait_s=1, mode=mode)
    open_database(tmp_path / "new.db", wait_s=1).close()
    assert (tmp_path / "new.db").exists()
