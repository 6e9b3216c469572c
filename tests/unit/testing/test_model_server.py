"""The server in the place of models: what it answers, records, counts, and how it breaks. It is asked without the vendors' libraries."""

import asyncio
import http.client
import json
import socket
import threading

import pytest

from sabot.errors import UserError
from sabot.llm import MalformedAnswer, ModelTimeout, ModelUnavailable, RateLimited, ToolCall, Usage, assistant, user
from sabot.testing import FakeModelServer

PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
every = pytest.mark.parametrize("api", PATHS)


def body(api, text="hello", **fields):
    said = [{"role": "user", "content": text}]
    return {"model": "m", ("input" if api == "responses" else "messages"): said, "max_tokens": 9} | fields


def post(server, path, data, headers=()):
    """(status, headers, bytes). Raises what a broken connection is in http.client."""
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rsplit(":", 1)[1]), timeout=60)
    try:
        connection.request("POST", path, json.dumps(data), dict(headers))
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def ask(server, api, text="hello", **fields):
    return post(server, PATHS[api], body(api, text, **fields))


def text_of(api, answer):
    answer = json.loads(answer)
    match api:
        case "chat":
            return answer["choices"][0]["message"]["content"]
        case "responses":
            return answer["output"][0]["content"][0]["text"]
    return answer["content"][0]["text"]


@every
def test_what_no_document_describes_is_sent_as_the_script_gives_it(api):
    events = [{"type": "odd", "a": 1}, {"b": None}, "[DONE]", b"\xef\xbb\xbfdata: x\n\n"]
    with FakeModelServer([{"choices": None}, b"{", events, events]) as server:
        status, headers, whole = ask(server, api)
        assert (status, headers["content-type"], json.loads(whole)) == (200, "application/json", {"choices": None})
        assert ask(server, api)[2] == b"{"
        _, headers, streamed = ask(server, api, stream=True)
        assert headers["content-type"] == "text/event-stream"
        assert streamed == (
            b'event: odd\ndata: {"type": "odd", "a": 1}\n\ndata: {"b": null}\n\ndata: [DONE]\n\n\xef\xbb\xbfdata: x\n\n'
        )
        server.plan("truncate")
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask(server, api, stream=True)
        assert b'{"b": null}' in caught.value.partial
        assert b"DONE" not in caught.value.partial


@every
def test_a_request_is_answered_recorded_and_counted(api):
    with FakeModelServer(lambda spec: spec.messages[-1].text[::-1]) as server:
        status, headers, answer = post(
            server, PATHS[api], body(api, "abcdefgh"), {"Authorization": "Bearer k", "X-Tag": "1"}
        )
    assert (status, text_of(api, answer)) == (200, "hgfedcba")
    assert headers["x-request-id"] == headers["request-id"] == "req-1"
    request = server.requests[0]
    assert (request.number, request.api, request.stream, request.text, request.fault) == (1, api, False, "abcdefgh", "")
    assert request.spec.messages == (user("abcdefgh"),)
    assert request.headers["x-tag"] == "1"
    assert "authorization" not in request.headers
    assert (server.tokens, server.in_flight, server.most_in_flight) == (Usage(2, 2), 0, 1)


def test_a_connection_takes_one_request_after_the_other_also_in_parts():
    with (
        FakeModelServer("yes") as server,
        socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as it,
    ):
        data = json.dumps(body("chat")).encode()
        head = f"POST {PATHS['chat']} HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        for part in (head[:10], head[10:] + data[:5], data[5:] + head, data + head + data):
            it.sendall(part)
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 3 or not answers.endswith(b"}"):
            answers += it.recv(1 << 16)
        assert server.connections == 1
    assert len(server.requests) == 3


@every
def test_faults_that_are_planned_come_first_and_in_their_order(api):
    with FakeModelServer("yes", seconds=2.5) as server:
        server.plan("rate_limit", times=2)
        server.plan("error")
        server.plan("overloaded", seconds=7)
        found = [ask(server, api) for _ in range(5)]
    overloaded = 529 if api == "messages" else 503
    assert [status for status, _, _ in found] == [429, 429, 500, overloaded, 200]
    assert [headers["Retry-After"] for _, headers, _ in found] == ["2.5", "2.5", None, "7", None]
    assert [request.fault for request in server.requests] == ["rate_limit", "rate_limit", "error", "overloaded", ""]
    assert server.tokens == Usage(2, 1), "only the one answer"


@every
@pytest.mark.parametrize("fault", ["drop_before", "drop_after", "truncate"])
def test_faults_that_break_the_connection(api, fault):
    with FakeModelServer("yes yes") as server:
        server.plan(fault)
        with pytest.raises((ConnectionResetError, http.client.HTTPException)) as caught:
            ask(server, api)
        assert isinstance(caught.value, http.client.IncompleteRead) == (fault == "truncate")
        assert bool(server.tokens.output_tokens) == (fault != "drop_before")
        assert ask(server, api)[0] == 200


@every
def test_arguments_of_tools_break(api):
    with FakeModelServer(assistant("", ToolCall("c", "look", '{"city": "Rome"}'))) as server:
        server.plan("bad_arguments")
        _, _, answer = ask(server, api)
    assert b'\\"city\\"' in answer
    assert b"Rome" not in answer


