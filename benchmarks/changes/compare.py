"""What a change costs whole programs: each of the main lines runs with another commit and with this checkout, by turns.

    make bench-compare BASE=<commit>                                   five pairs of each line, about 20 minutes
    make bench-compare BASE=<commit> ROUNDS=9 LINES="start nexmark json 1"    some of them: a line by its name, or several
                                                                       by the first words of theirs: "start nexmark"

The other commit is unpacked and built in build/compare; both run the benchmarks of this checkout, with the packages of its environment.
Where the other commit cannot run one, since it lacks a name that the benchmark imports or an option of it, each runs the benchmark
of its own commit, and the line says so: look then whether the two do the same work.
In every second pair this checkout begins, so a machine that becomes slower favours neither. A figure is a cost: lower is better. Printed
of each: the medians, the median of the pairs' ratios (this checkout by the other) and their least and greatest, and in which share of the
pairs this checkout was slower; of each line its processor time, children's among it, and its peak memory. Slower is what costs more than
3 % in the median, and costs more in four pairs of five; the exit code is 1 then. Other work on the machine spoils wall clocks first:
where only these differ and the processor's time does not, measure again on a quiet one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "build" / "compare"
LIMIT, MOST = 1.03, 0.8
QUERIES = ("q0", "q4", "q7", "q9", "q16", "q20")

Result = dict[str, Any]


class Line(NamedTuple):
    """`costs` reads the figures from the last line of the command, of which lower is better. `kafka`: it needs a broker."""

    command: list[str]
    costs: Callable[[Result], Mapping[str, float]]
    kafka: bool = False


def at(*path: str) -> Callable[[Result], float]:
    def read(result: Result) -> float:
        value: Any = result
        for name in path:
            value = value[name]
        return float(value)

    return read


def costs(**figures: Callable[[Result], float]) -> Callable[[Result], Mapping[str, float]]:
    return lambda result: {name: read(result) for name, read in figures.items()}


def per(rate: Callable[[Result], float]) -> Callable[[Result], float]:
    """Microseconds of one of what the rate counts."""
    return lambda result: 1e6 / rate(result)


def nexmark(form: str, threads: int) -> Line:
    command = ["-m", "benchmarks.nexmark", "--events", "1000000", "--format", form, "--parallelism", str(threads)]
    return Line(
        [*command, "--queries", ",".join(QUERIES)],
        lambda result: {f"{each['query']} seconds": each["seconds"] for each in result["queries"]},
    )


KAFKA = "benchmarks/pipelines/kafka_ingest.py"
READ = "sabot-sqlite read"
UNSAFE = "sabot-sqlite unsafe"
LINES = {
    "start": Line(["benchmarks/pipelines/start.py"], costs(first_row_s=at("first_row_s"), import_s=at("import_s"))),
    "txn_windows": Line(["benchmarks/pipelines/txn_windows.py", "--rows", "2000000"], costs(seconds=at("seconds"))),
    **{f"nexmark {form} {threads}": nexmark(form, threads) for form in ("json", "parquet") for threads in (1, 2)},
    "record_agent": Line(
        ["benchmarks/pipelines/record_agent.py", "--rows", "300000"], costs(us_a_record=per(at("rows_per_s")))
    ),
    "effects": Line(
        ["benchmarks/agents/effects.py", "--rows", "20000"],
        costs(
            read_us=per(at(READ, "effects_per_s")),
            read_cpu_us=per(at(READ, "effects_per_cpu_s")),
            unsafe_us=per(at(UNSAFE, "effects_per_s")),
            unsafe_cpu_us=per(at(UNSAFE, "effects_per_cpu_s")),
        ),
    ),
    "steps": Line(
        ["benchmarks/agents/steps.py"], costs(plain_cpu_us=at("plain_cpu_us"), guarded_cpu_us=at("guarded_cpu_us"))
    ),
    "parked": Line(
        ["benchmarks/agents/parked.py", "--rows", "10000", "--wakes", "300"],
        costs(
            us_to_park=per(at("parked_per_s")),
            wake_p50_ms=at("wake_p50_ms"),
            restart_s=at("restart_s"),
            bytes_each=at("bytes_each"),
        ),
    ),
    "mcp_calls": Line(
        ["benchmarks/agents/mcp_calls.py", "--rows", "400", "--rounds", "3"],
        costs(pool_p50_ms=at("pool_p50_ms"), tool_p50_ms=at("tool_p50_ms"), tool_cpu_ms=at("tool_cpu_ms")),
    ),
    "processes": Line(
        ["benchmarks/agents/processes.py", "--rows", "100"],
        costs(first_ms=at("first_ms"), spawn_p50_ms=at("spawn_p50_ms"), warm_answer_p50_ms=at("warm_answer_p50_ms")),
    ),
    "kafka": Line(
        [KAFKA, "--rows", "1000000", "--rounds", "1", "--kinds", "bound", "source", "windows", "--peers"],
        costs(count_us=per(at("source", "rows_per_s")), windows_us=per(at("windows", "rows_per_s"))),
        kafka=True,
    ),
}


# -- the other commit --------------------------------------------------------------------------------------------------


def unpacked(base: str) -> tuple[str, Path]:
    """The hash of the commit, and the folder with its package, built."""
    commit = git("rev-parse", "--verify", f"{base}^{{commit}}").strip()
    tree = PLACE / commit[:12]
    if not (tree / "built").exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "x"], cwd=tree, input=archive, check=True)
        print(f"building {commit[:12]} in {tree.relative_to(ROOT)}", flush=True)
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        built = subprocess.run(
            build, cwd=tree, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if built.returncode:
            sys.exit(built.stdout)
        (tree / "built").touch()
    return commit, tree


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def copied() -> Path:
    """A folder with the package of this checkout, as the other commit's is unpacked: in a tree of git each process asks git for its
    version, which takes 20 ms.
    """
    tree = PLACE / "here"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "sabot", tree / "sabot", ignore=shutil.ignore_patterns("__pycache__"))
    return tree


def benchmarks(tree: Path) -> Path:
    """A folder with the benchmarks of a tree and no package beside them: what a program imports is then that of $PYTHONPATH."""
    folder = PLACE / "benchmarks" / tree.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tree / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").symlink_to(tree / "tests")  # some start servers as the tests do
    (folder / "tools").symlink_to(tree / "tools")
    return folder


# -- runs --------------------------------------------------------------------------------------------------------------


def run(line: Line, tree: Path, cwd: Path) -> dict[str, float]:
    """The costs of one run. Raises RuntimeError with what it has written if it fails, as with a wrong answer."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the first run compiles
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen([sys.executable, *line.command], cwd=cwd, env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        written = out.read().splitlines()
        if child.returncode or not written:
            raise RuntimeError("".join(err.read().splitlines(keepends=True)[-5:]) or f"exit code {child.returncode}")
        found = dict(line.costs(json.loads(written[-1])))
    return {**found, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def compare(line: Line, base: Path, here: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Of each cost, a pair for each round: the other commit's, and this checkout's."""
    folders = dict.fromkeys((base, here), benchmarks(ROOT))
    run(line, here, folders[here])  # compiles, and fills the caches of the system
    try:
        run(line, base, folders[base])
    except (RuntimeError, KeyError) as error:
        folders[base] = benchmarks(base)
        run(line, base, folders[base])
        print(f"    each with the benchmark of its own commit: {str(error).strip().splitlines()[-1]}", flush=True)
    pairs: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        found = {tree: run(line, tree, folders[tree]) for tree in ((base, here) if number % 2 == 0 else (here, base))}
        for name, theirs in found[base].items():
            pairs.setdefault(name, []).append((theirs, found[here][name]))
    return pairs


def chosen(words: Sequence[str]) -> dict[str, Line]:
    """The lines whose names begin with these words, in their order; all lines without words. Several words name one line as
    long as there is one with all of them. Raises ValueError for a word that begins no name.
    """
    left, found = " ".join(words).split(), dict[str, Line]()
    while left:
        count = next((count for count in range(len(left), 0, -1) if _begun_by(left[:count])), 0)
        if not count:
            raise ValueError(f"no line {left[0]}; there are {', '.join(LINES)}")
        found |= {name: LINES[name] for name in _begun_by(left[:count])}
        left = left[count:]
    return found or LINES


def _begun_by(words: Sequence[str]) -> list[str]:
    return [name for name in LINES if name.split()[: len(words)] == [*words]]


def told(name: str, pairs: list[tuple[float, float]]) -> tuple[Result, bool]:
    ratios = sorted(ours / theirs if theirs else 1.0 for theirs, ours in pairs)
    worse = sum(ratio > 1 for ratio in ratios) / len(ratios)
    base, here = (median(side) for side in zip(*pairs, strict=True))
    slower = median(ratios) > LIMIT and worse >= MOST
    print(
        f"    {name:20} {base:12.4f} {here:12.4f}   {median(ratios):6.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        + ("   SLOWER" if slower else ""),
        flush=True,
    )
    figures = {"base": round(base, 4), "here": round(here, 4), "ratio": round(median(ratios), 3), "worse": worse}
    return {**figures, "from": round(ratios[0], 3), "to": round(ratios[-1], 3)}, slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--lines",
        nargs="*",
        default=(),
        metavar="WORD",
        help=f"by name, or its first words; default: {', '.join(LINES)}",
    )
    arguments = parser.parse_args()
    try:
        wanted = chosen(arguments.lines)
    except ValueError as error:
        parser.error(str(error))
    commit, tree = unpacked(arguments.base)
    here = copied()
    began = time.monotonic()
    report: Result = {"base": commit[:12], "here": git("describe", "--always", "--dirty").strip(), "lines": {}}
    slower = []
    for name, line in wanted.items():
        if line.kafka and "SABOT_BROKER" not in os.environ:
            print(f"{name}: left out, no broker", flush=True)
            continue
        print(f"{name:24} {commit[:12]:>12} {'here':>12}   ratio", flush=True)
        try:
            pairs = compare(line, tree, here, arguments.rounds)
        except (RuntimeError, KeyError) as error:
            print(f"    failed: {error}", flush=True)
            report["lines"][name] = {"failed": str(error)}
            continue
        figures = report["lines"][name] = {}
        for cost, each in pairs.items():
            figures[cost], is_slower = told(cost, each)
            slower += [f"{name}: {cost}"] * is_slower
    print(json.dumps({**report, "minutes": round((time.monotonic() - began) / 60, 1), "slower": slower}))
    sys.exit(1 if slower or any("failed" in each for each in report["lines"].values()) else 0)


if __name__ == "__main__":
    main()
