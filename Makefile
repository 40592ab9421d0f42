# make test    everything: environment, build, tests        make build   rebuild the native parts in place
# make demo    train, discover, prune, measure on digits    make lint    style
# make bench   latency of ops and of whole models, dense and sparse
# The environment is made once and again only when the files that describe it change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: test demo bench build lint clean

test: $(STAMP) build
	$(BIN)/python -m pytest -q

demo: $(STAMP) build
	$(BIN)/vitsparse run --preset digits --out runs/digits

# Rows with machine, commit and quartiles; compare only within one group of one run.
bench: $(STAMP) build
	$(BIN)/python -m pytest -o addopts=--import-mode=importlib benchmarks --benchmark-only --benchmark-json=benchmark.json

lint: $(STAMP)
	$(BIN)/ruff check .

build: $(STAMP)
	$(BIN)/python setup.py --quiet build_ext --inplace

# torch comes before vitsparse, because the op libraries are compiled against the headers of the torch that will load them.
$(STAMP): pyproject.toml constraints.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vitsparse needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel cmake ninja pybind11 torch numpy
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $(STAMP)

clean:
	rm -rf build dist *.egg-info vitsparse/*.so