@every
@pytest.mark.parametrize("way", ["plan", "script"])
def test_a_request_hangs_until_its_caller_goes(api, way):
    with FakeModelServer([ModelTimeout(""), "yes"] if way == "script" else "yes") as server:
        if way == "plan":
            server.plan("hang")
        data = json.dumps(body(api)).encode()
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as caller:
            caller.sendall(f"POST {PATHS[api]} HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
            server.wait(lambda: server.in_flight == 1 and server.requests)
        server.wait(lambda: server.in_flight == 0)
        assert server.abandoned == 1
        assert ask(server, api)[0] == 200


@every
def test_held_requests_wait_for_the_release(api):
    with FakeModelServer("yes") as server:
        server.hold()
        found = []
        callers = [threading.Thread(target=lambda: found.append(ask(server, api)[0])) for _ in range(3)]
        for caller in callers:
            caller.start()
        server.wait(lambda: server.in_flight == 3)
        assert found == []
        server.release()
        for caller in callers:
            caller.join()
    assert (found, server.most_in_flight) == ([200] * 3, 3)


def test_what_does_not_come_is_a_timeout():
    with FakeModelServer("yes") as server, pytest.raises(TimeoutError, match="0 requests, 0 in flight"):
        server.wait(lambda: bool(server.requests), timeout=0.01)


@every
def test_a_wrong_key_is_refused_and_costs_nothing(api):
    with FakeModelServer("yes", keys=("key-for-tests-1",)) as server:
        for headers in ({"Authorization": "Bearer key-for-tests-1"}, {"X-Api-Key": "key-for-tests-1"}):
            assert post(server, PATHS[api], body(api), headers)[0] == 200
        used = server.tokens
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": "wrong"}):
            assert post(server, PATHS[api], body(api), headers)[0] == 401
        assert server.tokens == used


def faults_of(shares, seed, texts):
    with FakeModelServer("yes", faults=shares, seed=seed, seconds=0.0) as server:
        for text in texts:
            ask(server, "chat", text)
        return {(request.text, request.fault) for request in server.requests}


def test_shares_of_faults_are_drawn_by_the_seed_whatever_the_order():
    texts = [f"text {number}" for number in range(40)]
    drawn = faults_of({"rate_limit": 0.3, "error": 0.2}, 7, texts)
    assert drawn == faults_of({"rate_limit": 0.3, "error": 0.2}, 7, texts[::-1])
    assert drawn != faults_of({"rate_limit": 0.3, "error": 0.2}, 8, texts)
    assert {fault for _, fault in drawn} == {"", "rate_limit", "error"}


def test_faults_that_there_are_none_of_are_refused():
    for wrong in ({"slower": 0.1}, {"hang": 0.7, "slow": 0.7}, {"hang": -0.1}):
        with pytest.raises(UserError, match="faults of a model server"):
            FakeModelServer("yes", faults=wrong)
    with FakeModelServer("yes") as server, pytest.raises(UserError, match="one of rate_limit"):
        server.plan("slower")


@every
@pytest.mark.parametrize("stream", [False, True])
def test_a_script_that_has_ended_is_raised_at_the_end(api, stream):
    server = FakeModelServer(["one"])
    assert ask(server, api, stream=stream)[0] == 200
    status, _, answer = ask(server, api, stream=stream)
    assert status == 400
    assert b"has 1 answers" in answer
    with pytest.raises(UserError, match="has 1 answers"):
        server.__exit__(None, None, None)


def test_an_error_of_a_rule_is_raised_at_the_end_unless_the_test_has_its_own():
    def rule(spec):
        raise AssertionError(f"not {spec.messages[0].text}")

    server = FakeModelServer(rule)
    ask(server, "chat")
    server.__exit__(KeyError, KeyError("the test's own"), None)
    with pytest.raises(AssertionError, match="not hello"):
        server.__exit__(None, None, None)


@every
def test_a_request_that_is_none_is_refused(api):
    with FakeModelServer("yes") as server:
        assert post(server, PATHS[api], {"model": "m"})[0] == 400
        assert post(server, PATHS[api], [1])[0] == 400
        assert post(server, "/v1/nowhere", {})[0] == 404
        assert post(server, "/v1/embeddings", {"model": "m"})[0] == 400
        assert server.requests == []
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as caller:
            caller.sendall(b"HELO\r\n\r\n")
            assert caller.recv(1 << 16).startswith(b"HTTP/1.1 400")


@every
def test_an_answer_can_be_no_json(api):
    with FakeModelServer(MalformedAnswer("", text="<html>")) as server:
        assert ask(server, api)[2] == b"data: <html>\n\n"


@every
def test_a_stream_ends_in_the_middle_where_the_script_says(api):
    with FakeModelServer(("One ", ModelUnavailable("gone"))) as server:
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask(server, api, stream=True)
        assert b"One " in caught.value.partial
        assert ask(server, api)[0] == 500, "what is not streamed has no middle"


def test_a_stopped_server_starts_again_at_its_address():
    server = FakeModelServer("yes")
    url = server.url
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(server, "chat")
    server.start()
    server.start()
    assert (ask(server, "chat")[0], server.url) == (200, url)
    server.stop()


async def test_it_serves_the_loop_of_a_test():
    with FakeModelServer(RateLimited("slow down")) as server:
        status, _, _ = await asyncio.to_thread(ask, server, "chat")
    assert status == 429


@pytest.mark.parametrize("packed", [False, True])
def test_vectors(packed):
    with FakeModelServer("", dimensions=4) as server:
        fields = {"encoding_format": "base64"} if packed else {}
        status, _, answer = post(server, "/v1/embeddings", {"model": "m", "input": ["aaaa", "b"], **fields})
        server.plan("drop_after")
        with pytest.raises((ConnectionResetError, http.client.HTTPException)):
            post(server, "/v1/embeddings", {"model": "m", "input": "aaaa"})
    rows = json.loads(answer)["data"]
    assert (status, [row["index"] for row in rows]) == (200, [0, 1])
    assert len(rows[0]["embedding"]) == (24 if packed else 4)
    assert (server.tokens, [request.api for request in server.requests]) == (Usage(3), ["embeddings"] * 2)
    assert [request.texts for request in server.requests] == [("aaaa", "b"), ("aaaa",)]
