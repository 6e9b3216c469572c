"""Damaged inputs for every reader, with the kernels under AddressSanitizer and UBSan.

    python tests/fuzz/fuzz.py [--seconds 180] [--seed 1] [--targets parquet,arrow] [--plain]
    python tests/fuzz/fuzz.py --targets parquet --input build/fuzz/failed/parquet-1-7      one input again

Each target is a process of its own with its share of the seconds, which are those of the processor: what runs beside it takes no input
from it. Input n of a target is decided by the seed and n alone. A finding is an exception that is none of Sabot's, a report of a
sanitizer, an input that takes more than 20 s of the processor or a gigabyte, or an answer that is not Python's. It ends its target, is
printed with how to repeat it, and its input is kept in build/fuzz/failed.

--plain: the kernels as they are installed, without sanitizers. The last line is JSON; the status is 1 where something was found.
"""

import argparse
import faulthandler
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILT = ROOT / "build" / "sanitized"
OUT = ROOT / "build" / "fuzz"
INPUT_SECONDS = 20.0
INPUT_BYTES = 1 << 30
_STATE = struct.Struct("<qd")  # the number of the input, when it began


def main() -> int:
    """Runs the targets, as many side by side as there are cores."""
    asked = _arguments()
    if asked.worker:
        return _work(asked)
    names = asked.targets.split(",") if asked.targets else _all_targets()
    if asked.input:
        return subprocess.run(_command(asked, names[0], ["--input", asked.input]), env=_environment(asked)).returncode
    OUT.mkdir(parents=True, exist_ok=True)
    shares = _shares(names, asked.seconds)
    inputs: dict[str, int] = {}
    failed: list[str] = []
    began = time.monotonic()

    def run(name: str) -> dict[str, Any]:
        return _json_kernel(asked, shares[name]) if name == "json-kernel" else _run(asked, name, shares[name])

    with ThreadPoolExecutor(os.cpu_count()) as side_by_side:
        for name, figures in zip(names, side_by_side.map(run, names), strict=True):
            inputs[name] = figures.get("inputs", 0)
            print(f"{name:12} {'FAILED' if 'failed' in figures else 'ok':6} {json.dumps(figures)}", flush=True)
            if "failed" in figures:
                failed.append(name)
    print(
        json.dumps(
            {
                "seed": asked.seed,
                "seconds": round(time.monotonic() - began, 1),
                "inputs": sum(inputs.values()),
                "failed": failed,
            }
        )
    )
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="of the processor, of all targets, added up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", default="", help="names, with commas; all of them when not given")
    parser.add_argument("--start", type=int, default=0, help="the number of the first input")
    parser.add_argument("--input", default="", help="a file: this input alone")
    parser.add_argument("--plain", action="store_true", help="without sanitizers")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _all_targets() -> list[str]:
    sys.path[:0] = [str(ROOT), str(HERE.parent)]
    from targets import TARGETS

    return ["json-kernel", *TARGETS]


def _shares(names: list[str], seconds: float) -> dict[str, float]:
    """State has the most that can go wrong."""
    weights = {name: 3.0 if name == "state" else 1.0 for name in names}
    return {name: seconds * weight / sum(weights.values()) for name, weight in weights.items()}


def _command(asked: argparse.Namespace, name: str, more: list[str]) -> list[str]:
    plain = ["--plain"] if asked.plain else []
    return [
        sys.executable,
        str(HERE / "fuzz.py"),
        "--worker",
        "--targets",
        name,
        "--seed",
        str(asked.seed),
        *plain,
        *more,
    ]


