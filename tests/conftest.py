"""Fixtures that many tests share: a real Kafka broker, a fresh embedded one, and names that no other test
uses.
"""

import atexit
import faulthandler
import functools
import gc
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import uuid
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TextIO

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

sys.path.insert(0, str(Path(__file__).parent))  # where tools and twins are

from sabot.connectors.memory import MemoryBroker
from sabot.testing import lives
from tools import without_agents
from tools.broker import Broker, Brokers
from tools.delays import Delays
from tools.drawing import commit, leave_cases_to_slow
from tools.hung import ends_if_hung
from tools.leftovers import end_supervisor, leftovers, temporary_folder
from tools.turns import File, Turn, check_words
from tools.warm_starts import ALSO_CHILDREN, WarmStarts

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started by a shell in its background; the children of the tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Seconds that files take in `make test`, or in `make slow`, on two cores (--durations). Those of the first table wait most of the time,
# for a broker or for a child that is killed; of the second one, which compute, a file that is missing counts by its tests.
WAITING = {
    "test_kill_effects": 240,
    "test_faults": 87,
    "test_kafka_journal_broker": 85,
    "test_kafka_journal": 60,
    "test_kafka_security": 58,
    "test_kafka_delivery": 55,
    "test_dlq": 52,
    "test_postgres_journal": 48,
    "test_stream_kafka": 37,
    "test_journal_contract": 35,
    "test_source_contract": 34,
    "test_agent_kafka": 33,
    "test_cli": 30,
    "test_workers_network": 30,
    "test_console_browser": 30,
    "test_kill_dance": 25,
    "test_kafka_bad_input": 25,
    "test_console_places_browser": 25,
    "test_leftovers": 24,
    "test_signals": 24,
    "test_sqlite_journal": 23,
    "test_kafka_faults": 22,
    "test_kafka_delivery_contract": 21,
    "test_kafka_refusals": 20,
    "test_backfills": 19,
    "test_kill_minus_nine": 17,
    "test_savepoints": 17,
    "test_agent_state_e2e": 14,
    "test_sink_contract": 14,
    "test_stream_kill": 13,
    "test_shared_budgets": 12,
    "test_agent_runtime": 12,
    "test_program_pool": 12,
    "test_budget_owner_contract": 12,
    "test_changes_kafka": 11,
    "test_broken_edges": 11,
    "test_changes_sinks": 10,
    "test_process_kill": 10,
    "test_agent_errors": 10,
    "test_state_screens": 10,
    "test_kept_journals": 10,
    "test_program_sessions": 9,
    "test_durable_journals": 9,
    "test_refilled_steps": 9,
    "test_hung_sessions": 9,
    "test_topics_command": 8,
    "test_app": 8,
    "test_postgres_sink": 8,
    "test_exits": 8,
    "test_values": 8,
    "test_reader": 8,
    "test_console_inbox_browser": 8,
    "test_console": 8,
    "test_hostile_programs": 7,
    "test_cli_checkpoints": 7,
    "test_mcp_questions": 7,
    "test_checkpoint_screens": 7,
    "test_console_rows": 7,
    "test_kept_apps": 7,
    "test_cli_reload": 6,
    "test_tenants": 6,
    "test_delivery_contract": 6,
    "test_cli_sql_shell": 6,
    "test_llm_faults": 6,
    "test_refused_starts": 6,
    "test_first_programs": 6,
    "test_console_letters": 6,
    "test_console_state_browser": 6,
    "test_console_jobs_browser": 6,
    "test_console_figures_browser": 6,
    "test_pool_stores": 6,
    "test_workers": 6,
    "test_files_partitions": 5,
    "test_secrets": 5,
    "test_warm_pool": 5,
    "test_fleet": 5,
    "test_process_limits": 5,
    "test_cli_top": 5,
    "test_topics_of_letters": 5,
    "test_process_health": 4,
    "test_lifecycle": 4,
    "test_resources": 4,
    "test_adapters": 4,
    "test_postgres_refusals": 4,
    "test_sandbox": 3,
    "test_kafka_lease": 2,
    "test_asked_topics": 2,
}
COMPUTING = {
    "test_package": 60,
    "test_documents": 60,
    "test_streams_against_batch": 50,
    "test_joins_against_batch": 40,
    "test_operator_contract": 35,
    "test_every_step": 30,
    "test_windows": 28,
    "test_durable_agents": 26,
    "test_kept_checkpoints": 22,
    "test_house_rules": 20,
    "test_jobs_property": 20,
    "test_redaction": 18,
    "test_provider_contract": 18,
    "test_seeds": 17,
    "test_exactly_once": 16,
    "test_changes_against_batch": 16,
    "test_keyed_functions_against_batch": 16,
    "test_state_matching": 15,
    "test_job_screens": 15,
    "test_changed_programs": 14,
    "test_tables": 14,
    "test_stream_recovery": 14,
    "test_files_delivery": 14,
    "test_json_kernel": 13,
    "test_decimals": 13,
    "test_layers": 12,
    "test_random_crashes": 12,
    "test_agents_feed_streams": 12,
    "test_small_budgets": 12,
    "test_format_contract": 12,
    "test_random_statements": 12,
    "test_core": 12,
    "test_row_table": 11,
    "test_engine_faults": 11,
    "test_accounting": 11,
    "test_group_functions": 11,
    "test_durable_faults": 10,
    "test_checkpoint_e2e": 10,
    "test_checkpoint_place_contract": 10,
    "test_keyed": 10,
    "test_pattern_kernel": 10,
    "test_cli_plan": 10,
    "test_nexmark": 10,
    "test_fraud_features": 9,
    "test_stream_faults": 9,
    "test_time_joins": 9,
    "test_over": 9,
    "test_witness": 9,
    "test_keyed_operators": 9,
    "test_unexpected_ends": 9,
    "test_script_options": 9,
    "test_spilled": 8,
    "test_map_async": 8,
    "test_fuzz": 8,
    "test_restart": 8,
    "test_rules_contract": 8,
    "test_expressions_in_steps": 7,
    "test_gathered": 7,
    "test_ranked": 7,
    "test_files_sources": 7,
    "test_changed_tokens": 7,
    "test_changes": 6,
    "test_exports": 6,
    "test_loop_replay": 6,
    "test_rows_state": 6,
    "test_runtime_crashes": 6,
    "test_answer_shapes": 6,
    "test_random_further": 6,
    "test_nexmark_sql": 6,
    "test_cli_sql": 6,
    "test_tables_first": 5,
    "test_rows_screens": 5,
    "test_changing_tables": 5,
    "test_alignment": 4,
    "test_migration": 4,
    "test_logic_files": 4,
    "test_queries": 4,
    "test_durable_property": 4,
    "test_core_trees": 4,
    "test_extreme_values": 4,
    "test_typed_outputs": 4,
    "test_refused_rows": 4,
    "test_parted_by_some": 4,
    "test_types_of_users": 4,
    "test_supervisor": 4,
    "test_tombstones": 3,
}
# Of the tests that `make slow` draws the long ones are in these files, which begin first, in this order: a test of two minutes that began
# last would be waited for, with three workers free.
FIRST_OF_SLOW = (
    "test_every_step_pipelines",
    "test_durable_crashes",
    "test_dance",
    "test_kill_effects",
    "test_changed_tokens",
    "test_process_kill",
    "test_restarted_stores",
    "test_workers_kill",
    "test_package",
    "test_sql_kill",
    "test_watched_demos",
    "test_jobs_property",
    "test_random_statements",
    "test_attached_kill",
    "test_every_step",
    "test_worker_model",
    "test_nexmark",
    "test_narrow_places",
    "test_changed_by_hints",
    "test_changed_types",
    "test_faults",
    "test_step_changes",
    "test_tutorial",
    "test_workers_join",
    "test_console_elsewhere",
    "test_types_of_users",
    "test_kernel_kill",
)
A_TEST = 0.03
A_BYTE = 1 / 15_000
# Of the examples of each property `make test` tries this share, and `make slow` all of them: what is found late is found in the first ones,
# or in more than any of them.
SHARE_OF_EXAMPLES = 0.1

