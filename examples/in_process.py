"""An engine and a model in this process: no node, no HTTP.

    python examples/in_process.py ENGINE_FOLDER [MODEL]

ENGINE_FOLDER holds a manifest.json: `engines/llama_cpp/cpu` after `make setup`. MODEL is a file or folder;
without it the demo model is taken.
"""

from __future__ import annotations

import sys

import llm_node
import llm_node.demo

if len(sys.argv) < 2:
    sys.exit("usage: in_process.py ENGINE_FOLDER [MODEL]")
engine_folder = sys.argv[1]
model_file = sys.argv[2] if len(sys.argv) > 2 else llm_node.demo.path()

with llm_node.Engine(engine_folder) as engine, engine.load(model_file, context_length=512) as model:
    print(f"{engine.id} {engine.version} on {engine.gpu_backend}", file=sys.stderr)
    question = [{"role": "user", "content": "How do I add an engine?"}]
    for piece in model.generate(question, temperature=0, max_tokens=100):
        print(piece, end="", flush=True)
print()
