"""The streams that test_followed_kill.py runs, as `sabot run followed_app:app`: rows of a folder that goes on, exactly once into files.

The environment: FOLLOWED_IN, the folder; FOLLOWED_OUT, the file that is written; FOLLOWED_IN_WORDS_OF, python or sql.
Checkpoints come by the command line.
"""

import os

from sabot import App, NdjsonSink, files

folder, out = os.environ["FOLLOWED_IN"], os.environ["FOLLOWED_OUT"]
app = App("followed")
if os.environ["FOLLOWED_IN_WORDS_OF"] == "python":
    rows = app.stream(files(folder, "ndjson", follow="0.05s"), schema={"n": "int64"})
    rows.to(NdjsonSink(out))
else:
    app.sql(f"""
        CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{folder}', 'format' = 'json',
            'source.monitor-interval' = '50 ms');
        CREATE TABLE found (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{out}', 'format' = 'json',
            'sink.delivery-guarantee' = 'exactly-once');
        INSERT INTO found SELECT n FROM numbers;
    """)
