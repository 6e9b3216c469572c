"""The Grafana dashboard: its expressions name metrics and labels that Sabot has, and its panels do not overlap."""

import json
import re
from itertools import combinations
from typing import Any

import pytest
import yaml

from sabot.base.figures import STEP_COUNTS
from sabot.base.metrics import KINDS
from tools.promql import Read, reads
from tools.source_tree import PROJECT

DASHBOARD = json.loads((PROJECT / "docs" / "deploy" / "grafana.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]
UNITS = {"cps", "short", "s", "bytes", "percent", "percentunit", "currencyUSD", "dateTimeFromNow"}


def targets() -> list[tuple[str, dict[str, Any]]]:
    return [(panel["title"], target) for panel in SHOWN for target in panel["targets"]]


def kind_of(read: Read) -> tuple[str, str, set[str]]:
    """The name in `KINDS`, the type of the samples, and the labels that they have."""
    for ending, more in (("_bucket", {"le"}), ("_count", set()), ("_sum", set())):
        base = read.metric.removesuffix(ending)
        if base != read.metric and base in KINDS and KINDS[base].type == "histogram":
            return base, "counter", {"app", "worker", *KINDS[base].labels, *more}
    kind = KINDS[read.metric]  # a name that does not exist fails here
    assert kind.type != "histogram", f"{read.metric} is served as _bucket, _count and _sum"
    return read.metric, kind.type, {"app", "worker", *kind.labels}


@pytest.mark.parametrize(("title", "target"), targets(), ids=lambda each: each if isinstance(each, str) else "")
def test_an_expression_names_metrics_and_labels_that_there_are(title: str, target: dict[str, Any]) -> None:
    found = reads(target["expr"])
    assert found
    for read in found:
        name, kind, labels = kind_of(read)
        assert read.labels <= labels, name
        assert "app" in read.labels, "each panel shows the chosen apps"
        over_time = {"rate", "increase"} & set(read.inside)
        assert bool(over_time) == (kind == "counter"), f"{name}: a counter is read as a rate, a gauge as it is"
        if read.metric.endswith("_bucket"):
            assert read.inside[-2:] == ["sum", "histogram_quantile"]
            assert "le" in (read.left or ())
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown == (read.left or set()) - {"le"}, "the legend has the labels that tell the lines apart"


def test_each_metric_is_on_the_dashboard() -> None:
    """A count of single kinds of steps need not be there."""
    shown = {kind_of(read)[0] for _, target in targets() for read in reads(target["expr"])}
    assert KINDS.keys() - shown <= {count.metric for count in STEP_COUNTS}


def test_the_variables_are_those_of_the_expressions() -> None:
    names = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval", "__range"} == names == {"app", "datasource"}
    (app,) = [each for each in DASHBOARD["templating"]["list"] if each["name"] == "app"]
    query = re.fullmatch(r"label_values\((\w+), (\w+)\)", app["definition"])
    assert query is not None
    assert app["query"]["query"] == app["definition"]
    assert query[1] in KINDS
    assert query[2] == "app"


def test_the_panels_have_what_grafana_needs() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert "id" not in DASHBOARD  # Grafana gives one
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) >= len(PANELS) - 3
    for panel in SHOWN:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_the_panels_fill_the_grid_and_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        assert place["h"] > 0
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert [panel["gridPos"]["y"] for panel in PANELS] == sorted(panel["gridPos"]["y"] for panel in PANELS)


@pytest.mark.parametrize(
    "text",
    [
        "sum(rate(sabot_x))",
        "sum by () (sabot_x)",
        "sabot_x{app=1}",
        "sum(sabot_x",
        "rate(sabot_x[soon])",
        "sabot_x sabot_y",
        "sum by (a) sabot_x",
    ],
)
def test_the_parser_refuses_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        reads(text)


def test_the_parser_says_what_an_expression_reads() -> None:
    (read,) = reads('histogram_quantile(0.5, sum by (operator, le) (rate(sabot_x_bucket{app=~"$app"}[5m])))')
    assert read.metric == "sabot_x_bucket"
    assert read.labels == {"app", "operator", "le"}
    assert read.inside == ["[5m]", "rate", "sum", "histogram_quantile"]
    assert read.left == {"operator", "le"}
    assert [each.metric for each in reads("60 * (a - b) / sum(c) by (d)")] == ["a", "b", "c"]


# --- the alerts


RULES = yaml.safe_load((PROJECT / "docs" / "deploy" / "alerts.yaml").read_text())["groups"][0]["rules"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_reads_metrics_that_there_are_and_says_what_they_have(rule: dict[str, Any]) -> None:
    expression, _, limit = re.fullmatch(r"(.+) (==|>) (\d+)", rule["expr"]).groups()  # type: ignore[union-attr]
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    for read in reads(expression):
        if read.metric == "up":  # Prometheus' own
            assert shown == {"instance"}
            continue
        name, kind, labels = kind_of(read)
        assert read.labels <= labels, name
        assert ("increase" in read.inside) == (kind == "counter")
        assert shown == read.left
    assert int(limit) >= 0
    assert rule["labels"]["severity"] in ("critical", "warning")
