"""The nodes behind Ray Serve as a list for Prometheus."""

from __future__ import annotations

from typing import Any

import ray

from llm_node.ray import private
from llm_node.ray.app import NODE
from llm_node.server.address import url


class NoTargetsError(Exception):
    """There is no list, and this is why."""


def targets() -> list[dict[str, Any]]:
    """Each node at its own address, as Prometheus' `file_sd` has it. Raises `NoTargetsError`.

    Asks the cluster that this machine belongs to, or that `RAY_ADDRESS` names.
    """
    try:
        ray.init(address="auto", logging_level="error", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise NoTargetsError(f"there is no Ray cluster here: {error}") from None
    try:
        groups = private.target_groups()
    except ValueError:
        raise NoTargetsError("Ray Serve does not run in this cluster") from None
    except (AttributeError, TypeError) as error:
        raise NoTargetsError(f"this version of Ray tells no addresses of replicas: {error}") from None
    except ray.exceptions.RayError as error:
        raise NoTargetsError(f"Ray Serve's controller does not answer: {error}") from None
    finally:
        ray.shutdown()
    if any(not group.app_name for group in groups):
        raise NoTargetsError(
            "requests pass through Python here (RAY_SERVE_ENABLE_HA_PROXY is not set), and no node listens "
            "for other machines"
        )
    return [
        {
            "targets": [url(target.ip, target.port).removeprefix("http://")],
            "labels": {"application": group.app_name, "replica": target.name},
        }
        for group in groups
        if group.ingress_deployment_name == NODE
        for target in group.targets
    ]
