"""What children write and read: bounded, counted, and never in their way."""

import asyncio
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.process.children import line, sh, state

from sabot.process import AgentConfig, Command, CommunicationError, LocalProcessRunner, Supervisor, streams
from tools.agent_tools import until

FLOOD = "head -c {} /dev/zero | tr '\\0' x"  # without an end of a line


@pytest.mark.parametrize(
    "count", [10_000_000, pytest.param(100_000_000, marks=pytest.mark.slow(reason="the flood of row 3.07"))]
)
async def test_a_child_that_floods_nobody_ends_and_the_newest_of_it_is_kept(supervisor: Supervisor, count: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = await supervisor.spawn(sh(f"{FLOOD.format(count)}; echo; echo the end", stderr="stdout"))
    assert (await child.wait()).success
    stdout = child.stdout
    assert stdout is not None
    kept = b""
    while piece := await stdout.read(1 << 24):
        kept += piece
    assert kept.endswith(b"x\nthe end\n")
    assert len(kept) == 1 << 20
    assert stdout.total_bytes == child.output_bytes == count + 9
    assert stdout.dropped_bytes == stdout.total_bytes - len(kept)
    assert stdout.at_end
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000, "KB: memory is level"


async def test_of_lines_that_were_dropped_no_half_one_is_given(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("seq 1 20000", output_bytes=1000))
    await child.wait()
    assert child.stdout is not None
    await until(lambda: child.stdout.total_bytes == 108_894)  # type: ignore[union-attr]
    lines = [int(each) async for each in child.stdout.lines()]
    assert lines == list(range(lines[0], 20001))
    assert child.stdout.dropped_bytes + sum(len(f"{each}\n") for each in lines) == 108_894


async def test_a_lossless_stream_holds_the_child_up_and_loses_nothing(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(Command(argv=["seq", "1", "30000"], lossless=True, output_bytes=10_000))
    await until(lambda: child.stdout.total_bytes >= 10_000 and state(child.pid) == "S")  # type: ignore[union-attr]
    assert child.stdout is not None
    assert child.stdout.total_bytes < 10_000 + (1 << 16)
    assert [int(each) async for each in child.stdout.lines()] == list(range(1, 30_001))
    assert child.stdout.dropped_bytes == 0
    assert (await child.wait()).success


async def test_a_line_that_is_longer_than_a_lossless_stream_is_refused(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh(FLOOD.format(100_000), lossless=True, output_bytes=10_000))
    with pytest.raises(CommunicationError, match="a line of the child is longer than 10000 bytes"):
        await line(child)
    child.kill()
    await child.wait()


async def test_a_line_that_is_longer_than_a_stream_is_told_once_and_left_out(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(
        sh(f"echo one; {FLOOD.format(300_000)}; echo; echo two; sleep 1000", output_bytes=10_000)
    )
    assert await line(child) == "one"
    with pytest.raises(
        CommunicationError, match="sh: stdout: a line of the child is longer than 10000 bytes"
    ) as raised:
        await line(child)
    assert "output_bytes=" in raised.value.hint
    assert await line(child) == "two"
    assert child.stdout is not None
    assert child.stdout.dropped_bytes == 300_001
    child.kill()
    await child.wait()


# -- of a reader that has begun nothing is lost without a word ----------------------------------------------------------------


@pytest.mark.parametrize(
    "count", [10_000_000, pytest.param(100_000_000, marks=pytest.mark.slow(reason="a long output"))]
)
async def test_who_reads_in_a_loop_misses_nothing(supervisor: Supervisor, count: int) -> None:
    """The loop of document 003, with all defaults: two thirds of 100 MB were dropped, and nobody said so."""
    async with LocalProcessRunner() as runner:
        script = FLOOD.format(count) + "; echo end >&2"
        handle = await runner.spawn(AgentConfig(name="a", model_backend="sh", task="x", arguments=("-c", script)))
        read = 0
        assert handle.child.stdout is not None
        while not handle.child.stdout.at_end:
            if (said := await handle.read_stdout()) is None:
                await asyncio.sleep(0.001)
            else:
                read += len(said)
                await asyncio.sleep(0)
        assert read == count
        assert (await handle.wait()).success
        assert await handle.read_stderr() == b"end\n"
        assert handle.child.stdout.dropped_bytes == 0


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets for how many seconds a full stream waits for its reader."""
    return lambda seconds: monkeypatch.setattr(streams, "_PATIENCE_SECONDS", seconds)


async def test_lines_of_who_is_slow_are_all_there(supervisor: Supervisor, patience: Callable[[float], None]) -> None:
    patience(60)  # else what a busy machine does not read in time is dropped
    child = await supervisor.spawn(sh("seq 1 3000", output_bytes=1000))
    assert child.stdout is not None
    seen = []
    async for each in child.stdout.lines():
        seen.append(int(each))
        await asyncio.sleep(0)
    assert seen == list(range(1, 3001))
    await child.wait()


async def test_who_reads_too_late_is_told_where_something_is_missing(
    supervisor: Supervisor, patience: Callable[[float], None]
) -> None:
    patience(0.02)
    child = await supervisor.spawn(sh("echo first; seq 1 30000; read x; echo last", output_bytes=1000))
    assert child.stdout is not None
    before = await child.stdout.read(6)
    assert before == b"first\n"
    await until(lambda: child.stdout.total_bytes == 6 + 168_894)  # type: ignore[union-attr]
    with pytest.raises(
        CommunicationError, match=r"sh: stdout: 167,894 bytes were dropped, .* 1,000 bytes are kept"
    ) as raised:
        await child.stdout.read()
    assert raised.value.hint.startswith("lossless=True")
    assert await child.stdout.read() == "".join(f"{each}\n" for each in range(29834, 30001)).encode()[-1000:]
    assert child.stdin is not None
    child.stdin.write(b"\n")
    assert await line(child) == "last"
    assert child.stdout.dropped_bytes == 167_894
    await child.wait()


async def test_who_has_read_once_and_then_waits_for_the_end_holds_no_child_up(
    supervisor: Supervisor, patience: Callable[[float], None]
) -> None:
    patience(0.02)
    child = await supervisor.spawn(sh(f"echo ready; {FLOOD.format(3_000_000)}", output_bytes=1000))
    assert await line(child) == "ready"
    assert (await child.wait()).success


async def test_half_of_a_pair_in_a_json_line_is_a_replacement_character(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh(r"""printf '%s\n' '["a\ud83d", "\ud83d\ude00"]'"""))
    assert child.stdout is not None
    assert await anext(child.stdout.json_lines()) == ["a\ufffd", "\U0001f600"]
    await child.wait()


async def test_json_lines_are_values_and_what_is_no_json_is_said(supervisor: Supervisor) -> None:
    script = """echo '{"a": 1}'; echo; echo Welcome; printf '[2]'"""
    child = await supervisor.spawn(sh(script))
    assert child.stdout is not None
    assert await anext(child.stdout.json_lines()) == {"a": 1}
    with pytest.raises(CommunicationError, match="the child's line is not JSON: 'Welcome'"):
        await anext(child.stdout.json_lines())
    assert await anext(child.stdout.json_lines()) == [2]
    await child.wait()


async def test_what_there_is_can_be_read_without_waiting(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("read x; echo got $x; read x"))
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.read_nowait() is None
    child.stdin.write(b"it\n")
    assert await child.stdout.read(3) == b"got"
    assert child.stdout.read_nowait() == b" it\n"
    assert child.stdout.read_nowait() is None
    child.stdin.close()
    await child.wait()
    await until(lambda: child.stdout.read_nowait() == b"")  # type: ignore[union-attr]


async def test_a_child_that_does_not_read_holds_its_writer_up_until_it_does(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    child = await supervisor.spawn(sh(f"while [ ! -e {go} ]; do sleep 0.01; done; wc -c"))
    assert child.stdin is not None
    child.stdin.write(b"x" * 1_000_000)
    assert not child.stdin.has_room
    go.touch()
    await child.stdin.drain()
    assert child.stdin.has_room
    child.stdin.close()
    assert await line(child) == "1000000"
    await child.wait()
    with pytest.raises(CommunicationError, match="stdin of the child is closed"):
        child.stdin.write(b"x")


async def test_a_child_that_closes_its_stdin_breaks_the_pipe_of_its_writer(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("exec <&-; echo closed; sleep 1000"))
    assert await line(child) == "closed"
    assert child.stdin is not None
    with pytest.raises(CommunicationError, match="stdin of the child is closed"):
        child.stdin.write(b"x")
    with pytest.raises(CommunicationError):
        await child.stdin.drain()
    assert not child.stdin.is_open
    child.kill()
    await child.wait()


async def test_who_waits_for_room_when_the_child_ends_is_told(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("sleep 1000"))
    assert child.stdin is not None
    child.stdin.write(b"x" * 1_000_000)
    child.kill()
    with pytest.raises(CommunicationError):
        await child.stdin.drain()
    await child.wait()


async def test_what_waits_for_a_child_is_bounded(supervisor: Supervisor) -> None:
    child = await supervisor.spawn(sh("sleep 1000"))
    assert child.stdin is not None
    child.stdin.write(bytes((64 << 20) + (1 << 17)))
    with pytest.raises(CommunicationError, match="wait for a child that does not read its stdin"):
        child.stdin.write(b"x")
    child.kill()
    await child.wait()
