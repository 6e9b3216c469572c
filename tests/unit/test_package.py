"""The package: what is built, what a wheel and an sdist hold, and that the build's files agree with each other."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import tomllib
import zipfile
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import ClassVar

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import sabot
from sabot import App
from sabot._cython.arrow import batch
from sabot.base.version import RELEASE, version_of
from sabot.connectors.installed import OURS

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDER = ROOT / "sabot" / "_cython"
KERNELS = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.pyx"))


def run(*command: str | Path, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SABOT_DEBUG")}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=1000
    )


def test_the_version_of_a_tree_names_its_commit_without_a_build(tmp_path: Path) -> None:
    """All builds were 0.1.0, so neither a log nor a checkpoint told which one had written it."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "sabot" / "base", tree / "sabot" / "base", ignore=shutil.ignore_patterns("__pycache__"))
    assert version_of(tree) == f"{RELEASE}.dev0"  # an archive of the sources

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = run("git", *identity, *words, cwd=tree)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    git("init", "-q")
    assert version_of(tree) == f"{RELEASE}.dev0"  # there is no commit
    found = []
    for number in (1, 2):
        git("commit", "-q", "--allow-empty", "-m", f"commit {number}")
        found.append(version_of(tree))
        assert found[-1] == f"{RELEASE}.dev{number}+g{git('rev-parse', '--short=9', 'HEAD')}"
        assert Version(found[-1]) < Version(RELEASE)
    assert Version(found[0]) < Version(found[1])
    clone = tmp_path / "clone"
    git("clone", "-q", "--depth", "1", f"file://{tree}", str(clone))  # without tags, and without the first commit
    assert version_of(clone).partition("+")[2] == found[1].partition("+")[2]
    git("tag", f"v{RELEASE}")
    assert version_of(tree) == RELEASE


def test_a_build_without_git_has_the_version_of_what_it_was_made_from(tmp_path: Path) -> None:
    """An sdist says it in PKG-INFO, a wheel in its metadata; a Sabot elsewhere on the path says nothing about it."""
    sdist, wheel = tmp_path / "sdist", tmp_path / "wheel"
    for folder, file in [(sdist, "PKG-INFO"), (wheel, "sabot-0.1.0.dev7+gabc.dist-info/METADATA")]:
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text("Metadata-Version: 2.4\nName: sabot\nVersion: 0.1.0.dev7+gabc\n")
        assert version_of(folder) == "0.1.0.dev7+gabc"


def test_the_version_of_the_package_is_that_of_its_tree() -> None:
    assert sabot.__version__ == version_of(Path(sabot.__file__).resolve().parents[1])  # of the debug build in its run


def test_core_dependencies_are_the_ten_that_a_stream_and_its_console_need() -> None:
    """A connector, a provider or a format brings its library by an extra."""
    streams = {"pyarrow", "numpy", "confluent-kafka", "rocksdict", "msgspec"}
    expected = streams | {"typer", "rich"} | {"jinja2", "starlette", "uvicorn"}
    assert {Requirement(line).name for line in PYPROJECT["project"]["dependencies"]} == expected
    assert {Requirement(line).name for line in requires("sabot") or [] if "extra ==" not in line} == expected


def brought_by(names: Iterable[str]) -> set[str]:
    """These distributions, and all that are installed with them."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        if (name := canonicalize_name(waiting.pop())) in found:
            continue
        found.add(name)
        needed = map(Requirement, requires(name) or [])
        waiting += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


WITHOUT_EXTRAS = """
import json, sys

missing = set(json.loads(sys.argv[1]))


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
import sabot.cli.commands
import sabot.web.console
from sabot import App, col
from sabot.connectors.http import WebhookSource
from sabot.connectors.installed import summary

