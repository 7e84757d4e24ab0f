#!/bin/sh
# Is the relay transparent? Whatever passes directly must pass, unchanged, through `unprompt serve`.
#
#   benchmarks/conformance.sh [check.py's options]     172 cases on raw sockets (a minute): --only 'sse/*', --strict, --quiet
#   benchmarks/conformance.sh sdk                      the OpenAI and Anthropic SDKs' own test suites (8 minutes)
#   benchmarks/conformance.sh frameworks [names]       SDKs and frameworks as clients (3 minutes): openai,litellm,node_openai
#   benchmarks/conformance.sh clients                  HTTP and websocket clients: curl, httpx, requests, fetch, ... (a minute)
#
# The harness is not in this repository: HARNESS names its folder. What the suites need is downloaded to WORK, once.
# What is not there is skipped, with a line that says so and exit code 0; exit code 1 means a difference.
set -eu
cd "$(dirname "$0")/.."
HARNESS=${HARNESS:-../shared/conformance}
PYTHON=${PYTHON:-.venv/bin/python}
WORK=${WORK:-${TMPDIR:-/tmp}/conformance-sdk-suites}
MOCK_PORT=${MOCK_PORT:-9100}
PORT=${PORT:-9180}
folder_of_clients="$WORK/frameworks" # a copy: node looks for its packages beside the script

skip() {
    echo "conformance: skipped, $1"
    exit 0
}

await() { # PORT...: until somebody answers at each of them
    tries=0
    until "$PYTHON" -c "import socket, sys; [socket.create_connection(('localhost', int(p)), 1).close() for p in sys.argv[1:]]" "$@" 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 120 ] || { find "$folder" -name '*.log' -exec tail -n 20 {} +; exit 2; }
        sleep 0.3
    done
}

serve() { # PORT PROVIDER=BASE_URL...: a gateway; the first provider answers at /v1
    home="$folder/$1"
    mkdir "$home"
    {
        echo "server: {host: 127.0.0.1, port: $1, drain_seconds: 1}"
        echo "store: {url: \"sqlite:///$home/data/unprompt.db\"}"
        echo "providers:"
        for provider in "$@"; do
            [ "$provider" = "$1" ] || echo "  ${provider%%=*}: {protocol: ${provider%%=*}, base_url: \"${provider#*=}\"}"
        done
    } >"$home/gateway.yaml"
    "$PYTHON" -m gateway serve --no-jobs --config "$home/gateway.yaml" >"$home/gateway.log" 2>&1 &
    pids="$pids $!"
    await "$1"
}

mock() { # the harness's upstream, and the gateway in front of it
    "$PYTHON" "$HARNESS/mock_upstream.py" --port "$MOCK_PORT" >"$folder/mock.log" 2>&1 &
    pids="$pids $!"
    upstream="http://localhost:$MOCK_PORT" # a name: cookie jars ignore addresses, so a leak shows with a name only
    serve "$PORT" "openai=$upstream/v1" "anthropic=$upstream" "gemini=$upstream"
    await "$MOCK_PORT"
}

check() {
    mock
    "$PYTHON" "$HARNESS/check.py" "$upstream/v1" "http://127.0.0.1:$PORT/v1" \
        --anthropic "$upstream/v1" "http://127.0.0.1:$PORT/anthropic/v1" \
        --gemini "$upstream/v1beta" "http://127.0.0.1:$PORT/gemini/v1beta" \
        --allow-added-response-header 'x-unprompt-*' "$@" || status=$?
}

sdk() {
    command -v npm >/dev/null || skip "no npm, which the suites' mock server needs"
    suites="$HARNESS/sdk_suites/run.sh"
    export WORK
    [ -x "$WORK/venv-anthropic/bin/pytest" ] && [ -x "$WORK/steady/node_modules/.bin/steady" ] || bash "$suites" setup
    bash "$suites" mock >"$folder/mock.log" 2>&1 &
    pids="$pids $!"
    await 4013 4014
    beside=$((PORT + 1)) # 17 of Anthropic's tests patch their HTTP client for the path /v1 and fail below /anthropic, unsent
    serve "$PORT" openai=http://127.0.0.1:4013/v1
    serve "$beside" anthropic=http://127.0.0.1:4014
    both openai http://127.0.0.1:4013/v1 "http://127.0.0.1:$PORT/v1"
    both anthropic http://127.0.0.1:4014 "http://127.0.0.1:$beside"
}

both() { # SUITE DIRECT PROXIED
    echo "$1, directly:     $(bash "$suites" "$1" "$2" direct)"
    echo "$1, through us:   $(bash "$suites" "$1" "$3" proxy)"
    bash "$suites" diff "$1" || status=$?
}

frameworks() { # [NAME,NAME]
    [ -x "$WORK/venv-frameworks/bin/uv" ] || install_frameworks
    mock
    if [ $# -gt 0 ]; then
        compare venv-frameworks v1 "$1"
        return
    fi
    compare venv-frameworks v1 openai,langchain_openai,litellm,instructor,pydantic_ai,openai_agents,dspy
    compare venv-frameworks anthropic/v1 anthropic
    compare venv-frameworks gemini/v1 google_genai
    compare venv-llama v1 llama_index
    ! command -v npm >/dev/null || compare venv-frameworks v1 node_openai,node_ai_sdk
}

compare() { # VENV PATH NAMES
    "$PYTHON" "$folder_of_clients/run.py" "$upstream/v1" "http://127.0.0.1:$PORT/$2" \
        --python "$WORK/$1/bin/python" --only "$3" || status=$?
}

install_frameworks() { # llama-index agrees with the others on no version of openai: it has an environment of its own
    mkdir -p "$WORK" && cp -R "$HARNESS/frameworks" "$WORK/"
    for venv in venv-frameworks venv-llama; do "$PYTHON" -m venv "$WORK/$venv"; done
    "$WORK/venv-frameworks/bin/pip" install --quiet --disable-pip-version-check uv
    grep -v '^llama' "$folder_of_clients/requirements.txt" >"$WORK/requirements.txt"
    set -- "$WORK/venv-frameworks/bin/uv" pip install --quiet
    "$@" --python "$WORK/venv-llama/bin/python" llama-index-llms-openai
    "$@" --python "$WORK/venv-frameworks/bin/python" -r "$WORK/requirements.txt" requests
    ! command -v npm >/dev/null || (cd "$folder_of_clients" && npm install --silent)
}

clients() {
    [ -x "$WORK/venv-frameworks/bin/uv" ] || install_frameworks
    mock
    "$WORK/venv-frameworks/bin/python" benchmarks/http_clients.py "$upstream/v1" "http://127.0.0.1:$PORT/v1" "$@" || status=$?
}

[ -f "$HARNESS/check.py" ] || skip "no harness in $HARNESS (name its folder with HARNESS=...)"
folder=$(mktemp -d)
pids=""
trap 'kill $pids 2>/dev/null || true; wait $pids 2>/dev/null || true; rm -rf "$folder"' EXIT INT TERM
status=0
case ${1:--} in
check | sdk | frameworks | clients) "$@" ;;
-) check ;;
-*) check "$@" ;;
*) sed -n '2,12p' "$0"; exit 2 ;;
esac
grep -rhE --include=gateway.log "ERROR|Traceback|Error:" "$folder" | head -20 || true
exit "$status"
