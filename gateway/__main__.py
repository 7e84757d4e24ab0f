"""`python -m gateway` is `unprompt`."""

from gateway.cli import main

if __name__ == "__main__":
    main()
