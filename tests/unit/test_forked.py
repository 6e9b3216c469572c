"""Children that the user's code makes by fork, as multiprocessing does on Linux: they are none of the app's, and hold nothing of it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sabot.base.disk import TemporaryFolder, remove_abandoned
from sabot.connectors.files.exactly_once import Ledger
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.runtime.life.signals import StopSignals
from sabot.engine.state.files import claim_directory

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@contextmanager
def forked() -> Iterator[int]:
    """A child that lives until it is killed, at the latest at the end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"1")  # what a fork brings with it is over
        signal.pause()
        os._exit(7)
    try:
        assert os.read(reader, 1) == b"1"
        yield child
    finally:
        os.close(reader)
        os.close(writer)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def storage_of(folder: Path) -> Callable[[], None]:
    storage = CheckpointStorage(folder)
    storage.lock()
    return storage.unlock


def database_of(folder: Path) -> Callable[[], None]:
    return claim_directory(folder / "db").release


def ledger_of(folder: Path) -> Callable[[], None]:
    held = Ledger(folder / "token").held(create=True)
    held.__enter__()
    return lambda: held.__exit__(None, None, None)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("own", [storage_of, database_of, ledger_of])
def test_a_child_that_outlives_the_job_does_not_hold_its_locks(
    own: Callable[[Path], Callable[[], None]], tmp_path: Path
) -> None:
    """Each restart was refused as long as it lived, naming a process that was gone."""
    let_go = own(tmp_path)
    with forked():
        let_go()
        own(tmp_path)()


def test_a_child_does_not_keep_the_temporary_folder_of_a_process_that_is_gone(tmp_path: Path) -> None:
    folder = TemporaryFolder("sabot-test-", tmp_path)
    with forked():
        folder._mark.close()  # as when its process is killed
        remove_abandoned(tmp_path, "sabot-test-")
        assert not folder.path.exists()


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_child_as_it_would_without_an_app(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that it stops in good order, and lived on: Process.terminate() did nothing, and who waited for it waited for ever."""
    asked = []
    monkeypatch.setattr(StopSignals, "_holder", None)  # a command line that ran in this process has them for good
    before = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        with StopSignals.held() as signals:
            signals._stops.append(lambda: asked.append("stop"))
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(writer, b"1")
                signal.pause()
                os._exit(7)
            assert os.read(reader, 1) == b"1"
            os.kill(child, number)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status)
            assert os.WTERMSIG(status) == number
            assert signals.first == 0
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert asked == []
