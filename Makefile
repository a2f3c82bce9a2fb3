# Each target does its own set-up: a virtual environment in .venv, filled once and again when pyproject.toml changes.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test check lint bench docs clean

demo: $(VENV)/.featcache  ## the main job end to end on generated leukocytes; a report at the end
	$(BIN)/featcache demo demo

# Two processes share the cores: threads of their own, which wait for each other in a loop, only cost time.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1

test: $(VENV)/.featcache-test  ## the tests, two files at a time; PYTEST_ARGS="-n 0" one after the other
	PYTHONDONTWRITEBYTECODE= $(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.featcache-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## every gate: ruff, mypy --strict, import-linter, pytest

bench: $(VENV)/.featcache-test  ## what docs/explanation/benchmarks.md quotes
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/many_rows.py
	$(BIN)/python benchmarks/intervals.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/large.py --images 1000000
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/cluster.py
	$(BIN)/python benchmarks/extract.py
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/share.py
	$(BIN)/python benchmarks/shared_pixels.py
	$(BIN)/python benchmarks/scratch.py

docs: $(VENV)/.featcache-docs  ## the site, in build/docs: no network is needed, and a broken link is an error
	$(BIN)/python -m sphinx -b html -E -W --keep-going -q docs build/docs
	@echo "docs: build/docs/index.html"

clean:
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("featcache needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.featcache: $(BIN)/python pyproject.toml
	$(PIP) install -e '.[tensorflow,fast]'
	@touch $@

$(VENV)/.featcache-test: $(BIN)/python pyproject.toml
	$(PIP) install -e '.[test]'
	@touch $@ $(VENV)/.featcache

$(VENV)/.featcache-docs: $(BIN)/python pyproject.toml
	$(PIP) install -e '.[docs]'
	@touch $@

$(VENV)/.featcache-check: $(BIN)/python pyproject.toml
	$(PIP) install -e '.[check]'
	@touch $@ $(VENV)/.featcache $(VENV)/.featcache-test
