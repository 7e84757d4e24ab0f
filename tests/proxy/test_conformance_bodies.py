"""Bodies far larger than what the gateway may hold: they arrive byte for byte, and its memory stays where it was.

With 500 MB each and as a table: `python benchmarks/large_bodies.py`.
"""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from types import ModuleType

import pytest

MB = 200
RECORDED_MB = 16
"""What is recorded of an answer (`capture.max_body_mb`); five copies of it may exist while that is written."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory in /proc")


@pytest.fixture(scope="module")
def bodies() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:  # it imports its neighbours, as a script does
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        return importlib.import_module("large_bodies")


def test_uploads_and_downloads_pass_at_constant_memory(tmp_path: Path, bodies: ModuleType) -> None:
    chosen = [
        bodies.Body("multipart", upload=True, kind="multipart/form-data; boundary=b"),
        bodies.Body("to a slow upstream", upload=True, chunked=True, slow=True),
        bodies.Body("download", upload=False),
        bodies.Body("to a slow client", upload=False, chunked=True, slow=True),
    ]
    results = asyncio.run(bodies.measure(tmp_path, MB, chosen))  # which checks every byte
    assert [result.mb for result in results] == [MB] * 4
    uploads, downloads = results[:2], results[2:]
    assert max(result.growth for result in uploads) < 64, uploads
    assert max(result.growth for result in downloads) < 5 * RECORDED_MB + 16, downloads
