"""The rules and the dashboard for Prometheus ask for what a node says, by names and labels that it has."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.node import RunningNode
from support.prometheus import prometheus

OF_PROMETHEUS = {"instance", "job"}
"""Labels that it adds to each series."""
DASHBOARDS_OWN = re.compile(r"\$__rate_interval|\$__interval")

FOR_ROUTERS = {"vllm:cache_config_info", "vllm:lora_requests_info"}
"""What routers for vLLM read, and nobody looks at."""

Labels = dict[str, set[str]]


@pytest.fixture(scope="module")
def said(node: RunningNode) -> dict[str, Labels]:
    """All labels of each series, and their values."""
    body = {"model": "llm-node-demo", "prompt": "What is", "max_tokens": 5}
    assert node.post("/v1/completions", body).status == 200
    deadline = time.monotonic() + 30
    while b"vllm:num_requests_running{" not in node.get("/metrics").body:
        assert time.monotonic() < deadline, "a scheduler says what it does within a second"
        time.sleep(0.05)
    found: dict[str, Labels] = {}
    for family in text_string_to_metric_families(node.get("/metrics").body.decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def rules(repository: Path) -> list[dict[str, Any]]:
    yaml: Any = importlib.import_module("yaml")
    groups = yaml.safe_load((repository / "deploy/prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repository / "deploy/prometheus/dashboard.json").read_text())
    return found


def series_of(query: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Each series that is asked for, with label, operator and value of what selects it."""
    plain = re.sub(r"\b(by|ignoring)\s*\([^)]*\)|\[[^\]]*\]", "", query)
    for name, selected in re.findall(r"(?<![\w:$])([A-Za-z_:][\w:]*)\b(\{[^}]*\})?(?!\s*\()", plain):
        yield name, re.findall(r'(\w+)\s*(=~|=|!=)\s*"([^"]*)"', selected)


def check(query: str, said: dict[str, Labels]) -> set[str]:
    """Gives the labels that what comes of it may have."""
    labels = set(OF_PROMETHEUS)
    for name, selected in series_of(query):
        if name == "up":
            continue
        assert name in said, f"{name} in {query}"
        labels |= said[name].keys()
        for label, operator, value in selected:
            assert label in {*said[name], *OF_PROMETHEUS}, f"{label} in {query}"
            if operator == "=":
                assert value in said[name][label], f"{label}={value} in {query}"
    for words in re.findall(r"\bby\s*\(([^)]*)\)", query):
        asked = {word.strip() for word in words.split(",")}
        assert asked <= labels, f"{asked - labels} in {query}"
        labels = asked - {"le"}
    return labels


def test_what_is_asked_for_is_found() -> None:
    query = 'histogram_quantile(0.95, sum by (a, le) (rate(vllm:x_bucket{a="b", c=~".*"}[5m]))) > 1 / up'
    assert dict(series_of(query)) == {"vllm:x_bucket": [("a", "=", "b"), ("c", "=~", ".*")], "up": []}
    with pytest.raises(AssertionError, match="vllm:x_bucket"):
        check(query, {})
    with pytest.raises(AssertionError, match="a=b"):
        check(query, {"vllm:x_bucket": {"a": {"c"}, "c": set(), "le": set()}})


def test_rules_ask_for_what_a_node_says(repository: Path, said: dict[str, Labels]) -> None:
    found = rules(repository)
    assert len({rule["alert"] for rule in found}) == len(found) >= 10
    for rule in found:
        labels = check(rule["expr"], said)
        words = rule["annotations"]["summary"] + rule["annotations"]["action"]
        assert set(re.findall(r"\$labels\.(\w+)", words)) <= labels, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "warning")


def test_the_dashboard_asks_for_what_a_node_says(repository: Path, said: dict[str, Labels]) -> None:
    found = dashboard(repository)
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 12
    for panel in panels:
        for target in panel["targets"]:
            labels = check(DASHBOARDS_OWN.sub("5m", target["expr"]), said)
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, panel["title"]
    for variable in found["templating"]["list"]:
        if variable["type"] == "query":
            (asked,) = re.findall(r"label_values\((\w+), (\w+)\)", variable["definition"])
            assert asked[1] in {*said[asked[0]], *OF_PROMETHEUS}


def test_every_series_of_ours_is_looked_at(repository: Path, said: dict[str, Labels]) -> None:
    """A figure that nobody sees may as well go."""
    queries = [rule["expr"] for rule in rules(repository)]
    queries += [target["expr"] for panel in dashboard(repository)["panels"] for target in panel["targets"]]
    asked = {re.sub("_(bucket|sum|count)$", "", name) for query in queries for name, _ in series_of(query)}
    told = {re.sub("_(bucket|sum|count)$", "", name) for name in said}
    assert told - asked == FOR_ROUTERS


def test_promtool_takes_the_rules(repository: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, which comes with Prometheus")
    file = repository / "deploy/prometheus/alerts.yml"
    checked = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_a_prometheus_has_data_for_all_that_the_dashboard_asks(
    repository: Path, node: RunningNode, tmp_path: Path
) -> None:
    """SOAK_SECONDS: it watches for a minute."""
    seconds = 60 if "SOAK_SECONDS" in os.environ else 12
    host, port = node.address
    is_over = threading.Event()

    def ask() -> None:
        body = {"model": "llm-node-demo", "prompt": "What is", "max_tokens": 20}
        while not is_over.wait(0.2):
            node.post("/v1/completions", body)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with prometheus(tmp_path, repository / "deploy/prometheus/alerts.yml", f"{host}:{port}") as watching:
            node.reload("llm-node-demo")  # which it sees
            time.sleep(seconds)
            for panel in dashboard(repository)["panels"]:
                for target in panel["targets"]:
                    query = re.sub(r"\$(instance|model)\b", ".*", target["expr"])
                    query = DASHBOARDS_OWN.sub(f"{seconds}s", query)
                    assert watching.values(query), (panel["title"], query)
            groups = watching.ask("rules")["groups"]
            rules_seen = [rule for group in groups for rule in group["rules"]]
            assert len(rules_seen) == len(rules(repository))
            for rule in rules_seen:
                assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
            (up,) = watching.values(f'avg_over_time(up{{job="llm-node"}}[{seconds}s])')
            assert up["value"][1] == "1", "each time that it asked it was answered"
    finally:
        is_over.set()
        asking.join()
