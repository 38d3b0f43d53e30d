"""Benchmarks of llm-node against llama-server; see docs/benchmarks.md."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
