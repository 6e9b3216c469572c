"""A parser for the part of PromQL that the dashboard uses. It says which metrics an expression reads, and how."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<range>\[[^\]]*\])|(?P<number>\d+(?:\.\d+)?)"""
    r"""|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)|(?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^(){},=<>]))"""
)
RANGE = re.compile(r"\[(?:\$__rate_interval|\$__range|\d+[smhd])\]")
AGGREGATIONS = {"sum", "max", "min", "avg", "count", "topk"}
OVER_TIME = {"rate", "increase", "irate", "max_over_time"}
FUNCTIONS = {*OVER_TIME, "histogram_quantile", "clamp_min", "time", "abs"}


@dataclass
class Read:
    """A metric that an expression reads. `labels`: those that its matchers and the aggregations around it name. `inside`: the functions
    around it, the innermost first. `left`: the labels that the result has; None: all of the metric.
    """

    metric: str
    labels: set[str] = field(default_factory=set)
    inside: list[str] = field(default_factory=list)
    left: set[str] | None = None


class Parser:
    """Parses one expression, whole. Raises ValueError for anything else."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0

    def reads(self) -> list[Read]:
        found = self._expression()
        if self._at != len(self._tokens):
            raise ValueError(f"left over: {self._tokens[self._at :]}")
        return found

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._next()
        if not token or (wanted and token not in wanted):
            raise ValueError(f"{token!r} in the place of {wanted}")
        self._at += 1
        return token

    def _expression(self) -> list[Read]:
        found = self._operand()
        while self._next() in ("+", "-", "*", "/", "%", "^", "<", ">", "==", "!=", "<=", ">="):
            self._take()
            found += self._operand()
        return found

    def _operand(self) -> list[Read]:
        token = self._next()
        if token == "(":
            self._take()
            found = self._expression()
            self._take(")")
            return found
        if token == "-" or token[:1].isdigit():
            self._take()
            return self._operand() if token == "-" else []
        if token in AGGREGATIONS:
            return self._aggregation()
        if token in FUNCTIONS:
            return self._call()
        if not re.match(r"[a-zA-Z_:]", token):
            raise ValueError(f"{token!r} in the place of an expression")
        return [self._selector()]

    def _aggregation(self) -> list[Read]:
        name = self._take()
        by = self._labels() if self._next() == "by" else None
        found = self._arguments()
        if by is None and self._next() == "by":
            by = self._labels()
        for each in found:
            each.labels |= by or set()
            each.inside.append(name)
            each.left = by or set()
        return found

    def _labels(self) -> set[str]:
        self._take("by")
        self._take("(")
        found = {self._take()}
        while self._next() == ",":
            self._take()
            found.add(self._take())
        self._take(")")
        return found

    def _call(self) -> list[Read]:
        name = self._take()
        found = self._arguments()
        for each in found:
            if name in OVER_TIME and not any(word.startswith("[") for word in each.inside):
                raise ValueError(f"{name}({each.metric}) without a range")
            each.inside.append(name)
        return found

    def _arguments(self) -> list[Read]:
        self._take("(")
        found = [] if self._next() == ")" else self._expression()
        while self._next() == ",":
            self._take()
            found += self._expression()
        self._take(")")
        return found

    def _selector(self) -> Read:
        found = Read(self._take())
        if self._next() == "{":
            self._take()
            while self._next() != "}":
                found.labels.add(self._take())
                self._take("=", "!=", "=~", "!~")
                if not self._take().startswith('"'):
                    raise ValueError("a label is compared with no text")
                if self._next() == ",":
                    self._take()
            self._take("}")
        if self._next().startswith("["):
            if not RANGE.fullmatch(self._next()):
                raise ValueError(f"{self._next()} is no range")
            found.inside.append(self._take())
        return found


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while text[at:].strip():
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"not PromQL: {text[at:]!r}")
        yield match[0].strip()
        at = match.end()


def reads(text: str) -> list[Read]:
    """The metrics that an expression reads. Raises ValueError for an expression that this parser does not know."""
    return Parser(text).reads()
