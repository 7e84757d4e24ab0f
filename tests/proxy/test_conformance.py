"""The conformance harness's quick cases, directly and through a real `unprompt serve`: equal facts on both ways.

All cases, the SDKs' test suites and real clients: `make conformance`, `make conformance-sdk`,
`make conformance-frameworks`, `make conformance-clients`.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HARNESS = Path(__file__).parents[3] / "shared" / "conformance"
SLOW = [
    "error/slow-*", "ws/gap", "upload/slow", "upload/client-aborts", "upload/*20mb", "abort/*",
    "conn/upstream-idle-*",
]  # fmt: skip
KNOWN = {
    "upload/early-answer": "a JSON request is read whole before the upstream is asked",
}
"""SHOULDs that are broken; docs/conformance.md says why."""

pytestmark = pytest.mark.skipif(not (HARNESS / "check.py").is_file(), reason=f"no conformance harness in {HARNESS}")


@contextlib.contextmanager
def announced(command: list[str], pattern: str, log: Path) -> Iterator[str]:
    """Runs a server; gives the part of its first line that says where it listens."""
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(pattern, line)
            assert found is not None, (line, log.read_text())
            yield found[1]
        finally:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def gateway_before_mock(home: Path) -> Iterator[tuple[str, str]]:
    """The mock's and the gateway's address."""
    mock = [sys.executable, "-u", str(HARNESS / "mock_upstream.py"), "--port", "0"]
    with announced(mock, r"127\.0\.0\.1:(\d+)", home / "mock.log") as port:
        upstream = (
            f"http://localhost:{port}"  # a name: cookie jars ignore addresses, so a leak shows with a name only
        )
        config = home / "gateway.yaml"
        config.write_text(
            f"server: {{drain_seconds: 0.5}}\nstore: {{url: 'sqlite:///{home}/data/unprompt.db'}}\nproviders:\n"
            f"  openai: {{protocol: openai, base_url: '{upstream}/v1'}}\n"
            f"  anthropic: {{protocol: anthropic, base_url: '{upstream}'}}\n"
            f"  gemini: {{protocol: gemini, base_url: '{upstream}'}}\n"
        )
        serve = [sys.executable, "-m", "gateway", "serve", "--no-jobs", "--port", "0", "--config", str(config)]
        with announced(serve, r"relays (http://[^/]+)/v1", home / "gateway.log") as ours:
            yield upstream, ours


def run_cases(home: Path) -> list[dict[str, Any]]:
    """Every case's name, text, verdict and problems."""
    with gateway_before_mock(home) as (upstream, ours):
        command = [
            sys.executable, str(HARNESS / "check.py"), f"{upstream}/v1", f"{ours}/v1", "--quiet",
            "--anthropic", f"{upstream}/v1", f"{ours}/anthropic/v1",
            "--gemini", f"{upstream}/v1beta", f"{ours}/gemini/v1beta",
            "--allow-added-response-header", "x-unprompt-*", "--json", str(home / "cases.json"),
            *(part for pattern in (*SLOW, *KNOWN) for part in ("--skip", pattern)),
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    file = home / "cases.json"
    assert file.is_file(), run.stdout + run.stderr
    cases: list[dict[str, Any]] = json.loads(file.read_text())["cases"]
    return cases


def test_what_passes_directly_passes_through_us() -> None:
    with tempfile.TemporaryDirectory() as home:
        cases = run_cases(Path(home))
    broken = {
        case["name"]: (case["text"], case["problems"]) for case in cases if case["verdict"] not in ("pass", "info")
    }
    assert len(cases) > 120
    assert broken == {}
