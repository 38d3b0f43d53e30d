"""What a file for Ray Serve names, and what it may say there."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve

from llm_node.ray.replica import Replica

NODE = "node"
"""Of the deployment."""
MOST_REQUESTS = 8192
"""At once, on a way that Ray counts them on. How many a node takes is for the node to say."""


class Arguments(BaseModel):
    """`args` of the application."""

    model_config = ConfigDict(extra="forbid")

    config: str
    """The node's own settings file, at the same path on each machine."""


def app(args: dict[str, Any]) -> serve.Application:
    """The application: one deployment of which each replica is a node."""
    arguments = Arguments.model_validate(args)
    deployment = serve.deployment(name=NODE, max_ongoing_requests=MOST_REQUESTS)(serve.ingress()(Replica))
    return deployment.bind(arguments.config)
