"""The files of docs/deploy: tools accept them, and the command, the probes and the signal that they name are those of `sabot run`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sabot.cli import commands
from tools.broker import free_ports
from tools.command_line import ENV, SABOT, child
from tools.source_tree import PROJECT

DEPLOY = PROJECT / "docs" / "deploy"
MANIFESTS = ["kubernetes.yaml", "kubernetes-workers.yaml"]
STOP_SECONDS = 60  # the default of App(stop_timeout=)


def tool(name: str) -> str:
    """The path of a program, of this environment or of the machine. Without it the test is skipped."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return found or pytest.skip(f"{name} is missing")


def accepts(*command: str) -> None:
    """A checker ends with 0."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def entrypoint() -> list[str]:
    """The command of the image. The exec form is JSON: so sabot itself is process 1, and gets SIGTERM."""
    (found,) = re.findall(r"^ENTRYPOINT (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    return list(json.loads(found))


def unit_command() -> list[str]:
    (found,) = re.findall(r"^ExecStart=(.*)$", (DEPLOY / "shop.service").read_text(), re.MULTILINE)
    return ["sabot", *found.split()[1:]]


def containers(manifest: str) -> list[dict[str, Any]]:
    parts = yaml.safe_load_all((DEPLOY / manifest).read_text())
    return [
        each for part in parts if "template" in part["spec"] for each in part["spec"]["template"]["spec"]["containers"]
    ]


def options_of(words: list[str]) -> set[str]:
    command: Any = typer.main.get_command(commands.cli)
    command = command.load(words[1])
    return {name for parameter in command.params for name in parameter.opts}


# --- tools


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    accepts(tool("hadolint"), str(DEPLOY / "Dockerfile"))


def test_the_compose_file_has_the_shape_of_the_specification() -> None:
    accepts(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml"))


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_the_manifests_have_the_shape_of_kubernetes(manifest: str) -> None:
    accepts(tool("kubernetes-validate"), "--strict", str(DEPLOY / manifest))


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "shop.service").read_text().replace("/opt/shop/.venv/bin/sabot", "/bin/true")  # it has to exist
    (tmp_path / "shop.service").write_text(unit)
    accepts(tool("systemd-analyze"), "verify", str(tmp_path / "shop.service"))


# --- against the program


def test_every_option_of_a_command_exists() -> None:
    found = [entrypoint(), unit_command()]
    found += [[*each["command"], *each.get("args", [])] for each in containers("kubernetes-workers.yaml")]
    found += [["sabot", "run", *each["args"]] for each in containers("kubernetes.yaml")]
    for words in found:
        assert words[0] == "sabot"
        assert {word for word in words if word.startswith("--")} <= options_of(words), words


def test_what_stops_an_app_waits_longer_than_the_app_does() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["shop"]
    unit = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "shop.service").read_text(), re.MULTILINE))
    waits = [int(compose["stop_grace_period"].removesuffix("s")), int(unit["TimeoutStopSec"])]
    for manifest in MANIFESTS:
        waits += map(int, re.findall(r"terminationGracePeriodSeconds: (\d+)", (DEPLOY / manifest).read_text()))
    assert len(waits) == 4
    assert min(waits) > STOP_SECONDS
    assert unit["KillSignal"] == "SIGTERM"
    assert unit["KillMode"] == "mixed"  # children of the app are the app's to stop


def test_a_start_that_is_refused_after_minutes_is_not_tried_for_ever() -> None:
    """Five refusals after a minute each were never five in five minutes, so systemd went on."""
    unit = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "shop.service").read_text(), re.MULTILINE))
    starts, slowest_seconds = int(unit["StartLimitBurst"]), 600
    assert starts * (slowest_seconds + int(unit["RestartSec"])) < int(unit["StartLimitIntervalSec"])
    assert unit["RestartPreventExitStatus"] == "2"


def test_the_state_is_on_a_volume() -> None:
    (state,) = [entrypoint()[at + 1] for at, word in enumerate(entrypoint()) if word == "--state"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    (container,) = containers("kubernetes.yaml")
    assert f"VOLUME {state}\n" in (DEPLOY / "Dockerfile").read_text()
    assert compose["services"]["shop"]["volumes"] == [f"state:{state}"]
    assert {"name": "state", "mountPath": state} in container["volumeMounts"]
    assert "StateDirectory=shop\n" in (DEPLOY / "shop.service").read_text()
    assert "--state /var/lib/shop " in " ".join(unit_command())


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_each_container_has_resources_and_writes_only_into_its_volumes(manifest: str) -> None:
    for container in containers(manifest):
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_a_drain_takes_one_worker_at_a_time() -> None:
    parts = list(yaml.safe_load_all((DEPLOY / "kubernetes-workers.yaml").read_text()))
    (workers,) = [each["spec"] for each in parts if each["kind"] == "Deployment"]
    (budget,) = [each["spec"] for each in parts if each["kind"] == "PodDisruptionBudget"]
    assert budget == {"maxUnavailable": 1, "selector": workers["selector"]}


PROGRAM = """
from sabot import App
app = App("shop")

@app.agent("orders")
async def count(ctx):
    await ctx.state().put("n", 1)
"""


def answer(port: int, path: str) -> int:
    """The status of a probe; 0: nobody listens yet."""
    try:
        return int(urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60).status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow  # a process
def test_the_command_of_the_image_answers_the_probes_and_ends_well_at_sigterm(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    (port,) = free_ports(1)
    words = [{"/state": "state", "9100": str(port), "0.0.0.0": "127.0.0.1"}.get(word, word) for word in entrypoint()]
    probes = {
        probe["httpGet"]["path"]
        for manifest in MANIFESTS
        for container in containers(manifest)
        for name, probe in container.items()
        if name.endswith("Probe")
    }
    checked = re.findall(r"127\.0\.0\.1:9100(/\w+)", (DEPLOY / "Dockerfile").read_text())
    assert probes == {"/healthz", "/ready"}
    assert checked == ["/healthz"]
    with child(*SABOT, *words[1:], cwd=tmp_path, env=ENV, stderr=subprocess.PIPE) as process:
        limit = time.monotonic() + 60
        while answer(port, "/ready") != 200:
            assert time.monotonic() < limit
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        assert [answer(port, path) for path in sorted(probes)] == [200, 200]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert list((tmp_path / "state" / "checkpoints" / "checkpoints").glob("*.json"))
