"""`/openapi.json`, and any request that it allows: each comes to an answer or to an error that it names."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import checks

from llm_node.node import Node
from llm_node.schema import reports
from llm_node.server.app import make_app
from llm_node.server.description import OPERATIONS, TOLD, description, offered
from llm_node.settings import Settings
from support.node import RunningNode

MODEL = "llm-node-demo"
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
SMALL: dict[str, Any] = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict"), 3),
    "n_predict": 3,
    "n_cmpl": 1,
    **dict.fromkeys(("n", "best_of"), 1),
}
"""What keeps answers short."""


def test_each_route_is_described() -> None:
    app = make_app(Node(Settings()), Settings())
    assert {name for name, _ in offered(app)} == set(OPERATIONS)
    assert json.dumps(description(app))


@pytest.fixture(scope="module")
def schema(node: RunningNode) -> Any:
    found = node.get("/openapi.json")
    assert found.status == 200
    return schemathesis.openapi.from_dict(found.json())


def small(value: Any) -> Any:
    """The same for the model that is there, and short. What is whole is an integer: types are strict."""
    if isinstance(value, list):
        return [small(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, dict):
        return value
    asked = {name: SMALL.get(name, small(each)) for name, each in value.items()}
    return {**asked, **{name: MODEL for name in ("model", "model_id", "name") if name in asked}}


def mended(body: Any, shape: Any) -> Any:
    """The same with something to answer, which a schema cannot ask for."""
    if not isinstance(body, dict):
        return body
    question = {"messages": [{"role": "user", "content": "Hi"}], "input": "Hi", "prompt": "Hi"}
    left = {name: each for name, each in body.items() if name not in ("suffix", "previous_response_id")}
    return {**left, **{name: each for name, each in question.items() if name in shape.model_fields}}


REACH_OUT = {"POST /api/models/pull", "GET /api/models/search"}
"""They ask where models are fetched from."""


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - REACH_OUT))
def test_any_request(schema: Any, node: RunningNode, name: str) -> None:
    method, _, path = name.partition(" ")
    strategy = schema[path][method].as_strategy()
    is_mended = itertools.cycle([False, True])

    @settings(
        max_examples=2 if OPERATIONS[name].takes is None else 12,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(case: Any) -> None:
        case.body = small(case.body)
        if next(is_mended):
            case.body = mended(case.body, OPERATIONS[name].takes)
        if case.query and "follow" in case.query:
            case.query["follow"] = "false"
        reply = case.call_and_validate(base_url=node.url, checks=CHECKS, timeout=30)
        assert reply.status_code != 500, reply.text

    run()


def test_reports_are_as_it_says(node: RunningNode) -> None:
    """To the last field: what it shows to others lets later versions add some."""
    components = node.get("/openapi.json").json()["components"]["schemas"]
    loaded = node.reload(MODEL)
    told = {
        "Loaded": loaded,
        "Plan": node.post("/api/models/plan", {"model_id": MODEL}).json(),
        "Engines": node.get("/api/engines").json(),
        "Incidents": node.get("/api/incidents").json(),
        "Models": node.get("/api/models?all=true").json(),
        "System": node.get("/api/system").json(),
    }
    assert told.keys() == TOLD.keys()
    for name, answer in told.items():
        assert components[name] == reports.opened(TOLD[name])
        errors = [error.message for error in Draft202012Validator(TOLD[name]).iter_errors(answer)]
        assert errors == [], name
    wrong = {**told["System"], "uptime_seconds": "long"}
    assert not Draft202012Validator(components["System"]).is_valid(wrong)
