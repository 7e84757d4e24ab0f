"""`python -m gateway` is `unprompt`."""

from __future__ import annotations

import sys


def main() -> None:
    """The command line; whoever presses Ctrl-C while it is still being loaded sees no traceback either."""
    try:
        from gateway.cli import main as commands
    except KeyboardInterrupt:
        sys.exit(130)
    commands()


if __name__ == "__main__":
    main()
