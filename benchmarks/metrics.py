"""What counting costs, in microseconds a call, and how long a scrape takes.

python benchmarks/metrics.py
"""

from __future__ import annotations

import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.domain.exchange import Begin, End, Outcome, Usage
from gateway.metrics import Metrics, Sheet
from gateway.proxy.record import Seen

CALLS = 100_000


def seen(model: str, *, streamed: bool = True) -> Seen:
    """An answered exchange, as the relay tells of it."""
    begin = Begin(
        id="e1", started_at=0.0, method="POST", endpoint="/v1/chat/completions", provider="openai", route="mail",
        task=None, task_hint=None, model_requested=model, key_id=None, tags={}, request_headers={}, request=b"",
    )  # fmt: skip
    end = End(
        id="e1", target=f"openai/{model}", stripped=False, status=200, streamed=streamed, complete=True,
        error_type=None, latency_ms=1500.0, ttft_ms=90.0 if streamed else None, model_served=f"{model}-1",
        finish_reason="stop", usage=Usage(input=100, output=20, source="upstream"), cost_usd=0.25, attempts=[],
        response_headers={}, response=b"",
    )  # fmt: skip
    return Seen(begin=begin, end=end, operation="chat", outcome=Outcome.OK, overhead=0.0004, fallback=None)


def per_call(work: Callable[[], object]) -> float:
    """Microseconds of processor time, the best of seven rounds."""
    return min(timeit.repeat(work, timer=time.process_time, number=CALLS, repeat=7)) / CALLS * 1e6


def scraped(metrics: Metrics) -> tuple[float, float, int]:
    """Seconds for all of it, seconds for its longest piece, lines."""
    longest, text, started = 0.0, [], time.process_time()
    last = started
    for page in metrics.pages():
        now = time.process_time()
        longest, last = max(longest, now - last), now
        text.append(page)
    return last - started, longest, b"".join(text).count(b"\n")


def main() -> None:
    say = sys.stdout.write
    with tempfile.TemporaryDirectory() as folder:
        metrics = Metrics(Path(folder), lambda: 3)
        one, plain = seen("gpt-6"), seen("gpt-6", streamed=False)
        say(f"observe, stream      {per_call(lambda: metrics.observe(one)):8.2f} us\n")
        say(f"observe, no stream   {per_call(lambda: metrics.observe(plain)):8.2f} us\n")
        say(f"record               {per_call(lambda: metrics.record('written')):8.2f} us\n")
        say(f"late                 {per_call(lambda: metrics.late(0.0004)):8.2f} us\n")
        for kinds, workers in ((10, 1), (200, 1), (200, 4), (1000, 4)):
            sheets = [Sheet() for _ in range(workers)]
            for worker in range(workers):
                other = Metrics(Path(folder), lambda: 3, sheets=sheets, worker=worker)
                for number in range(kinds):
                    other.observe(msgspec.structs.replace(seen(f"m{number % 150}"), operation=f"o{number // 150}"))
            total, longest, lines = scraped(other)
            say(
                f"scrape, {kinds:5} kinds, {workers} workers {total * 1000:8.1f} ms, "
                f"longest piece {longest * 1000:5.1f} ms, {lines:,} lines\n"
            )


if __name__ == "__main__":
    main()
