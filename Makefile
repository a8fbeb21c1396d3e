# Needs Python >= 3.11 and make. The first target that needs it makes .venv and installs into it;
# it does so again when pyproject.toml changes or the checkout was moved.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3 python)
CODE := $(wildcard celery_defer tests examples benchmarks noxfile.py)
# Arguments for pytest: make test ARGS='tests/unit -k duration'; ARGS='-n 0 ...' runs them in one process.
ARGS ?=
# Processes that run tests. Most of a test is waiting for workers, so there may be more of them than cores; with
# many more, what is measured in seconds is measured on a machine that is late. A module's tests stay together, as they
# share its worker, and the modules keep their order: the longest, of crashes, come first.
PROCESSES ?= 4

# An editable install and the scripts in .venv/bin remember where the checkout was.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: help venv test soak versions lowest docker demo bench bench-events bench-children check lint format format-check types mypy pyright imports coverage build clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1:/p' Makefile | while IFS=: read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done

venv: $(STAMP) ## make .venv and install the package and its tools
	@:

$(STAMP): pyproject.toml
	@if { [ -e $(STAMP) ] && [ "$$(cat $(STAMP))" != "$$(pwd -P)" ]; } \
	    || ! $(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    found=; \
	    for candidate in $(PYTHONS); do \
	        "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found="$$candidate" && break; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "make: can't make $(VENV): no Python >= 3.11 among: $(PYTHONS)." >&2; \
	        echo "make: install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	        exit 1; \
	    fi; \
	    echo "making $(VENV) with $$found ($$("$$found" -c 'import platform; print(platform.python_version())'))"; \
	    if ! "$$found" -m venv --clear $(VENV); then \
	        echo "make: $$found can't make a virtual environment: install its venv package" >&2; \
	        echo "make: (Debian, Ubuntu: python3-venv), or name another Python with PYTHON=" >&2; \
	        exit 1; \
	    fi; \
	fi
	@echo "installing celery_defer and its tools into $(VENV)"
	@$(PY) -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@pwd -P > $(STAMP)

test: $(STAMP) ## run the tests (ARGS=... goes to pytest)
	@$(PY) -m pytest -q -n $(PROCESSES) --dist loadscope --no-loadscope-reorder $(ARGS)

# What is simulated follows from the seed, what the threads make of it doesn't.
soak: $(STAMP) ## simulate events and waits under faults (SECONDS=120 SEED=1)
	@SECONDS=$(or $(SECONDS),120) SEED=$(SEED) $(PY) -m tests.simulation

versions: $(STAMP) ## try the supported versions of Python, Celery, SQLAlchemy (ARGS='-s lowest')
	@$(VENV)/bin/nox $(ARGS)

lowest: $(STAMP) ## try the lowest versions that pyproject.toml names
	@$(VENV)/bin/nox -s lowest

docker: $(STAMP) ## run the tests that need a Docker engine
	@$(PY) -m pytest -q -m docker $(ARGS) tests/docker

demo: $(STAMP) ## show durable runs surviving crashes, in one terminal
	@$(PY) -m examples.demo

bench: $(STAMP) ## measure beside plain Celery, DBOS and the raw limit (needs PostgreSQL)
	@$(PY) -m pip install -qq --disable-pip-version-check --editable '.[bench]'
	@$(PY) -m benchmarks $(ARGS)

bench-events: $(STAMP) ## measure events and waits, among 1,000 and 1,000,000 open ones (needs PostgreSQL)
	@$(PY) -m pip install -qq --disable-pip-version-check --editable '.[bench]'
	@$(PY) -m benchmarks.events $(ARGS)

bench-children: $(STAMP) ## measure map beside chords, and invoke beside .get() (needs PostgreSQL)
	@$(PY) -m pip install -qq --disable-pip-version-check --editable '.[bench]'
	@$(PY) -m benchmarks.children $(ARGS)

check: lint format-check types imports ## everything but the tests

lint: $(STAMP) ## ruff's rules
	@$(PY) -m ruff check .

format: $(STAMP) ## format the code and fix what ruff can fix
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

format-check: $(STAMP) ## tell whether the code is formatted
	@$(PY) -m ruff format --check .

types: mypy pyright ## both type checkers

mypy: $(STAMP)
	@$(PY) -m mypy $(CODE)

pyright: $(STAMP)
	@$(PY) -m pyright

imports: $(STAMP) ## check that imports go down only
	@$(VENV)/bin/lint-imports

coverage: $(STAMP) ## run the tests, slower, and show which lines they reach (ARGS=... goes to pytest)
	@rm -f .coverage .coverage.*
	@$(PY) -m coverage run -m pytest -q -n $(PROCESSES) --dist loadscope --no-loadscope-reorder $(ARGS)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report

build: $(STAMP) ## a wheel into dist/
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean: ## remove .venv, caches and what tests left behind
	rm -rf $(VENV) .nox .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
