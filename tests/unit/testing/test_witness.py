"""A witness knows what has happened, whatever becomes of those who asked for it."""

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sabot import UserError
from sabot.testing import SideEffect, Witness, WitnessClient, WitnessFailed
from tools.leftovers import started

ORDER = {"order": "o-1", "amount": 12.5}


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    with Witness(tmp_path / "witness.db", seconds=0.0) as witness:
        yield witness


def ask(witness: Witness, way: str, *words: Any, **options: Any) -> Any:
    """`do` or `find`, by the one client or the other."""
    name = {"do": "do_async", "find": "find_async"}[way.split()[0]]
    if way.endswith("async"):
        return asyncio.run(getattr(witness.client, name)(*words, **options))
    return getattr(witness.client, way)(*words, **options)


def eventually(condition: Any, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_a_witness_says_what_happened_and_how_often(witness: Witness) -> None:
    client = witness.client
    assert client.do("refund", ORDER, key="k1") == {"number": 1, "name": "refund", "arguments": ORDER, "key": "k1"}
    client.do("mail", "dear customer")
    client.do("refund", {"amount": 12.5, "order": "o-1"}, key="k2")
    client.do("refund", ORDER | {"order": "o-2"})
    again = witness.effects()[2]
    assert again == SideEffect(3, "refund", ORDER, "k2", again.at)
    assert abs(again.at - time.time()) < 60
    assert witness.twice() == witness.twice("refund") == [again]
    assert witness.twice("mail") == []
    assert witness.count("refund", ORDER) == 2
    assert witness.count("refund", {"order": "o-3"}) == 0
    assert witness.names() == {"refund": 3, "mail": 1}
    assert witness.requests() == {"done": 4}


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("way", ["", " async"])
def test_keys_are_honoured_where_it_was_asked_for(tmp_path: Path, way: str) -> None:
    with Witness(tmp_path / "honours.db", honours_keys=True) as honours, Witness(tmp_path / "not.db") as not_:
        for witness in (honours, not_):
            assert ask(witness, "find" + way, "kä/1") is None
            first = ask(witness, "do" + way, "refund", ORDER, key="kä/1")
            second = ask(witness, "do" + way, "refund", ORDER, key="kä/1")
            assert ask(witness, "find" + way, "kä/1") == first
            assert (second == first) is (witness is honours)
            ask(witness, "do" + way, "refund", ORDER)
            ask(witness, "do" + way, "refund", ORDER)
        assert honours.requests() == {"done": 3, "repeated": 1}
        assert not_.requests() == {"done": 4}
        with pytest.raises(WitnessFailed, match="used for another effect") as refused:
            ask(honours, "do" + way, "refund", {"order": "o-2"}, key="kä/1")
        assert refused.value.status == 422
        assert honours.count("refund", {"order": "o-2"}) == 0


@pytest.mark.one_in(8, "a tenth of a second of a core each")
@pytest.mark.parametrize("whose", ["request", "plan", "seed"])
@pytest.mark.parametrize(
    ("fault", "error", "happens"),
    [
        ("slow", None, True),
        ("late", None, True),
        ("fail_before", 503, False),
        ("fail_after", 500, True),
        ("drop_before", ConnectionError, False),
        ("drop_after", ConnectionError, True),
    ],
)
def test_a_request_goes_wrong_before_or_after_its_effect(
    tmp_path: Path, fault: Any, error: Any, happens: bool, whose: str
) -> None:
    options = {"fault": fault} if whose == "request" else {}
    with Witness(tmp_path / "w.db", seconds=0.0, faults={fault: 1.0} if whose == "seed" else {}) as witness:
        for way in ("do", "do async"):
            order = ORDER | {"way": way}
            if whose == "plan":
                witness.client.plan(fault, "refund")
                ask(witness, way, "mail")
            if error is None:
                assert ask(witness, way, "refund", order, **options)["arguments"] == order
            else:
                with pytest.raises(WitnessFailed if isinstance(error, int) else error) as raised:
                    ask(witness, way, "refund", order, **options)
                assert getattr(raised.value, "status", ConnectionError) == error
            assert witness.count("refund", order) == happens
            if whose != "seed":
                ask(witness, way, "refund", order)
                assert witness.count("refund", order) == happens + 1, "the fault was that of one request"
        assert witness.requests("refund")[fault] == 2


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("way", ["do", "do async"])
def test_a_request_that_comes_after_its_deadline_changes_nothing(witness: Witness, way: str) -> None:
    now = time.time()
    with pytest.raises(WitnessFailed, match="came after its deadline") as refused:
        ask(witness, way, "refund", ORDER, deadline=now - 1)
    assert refused.value.status == 410
    ask(witness, way, "refund", ORDER, deadline=now + 3600)
    assert witness.count("refund", ORDER) == 1
    assert witness.requests() == {"expired": 1, "done": 1}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("way", ["do", "do async"])
@pytest.mark.parametrize(("fault", "happened"), [("slow", False), ("late", True)])
def test_who_does_not_wait_for_an_answer_does_not_know(witness: Witness, fault: Any, happened: bool, way: str) -> None:
    timeout = 2.0 if happened else 0.2  # a busy machine may take a moment to send it
    with pytest.raises(TimeoutError):
        ask(witness, way, "refund", ORDER, fault=fault, seconds=3600.0, timeout=timeout)
    if happened:
        assert eventually(lambda: witness.count("refund", ORDER) == 1)  # its witness may not have had a core yet
    else:
        assert witness.count("refund", ORDER) == 0


def test_an_effect_happens_though_its_caller_has_gone(witness: Witness) -> None:
    body = json.dumps(ORDER).encode()
    with socket.create_connection(("127.0.0.1", int(witness.url.rpartition(":")[2]))) as caller:
        head = f"POST /effects/refund HTTP/1.1\r\nContent-Length: {len(body)}\r\nWitness-Fault: slow\r\n\r\n"
        caller.sendall(head.encode() + body)
    assert eventually(lambda: witness.count("refund", ORDER) == 1)


def test_a_request_that_did_not_come_whole_makes_no_effect(witness: Witness) -> None:
    with socket.create_connection(("127.0.0.1", int(witness.url.rpartition(":")[2]))) as caller:
        caller.sendall(b"POST /effects/refund HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}")
        caller.shutdown(socket.SHUT_WR)
        assert caller.recv(1000) == b""
    assert witness.requests() == {}


@pytest.mark.slow  # half a second of a core
def test_the_same_seed_gives_the_same_faults_in_any_order(tmp_path: Path) -> None:
    shares = {"fail_before": 0.2, "fail_after": 0.2, "drop_after": 0.1}

    def outcomes(name: str, seed: int, orders: list[int]) -> dict[int, list[str]]:
        async def one(client: WitnessClient, order: int) -> str:
            try:
                await client.do_async("refund", order)
            except (WitnessFailed, ConnectionError) as error:
                return type(error).__name__ + str(getattr(error, "status", ""))
            return "done"

        async def all_of_them(client: WitnessClient) -> dict[int, list[str]]:
            rounds = [await asyncio.gather(*(one(client, order) for order in orders)) for _ in range(2)]
            return {order: [each[at] for each in rounds] for at, order in enumerate(orders)}

        with Witness(tmp_path / name, faults=shares, seed=seed) as witness:
            return asyncio.run(all_of_them(witness.client))

    first = outcomes("first", 7, list(range(60)))
    assert outcomes("second", 7, list(range(60))[::-1]) == first
    assert outcomes("third", 8, list(range(60))) != first
    seen = list(itertools.chain(*first.values()))
    assert set(seen) == {"done", "WitnessFailed503", "WitnessFailed500", "ConnectionResetError"}
    assert 40 <= seen.count("done") <= 80


def test_every_one_of_many_calls_at_once_is_recorded(witness: Witness) -> None:
    async def all_of_them() -> None:
        calls = (witness.client.do_async("refund", order, fault="late", seconds=0.2) for order in range(200))
        numbers = [answer["number"] for answer in await asyncio.gather(*calls)]
        assert sorted(numbers) == list(range(1, 201))

    asyncio.run(all_of_them())
    assert sorted(effect.arguments for effect in witness.effects()) == list(range(200))


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("kill", [False, True])
def test_a_witness_that_is_stopped_goes_on_where_it_was(witness: Witness, kill: bool) -> None:
    url, client = witness.url, witness.client
    client.do("refund", ORDER)
    witness.stop(kill=kill)
    assert witness.pid is None
    with pytest.raises(ConnectionRefusedError):
        client.do("refund", ORDER)
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(client.do_async("refund", ORDER))
    assert witness.count("refund", ORDER) == 1
    witness.start()
    witness.start()
    assert witness.url == url
    assert client.do("refund", ORDER)["number"] == 2


MAKER = """
import os, signal, sys, time
from sabot.testing import Witness

witness = Witness(sys.argv[1], keep=sys.argv[2] == "keep")
fork = os.fork()
if not fork:
    witness.stop()                      # is not the fork's to stop
    witness.client.do("refund", "of the fork")
    signal.pause()
while not witness.count("refund", "of the fork"):
    time.sleep(0.01)
print(witness.pid, fork, witness.url, flush=True)
signal.pause()
"""


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("keep", ["", "keep"])
def test_a_witness_ends_with_its_maker_unless_it_is_to_be_kept(tmp_path: Path, keep: str) -> None:
    path = tmp_path / "w.db"
    words = [sys.executable, "-c", MAKER, str(path), keep]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as maker:
        assert maker.stdout is not None
        pid, fork, url = maker.stdout.readline().split()
        client = WitnessClient(url)
        client.do("refund", ORDER)
        maker.kill()
    try:
        if keep:
            assert client.do("refund", ORDER)["name"] == "refund"
            os.kill(int(pid), signal.SIGTERM)
        assert eventually(lambda: not started(int(pid)))
        assert started(int(fork))
        with Witness(path) as witness:
            assert witness.count("refund", "of the fork") == 1
            assert witness.count("refund", ORDER) == (2 if keep else 1)
    finally:
        os.kill(int(fork), signal.SIGKILL)


@pytest.mark.one_in(8, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("POST", "/effects/refund", {}, b'{"order": "o-9"}', 200),
        ("POST", "/effects/refund", {}, b"{", 400),
        ("POST", "/effects/refund", {"Witness-Fault": "explode"}, b"{}", 400),
        ("POST", "/effects/refund", {"Witness-Seconds": "soon"}, b"{}", 400),
        ("POST", "/effects/refund", {"Witness-Deadline": "soon"}, b"{}", 400),
        ("POST", "/effects/refund", {"Transfer-Encoding": "chunked"}, None, 400),
        ("POST", "/effects/", {}, b"{}", 404),
        ("POST", "/plan", {}, b'{"fault": "explode"}', 400),
        ("POST", "/plan", {}, b"[]", 400),
        ("GET", "/effects", {}, None, 400),
        ("GET", "/effects?key=nobody", {}, None, 404),
        ("DELETE", "/effects/refund", {}, None, 404),
    ],
)
def test_any_client_of_http_can_ask_and_is_told_what_was_wrong(
    witness: Witness, method: str, path: str, headers: dict[str, str], body: bytes | None, status: int
) -> None:
    request = urllib.request.Request(witness.url + path, body, headers, method=method)
    if status == 200:
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["arguments"] == {"order": "o-9"}
    else:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == status
        assert json.load(refused.value)["error"]
        refused.value.close()
    assert witness.names() == ({"refund": 1} if status == 200 else {})


def test_bytes_that_are_no_request_are_refused(witness: Witness) -> None:
    for sent in (
        b"\r\n\r\n",
        b"POST /effects/refund HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"x" * 100_000 + b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", int(witness.url.rpartition(":")[2]))) as caller:
            caller.sendall(sent)
            assert caller.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert witness.requests() == {}


def test_wrong_use_says_what_to_do(tmp_path: Path, witness: Witness) -> None:
    for faults in ({"explode": 0.1}, {"late": 0.6, "slow": 0.6}, {"late": -0.1}):
        with pytest.raises(UserError, match="faults of a witness"):
            Witness(tmp_path / "other.db", faults=faults)
    with pytest.raises(UserError, match="is not the address of a witness"):
        WitnessClient("localhost")
    with pytest.raises(UserError, match="idempotency key"):
        witness.client.do("refund", key="a\r\nWitness-Fault: late")
