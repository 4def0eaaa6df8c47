# `make train` and `make test` are all a fresh clone needs: each makes .venv if it is missing, installs the pinned
# requirements once, and does its job. Windows has no make: README.md gives the same in three lines of pip.
#
#   PYTHON      the interpreter that .venv is made with              make train PYTHON=python3.12
#   PIP_ARGS    passed to pip install, e.g. an index of CPU builds   make train PIP_ARGS="--extra-index-url URL"
#   TRAIN_ARGS  passed to train.py                                   make train TRAIN_ARGS="--pipeline mfcc --epochs 30"
#   TEST_JOBS   processes that run tests, 2 unless said otherwise    make test TEST_JOBS=4
#   PYTEST_ARGS passed to pytest                                     make test PYTEST_ARGS="-k export -x"
#   BENCH_ARGS  passed to benchmarks/peers.py                        make bench BENCH_ARGS="--folder recordings"

PYTHON ?= python3
TEST_JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install train test bench test-all test-lowest check docs dist clean

help: ## show this
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@sed -n 's/^#   \([A-Z_]*\) *\(.*\)/  \1|\2/p' Makefile | awk -F'|' 'NR==1{print "Settings:"} {printf "%-18s %s\n", $$1, $$2}'

install: $(STAMP) ## make .venv and install the pinned requirements

train: $(STAMP) ## train the three pipelines; models/ and train_logs/ hold the results
	$(BIN)/python ml_training/train.py $(TRAIN_ARGS)

test: $(STAMP) ## every test but those marked slow, gpu, bench or scale
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -m "not (slow or gpu or bench or scale)" --cov --cov-report=term $(PYTEST_ARGS)

bench: $(STAMP) ## our models beside other recognisers: accuracy, speed, memory, size; benchmark_results/
	$(BIN)/python benchmarks/peers.py $(BENCH_ARGS)

test-all: $(STAMP) ## every test that can run here
	$(BIN)/python -m pytest --cov --cov-report=term $(PYTEST_ARGS)

test-lowest: ## the answering part with the oldest dependencies that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install -q uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct . "pytest>=9"
	.venv-lowest/bin/uv pip list --python .venv-lowest/bin/python
	.venv-lowest/bin/python -m pytest -q --noconftest tests/test_runtime.py

docs: $(STAMP) ## the documentation as a site, in site/; warnings and broken links are errors
	$(BIN)/python -m pip install -q "mkdocs-material>=9.7,<10" "mkdocstrings[python]>=1.0,<2"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: ## wheel and source distribution in dist/, checked by twine; the wheel is installed alone and answers
	rm -rf dist build .venv-dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/pip install -q build twine
	.venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*
	$(PYTHON) -m venv --clear .venv-dist
	.venv-dist/bin/pip install -q dist/*.whl
	cd dist && ../.venv-dist/bin/digits predict --example

check: $(STAMP) ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

clean: ## remove .venv and caches; models/ and train_logs/ stay
	rm -rf $(VENV) .venv-lowest .venv-dist build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov demo_output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): ml_training_requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_ARGS) -r ml_training_requirements.txt
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>/dev/null || echo "no such command"); \
	  echo "make: Python 3.11 or newer is needed, '$(PYTHON)' is: $$found. Name another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
