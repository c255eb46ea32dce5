# Every target sets itself up in $(VENV) from nothing and does no set-up when nothing has changed.
#   make demo    an evaluation on bundled pictures; writes out/demo/
#   make test    the test suite (offline, CPU)
# All versions are pinned in constraints.txt. Another interpreter: make PYTHON=/path/to/python3.12 test

PYTHON ?= python3
VENV ?= .venv
DEMO_OUT ?= out/demo

BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
MINI_PYPROJECT := $(wildcard packages/miniworld/pyproject.toml)
MINI := $(if $(MINI_PYPROJECT),-e ./packages/miniworld)
PINS := pyproject.toml constraints.txt $(MINI_PYPROJECT)
# --no-compile halves the time: most modules of torch and transformers are never imported here.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# Opt-in tests (pytest markers); .ci/run runs them.
DEFAULT_TESTS := not slow and not load and not kill and not ray
# One compute thread per worker: quicker than oversubscribed cores, and results that do not depend on their number.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
JOBS ?= 2
TESTS ?= tests

.PHONY: help demo test lint format types docs docs-serve bench setup setup-ci clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    evaluate bundled pictures and write a report to $(DEMO_OUT)"
	@echo "make test    run the tests (TESTS=tests/stats for a part, JOBS=1 for one process)"
	@echo "make lint    ruff check, ruff format --check, and the list of packages"
	@echo "make format  let ruff mend what it can"
	@echo "make types   mypy --strict"
	@echo "make docs    build the documentation into site/ (docs-serve: look at it while writing)"
	@echo "make bench   run the benchmarks and write benchmarks/RESULTS.md (BENCH=\"name …\" for some)"
	@echo "make setup   only create $(VENV) with everything that development needs"
	@echo "make clean   remove build outputs ($(VENV) and out/ stay)"

# ---------------------------------------------------------------------------------------------------------- set-up

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo: $(STAMPS)/venv $(PINS)
	@echo "Installing what the demo needs into $(VENV) (a few minutes the first time) …"
	@$(INSTALL) -e ".[attacks,metrics,plots]" $(MINI)
	@touch $@

$(STAMPS)/dev: $(STAMPS)/venv $(PINS)
	@echo "Installing what development needs into $(VENV) (a few minutes the first time) …"
	@$(INSTALL) -e ".[attacks,metrics,plots,parquet,study,dev]" $(MINI)
	@# Test oracles that stand in no extra: the requirements of one would bring torchvision (the tests put a stub in its
	@# place), the other is GPL.
	@$(INSTALL) --no-deps piq krippendorff
	@touch $@

$(STAMPS)/docs: $(STAMPS)/venv $(PINS)
	@echo "Installing what the documentation needs into $(VENV) …"
	@$(INSTALL) -e ".[docs]"
	@touch $@

$(STAMPS)/ci: $(STAMPS)/dev
	@echo "Installing what the opt-in tests need into $(VENV) …"
	@$(INSTALL) -e ".[ray,browser,datasets,notebooks]"
	@touch $@

setup: $(STAMPS)/dev

setup-ci: $(STAMPS)/ci

# --------------------------------------------------------------------------------------------------------- targets

demo: $(STAMPS)/demo
	$(BIN)/isr demo --out $(DEMO_OUT)

test: $(STAMPS)/dev
	$(TEST_ENV) $(BIN)/python -m pytest $(TESTS) -n $(JOBS) --dist loadfile -m "$(DEFAULT_TESTS)" $(PYTEST_ARGS)

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_packages.py

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMPS)/dev
	$(BIN)/python tools/typecheck.py

docs: $(STAMPS)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(STAMPS)/docs
	$(BIN)/mkdocs serve

bench: $(STAMPS)/dev
	$(BIN)/python benchmarks/run.py $(BENCH)

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
