#!/bin/sh
# What the relay costs, beside plain nginx, with recording on. Needs the bench harness (not in this repository),
# cc, nginx and taskset:
#
#   BENCH=../shared/bench benchmarks/relay.sh [--rounds 3]
set -eu
BENCH=${BENCH:-../shared/bench}
PYTHON=${PYTHON:-$PWD/.venv/bin/python}
if [ ! -f "$BENCH/bench.py" ]; then
    echo "relay: skipped, no bench harness in $BENCH (name its folder with BENCH=...)"
    exit 0
fi
# Each start has a fresh store; the recording worker runs on the same core and is counted.
exec "$PYTHON" "$BENCH/bench.py" --name unprompt "$@" -- sh -c '
    mkdir -p store-{port}
    echo "server: {port: {port}}
providers: {openai: {protocol: openai, base_url: \"http://127.0.0.1:{upstream}/v1\"}}
store: {url: \"sqlite:///$PWD/store-{port}/unprompt.db\"}" >gateway-{port}.yaml
    exec '"$PYTHON"' -m gateway serve --no-jobs --config gateway-{port}.yaml'