print(len(summary()))
app = App("core", state="state")
print(app.stream([{"n": 1}, {"n": 2}]).filter(col("n") > 1).collect().to_pylist())
hooks = WebhookSource("hooks.db", port=0)
hooks.open(None)
hooks.close()
"""


def test_what_pip_install_brings_lists_all_connectors_runs_a_stream_and_receives_webhooks(tmp_path: Path) -> None:
    """A module that imports the library of an extra at its top would need it in each installation."""
    there = brought_by(Requirement(line).name for line in PYPROJECT["project"]["dependencies"]) | {"sabot"}
    missing = [
        name
        for name, packages in packages_distributions().items()
        if there.isdisjoint(map(canonicalize_name, packages))
    ]
    assert {"httpx2", "psycopg", "redis", "duckdb", "pyiceberg", "deltalake", "websockets"} <= set(missing)
    done = run(sys.executable, "-c", WITHOUT_EXTRAS, json.dumps(missing), cwd=tmp_path, PYTHONPATH=package_path())
    assert done.stderr == ""
    assert done.stdout.split("\n") == [f"{len(OURS)}", "[{'n': 2}]", ""]


class Collector(BaseHTTPRequestHandler):
    """A collector of OpenTelemetry: keeps what is posted to each path."""

    got: ClassVar[dict[str, list[bytes]]] = {}

    def do_POST(self) -> None:
        self.got.setdefault(self.path, []).append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *given: object) -> None: ...


def test_the_extra_for_opentelemetry_sends_figures_and_spans_to_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra had the SDK alone: what the page says needed one more package, which no error named."""
    extra = [line.partition(">")[0] for line in PYPROJECT["project"]["optional-dependencies"]["otel"]]
    assert extra == ["opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk"], "no other package is imported here"
    monkeypatch.setattr(Collector, "got", {})
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        meters = MeterProvider(
            [PeriodicExportingMetricReader(OTLPMetricExporter(compression=Compression.NoCompression))]
        )
        App("sent", state="memory").observe_metrics(meters)
        assert meters.force_flush()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(compression=Compression.NoCompression)))
        tracers.get_tracer("sabot").start_span("agent.run").end()
        meters.shutdown()
        server.shutdown()
    sent = ExportMetricsServiceRequest.FromString(Collector.got["/v1/metrics"][0])
    found = {metric.name: metric for each in sent.resource_metrics[0].scope_metrics for metric in each.metrics}
    (point,) = found["sabot_restarts_total"].sum.data_points
    assert {each.key: each.value.string_value for each in point.attributes} == {"app": "sent"}
    spans = ExportTraceServiceRequest.FromString(Collector.got["/v1/traces"][0])
    assert [span.name for span in spans.resource_spans[0].scope_spans[0].spans] == ["agent.run"]


def test_every_kernel_has_a_type_stub_and_a_compiled_module() -> None:
    assert [name for name in KERNELS if not (FOLDER / f"{name}.pyi").exists()] == []
    stubs = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.pyi")]
    assert [name for name in stubs if name not in KERNELS] == []
    here = Path(batch.__file__).parents[1]
    built = {path.relative_to(here).as_posix().split(".")[0] for path in here.rglob("*.so")}
    assert set(KERNELS) <= built


def test_no_generated_code_stands_beside_the_sources() -> None:
    assert [path.name for pattern in ("*.c", "*.cpp") for path in (ROOT / "sabot").rglob(pattern)] == []


@pytest.mark.skipif(os.environ.get("SABOT_DEBUG") != "1", reason="only in the debug run of make check")
def test_the_debug_run_loads_the_debug_build() -> None:
    assert "build/debug" in Path(batch.__file__).as_posix()


def test_the_workflow_that_github_runs_is_the_one_at_the_top() -> None:
    copy = ROOT / ".github" / "workflows" / "wheels.yml"
    assert (ROOT / "wheels.yml").read_text() == copy.read_text()


