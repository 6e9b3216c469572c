"""The stream that test_followed_kill.py runs, as `sabot run followed_app:app`: rows of a folder that goes on, exactly once into files.

The environment: FOLLOWED_IN, the folder; FOLLOWED_OUT, the file that is written. Checkpoints come by the command line.
"""

import os

from sabot import App, NdjsonSink, files

app = App("followed")
rows = app.stream(files(os.environ["FOLLOWED_IN"], "ndjson", follow="0.05s"), schema={"n": "int64"})
rows.to(NdjsonSink(os.environ["FOLLOWED_OUT"]))
