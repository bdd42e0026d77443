# Two commands matter: `make serve` starts the app, `make test` checks everything.
# Both create .venv and install what they need first. PYTHON=... picks the interpreter,
# ARGS=... is passed on to `flywise serve` or to pytest.

VENV := .venv
BIN := $(VENV)/bin
CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PINNED := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install serve test test-slow lint format bench screenshots clean

help:
	@echo "make serve      start the app in the browser (ARGS='--port 5010' and the like)"
	@echo "make test       lint, then the tests"
	@echo "make lint       ruff, mypy and the import contracts"
	@echo "make format     let ruff mend what it can"
	@echo "make test-slow  the tests marked slow"
	@echo "make bench      the benchmarks (NAME=campaign for one)"
	@echo "make screenshots  take the pictures of the README anew"
	@echo "make clean      remove caches and build outputs (not .venv, not campaigns)"

# A python found by name may still not run (a pyenv shim, say): the first that runs and fits is taken.
$(BIN)/python:
	@for name in $(CANDIDATES); do \
	    if "$$name" -c '$(FITS)' >/dev/null 2>&1; then \
	        echo "Creating $(VENV) with $$name ($$("$$name" --version))"; \
	        exec "$$name" -m venv --clear $(VENV); \
	    fi; \
	done; \
	echo "None of these runs as Python 3.11, 3.12 or 3.13 with venv: $(CANDIDATES)." >&2; \
	echo "Install one (on Debian also python3-venv), or name it: make serve PYTHON=/path/to/python3.12" >&2; \
	exit 1

$(VENV)/.installed: $(PINNED) | $(BIN)/python
	$(BIN)/python -m pip install -e '.[xtb,chem]' -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(PINNED) | $(BIN)/python
	$(BIN)/python -m pip install -e '.[xtb,chem,dft,dev]' -c constraints.txt
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed

serve: $(VENV)/.installed
	$(BIN)/flywise serve $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	for name in $(or $(NAME),posterior campaign app); do $(BIN)/flywise bench $$name $(ARGS) || exit 1; done

screenshots: $(VENV)/.installed-dev
	$(BIN)/python assets/screenshots/make.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .benchmarks test-results
	find app core tests examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
