"""The judge's bench: which of two live answers is better, asked beside the watch, which waits for no judge."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from gateway.errors import UnpromptError
from gateway.pipeline.asking import Ask
from gateway.pipeline.judge import Comparison, compare

log = logging.getLogger(__name__)

AT_ONCE = 4
"""So many pairs are before judges at the same time."""
KEPT_SECONDS = 1800.0
"""A verdict that nobody has asked for again is thrown away after so long."""
HUNG_SECONDS = 600.0
"""A judge that has said nothing for so long has no place on the bench any more."""


class Verdict(NamedTuple):
    """`preference`: 1 for the candidate, 0 for the incumbent, 0.5 for a tie; None: the judge gave no word.
    `cost_usd` None: its price is not known."""

    preference: float | None
    cost_usd: float | None


class Bench:
    """Verdicts by the id of the audit. What is lost with the process is asked again by the next one."""

    def __init__(self, judges: Callable[[str, str], Ask]) -> None:
        """`judges`: how a model is asked, by its provider's name and its own."""
        self._judges = judges
        self._found: dict[str, tuple[float, Verdict]] = {}
        self._asked: dict[str, float] = {}
        self._lock = threading.Lock()

    def verdict(self, audit: str) -> Verdict | None:
        """The verdict, once: it is not kept any longer. None: there is none yet."""
        with self._lock:
            found = self._found.pop(audit, None)
        return found[1] if found else None

    def is_asked(self, audit: str) -> bool:
        """Whether the judge has this pair before it."""
        with self._lock:
            return audit in self._asked or audit in self._found

    @property
    def is_full(self) -> bool:
        """Whether no further pair is taken for now."""
        now = time.monotonic()
        with self._lock:
            self._asked = {one: since for one, since in self._asked.items() if now - since < HUNG_SECONDS}
            return len(self._asked) >= AT_ONCE

    def ask(self, audit: str, judge: str, comparison: Comparison) -> None:
        """Have a judge (`provider/model`) compare; the verdict comes later. In a thread that ends with the process:
        a judge that hangs holds up nothing."""
        with self._lock:
            self._asked[audit] = time.monotonic()
            self._found = {
                one: kept for one, kept in self._found.items() if time.monotonic() - kept[0] < KEPT_SECONDS
            }
        threading.Thread(target=self._judge, args=(audit, judge, comparison), name="judge", daemon=True).start()

    def _judge(self, audit: str, judge: str, comparison: Comparison) -> None:
        verdict = Verdict(None, None)
        try:
            provider, _, model = judge.partition("/")
            (value,), bill = compare(self._judges(provider, model), judge, [comparison])
            verdict = Verdict(None if bill.unanswered else value, bill.cost_usd)
        except UnpromptError as error:
            log.warning("the judge %s cannot be asked: %s", judge, error)
        finally:
            with self._lock:
                self._asked.pop(audit, None)
                self._found[audit] = (time.monotonic(), verdict)
