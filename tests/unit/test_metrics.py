"""Prometheus text over what `App.statistics()` says."""

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from sabot.errors import UserError
from sabot.metrics import MetricsServer, serve

STATISTICS = {
    "app": "shop",
    "agents": {
        "shop.check": {"state": "running", "errors": 3, "dead_letters": 2},
        "shop.score": {"state": "running", "errors": 0, "dead_letters": 0},
    },
    "channels": {
        "shop.check/orders": {"rows": 7, "rows_total": 100},
        "shop.score/data/in.ndjson": {"rows": 0, "rows_total": 5},
    },
    "checkpoints": {"completed": 4, "failed": 1, "last_seconds": 0.25, "last_bytes": 4096},
    "state": {"keys": 10, "bytes": 2048},
}


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    server = serve(lambda: STATISTICS, 0, "127.0.0.1")
    yield server
    server.close()


def scrape(server: MetricsServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_a_scrape_gives_every_figure_under_its_name_and_labels(server: MetricsServer) -> None:
    lines = [line for line in scrape(server).splitlines() if not line.startswith("#")]
    assert sorted(lines) == [
        'sabot_agent_errors_total{app="shop",operator="shop.check"} 3.0',
        'sabot_agent_errors_total{app="shop",operator="shop.score"} 0.0',
        'sabot_channel_rows{app="shop",operator="shop.check",topic="orders"} 7.0',
        'sabot_channel_rows{app="shop",operator="shop.score",topic="data/in.ndjson"} 0.0',
        'sabot_checkpoint_bytes{app="shop"} 4096.0',
        'sabot_checkpoint_failed_total{app="shop"} 1.0',
        'sabot_checkpoint_seconds{app="shop"} 0.25',
        'sabot_dead_letters_total{app="shop",operator="shop.check"} 2.0',
        'sabot_dead_letters_total{app="shop",operator="shop.score"} 0.0',
        'sabot_records_in_total{app="shop",operator="shop.check",topic="orders"} 100.0',
        'sabot_records_in_total{app="shop",operator="shop.score",topic="data/in.ndjson"} 5.0',
        'sabot_state_bytes{app="shop"} 2048.0',
        'sabot_state_keys{app="shop"} 10.0',
    ]


def test_every_name_has_one_help_line_and_the_type_that_its_ending_says(server: MetricsServer) -> None:
    text = scrape(server)
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert types
    assert all((kind == "counter") == name.endswith("_total") for name, kind in types.items())
    assert len(re.findall(r"^# HELP ", text, re.MULTILINE)) == len(types)


def test_a_port_that_is_taken_is_named(server: MetricsServer) -> None:
    with pytest.raises(UserError, match=f"metrics port {server.port}: .*--metrics-port"):
        serve(lambda: STATISTICS, server.port, "127.0.0.1")


def test_the_port_is_free_after_close() -> None:
    first = serve(lambda: STATISTICS, 0, "127.0.0.1")
    first.close()
    serve(lambda: STATISTICS, first.port, "127.0.0.1").close()


def test_without_the_extra_the_command_that_installs_it_is_said() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from sabot.errors import MissingExtra\nfrom sabot.metrics import serve\n"
        "try: serve(dict, 0)\nexcept MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'sabot[metrics]'" in done.stdout, done.stderr
