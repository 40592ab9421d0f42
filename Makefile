# make test    everything: environment, build, tests        make build   rebuild the native parts in place
# make demo    train, discover, prune, measure on digits    make lint    style
# make bench   latency of ops and of whole models, dense and sparse
# make sanitize  the tests of the native code on a build with AddressSanitizer and UBSan (TESTS=tests: all tests); needs g++
# make fuzz      100,000 mutated plans and weight files
# make gpu       the tests that need a GPU; when all pass, kernels/verified_on_gpu.json says so
# make sanitize-gpu  the tests of the CUDA kernels under compute-sanitizer (memcheck, racecheck); hours
# The environment is made once and again only when the files that describe it change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: test demo bench build lint sanitize fuzz gpu sanitize-gpu clean

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

# A package of its own under build/, so that the one in place stays. Python and torch are not instrumented: hence the
# preloading (with libstdc++, whose exceptions must be known before the first is thrown), and no search for leaks.
# What cannot be had is refused as anywhere else, OpenVINO loads its parts as sanitizers demand, and a finding goes to
# the terminal past pytest.
TESTS ?= tests/backends tests/ops tests/native tests/compiler tests/fuzz
sanitize: $(STAMP)
	rm -rf build/sanitize
	CXX=g++ VITSPARSE_CUDA=off VITSPARSE_SANITIZE=address,undefined \
	  $(BIN)/python setup.py --quiet build --build-lib build/sanitize
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/build/sanitize:$(CURDIR) \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 TBB_ENABLE_SANITIZERS=1 \
	  $(BIN)/python -m pytest -q --capture=sys -o pythonpath= -o timeout=1800 $(TESTS)

fuzz: $(STAMP) build
	$(BIN)/python -m tests.fuzz --count 100000

gpu: $(STAMP) build
	$(BIN)/python -m pytest -q -m gpu --record-gpu

# torch keeps freed memory for itself, which hides reads behind the end of a tensor: here each allocation is its own. Only
# our own kernels are watched; even so a test takes up to a hundred times as long, so none has a time limit.
SANITIZER := compute-sanitizer --error-exitcode 9 --target-processes all --kernel-name kns=vitsparse
GPU_TESTS ?= tests/cuda
sanitize-gpu: $(STAMP) build
	for tool in memcheck racecheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $$tool \
	    $(BIN)/python -m pytest -q -m gpu -o timeout=0 $(GPU_TESTS) || exit 1; \
	done

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
