# Two commands on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint conformance conformance-sdk conformance-frameworks conformance-clients conformance-bodies serve clean

demo: .venv/installed
	@$(BIN)/unprompt demo $(ARGS)

test: .venv/installed-dev lint
	$(BIN)/pytest -n 2 $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

conformance: .venv/installed
	benchmarks/conformance.sh --quiet $(ARGS)

conformance-sdk conformance-frameworks conformance-clients: .venv/installed
	benchmarks/conformance.sh $(@:conformance-%=%) $(ARGS)

conformance-bodies: .venv/installed
	$(BIN)/python benchmarks/large_bodies.py $(ARGS)

serve: .venv/installed
	$(BIN)/unprompt serve

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "unprompt needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
