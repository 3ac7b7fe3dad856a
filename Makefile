# make demo     installs the requirements and serves the app on http://127.0.0.1:7860
#               BASE=<Hub id, folder or .gguf>  QUANTIZATION=nf4|int8|none  DEVICE=auto|cpu|cuda  DATA_DIR=<folder>  PORT=<n>
# make test     runs `make check` and all tests (ARGS="-k name" passes arguments to pytest; WORKERS=0 uses one process)
# make test-fast  does the same without the tests that need a model, a browser or more than a few seconds
# make check    runs ruff, mypy and import-linter
# make clean    removes .venv and the tools' caches, but not the converted models and adapters in the user's cache

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Modules are compiled when they are first imported: most of them never are.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile

.PHONY: demo test pytest test-fast check setup setup-test clean
.DEFAULT_GOAL := demo

# Exit status 130 (Ctrl-C) is the usual end of the app, so make does not report it as an error.
demo: setup
	@trap : INT; $(BIN)/python app.py $(if $(BASE),--base "$(BASE)") $(if $(QUANTIZATION),--quantization "$(QUANTIZATION)") \
	    $(if $(DEVICE),--device "$(DEVICE)") $(if $(DATA_DIR),--data-dir "$(DATA_DIR)") $(if $(PORT),--port "$(PORT)") \
	    || { status=$$?; [ $$status -eq 130 ] || exit $$status; }

# The checks run beside the tests, which wait for other programs part of the time.
test: setup-test
	@$(MAKE) --no-print-directory --jobs=2 check pytest

# Without the flags of this make: a test runs make itself.
pytest: setup-test
	@MAKEFLAGS= $(PYTEST) $(ARGS)

test-fast: setup-test check
	@$(PYTEST) -m "not model and not browser and not slow" $(ARGS)

check: setup-test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --diff .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

setup: .venv/.installed

setup-test: .venv/.installed-test

# Each stamp file is newer than the requirements that were installed, so an up-to-date environment is not reinstalled.
.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Prompt or Tune needs Python 3.11 or newer, and '$(PYTHON)' is not: name another with PYTHON=python3.12." >&2; exit 1; }
	@echo "Making .venv ..."
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.made requirements.txt requirements-embedded.txt
	@echo "Installing requirements (a minute or two, longer on a slow line) ..."
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -r requirements-embedded.txt
	@touch $@

.venv/.installed-test: .venv/.installed requirements-test.txt requirements-test-files.txt
	@echo "Installing what the tests need ..."
	@$(PIP) -r requirements.txt -r requirements-test.txt
	@$(PIP) --no-deps -r requirements-test-files.txt
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