# Slow and few: each of their tests goes to the worker that is free.
ONE_BY_ONE = {
    "test_every_step_pipelines",
    "test_durable_crashes",
    "test_kill_effects",
    "test_dance",
}
# They read all source of the package, which one worker parses.
TOGETHER = {
    "test_house_rules",
    "test_layers",
    "test_exports",
    "test_prose",
    "test_python_values",
    "test_budgets",
    "test_stored_names",
}
# They import the SDKs of Anthropic and OpenAI, a second and a half of a core, which one worker does.
WITH_SDKS = {
    "test_answer_shapes",
    "test_cut_characters",
    "test_llm_faults",
    "test_provider_contract",
    "test_requests",
}

# The same cases each time, however long a busy machine takes to generate them.
slowly = [HealthCheck.too_slow]
settings.register_profile("sabot", derandomize=True, deadline=None, database=None, suppress_health_check=slowly)
settings.load_profile("sabot")
# It would parse all of our modules for constants to try, 3 seconds of each worker. Where it has no such function, this changes nothing.
providers.is_local_module_file = lambda path: False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broker", metavar="URL", help="a running Kafka broker (kafka://host:port) instead of one started here"
    )
    parser.addoption(
        "--one-in", metavar="N", type=int, default=1, help="of the collected tests only one in N, drawn by the commit"
    )
    parser.addoption(
        "--delays", metavar="SEED", help="nap at random in threads, event loops and steps; SEEDxN naps N times as often"
    )


