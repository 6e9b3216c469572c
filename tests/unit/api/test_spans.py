"""Where spans of event time end: what a row at exactly that time belongs to."""

import pytest

import sabot
from sabot import App, files, session, tumbling


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("column", "want", "step"),
    [
        # what is over after a span is over when it has passed to the millisecond: the row of that time begins anew
        ("n", [1, 1], lambda s, o: s.key_by("k").window(session("1s")).aggregate(n=sabot.count())),
        ("x", [1, 2], lambda s, o: s.key_by("k").deduplicate(within="1s")),
        ("n", [1, 1], lambda s, o: s.key_by("k").aggregate(n=sabot.count(), ttl="1s")),
        ("n", [1, 1], lambda s, o: s.key_by("k").window(tumbling("1s")).aggregate(n=sabot.count())),
        # how far rows may be from each other includes that far
        ("x", [1, 2], lambda s, o: s.join(o, on="k", between=("-1s", 0))),
        ("y", [1, 1], lambda s, o: s.join_asof(o, on="k", tolerance="1s", how="left")),
        ("n", [1, 2], lambda s, o: s.key_by("k").over(preceding="1s", n=sabot.count())),
        ("n", [1], lambda s, o: s.key_by("k").pattern(two_within_a_second(), n=sabot.step("a").count())),
    ],
    ids=["session", "deduplicate", "ttl", "tumbling", "between", "tolerance", "preceding", "pattern"],
)
def test_where_a_span_of_exactly_its_length_ends(tmp_path, column, want, step):
    """docs/streams.md says it of each."""
    (tmp_path / "rows.csv").write_text("k,x,ts\na,1,0\na,2,1000\n")
    (tmp_path / "other.csv").write_text("k,y,ts\na,1,0\n")
    app = App("spans")
    rows, other = (app.stream(files(tmp_path / f"{name}.csv"), time="ts") for name in ("rows", "other"))
    assert step(rows, other).collect()[column].to_pylist() == want


def two_within_a_second():
    return sabot.pattern("a", sabot.col("x") == 1).then("b", sabot.col("x") == 2).within("1s")
