"""`RequestContext`: it goes along with a call, through every layer."""

import pytest

from sabot.llm import ExecutionEngine, RequestContext, ScriptedProvider


def test_a_context_has_an_id_of_its_own_unless_one_is_given():
    assert RequestContext().request_id != RequestContext().request_id
    named = RequestContext(request_id="r", trace_id="t", tenant_id="a", user_id="u", session_id="s", job_id="j")
    assert (named.request_id, named.trace_id, named.tenant_id) == ("r", "t", "a")
    assert (named.user_id, named.session_id, named.job_id) == ("u", "s", "j")


def test_a_child_is_another_request_of_the_same_trace():
    first = RequestContext(request_id="r", tenant_id="a", session_id="s")
    child = first.child()
    assert child.request_id != "r"
    assert (child.parent_id, child.trace_id, child.tenant_id, child.session_id) == ("r", "r", "a", "s")
    grandchild = child.child()
    assert (grandchild.parent_id, grandchild.trace_id) == (child.request_id, "r")


def test_with_job_is_the_same_request_for_a_job():
    first = RequestContext(request_id="r")
    assert first.with_job("j") == RequestContext(request_id="r", job_id="j")
    assert first.job_id is None


@pytest.mark.parametrize("kind", ["complete", "stream", "embed", "complete_many"])
async def test_the_context_of_a_call_reaches_its_middleware(kind):
    seen = []

    async def look(call, forward):
        seen.append((call.kind, call.context))
        return await forward(call)

    context = RequestContext(request_id="r", tenant_id="a")
    async with ExecutionEngine(ScriptedProvider("yes"), middleware=[look]) as engine:
        match kind:
            case "stream":
                assert [piece async for piece in engine.stream("hello", context=context)]
            case "embed":
                await engine.embed(["hello"], context=context)
            case "complete_many":
                await engine.complete_many(["hello"], context=context)
            case _:
                await engine.complete("hello", context=context)
    assert seen == [("complete" if kind == "complete_many" else kind, context)]


async def test_a_call_without_a_context_gets_one():
    seen = []

    async def look(call, forward):
        seen.append(call.context.request_id)
        return await forward(call)

    async with ExecutionEngine(ScriptedProvider("yes"), middleware=[look]) as engine:
        await engine.complete("a")
        await engine.complete("b")
    assert len(set(seen)) == 2
