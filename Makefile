# fastnorm's tasks. A fresh machine needs Python >= 3.10, a C++20 compiler and make; everything else
# comes from PyPI into .venv. `make help` lists the tasks.

PYTHON ?= python3
ARGS ?=# further arguments for pytest or the demo: make test ARGS="-k relu"

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# scikit-build-core and the C++ tests find the CMake and Ninja of .venv.
export PATH := $(BIN):$(PATH)

RELEASE := build/release
ASAN := build/asan
ASAN_SITE := $(ASAN)/site
HOST := build/cuda-on-host
HOST_SITE := $(HOST)/site

CXX_TESTS := $(shell find tests/cpp tests/consumer -type f)
SOURCES := CMakeLists.txt pyproject.toml $(CXX_TESTS) \
    $(shell find cpp cuda python tests/cuda -type f -not -path '*/__pycache__/*')
CXX_FILES := $(filter %.h %.hpp %.c %.cpp %.cu,$(SOURCES))

# pip builds in a folder of its own that stays, with the tools of .venv, so that a second build
# compiles only what changed. $(1): the folder, $(2): CMake's definitions, $(3): what to install.
pip_install = SKBUILD_BUILD_DIR=$(1) SKBUILD_CMAKE_DEFINE="$(2)" \
    $(BIN)/python -m pip install --quiet --no-build-isolation $(3)
RELEASE_DEFINES := FASTNORM_BUILD_TESTS=ON;FASTNORM_TEST_ISAS=ON
# One instruction set beside the baseline: instrumented code is slow to compile.
ASAN_DEFINES := FASTNORM_BUILD_TESTS=ON;FASTNORM_SANITIZE=address,undefined;FASTNORM_ISA_LIST=avx2;FASTNORM_CUDA=OFF
HOST_DEFINES := FASTNORM_BUILD_TESTS=ON;FASTNORM_CUDA=HOST;FASTNORM_ISA_LIST=baseline

.PHONY: help demo test bench bench-cpp test-cpp test-asan test-cuda lint format clean
.DELETE_ON_ERROR:

help: ## list the tasks
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

demo: $(VENV)/.demo ## train a network on handwritten digits, with and without batch norm
	$(BIN)/python examples/mnist_demo.py $(ARGS)

test: $(VENV)/.test ## all tests: C++ and C, then Python
	$(BIN)/ctest --test-dir $(RELEASE) --output-on-failure
	FASTNORM_BUILD_DIR=$(CURDIR)/$(RELEASE) $(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/.bench ## time batch norm against its peers (a gigabyte to install), plot the result
	$(BIN)/python bench/run.py --out build/bench/result.json $(ARGS)
	$(BIN)/python bench/plot.py build/bench/result.json

bench-cpp: $(VENV)/.tools ## time the kernels alone (needs Google Benchmark: apt-get install libbenchmark-dev)
	$(BIN)/cmake -S . -B build/bench-cpp -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTNORM_BUILD_BENCH=ON
	$(BIN)/cmake --build build/bench-cpp
	build/bench-cpp/bench/cpp/kernels_bench $(ARGS)

test-cpp: $(VENV)/.tools ## the C++ and C tests of a build without Python
	$(BIN)/cmake --preset release -G Ninja
	$(BIN)/cmake --build --preset release
	$(BIN)/ctest --preset release

# Python is not instrumented: the runtime has to be loaded before it, and libstdc++ with it, whose
# exceptions it intercepts. What Python never frees is no leak of ours.
IN_ASAN = PYTHONPATH=$(ASAN_SITE) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    LD_PRELOAD="$$(ldd $(ASAN_SITE)/fastnorm/_core*.so | awk '/libasan|libstdc/ {printf "%s ", $$3}')"
ASAN_TESTS := $(addprefix tests/test_,memory.py batch_norm.py errors.py overlap.py layer.py)

test-asan: $(VENV)/.test $(ASAN)/.built ## memory tests under AddressSanitizer and UBSan
	$(BIN)/ctest --test-dir $(ASAN) --output-on-failure
	$(IN_ASAN) $(BIN)/python -c 'import sys, fastnorm._core as c; sys.exit("$(ASAN)" not in c.__file__)'
	$(IN_ASAN) $(BIN)/python -m pytest $(ASAN_TESTS) $(ARGS)

test-cuda: $(VENV)/.test $(HOST)/.built ## the CUDA kernels, run on the CPU: no GPU is needed
	$(BIN)/ctest --test-dir $(HOST) --output-on-failure
	PYTHONPATH=$(HOST_SITE) $(BIN)/python -c 'import sys, fastnorm._core as c; sys.exit("$(HOST)" not in c.__file__)'
	PYTHONPATH=$(HOST_SITE) $(BIN)/python -m pytest $(wildcard tests/test_cuda*.py) $(ARGS)

lint: $(VENV)/.lint ## ruff, mypy, the check of the stub, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fastnorm._core
	$(BIN)/pre-commit validate-config

format: $(VENV)/.lint ## format the Python, C++ and C files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean: ## remove .venv, build and dist
	rm -rf $(VENV) build dist

# --- what the tasks need --------------------------------------------------------------------------

or_needs = 2>/dev/null || { echo "fastnorm needs $(1)" >&2; exit 1; }

$(VENV)/.tools:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10)' \
	    $(call or_needs,Python >= 3.10; another than $(PYTHON) by: make PYTHON=...)
	@$(PYTHON) -c 'import ensurepip, venv' \
	    $(call or_needs,Python's venv: apt-get install python3-venv)
	@$(PYTHON) -c 'import sysconfig as s; open(s.get_path("include") + "/Python.h")' \
	    $(call or_needs,Python's headers: apt-get install python3-dev)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet cmake ninja pybind11 scikit-build-core
	@touch $@

$(VENV)/.demo: EXTRAS := demo
$(VENV)/.test: EXTRAS := test
$(VENV)/.bench: EXTRAS := bench
$(VENV)/.lint: EXTRAS := demo,test,lint
$(VENV)/.demo $(VENV)/.test $(VENV)/.bench $(VENV)/.lint: $(VENV)/.tools $(SOURCES)
	@echo "Installing and building; the first time this takes five to fifteen minutes on two cores, half an hour on slow ones with an nvcc."
	$(call pip_install,$(RELEASE),$(RELEASE_DEFINES),".[$(EXTRAS)]")
	@touch $@

$(HOST)/.built: $(VENV)/.tools $(SOURCES)
	$(call pip_install,$(HOST),$(HOST_DEFINES),--no-deps --upgrade --target $(HOST_SITE) .)
	@touch $@

$(ASAN)/.built: $(VENV)/.tools $(SOURCES)
	$(call pip_install,$(ASAN),$(ASAN_DEFINES),--no-deps --upgrade --target $(ASAN_SITE) .)
	@touch $@