# Seconds until a test that hangs fails, before pytest's own limit ends its worker.
HUNG_SECONDS = {"test": 400.0, "slow": 1_100.0}

BROKERS = pytest.StashKey[Brokers]()
CRASH = pytest.StashKey[TextIO]()


def pytest_configure(config: pytest.Config) -> None:
    """All that this session writes beside what it is given is below one folder, which goes with it; so does what it starts."""
    folder = temporary_folder()
    if (
        given := getattr(config, "workerinput", {}).get("brokers")
    ) is not None:  # of the process that started this worker
        atexit.register(leave)
        config.stash[BROKERS] = Brokers(Path(given[0]), given[1])
        if config.workerinput["turns"] and config.option.markexpr == "not slow":  # type: ignore[attr-defined]
            without_agents.pytest_configure()  # until the worker has a file of another room
    else:
        config.stash[BROKERS] = brokers = Brokers(folder / "brokers", leftovers().mark)
        leftovers().at_end(brokers.stop)
    if lives.IN_MEMORY is not None:
        lives.IN_MEMORY = os.fspath(
            leftovers().folder(Path(tempfile.mkdtemp(prefix="sabot-tests-", dir=lives.IN_MEMORY)))
        )
    if given := config.getoption("delays"):
        delays = Delays(given)
        delays.patch()
        config.add_cleanup(delays.end)
        config.pluginmanager.register(delays)


@pytest.hookimpl(trylast=True)  # behind pytest's own plugin, which writes to stderr
def pytest_sessionstart(session: pytest.Session) -> None:
    """What a worker that crashes or hangs has to say is kept, and said again behind the failures: who reads CI sees the end."""
    if hasattr(session.config, "workerinput"):
        file = crashes(session.config) / f"{session.config.workerinput['workerid']}-{os.getpid()}"
        said = session.config.stash[CRASH] = file.open("w")  # stays open: the handler of signals has its descriptor
        faulthandler.enable(said)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    return without_agents.not_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    return without_agents.not_skipped((yield))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for file in sorted(crashes(config).glob("*")):
        if said := file.read_text().partition("\nExtension modules:")[0]:
            terminalreporter.section(f"worker {file.name.partition('-')[0]} crashed")
            terminalreporter.line(said)


