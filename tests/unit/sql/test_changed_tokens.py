"""For each accepted statement of `logic/`, each token is deleted, or replaced by another one: the changed statement is
refused with an error of SQL, or its plan is another one, or the token is one without meaning.
"""

import re
import time

import pytest
from test_logic_files import RECORDS

from sabot import App
from sabot.api.nodes.node import walk
from sabot.api.nodes.read import Read
from sabot.connectors.rows import RowsSource
from sabot.sql.scope import node_of
from sabot.sql.syntax.text import SqlError, SqlText
from sabot.sql.syntax.tokens import tokens_of
from tools.sql_tables import given_tables, write_tables

CORPUS = list(
    dict.fromkeys(each.text for each in RECORDS if each.kind.startswith("query") and "TYPEOF" not in each.text)
)  # TYPEOF has the type of its argument, whatever the value
OTHERS = ("zzz", "7", "'q'", ",", ")")
MAY_GO = {
    "AS",
    "INNER",
    "OUTER",
    "ASC",
    "ALL",
    ";",
    "BOTH",
    "KEY",
    "ARRAY",
    "CROSS",
    "TABLE",
    "ROWS",
    "UNCONDITIONAL",
    "ASYMMETRIC",
}
"""Tokens without which a statement means the same."""

MAY_BE = {("t", "zzz"), ("u", "zzz"), ("v", "zzz"), ("IN", ","), ("'7'", "7"), ("less", "7"), ("TIMESTAMP", " ")}
MAY_BE |= {("PLACING", ","), ("FROM", ",")}
"""Tokens that another one may stand for: aliases that nothing else names, POSITION(a IN b), CAST('7' AS BIGINT), ORDER BY
of the seventh column, and a text that is compared with a time.
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("tables"))


def measures_of(node):
    """Returns the measures of a pattern, which its text leaves out."""
    return [(name, expr.text()) for name, expr in getattr(node, "measures", ())]


def meaning(folder, text):
    """Returns what a statement does: its steps, its columns with their types, and its constant rows."""
    app = App("tokens")
    stream = app.sql(text, **given_tables(app, folder))
    steps = [(type(node).__name__, node.text(), measures_of(node)) for node in walk([node_of(stream)])]
    sources = [node.source for node in walk([node_of(stream)]) if isinstance(node, Read)]
    rows = [source.log_id for source in sources if isinstance(source, RowsSource)]
    return steps, str(stream.schema), rows, [getattr(source, "name", source) for source in sources]


def check(folder, text, token, other, whole):
    changed = f"{text[: token.span.start]}{other}{text[token.span.end :]}"
    begun = time.perf_counter()
    try:
        found = meaning(folder, changed)
    except SqlError as error:
        found = str(error)
    assert not isinstance(found, str) or re.match(r"SQL:\d+:\d+: ", found), changed  # an error has its place
    may_be = str(token).upper() in MAY_GO or (text[token.span.start : token.span.end], other) in MAY_BE
    assert found != whole or may_be, f"{token} has no meaning in {text!r}: {changed!r} does the same"
    assert time.perf_counter() - begun < 60, changed


@pytest.mark.one_in(216, "a fifth of a second of a core each")
@pytest.mark.parametrize("text", CORPUS, ids=[text[:40] for text in CORPUS])
def test_a_token_that_is_deleted_is_missed_by_the_binder(folder, text):
    whole = meaning(folder, text)
    for token in tokens_of(SqlText(text))[:-1]:
        check(folder, text, token, " ", whole)


@pytest.mark.slow
@pytest.mark.parametrize("text", CORPUS, ids=[text[:40] for text in CORPUS])
def test_a_token_that_is_replaced_is_noticed_by_the_binder(folder, text):
    whole = meaning(folder, text)
    for token in tokens_of(SqlText(text))[:-1]:
        for other in OTHERS:
            if other != text[token.span.start : token.span.end]:
                check(folder, text, token, other, whole)
