# Everything sets itself up in .venv; a machine needs Python 3.11, make and a C compiler.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

TESTS ?= tests

.DEFAULT_GOAL := help
.PHONY: help install demo test fuzz bench docs lint types contracts clean

$(INSTALLED): requirements.lock pyproject.toml
	@echo "installing the locked environment into .venv (some minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eelsflow needs Python 3.11 or newer, found " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@echo "compiling (a minute, once)"
	$(BIN)/python -m eelsflow.warm_up
	@touch $@

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

install: $(INSTALLED)  ## the environment alone

demo: $(INSTALLED)  ## the main job on simulated acquisitions
	$(BIN)/eelsflow demo

test: $(INSTALLED)  ## every test, the slow ones included, on up to four cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

fuzz: $(INSTALLED)  ## the property tests with other examples each time, five times as many; TESTS= names files
	$(BIN)/python -m pytest --hypothesis-profile=fuzz -m hypothesis $(TESTS)

bench: $(INSTALLED)  ## every quoted figure beside its peer; hours, or minutes with QUICK=--quick
	-$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement benchmarks/requirements.lock
	$(BIN)/python -m benchmarks $(QUICK)

docs: $(INSTALLED)  ## the handbook, into docs/_build/html; the gallery's scripts are run, and a warning is an error
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -d docs/_build/doctrees -c docs . docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

contracts: $(INSTALLED)
	$(BIN)/lint-imports

clean:
	rm -rf .venv demo docs/_build docs/generated