def test_an_unbuilt_tree_says_make(tmp_path: Path) -> None:
    """An import of sources that nobody built must name the command, not end in a missing name somewhere below."""
    for path in (ROOT / "sabot").rglob("*.py"):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    done = run(sys.executable, "-P", "-c", "from sabot import App", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "ImportError" in done.stderr.splitlines()[-1]
    assert "make" in done.stderr.splitlines()[-1]


def test_import_of_sabot_needs_no_optional_package(tmp_path: Path) -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import sabot; from sabot import *; print(sabot.__version__)"
    done = run(sys.executable, "-W", "error", "-c", code, cwd=tmp_path, PYTHONPATH=package_path())
    assert done.stderr == ""
    assert done.stdout.strip() == sabot.__version__


@pytest.mark.slow  # as that of the terminal
def test_a_program_without_sql_loads_nothing_of_sql() -> None:
    code = "import sys; from sabot import App; App('x').stream('t'); print([m for m in sys.modules if m.startswith('sabot.sql')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


MODULES_OF_THE_FIRST_PROGRAM = 367
UNUSED = ("pandas", "polars", "deltalake", "fastavro")


@pytest.fixture(scope="module")
def with_unused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packages that a program does not use: they are there, whatever is installed."""
    folder = tmp_path_factory.mktemp("first")
    for name in UNUSED:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def first_program(with_unused: Path) -> list[str]:
    """What the first program of the README prints, then the modules that it has loaded, its data classes of the standard library, and
    how many objects the garbage collector has searched.
    """
    program = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    begins = """
import gc
searched = []
gc.callbacks.append(lambda phase, info: searched.append(sum(len(gc.get_objects(n)) for n in range(info["generation"] + 1))))
"""
    told = """
import sys
searched = sum(searched[::2])
print(*sys.modules)
ours = [module for name, module in sys.modules.items() if name.startswith("sabot")]
classes = {each for module in ours for each in vars(module).values() if "__dataclass_fields__" in getattr(each, "__dict__", ())}
print(*(each.__qualname__ for each in classes if isinstance(each, type) and each.__dataclass_params__.init))
print(searched)
"""
    shown = run(sys.executable, "-c", begins + program + told, cwd=with_unused, PYTHONPATH=package_path())
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.splitlines()


def test_the_first_program_of_the_readme_loads_nothing_that_it_does_not_use(first_program: list[str]) -> None:
    """pyarrow imports pandas, where it is installed, with the first array of Python values: this was a third of the start."""
    *rows, modules, _, _ = first_program
    assert rows[-1] == "2 rows"
    unused = {
        *UNUSED,
        "http.client",
        "sabot.codecs.avro",
        "sabot.codecs.protobuf",
        "html",
        "pyarrow.parquet",
        "rocksdict",
    }
    assert not unused & set(modules.split())


def test_the_first_statement_loads_sql_without_a_collection_of_garbage() -> None:
    """The one that was due then searched all objects of the start: a fifth of the first binding of a process."""
    program = """
import gc, sys
from sabot import App
app = App("first")
before = set(sys.modules)
collected = []
gc.callbacks.append(lambda phase, info: collected.append("sabot.sql.session" in sys.modules))
gc.set_threshold(100)
app.sql_session
gc.disable()
assert "sabot.sql.session" not in before and "sabot.sql.bind.relations" in sys.modules
print(sum(collected))
"""
    shown = run(sys.executable, "-c", program, cwd=ROOT, PYTHONPATH=package_path())
    assert shown.returncode == 0, shown.stderr
    assert int(shown.stdout) < 5  # the imports alone were hundreds


def test_the_modules_that_the_first_program_loads_do_not_become_more(first_program: list[str]) -> None:
    """Each costs a third of a millisecond of the start. A room that few programs use is loaded when it is used."""
    ours = [name for name in first_program[-3].split() if name.startswith("sabot.")]
    assert len(ours) <= MODULES_OF_THE_FIRST_PROGRAM


def test_the_garbage_collector_searches_few_objects_of_the_first_program(first_program: list[str]) -> None:
    """Imports make 100,000 objects that stay. They were searched twice when the imports were over: a ninth of the start."""
    assert int(first_program[-1]) < 30_000


@pytest.mark.slow  # a process of a second, beside that of the README's program
def test_a_query_of_a_terminal_loads_nothing_that_it_does_not_use(with_unused: Path) -> None:
    (with_unused / "in.csv").write_text("a,n,t\nx,20,2026-01-01\n")
    words = (
        "sabot",
        "sql",
        "-c",
        "SELECT a, n * 1.5 AS x, CAST(n AS BIGINT) + 1 AS y FROM 'in.csv' WHERE n > 10 AND a <> 'z'",
    )
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules)); "
        f"sys.argv = {list(words)}; from sabot.cli import main; main()"
    )
    shown = run(sys.executable, "-c", code, cwd=with_unused, PYTHONPATH=package_path())
    assert shown.returncode == 0, shown.stderr
    *rows, modules = shown.stdout.splitlines()
    assert rows[1].split()[0] == "x"
    assert not set(UNUSED) & set(modules.split())


WINDOWS = """
import sys
import sabot
from sabot.connectors.memory.broker import MemoryBroker

broker = MemoryBroker.get("memory://windows")
broker.create_topic("in", partitions=2)
for partition in (0, 1):
    broker.publish("in", [b'{"n": 1}', b'{"n": 2}'], partition=partition, timestamp=1_000 * partition)
rows = sabot.App("windows", "memory://windows").stream("in", until="now").window(sabot.tumbling("1s")).aggregate(n=sabot.sum("n")).collect()
print(rows.column("n").to_pylist(), *sys.modules)
"""


@pytest.mark.slow  # a process of a second
def test_windows_of_a_topic_with_several_partitions_do_not_load_arrows_datasets() -> None:
    """The greatest time of each partition was computed by Arrow's group_by, which loads them, and pandas where it is installed."""
    shown = run(sys.executable, "-c", WINDOWS, cwd=ROOT, PYTHONPATH=package_path())
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("[3, 3] ")
    assert not {"pyarrow.acero", "pyarrow.dataset"} & set(shown.stdout.split())


def test_few_data_classes_of_the_first_program_have_methods_of_their_own(first_program: list[str]) -> None:
    """The standard library compiles up to six methods of each, one by one: with 170 classes an eighth of the start."""
    assert len(first_program[-2].split()) <= 8


@pytest.mark.slow  # half a second of a core
def test_wheels_are_built_for_four_pythons_and_no_musl_and_no_free_threads() -> None:
    done = run(
        *(sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux"),
        *("--archs", "x86_64,aarch64", ROOT),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {
        f"cp3{minor}-manylinux_{arch}" for minor in (11, 12, 13, 14) for arch in ("x86_64", "aarch64")
    }
    linux = PYPROJECT["tool"]["cibuildwheel"]["linux"]
    assert linux["manylinux-x86_64-image"] == linux["manylinux-aarch64-image"] == "manylinux_2_28"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of the tree, and a wheel made from that sdist (so what an sdist lacks shows), optimised little."""
    folder = tmp_path_factory.mktemp("package")
    tree = folder / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "wheelhouse", "*.so", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=ignored)
    done = run(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", "."),
        cwd=tree,
        CFLAGS="-O0 -g0",
        SABOT_DEBUG="1",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    sdist = next((folder / "dist").glob("*.tar.gz"))
    wheel = next((folder / "dist").glob("*.whl"))
    return sdist, wheel


@pytest.mark.slow
def test_the_sdist_holds_what_it_is_built_from_and_nothing_generated(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"sabot/_cython/{kernel}{end}" for kernel in KERNELS for end in (".pyx", ".pyi")} <= names
    sources = {path.relative_to(ROOT).as_posix() for path in FOLDER.rglob("*.[ph]*") if path.is_file()}
    assert {name for name in sources if name.endswith((".pxd", ".h", ".py"))} <= names
    assert {"LICENSE", "README.md", "setup.py", "pyproject.toml", "Makefile", "tools/setup.sh"} <= names
    assert [name for name in names if name.endswith((".cpp", ".c", ".so", ".pyc")) or name.startswith("build")] == []


@pytest.mark.slow
def test_the_wheel_holds_modules_stubs_and_marker_and_no_sources(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
    compiled = {name.removeprefix("sabot/_cython/").split(".")[0] for name in names if name.endswith(".so")}
    assert compiled == set(KERNELS)
    assert {f"sabot/_cython/{kernel}.pyi" for kernel in KERNELS} | {"sabot/py.typed"} <= names
    assert [name for name in names if name.endswith((".cpp", ".c", ".h", ".pyx"))] == []
    python = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sabot").rglob("*.py")}
    assert python <= names
    assert {name.split("/")[0] for name in names} == {"sabot", f"sabot-{RELEASE}.dev0.dist-info"}  # the tree has no git


@pytest.mark.slow
def test_the_wheel_installs_and_runs_away_from_the_tree(built: tuple[Path, Path], tmp_path: Path) -> None:
    pip = run(
        *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", built[1]),
        cwd=tmp_path,
    )
    assert pip.returncode == 0, pip.stderr
    code = "import sabot, sabot.cli; print(sabot.__file__)"
    done = run(sys.executable, "-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout.startswith(str(tmp_path)), done.stderr
    script = run(tmp_path / "site" / "bin" / "sabot", "--help", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert script.returncode == 0, script.stderr
    assert "worker" in script.stdout


def package_path() -> str:
    """Where the sabot of this process comes from, for a child process."""
    return str(Path(sabot.__file__).parents[1])
