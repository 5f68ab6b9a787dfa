# `make train` and `make test` do all the set-up they need; `make setup` alone does just that.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# pip compiles on one core alone, which takes longer than all else it does: compileall does it afterwards, on all of them.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --no-deps
UNUSED = '/(tests?|testing|databricks|debugpy|fontTools|mypy|OpenGL|pip|pygments|setuptools|sqlalchemy/dialects)/'

.PHONY: setup train test test-all test-cluster lint format benchmarks clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "mfrl needs Python 3.11 to 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@# pip works on one core: two of them, with half of the packages each, are done in little more than half the time. All
	@# packages are listed, so neither asks what a package requires. Left out are labmaze, which OGBench requires and nothing
	@# here imports (it has no wheel for Python 3.13), and the packages of clusters, which only `make test-cluster` needs.
	awk '!/^(#|labmaze=|ray=|msgpack=|submitit=)/ { print > ("$(VENV)/packages" n++ % 2 ".txt") }' constraints.txt
	$(INSTALL) --requirement $(VENV)/packages0.txt & first=$$!; \
		$(INSTALL) --requirement $(VENV)/packages1.txt && wait $$first
	$(INSTALL) --editable .
	@# Not what nothing here imports, which is two fifths. Some packages have files for other Pythons, which fail.
	@$(BIN)/python -m compileall -q -j 0 -x $(UNUSED) $(VENV)/lib >/dev/null 2>&1 || true
	touch $(READY)

train:
	@echo "The quickstart: collects 200,000 transitions of a point maze in the simulator, trains a one-step policy on them"
	@echo "and evaluates it over 50 episodes. About five minutes on two slow CPU cores; at first some minutes of installing."
	@$(MAKE) --no-print-directory $(READY)
	$(BIN)/mfrl train experiment=quickstart $(ARGS)

# Each process takes a run of files, whose tests share what they train; one that is done early takes half of another's rest.
# One process a core, and at most four: a further one on two cores took longer.
PROCESSES = $$($(BIN)/python -c 'import os; print(min(4, os.cpu_count() or 1))')
PYTEST = $(BIN)/python -m pytest -n $(PROCESSES) --dist=worksteal

test: $(READY)
	$(PYTEST) $(ARGS)

test-all: $(READY)
	$(PYTEST) -m "not cluster" $(ARGS)

# One after another: each starts a cluster. Slurm's want root, and install Debian's packages; without root they are skipped.
test-cluster: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ray submitit
	$(BIN)/python -m pytest -n0 -m cluster tests/app/test_cluster.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(READY)
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/act.py
	$(BIN)/python benchmarks/data.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache dist build