def crashes(config: pytest.Config) -> Path:
    folder = config.stash[BROKERS].folder.parent / "crashes"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Called for each worker before it starts."""
    brokers = node.config.stash[BROKERS]
    node.workerinput["brokers"] = (os.fspath(brokers.folder), brokers.mark)
    node.workerinput["turns"] = node.config.getoption("dist") == "loadfile" and not any(
        "::" in arg for arg in node.config.args
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deals whole files, as --dist loadfile does, but the tests of some files one by one, and some files together."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler.loadfile import LoadFileScheduling

    with_agents: set[Any] = set()

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            name = Path(file).stem
            if name in ONE_BY_ONE:
                return nodeid
            return "source" if name in TOGETHER else "sdks" if name in WITH_SDKS else file

        def _reschedule(self, node: Any) -> None:
            """Gives a worker one file besides the one that it runs, not two: the rest goes to who is free. It waits for the second one
            before it runs the first, so it is told at once that there is none. What a worker that crashed had done comes again, and is no
            test.
            """
            while not node.shutting_down and self._next(node) and self._pending_of(self.assigned_work[node]) < 2:
                self._assign_work_unit(node)
            if not node.shutting_down and not self._next(node):
                node.shutdown()

        def _assign_work_unit(self, node: Any) -> None:
            scope = self._next(node)
            assert scope is not None
            self.workqueue.move_to_end(scope, last=False)
            if not without_agents.of_the_engine(scope):
                with_agents.add(node)
            super()._assign_work_unit(node)

        def _next(self, node: Any) -> str | None:
            """What a worker is given next. Each second one begins with the files of the engine. One that had another file runs no more of
            these, unless no other worker can: it may have imported the rooms of the agents.
            """
            engine = node not in with_agents and int(node.gateway.id.removeprefix("gw")) % 2 == 0
            fitting = (scope for scope in self.workqueue if without_agents.of_the_engine(scope) == engine)
            if (scope := next(fitting, None)) or (node in with_agents and not with_agents.issuperset(self.nodes)):
                return scope
            return next(iter(self.workqueue), None)

    return Scheduling(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        gc.unfreeze()  # duckdb tells of what lives when the interpreter ends
    leftovers().finish()


def leave() -> None:
    """The end of a worker, which has told all its results: to take ten thousand tests and their modules apart takes it seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Any:
    """What is collected stays, so there is no garbage to look for."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> File | None:
    """In a worker that is given whole files a file is imported when its turn comes."""
    one_by_one = module_path.stem in ONE_BY_ONE and parent.config.option.markexpr != "not slow"
    if one_by_one or not getattr(parent.config, "workerinput", {}).get("turns"):
        return None
    return File.from_parent(parent, path=module_path)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if isinstance(item, Turn):
        item.run(nextitem)
    elif getattr(item.config, "workerinput", {}).get("turns"):
        tell(item, runtestprotocol(item, log=False, nextitem=nextitem))
    else:
        return None
    return True


def tell(item: pytest.Item, reports: list[pytest.TestReport]) -> None:
    """Tells the process that started this worker what there is to tell: of a test that passes one message, not five, which took both
    of them a millisecond.
    """
    every = item.config.getoption("durations") is not None
    for report in reports:
        if every or report.when == "call" or not report.passed:
            if report.passed:
                report.keywords = {}
            item.ihook.pytest_runtest_logreport(report=report)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Any:
    """Workers take whole files in this order: the longest first, and files that wait alternate with files that compute."""
    if unstable := [item.nodeid for item in items if " at 0x" in item.nodeid or "sabot-tests-" in item.nodeid]:
        raise pytest.UsageError(
            f"ids with an address or a temporary folder differ between workers, give ids= to {unstable}"
        )
    turns = [item for item in items if isinstance(item, Turn)]  # no other plugin has to do with them
    items[:] = [item for item in items if not isinstance(item, Turn)]
    leave_cases_to_slow(items)
    check_words(items)
    if config.option.markexpr == "not slow":
        leave_examples_to_slow(items)
    keep_one_in(config, items)
    yield
    files = defaultdict(list)
    for item in turns + items:
        files[item.path.stem].append(item)
    slow = config.option.markexpr.startswith("slow")
    first = [files.pop(name) for name in FIRST_OF_SLOW if slow and name in files]
    waiting = [files.pop(name) for name in sorted(WAITING, key=WAITING.__getitem__, reverse=True) if name in files]
    computing = sorted(files.values(), key=cost, reverse=True)
    pairs = zip_longest(waiting, computing, fillvalue=())
    items[:] = [item for tests in (*first, *chain.from_iterable(pairs)) for item in tests]


def cost(tests: list[pytest.Item]) -> float:
    """The seconds that a file takes, by its tests, or before these are known by its length."""
    file = tests[0].path
    if isinstance(tests[0], Turn):
        return COMPUTING.get(file.stem, A_BYTE * file.stat().st_size)
    return COMPUTING.get(file.stem, A_TEST * len(tests))


def leave_examples_to_slow(items: list[pytest.Item]) -> None:
    """Where Hypothesis keeps the settings of a test elsewhere, this changes nothing."""
    place = "_hypothesis_internal_use_settings"
    for test in {
        item.function for item in items if isinstance(item, pytest.Function) and hasattr(item.function, place)
    }:
        told = getattr(test, place)
        setattr(test, place, settings(told, max_examples=math.ceil(told.max_examples * SHARE_OF_EXAMPLES)))


def keep_one_in(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each commit draws other ones, so what breaks a test that was not drawn is met some commits later."""
    count = config.getoption("one_in")
    if count == 1:
        return
    seed = commit()
    left = [item for item in items if zlib.crc32(f"{seed} {item.nodeid}".encode()) % count]
    config.hook.pytest_deselected(items=left)
    gone = set(left)
    items[:] = [item for item in items if item not in gone]


