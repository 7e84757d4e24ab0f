"""What the garbage collector of a process that runs for long looks through."""

from __future__ import annotations

import gc


def spare_what_is_loaded() -> None:
    """What is loaded by now is left out, and the rest is looked through less often: all of it again and again cost
    a tenth of each request in the relay, and of each record in the worker."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
