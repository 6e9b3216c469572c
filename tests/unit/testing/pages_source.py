"""A source of a REST API with a cursor, written from docs/connectors.md and docs/testing.md alone: `GET /rows?after=CURSOR&limit=N` has the
next rows and the cursor behind them, `POST /done?before=CURSOR` lets the service forget.
"""

import http.client
import json
import threading
import time
from urllib.parse import urlencode

import pyarrow as pa

from sabot import Batch, Source, UserError
from sabot.errors import TransientError


class PagesSource(Source):
    schema = None  # that of each object

    def __init__(self, host, schema):
        self.name, self.host = f"pages {host}", host
        self.schema = pa.schema(schema)
        self.client, self.memory = None, {}

    def recall(self, memory):
        self.memory = memory

    def open(self, positions, start="earliest"):
        self.close()
        self.next, self.cursor, self.cursors = 0, "", {}
        position = (positions or {}).get((self.name, 0))
        if position is not None:
            self.next, self.cursor = json.loads(self.memory[self.name, 0])
            if position != self.next:
                raise UserError(f"source {self.name}: position {position} is not {self.next}, that of its cursor")
        elif start != "earliest":
            raise UserError(f"source {self.name} cannot start at {start!r}", hint="earliest")
        self.client = http.client.HTTPConnection(self.host, timeout=10)
        self.rows(1)  # an error for a service that is not there, or has forgotten the cursor

    def rows(self, limit):
        return self.ask("GET", "/rows", after=self.cursor, limit=limit)

    def ask(self, method, path, **given):
        if self.client is None:
            raise UserError(f"source {self.name} is not open")
        self.client.request(method, f"{path}?{urlencode(given)}")
        answer = self.client.getresponse()
        body = answer.read()
        if answer.status != 200:
            kind = TransientError if answer.status >= 500 else UserError
            raise kind(f"source {self.name}: {answer.status} {answer.reason}")
        return json.loads(body)

    def read_batch(self, max_rows, timeout):
        until = time.monotonic() + timeout
        while not (found := self.rows(max_rows))["rows"]:
            if (left := until - time.monotonic()) <= 0:
                return None
            threading.Event().wait(min(left, 0.02))
        self.next, self.cursor = self.next + len(found["rows"]), found["next"]
        self.cursors[self.next] = self.cursor
        return Batch(pa.RecordBatch.from_pylist(found["rows"], self.schema), self.positions(), self.name)

    def positions(self):
        return {(self.name, 0): self.next}

    def remember(self):
        return {(self.name, 0): json.dumps([self.next, self.cursor]).encode()}

    def commit(self, positions):
        if (cursor := self.cursors.get(positions[self.name, 0])) is not None:
            self.ask("POST", "/done", before=cursor)
            self.cursors = {count: each for count, each in self.cursors.items() if count > positions[self.name, 0]}

    def close(self):
        if self.client is not None:
            self.client.close()
        self.client = None
