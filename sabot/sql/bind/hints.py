"""The hints /*+ OPTIONS(…) */ of a table, and /*+ STATE_TTL(…) */ of a SELECT."""

import logging
from collections.abc import Mapping, Sequence

from sabot.base.config import parse_ms
from sabot.sql.scope import (
    Relation,
    at,
)
from sabot.sql.syntax.text import SqlFault, list_names
from sabot.sql.syntax.tree import (
    Call,
    Hint,
    JoinSource,
    SelectBody,
    TableName,
)
from sabot.sql.values import walk

_log = logging.getLogger(__name__)

_WAYS_TO_JOIN = ("BROADCAST", "SHUFFLE_HASH", "SHUFFLE_MERGE", "NEST_LOOP", "LOOKUP", "MULTI_JOIN")


def options_hint(table: TableName) -> Hint | None:
    """Returns the hint OPTIONS of a table in FROM. Raises SqlFault for any other hint there."""
    for hint in table.hints:
        if hint.name.text.upper() != "OPTIONS":
            raise SqlFault(hint.span, f"the hint {hint.name.text} is not supported", "OPTIONS('path' = 'other.json')")
        if len(table.hints) > 1:
            raise SqlFault(table.hints[1].span, "a table has one hint OPTIONS")
    return table.hints[0] if table.hints else None


def state_ttl(hints: Sequence[Hint]) -> dict[str, str]:
    """Returns the times of the hint STATE_TTL('a' = '1d'), by the alias of a table in lower case."""
    found: dict[str, str] = {}
    for hint in hints:
        if hint.name.text.upper() in _WAYS_TO_JOIN:
            _log.warning("the hint %s has no effect: it chooses how Flink joins", hint.name.text.upper())
            continue
        if hint.name.text.upper() != "STATE_TTL":
            raise SqlFault(hint.span, f"the hint {hint.name.text} is not supported", "there is STATE_TTL('a' = '1d')")
        for alias, time in hint.options:
            with at(hint.span):
                found[alias.lower()] = f"{parse_ms(time, name='STATE_TTL')}ms"
    return found


def check_ttl(ttl: Mapping[str, str], select: SelectBody, relation: Relation) -> None:
    """Raises SqlFault if the hint STATE_TTL names a table that FROM does not have. Warns where it has no effect, since the
    query neither joins tables nor groups rows.
    """
    known = {each.qualifier.lower(): each.qualifier for each in relation.fields if each.qualifier}
    for alias in ttl:
        if alias not in known:
            message = f'FROM has no table "{alias}"'
            raise SqlFault(select.hints[0].span, message, list_names(alias, known.values()))
        ranked = relation.ranking is not None or any(
            isinstance(each, Call) and each.over for each in walk(select.items)
        )
        if not isinstance(select.source, JoinSource) and not select.group and not ranked:
            _log.warning(
                "STATE_TTL('%s') has no effect: it bounds the rows of a join, and the keys of a GROUP BY and of first rows",
                known[alias],
            )
