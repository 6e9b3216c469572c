"""How soon a program has its first row: a process that imports Sabot, reads a file of --rows payments, and prints sums of minutes.

    python benchmarks/pipelines/start.py --repeat 9

    first_row_s   from the start of the interpreter to the first line printed; median
    import_s      of `from sabot import App` in a process of its own, the interpreter's start left out; median
    end_s         until the process has ended; median
    loaded        the packages of others that the program has imported, numpy left out

Checked: what was printed. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

PROGRAM = """
import sabot
from sabot import App, col, files, tumbling

app = App("start")
payments = app.stream(files("payments.csv"), time="ts", lateness="5s")
minutes = (
    payments.filter(col("amount") > 10)
    .key_by("account")
    .window(tumbling("1m"))
    .aggregate(payments=sabot.count(), total=sabot.sum("amount"))
)
minutes.select("account", "payments", "total").print()
"""
IMPORT = "import time; begin = time.perf_counter(); from sabot import App; print(time.perf_counter() - begin)"
LOADED = """
import json, sys
packages = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(json.dumps(sorted(name for name in packages if not name.startswith(("_", "sabot", "numpy")))))
"""


def printed(folder: Path, code: str) -> tuple[list[str], float, float]:
    """The lines that a process prints; the seconds until the first one, and until its end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SABOT_", "PYTHONDONT"))}
    command = [sys.executable, "-c", code]
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        first = time.perf_counter() - began
        lines += child.stdout
    if child.returncode:
        raise SystemExit(f"the program ended with {child.returncode}")
    return [line.rstrip() for line in lines], first, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sabot-start-") as place:
        folder = Path(place)
        rows = (f"a{n % 4},{50 + n}.0,{n * 120_000 // arguments.rows}\n" for n in range(arguments.rows))
        (folder / "payments.csv").write_text("account,amount,ts\n" + "".join(rows))
        *_, loaded = printed(folder, PROGRAM + LOADED)[0]  # it compiles too
        firsts, ends, imports = [], [], []
        for _ in range(arguments.repeat):
            lines, first, end = printed(folder, PROGRAM)
            counted = sum(int(line.split()[1]) for line in lines[1:-1])
            if counted != arguments.rows:
                raise SystemExit(f"{counted} payments of {arguments.rows}: {lines}")
            firsts.append(first)
            ends.append(end)
            imports.append(float(printed(folder, IMPORT)[0][0]))
    figures = {"first_row_s": median(firsts), "import_s": median(imports), "end_s": median(ends)}
    rounded = {name: round(figure, 4) for name, figure in figures.items()}
    print(json.dumps({"rows": arguments.rows, **rounded, "loaded": json.loads(loaded)}))


if __name__ == "__main__":
    main()