def pytest_collection_finish() -> None:
    """Ten thousand collected tests are no garbage: without them a collection of garbage takes microseconds instead of 0.2 s."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with ends_if_hung(HUNG_SECONDS["slow" if item.get_closest_marker("slow") else "test"]):
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Neither is what the tests of a file have left, in modules and caches: each `sabot run` inside this process collects garbage, and
    took 0.2 s for it behind 2,000 tests.
    """
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="module")
def no_supervisor_afterwards() -> Iterator[None]:
    """No supervisor of children outlives a file of tests that says so (`pytest.mark.usefixtures`)."""
    yield
    end_supervisor()


@pytest.fixture
async def no_child_afterwards(no_supervisor_afterwards: None) -> AsyncIterator[None]:
    """Nor does a child outlive its test."""
    yield
    from sabot.process import Supervisor

    assert (await Supervisor.running()).children == []


@pytest.fixture(scope="module")
def _forked_starts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux" and hasattr(subprocess, "_fork_exec"):
            patch.setattr(subprocess, "_fork_exec", warm().fork_exec)
        yield


@pytest.fixture
def warm_starts(_forked_starts: None) -> None:
    """Interpreters that a file of tests starts have imported Sabot already, where the file says so (`pytest.mark.usefixtures`): one that
    tests what a program does, and not how an interpreter starts. Where the start of a process is another one, this changes nothing.
    """
    warm().prepare()


@pytest.fixture
def warm_children(warm_starts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreters that these start are forks too, such as the workers of an app."""
    monkeypatch.setenv(ALSO_CHILDREN, "1")


@pytest.fixture
def cold_start(warm_starts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of how an interpreter starts, in a file with `warm_starts`."""
    if sys.platform == "linux" and hasattr(subprocess, "_fork_exec"):
        monkeypatch.setattr(subprocess, "_fork_exec", warm().cold)


@functools.cache
def warm() -> WarmStarts:
    return WarmStarts(getattr(subprocess, "_fork_exec", None))


@pytest.fixture(autouse=True)
def _log_level_of_before() -> Iterator[None]:
    """The command line sets the level of our logger, for the process."""
    logger = logging.getLogger("sabot")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Broker:
    """A real Kafka broker for all workers of the session; `kafka.url` is its address."""
    url = request.config.getoption("--broker")
    if url and url.startswith("kafka://"):
        return Broker(url=url)
    return request.config.stash[BROKERS].started("kafka")


@pytest.fixture
def own_kafka(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A real Kafka broker that no other test uses at this time, and which may be stopped."""
    with request.config.stash[BROKERS].alone("own") as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka_url(kafka: Broker) -> str:
    """The address of a real Kafka broker."""
    return kafka.url


@pytest.fixture
def memory_url() -> Iterator[str]:
    """The address of an embedded broker that no other test uses."""
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    MemoryBroker.get(url).reset()


@pytest.fixture
def topic() -> str:
    """A topic name that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"
