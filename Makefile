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
.PHONY: help install train test bench test-all check clean

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

check: $(STAMP) ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

clean: ## remove .venv and caches; models/ and train_logs/ stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov demo_output
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
