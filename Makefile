# The habits, each by its name. PYTHON makes the environment in VENV; both can be given.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
EVERY ?= 1
BIN := $(VENV)/bin

.PHONY: run test format lint type bench docs clean

run: $(VENV)/.run  ## set up, then factor and differentiate a real data set
	$(BIN)/python -m jaxqr $(FILES)

test: $(VENV)/.test  ## set up, then run all tests, the doctests among them
	$(BIN)/python -m pytest -n $(JOBS) --every $(EVERY)

format: $(VENV)/.dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check

type: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.bench  ## all suites against JAX and what else is installed
	$(BIN)/python -m bench $(SUITES)

docs: $(VENV)/.docs  ## the site, in build/site
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV)

# What is installed for what; "run" needs no extra.
$(VENV)/.run: EXTRA :=
$(VENV)/.test: EXTRA := [test]
$(VENV)/.dev: EXTRA := [dev]
$(VENV)/.bench: EXTRA := [bench]
$(VENV)/.docs: EXTRA := [docs]

# Before anything is made: code that the oldest Python can read, and one line from it.
OLD_ENOUGH := import sys; v = sys.version_info; v >= (3, 11) or sys.exit("jaxqr needs Python 3.11 \
or newer, $(PYTHON) is %d.%d: make $(or $(MAKECMDGOALS),run) PYTHON=python3.12" % v[:2])

$(VENV)/.%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c '$(OLD_ENOUGH)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --editable '.$(EXTRA)'
	touch $@
