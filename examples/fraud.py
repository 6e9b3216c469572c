"""The fraud demo's agents as a program of one's own: `sabot run examples.fraud:app`, with `--state DIR` to survive a kill -9."""

from sabot import App, Sink
from sabot.codecs.records import iterate_records
from sabot.demos.fraud.app import build
from sabot.demos.fraud.generator import FraudSource


class Printed(Sink):
    """A sink of one's own: each record as a line on the screen."""

    name = "screen"

    def open(self):
        """Nothing to open."""

    def write(self, batch):
        for record in iterate_records(batch.data, self.name):
            print(record.payload.decode(), flush=True)

    def flush(self):
        """Every line is out already."""

    close = flush


app = App("fraud", state="memory", checkpoint_interval="1s")
build(app, FraudSource(rows=200_000, seed=0), alerts=Printed())
