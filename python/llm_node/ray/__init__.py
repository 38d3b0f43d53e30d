"""Nodes as replicas of Ray Serve: `import_path: "llm_node.ray:app"`. Needs `pip install 'llm-node[ray]'`."""

from llm_node.ray.app import app

__all__ = ["app"]
