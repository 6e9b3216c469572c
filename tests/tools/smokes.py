"""Runs benchmarks with few rows, and each once: their answers are checked, and not how fast they are.

    python tests/tools/smokes.py ROWS SCRIPT ...

Each script is a fork of this process, which has imported Sabot, and so are the interpreters that it starts: the imports were half of what
the scripts computed. What measures a start has interpreters of its own. The first script that fails ends the run, with its status.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from warm_starts import Asked, WarmStarts, run, warm_up

COLD = {"start.py"}
FORK = "_fork_exec"  # the name of the call by which subprocess starts all
ONCE = re.compile(r'"(--(?:passes|repeat|rounds))"')


def each(rows: str, scripts: list[str]) -> Asked:
    """Forks a process for each script, and waits for it. Returns in such a process, and in those that it starts, with what to run."""
    warm_up()
    used: dict[str, float] = {}
    for script in scripts:
        print(f"== {script}", flush=True)
        once = ONCE.search(Path(script).read_text())
        words = [script, "--rows", rows, *([once[1], "1"] if once else [])]
        child = os.fork()
        if child == 0:
            asked = None
            if Path(script).name not in COLD and sys.platform == "linux":
                starts = WarmStarts(vars(subprocess)[FORK])
                asked = starts.fork()
                vars(subprocess)[FORK] = starts.fork_exec
            return asked or (words, os.getcwd(), dict(os.environ), "")
        _, status, about = os.wait4(child, 0)
        if status:
            sys.exit(f"{' '.join(words)}: ended with {os.waitstatus_to_exitcode(status)}")
        used[Path(script).name] = about.ru_utime + about.ru_stime
    most = sorted(used.items(), key=lambda one: -one[1])[:5]
    print(f"{sum(used.values()):.0f} s of the processor:", *(f"{name} {seconds:.1f}" for name, seconds in most))
    sys.exit()


if __name__ == "__main__":
    run(*each(sys.argv[1], sys.argv[2:]))
