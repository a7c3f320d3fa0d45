# The habits, each by its name. PYTHON makes the environment in VENV; both can be given.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
BIN := $(VENV)/bin

.PHONY: run test format lint type bench clean

run: $(VENV)/.run  ## set up, then factor and differentiate a real data set
	$(BIN)/python -m jaxqr $(FILES)

test: $(VENV)/.test  ## set up, then run all tests, the doctests among them
	$(BIN)/python -m pytest -n $(JOBS)

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

clean:
	rm -rf $(VENV)

# What is installed for what; "run" needs no extra.
$(VENV)/.run: EXTRA :=
$(VENV)/.test: EXTRA := [test]
$(VENV)/.dev: EXTRA := [dev]
$(VENV)/.bench: EXTRA := [bench]

$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.$(EXTRA)'
	touch $@
