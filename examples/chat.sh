#!/usr/bin/env bash
# List the engines, load the demo model, stream an answer: all with curl.
set -euo pipefail
url=${LLM_NODE_URL:-http://127.0.0.1:3000}
question=${1:-What is an engine?}
json='Content-Type: application/json'

curl -fsS "$url/api/engines"
echo
curl -fsS "$url/api/models/load" -H "$json" -d '{"model_id": "llm-node-demo", "format": "gguf"}'
echo
# -N: show each event when it comes. A question with quotes in it would need escaping.
curl -fsSN "$url/v1/chat/completions" -H "$json" \
  -d "{\"model\": \"llm-node-demo\", \"stream\": true, \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}"
