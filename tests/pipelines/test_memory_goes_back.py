"""The memory of an app's state goes back to the system when its streams have ended."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sabot import App, Sink, files

class Dropped(Sink):
    name = "dropped"
    def open(self): pass
    def write(self, batch): pass
    def flush(self): pass
    def close(self): pass

def megabytes(name):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) >> 10

schema = pa.schema({"key": pa.int64(), "text": pa.string()})
with pa.OSFile(sys.argv[1], "wb") as out, pa.ipc.new_file(out, schema) as writer:
    for start in range(0, 400_000, 10_000):
        keys = pa.array(range(start, start + 10_000))
        writer.write_batch(pa.record_batch([keys, pc.binary_repeat("x", pc.add(pc.bit_wise_and(keys, 63), 150))], schema=schema))
before = megabytes("VmRSS")
app = App("memory", state="memory")
app.stream(files(sys.argv[1])).key_by("key").top_n(1, by="text").changelog().to(Dropped())
app.main()
print(before, megabytes("VmHWM"), megabytes("VmRSS"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process has in memory is read from /proc")
@pytest.mark.slow
def test_a_process_is_small_again_when_an_app_with_much_state_has_ended(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "rows.arrow")], capture_output=True, text=True, check=True
    )
    before, most, after = map(int, run.stdout.split())
    assert most - before > 100, "the state of 400,000 keys"
    assert after - before < (most - before) / 2
