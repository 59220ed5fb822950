# Bare `make` lists the targets. Everything runs in .venv, which is made once and again when its inputs change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check bench openapi package clean distclean kernels

help:  ## Explain the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) kernels  ## Build the example market, fingerprint it on Spark, train the router, write report.html
	@$(BIN)/fairpath demo $(ARGS)

test: $(INSTALLED) kernels  ## Run the tests (make test ARGS='tests/ppr -k graph')
	@$(BIN)/python -m pytest $(ARGS)

check: $(INSTALLED)  ## Lint, formatting, types, and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(INSTALLED) kernels  ## Measure everything in docs/benchmarks.md (a part: make bench-router)
	@$(BIN)/python tests/bench/run.py $(ARGS)

bench-%: $(INSTALLED) kernels
	@$(BIN)/python tests/bench/run.py $*

openapi: $(INSTALLED)  ## Write docs/openapi.json, the document of the service
	@$(BIN)/fairpath openapi --out docs/openapi.json

package: $(INSTALLED)  ## Build the wheel, and the same as a zip for spark-submit --py-files, in dist/
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@for wheel in dist/fairpath-*.whl; do cp "$$wheel" "$${wheel%-py3-none-any.whl}.zip"; done
	@ls dist/fairpath-*

# numba's cache does not notice a change in a module that a kernel calls: after one, all are compiled anew.
kernels:
	@find ppr tests -name '*.nb[ci]' ! -newer "$$(ls -t ppr/kernels/*.py | head -1)" -delete

clean:  ## Remove build products and caches
	@rm -rf dist build report.html fairqueue.html .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find ppr router jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Remove .venv as well
	@rm -rf $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Fairpath needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing Fairpath and its pinned dependencies into $(VENV) (once, a minute or two)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
		hatchling editables setuptools  # pyspark comes as source
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable '.[server,serve,postgresql,encoder,router,dask,dev]'
	@touch $@