def _environment(asked: argparse.Namespace) -> dict[str, str]:
    """PYTHONMALLOC, ARROW_DEFAULT_MEMORY_POOL: every buffer is one of malloc's, so that a read beyond it is seen."""
    environment = os.environ | {"PYTHONMALLOC": "malloc", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    if asked.plain:
        return environment | {"PYTHONPATH": str(ROOT)}
    if not (BUILT / "sabot").is_dir():
        raise SystemExit(f"{BUILT} is not there: `make fuzz` builds it")
    compiler = os.environ.get("CXX", "g++")
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return environment | {
        "PYTHONPATH": str(BUILT),
        "LD_PRELOAD": " ".join(os.path.realpath(path) for path in found),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2048:hard_rss_limit_mb=6000"
        ":quarantine_size_mb=64:handle_segv=1:abort_on_error=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def _run(asked: argparse.Namespace, name: str, seconds: float) -> dict[str, Any]:
    """One target in a process of its own, which is watched."""
    state, log = OUT / f"{name}.state", OUT / f"{name}.log"
    state.write_bytes(_STATE.pack(-1, 0.0))
    with log.open("wb") as output:
        more = ["--seconds", str(seconds), "--start", str(asked.start)]
        child = subprocess.Popen(_command(asked, name, more), env=_environment(asked), stdout=output, stderr=output)
        slow, last, before = "", -1, 0.0
        while child.poll() is None:
            time.sleep(0.1)
            number, began = _STATE.unpack(state.read_bytes())
            if number != last:
                last, before = number, _cpu_seconds(child.pid)
            elif number >= 0 and (
                _cpu_seconds(child.pid) - before > INPUT_SECONDS or time.time() - began > 9 * INPUT_SECONDS
            ):
                slow = f"input {number} took more than {INPUT_SECONDS:g} s"
                child.send_signal(signal.SIGUSR1)  # it says where it is
                time.sleep(0.5)
                child.kill()
                child.wait()
    text = log.read_text(errors="replace")
    if child.returncode == 0:
        figures: dict[str, Any] = json.loads(text.splitlines()[-1])
        return figures
    number, _ = _STATE.unpack(state.read_bytes())
    kept = OUT / "failed" / f"{name}-{asked.seed}-{number}"
    kept.parent.mkdir(exist_ok=True)
    if (OUT / f"{name}.now").exists():
        shutil.copyfile(OUT / f"{name}.now", kept)
    print(text[-6000:])
    print(f"{slow or f'status {child.returncode}'}: target {name}, seed {asked.seed}, input {number}; once more with")
    print(f"  python tests/fuzz/fuzz.py --targets {name} --input {kept.relative_to(ROOT)}")
    return {"inputs": number - asked.start, "failed": slow or _last_words(text)}


def _cpu_seconds(pid: int) -> float:
    """Of the process so far: on a machine that is busy with others an input may take long by the clock."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _last_words(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "ERROR: AddressSanitizer" in line or "runtime error" in line]
    return (told or lines or ["no word"])[-1][:200]


def _json_kernel(asked: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The fuzzer in C++, of the JSON kernel alone: a thousand times as many rows a second."""
    done = subprocess.run(
        [HERE / "run.sh", str(max(1, round(seconds))), str(asked.seed)], capture_output=True, text=True
    )
    if done.returncode:
        print(done.stderr[-6000:])
        return {"inputs": 0, "failed": f"tests/fuzz/run.sh ended with {done.returncode}"}
    figures = json.loads(done.stdout.splitlines()[-1])
    return {"inputs": figures["iterations"], "good": figures["rows"], "refused": figures["bad_rows"]}


def _work(asked: argparse.Namespace) -> int:
    """In the process of one target."""
    faulthandler.register(signal.SIGUSR1)
    sys.path[:0] = [str(HERE.parent)]
    if asked.plain:
        faulthandler.enable()  # else a sanitizer says more
        sys.path[:0] = [str(ROOT)]
    from targets import TARGETS

    target = TARGETS[asked.targets]()
    if asked.input:
        print("good" if target.check(Path(asked.input).read_bytes()) else "refused")
        return 0
    now = OUT / f"{target.name}.now"
    good = number = 0
    ended = time.process_time() + asked.seconds
    with (OUT / f"{target.name}.state").open("r+b") as file, mmap.mmap(file.fileno(), _STATE.size) as state:
        number = asked.start
        while time.process_time() < ended:
            data = target.make(random.Random(f"{asked.seed}/{target.name}/{number}"))
            now.write_bytes(data)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            state[:] = _STATE.pack(number, time.time())
            try:
                good += target.check(data)
            except BaseException:
                traceback.print_exc()
                return 1
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
            if grown > INPUT_BYTES:
                print(f"{len(data)} bytes of input took {grown >> 20} MiB of memory")
                return 1
            number += 1
    done = number - asked.start
    print(json.dumps({"inputs": done, "good": good, "refused": done - good}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
