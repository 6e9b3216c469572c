"""Models and durable agents of a program in SQL."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, files
from sabot.llm import ExecutionEngine, ScriptedProvider
from sabot.sql.syntax.text import SqlError
from sabot.testing import FakeModelServer

ROWS = {"id": [1, 2, 3, 4], "text": ["abcc", "", None, "c"], "n": [3, None, 5, 7], "k": [1, 1, 2, 2]}


@pytest.fixture
def app(tmp_path):
    pq.write_table(pa.table(ROWS), tmp_path / "t.parquet")
    app = App("registered", parallelism=2)
    app.register("t", app.stream(files(str(tmp_path / "t.parquet"))))
    return app


def rows(app, text):
    return sorted(app.sql(text).materialize().collect().to_pylist(), key=str)


def test_a_model_adds_its_answers(app):
    engine = ExecutionEngine(ScriptedProvider(lambda spec: spec.messages[-1].content.upper()))
    app.register("shout", engine, output="loud")
    text = "SELECT id, loud FROM TABLE(ML_PREDICT(TABLE t, MODEL shout, DESCRIPTOR(text)))"
    assert rows(app, text) == [
        {"id": 1, "loud": "ABCC"},
        {"id": 2, "loud": ""},
        {"id": 3, "loud": None},
        {"id": 4, "loud": "C"},
    ]
    with pytest.raises(SqlError, match="there is no model shoot"):
        app.sql(text.replace("shout", "shoot"))
    with pytest.raises(SqlError, match="a model reads texts"):
        app.sql(text.replace("(text)", "(n)"))


MODEL = """
CREATE MODEL mood INPUT (text STRING) OUTPUT (label STRING, score DOUBLE)
    WITH ('provider' = 'openai', 'model' = 'any', 'endpoint' = '{url}', 'api-key' = 'key', 'task' = 'text_generation',
          'system-prompt' = 'Label it.', 'temperature' = '0.5', 'max-tokens' = '50', 'budget.tokens' = '100000');
"""


def test_a_declared_model_is_asked_with_its_options(app):
    with FakeModelServer(lambda spec: json.dumps({"label": spec.messages[-1].text, "score": 0.5})) as server:
        app.sql(MODEL.format(url=server.openai_url))
        assert app.sql("SHOW MODELS").to_pydict() == {"model name": ["mood"]}
        text = (
            "SELECT id, label, score FROM TABLE(ML_PREDICT(TABLE t, MODEL mood, DESCRIPTOR(text))) WHERE id IN (1, 4)"
        )
        assert rows(app, text) == [{"id": 1, "label": "abcc", "score": 0.5}, {"id": 4, "label": "c", "score": 0.5}]
        asked = server.requests[0].body
    assert (asked["temperature"], asked["model"]) == (0.5, "any")
    assert 50 in asked.values()
    assert asked["messages"][0]["content"].startswith("Label it.")
    with pytest.raises(SqlError, match="there is a function or a model mood already"):
        app.sql(MODEL.format(url="http://localhost"))
    app.sql("DROP MODEL mood; DROP MODEL IF EXISTS mood")
    with pytest.raises(SqlError, match="there is no model mood"):
        app.sql("DROP MODEL mood")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CREATE MODEL m OUTPUT (a STRING) WITH ('model' = 'x')", "model m needs the option 'provider'"),
        ("CREATE MODEL m OUTPUT (a STRING) WITH ('provider' = 'opnai')", "'provider' cannot be 'opnai'"),
        ("CREATE MODEL m OUTPUT (a STRING) WITH ('provider' = 'openai', 'api-key' = 'k')", "needs the option 'model'"),
        ("CREATE MODEL m INPUT (a INT) OUTPUT (b STRING) WITH ('provider' = 'openai')", "a model reads texts"),
        ("CREATE MODEL m INPUT (a STRING) WITH ('provider' = 'openai')", "model m has no OUTPUT"),
        (MODEL.replace("'max-tokens' = '50'", "'max-tokens' = 'few'"), "'max-tokens' is a number, and 'few' is none"),
        (MODEL.replace("'task'", "'tsak'"), "there is no option 'tsak'"),
    ],
)
def test_a_wrong_model_is_refused_where_it_is_declared(app, text, message):
    with pytest.raises(SqlError, match=message):
        app.sql(text.replace("{url}", "http://localhost:1"))


def test_the_results_of_a_durable_agent_are_a_table(tmp_path):
    app = App("durable", state=str(tmp_path / "state"))
    app.register("t", app.stream(pa.table(ROWS)))

    @app.agent(durable=True, job_id="id")
    async def doubled(ctx):
        return {"id": ctx.message["id"], "twice": 2 * ctx.message["n"]}

    app.sql(f"""
        CREATE TABLE results (id BIGINT, twice BIGINT) WITH ('connector' = 'agent', 'agent' = 'doubled');
        CREATE TABLE out (id BIGINT, more BIGINT) WITH ('connector' = 'files', 'path' = '{tmp_path}/out.parquet');
        INSERT INTO doubled SELECT id, n FROM t WHERE n IS NOT NULL;
        INSERT INTO out SELECT id, twice + 1 FROM results WHERE twice > 6;
    """)
    app.main()
    assert sorted(pq.read_table(tmp_path / "out.parquet").to_pylist(), key=str) == [
        {"id": 3, "more": 11},
        {"id": 4, "more": 15},
    ]
