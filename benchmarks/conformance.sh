#!/bin/sh
# Is the relay transparent? Runs the conformance harness (not in this repository) against `unprompt serve`.
#
#   HARNESS=../shared/conformance benchmarks/conformance.sh [check.py's options, e.g. --only 'sse/*' --quiet]
#
# Without the harness there is nothing to run, which is said and is no failure.
set -eu
HARNESS=${HARNESS:-../shared/conformance}
PYTHON=${PYTHON:-.venv/bin/python}
MOCK_PORT=${MOCK_PORT:-9100}
PORT=${PORT:-9180}

if [ ! -f "$HARNESS/check.py" ]; then
    echo "conformance: skipped, no harness in $HARNESS (name its folder with HARNESS=...)"
    exit 0
fi
folder=$(mktemp -d)
pids=""
trap 'kill $pids 2>/dev/null || true; wait $pids 2>/dev/null || true; rm -rf "$folder"' EXIT INT TERM

upstream="http://localhost:$MOCK_PORT"
cat >"$folder/gateway.yaml" <<YAML
server: {host: 127.0.0.1, port: $PORT, drain_seconds: 1}
providers:
  openai: {protocol: openai, base_url: "$upstream/v1"}
  anthropic: {protocol: anthropic, base_url: "$upstream"}
  gemini: {protocol: gemini, base_url: "$upstream"}
store: {url: "sqlite:///$folder/data/unprompt.db"}
YAML

"$PYTHON" "$HARNESS/mock_upstream.py" --port "$MOCK_PORT" >"$folder/mock.log" 2>&1 &
pids="$!"
"$PYTHON" -m gateway serve --no-jobs --config "$folder/gateway.yaml" >"$folder/gateway.log" 2>&1 &
pids="$pids $!"
tries=0
until "$PYTHON" -c "import socket; [socket.create_connection(('localhost', p), 1).close() for p in ($MOCK_PORT, $PORT)]" 2>/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { cat "$folder/mock.log" "$folder/gateway.log"; exit 2; }
    sleep 0.3
done

status=0
"$PYTHON" "$HARNESS/check.py" "$upstream/v1" "http://127.0.0.1:$PORT/v1" \
    --anthropic "$upstream/v1" "http://127.0.0.1:$PORT/anthropic/v1" \
    --gemini "$upstream/v1beta" "http://127.0.0.1:$PORT/gemini/v1beta" \
    --allow-added-response-header 'x-unprompt-*' "$@" || status=$?
grep -E "ERROR|Traceback|Error:" "$folder/gateway.log" | head -20 || true
exit "$status"
